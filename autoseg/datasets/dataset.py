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
from pathlib import Path
from typing import Annotated

from autoseg.datasets.checks.voxels import picture_channels
from autoseg.datasets.columns import columns_of
from autoseg.datasets.contents import dicom_below, table_beside
from autoseg.datasets.fixing.lists import repeated_keys
from autoseg.datasets.given_folds import read_splits, sound_splits
from autoseg.datasets.inputs import FileNames, images_in, naming_of
from autoseg.datasets.intake import IntakeOptions, parse_options
from autoseg.datasets.label_sets import decide_labels
from autoseg.datasets.layouts import LAYOUTS
from autoseg.datasets.loading import LoadedCase, is_picture, load_case
from autoseg.datasets.objects import (
    ObjectMeasurements,
)
from autoseg.datasets.pairing import Case, Found, Problem, identical_ids
from autoseg.datasets.splits import CaseId, Split
from autoseg.datasets.tables import FOLDS_FILE, lists_images, patients_of
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import read_image
from autoseg.imaging.labels import LabelSet
from autoseg.messages import dataset_of, suggest
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
    # thing -> what was measured of its objects
    objects: dict[Annotated[str, anything("any text")], ObjectMeasurements] = field(default_factory=dict)


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
    labels, objects = decide_labels(found, options, cases)
    dataset = Dataset(
        VERSION, found.name, str(root), found.layout, channels, labels, tuple(cases), tuple(test_cases),
        patients_known, splits, tuple(found.notes), naming_of(cases), columns_of(found, root, patients),
        objects,
    )  # fmt: skip
    return dataset, list(dict.fromkeys(found.problems))


_SERIES_IN = (
    "put each DICOM series into a folder images/CASE/ and its labels into labels/CASE.nii.gz (or .dcm: DICOM-SEG, "
    "RTSTRUCT)"
)
_LAYOUTS_KNOWN = (
    "it needs a dataset.json (nnU-Net or MSD), or images/ next to labels/ (masks/, segmentations/), or one folder per "
    "case with a file named seg, or a CSV or TSV with columns image and label, or a COCO file (annotations.json)"
)


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
