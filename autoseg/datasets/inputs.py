"""Group the images that a model is to segment into cases, without labels.

    FileNames   how the images of a case are named: decided once, when a dataset is read, and stored with the model
    naming_of   cases of a dataset -> FileNames
    images_in   what `predict -i` names -> cases, and problems

Training and prediction read names by the same rule, so that the images a model was trained on can be segmented by it.
Nothing is raised for a single case: the sound ones are segmented, and all problems are listed at the end.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from autoseg.datasets.contents import (
    Contents,
    Problem,
    contents,
    stray_folders,
    why_absent,
)
from autoseg.datasets.entries import is_dicom, is_series, is_volume, quoted
from autoseg.datasets.pairing import LABEL_STEMS, Case, by_channel, channel_files, name_of
from autoseg.datasets.spelling import CHANNEL_SUFFIX, composed
from autoseg.errors import UsageError
from autoseg.imaging.formats.readers import READERS, ending_of
from autoseg.messages import some
from autoseg.rules import anything, entries

Group = list[tuple[int, Path]]  # (channel, file) of one case
IMAGE_FOLDERS = ("imagests", "imagestr", "images")  # of a dataset, in lower case: the first of them is offered
LABEL_FOLDERS = {"labelstr", "labels", "masks", "segmentations"}
SEGMENTATION = ".seg.nrrd"
FOUR_DIGITS = re.compile(r"_\d{4}")


@dataclass(frozen=True)
class FileNames:
    """How the images of a case are named, one entry per channel."""

    kind: Literal["suffix", "folder"]
    channels: Annotated[
        tuple[Annotated[str, anything("any text")], ...], entries(1)
    ]  # suffix: what follows the id, "_0000" or ""; folder: names of the files in a case's folder


def naming_of(cases: Sequence[Case]) -> FileNames | None:
    """The rule that the file names of complete cases follow; None where they follow none, as a table allows."""
    number = Counter(len(case.images) for case in cases if case.images).most_common(1)
    found: set[FileNames | None] = {_naming(case) for case in cases if number and len(case.images) == number[0][0]}
    if found == {FileNames("suffix", ("",)), FileNames("suffix", ("_0000",))}:
        return FileNames("suffix", ("_0000",))  # names without it are found, too
    return found.pop() if len(found) == 1 else None


def images_in(
    paths: Sequence[Path],
    channels: int,
    names: Sequence[str] = (),
    rule: FileNames | None = None,
    out: Path | None = None,
) -> tuple[list[tuple[str, tuple[Path, ...]]], list[Problem]]:
    """Find the cases to segment among files and folders.

    Args:
        paths: image files, folders of image files, folders of case folders; DICOM series, and folders that hold some at
            any depth.
        channels: how many a case has, in files of their own or in one file together.
        names: of the channels.
        rule: how files were named in training; None where that is not known: `<case>_0000`, `<case>_0001`, ..., and
            in case folders by the names of the channels, otherwise by alphabet.
        out: where segmentations go: a folder that is not searched.

    Returns:
        (case id, its files in order of channel), sorted by id; and what is not a case, or not a complete one.

    Raises:
        UsageError: the path does not exist, or contains no image.
    """
    files: list[Path] = []
    groups: list[tuple[str, Group]] = []
    problems: list[Problem] = []
    reader = _Names(rule, channels, tuple(names), problems)
    for path in dict.fromkeys(Path(path).expanduser().absolute() for path in paths):
        if not path.is_dir() or is_series(path):
            files += [path] if path.is_dir() else _one_file(path, problems)
            continue
        inside = _images_of(path)
        inside.folders = [folder for folder in inside.folders if out is None or folder.resolve() != out.resolve()]
        if inside.images and reader.is_case_folder(inside.images, path):
            problems += [*inside.problems, *stray_folders(inside)]
            groups += reader.of_folder(path, inside)
        elif inside.images:
            problems += [*inside.problems, *stray_folders(inside)]
            files += inside.images
        elif channels == 1 and (series := series_below(path, out)):
            groups += [(case_id, [(0, folder)]) for case_id, folder in series]
        else:
            _refuse_dataset(path, inside)
            groups += _of_folders(reader, path, inside)
    if problems and not files and not groups and all(is_segmentation(Path(problem.file)) for problem in problems):
        what = f"{problems[0].file} is a segmentation of 3D Slicer, expected an image"
        raise UsageError(what, remedy="name the image that it was drawn on, or a folder of images")
    groups += reader.of_files([*dict.fromkeys(files)])  # a file may be given beside its folder
    one_file_each = all(len(group) == 1 for _, group in groups)
    complete = [g for g in _each_once(groups, problems) if _is_complete(*g, reader, one_file_each)]
    cases = sorted((case_id, tuple(file for _, file in group)) for case_id, group in complete)
    return cases, list(dict.fromkeys(problems))


def is_segmentation(file: Path) -> bool:
    """Whether a file's name says that it holds segments, as 3D Slicer writes them beside an image: `x.seg.nrrd`."""
    return file.name.lower().endswith(SEGMENTATION)


