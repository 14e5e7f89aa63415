"""The entries of a folder of images or labels. Every entry is used, or reported with a remedy.

    contents         folder -> its images, its folders, and a problem for everything else
    outlines_in      the same of a folder of JSON files
    stray_folders    what is wrong with folders among image files
    why_absent       why a path that is listed is not a file
    table_beside     patients.csv and the like, in upper or lower case

Silently skipped: hidden entries, and the side files listed in `entries.py`. A problem is an error where the entry is,
or may be, an image whose case would otherwise be missing; otherwise it is a warning.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autoseg.datasets.entries import (
    PAIR_ENDINGS,
    absence,
    data_files_of,
    dicom_remedy,
    foreign,
    is_dicom,
    is_foreign,
    is_series,
    is_side_file,
    is_volume,
    stem,
)
from autoseg.datasets.spelling import CHANNEL_SUFFIX, composed
from autoseg.errors import DataError
from autoseg.imaging.formats.outline_files import is_outlines
from autoseg.imaging.formats.readers import ending_of, stem_of
from autoseg.messages import counted

NAMED_AT_ONCE = 3  # files of a DICOM series named; the rest are counted
LOOKED_AT = 200  # images below a folder that are counted, at most
VISITED = 20_000  # files below a folder that are looked at, at most


@dataclass(frozen=True)
class Problem:
    """One fault of a dataset: the file, what is wrong, and what to do."""

    case: str | None  # None: the dataset as a whole
    file: str
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"
    stays: bool = False  # leaving cases out (--skip-bad) does not fix it
    same_as: str | None = None  # the case with the same image


@dataclass
class Contents:
    """The entries of one folder."""

    images: list[Path] = field(default_factory=list)  # files of a known format, and folders of DICOM series, sorted
    folders: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # one for each other entry that is not a side file

    @property
    def unusable(self) -> set[str]:
        """Stems of files that cannot be used: a case that lacks one need not be reported again."""
        return {problem.case for problem in self.problems if problem.case}


def contents(folder: Path, ending: str = "") -> Contents:
    """Sort the entries of a folder; no image is opened.

    Args:
        ending: extension the files should have; if some have it, the others are problems.
    """
    found = Contents()
    dicom: list[Path] = []
    others: list[Problem] = []
    entries, found.problems = _listed(folder)
    for path in entries:
        if path.name.startswith(".") and not path.name.lower().endswith(".icloud"):
            continue
        if is_side_file(path):
            continue
        if path.is_dir():
            if not path.name.startswith("__"):
                (found.images if is_series(path) else found.folders).append(path)
        elif fault := absence(path):
            found.problems.append(Problem(stem(path), str(path), *fault))
        elif ending_of(path):
            found.images.append(path)
        elif is_dicom(path):
            (found.images if is_volume(path) else dicom).append(path)
        else:
            others.append(Problem(stem(path), str(path), *foreign(path)))
    names = {composed(stem_of(image)): image.name for image in found.images[::-1]}
    names |= {CHANNEL_SUFFIX.sub(r"\1", name): image for name, image in names.items()}
    found.problems += [_beside(problem, names) for problem in others]
    _join_pairs(found)
    data_files = data_files_of(found.images)
    found.problems = [p for p in found.problems if Path(p.file).name.lower() not in data_files]
    if dicom:
        found.problems.append(_dicom_problem(folder, dicom))
    if fitting := [file for file in found.images if file.name.lower().endswith(ending)]:
        fit, unfit = {stem_of(file) for file in fitting}, sorted(set(found.images) - set(fitting))
        found.problems += [_other_ending(file, ending, fit) for file in unfit]
        found.images = fitting
    return found


def outlines_in(folder: Path) -> Contents:
    """The JSON and GeoJSON files of a folder, as its images: outlines, where it holds no label maps."""
    found = Contents()
    entries, found.problems = _listed(folder)
    found.images = [path for path in entries if is_outlines(path) and path.is_file()]
    return found


def stray_folders(found: Contents) -> list[Problem]:
    """One problem for each folder among image files, which is not searched."""
    problems = []
    for folder in found.folders:
        inside = images_below(folder)
        if unlisted := _listed(folder)[1]:
            problems += unlisted
        elif ending := ending_of(folder):
            what = f"is a folder, expected a {ending} file"
            remedy = (
                "replace it with the image that it contains" if inside else "remove it, or replace it with the image"
            )
            problems.append(Problem(stem_of(folder), str(folder), what, remedy))
        elif inside:
            count = f"at least {len(inside)}" if len(inside) == LOOKED_AT else str(len(inside))
            what = f"a folder among images: its files are not used ({count} files, such as {inside[0].name})"
            problems.append(Problem(None, str(folder), what, f"move its images to {folder.parent}, or move it away"))
        else:
            what = "a folder among images: it contains no image"
            problems.append(Problem(folder.name, str(folder), what, "nothing, or move it away", "warning"))
    return problems


def _listed(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The entries of a folder, or why it cannot be listed."""
    try:
        return sorted(folder.iterdir()), []
    except OSError as error:
        what = f"the folder cannot be listed: {error.strerror}"
        return [], [Problem(composed(folder.name), str(folder), what, "check its permissions")]


