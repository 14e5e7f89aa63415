"""Segmentations against their references: per case and label, overlap and boundary metrics, never plain accuracy.

Overlap is computed from one confusion matrix per case, without voxels of the ignore label. Undefined values (a label in
neither map, a distance to an empty mask) are `None`, excluded from means, and counted: every mean states its number of
cases.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.datasets.contents import contents, stray_folders
from autoseg.datasets.pairing import LABEL_SUFFIX, name_of
from autoseg.errors import DataError
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.evaluation.label_scores import DISTANCES, LabelJob, label_scores
from autoseg.evaluation.metrics import accuracy, confusion_matrix, diagonal
from autoseg.evaluation.object_scores import ObjectCounts, ObjectSummary, count_objects, summarise_objects
from autoseg.evaluation.surfaces import TOLERANCE_MM
from autoseg.imaging.alignment import compare_grids
from autoseg.imaging.formats.readers import ending_of, is_dicom, read_labels, read_labels_as
from autoseg.imaging.geometry import Vector3, Volume
from autoseg.imaging.labels import LabelSet
from autoseg.messages import counted, ruled
from autoseg.processes import map_in_processes
from autoseg.workspace import write_text

ALL = "all"
IN_FILES_ALONE = (  # which tables leave out, so that they fit a terminal
    *("specificity", "f2", "volume_error", "volume_error_ml", "hd", "assd", "boundary_f1", "boundary_iou"),
    *("centreline_dice", "lesion_sensitivity", "lesion_precision", "lesion_f1", "lesion_tp", "lesion_fp", "lesion_fn"),
    *("pq", "rq", "sq"),
)


@dataclass(frozen=True)
class CaseScore:
    """One case against its reference."""

    case: str
    confusion: tuple[tuple[int, ...], ...]  # voxels [reference class][segmented class], background first
    scores: dict[str, dict[str, float | None]]  # label or region -> metric -> value
    voxel_ml: float | None = None  # volume of a voxel; None: the files do not state its size
    diagonal_mm: float | None = None  # of the image: what a distance counts where an object was missed
    tolerances_mm: dict[str, float] | None = None  # label or region -> tolerance of nsd and of the boundary metrics
    objects: dict[str, ObjectCounts] = field(default_factory=dict)  # of every thing, and of stuff beside things


@dataclass(frozen=True)
class Summary:
    """One metric over cases: mean, standard deviation, how many cases it is defined for, and how many it is not.

    A distance is not defined for a case where the label was missed or is spurious. Its mean over the other cases would
    look better the more is missed; `mean_penalised` counts the image's diagonal there.
    """

    mean: float | None
    std: float | None
    defined: int
    undefined: int
    median: float | None = None
    quartiles: tuple[float, float] | None = None  # the 25th and the 75th percentile
    interval: tuple[float, float] | None = None  # of the mean, 95 %, over patients; None: not given, or fewer than two
    patients: int = 0  # of the cases for which it is defined; 0 where they are not given
    mean_penalised: float | None = None  # distances alone: with the image's diagonal for missed and spurious cases
    missed: int = 0  # cases with a reference and no segmentation of the label
    spurious: int = 0  # cases with a segmentation and no reference of the label


@dataclass(frozen=True)
class ScoreJob:
    """One pair of files to compare."""

    case: str
    reference: Path
    segmentation: Path
    labels: LabelSet
    surfaces: bool = True  # measure distances, boundaries and lesions, too
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)  # label or region -> mm; others TOLERANCE_MM
    tubes: tuple[str, ...] = ()  # labels whose centre-lines are compared, or ALL


def score_case(job: ScoreJob) -> CaseScore:
    """Compare one segmentation file with its reference file.

    Raises:
        DataError: the grids differ, or a file contains values that are not labels.
    """
    reference = _read(job.reference, job.segmentation, job.labels)
    segmentation = _read(job.segmentation, job.reference, job.labels)
    segmentation, spacing = _on_grid_of(job, reference, segmentation)
    maps = []
    for path, volume in ((job.reference, reference), (job.segmentation, segmentation)):
        if unexpected := job.labels.unexpected(volume.array):
            raise DataError(
                f"{path} contains values that are not labels: {unexpected} (value: voxels)",
                remedy=f"the labels are {job.labels.values}; declare others with --labels",
            )
        maps.append(job.labels.to_indices(volume.array, spacing))
    ignore = job.labels.ignore_index
    hidden = maps[0] == ignore
    if unsaid := int(((maps[1] == ignore) & ~hidden).sum()):
        raise DataError(
            f"{job.segmentation} contains the ignore value {job.labels.ignore} on {unsaid} voxels that {job.reference} "
            "annotates",
            remedy="write a label or 0 there: only references may contain ignored voxels",
        )
    confusion = confusion_matrix(maps[0], maps[1], job.labels.num_labels + 1, ignore_index=ignore)
    if ignore is not None:  # not annotated: neither side may count it
        maps = [np.where(hidden, 0, m) for m in maps]
    known = reference.geometry.sized or segmentation.geometry.sized
    voxel_ml = math.prod(spacing) / 1000 if known and math.isfinite(math.prod(spacing)) else None
    tolerances = {name: job.tolerances_mm.get(name, TOLERANCE_MM) for name in job.labels.scored}
    tubes = [name for name in job.labels.scored if name in job.tubes or ALL in job.tubes]
    of = LabelJob(maps[0], maps[1], confusion, spacing, voxel_ml, tolerances, tuple(tubes), job.surfaces)
    return CaseScore(
        job.case,
        tuple(tuple(int(v) for v in row) for row in confusion),
        label_scores(of, job.labels.scored),
        voxel_ml=voxel_ml,
        diagonal_mm=diagonal(reference.array.shape, spacing),
        tolerances_mm=tolerances if job.surfaces else None,
        objects=count_objects(job.labels, reference.array, segmentation.array, hidden if ignore is not None else None),
    )


def _read(path: Path, other: Path, labels: LabelSet) -> Volume:
    """Read one of two label maps; a DICOM-SEG, an RTSTRUCT or outlines on the grid of the other one."""
    return read_labels_as(labels, path, None if is_dicom(other) else other)


def score_cases(jobs: Sequence[ScoreJob], *, workers: int | None = None) -> tuple[CaseScore, ...]:
    """Compare many cases in worker processes."""
    return tuple(map_in_processes(score_case, jobs, title="evaluate", workers=workers))


def pair_folders(predictions: Path, references: Path, labels: LabelSet, *, partial: bool = False) -> list[ScoreJob]:
    """Pair the label files of two folders by name; formats may differ.

    Args:
        partial: leave out references without a prediction, as long as one has a prediction.

    Raises:
        DataError: a folder is missing or empty, a name occurs twice in a folder, a reference cannot be read or has no
            prediction (all of them are named).
    """
    files: dict[Path, dict[str, Path]] = {}
    for folder in (predictions, references):
        files[folder] = {}
        for path in label_files(folder):
            other = files[folder].setdefault(name_of(path), path)
            if other != path:
                raise DataError(f"{folder} contains both {other.name} and {path.name}", remedy="keep one file per case")
    _demand_usable(references)
    found = {
        name: files[predictions].get(name) or files[predictions].get(LABEL_SUFFIX.sub("", name))
        for name in files[references]
    }  # the label of c1 may be called c1_seg
    missing = sorted(name for name, path in found.items() if path is None)
    if missing and not (partial and len(missing) < len(found)):
        raise DataError(
            f"{len(missing)} of {len(files[references])} references have no prediction in {predictions}: "
            + ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else ""),
            remedy="predict these cases, or move their references elsewhere",
        )  # fmt: skip
    return [ScoreJob(name, files[references][name], path, labels) for name, path in found.items() if path]


def labels_found(folder: Path) -> LabelSet:
    """The labels in a folder's files, named after their values, where no names are given."""
    values: set[int] = set()
    for path in label_files(folder):
        values |= {int(v) for v in np.unique(read_labels(path).array)}
    return LabelSet({f"label_{v}": v for v in sorted(values - {0})})