def _images_of(folder: Path) -> Contents:
    """The entries of a folder of images; segmentations among them are not used, and listed as such."""
    inside = contents(folder)
    inside.problems += [_segmentation(file) for file in inside.images if is_segmentation(file)]
    inside.images = [file for file in inside.images if not is_segmentation(file)]
    return inside


def _segmentation(file: Path) -> Problem:
    what = "is a segmentation of 3D Slicer, not an image: it is not used"
    return Problem(name_of(file), str(file), what, "nothing; if it is an image, call it .nrrd", "warning")


def _refuse_dataset(path: Path, inside: Contents) -> None:
    """Raise UsageError for a folder that holds images and labels in folders of their own, not cases."""
    names = {folder.name.lower(): folder for folder in inside.folders}
    if not names.keys() & LABEL_FOLDERS:
        return
    if images := next((names[name] for name in IMAGE_FOLDERS if name in names), None):
        raise UsageError(
            f"{path} is a dataset with labels, expected a folder of images",
            remedy=f"name the folder of images in it: -i {shlex.quote(str(images))}",
        )


@dataclass
class _Names:
    """Applies the rule to files and folders; what does not fit is added to `problems`."""

    rule: FileNames | None
    channels: int
    names: tuple[str, ...]
    problems: list[Problem]

    def of_files(self, files: Sequence[Path]) -> list[tuple[str, Group]]:
        """Image files -> groups of one case each."""
        if self.rule is None:
            groups = by_channel(files)
            if any(channel >= self.channels for group in groups.values() for channel, _ in group):
                return [(name_of(file), [(0, file)]) for file in files]  # the digits belong to the ids
            return [*groups.items()]
        found: dict[str, Group] = {}
        for file in files:
            case_id, channel = self._split(name_of(file))
            if channel is not None:
                found.setdefault(case_id, []).append((channel, file))
            elif self._is_another_channel(case_id):
                what = f"its name does not fit the model, which was trained on names that end in {self._endings()}"
                remedy = "leave it out if it shows something else; otherwise rename it"
                self.problems.append(Problem(case_id, str(file), what, remedy))
            else:
                found.setdefault(case_id, []).append((0, file))  # of all channels; the reader sees how many it has
        return [(case_id, sorted(group)) for case_id, group in found.items()]

    def is_case_folder(self, images: Sequence[Path], folder: Path) -> bool:
        """Whether a folder of images is one case, and not a folder of cases."""
        if self.rule is None or self.rule.kind != "folder":
            return False
        names = channel_files(folder, images)
        return all(name in names for name in self.rule.channels)

    def of_folder(self, folder: Path, inside: Contents) -> list[tuple[str, Group]]:
        """The case of a case folder; none where its files do not fit."""
        files = channel_files(folder, inside.images)
        others = {name: same for name, same in files.items() if name not in LABEL_STEMS}
        case_id = composed(folder.name)
        wanted = [name.lower() for name in (self.rule.channels if self.rule and self.rule.kind == "folder" else ())]
        for chosen in (wanted, [name.lower() for name in self.names]):
            if chosen and all(name in files for name in chosen):
                unfit = [file for name in sorted(others.keys() - set(chosen)) for file in others[name]]
                self.problems += [_extra(case_id, file) for file in unfit]
                return [(case_id, [(c, file) for c, name in enumerate(chosen) for file in files[name]])]
        if self.rule and self.rule.channels != ("",):
            suffixed = self.of_files([file for name, same in others.items() for file in same if self.fits(file)])
            if suffixed:
                unfit = [file for same in others.values() for file in same if not self.fits(file)]
                self.problems += [_extra(case_id, file) for file in unfit]
                return suffixed if len(suffixed) > 1 else [(case_id, suffixed[0][1])]
        if self.rule is None or len(others) == 1:
            return [(case_id, [(c, others[name][0]) for c, name in enumerate(sorted(others))])]
        expected = ", ".join(wanted or self.names)
        what = f"the folder contains {some(sorted(others)) or 'no image'}; the model needs {expected}"
        self.problems.append(Problem(case_id, str(folder), what, "name the files after the channels"))
        return []

    def _split(self, name: str) -> tuple[str, int | None]:
        """Case id and channel of a name; channel None: it has no suffix of the rule."""
        if self.rule is None:
            return name, None
        for channel, text in enumerate(self.rule.channels):
            start = r"(.+)[_\-. ]" if self.rule.kind == "folder" else "(.+)"
            if match := re.fullmatch(start + re.escape(text), name, re.IGNORECASE | re.DOTALL):
                return match[1], channel
        return name, None

    def fits(self, file: Path) -> bool:
        """Whether a file's name has one of the rule's suffixes."""
        return self._split(name_of(file))[1] is not None

    def _is_another_channel(self, name: str) -> bool:
        """Whether a name ends in a channel's number, but not in one of those the model was trained on."""
        assert self.rule is not None
        numbered = all(FOUR_DIGITS.fullmatch(text) for text in self.rule.channels)
        return numbered and CHANNEL_SUFFIX.fullmatch(name) is not None

    def _endings(self) -> str:
        assert self.rule is not None
        return " and ".join(self.rule.channels)


