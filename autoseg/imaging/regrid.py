"""From one grid in space onto another, whatever their spacing, origin and direction.

    fit                   whether two grids hold the same voxels, in which order, and how far apart
    share_inside          the share of a grid that another image covers
    resample_image_onto   linear, smoothed where it shrinks
    resample_labels_onto  nearest neighbour: every voxel keeps one of the values

`resample.py` changes the spacing of one image within its own extent; here two images are placed by their headers. A
voxel is a cell: an image includes the half voxel beyond the centres of its outermost voxels.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from autoseg.imaging.geometry import Axes3, Geometry

SAME_VOXELS, SAME_SPACING = 1e-2, 1e-3  # corners apart, and relative difference of spacings: rounding of headers
NEAR_VOXELS = 0.1  # corners closer than this are the same position, imprecisely written
SMOOTHED_ABOVE = 1.5  # an axis that shrinks by more is low-pass filtered first, as planning decides (2.2)
_EDGE = 1e-6  # voxels: rounding in a header must not push an equal grid out of the field of view


@dataclass(frozen=True)
class Fit:
    """How the voxels of one grid become those of another; for `geometry.reorient`."""

    permutation: Axes3
    flips: Axes3
    distance_voxels: float  # largest distance of equal corners, over the smallest spacing of the two
    spacing_differs: float  # largest relative difference of the spacings

    @property
    def in_order(self) -> bool:
        return self.permutation == (0, 1, 2) and self.flips == (0, 0, 0)

    @property
    def same(self) -> bool:
        """The grids are equal up to rounding in headers."""
        return self.in_order and self.distance_voxels <= SAME_VOXELS and self.spacing_differs <= SAME_SPACING

    @property
    def near(self) -> bool:
        """The grids have the same position to a tenth of a voxel, in any order of the axes."""
        return self.distance_voxels <= NEAR_VOXELS and self.spacing_differs <= NEAR_VOXELS


def fit(source: Geometry, target: Geometry) -> Fit | None:
    """Find the order in which the voxels of `source` are nearest to those of `target`; None if extents do not agree.

    The axes are matched by their directions, so the order is that of the images in space, not a guess from shapes. A
    spacing that differs by rounding (1e-3) counts as equal, however many voxels it adds up over.
    """
    if source.flat != target.flat:
        return None
    first = 1 if source.flat else 0
    matrix, offset = index_map(target, source)
    scaled = matrix * np.array(source.spacing)[:, None] / np.array(target.spacing)  # cosines between the axes
    permutation = tuple(int(axis) for axis in np.abs(scaled).argmax(axis=0))
    if sorted(permutation) != [0, 1, 2] or tuple(source.shape[axis] for axis in permutation) != target.shape:
        return None
    flips = tuple(int(scaled[axis, i] < 0) for i, axis in enumerate(permutation))
    own = [target.spacing[permutation.index(axis)] for axis in range(3)]  # of the target, in the order of the source
    differs = max(abs(a - b) / b for a, b in list(zip(source.spacing, own, strict=True))[first:])
    if differs <= SAME_SPACING:
        source = replace(source, spacing=(own[0], own[1], own[2]))
        matrix, offset = index_map(target, source)
    farthest = 0.0
    for corner in itertools.product(*((0, extent - 1) for extent in target.shape)):
        wanted = np.zeros(3)
        for i, axis in enumerate(permutation):
            wanted[axis] = source.shape[axis] - 1 - corner[i] if flips[i] else corner[i]
        away = (matrix @ corner + offset - wanted) * source.spacing
        farthest = max(farthest, float(np.linalg.norm(away)))
    smallest = min(*source.spacing[first:], *target.spacing[first:])
    z, y, x = permutation
    flip_z, flip_y, flip_x = flips
    return Fit((z, y, x), (flip_z, flip_y, flip_x), farthest / smallest, differs)


def index_map(target: Geometry, source: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The (3, 3) matrix and the (3,) offset that map an index (z, y, x) of `target` to that of `source`."""
    steps = np.array(target.direction) * np.array(target.spacing)[:, None]  # rows: one per array axis, world (x, y, z)
    back = np.linalg.inv(np.array(source.direction) * np.array(source.spacing)[:, None])
    return (steps @ back).T, (np.array(target.origin) - np.array(source.origin)) @ back


