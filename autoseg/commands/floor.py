"""`autoseg floor`: what a dataset scores without a network, so that nobody trains one where a threshold would do."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from autoseg.commands.check import describe_dataset
from autoseg.commands.inputs import load_records
from autoseg.commands.plan import FOLDS, PlanOptions
from autoseg.datasets.checks.duplicates import as_one_patient
from autoseg.datasets.checks.problems import check, problem_table, without_bad_cases
from autoseg.datasets.dataset import Case, Dataset, IntakeOptions, discover
from autoseg.datasets.fixing.copying import refuse_unfinished
from autoseg.datasets.loading import load_case, read_label
from autoseg.datasets.splits import Splits, make_splits, splits_from_nnunet
from autoseg.errors import DataError, StateError
from autoseg.imaging.geometry import orientation_of, reorient
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import ANY_DATASET, counted, suggest
from autoseg.records import OtherVersion, load
from autoseg.rules import MAX_WORKERS, at_least, check_fields
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.floor import Floor, Loaded

MOST_TRIED = 10_000


@dataclass(frozen=True)
class FloorOptions:
    """The options of `autoseg floor` and of `autoseg.measure_floor`, and their defaults."""

    intake: IntakeOptions = field(default_factory=IntakeOptions)
    tune: Annotated[int, at_least(1, MOST_TRIED)] = 40  # images on which numbers are tuned, of all folds together
    skip_bad: bool = False
    workers: Annotated[int, at_least(0, MAX_WORKERS)] | None = None  # None: as cores and memory allow

    def __post_init__(self) -> None:
        check_fields(self)


def measure_floor(root: Path | None, workspace: Workspace, options: FloorOptions = FloorOptions()) -> "Floor":
    """Score classical methods on the held-out cases of every fold, and show them beside what is trained.

    Args:
        root: a dataset; None: that of the workspace, with its folds and its trained models. A dataset that the
            workspace was planned for has its folds, too.

    Raises:
        DataError: the dataset has faults, or a label file does not fit its image.
        StateError: no dataset is named, and nothing is planned; or no fold holds a case out.
    """
    from autoseg.evaluation.floor import Floor, label_floor, object_floor, tried_cases
    from autoseg.evaluation.floor_text import compare_networks, describe

    planned = _planned(root, workspace)
    if planned is None or (root is not None and options.intake != IntakeOptions()):
        dataset, splits = _read(root or Path(), options)
        if planned is not None and planned[0].labels == dataset.labels:
            dataset, splits = planned
        else:
            planned = None
    else:
        dataset, splits = planned
    if planned is not None:
        LOG.info(f"{counted(len(splits.splits), 'fold')} of {workspace.root}")
    held_out = sum(len(split.validation) for split in splits.splits)
    if not held_out:
        raise StateError("no fold holds a case out: there is nothing to score", remedy="give folds that do, or none")
    cases, labels = {case.id: case for case in dataset.cases}, dataset.labels
    patients = {case.id: case.patient for case in dataset.cases}
    objects = {
        thing: object_floor(
            partial(read_objects, cases, labels, dataset.channels, thing), splits, patients,
            workers=options.workers, most=options.tune,
        )
        for thing in labels.things
    }  # fmt: skip
    of_labels = {} if objects else label_floor(
        partial(read_indices, cases, labels, dataset.channels), splits, patients, labels.scored, labels.num_labels,
        workers=options.workers, most=options.tune,
    )  # fmt: skip
    tried = max(len(cases) for cases in tried_cases(splits, options.tune).values())
    found = Floor(dataset.name, held_out, tried, objects, of_labels)
    if planned is not None:
        found = compare_networks(found, _trained(workspace))
    LOG.info(describe(found))
    return found


def read_objects(
    cases: Mapping[str, Case], labels: LabelSet, channels: tuple[str, ...], thing: str, case_id: str
) -> "Loaded":
    """The image of a case and the instance map of a thing, in the canonical order of axes.

    Raises:
        DataError: a file cannot be read, or the label map has another shape than the image.
    """
    from autoseg.evaluation.floor import Loaded

    case = cases[case_id]
    image = load_case(case, None, channels=channels)
    volume = read_label(case, labels)
    values = reorient(volume.array, *orientation_of(volume.geometry))
    if values.shape != image.image.shape[1:]:
        raise DataError(
            f"{case.label}: shape {values.shape}, but the image has {image.image.shape[1:]}",
            remedy=f"see what fits: {suggest('check', ANY_DATASET, workspace=None)}",
        )
    ignored = None if labels.ignore is None else np.asarray(values == labels.ignore)
    return Loaded(image.image, np.ascontiguousarray(labels.objects(thing, values)), image.spacing, ignored)


def read_indices(cases: Mapping[str, Case], labels: LabelSet, channels: tuple[str, ...], case_id: str) -> "Loaded":
    """The image of a case and its class indices, in the canonical order of axes; raises as `load_case`."""
    from autoseg.evaluation.floor import Loaded

    loaded = load_case(cases[case_id], labels, channels=channels)
    assert loaded.target is not None
    ignored = None if labels.ignore_index is None else loaded.target == labels.ignore_index
    return Loaded(loaded.image, loaded.target, loaded.spacing, ignored)


def _planned(root: Path | None, workspace: Workspace) -> tuple[Dataset, Splits] | None:
    """The dataset and the folds of a workspace; None where another dataset is named, or nothing is planned for it."""
    if root is not None and not workspace.plan.exists():
        return None
    try:
        dataset, _, splits = load_records(workspace)
    except StateError:
        if root is None:
            raise
        return None
    if root is not None and Path(dataset.root).resolve() != root.resolve():
        return None
    return dataset, splits


def _read(root: Path, options: FloorOptions) -> tuple[Dataset, Splits]:
    """Check a dataset and divide it into folds, those it brings along or others by patient."""
    refuse_unfinished(root)
    dataset, problems = discover(root, options.intake)
    problems, _ = check(dataset, known=problems, workers=options.workers)
    dataset = as_one_patient(dataset, problems)
    LOG.info(describe_dataset(dataset))
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        LOG.info(problem_table(problems))
    if errors and not options.skip_bad:
        raise DataError(
            f"{root} has {counted(len(errors), 'error')} (listed above)",
            remedy="fix them, or leave the faulty cases out with --skip-bad",
        )
    dataset = without_bad_cases(dataset, problems)
    patients = {case.id: case.patient for case in dataset.cases}
    if dataset.splits is not None:
        folds = [{"train": s.train, "val": s.validation} for s in dataset.splits]
        return dataset, splits_from_nnunet(folds, patients, file="the dataset")
    return dataset, make_splits(patients, {case: [1.0] for case in patients}, folds=FOLDS, seed=PlanOptions().seed)


def _trained(workspace: Workspace) -> list:
    """The cross-validations of a workspace; those of another version are left out."""
    from autoseg.evaluation.crossval import CrossValidation

    found = []
    for model in workspace.models():
        path = workspace.crossval(*model)
        with suppress(OtherVersion):
            if path.exists():
                found.append(load(CrossValidation, path))
    if not found:
        LOG.info("no model is scored beside it: " + suggest("evaluate", workspace=workspace.root))
    return found
