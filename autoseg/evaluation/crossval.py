"""All folds together: the performance of the model on patients it has not seen.

Every case is evaluated once, with the network of the fold that did not train on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoseg.datasets.dataset import Case
from autoseg.errors import StateError
from autoseg.evaluation.evaluate import (
    CaseScore,
    ScoreJob,
    Summary,
    columns_of,
    confusion_table,
    mean_over_labels,
    objects_over_cases,
    score_cases,
    summarise,
    summary_table,
    total_confusion,
)
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.object_scores import ObjectSummary, object_tables
from autoseg.evaluation.overfitting import CurveVerdict
from autoseg.evaluation.statistics import (
    USUAL_BANDS,
    Bands,
    Flag,
    find_flags,
    interval_table,
    mean_over_cases,
    verdict_in_words,
)
from autoseg.evaluation.unseen import Coverage, cost_of_missing, describe_proof
from autoseg.imaging.formats.readers import stem_of
from autoseg.imaging.labels import LabelSet
from autoseg.messages import counted, ruled, suggest
from autoseg.workspace import FoldName

VERSION = 1


@dataclass(frozen=True)
class FoldScores:
    """The validation cases of one fold."""

    fold: FoldName
    cases: tuple[CaseScore, ...]


@dataclass(frozen=True)
class CrossValidation:
    """Scores of every case whose fold is trained, for one configuration and network."""

    version: int
    configuration: str
    network: str
    folds: tuple[FoldScores, ...]
    planned_folds: int
    summary: dict[str, dict[str, Summary]]  # over all cases, with intervals over patients
    mean_dice: Summary | None = None  # of the mean over labels, case by case
    per_fold: dict[str, dict[str, dict[str, Summary]]] = field(default_factory=dict)  # fold -> label -> metric
    bands: Bands = USUAL_BANDS
    flags: tuple[Flag, ...] = ()  # folds and labels that failed or are behind
    coverage: Coverage | None = None  # that every case is scored once, by a model that never saw its patient
    curves: tuple[CurveVerdict, ...] = ()  # how the training of each fold ended
    objects: dict[str, ObjectSummary] = field(default_factory=dict)  # of things, and of stuff beside them, all cases

    @property
    def cases(self) -> tuple[CaseScore, ...]:
        return tuple(case for fold in self.folds for case in fold.cases)


@dataclass(frozen=True)
class HeldOutScores:
    """The ensemble on the held-out test set."""

    version: int
    configuration: str
    network: str
    cases: tuple[CaseScore, ...]


def score_test_cases(
    configuration: str, network: str, folder: Path, cases: Sequence[Case], labels: LabelSet
) -> HeldOutScores:
    """Score the ensemble's predictions of the test cases, which are in `folder`."""
    return HeldOutScores(VERSION, configuration, network, score_cases(validation_jobs(folder, cases, labels)))


def segmented(folder: Path, case_ids: Sequence[str]) -> bool:
    """Whether a folder contains a segmentation of every case, with any extension."""
    there = {stem_of(path) for path in folder.glob("*") if path.name[0] != "."} if folder.exists() else set()
    return set(case_ids) <= there


def validation_jobs(folder: Path, cases: Sequence[Case], labels: LabelSet) -> list[ScoreJob]:
    """Pair the predictions a fold made for its validation cases with their references.

    Raises:
        StateError: a prediction is missing: the fold's validation is not complete.
    """
    from autoseg.inference.label_files import output_ending  # needs torch, which scores alone do not

    jobs = []
    for case in cases:
        path = folder / f"{case.id}{output_ending(case)}"
        if not path.exists():
            name, _, network = folder.parent.parent.name.rpartition("-")
            fold = folder.parent.name.removeprefix("fold_")
            command = suggest("train", "-f", fold, configuration=name, network=network)
            raise StateError(
                f"{path} does not exist: the fold's validation is not complete", remedy=f"complete it: {command}"
            )
        assert case.label is not None
        jobs.append(ScoreJob(case.id, Path(case.label), path, labels))
    return jobs