def _naming(case: Case) -> FileNames | None:
    """How the images of one case are named."""
    files = [Path(file) for file in case.images]
    folders = {file.parent for file in files}
    if len(folders) == 1 and composed((folder := folders.pop()).name) == case.id and folder.is_dir():
        names = {file: name for name, same in channel_files(folder).items() for file in same}
        if all(file in names for file in files):
            return FileNames("folder", tuple(names[file] for file in files))
    if all(name_of(file).startswith(case.id) for file in files):
        return FileNames("suffix", tuple(name_of(file)[len(case.id) :] for file in files))
    return None


def _extra(case_id: str, file: Path) -> Problem:
    return Problem(case_id, str(file), "is not a channel of the model: it is not used", "nothing", "warning")


def _one_file(path: Path, problems: list[Problem]) -> list[Path]:
    """A file given by name; a broken link is a problem like any other (`-i folder/*`)."""
    if path.is_file() and ending_of(path) is None and is_dicom(path):
        if is_volume(path):
            return [path]
        what = f"{path} is one slice of a DICOM series, or a DICOM object without an image"
        raise UsageError(what, remedy=f"give the folder of the series: -i {quoted(path.parent)}")
    if path.is_file() and ending_of(path) is None:
        remedy = f"known file extensions: {', '.join(READERS)}"
        raise UsageError(f"{path} is not an image of a known format", remedy=remedy)
    if path.is_file() and is_segmentation(path):
        problems.append(_segmentation(path))
        return []
    if path.is_file():
        return [path]
    if not os.path.lexists(path):
        raise UsageError(f"{path} does not exist", remedy="give image files, or a folder of image files")
    what, remedy = why_absent(path)
    problems.append(Problem(name_of(path), str(path), what, remedy))
    return []


