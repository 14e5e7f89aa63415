"""Any accepted layout to cases with channels, labels and patients; and one case to arrays.

    parse_options   options of the command line about a dataset -> IntakeOptions
    discover        folder or table -> Dataset, and problems
    images_in       what `predict -i` names -> cases without labels, and problems
    load_case       one case -> image and target in one axis order

The parts are the other modules of this folder: layouts, the pairing of files, patients and tables, reading. `discover`
opens no image where names suffice: `problems.check` reads every file once, later.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from autoseg.datasets.checks.annotation import agree_on_colours, colours_of_labels
from autoseg.datasets.checks.voxels import picture_channels
from autoseg.datasets.columns import columns_of
from autoseg.datasets.contents import dicom_below, table_beside
from autoseg.datasets.fixing.lists import repeated_keys
from autoseg.datasets.given_folds import read_splits, sound_splits
from autoseg.datasets.inputs import FileNames, images_in, naming_of
from autoseg.datasets.layouts import LAYOUTS
from autoseg.datasets.loading import LoadedCase, count_values, is_picture, load_case
from autoseg.datasets.pairing import Case, Found, Problem, identical_ids
from autoseg.datasets.series import ignore_in_labels, missing_structures, names_in_labels
from autoseg.datasets.splits import CaseId, Split
from autoseg.datasets.tables import FOLDS_FILE, lists_images, patients_of
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import files_of, read_image, read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.regions import refuse_lost_labels
from autoseg.messages import dataset_of, suggest
from autoseg.processes import map_in_processes
from autoseg.rules import anything, entries, exactly
from autoseg.workspace import is_workspace

__all__ = [
    "Case",
    "Dataset",
    "IntakeOptions",
    "LoadedCase",
    "Problem",
    "discover",
    "images_in",
    "load_case",
    "parse_options",
]

VERSION = 1
LIGHT_BYTES = 64 * 2**20  # files of a dataset below this are read faster by this process alone than by starting others
MOST_FOUND_LABELS = 200  # more values in label files than this are intensities, not labels


@dataclass(frozen=True)
class IntakeOptions:
    """Options of the command line that complete a layout; None leaves it to the dataset."""

    channels: tuple[str, ...] | None = None
    labels: dict[str, int] | None = None  # name -> value
    regions: dict[str, tuple[int, ...]] | None = None  # name -> values of its labels
    ignore: int | None = None
    patient_regex: str | None = None
    colours: dict[str, int] | None = None  # "#rrggbb" in pictures -> value of its label


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset as autoseg understood it."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of datasets that this autoseg reads")]
    name: Annotated[str, anything("any text")]
    root: Annotated[str, anything("any path")]
    layout: Annotated[str, anything("any text")]
    channels: Annotated[tuple[Annotated[str, anything("any text")], ...], entries(1)]
    labels: LabelSet
    cases: tuple[Case, ...]  # sorted by id
    test_cases: tuple[Case, ...]  # held out
    patients_known: bool
    splits: tuple[Split, ...] | None  # folds given with the dataset
    notes: tuple[Annotated[str, anything("any text")], ...]
    file_names: FileNames | None = None  # how the images of a case are named; None: by no rule
    # further columns of the table of patients: column -> case id -> value
    columns: dict[Annotated[str, anything("any text")], dict[CaseId, Annotated[str, anything("any text")]]] = field(
        default_factory=dict
    )


def parse_options(
    *,
    channels: str | None = None,
    labels: str | None = None,
    regions: str | None = None,
    ignore: str | int | None = None,
    patient_regex: str | None = None,
) -> IntakeOptions:
    """Read `--channels CT,MR --labels liver=1,tumour=2 --regions "whole=1+2,core=2" --ignore 255 --patient-regex R`.

    Raises:
        UsageError: an option that cannot be read; the message says how to write it.
    """
    names = None if channels is None else tuple(name.strip() for name in channels.split(","))
    if names is not None and (not all(names) or len({name.lower() for name in names}) != len(names)):
        raise UsageError(f"--channels {channels!r} has an empty or a repeated name", remedy="write --channels CT,MR")
    pairs = _pairs("--labels", labels)
    colours = colours_of_labels(pairs)  # then labels are given by colour
    values = {name: colours.get(text.lower()) or _integers("--labels", text)[0] for name, text in pairs.items()}
    unions = {name: _integers("--regions", text) for name, text in _pairs("--regions", regions).items()}
    return IntakeOptions(
        channels=names,
        labels=None if labels is None else values,
        regions=None if regions is None else unions,
        ignore=None if ignore is None else _integers("--ignore", str(ignore))[0],
        patient_regex=patient_regex,
        colours=colours or None,
    )


def discover(root: Path, options: IntakeOptions = IntakeOptions()) -> tuple[Dataset, list[Problem]]:
    """Read the content of a folder or a table.

    No case is left out: those with a missing label or channel are in the dataset too, and reported in the problems.

    Raises:
        UsageError: there is no such folder, or an option does not fit the dataset.
        DataError: no layout matches, a description cannot be read, or there is no case or no label at all.
    """
    root = Path(root).expanduser().absolute()
    if not root.exists():
        raise UsageError(f"{root} does not exist", remedy="give the folder of a dataset, or a table of its images")
    if is_workspace(root):
        raise UsageError(
            f"{root} is a workspace of autoseg, expected a dataset",
            remedy=f"name the dataset that it was planned from: {dataset_of(root)}; or see where the workspace stands: "
            + suggest("status", workspace=root),
        )
    if not root.is_dir() and not root.is_file():
        raise UsageError(f"{root} is neither a folder nor a file", remedy="give the folder of a dataset, or a table")
    found = next((f for layout in LAYOUTS.values() if (f := layout(root, options.channels)) is not None), None)
    if found is None:
        dicom = dicom_below(root) if root.is_dir() else []
        holds = f"; it contains DICOM files, such as {dicom[0]}" if dicom else ""
        remedy = f"{_SERIES_IN}; {_LAYOUTS_KNOWN}" if dicom else _LAYOUTS_KNOWN
        raise DataError(f"{root} has none of the layouts that autoseg knows{holds}", remedy=remedy)
    folder = root if root.is_dir() else root.parent
    found.problems += repeated_keys(folder)
    if root.is_dir() and found.layout != "table":
        _unused_tables(found, root)
    identical_ids(found)
    _unusable_ids(found)
    if not found.cases:
        raise DataError(f"{root} was read as {found.layout}, but contains no training case", remedy=_no_case(found))
    patients, patients_known = patients_of(found, folder, options.patient_regex)
    cases = [replace(case, patient=patients[case.id]) for case in sorted(found.cases, key=lambda case: case.id)]
    test_cases = [
        replace(case, patient=patients[case.id]) for case in sorted(found.test_cases, key=lambda case: case.id)
    ]
    if path := table_beside(folder, FOLDS_FILE):
        if found.splits is None:
            found.splits = read_splits(found, path)
        else:
            found.notes.append(f"{path.name} is not used: the folds are those of {Path(found.splits_from).name}")
    elif found.splits is None and (path := table_beside(folder, "splits_final.pkl")):
        what = "the folds in it are not used: a pickle can run code, and is never opened"
        remedy = 'write them as splits_final.json, a list of {"train": [ids], "val": [ids]}, or remove the file'
        found.problems.append(Problem(None, str(path), what, remedy))
    _shared_patients(found, cases, test_cases)
    splits = sound_splits(found, patients)
    channels = _channels(found, options, cases)
    labels = _labels(found, options, cases)
    dataset = Dataset(
        VERSION, found.name, str(root), found.layout, channels, labels, tuple(cases), tuple(test_cases),
        patients_known, splits, tuple(found.notes), naming_of(cases), columns_of(found, root, patients),
    )  # fmt: skip
    return dataset, list(dict.fromkeys(found.problems))


def workers_for(files: Sequence[str], workers: int | None) -> int | None:
    """Number of processes to read files with: 0 (this one alone) where that is faster than starting others."""
    sizes = (one.stat().st_size for file in files for one in files_of(file) if one.is_file())
    if workers is None and sum(sizes) < LIGHT_BYTES:
        return 0
    return workers


_SERIES_IN = (
    "put each DICOM series into a folder images/CASE/ and its labels into labels/CASE.nii.gz (or .dcm: DICOM-SEG, "
    "RTSTRUCT)"
)
_LAYOUTS_KNOWN = (
    "it needs a dataset.json (nnU-Net or MSD), or images/ next to labels/ (masks/, segmentations/), or one folder per "
    "case with a file named seg, or a CSV or TSV with columns image and label, or a COCO file (annotations.json)"
)


def _pairs(option: str, text: str | None) -> dict[str, str]:
    """Read `name=text,name=text`."""
    pairs: dict[str, str] = {}
    for entry in (text or "").split(",") if text is not None else ():
        name, separator, value = (part.strip() for part in entry.partition("="))
        if not (name and separator and value) or name in pairs:
            example = "liver=1,tumour=2" if option == "--labels" else '"whole=1+2,core=2"'
            raise UsageError(
                f"{option} {text!r}: {entry!r} is not name=value, or repeats a name", remedy=f"write {option} {example}"
            )
        pairs[name] = value
    return pairs


def _integers(option: str, text: str) -> tuple[int, ...]:
    """Read `1+2`; only --regions takes more than one number."""
    parts = text.split("+") if option == "--regions" else [text]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is not a number", remedy="use the values in the label files") from None


def _no_case(found: Found) -> str:
    faults = "; ".join(f"{problem.file}: {problem.what} ({problem.remedy})" for problem in found.problems[:3])
    faults += f"; and {len(found.problems) - 3} more problems" if len(found.problems) > 3 else ""
    return faults or "add images and labels in one of the formats autoseg reads"


def _unused_tables(found: Found, root: Path) -> None:
    """Warn about tables of images that the layout does not use: they may contain patients and folds."""
    for file in [file for file in sorted(root.iterdir()) if lists_images(file)]:
        what = f"a table of images that is not used: the folder was read as {found.layout}"
        remedy = f"to use it, pass it instead of the folder: {shlex.quote(str(file))}"
        found.problems.append(Problem(None, str(file), what, remedy, "warning"))


def _unusable_ids(found: Found) -> None:
    """Remove cases whose id cannot be part of a file name; only tables and lists can contain such ids."""
    for cases in (found.cases, found.test_cases):
        for case in list(cases):
            if not case.id or case.id.startswith(".") or any(mark in case.id for mark in "/\\\0"):
                what = f"the id {case.id!r} cannot be used in a file name"
                found.problems.append(Problem(case.id, next(iter(case.images), ""), what, "give it a simple name"))
                cases.remove(case)


def _shared_patients(found: Found, cases: Sequence[Case], test_cases: Sequence[Case]) -> None:
    """Report every test case whose patient also has a training case."""
    training = {case.patient: case for case in reversed(cases)}
    for case in test_cases:
        if case.patient in training:
            other = training[case.patient].id
            what = f"patient {case.patient} is in the test set ({case.id}) and in the training set ({other})"
            remedy = "move all cases of the patient into one of the two"
            found.problems.append(Problem(case.id, next(iter(case.images), ""), what, remedy))


def _channels(found: Found, options: IntakeOptions, cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of the channels: by option, by the layout, or generated, as many as the first readable case has."""
    if options.channels and found.channels and len(options.channels) != len(found.channels):
        what = f"--channels gives {len(options.channels)} names, but the dataset has {', '.join(found.channels)}"
        raise UsageError(what, remedy="name every channel, in the order of the files")
    if names := options.channels or found.channels:
        return names
    number = Counter(len(case.images) for case in cases).most_common(1)[0][0]
    if number == 1:
        for case in [case for case in cases if len(case.images) == 1]:
            try:
                number = len(read_image(Path(case.images[0])).array)
            except DataError:
                continue  # `check` reports it
            if number in (1, 3) and is_picture(case.images[0]):
                names, note = picture_channels([case.images[0] for case in cases if len(case.images) == 1])
                found.notes += [note] if note else []
                return names
            break
    return ("image",) if number <= 1 else tuple(f"channel_{channel}" for channel in range(number))