def dicom_below(folder: Path) -> list[Path]:
    """DICOM files in a folder and in those inside it, the first few hundred."""
    return [path for path in images_below(folder) if is_dicom(path)]


def images_below(folder: Path) -> list[Path]:
    """Images, links to images and DICOM files in a folder and in those inside it, the first few hundred."""
    found: list[Path] = []
    visited = 0
    for where, folders, files in os.walk(folder, onerror=None, followlinks=False):
        folders[:] = [name for name in sorted(folders) if not name.startswith((".", "__"))]
        paths = [Path(where) / name for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if ending_of(path) or is_foreign(path) or is_dicom(path)]
        visited += len(paths) + len(folders)
        if len(found) >= LOOKED_AT or visited >= VISITED:
            return found[:LOOKED_AT]
    return found


def why_absent(path: Path) -> tuple[str, str]:
    """What is wrong with a listed path that is not a file, and what to do."""
    if path.is_dir():
        return "is a folder, expected a file", "name the file in it"
    fault = absence(path)
    return (fault.what, fault.remedy) if fault else ("does not exist", "add the file, or correct the path")


def table_beside(folder: Path, name: str) -> Path | None:
    """A file of this name in a folder, in upper or lower case; None where there is none.

    Raises:
        DataError: the name is there and cannot be read as a file.
    """
    path = next((entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name), None)
    if path is not None and not path.is_file():
        what, remedy = why_absent(path)
        raise DataError(f"{path} {what}", remedy=remedy)
    return path


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises DataError naming the line that is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets are neither
        raise DataError(f"{path} is not valid JSON: {error}", remedy="correct it") from None


def _beside(problem: Problem, names: Mapping[str, str]) -> Problem:
    """Downgrade the problem of a file that has an image of the same name next to it: left over by SPM or a viewer."""
    twin = names.get(problem.case or "")
    if problem.severity == "warning" or twin is None:
        return problem
    return replace(
        problem,
        what=f"{problem.what}: not used, {twin} is next to it",
        remedy="nothing, or move it away",
        severity="warning",
    )


def _join_pairs(found: Contents) -> None:
    """Report a .hdr and its .img once."""
    seen: dict[Path, Problem] = {}
    for problem in list(found.problems):
        path = Path(problem.file)
        if path.name.lower().endswith(PAIR_ENDINGS) and problem.severity == "error" and path.is_file():
            key = path.with_name(stem(path))
            if key in seen:
                found.problems.remove(problem)
                both = f"is, with {path.name}, a .hdr/.img pair (NIfTI pair or Analyze), which autoseg does not read"
                first = seen[key]
                found.problems[found.problems.index(first)] = Problem(first.case, first.file, both, first.remedy)
            seen.setdefault(key, problem)


def _dicom_problem(folder: Path, files: list[Path]) -> Problem:
    shown = ", ".join(file.name for file in files[:NAMED_AT_ONCE]) + (", ..." if len(files) > NAMED_AT_ONCE else "")
    what = f"{counted(len(files), 'DICOM file')} outside a folder of their own: {shown}"
    return Problem(None, str(files[0]), what, dicom_remedy(folder))


def _other_ending(file: Path, ending: str, fitting: set[str]) -> Problem:
    if stem_of(file) in fitting:
        what = f"is not used: {stem_of(file)}{ending} is next to it, and file_ending in dataset.json is {ending}"
        return Problem(stem_of(file), str(file), what, "nothing, or move it away", "warning")
    what = f"is not used: its extension is {ending_of(file)}, and file_ending in dataset.json is {ending}"
    return Problem(stem_of(file), str(file), what, f"convert it to {ending}, or correct file_ending")