def _of_folders(reader: _Names, root: Path, inside: Contents) -> list[tuple[str, Group]]:
    """Cases of a folder of case folders, one level deeper too."""
    groups: list[tuple[str, Group]] = []
    problems, faults = reader.problems, list(inside.problems)
    for folder in inside.folders:
        there = _images_of(folder)
        if there.images:
            problems += [*there.problems, *stray_folders(there)]
            groups += reader.of_folder(folder, there)
            continue
        faults += there.problems
        deeper = [(below, _images_of(below)) for below in there.folders]
        for below, found in deeper:
            if found.images:
                problems += [*found.problems, *stray_folders(found)]
                groups += reader.of_folder(below, found)
            else:
                faults += [*found.problems, *stray_folders(found)] or [_without_image(below)]
        if not there.problems and not deeper:
            faults.append(_without_image(folder))
    known = set(reader.problems)
    problems += [fault for fault in faults if fault not in known]
    if not groups and not any(fault.severity == "error" for fault in reader.problems):
        segments = any(is_segmentation(Path(fault.file)) for fault in reader.problems)
        what = f"{root} contains {'segmentations of 3D Slicer and ' if segments else ''}no image"
        raise UsageError(what, remedy=f"known file extensions: {', '.join(READERS)}")
    return groups


def series_below(root: Path, out: Path | None = None) -> list[tuple[str, Path]]:
    """DICOM series at any depth of a folder (patients, studies, series), if they lie deeper than case folders do.

    Returns:
        (id, folder): the names on the way joined by "_", without those that all have in common; empty where a folder of
        images of another format is found as well.
    """
    found: list[Path] = []
    for where, folders, _ in os.walk(root):
        here = Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        if out is not None and here.resolve() == out.resolve():
            folders.clear()
        elif here != root and is_series(here):
            found.append(here)
            folders.clear()
        elif contents(here).images and not any(map(is_series, contents(here).images)):
            return []
    parts = [folder.relative_to(root).parts for folder in found]
    shared = 0
    while len(parts) > 1 and len({way[: shared + 1] for way in parts}) == 1 and all(len(w) > shared + 1 for w in parts):
        shared += 1
    return [(composed("_".join(way[shared:])), folder) for way, folder in zip(parts, found, strict=True)]


def _without_image(folder: Path) -> Problem:
    what = "a folder without images: it is not used"
    return Problem(composed(folder.name), str(folder), what, "nothing, or remove it", "warning")


def _each_once(groups: Iterable[tuple[str, Group]], problems: list[Problem]) -> list[tuple[str, Group]]:
    """The groups whose segmentations have a file name of their own; reports the others."""
    groups = list(groups)
    counts = Counter(case_id.casefold() for case_id, _ in groups)
    single = []
    for case_id, group in groups:
        channels = [channel for channel, _ in group]
        if counts[case_id.casefold()] > 1 or len(set(channels)) < len(channels):
            for _, file in group:
                what = f"two images have the id {case_id}: their segmentations would overwrite each other"
                problems.append(
                    Problem(case_id, str(file), what, "rename one of them, or segment them into separate folders")
                )
        else:
            single.append((case_id, group))
    return single


def _is_complete(case_id: str, group: Group, reader: _Names, one_file_each: bool) -> bool:
    """Whether a case has one file for each channel, or one for all of them; reports what is missing."""
    names = reader.rule.channels if reader.rule else tuple(f"_{channel:04d}" for channel in range(reader.channels))
    found = [channel for channel, _ in group]
    alone = found == [0] and (one_file_each if reader.rule is None else not reader.fits(group[0][1]))
    if found == list(range(len(names))) or alone:
        return True
    missing = ", ".join(name for channel, name in enumerate(names) if channel not in found)
    what = f"{case_id} has {len(group)} image files ({group[0][1].name}, ...) for {len(names)} channels"
    reader.problems.append(Problem(case_id, str(group[0][1]), what, f"add the file whose name ends in {missing}"))
    return False
