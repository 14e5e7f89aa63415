"""Every fault of a dataset, found by reading each file once, and shown in one table.

    check                read every file once -> problems, and what `measure` made of each sound case
    problem_table        problems as text
    without_bad_cases    the dataset without the cases that have errors (`--skip-bad`)

An *error* is what would make training or its scores wrong; planning refuses it. A *warning* is worth a look. The arrays
of a case are read into memory once: whatever else needs them (the fingerprint) is passed as `measure`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from autoseg.datasets.checks import grids
from autoseg.datasets.checks.annotation import blurred_mask, compare_labels, empty_label
from autoseg.datasets.checks.duplicates import find_duplicates, find_near_duplicates
from autoseg.datasets.checks.likeness import thumbnail
from autoseg.datasets.checks.voxels import (
    PictureFacts,
    compare_pictures,
    drawn_on_stored,
    look_at_picture,
    padding,
    spoilt,
    to_channels,
)
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.loading import (
    REPLACE_NON_FINITE,
    LoadedCase,
    assemble,
    class_indices,
    count_values,
    non_finite,
    read_label,
    workers_for,
)
from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import AutosegError, DataError
from autoseg.imaging.formats.readers import names_labels, read_image
from autoseg.imaging.geometry import Geometry, Remark, Volume, orientation_code
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.normalize import looks_like_hounsfield, scheme_for
from autoseg.messages import NAMED, aligned, counted, some, suggest
from autoseg.processes import map_in_processes

__all__ = ["Problem", "check", "problem_table", "without_bad_cases"]

TURN_IT = "draw labels on the picture as viewers show it, or remove the orientation tags of all pictures"
Measured = TypeVar("Measured")
HOUNSFIELD_SAMPLE = 100_000  # voxels looked at per channel


@dataclass
class Inspection:
    """What the files of one case showed; small and picklable."""

    case: Case
    training: bool
    problems: list[Problem] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)  # image file -> hash of its voxels
    thumbnail: np.ndarray | None = None  # of the first channel; None: there is none, or it shows nothing
    orientation: str = ""  # empty: flat, unreadable, or not stated
    flat: bool | None = None
    grid: Geometry | None = None  # of the images
    remarks: list[tuple[str, Remark]] = field(default_factory=list)  # file, what is odd about it although it is used
    hounsfield: tuple[bool, ...] = ()  # per channel
    values: tuple[int, ...] | None = None  # in the label file
    pictures: dict[str, PictureFacts] = field(default_factory=dict)  # image file -> what is notable about it
    is_measured: bool = False
    measured: Any = None

    def report(self, file: str, what: str, remedy: str, severity: Literal["error", "warning"] = "error") -> None:
        """Add a problem of this case."""
        self.problems.append(Problem(self.case.id, file, what, remedy, severity))


def check(
    dataset: Dataset,
    measure: Callable[[LoadedCase], Measured] | None = None,
    *,
    known: Sequence[Problem] = (),
    orientation: Literal["canonical", "as_stored"] = "canonical",
    workers: int | None = None,
) -> tuple[list[Problem], dict[str, Measured]]:
    """Read every file of a dataset once and collect what is wrong.

    Args:
        measure: called in the worker on every training case without an error; picklable (a module-level function, or
            `functools.partial` of one).
        known: what `discover` found; it comes first in the result, and is not reported twice.
        orientation: axis order in which `measure` gets the arrays.
        workers: processes; 0 stays in this one; None decides.

    Returns:
        All problems, and case id -> what `measure` returned, for the training cases without an error.

    Raises:
        OutOfMemory: a worker process was killed.
    """
    bad = {problem.case for problem in known if problem.severity == "error"}
    jobs = [(case, True, case.id not in bad) for case in dataset.cases]
    jobs += [(case, False, case.id not in bad) for case in dataset.test_cases]
    inspect = partial(
        inspect_case, labels=dataset.labels, channels=dataset.channels, measure=measure, orientation=orientation
    )
    files = [file for case, _, _ in jobs for file in (*case.images, case.label) if file]
    inspections = map_in_processes(inspect, jobs, title="check", workers=workers_for(files, workers))
    problems = [*known, *(problem for inspection in inspections for problem in inspection.problems)]
    for compare in COMPARISONS:
        problems += compare(dataset, inspections)
    bad = {problem.case for problem in problems if problem.severity == "error"}
    return problems, {i.case.id: i.measured for i in inspections if i.is_measured and i.case.id not in bad}


def inspect_case(
    job: tuple[Case, bool, bool],
    *,
    labels: LabelSet,
    channels: tuple[str, ...],
    measure: Callable[[LoadedCase], Any] | None,
    orientation: Literal["canonical", "as_stored"],
) -> Inspection:
    """Read the files of one case and report all that is wrong with them; runs in a worker.

    Args:
        job: the case; whether it is a training case; whether its files are complete as far as names say.
    """
    case, training, complete = job
    complete = complete and bool(case.images)
    inspection = Inspection(case, training)
    volumes = {file: v for file in case.images if (v := _read(inspection, file, read_image)) is not None}
    label = None
    needs_image = case.label is not None and names_labels(case.label)
    if case.label and not (needs_image and (not case.images or case.images[0] not in volumes)):
        label = _read(inspection, case.label, lambda path: read_label(case, labels))
    for file, volume in [*volumes.items()]:
        volumes[file] = to_channels(volume, file, channels, len(case.images))
        if facts := look_at_picture(file, volume, volumes[file]):
            inspection.pictures[file] = facts
            if label and (what := drawn_on_stored(facts.orientation, volume.geometry, label.geometry)):
                inspection.report(str(case.label), what, TURN_IT)
    if volumes:
        aligned = grids.align(case.id, volumes, (case.label, label) if case.label and label is not None else None)
        inspection.problems += aligned.problems
        inspection.remarks += aligned.remarks
        volumes = {file: aligned.volumes.get(file, volume) for file, volume in volumes.items()}
        label = aligned.volumes.get(case.label or "", label)
        inspection.grid = next(iter(aligned.volumes.values())).geometry
        inspection.flat = inspection.grid.flat
        known = inspection.grid.placed and not inspection.flat
        inspection.orientation = orientation_code(inspection.grid) if known else ""
    number = sum(len(volume.array) for volume in volumes.values())
    if complete and len(volumes) == len(case.images) and number != len(channels):
        what = f"{counted(number, 'channel')} instead of {len(channels)} ({', '.join(channels)})"
        inspection.report(case.images[0], what, "give every case the same channels")
    names = list(channels) if number == len(channels) else [f"channel {n}" for n in range(number)]
    for file, volume in volumes.items():
        _look_at_intensities(inspection, file, volume, [names.pop(0) for _ in volume.array])
    if inspection.digests.get(case.images[0] if case.images else ""):
        inspection.thumbnail = thumbnail(volumes[case.images[0]].array[0], volumes[case.images[0]].geometry)
    if case.label and label is not None:
        _look_at_label(inspection, case.label, label, labels)
    sound = complete and label is not None and not any(p.severity == "error" for p in inspection.problems)
    if measure and training and sound:
        assert label is not None
        assert inspection.values is not None
        indices = class_indices(label.array, labels, inspection.values, label.geometry.spacing)
        inspection.is_measured = True
        inspection.measured = measure(assemble(case.id, [*volumes.values()], indices, orientation=orientation))
    return inspection


def problem_table(problems: Sequence[Problem]) -> str:
    """Lay problems out as a table: errors first, files relative to the folder they share; equal warnings together."""
    if not problems:
        return "no problem was found"
    folder = Path(os.path.commonpath([Path(problem.file).parent for problem in problems]))
    rows = [("", "case", "file", "what is wrong", "what to do")]
    for problem in (p for p in problems if p.severity == "error"):
        rows.append(_row(problem, folder))
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in (p for p in problems if p.severity == "warning"):
        alike.setdefault((problem.what, problem.remedy), []).append(problem)
    for group in alike.values():
        rows += [_row(problem, folder) for problem in group[:NAMED]]
        if len(group) > NAMED:
            rows.append(("", "", f"... and {len(group) - NAMED} more", "", ""))
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    title = f"{counted(errors, 'error')}, {counted(warnings, 'warning')} in {folder}"
    return "\n".join([title, *aligned(rows)])


def without_bad_cases(dataset: Dataset, problems: Iterable[Problem]) -> Dataset:
    """Leave out every case that has an error; notes name them, and what happens to the given folds.

    Raises:
        DataError: no training case remains, no fold remains of those given, or an error remains that leaving cases
            out does not fix.
    """
    problems = list(problems)
    if lasting := [problem for problem in problems if problem.severity == "error" and problem.stays]:
        what = f"{lasting[0].file}: {lasting[0].what}; leaving cases out does not fix it"
        raise DataError(what, remedy=lasting[0].remedy)
    bad = {problem.case for problem in problems if problem.severity == "error"}
    cases = tuple(case for case in dataset.cases if case.id not in bad)
    test_cases = tuple(case for case in dataset.test_cases if case.id not in bad)
    left_out = sorted({case.id for case in (*dataset.cases, *dataset.test_cases)} & bad)
    if not cases:
        command = suggest("check", Path(dataset.root), workspace=None)
        raise DataError("every training case has an error", remedy=f"correct them; to list all: {command}")
    splits = [
        replace(
            split,
            train=tuple(case_id for case_id in split.train if case_id not in bad),
            validation=tuple(case_id for case_id in split.validation if case_id not in bad),
        )
        for split in dataset.splits or ()
    ]
    kept = [split for split in splits if split.train and split.validation]
    notes = (*dataset.notes, f"left out for their errors: {', '.join(left_out)}") if left_out else dataset.notes
    if len(kept) < len(splits):
        lost = ", ".join(str(split.fold) for split in splits if split not in kept)
        what = f"given fold {lost} has lost all its training or all its validation cases"
        if not kept:
            raise DataError(what, remedy="repair the cases, or remove the folds: autoseg then makes its own")
        notes = (*notes, f"WARNING: {what}: {len(kept)} folds remain, renumbered from 0")
    splits = kept
    return replace(dataset, cases=cases, test_cases=test_cases, splits=tuple(splits) or None, notes=notes)


def _read(inspection: Inspection, file: str, read: Callable[[Path], Volume]) -> Volume | None:
    """Read one file, or report why that is impossible."""
    try:
        return read(Path(file))
    except AutosegError as error:
        what = error.what.removeprefix(f"{file}{os.sep}").removeprefix(file).lstrip(": ")
        inspection.report(file, what, error.remedy)
    return None


def _look_at_intensities(inspection: Inspection, file: str, volume: Volume, names: Sequence[str]) -> None:
    """Report voxels that are not numbers, and channels that show nothing; note what else is compared later."""
    if bad := non_finite(volume.array) or spoilt(volume.array):
        inspection.report(file, bad, REPLACE_NON_FINITE)
        inspection.hounsfield += tuple(False for _ in names)
        return
    constant = []
    for name, channel in zip(names, volume.array, strict=True):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            constant.append(name)
            what = f"constant image: channel {name} is {low:g} everywhere"
            inspection.report(file, what, "check it: a constant image carries no information", "warning")
        elif scheme_for(name) != "ct" and (what := padding(channel)):
            inspection.report(file, what, "write 0 there, or a value near the minimum of the rest", "warning")
        flat = channel.reshape(-1)
        sample = np.append(flat[:: -(-flat.size // HOUNSFIELD_SAMPLE)], (low, high))
        inspection.hounsfield += (looks_like_hounsfield(sample),)
    if len(constant) < len(names):  # constant images are equal without being copies
        digest = hashlib.sha1(f"{volume.array.shape}".encode(), usedforsecurity=False)
        digest.update(np.ascontiguousarray(volume.array).data)
        inspection.digests[file] = digest.hexdigest()


def _look_at_label(inspection: Inspection, file: str, label: Volume, labels: LabelSet) -> None:
    """Report values that are not declared, and label maps without any label."""
    counts = count_values(label.array)
    inspection.values = tuple(counts)
    if strange := {value: counts[value] for value in labels.unexpected(np.array([*counts]))}:
        shown = some(f"{value} ({counted(count, 'voxel')})" for value, count in strange.items())
        remedy = "correct the file, or declare them: --labels name=value,... or --ignore value"
        inspection.report(file, f"unexpected label values: {shown}", remedy)
    for alias, meaning in labels.aliases.items():
        if alias in counts and meaning in counts:
            what = f"the label contains both {meaning} ({counts[meaning]} voxels) and {alias} ({counts[alias]} voxels)"
            remedy = f"if {alias} means not annotated, pass --ignore {alias}; otherwise write {meaning} for both"
            inspection.report(file, what, remedy)
    if blurred := blurred_mask(counts):
        inspection.report(file, blurred, "export it again from the program that drew it, as .png")
    what, remedy = empty_label(counts, labels)
    if what:
        inspection.report(file, what, remedy, "warning")


def _grids(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    """Problems of the grids, alone and compared with the rest of the dataset."""
    known = {i.case.id: (i.case.images[0], i.grid) for i in inspections if i.grid is not None}
    notes = [(i.case.id, file, remark) for i in inspections for file, remark in i.remarks]
    return [*grids.odd_grids(known), *grids.mixed_sizes(known), *grids.partly_placed(known), *grids.header_notes(notes)]


def _duplicates(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    return find_duplicates(dataset, [(inspection.case.id, inspection.digests) for inspection in inspections])


def _near_duplicates(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    thumbnails = {i.case.id: i.thumbnail for i in inspections if i.thumbnail is not None}
    return find_near_duplicates(dataset, thumbnails, {i.case.id: i.digests for i in inspections})


def _mixed_dimensions(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    """Flat images among volumes, or the reverse: those of the rarer kind."""
    flat = [i for i in inspections if i.flat is True]
    deep = [i for i in inspections if i.flat is False]
    if not flat or not deep:
        return []
    rare, kind, others = (flat, "a flat (2-D) image", deep) if len(flat) <= len(deep) else (deep, "a 3-D image", flat)
    what = f"{kind}, but {len(others)} cases of the dataset are not, such as {others[0].case.id}"
    return [Problem(i.case.id, i.case.images[0], what, "split them into two datasets") for i in rare]


def _mixed_orientations(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    counts = Counter(i.orientation for i in inspections if i.orientation)
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{code} {count}" for code, count in counts.most_common())
    rare = counts.most_common()[-1][0]
    example = next(i.case.images[0] for i in inspections if i.orientation == rare)
    what = f"the axes of the images are stored in {len(counts)} orders (cases: {shown}), here {rare}"
    return [Problem(None, example, what, "nothing: all are brought to one order; check that left is left", "warning")]


def _aliases(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    problems = []
    for alias, meaning in dataset.labels.aliases.items():
        if used := [i for i in inspections if i.values and alias in i.values]:
            what = f"{alias} is used where {meaning} is declared, in {len(used)} of {len(inspections)} label files"
            remedy = f"nothing: {alias} is read as {meaning}; if it means not annotated, pass --ignore {alias}"
            problems.append(Problem(None, str(used[0].case.label), what, remedy, "warning"))
    return problems


def _labels(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    known = [(i.case, i.values) for i in inspections if i.training and i.values is not None]
    return compare_labels(known, dataset.labels, dataset.root)


def _pictures(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    noted = [(i.case, file, facts) for i in inspections for file, facts in i.pictures.items()]
    return compare_pictures(noted, sum(len(i.case.images) for i in inspections))


def _hounsfield(dataset: Dataset, inspections: Sequence[Inspection]) -> list[Problem]:
    """Channels whose values look like Hounsfield units although they are not named CT, or the reverse."""
    comparable = [i for i in inspections if len(i.hounsfield) == len(dataset.channels)]
    problems = []
    for index, name in enumerate(dataset.channels):
        alike = [i for i in comparable if i.hounsfield[index]]
        unlike = [i for i in comparable if not i.hounsfield[index]]
        if scheme_for(name) == "ct" and unlike:
            shown = some(i.case.id for i in unlike)
            what = f"{name} does not look like Hounsfield units in {len(unlike)} of {len(comparable)} cases: {shown}"
            remedy = "if it is not CT, rename the channel (--channels); if it is cropped or clipped CT, ignore this"
            problems.append(Problem(None, unlike[0].case.images[0], what, remedy, "warning"))
        elif scheme_for(name) != "ct" and 2 * len(alike) > len(comparable):
            cases = f"in {len(alike)} of {len(comparable)} cases"
            what = f"channel {name} looks like Hounsfield units {cases}, but is not named CT"
            names = ",".join("CT" if n == name else n for n in dataset.channels)
            remedy = f"if it is CT, pass --channels {names}: CT has its own normalisation"
            problems.append(Problem(None, alike[0].case.images[0], what, remedy, "warning"))
    return problems


def _row(problem: Problem, folder: Path) -> tuple[str, str, str, str, str]:
    file = Path(problem.file)
    shown = str(file.relative_to(folder)) if file.is_relative_to(folder) else problem.file
    return problem.severity, problem.case or "(all)", shown, problem.what, problem.remedy


COMPARISONS = (
    _grids, _duplicates, _near_duplicates, _mixed_dimensions, _mixed_orientations, _aliases, _labels, _pictures,
    _hounsfield,
)  # fmt: skip
