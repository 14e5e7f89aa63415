"""Where voxels lie in space.

Arrays are indexed (C, Z, Y, X); every spatial tuple follows that order. World coordinates are ITK's: x to the Left, y
to the Posterior, z to the Superior (LPS), in millimetres. `Geometry.direction` has one row per *array axis* (Z, Y, X):
the unit vector, in world (x, y, z) coordinates, along which that axis' index grows.

*Stored order* is the order of the axes in the file. *Canonical order* is the one, of the 48 ways to permute and flip
the axes, whose Z, Y and X grow most nearly towards Superior, Posterior and Left: networks see every scan the same way
up, and no voxel is interpolated to get there.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoseg.errors import DataError

Axes3 = tuple[int, int, int]
Vector3 = tuple[float, float, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # half-open ((z0, z1), (y0, y1), (x0, x1))

LARGEST_SHEAR = 1e-3  # cosine of the angle between two axes up to which it counts as rounding of the header
NO_PLACE = "no place"  # kind of the remark about a header without a position in space
_PERMUTATIONS: tuple[Axes3, ...] = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Remark:
    """What is odd about a file that is read nevertheless: the values in it, and the one that is used."""

    kind: str  # remarks of one kind are counted together
    what: str
    remedy: str


@dataclass(frozen=True)
class Geometry:
    """Grid of an image: voxel (z, y, x) lies at origin + z*sz*direction[0] + y*sy*direction[1] + x*sx*direction[2].

    Two geometries are equal if their grids are; how a file states its grid does not matter.
    """

    shape: Axes3
    spacing: Vector3  # mm
    origin: Vector3 = (0.0, 0.0, 0.0)  # world (x, y, z) of voxel (0, 0, 0), mm
    direction: tuple[Vector3, Vector3, Vector3] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    flat: bool = False  # a 2-D image: shape[0] is 1 and spacing[0] means nothing
    placed: bool = field(default=True, compare=False)  # False: origin and direction are defaults, the file has none
    sized: bool = field(default=True, compare=False)  # False: the spacing of 1 mm is a default, the file has none
    stated_origin: str = field(default="", compare=False, repr=False)  # as written in the file, for messages
    remarks: tuple[Remark, ...] = field(default=(), compare=False, repr=False)  # contradictions in the header


@dataclass(frozen=True)
class Volume:
    """An image in space."""

    array: np.ndarray  # (C, Z, Y, X) float32, or (Z, Y, X) integer for a label map
    geometry: Geometry


def axes3(shape: Sequence[int]) -> Axes3:
    """An array's shape as one number for each axis (Z, Y, X); ValueError where it has not three."""
    z, y, x = shape
    return int(z), int(y), int(x)


def geometry_from_steps(shape: Axes3, steps: np.ndarray, origin: np.ndarray, *, flat: bool, file: str) -> Geometry:
    """Build a geometry from the step vectors of a file's header.

    A tiny shear (cosine between two axes <= 1e-3, rounding of single-precision headers) is accepted: the direction is
    the nearest orthonormal one (polar decomposition). An axis of one voxel whose step is zero gets 1 mm along the
    normal.

    Args:
        shape: extent (Z, Y, X) in voxels.
        steps: (3, 3), one row per array axis: the vector in mm, in world (x, y, z), from one voxel to the next.
        origin: (3,), world (x, y, z) of voxel (0, 0, 0), mm.
        flat: the image is 2-D; shape[0] is 1 and its spacing becomes 1.
        file: name for messages.

    Raises:
        DataError: an empty axis, a spacing that is zero or not finite, or axes that are not perpendicular.
    """
    if min(shape) < 1:
        raise DataError(f"{file}: the image is empty, its shape (z, y, x) is {shape}", remedy="export the file again")
    steps, origin = np.array(steps, dtype=np.float64), np.asarray(origin, dtype=np.float64)
    if not (np.isfinite(steps).all() and np.isfinite(origin).all()):
        raise DataError(
            f"{file}: the header's spacing, origin or axes are not finite numbers (origin {origin.tolist()})",
            remedy="write a valid affine into the header, or convert the file again from its source",
        )
    for axis in range(3):
        if shape[axis] == 1 and not steps[axis].any():
            normal = np.cross(steps[(axis + 2) % 3], steps[(axis + 1) % 3])  # z = x cross y, and so on round
            steps[axis] = normal / (np.linalg.norm(normal) or 1.0)
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(steps, axis=1)
    if spacing.min() <= 0 or not np.isfinite(spacing).all():
        raise DataError(
            f"{file}: voxels must have a size along every axis, but the spacing (z, y, x) is {spacing.tolist()} mm",
            remedy="write the correct spacing into the header, or convert the file again from its source",
        )
    direction = _orthonormal(steps / spacing[:, None], file)
    z, y, x = spacing.tolist()
    rows = [(float(row[0]), float(row[1]), float(row[2])) for row in direction]
    return Geometry(
        shape=shape,
        spacing=(1.0 if flat else z, y, x),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=(rows[0], rows[1], rows[2]),
        flat=flat,
    )