def _labels(found: Found, options: IntakeOptions, cases: Sequence[Case]) -> LabelSet:
    """Labels by option, by the layout, or those found in the label files; with regions and ignore label by option."""
    ignore = ignore_in_labels(cases) if options.ignore is None else options.ignore
    colours = options.colours or {}
    if not colours:
        colours, problems = agree_on_colours([case.label for case in cases if case.label is not None])
        found.problems += problems
    if options.labels is not None:
        values = {name: value for name, value in options.labels.items() if value != 0}
        labels = LabelSet(values, ignore=ignore)
    elif found.labels is not None:
        labels = found.labels if ignore is None else replace(found.labels, ignore=ignore)
    elif named := names_in_labels(cases):
        labels = LabelSet(named, ignore=ignore)
        shown = ",".join(f"{name}={value}" for name, value in named.items())
        found.notes.append(f"the labels are those that the label files name: {shown} (choose with --labels)")
    else:
        labels = LabelSet(_found_labels(found, ignore, cases, colours), ignore=ignore)
    problems, notes = missing_structures(cases, labels.values)
    found.problems += problems
    found.notes += notes
    if options.regions is not None:
        labels = replace(labels, regions=options.regions, region_values=_values_to_write(options.regions))
        refuse_lost_labels(labels.regions, labels.region_values, as_option=True)
    labels = replace(labels, colours=colours)
    if [*labels.values.values()] == [1] and labels.ignore != 255:
        labels = replace(labels, aliases={255: 1})  # a mask saved as a picture: `check` reports where it is used
    return labels


