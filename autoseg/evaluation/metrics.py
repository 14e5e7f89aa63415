"""A segmentation against its reference, counted in voxels: overlap and volume from one confusion matrix.

A metric is one function and one line in METRICS, or in the tables of `surfaces` and `masks`. Undefined values are NaN
and excluded from means. When a metric is undefined is part of its definition:

                     both empty    reference empty    segmentation empty
    dice, iou, f2    NaN           0                  0
    recall           NaN           NaN                0
    precision        NaN           0                  NaN
    specificity      1             its value          1
    volume_error     NaN           inf                -1
    volume_error_ml  0             its value          its value

Accuracy is not among them: where the background is 99 % of the voxels, it is 0.99 for a model that finds nothing.
`accuracy` returns it together with that number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.labels import OUTSIDE

_CHUNK = 1 << 20  # voxels counted at once: their codes are int64 and stay in the cache


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels of one class (or union of classes) in reference and segmentation."""

    tp: int
    fp: int
    fn: int
    tn: int
    voxel_ml: float | None = None  # volume of a voxel, where it is known


def confusion_matrix(
    reference: np.ndarray, segmentation: np.ndarray, num_classes: int, *, ignore_index: int | None = None
) -> np.ndarray:
    """Count voxels by class in the reference (rows) and in the segmentation (columns): int64 (n, n).

    Both are integer arrays of class indices 0..num_classes-1 of equal shape; OUTSIDE counts as background. Voxels where
    the reference is `ignore_index` (which may be num_classes) are not counted.

    Raises:
        ValueError: shapes differ, or an index out of range.
    """
    if reference.shape != segmentation.shape:
        raise ValueError(f"reference {reference.shape} and segmentation {segmentation.shape} differ in shape")
    counts = np.zeros(num_classes**2, dtype=np.int64)
    reference, segmentation = reference.reshape(-1), segmentation.reshape(-1)
    for start in range(0, reference.size, _CHUNK):
        rows = reference[start : start + _CHUNK].astype(np.int64)
        columns = segmentation[start : start + _CHUNK].astype(np.int64)
        if ignore_index is not None:
            annotated = rows != ignore_index
            rows, columns = rows[annotated], columns[annotated]
        for indices in (rows, columns):
            indices[indices == OUTSIDE] = 0
            if indices.size and not (indices.min() >= 0 and indices.max() < num_classes):
                raise ValueError(f"class indices {indices.min()}..{indices.max()} exceed 0..{num_classes - 1}")
        counts += np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def overlap_counts(confusion: np.ndarray, indices: Sequence[int], voxel_ml: float | None = None) -> OverlapCounts:
    """Voxels of the union of classes `indices`, from a confusion matrix (n, n) [reference, segmentation]."""
    chosen = np.zeros(len(confusion), dtype=bool)
    chosen[list(indices)] = True
    return OverlapCounts(
        tp=int(confusion[chosen][:, chosen].sum()),
        fp=int(confusion[~chosen][:, chosen].sum()),
        fn=int(confusion[chosen][:, ~chosen].sum()),
        tn=int(confusion[~chosen][:, ~chosen].sum()),
        voxel_ml=voxel_ml,
    )


def dice(counts: OverlapCounts) -> float:
    """2 TP / (2 TP + FP + FN); NaN if reference and segmentation are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: OverlapCounts) -> float:
    """TP / (TP + FP + FN); NaN if reference and segmentation are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def recall(counts: OverlapCounts) -> float:
    """TP / (TP + FN), the share of the reference that was found; NaN if the reference is empty."""
    return _ratio(counts.tp, counts.tp + counts.fn)


def precision(counts: OverlapCounts) -> float:
    """TP / (TP + FP), the share of the segmentation that is right; NaN if the segmentation is empty."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def specificity(counts: OverlapCounts) -> float:
    """TN / (TN + FP), the share of all other voxels that was left out; NaN if the reference fills the image."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def f2(counts: OverlapCounts) -> float:
    """F-beta with beta = 2, for which a missed voxel weighs as much as four wrong ones; NaN if both are empty."""
    return f_beta(counts, 2)


def f_beta(counts: OverlapCounts, beta: float) -> float:
    """(1 + b2) TP / ((1 + b2) TP + b2 FN + FP) with b2 = beta ** 2; Dice for 1, more like recall above it."""
    weight = beta**2
    return _ratio((1 + weight) * counts.tp, (1 + weight) * counts.tp + weight * counts.fn + counts.fp)


def volume_error(counts: OverlapCounts) -> float:
    """(segmented - reference) / reference volume: above 0 where too much is segmented; inf without a reference."""
    if counts.tp + counts.fn == 0:
        return float("inf") if counts.fp else float("nan")
    return (counts.fp - counts.fn) / (counts.tp + counts.fn)


def volume_error_ml(counts: OverlapCounts) -> float:
    """Segmented - reference volume, ml; NaN where the size of a voxel is not known."""
    return (counts.fp - counts.fn) * counts.voxel_ml if counts.voxel_ml is not None else float("nan")


METRICS: dict[str, Callable[[OverlapCounts], float]] = {
    "dice": dice,
    "iou": iou,
    "recall": recall,
    "precision": precision,
    "specificity": specificity,
    "f2": f2,
    "volume_error": volume_error,
    "volume_error_ml": volume_error_ml,
}


def accuracy(confusion: np.ndarray) -> tuple[float, float]:
    """Find the share of voxels that are right, and what it is for a segmentation of background alone.

    Args:
        confusion: voxels (n, n) [reference, segmentation], background first, without ignored voxels.

    Returns:
        Both shares; NaN without any voxel.
    """
    total = int(confusion.sum())
    return _ratio(int(np.trace(confusion)), total), _ratio(int(confusion[0].sum()), total)


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length in mm of an image's diagonal, no distance in it is longer; axes of extent 1 have no length."""
    return math.hypot(*(extent * step for extent, step in zip(shape, spacing, strict=True) if extent > 1))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