def orientation_of(geometry: Geometry) -> tuple[Axes3, Axes3]:
    """Find the permutation and flips that bring a stored array to canonical order.

    The permutation is the one of the six whose axes are nearest to the world axes taken together (largest sum of
    absolute cosines), so it is a permutation for oblique scans too; among equals (45 degrees) the first in
    lexical order, which is the stored one if it is among them.

    Returns:
        (permutation, flips): permutation[i] is the stored array axis that becomes canonical axis i (Z, Y, X growing
        towards S, P, L); flips[i] is 1 where canonical axis i must be reversed afterwards. Identity for flat images.
    """
    if geometry.flat:
        return (0, 1, 2), (0, 0, 0)
    cosines = np.array(geometry.direction)[:, ::-1]  # [stored axis, world axis z, y, x]
    best, best_score = _PERMUTATIONS[0], -np.inf
    for permutation in _PERMUTATIONS:
        score = float(np.abs(cosines[list(permutation), [0, 1, 2]]).sum())
        if score > best_score + 1e-6:  # rounding must not decide: image and label could get different orders
            best, best_score = permutation, score
    flips = tuple(int(cosines[best[i], i] < 0) for i in range(3))
    return best, (flips[0], flips[1], flips[2])


def reorient(array: np.ndarray, permutation: Axes3, flips: Axes3) -> np.ndarray:
    """Permute, then flip, the last three axes; leading axes stay. Returns a view."""
    lead = array.ndim - 3
    return np.flip(array.transpose(*range(lead), *(lead + axis for axis in permutation)), _flipped(flips))


def undo_reorient(array: np.ndarray, permutation: Axes3, flips: Axes3) -> np.ndarray:
    """Bring an array from canonical back to stored order: the exact inverse of `reorient`. Returns a view."""
    lead = array.ndim - 3
    inverse = np.argsort(permutation)
    return np.flip(array, _flipped(flips)).transpose(*range(lead), *(lead + int(axis) for axis in inverse))


def to_canonical(volume: Volume) -> Volume:
    """Bring array and geometry to canonical order; every voxel keeps its value and its place in the world."""
    permutation, flips = orientation_of(volume.geometry)
    return Volume(reorient(volume.array, permutation, flips), reorient_geometry(volume.geometry, permutation, flips))


def reorient_geometry(geometry: Geometry, permutation: Axes3, flips: Axes3) -> Geometry:
    """Return the grid of an array after `reorient`: every voxel keeps its place in the world."""
    corner = [0, 0, 0]  # the stored index that becomes canonical voxel (0, 0, 0)
    for axis, flip in zip(permutation, flips, strict=True):
        corner[axis] = geometry.shape[axis] - 1 if flip else 0
    rows: list[Vector3] = []
    for axis, flip in zip(permutation, flips, strict=True):
        x, y, z = geometry.direction[axis]
        rows.append((0.0 - x, 0.0 - y, 0.0 - z) if flip else (x, y, z))
    z, y, x = permutation
    origin = _world(geometry, tuple(corner))
    return replace(
        geometry,
        shape=(geometry.shape[z], geometry.shape[y], geometry.shape[x]),
        spacing=(geometry.spacing[z], geometry.spacing[y], geometry.spacing[x]),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=(rows[0], rows[1], rows[2]),
        stated_origin="",
    )


def orientation_code(geometry: Geometry) -> str:
    """Name where the (x, y, z) indices grow, as three letters for messages: "LPS" is canonical, "RAS" is NIfTI's."""
    permutation, flips = orientation_of(geometry)
    letters = {}
    for (away, towards), axis, flip in zip((("I", "S"), ("A", "P"), ("R", "L")), permutation, flips, strict=True):
        letters[axis] = away if flip else towards
    return letters[2] + letters[1] + letters[0]


def corner_distance_voxels(a: Geometry, b: Geometry) -> float:
    """Measure how far two grids of one shape lie apart: the largest distance of equal corners in voxels.

    Returns:
        Distance in mm over the smallest spacing of the two (of the plane, for flat images); inf if the shapes differ.
    """
    if a.shape != b.shape or a.flat != b.flat:
        return float("inf")
    farthest = max(
        float(np.linalg.norm(_world(a, corner) - _world(b, corner)))
        for corner in itertools.product(*((0, extent - 1) for extent in a.shape))
    )
    first = 1 if a.flat else 0
    return farthest / min(*a.spacing[first:], *b.spacing[first:])


def _flipped(flips: Axes3) -> tuple[int, ...]:
    return tuple(i - 3 for i in range(3) if flips[i])


def _world(geometry: Geometry, index: tuple[float, ...]) -> np.ndarray:
    """World (x, y, z) of a voxel index (z, y, x), mm."""
    ways = np.array(index) * np.array(geometry.spacing)
    return np.array(geometry.origin) + ways @ np.array(geometry.direction)


def _orthonormal(axes: np.ndarray, file: str) -> np.ndarray:
    """Return the orthonormal rows nearest to three unit vectors, or refuse vectors that are far from perpendicular."""
    cosines = axes @ axes.T - np.eye(3)
    shear = float(np.abs(cosines).max())
    if shear > LARGEST_SHEAR:
        raise DataError(
            f"{file}: the image is sheared: its axes are not perpendicular (cosine {shear:.4g} between two of them)",
            remedy="resample the image to a rectangular grid, or correct the affine in the header if it is wrong",
        )
    if shear < 1e-12:
        return axes + 0.0  # exact already; also turns -0.0 into 0.0
    left, _, right = np.linalg.svd(axes)
    return left @ right
