"""Distances between the surfaces of two masks, in mm, every element of a surface weighed by its area.

A surface metric is one function of SurfaceDistances and one line in SURFACE_METRICS:

                       both empty    one of them empty
    hd, hd95, assd     NaN           inf
    nsd, boundary_f1   NaN           0

An element's distance is that to the nearest element of the other surface (`surface_elements`). A percentile is the
distance up to which 95 % of a surface's area lies, not 95 % of its elements: many small elements do not drown a few
large ones. Of both directions, from the reference and from the segmentation, HD and HD95 are the larger; ASSD and NSD
are over both surfaces together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from autoseg.evaluation.surface_elements import SurfaceElements, surface_elements
from autoseg.imaging.components import as_slices, bounding_box
from autoseg.imaging.geometry import Vector3

TOLERANCE_MM = 1.0  # up to which nsd calls two surfaces equal, unless another is given
_TOLERANCE_SLACK_MM = 1e-4  # spacings come from float32 headers: 1.1 mm must count as within 1.1 mm
_SHARE_SLACK = 1e-9  # of areas that are summed in another order


@dataclass(frozen=True)
class SurfaceDistances:
    """From every surface element to the nearest one of the other surface, in mm; inf where the other mask is empty."""

    of_reference: np.ndarray  # (elements of the reference,) float64
    of_segmentation: np.ndarray  # (elements of the segmentation,) float64
    reference_areas: np.ndarray  # mm2 (mm for flat masks) of each, float64
    segmentation_areas: np.ndarray
    tolerance_mm: float  # up to which nsd calls two surfaces equal

    @property
    def area(self) -> float:
        """Of both surfaces."""
        return float(self.reference_areas.sum() + self.segmentation_areas.sum())


def surface_distances(
    reference_mask: np.ndarray,
    segmentation_mask: np.ndarray,
    spacing: Vector3,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    flat: Sequence[bool] | None = None,
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    Exact, by a k-d tree of each surface, which needs only the surface: many times faster than a distance map of the
    bounding box. In a flat image surfaces are contours.

    Args:
        reference_mask, segmentation_mask: bool (Z, Y, X), equal shapes.
        spacing: mm (Z, Y, X); that of a flat axis means nothing.
        tolerance_mm: kept for `nsd` and `boundary_f1`.
        flat: for each axis, whether the image has no extent along it; None: where the masks have an extent of 1.

    Raises:
        ValueError: shapes differ.
    """
    if reference_mask.shape != segmentation_mask.shape:
        raise ValueError(f"reference {reference_mask.shape} and segmentation {segmentation_mask.shape} differ in shape")
    boxes = [bounding_box(mask) for mask in (reference_mask, segmentation_mask) if mask.any()]
    if not boxes:
        nothing = np.empty(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing, tolerance_mm)
    box = as_slices(tuple((min(s[0] for s in spans), max(s[1] for s in spans)) for spans in zip(*boxes, strict=True)))  # type: ignore[arg-type]
    if flat is None:
        flat = [extent == 1 for extent in reference_mask.shape]
    dropped = next((axis for axis in range(3) if flat[axis]), None)  # one alone: a contour needs two axes
    axes = [axis for axis in range(3) if axis != dropped]
    steps = [1.0 if flat[axis] else spacing[axis] for axis in axes]
    masks = [
        mask[box] if dropped is None else np.squeeze(mask[box], axis=dropped)
        for mask in (reference_mask, segmentation_mask)
    ]
    reference, segmentation = (surface_elements(mask, steps) for mask in masks)
    lattice = [extent + 1 for extent in masks[0].shape]
    return SurfaceDistances(
        _distances(reference, segmentation, lattice, steps),
        _distances(segmentation, reference, lattice, steps),
        reference.areas,
        segmentation.areas,
        tolerance_mm,
    )


def hd(distances: SurfaceDistances) -> float:
    """Hausdorff distance, mm: the largest distance of all. One wrong voxel far away decides it."""
    both = np.concatenate([distances.of_reference, distances.of_segmentation])
    return float(both.max()) if len(both) else float("nan")


def hd95(distances: SurfaceDistances) -> float:
    """95th-percentile Hausdorff distance, mm: the larger of both directed percentiles, by area."""
    if not len(distances.of_reference) and not len(distances.of_segmentation):
        return float("nan")
    if not len(distances.of_reference) or not len(distances.of_segmentation):
        return float("inf")
    return max(
        percentile(distances.of_reference, distances.reference_areas, 0.95),
        percentile(distances.of_segmentation, distances.segmentation_areas, 0.95),
    )


def percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """The smallest distance up to which at least `share` of the area lies; not interpolated."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(areas[order])
    index = int(np.searchsorted(reached, (share - _SHARE_SLACK) * reached[-1]))
    return float(distances[order[min(index, len(order) - 1)]])


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance, mm: the mean over the area of both surfaces together."""
    if not distances.area:
        return float("nan")
    weighed = distances.of_reference @ distances.reference_areas
    return float((weighed + distances.of_segmentation @ distances.segmentation_areas) / distances.area)


def nsd(distances: SurfaceDistances) -> float:
    """Normalised surface Dice: the share of the area of both surfaces within `tolerance_mm` of the other surface."""
    return sum(_close(distances)) / distances.area if distances.area else float("nan")


def boundary_f1(distances: SurfaceDistances) -> float:
    """Harmonic mean of two shares: of the reference's surface that was found, and of the segmentation's that is right.

    A surface is found, or right, within `tolerance_mm` of the other one. Unlike in `nsd` the larger surface does not
    weigh more.
    """
    if not distances.area:
        return float("nan")
    close = _close(distances)
    if not all(close):
        return 0.0
    found = close[0] / float(distances.reference_areas.sum())
    right = close[1] / float(distances.segmentation_areas.sum())
    return 2 * found * right / (found + right)


SURFACE_METRICS: dict[str, Callable[[SurfaceDistances], float]] = {
    "hd95": hd95,
    "hd": hd,
    "assd": assd,
    "nsd": nsd,
    "boundary_f1": boundary_f1,
}


def _close(distances: SurfaceDistances) -> tuple[float, float]:
    """The area of the reference's surface, and of the segmentation's, within the tolerance of the other one."""
    within = distances.tolerance_mm + _TOLERANCE_SLACK_MM
    return (
        float(distances.reference_areas[distances.of_reference <= within].sum()),
        float(distances.segmentation_areas[distances.of_segmentation <= within].sum()),
    )


def _distances(
    of: SurfaceElements, to: SurfaceElements, lattice: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Distances, mm float64, from each element to the nearest one of the other surface; inf if there is none."""
    if not len(to.corners):
        return np.full(len(of.corners), np.inf)
    distances = np.zeros(len(of.corners))
    apart = ~np.isin(of.corners, to.corners, assume_unique=True)  # an element of both surfaces is 0 away: many are
    if apart.any():
        targets, queries = (
            np.stack(np.unravel_index(corners, tuple(lattice)), axis=1) * np.asarray(spacing)
            for corners in (to.corners, of.corners[apart])
        )
        distances[apart] = cKDTree(targets).query(queries)[0]
    return distances