def summarise(
    scores: Sequence[CaseScore], patients: Mapping[str, Hashable] | None = None
) -> dict[str, dict[str, Summary]]:
    """Summarise every metric over cases: label -> metric -> Summary.

    Args:
        patients: case -> patient, for the intervals of the means; a case that is not in it is a patient of its own.
            None: no intervals.
    """
    if not scores:
        return {}
    groups = None if patients is None else [patients.get(score.case, score.case) for score in scores]
    diagonals = [score.diagonal_mm for score in scores]
    found: dict[str, dict[str, Summary]] = {}
    for label, metrics in scores[0].scores.items():
        states = Counter(presence(score.scores[label]) for score in scores)
        found[label] = {}
        for metric in metrics:
            values = [score.scores[label][metric] for score in scores]
            penalised = None
            if metric in DISTANCES:
                absent = [presence(score.scores[label]) == "absent" for score in scores]
                penalised = _penalised(values, absent, diagonals)
            found[label][metric] = replace(
                summary_of(values, groups),
                mean_penalised=penalised,
                missed=states["missed"],
                spurious=states["spurious"],
            )
    return found


def objects_over_cases(
    scores: Sequence[CaseScore], labels: LabelSet, patients: Mapping[str, Hashable] | None = None
) -> dict[str, ObjectSummary]:
    """Objects of every thing, and of stuff beside things, over cases; empty where labels have none.

    Args:
        patients: as for `summarise`.
    """
    groups = None if patients is None else [patients.get(score.case, score.case) for score in scores]
    return {
        name: summarise_objects([score.objects[name] for score in scores], groups, stuff=name in labels.stuff)
        for name in (*labels.things, *labels.stuff)
        if scores and all(name in score.objects for score in scores)
    }


