"""What `compare` is given: a workspace's cross-validation, a folder of segmentations, or a table of scores, as scores.

open_side        which of these a text names; of a table, whether it is one of scores
scored_side      its scores
require_alike    references and labels of both sides, which must be the same

autoseg_workspace                 the recommended model of a workspace, its held-out segmentations
autoseg_workspace:2d-unet         another model of it, as its folder is called
2d-unet                           a model of the workspace of `-w`
segmentations/                    a folder, against `--references` or those of the other side's workspace
scores.csv                        what `evaluate --csv` wrote
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoseg.commands.evaluate import folds_to_score, nothing_trained
from autoseg.commands.folds import require_known
from autoseg.commands.inputs import load_records
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.pairing import LABEL_SUFFIX, name_of
from autoseg.datasets.tables import read_table
from autoseg.errors import DataError, StateError, UsageError
from autoseg.evaluation.compare import HIDDEN, Scored
from autoseg.evaluation.evaluate import ScoreJob, label_files, pair_folders, score_cases
from autoseg.imaging.formats.readers import read_labels_as
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import counted, some, suggest
from autoseg.planning.plan import Plan
from autoseg.preprocessing.sources import require_in_place
from autoseg.processes import map_in_processes
from autoseg.workspace import Workspace, is_workspace, sha256

TABLES = (".csv", ".tsv")
STATISTICS = {"fold", "label", "metric", "mean"}  # columns of crossval.csv, which has no cases
KINDS = "a workspace, WORKSPACE:MODEL, a folder of segmentations, or a table that evaluate --csv wrote"


@dataclass(frozen=True)
class Side:
    """One argument of `compare`, understood."""

    name: str  # as it was typed
    workspace: Workspace | None = None
    model: str | None = None  # the name of its folder; None: the recommended one
    folder: Path | None = None
    table: Path | None = None
    jobs: tuple[ScoreJob, ...] = ()  # what is to be scored
    what: str = ""
    labels: LabelSet | None = None  # None: a table of scores does not say
    patients: dict[str, str] = field(default_factory=dict)
    dataset: Dataset | None = None


def open_side(text: str, workspace: Workspace) -> Side:
    """Which of the things that can be compared a text names.

    Args:
        workspace: that of `-w`, whose models can be named alone.

    Raises:
        UsageError: none of them.
        DataError: a table is not one of scores.
    """
    path = Path(text)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise UsageError(f"{path} cannot be compared: it is a file, but not a CSV or TSV", remedy=f"give {KINDS}")
        _rows_of_scores(path)
        return Side(text, table=path)
    if path.is_dir():
        return Side(text, workspace=Workspace(path)) if is_workspace(path) else Side(text, folder=path)
    root, separator, model = text.rpartition(":")
    if separator and is_workspace(Path(root)):
        return Side(text, workspace=Workspace(Path(root)), model=model)
    if not separator and text in _models(workspace):
        return Side(text, workspace=workspace, model=text)
    there = f"; the models of {workspace.root} are {some(_models(workspace))}" if _models(workspace) else ""
    raise UsageError(f"{text} does not exist", remedy=f"give {KINDS}{there}")


def prepared(side: Side, other: Side, references: Path | None, labels: LabelSet | None, workspace: Workspace) -> Side:
    """A side with what is to be scored: pairs of files, the names of its labels, the patients that it knows.

    Args:
        references: the folder of `--references`.
        labels: those of `--labels`.
        workspace: that of `-w`, whose plan names labels where nobody else does.

    Raises:
        StateError: the model of a workspace has no fold with held-out segmentations.
        DataError: a folder has no file that belongs to a reference, or a reference cannot be read.
        UsageError: the references of a folder are not given.
    """
    if side.workspace is not None:
        return _of_workspace(side, side.workspace)
    if side.folder is not None:
        return _of_folder(side, side.folder, other, references, labels, workspace)
    return Side(side.name, table=side.table, what=f"table of scores {side.table}")


def cases_of(side: Side) -> set[str]:
    """The cases that a side has. Raises DataError where a table is not one of scores."""
    return {job.case for job in side.jobs} if side.table is None else set(read_scores(side.table)[0])


def scored_side(side: Side, cases: Collection[str], *, workers: int | None = None) -> Scored:
    """The scores of a side.

    Args:
        cases: those that the other side has; no others are scored.

    Raises:
        DataError: a file cannot be scored, or a table is not one of scores.
    """
    others = tuple(sorted(cases_of(side) - set(cases)))
    if side.table is not None:
        found, diagonals = read_scores(side.table)
        what = f"{side.what}, {counted(len(found), 'case')}"
        return Scored(side.name, what, {case: found[case] for case in found if case in cases}, diagonals, others)
    scores = score_cases([job for job in side.jobs if job.case in cases], workers=workers)
    diagonals = {s.case: d for s in scores if (d := getattr(s, "diagonal_mm", None)) is not None}
    return Scored(side.name, side.what, {score.case: dict(score.scores) for score in scores}, diagonals, others)


def read_scores(path: Path) -> tuple[dict[str, dict[str, dict[str, float | None]]], dict[str, float]]:
    """Scores as `evaluate --csv` writes them, and the image's diagonal of each case that has one.

    Raises:
        DataError: the table lacks columns, a value is not a number, or a case occurs twice with one label.
    """
    rows = _rows_of_scores(path)
    metrics = [name for name in rows[0] if name not in ("case", "label", *HIDDEN)]
    cases: dict[str, dict[str, dict[str, float | None]]] = {}
    diagonals: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        of_case = cases.setdefault(row["case"], {})
        if row["label"] in of_case:
            what = f"{path}: row {number}: case {row['case']} occurs twice with label {row['label']}"
            raise DataError(what, remedy="keep one row per case and label")
        of_case[row["label"]] = {name: _number(row[name], path, number, name) for name in metrics}
        if (diagonal := _number(row.get("diagonal_mm", ""), path, number, "diagonal_mm")) is not None:
            diagonals[row["case"]] = diagonal
    return cases, diagonals


def _rows_of_scores(path: Path) -> list[dict[str, str]]:
    """The rows of a table, which has the columns of scores. Raises DataError."""
    rows = read_table(path)
    columns = set(rows[0]) if rows else set()
    if {"case", "label"} <= columns and columns - {"case", "label", *HIDDEN}:
        return rows
    write = f"write one with {suggest('evaluate', '--csv', 'scores.csv')}"
    if columns >= STATISTICS:
        raise DataError(
            f"{path} holds statistics over all cases; to compare, each case is needed",
            remedy=f"name the workspace or the model instead of the table, or {write}",
        )
    found = ", ".join(rows[0]) if rows else "nothing"
    what = f"{path} is not a table of scores: expected the columns case, label and metrics, found {found}"
    raise DataError(what, remedy=write)


def require_alike(a: Side, b: Side, cases: set[str], *, workers: int | None = None) -> None:
    """Refuse two sides whose references or labels differ: they were not asked the same.

    References are the same if they are one file, have the same bytes, or hold the same labels on the same grid.

    Raises:
        DataError: names them.
    """
    if a.labels and b.labels:
        meanings = [_meanings(side.labels) for side in (a, b) if side.labels]
        for label in (label for label in meanings[0] if label in meanings[1]):
            if meanings[0][label] != meanings[1][label]:
                raise DataError(
                    f"{label} is {meanings[0][label]} in label files of {a.name} and {meanings[1][label]} in those of "
                    f"{b.name}: they are different structures",
                    remedy="compare models that were trained on the same labels",
                )
    files = [{job.case: job for job in side.jobs} for side in (a, b)]
    both = sorted(cases & set(files[0]) & set(files[1]))
    pairs = [(files[0][case], files[1][case]) for case in both]
    pairs = [(one, other) for one, other in pairs if one.reference.resolve() != other.reference.resolve()]
    same = map_in_processes(_same_reference, pairs, title="references", workers=workers)
    if different := [one.case for (one, _), alike in zip(pairs, same, strict=True) if not alike]:
        one, other = files[0][different[0]].reference, files[1][different[0]].reference
        raise DataError(
            f"{len(different)} of {len(both)} cases have different references: {some(different)} (for instance {one} "
            f"and {other})",
            remedy="score both sides against the same references",
        )


def _of_workspace(side: Side, workspace: Workspace) -> Side:
    from autoseg.evaluation.crossval import validation_jobs

    name, network = None, None
    if side.model is not None:
        name, _, network = side.model.rpartition("-")
        if side.model not in _models(workspace):
            raise StateError(
                f"{workspace.root} has no model {side.model}",
                remedy=f"its models are {some(_models(workspace))}" if _models(workspace) else "train it first",
            )
    dataset, plan, splits = load_records(workspace, network)
    name, chosen = plan.configuration(name)
    known = {case.id: case for case in dataset.cases}
    scored, notes = folds_to_score(workspace, plan, name, splits)
    require_known(workspace, dataset, scored)
    for note in notes:
        LOG.info(f"{side.name}: {note}")
    if not scored:
        raise nothing_trained(workspace, name, chosen.network.name)
    jobs: list[ScoreJob] = []
    for split in scored:
        held_out = [known[i] for i in split.validation]
        require_in_place(workspace, dataset, held_out)
        folder = workspace.fold(name, chosen.network.name, split.fold) / "validation"
        jobs += validation_jobs(folder, held_out, plan.labels)
    jobs = list({job.case: job for job in jobs}.values())  # folds made by hand may hold a case out twice
    cases, folds = counted(len(jobs), "held-out case"), counted(len(scored), "fold")
    what = f"{name}-{chosen.network.name}, {cases} of {folds}"
    return Side(
        side.name, workspace, side.model, jobs=tuple(jobs), what=what, labels=plan.labels,
        patients=_patients(dataset), dataset=dataset,
    )  # fmt: skip


def _of_folder(
    side: Side, folder: Path, other: Side, references: Path | None, labels: LabelSet | None, workspace: Workspace
) -> Side:
    if labels is None:
        labels = other.labels
    if labels is None and workspace.plan.exists():
        from autoseg.records import load

        labels = load(Plan, workspace.plan).labels
    if references is not None:
        jobs, absent = _paired_with_folder(folder, references, labels)
        against = str(references)
    elif other.dataset is not None:
        assert labels is not None
        jobs, absent = _paired_with_dataset(folder, other.dataset, labels), []
        against = f"the references of {other.dataset.name}"
    else:
        raise UsageError(f"{folder} needs references", remedy="name the folder of expert labels: --references DIR")
    what = f"{counted(len(jobs), 'segmentation')}, scored against {against}"
    if absent:
        what += f" ({counted(len(absent), 'reference')} without a segmentation: {some(absent)})"
    return Side(side.name, folder=folder, jobs=tuple(jobs), what=what, labels=jobs[0].labels)


def _paired_with_folder(folder: Path, references: Path, labels: LabelSet | None) -> tuple[list[ScoreJob], list[str]]:
    """The pairs there are, and the references that have no segmentation."""
    from autoseg.evaluation.evaluate import labels_found

    jobs = pair_folders(folder, references, labels or labels_found(references), partial=True)
    found = {job.case for job in jobs}
    return jobs, sorted({name_of(path) for path in label_files(references)} - found)


def _paired_with_dataset(folder: Path, dataset: Dataset, labels: LabelSet) -> list[ScoreJob]:
    """The segmentations of a folder that are of labelled cases of a dataset, training or test."""
    files = {LABEL_SUFFIX.sub("", name_of(path)): path for path in label_files(folder)}
    files |= {name_of(path): path for path in label_files(folder)}
    known = [case for case in (*dataset.cases, *dataset.test_cases) if case.label is not None and case.id in files]
    if not known:
        raise DataError(
            f"{folder} has no segmentation of a labelled case of {dataset.name}: it has {some(files)}",
            remedy="name the folder of its references: --references DIR",
        )
    return [ScoreJob(case.id, Path(case.label or ""), files[case.id], labels) for case in known]


def _same_reference(pair: tuple[ScoreJob, ScoreJob]) -> bool:
    one, other = pair
    if one.reference == other.reference:
        return True
    try:
        if sha256(one.reference) == sha256(other.reference):
            return True
    except OSError:  # a folder: a DICOM series
        pass
    a, b = (read_labels_as(job.labels, job.reference, job.segmentation) for job in pair)
    close = np.allclose(a.geometry.spacing, b.geometry.spacing, rtol=1e-4)
    return a.array.shape == b.array.shape and close and bool(np.array_equal(a.array, b.array))


def _meanings(labels: LabelSet) -> dict[str, str]:
    """What is scored -> the values in label files."""
    if labels.has_regions:
        return {name: "+".join(map(str, sorted(union))) for name, union in labels.regions.items()}
    return {name: str(value) for name, value in labels.values.items()}


def _patients(dataset: Dataset) -> dict[str, str]:
    """Case -> patient, where the dataset names patients; otherwise nothing."""
    cases = (*dataset.cases, *dataset.test_cases)
    return {case.id: case.patient for case in cases} if dataset.patients_known else {}


def _models(workspace: Workspace) -> list[str]:
    return [f"{configuration}-{network}" for configuration, network in workspace.models()]


def _number(text: str, path: Path, number: int, column: str) -> float | None:
    """A cell of a table of scores; None where it is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = f"{path}: row {number}, column {column}: expected a number or nothing, found {text!r}"
        raise DataError(what, remedy=f"write it again: {suggest('evaluate', '--csv', 'scores.csv')}")
    return value