def _values_to_write(regions: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The value each region writes: one that no later, inner region covers.

    Raises:
        UsageError: a region has no such value.
    """
    written = []
    for index, (name, union) in enumerate(regions.items()):
        later = {value for inner in list(regions.values())[index + 1 :] for value in inner}
        if not (own := [value for value in union if value not in later]):
            what = f"--regions: all of {name!r} belongs to the regions after it"
            raise UsageError(what, remedy='list the outermost region first: "whole=1+2,core=2"')
        written.append(own[0])
    return tuple(written)


def _found_labels(found: Found, ignore: int | None, cases: Sequence[Case], colours: dict[str, int]) -> dict[str, int]:
    """Names for the values found in the label files of the training cases; every file is read.

    Raises:
        DataError: 0 is the only value, a file cannot be read, or there are too many values for labels.
    """
    files = [case.label for case in cases if case.label is not None]
    read = partial(_values_in, colours=colours)
    contents = map_in_processes(read, files, title="labels", workers=workers_for(files, None))
    values = sorted({value for content in contents for value in content if value > 0} - {ignore})
    if not values:
        for file in files:
            read_labels(Path(file), colours)  # such as a mask in colours: its error explains how to name them
        what = f"no label file in {Path(files[0]).parent} contains any label" if files else "no case has a label file"
        raise DataError(
            f"{what}, and none is declared", remedy="check the label files, or name labels: --labels liver=1"
        )
    if len(values) > MOST_FOUND_LABELS:
        span = f"{len(values)} different values, from {values[0]} to {values[-1]}"
        what = f"the label files contain {span}: are these intensities, or one number per object?"
        raise DataError(
            what,
            remedy="use label maps (masks without blurred edges, one value per kind of object), or name the labels: "
            "--labels liver=1",
        )
    named = {"foreground": values[0]} if len(values) == 1 else {f"label_{value}": value for value in values}
    shown = ",".join(f"{name}={value}" for name, value in named.items())
    found.notes.append(f"no labels are named; the label files contain these values: {shown} (name them with --labels)")
    if 255 in values and len(values) > 1:
        what = f"the label files contain 255 besides {', '.join(map(str, values[:-1][:5]))}: it counts as a label"
        remedy = "if 255 marks voxels that are not annotated, pass --ignore 255"
        found.problems.append(Problem(None, str(Path(files[0]).parent), what, remedy, "warning"))
    return named


def _values_in(file: str, colours: dict[str, int]) -> tuple[int, ...]:
    """Values in a label file; none where it cannot be read, which `check` reports."""
    try:
        return tuple(count_values(read_labels(Path(file), colours).array))
    except DataError:
        return ()