def presence(metrics: Mapping[str, float | None]) -> Literal["found", "missed", "spurious", "absent"]:
    """Where a case has a label: in both maps ("found", however badly), in one of them alone, or in none.

    Args:
        metrics: of the label; those that a table of another origin lacks count as defined.
    """
    if not metrics or metrics.get("dice", 0) is None:
        return "absent"
    if metrics.get("precision", 0) is None:
        return "missed"
    return "spurious" if metrics.get("recall", 0) is None else "found"


def mean_over_labels(summary: Mapping[str, Mapping[str, Summary]], metric: str = "dice") -> float | None:
    """Mean of one metric over the labels that have it."""
    means = [m for label in summary.values() if (m := label[metric].mean) is not None]
    return sum(means) / len(means) if means else None


def total_confusion(scores: Sequence[CaseScore]) -> np.ndarray:
    """Confusion matrix summed over cases, int64 (n + 1, n + 1), [reference, segmentation]."""
    return np.sum([np.array(s.confusion, dtype=np.int64) for s in scores], axis=0)


def columns_of(metrics: Iterable[str]) -> list[str]:
    """The metrics that tables show, in their order: a few, and those that a plugin added; files hold all of them."""
    return [metric for metric in metrics if metric not in IN_FILES_ALONE]


def summary_table(summary: Mapping[str, Mapping[str, Summary]], title: str) -> str:
    """Labels as rows, metrics as columns, mean ± std over cases; (n) where a metric has fewer cases than Dice.

    Below it, a line for each label that was missed or is spurious in a case: what the distances are with these cases.
    """
    metrics = columns_of(next(iter(summary.values())))
    rows = [[title, *metrics, "cases"]]
    for label, columns in summary.items():
        defined, undefined = columns["dice"].defined, columns["dice"].undefined
        shown = [_shown(columns[m], defined) for m in metrics]
        rows.append([label, *shown, f"{defined}" + (f" (+{undefined} undefined)" if undefined else "")])
    means = [mean_over_labels(summary, m) for m in metrics]
    rows.append(["mean", *("-" if m is None else f"{m:.4f}" if m < 10 else f"{m:.2f}" for m in means), ""])
    return "\n".join([ruled(rows), *_missed_lines(summary)])


