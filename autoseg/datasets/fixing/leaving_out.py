"""Remove cases and files whose faults cannot be repaired from the corrected copy of a dataset.

leave_out   the copy without every case that has an error, and without files of no case that have one
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from autoseg.datasets.dataset import Dataset
from autoseg.datasets.fixing.changes import LEFT_OUT, Change
from autoseg.datasets.fixing.copying import with_companions
from autoseg.datasets.fixing.lists import drop_cases
from autoseg.datasets.layouts import IMAGE_FOLDERS, LABEL_FOLDERS
from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import StorageError
from autoseg.imaging.formats.readers import ending_of, stem_of

FOLDERS = {name.lower() for name in (*IMAGE_FOLDERS, *LABEL_FOLDERS, "imagesTs", "labelsTs")}
OUTLINES = (".json", ".geojson")
LISTS = (".json", ".csv", ".tsv")


def leave_out(copy: Path, dataset: Dataset, problems: Sequence[Problem]) -> list[Change]:
    """Remove every case with an error from a copy, and every file outside of cases that an error names.

    Files that a sound case uses, lists, and the folders of the layout are kept; an error that names nothing else (a
    label that is in no file) remains.

    Returns:
        One change per error that is gone with its case or file, and one per entry of a list; empty: nothing to do.

    Raises:
        StorageError: a file cannot be removed.
    """
    cases = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    errors = [problem for problem in problems if problem.severity == "error"]
    bad = {problem.case for problem in errors if problem.case in cases}
    kept = {Path(file) for case in cases.values() if case.id not in bad for file in _files(case)}
    gone: set[Path] = set()
    for case in [case for case in cases.values() if case.id in bad]:
        for path in _belongings(case, copy, kept):
            gone |= _remove(path, copy, kept, of_case=path.suffix.lower() in OUTLINES)
    changes, ids = [], {case_id for case_id in bad if case_id}
    for problem in errors:
        removed = {path for file in _alike(Path(problem.file)) for path in _remove(file, copy, kept)}
        gone |= removed
        if problem.case in bad or removed:
            ids |= {problem.case} if problem.case else set()
            changes.append(Change(problem.case or "", problem.file, problem.what, "not in the copy", LEFT_OUT))
    for name, entry in drop_cases(copy, ids, gone) if changes else ():
        changes.append(Change("", str(copy / name), f"names {entry}", "no longer listed", "list corrected"))
    return changes


def _files(case: Case) -> list[str]:
    return [file for file in (*case.images, case.label) if file]


def _belongings(case: Case, copy: Path, kept: set[Path]) -> list[Path]:
    """The files of a case, neighbouring files with its id (surplus channels), and its own folder if it has one."""
    files = [path for file in _files(case) for path in with_companions(Path(file))]
    own = re.compile(re.escape(case.id) + r"(_\d{4})?")
    found = []
    for image in [Path(file) for file in case.images]:
        folder = image.parent
        if folder.name.lower() not in FOLDERS and folder != copy and not _holds(folder, kept):
            found.append(folder)
        elif folder.is_dir():
            found += [file for file in folder.iterdir() if ending_of(file) and own.fullmatch(stem_of(file))]
    return [*files, *found]


def _alike(path: Path) -> list[Path]:
    """A file that an error names, and what it names with it: of a DICOM series, all files of the folder."""
    if not _is_dicom(path):
        return [path]
    return [file for file in sorted(path.parent.iterdir()) if _is_dicom(file)]


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def _holds(folder: Path, kept: set[Path]) -> bool:
    return any(path.is_relative_to(folder) for path in kept)


def _remove(path: Path, copy: Path, kept: set[Path], *, of_case: bool = False) -> set[Path]:
    """Remove a file, or a folder with all in it; nothing that is a list, a folder of the layout, or of a sound case.

    Args:
        of_case: it is a file of outlines, and no list, whatever its name.
    """
    if copy not in path.parents or not path.exists() or _holds(path, kept):
        return set()
    if path.is_dir():
        if path.name.lower() in FOLDERS:
            return set()
        gone = {path, *path.rglob("*")}
    elif path.parent == copy and path.suffix.lower() in LISTS and not of_case:
        return set()
    else:
        gone = {path}
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        what = f"{path} cannot be removed: {error.strerror}"
        raise StorageError(what, remedy="check your permissions there") from error
    return gone