def share_inside(target: Geometry, source: Geometry, where: np.ndarray | None = None) -> float:
    """The share of the voxels of `target` whose centres are in the field of view of `source`, 0 to 1.

    Args:
        where: (Z, Y, X) bool on the grid of `target`: the voxels to count; None counts all. 1.0 where there is none.
    """
    matrix, offset = index_map(target, source)
    seen = counted = 0
    for plane in range(target.shape[0]):
        inside = _inside(plane, matrix, offset, target.shape, source.shape)
        seen += int(inside.sum() if where is None else (inside & where[plane]).sum())
        counted += inside.size if where is None else int(where[plane].sum())
    return seen / counted if counted else 1.0


def resample_image_onto(array: np.ndarray, source: Geometry, target: Geometry) -> tuple[np.ndarray, tuple[float, ...]]:
    """Resample an image (C, Z, Y, X) from its own grid onto another; float32 (C, *target.shape).

    Linear, so that values stay in the range of their channel. An axis that shrinks by a factor f > 1.5 is first
    smoothed by a Gaussian of (f - 1) / 2 of its voxels, as `skimage.transform.resize` does. Voxels outside the
    field of view get the smallest finite value of the channel: air.

    Returns:
        The image, and the value outside the field of view of each channel.
    """
    matrix, offset = index_map(target, source)
    sigmas = smoothing(source, target)
    resampled = np.empty((len(array), *target.shape), dtype=np.float32)
    outside = []
    for channel, result in zip(array, resampled, strict=True):
        values = channel.astype(np.float32)
        lowest = float(np.min(values, where=np.isfinite(values), initial=np.inf))
        if any(sigmas):
            values = ndimage.gaussian_filter(values, sigmas, mode="nearest")
        ndimage.affine_transform(values, matrix, offset, target.shape, output=result, order=1, mode="nearest")
        _fill_outside(result, lowest, matrix, offset, source)
        outside.append(lowest)
    return resampled, tuple(outside)


def resample_labels_onto(labels: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """Resample a label map (Z, Y, X) onto another grid by nearest neighbour; same dtype, 0 outside its view."""
    matrix, offset = index_map(target, source)
    values = labels.astype(labels.dtype.newbyteorder("="))
    resampled = np.zeros(target.shape, dtype=values.dtype)
    for plane, result in enumerate(resampled):
        indices = _indices_of(plane, matrix, offset, target.shape)
        nearest = [
            np.clip(np.floor(index + 0.5 + _EDGE).astype(np.intp), 0, extent - 1)
            for index, extent in zip(indices, source.shape, strict=True)
        ]
        inside = _inside(plane, matrix, offset, target.shape, source.shape)
        np.copyto(result, values[tuple(nearest)], where=inside)
    return resampled


def smoothing(source: Geometry, target: Geometry) -> tuple[float, ...]:
    """Width of the low-pass filter along each axis of `source`, in its voxels; 0 where it does not shrink by > 1.5."""
    matrix, _ = index_map(target, source)
    factors = np.linalg.norm(matrix, axis=1)  # voxels of the source that one step of the target spans
    return tuple(float((factor - 1) / 2) if factor > SMOOTHED_ABOVE else 0.0 for factor in factors)


def _indices_of(plane: int, matrix: np.ndarray, offset: np.ndarray, shape: Axes3) -> list[np.ndarray]:
    """Indices (z, y, x) in the source of one plane of the target; three (Y, X) arrays."""
    y, x = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    return [row[0] * plane + row[1] * y + row[2] * x + start for row, start in zip(matrix, offset, strict=True)]


def _inside(plane: int, matrix: np.ndarray, offset: np.ndarray, shape: Axes3, extents: Axes3) -> np.ndarray:
    """Which voxels (Y, X) of one plane of the target are in the field of view of the source; bool."""
    inside = np.ones(shape[1:], dtype=bool)
    for index, extent in zip(_indices_of(plane, matrix, offset, shape), extents, strict=True):
        inside &= (index >= -0.5 - _EDGE) & (index <= extent - 0.5 + _EDGE)
    return inside


def _fill_outside(array: np.ndarray, value: float, matrix: np.ndarray, offset: np.ndarray, source: Geometry) -> None:
    for plane, result in enumerate(array):
        result[~_inside(plane, matrix, offset, array.shape, source.shape)] = value