def cross_validate_folds(
    configuration: str,
    network: str,
    jobs: Mapping[FoldName, list[ScoreJob]],
    planned_folds: int,
    *,
    patients: Mapping[str, str] | None = None,
    bands: Bands = USUAL_BANDS,
    workers: int | None = None,
) -> CrossValidation:
    """Score the validation cases of every trained fold.

    Args:
        patients: case -> patient; a case that it lacks is a patient of its own.
        bands: where verdicts change.
    """
    flat = [job for fold in jobs.values() for job in fold]
    scores = iter(score_cases(flat, workers=workers))
    folds = tuple(FoldScores(fold, tuple(next(scores) for _ in fold_jobs)) for fold, fold_jobs in jobs.items())
    everything = [case for fold in folds for case in fold.cases]
    by_fold = {fold.fold: fold.cases for fold in folds}
    who = patients or {}
    return CrossValidation(
        VERSION, configuration, network, folds, planned_folds, summarise(everything, who),
        mean_over_cases(everything, who), {str(fold): summarise(cases) for fold, cases in by_fold.items()}, bands,
        tuple(find_flags(by_fold, who, bands)), objects=objects_over_cases(everything, flat[0].labels, who),
    )  # fmt: skip


def describe(result: CrossValidation, labels: LabelSet) -> str:
    """The tables of a cross-validation: over all cases, per fold, and the confusion of labels."""
    size = f"{counted(len(result.cases), 'case')} in {counted(len(result.folds), 'fold')}"
    parts = [f"{result.configuration}, {result.network}: {size}"]
    if len(result.folds) < result.planned_folds:
        parts[0] += f" (of {result.planned_folds}: the others are not trained)"
    parts.append(summary_table(result.summary, "all cases"))
    if result.objects:
        parts.append(object_tables(result.objects))
    parts.append(_table_of_folds(result))
    names = ["background", *labels.values]
    parts.append(confusion_table(total_confusion(result.cases), names))
    if result.mean_dice is not None:
        parts.append(interval_table(result.summary, result.mean_dice, result.bands))
        parts.append("\n".join(_conclusions(result, result.mean_dice)))
    return "\n\n".join(parts)


def _table_of_folds(result: CrossValidation) -> str:
    """Mean ± std of each label and metric in each fold, and of the folds' means."""
    per_fold = {fold.fold: result.per_fold.get(str(fold)) or summarise(fold.cases) for fold in result.folds}
    rows = [["label", "metric", *(f"fold {fold}" for fold in per_fold), "folds"]]
    for label in result.summary:
        for metric in columns_of(METRICS):
            found = [summary[label][metric] for summary in per_fold.values()]
            rows.append(
                [label, metric, *(_shown(one.mean, one.std) for one in found), _spread([f.mean for f in found])]
            )
    means = [mean_over_labels(summary) for summary in per_fold.values()]
    rows.append(["mean", "dice", *map(_shown, means), _spread(means)])
    return ruled(rows)


def _conclusions(result: CrossValidation, mean: Summary) -> list[str]:
    """In words: the verdict, what failed, what the curves show, what was proven, what missing folds cost."""
    lines = [verdict_in_words(result.summary, mean, result.bands)]
    lines += [f"WARNING: {flag.what}" for flag in result.flags]
    for curve in result.curves:
        bad = curve.verdict in ("overfit", "failed")
        lines.append(f"WARNING: {curve.words} (try: {curve.remedy})" if bad else curve.words)
    if result.coverage is not None:
        lines += describe_proof(result.coverage)
        cost = cost_of_missing(result.coverage, mean.interval)
        lines += [f"note: {cost}"] if cost else []
    return lines


def _shown(value: float | None, std: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if std is None else f"{value:.4f} ± {std:.3f}"


def _spread(values: Sequence[float | None]) -> str:
    defined = [v for v in values if v is not None]
    return f"{np.mean(defined):.4f} ± {np.std(defined):.4f}" if defined else "-"
