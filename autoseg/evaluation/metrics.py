"""A segmentation against its reference: overlap from one confusion matrix, distances between surfaces.

A metric is one function and one line in METRICS or SURFACE_METRICS. Undefined values are NaN and
excluded from means. When a metric is undefined is part of its definition:

                  both empty    reference empty    segmentation empty
    dice, iou     NaN           0                  0
    recall        NaN           NaN                0
    precision     NaN           0                  NaN
    hd95, assd    NaN           inf                inf
    nsd           NaN           0                  0

Distances are in mm between centres of surface voxels: voxels of the mask with a face neighbour outside it. Beyond the
image is outside; an axis of extent 1 has no neighbours (the surface of a flat mask is its outline).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from autoseg.imaging.components import bounding_box
from autoseg.imaging.geometry import Vector3
from autoseg.imaging.labels import OUTSIDE

_CHUNK = 1 << 20  # voxels counted at once: their codes are int64 and stay in the cache
_TOLERANCE_SLACK_MM = 1e-4  # spacings come from float32 headers: 1.1 mm must count as within 1.1 mm


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels of one class (or union of classes) in reference and segmentation."""

    tp: int
    fp: int
    fn: int
    tn: int


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


def overlap_counts(confusion: np.ndarray, indices: Sequence[int]) -> OverlapCounts:
    """Voxels of the union of classes `indices`, from a confusion matrix (n, n) [reference, segmentation]."""
    chosen = np.zeros(len(confusion), dtype=bool)
    chosen[list(indices)] = True
    return OverlapCounts(
        tp=int(confusion[chosen][:, chosen].sum()),
        fp=int(confusion[~chosen][:, chosen].sum()),
        fn=int(confusion[chosen][:, ~chosen].sum()),
        tn=int(confusion[~chosen][:, ~chosen].sum()),
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


METRICS: dict[str, Callable[[OverlapCounts], float]] = {
    "dice": dice,
    "iou": iou,
    "recall": recall,
    "precision": precision,
}


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length in mm of an image's diagonal, no distance in it is longer; axes of extent 1 have no length."""
    return math.hypot(*(extent * step for extent, step in zip(shape, spacing, strict=True) if extent > 1))


@dataclass(frozen=True)
class SurfaceDistances:
    """From every surface voxel to the nearest one of the other surface, in mm; inf where the other mask is empty."""

    of_reference: np.ndarray  # (surface voxels of the reference,) float64
    of_segmentation: np.ndarray  # (surface voxels of the segmentation,) float64
    tolerance_mm: float  # up to which nsd calls two surfaces equal

    @property
    def all(self) -> np.ndarray:
        return np.concatenate([self.of_reference, self.of_segmentation])


def surface_distances(
    reference_mask: np.ndarray, segmentation_mask: np.ndarray, spacing: Vector3, *, tolerance_mm: float = 1.0
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    Exact, by a k-d tree of each surface, which needs only surface voxels: many times faster than a distance map of the
    bounding box.

    Args:
        reference_mask, segmentation_mask: bool (Z, Y, X), equal shapes.
        spacing: mm (Z, Y, X).
        tolerance_mm: kept for `nsd`.

    Raises:
        ValueError: shapes differ.
    """
    if reference_mask.shape != segmentation_mask.shape:
        raise ValueError(f"reference {reference_mask.shape} and segmentation {segmentation_mask.shape} differ in shape")
    deep = tuple(extent > 1 for extent in reference_mask.shape)
    steps = [s if d else 1.0 for s, d in zip(spacing, deep, strict=True)]  # a flat axis may have any spacing
    boxes = [bounding_box(mask) for mask in (reference_mask, segmentation_mask) if mask.any()]
    if not boxes:
        return SurfaceDistances(np.empty(0), np.empty(0), tolerance_mm)
    box = tuple(slice(min(s[0] for s in spans), max(s[1] for s in spans)) for spans in zip(*boxes, strict=True))
    reference_surface = _surface(reference_mask[box], deep)
    segmentation_surface = _surface(segmentation_mask[box], deep)
    return SurfaceDistances(
        _distances_to(segmentation_surface, reference_surface, steps),
        _distances_to(reference_surface, segmentation_surface, steps),
        tolerance_mm,
    )


def hd95(distances: SurfaceDistances) -> float:
    """95th-percentile Hausdorff distance, mm: the larger of both directed 95th percentiles (interpolated linearly)."""
    both = (distances.of_reference, distances.of_segmentation)
    if not np.isfinite(distances.all).all():
        return float("inf")
    return max((float(np.percentile(directed, 95)) for directed in both if len(directed)), default=float("nan"))


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance, mm: the mean over the surface voxels of both masks together."""
    both = distances.all
    return float(both.mean()) if len(both) else float("nan")


def nsd(distances: SurfaceDistances) -> float:
    """Normalised surface Dice: the share of both surfaces' voxels within `tolerance_mm` of the other surface."""
    both = distances.all
    return float((both <= distances.tolerance_mm + _TOLERANCE_SLACK_MM).mean()) if len(both) else float("nan")


SURFACE_METRICS: dict[str, Callable[[SurfaceDistances], float]] = {
    "hd95": hd95,
    "assd": assd,
    "nsd": nsd,
}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _surface(mask: np.ndarray, deep: Sequence[bool]) -> np.ndarray:
    """Voxels of a mask with a face neighbour outside it, padded by one voxel of False on every side."""
    padded = np.pad(mask, 1)
    interior = padded[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        if deep[axis]:
            for start in (0, 2):
                neighbour = [slice(1, -1)] * 3
                neighbour[axis] = slice(start, start + mask.shape[axis])
                interior &= padded[tuple(neighbour)]
    padded[1:-1, 1:-1, 1:-1] &= ~interior
    return padded


def _distances_to(surface: np.ndarray, sources: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distances, mm float64, from each voxel of `sources` to the nearest of `surface`; inf if there is none."""
    where = np.flatnonzero(sources)
    distances = np.zeros(len(where))
    apart = ~surface.ravel()[where]  # a voxel of both surfaces is 0 away, and there are many
    if apart.any():
        targets, queries = (
            np.stack(np.unravel_index(voxels, surface.shape), axis=1) * spacing
            for voxels in (np.flatnonzero(surface), where[apart])
        )
        distances[apart] = cKDTree(targets).query(queries)[0] if len(targets) else np.inf
    return distances
