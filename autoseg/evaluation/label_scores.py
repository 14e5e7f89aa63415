"""Every metric of every label of one case, inside the box of each label.

The tables of metrics are METRICS (voxel counts), SURFACE_METRICS, MASK_METRICS, TUBE_METRICS and LESION_METRICS. A
metric that is undefined for a case is None, and so is an infinite one: the distance to an object that was missed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.evaluation.masks import MASK_METRICS, TUBE_METRICS, MaskPair
from autoseg.evaluation.metrics import METRICS, overlap_counts
from autoseg.evaluation.objects import LESION_METRICS, lesions
from autoseg.evaluation.surfaces import SURFACE_METRICS, surface_distances
from autoseg.imaging.geometry import Vector3

DISTANCES = ("hd95", "hd", "assd")  # mm; a missed or spurious label has none
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class LabelJob:
    """Two label maps on one grid, without ignored voxels."""

    reference: np.ndarray  # class indices (Z, Y, X)
    segmentation: np.ndarray  # class indices (Z, Y, X)
    confusion: np.ndarray  # int64 (n, n) [reference, segmentation]
    spacing: Vector3  # mm
    voxel_ml: float | None
    tolerances_mm: Mapping[str, float]  # of every label or region
    tubes: tuple[str, ...] = ()  # labels whose centre-lines are compared
    surfaces: bool = True  # False: voxels are counted, and nothing else


def label_scores(job: LabelJob, scored: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float | None]]:
    """Measure every label or region: name -> metric -> value.

    Args:
        scored: name -> the class indices that form it.
    """
    boxes = [_boxes(array, len(job.confusion) - 1) for array in (job.reference, job.segmentation)]
    found = {}
    for name, indices in scored.items():
        counts = overlap_counts(job.confusion, indices, job.voxel_ml)
        values = {metric: function(counts) for metric, function in METRICS.items()}
        if job.surfaces:
            box = _around([b[i - 1] for b in boxes for i in indices])
            values |= _shapes(job, name, [_inside(array[box], indices) for array in (job.reference, job.segmentation)])
        found[name] = {metric: _or_none(value) for metric, value in values.items()}
    return found


def _shapes(job: LabelJob, name: str, masks: Sequence[np.ndarray]) -> dict[str, float]:
    """The metrics that need more than counts."""
    flat = tuple(extent == 1 for extent in job.reference.shape)
    pair = MaskPair(masks[0], masks[1], job.spacing, job.tolerances_mm[name], flat)
    surfaces = surface_distances(
        pair.reference, pair.segmentation, pair.spacing, tolerance_mm=pair.tolerance_mm, flat=pair.flat
    )
    values = {metric: function(surfaces) for metric, function in SURFACE_METRICS.items()}
    values |= {metric: function(pair) for metric, function in MASK_METRICS.items()}
    for metric, function in TUBE_METRICS.items():
        values[metric] = function(pair) if name in job.tubes else float("nan")
    matched = lesions(pair.reference, pair.segmentation)
    return values | {metric: of_lesions(matched) for metric, of_lesions in LESION_METRICS.items()}


def _boxes(array: np.ndarray, classes: int) -> list[Slices | None]:
    """The box of each class index 1..classes; None for one that is nowhere."""
    found = ndimage.find_objects(array, max_label=classes) if classes else []
    return [*found, *[None] * (classes - len(found))]


def _around(boxes: Sequence[Slices | None]) -> Slices:
    """The smallest box around others; an empty one around none."""
    known = [box for box in boxes if box is not None]
    if not known:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    z, y, x = (slice(min(s.start for s in spans), max(s.stop for s in spans)) for spans in zip(*known, strict=True))
    return z, y, x


def _inside(array: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Where an array holds one of a few class indices, bool."""
    mask = array == indices[0]
    for index in indices[1:]:
        mask |= array == index
    return mask


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