def _missed_lines(summary: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    lines = []
    for label, columns in summary.items():
        dice = columns["dice"]
        if not dice.missed and not dice.spurious:
            continue
        line = f"{label}: missed in {dice.missed} and spurious in {dice.spurious} of {counted(dice.defined, 'case')}"
        means = {m: columns[m].mean_penalised for m in DISTANCES if m in columns}
        shown = [f"{metric} {mean:.2f}" for metric, mean in means.items() if mean is not None]
        lines.append(line + (f"; with the image's diagonal for these, {', '.join(shown)}" if shown else ""))
    return lines


def confusion_table(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Rows are the reference, columns the segmentation, as shares of each reference class; the accuracy below it.

    Accuracy is never shown without that of a segmentation that finds nothing, from which it hardly differs where
    objects are small.
    """
    rows = [["reference \\ segmented", *names, "voxels"]]
    for name, row in zip(names, confusion, strict=True):
        rows.append([name, *(f"{v / max(row.sum(), 1):.4f}" for v in row), f"{row.sum()}"])
    right, of_nothing = accuracy(confusion)
    line = f"accuracy {right:.4f}, that of predicting background alone {of_nothing:.4f}"
    return "\n".join([ruled(rows), *([line] if math.isfinite(right) else [])])


def write_csv(path: Path, scores: Sequence[CaseScore]) -> None:
    """One row per case and label; an undefined value is an empty cell.

    The last columns say whether the label was found, missed, spurious or absent (see `presence`), and the diagonal of
    the image, which counts where a missed or spurious label has no distance.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for i, score in enumerate(scores):
        for label, metrics in score.scores.items():
            if i == 0 and label == next(iter(score.scores)):
                writer.writerow(["case", "label", *metrics, "presence", "diagonal_mm"])
            values = ["" if v is None else v for v in (*metrics.values(), presence(metrics), score.diagonal_mm)]
            writer.writerow([score.case, label, *values])
    write_text(path, text.getvalue())


def summary_of(values: Sequence[float | None], groups: Sequence[Hashable] | None = None) -> Summary:
    """Statistics of one metric; `values` and `groups`, the patients, have an entry per case."""
    where = [i for i, value in enumerate(values) if value is not None]
    defined = [value for value in values if value is not None]
    if not defined:
        return Summary(None, None, 0, len(values))
    lower, median, upper = map(float, np.percentile(defined, [25, 50, 75]))
    return Summary(
        float(np.mean(defined)),
        float(np.std(defined)),
        len(defined),
        len(values) - len(defined),
        median=median,
        quartiles=(lower, upper),
        interval=None if groups is None else interval_of_mean(defined, [groups[i] for i in where]),
        patients=0 if groups is None else len({groups[i] for i in where}),
    )


def _penalised(
    values: Sequence[float | None], absent: Sequence[bool], diagonals: Sequence[float | None]
) -> float | None:
    """The mean with the image's diagonal where a label is in one of both maps alone; None if that is not known."""
    counted = [d if v is None else v for v, nowhere, d in zip(values, absent, diagonals, strict=True) if not nowhere]
    known = [value for value in counted if value is not None]
    return float(np.mean(known)) if known and len(known) == len(counted) else None


def _shown(summary: Summary, cases: int) -> str:
    if summary.mean is None or summary.std is None:
        return "-"
    over = "" if summary.defined == cases else f" ({summary.defined})"
    digits = 4 if summary.mean < 10 else 2
    return f"{summary.mean:.{digits}f} ± {summary.std:.{max(digits - 1, 2)}f}{over}"


def label_files(folder: Path) -> list[Path]:
    """Files of a known format, sorted, not hidden.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", remedy="give two folders of label files")
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    files = [path for path in files if ending_of(path) or (path.is_file() and is_dicom(path))]
    if not files:
        raise DataError(f"{folder} contains no label file", remedy="give two folders of label files")
    return files


def _demand_usable(references: Path) -> None:
    """Refuse unreadable references: otherwise the mean would silently be that of the others."""
    there = contents(references)
    if errors := [p for p in (*there.problems, *stray_folders(there)) if p.severity == "error"]:
        first = errors[0]
        what = f"{len(errors)} references cannot be read; the first is {first.file}: {first.what}"
        raise DataError(what, remedy=f"{first.remedy}; or move it out of {references}")


def _on_grid_of(job: ScoreJob, reference: Volume, segmentation: Volume) -> tuple[Volume, Vector3]:
    """The segmentation in the axis order of the reference, and the spacing (Z, Y, X) of their common grid.

    The rules are those for the files of a case (`compare_grids`). Where one file states no voxel size, that of the
    other is used.
    """
    match = compare_grids(segmentation.geometry, reference.geometry, job.reference.name)
    if not match.usable:
        raise DataError(
            f"{job.segmentation} is on another grid than {job.reference}: {'; '.join(match.differences)}",
            remedy="compare segmentations with references of the same image, on its own grid",
        )
    turned = Volume(np.ascontiguousarray(match.apply(segmentation.array)), reference.geometry)
    sized = reference.geometry if reference.geometry.sized else segmentation.geometry
    return turned, sized.spacing
