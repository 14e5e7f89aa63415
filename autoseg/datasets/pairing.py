"""Which files belong together: image files sorted into cases, with their channels and their labels.

Nothing is raised for a single case and no image is opened: faults are collected as `Problem`s in `Found`.
Names are compared in Unicode's composed form (NFC), because archives made on macOS decompose accents.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from autoseg.datasets.contents import Contents, Problem, contents, outlines_in, stray_folders, why_absent
from autoseg.datasets.spelling import CHANNEL_SUFFIX, composed, find
from autoseg.datasets.splits import Split
from autoseg.errors import UsageError
from autoseg.imaging.formats.readers import ending_of, stem_of
from autoseg.imaging.labels import LabelSet
from autoseg.rules import anything, between, entries, file_name, file_path

FilePath = Annotated[str, file_path()]
LABEL_STEMS = ("seg", "segmentation", "label", "labels", "mask", "gt", "groundtruth", "ground_truth")
LABEL_SUFFIX = re.compile(r"[._-](seg|segmentation|label|labels|mask|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One scan with all its channels, and the person it came from."""

    id: Annotated[str, file_name()]
    patient: Annotated[str, anything("any text")]
    images: Annotated[tuple[FilePath, ...], entries(1)]  # absolute, one per channel; a file of several stands alone
    label: FilePath | None
    fold: Annotated[int, between(0, 9999)] | None = None  # the fold that validates on it, where a table says so


@dataclass
class Found:
    """The content of a folder, as read by a layout. A case's patient is its own id until the patients are known."""

    layout: str
    name: str
    cases: list[Case] = field(default_factory=list)
    test_cases: list[Case] = field(default_factory=list)
    channels: tuple[str, ...] | None = None
    labels: LabelSet | None = None
    patients: dict[str, str] = field(default_factory=dict)  # case id -> patient, where the layout names them
    unused_ids: set[str] = field(default_factory=set)  # of images without labels: tables may name them
    splits: tuple[Split, ...] | None = None  # as given; `given_folds.sound_splits` judges them
    splits_from: str = ""  # the file that gives them
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def image_files(folder: Path) -> list[Path]:
    """Files of a known format, sorted, not hidden (`._x`)."""
    return contents(folder).images


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted, without hidden ones."""
    return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]


def name_of(path: Path) -> str:
    """File name without its extension, composed: `caf\\u00e9` however it was stored."""
    return composed(stem_of(path))


def by_channel(files: Iterable[Path], label_names: Iterable[str] = ()) -> dict[str, list[tuple[int, Path]]]:
    """Sort image files into cases: case id -> (channel, file) in order of channel.

    A name shared with a label is a case id; otherwise `<case>_<four digits>` is one channel, unless most labels show
    that the digits belong to the id (slice_0001.png with a label slice_0001.png).
    """
    known, names = set(label_names), {file: name_of(file) for file in files}
    parts = {file: match.groups() for file, name in names.items() if (match := CHANNEL_SUFFIX.fullmatch(name))}
    whole = sum(name in known for name in names.values())
    channels = sum(case_id in known for case_id, _ in parts.values())
    suffixed = channels > whole or (not whole and len(parts) == len(names))
    groups: dict[str, list[tuple[int, Path]]] = {}
    for file, name in names.items():
        case_id, channel = name, "0"
        if file in parts and name not in known and (suffixed or parts[file][0] in known):
            case_id, channel = parts[file]
        groups.setdefault(case_id, []).append((int(channel), file))
    return {case_id: sorted(group) for case_id, group in sorted(groups.items())}


def pair(found: Found, images: Path, labels: Path | None, ending: str = "") -> list[Case]:
    """Cases of a folder of images and a folder of labels with equal stems; faults go to `found.problems`."""
    beside, inside = contents(labels, ending) if labels else Contents(), contents(images, ending)
    if labels and (labels == images or not beside.images):
        beside = outlines_in(labels)
    for there in (inside, beside):
        found.problems += [*there.problems, *stray_folders(there)]
    exact = _labels_by_name(found, beside.images)
    loose = {LABEL_SUFFIX.sub("", name): file for name, file in exact.items()}
    groups = by_channel(inside.images, [*exact, *loose])
    expected = _expected_channels(found, groups)
    cases, used = [], set()
    for case_id, group in groups.items():
        files: dict[int, Path] = {}
        for channel, file in group:
            if channel in files:
                found.problems.append(_twice(case_id, file, files[channel]))
            elif channel not in expected:
                what = f"channel {channel:04d}, which the other cases do not have"
                found.problems.append(Problem(case_id, str(file), what, "it is ignored; remove it", "warning"))
            files.setdefault(channel, file)
        for channel in [channel for channel in expected if channel not in files]:
            found.problems.append(_missing_channel(case_id, group[0][1], f"{channel:04d}", found.channels, channel))
        label = exact.get(case_id) or loose.get(case_id)
        if label is None and case_id not in beside.unusable:
            found.problems.append(_missing_label(case_id, group[0][1], labels or images))
        used.add(label)
        cases.append(_case(case_id, [files[channel] for channel in expected if channel in files], label))
    named = {CHANNEL_SUFFIX.sub(r"\1", name) for name in inside.unusable} | inside.unusable
    for name, file in exact.items():
        if file not in used and not {name, LABEL_SUFFIX.sub("", name)} & named:
            found.problems.append(
                Problem(name, str(file), f"no image in {images.name}/ belongs to this label", _ORPHAN)
            )
    return cases


def _expected_channels(found: Found, groups: Mapping[str, Sequence[tuple[int, Path]]]) -> Sequence[int]:
    """The channels every case should have: as most have, or as many as are declared, counted from 0."""
    usual = _usual(([channel for channel, _ in group] for group in groups.values()), len(groups))
    several = any(len(group) > 1 for group in groups.values())
    if found.channels and several and len(usual) != len(found.channels):
        return range(len(found.channels))
    return usual


def channel_files(folder: Path, files: Sequence[Path] | None = None) -> dict[str, list[Path]]:
    """Files of a case folder by lower-case channel: `BraTS_001/BraTS_001_t1.nii.gz` is t1, `c01/seg.nii.gz` is seg."""
    files = image_files(folder) if files is None else files
    names = [name_of(file) for file in files]
    start = composed(folder.name).lower()
    if not all(name.lower().startswith(tuple(start + mark for mark in "_-. ")) for name in names):
        start = ""  # folder c with ct.nii and pet.nii: its name begins no other by chance
    found: dict[str, list[Path]] = {}
    for file, name in zip(files, names, strict=True):
        found.setdefault(name[len(start) :].lstrip("_-. ").lower() or name.lower(), []).append(file)
    return found


def case_folders(found: Found, folders: Sequence[Path], labels: Path | None, wanted: tuple[str, ...] | None) -> None:
    """Add one case per folder, its files named after channels; labels lie among them, or in a folder of their own."""
    inside = {folder: contents(folder) for folder in folders}
    beside = contents(labels) if labels else Contents()
    for folder, there in inside.items():
        found.problems += _of_folder(folder, there)
    found.problems += [*beside.problems, *stray_folders(beside)]
    files_of = {folder: channel_files(folder, there.images) for folder, there in inside.items() if there.images}
    names = [[name for name in files if labels or name not in LABEL_STEMS] for files in files_of.values()]
    usual = sorted(_usual(names, len(files_of)))
    chosen, found.channels = choose_channels(usual, wanted)
    exact = _labels_by_name(found, beside.images)
    loose = {LABEL_SUFFIX.sub("", name): file for name, file in exact.items()}
    used = set()
    for folder, files in files_of.items():
        case_id = composed(folder.name)
        for name, same in files.items():
            if len(same) > 1:
                found.problems.append(_twice(case_id, same[1], same[0]))
            elif name not in usual and (labels or name not in LABEL_STEMS):
                what = f"{name!r} is a channel that most cases do not have"
                found.problems.append(Problem(case_id, str(same[0]), what, "it is ignored; remove it", "warning"))
        for name in [name for name in chosen if name not in files]:
            found.problems.append(_missing_channel(case_id, folder, name))
        own = [] if labels else [files[name][0] for name in LABEL_STEMS if name in files]
        label = (exact.get(case_id) or loose.get(case_id)) if labels else next(iter(own), None)
        if len(own) > 1:
            what = "two files could be the label: " + ", ".join(file.name for file in own)
            found.problems.append(Problem(case_id, str(folder), what, "keep one of them"))
        if label is None and case_id not in beside.unusable:
            found.problems.append(_missing_label(case_id, folder, labels or folder))
        used.add(label)
        found.cases.append(_case(case_id, [files[name][0] for name in chosen if name in files], label))
    for name, file in exact.items():
        if file not in used:
            found.problems.append(Problem(name, str(file), "no case folder belongs to this label", _ORPHAN))


def _of_folder(folder: Path, there: Contents) -> list[Problem]:
    """What is wrong in a case folder; one without images or possible images is not used, and reported once."""
    problems = [*there.problems, *stray_folders(there)]
    if there.images or any(problem.severity == "error" for problem in problems):
        return problems
    return [
        Problem(
            composed(folder.name), str(folder), "contains no image, and is not used", "nothing, or remove it", "warning"
        )
    ]


def listed_case(
    found: Found,
    case_id: str,
    images: Sequence[Path | None],
    label: Path | None,
    where: Path,
    names: Sequence[str] = (),
) -> Case:
    """The case that a file (`where`) lists; files that do not exist go to `found.problems`. None: not listed.

    Where `x.nii.gz` does not exist but `x_0000.nii.gz` does, the channels x_0000, x_0001, ... are meant (nnU-Net v1).
    """
    files: list[Path] = []
    case_id = composed(case_id)
    for channel, image in enumerate(map(_found, images)):
        if image is None:
            name = names[channel] if channel < len(names) else str(channel)
            found.problems.append(_missing_channel(case_id, where, name))
        elif image.is_file():
            files.append(image)
        elif siblings := _channels_of(image):
            files += siblings
        else:
            found.problems.append(_absent(case_id, image, where))
    label = _found(label)
    if label is None:
        found.problems.append(_missing_label(case_id, where, where))
    elif not label.is_file():
        found.problems.append(_absent(case_id, label, where))
        label = None
    return _case(case_id, files, label)


def choose_channels(names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[list[str], tuple[str, ...]]:
    """Choose among the channels a layout names: those wanted, in that order; names it does not have rename all.

    Returns the layout's names of the chosen channels, and their final names.

    Raises:
        UsageError: only some of the wanted names exist, or their number differs.
    """
    if wanted is None:
        return list(names), tuple(names)
    known = {name.lower(): name for name in names}
    if all(name.lower() in known for name in wanted):
        return [known[name.lower()] for name in wanted], wanted
    if len(wanted) == len(names) and not any(name.lower() in known for name in wanted):
        return list(names), wanted
    raise UsageError(
        f"--channels names {', '.join(wanted)}, but the files are named {', '.join(names)}",
        remedy="choose among the names of the files, or give one new name for each of them in that order",
    )


def identical_ids(found: Found) -> None:
    """Report ids that some file systems cannot distinguish; keep the first of cases with the same id."""
    first: dict[str, Case] = {}
    for cases in (found.cases, found.test_cases):
        for case in list(cases):
            other = first.setdefault(case.id.casefold(), case)
            if other is case:
                continue
            file, others_file = _a_file(case), _a_file(other)
            if other.id == case.id:
                cases.remove(case)
            else:
                what = f"the id {other.id!r} differs from {case.id!r} only in upper and lower case: {Path(file).name}"
                found.problems.append(Problem(other.id, others_file, what, _RENAME))
            found.problems.append(
                Problem(case.id, file, f"the id {case.id!r} is also that of {Path(others_file).name}", _RENAME)
            )


_ORPHAN = "add its image, correct its name, or remove it"
_RENAME = "rename one of them: ids must differ in more than upper and lower case"


def _found(path: Path | None) -> Path | None:
    return None if path is None else find(path)


def _absent(case_id: str, path: Path, where: Path) -> Problem:
    what, remedy = why_absent(path)
    return Problem(case_id, str(path), f"{what}, but {where.name} lists it", remedy)


def _case(case_id: str, images: Sequence[Path], label: Path | None) -> Case:
    return Case(
        case_id, case_id, tuple(str(file.absolute()) for file in images), str(label.absolute()) if label else None
    )


def _a_file(case: Case) -> str:
    return next(iter(case.images), case.label or "")


def _usual(names: Iterable[Iterable], number: int) -> list:
    """What at least half of the cases have, in order."""
    counts = Counter(name for case in names for name in set(case))
    return sorted(name for name, count in counts.items() if 2 * count >= number)


def _labels_by_name(found: Found, files: Sequence[Path]) -> dict[str, Path]:
    labels: dict[str, Path] = {}
    for file in files:
        if name_of(file) in labels:
            found.problems.append(_twice(name_of(file), file, labels[name_of(file)]))
        labels.setdefault(name_of(file), file)
    return labels


def _channels_of(image: Path) -> list[Path]:
    """Siblings x_0000.nii.gz, x_0001.nii.gz, ... of a listed x.nii.gz."""
    stem, ending = stem_of(image), ending_of(image) or ""
    siblings = [image.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(100)]
    return siblings[: next((i for i, file in enumerate(siblings) if not file.is_file()), len(siblings))]


def _twice(case_id: str, file: Path, first: Path) -> Problem:
    return Problem(
        case_id, str(file), f"duplicate id: {first.name} has the same name", "remove or rename one of the two"
    )


def _missing_label(case_id: str, file: Path, where: Path) -> Problem:
    return Problem(
        case_id, str(file), f"missing label: {where.name} has none for {case_id}", "add the label, or remove the case"
    )


def _missing_channel(
    case_id: str, file: Path, shown: str, names: Mapping[int, str] | Sequence[str] | None = None, index: int = 0
) -> Problem:
    name = f" ({names[index]})" if names is not None and index < len(names) else ""
    return Problem(case_id, str(file), f"missing channel {shown}{name}", "add the file, or remove the case")
