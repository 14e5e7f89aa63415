"""Whether two files of one case lie on one grid, and how to bring one onto the other where that takes no interpolation.

    compare_grids   two geometries -> GridMatch: the kind of their relation, and what differs in words

Seven relations are distinguished, because each requires another step. A file without a position in space (NIfTI with
both form codes 0, a picture) is compared by shape and voxel size alone: its origin is a default of the reader. Arrays
that are stored in another order of axes, at the same position, are reordered exactly. Only files elsewhere are refused,
and the remedy must never move or mirror a correct file.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autoseg.imaging.geometry import (
    Axes3,
    Geometry,
    Remark,
    Vector3,
    corner_distance_voxels,
    orientation_code,
    reorient,
    reorient_geometry,
)  # fmt: skip

Kind = Literal["same", "unplaced", "near", "reordered", "elsewhere", "size", "shape"]

SPACING_TOLERANCE = 1e-3  # relative: rounding in a header
CORNER_TOLERANCE = 1e-2  # voxels: the same
NEAR = 0.1  # largest distance of corners, in voxels, of files that are read as one grid
_PERMUTATIONS: tuple[Axes3, ...] = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_FLIPS: tuple[Axes3, ...] = tuple(sorted(itertools.product((0, 1), repeat=3), key=sum))  # type: ignore[arg-type]
_LOOK = (
    "open both in a viewer that reads headers: if they overlap, resample this one onto that grid; if "
    "only their voxels correspond, copy the other header"
)


@dataclass(frozen=True)
class GridMatch:
    """How one grid relates to another, its reference.

    same        equal up to rounding in the headers
    unplaced    one of them has no position; shape and voxel size are equal
    near        corners less than a tenth of a voxel apart: read as one grid
    reordered   the same position, with axes permuted or reversed: `apply` brings an array to the order of the reference
    elsewhere   another position, or another direction
    size        another voxel size
    shape       another number of voxels, in any order of the axes
    """

    kind: Kind
    permutation: Axes3 = (0, 1, 2)
    flips: Axes3 = (0, 0, 0)
    distance_voxels: float = 0.0  # of equal corners, after reordering; inf where shapes differ
    differences: tuple[str, ...] = ()  # in words; empty for `same`
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Whether voxels correspond one to one, after `apply`."""
        return self.kind in ("same", "unplaced", "near", "reordered")

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (..., Z, Y, X) of the grid to the axis order of the reference. Returns a view."""
        return reorient(array, self.permutation, self.flips)

    def remark(self) -> Remark | None:
        """What is worth a warning although the files are used; None for `same`."""
        return None if self.kind == "same" else Remark(self.kind, "; ".join(self.differences), self.remedy)


def compare_grids(grid: Geometry, reference: Geometry, name: str) -> GridMatch:
    """Compare the grid of a file with that of another of its case.

    Spacing may differ by 1e-3 of itself and corners by 1e-2 voxel, which is rounding in headers; corners are compared
    in space, not as numbers in a header.

    Args:
        name: of the reference's file, for the words.
    """
    if grid.flat != reference.flat or not (grid.placed and reference.placed):
        return _by_shape_and_size(grid, reference, name)
    distance = float("inf")
    if grid.shape == reference.shape:
        distance = _distance(grid, reference)
        if distance <= NEAR and _size_differs(grid, reference) < NEAR:
            if distance <= CORNER_TOLERANCE and _size_differs(grid, reference) <= SPACING_TOLERANCE:
                return GridMatch("same", distance_voxels=distance)
            words = (
                f"its corners are up to {distance:.2g} voxels from those of {name}: {_numbers(grid, reference, name)}"
            )
            return GridMatch(
                "near", distance_voxels=distance, differences=(words,),
                remedy="nothing: differences below a tenth of a voxel are ignored",
            )  # fmt: skip
    if (found := _reordering(grid, reference)) is not None:
        return found
    if grid.shape != reference.shape:
        return _other_shape(grid, reference, name)
    return _other_place(grid, reference, name, distance)


def in_mm(numbers: Vector3) -> str:
    """Three numbers for a message."""
    return "(" + ", ".join(f"{number + 0.0:.6g}" for number in numbers) + ")"  # no -0


def _by_shape_and_size(grid: Geometry, reference: Geometry, name: str) -> GridMatch:
    if grid.shape != reference.shape:
        return _other_shape(grid, reference, name)
    if grid.sized and reference.sized and (differs := _spacing_in_words(grid, reference, name)):
        return _other_size(differs)
    if grid.flat or reference.flat or grid.placed == reference.placed:
        return GridMatch("same")
    which = "its own header" if not grid.placed else f"the header of {name}"
    words = f"{which} has no position in space, but its shape and voxel size match: read voxel by voxel over {name}"
    remedy = "nothing, if one was drawn on the other; check one pair in a viewer"
    return GridMatch("unplaced", differences=(words,), remedy=remedy)


def _reordering(grid: Geometry, reference: Geometry) -> GridMatch | None:
    """The permutation and flips that put the grid onto the reference, or None."""
    best: GridMatch | None = None
    for permutation, flips in itertools.product(_PERMUTATIONS, _FLIPS):
        if any(grid.shape[axis] != extent for axis, extent in zip(permutation, reference.shape, strict=True)):
            continue
        if grid.flat and (permutation[0], flips[0]) != (0, 0):
            continue
        turned = reorient_geometry(grid, permutation, flips)
        if _size_differs(turned, reference) >= NEAR:
            continue
        distance = _distance(turned, reference)
        if distance <= NEAR and (best is None or distance < best.distance_voxels - 1e-6):
            best = GridMatch("reordered", permutation, flips, distance)
    if best is None:
        return None
    codes = f"{orientation_code(grid)} here, {orientation_code(reference)} in the image"
    apart = f", {best.distance_voxels:.2g} voxels apart" if best.distance_voxels > CORNER_TOLERANCE else ""
    words = f"its axes are stored in another order than those of the image, at the same position ({codes}{apart})"
    remedy = "nothing: it is reordered exactly when read; do not change its header, which would mirror it"
    return replace(best, differences=(words,), remedy=remedy)


def _other_shape(grid: Geometry, reference: Geometry, name: str) -> GridMatch:
    words = f"shape (z, y, x) {grid.shape} differs from {reference.shape} of {name}"
    remedy = "resample it onto that grid (a label map by nearest neighbour)"
    if sorted(grid.shape) == sorted(reference.shape):
        words += ": the same numbers in another order, and their headers give different positions"
        remedy = "export it again from the program that drew it, with the grid of the image"
    return GridMatch("shape", distance_voxels=float("inf"), differences=(words,), remedy=remedy)


def _other_size(words: str) -> GridMatch:
    remedy = "find out which of the two is correct, and copy it into the header of the other file; do not resample"
    return GridMatch("size", distance_voxels=float("inf"), differences=(words,), remedy=remedy)


def _other_place(grid: Geometry, reference: Geometry, name: str, distance: float) -> GridMatch:
    if (factor := _one_factor(grid, reference)) is not None:
        words = f"{_spacing_in_words(grid, reference, name)}, and the origin by the same factor of {factor:.4g}"
        return _other_size(f"{words}: another unit")
    if _distance(_mirrored_x_y(grid), reference) <= NEAR:
        words = f"{_origins(grid, reference, name)}: the two agree when x and y change sign: RAS was written where "
        remedy = "copy the header of the other file; the voxels need no change"
        return GridMatch("elsewhere", distance_voxels=distance, differences=(f"{words}LPS is read",), remedy=remedy)
    found = []
    if words := _spacing_in_words(grid, reference, name):
        found.append(words)
    moved = float(np.linalg.norm(np.subtract(grid.origin, reference.origin)))
    if moved > CORNER_TOLERANCE * min(reference.spacing):
        found.append(f"{_origins(grid, reference, name)}: {moved:.3g} mm apart")
    resized = replace(grid, spacing=reference.spacing, origin=reference.origin)
    if corner_distance_voxels(resized, reference) > CORNER_TOLERANCE:
        found.append(f"direction of the axes differs from that of {name}")
    if words and len(found) == 1:
        return _other_size(words)
    if not found:
        found.append(f"its corners are {distance:.3g} voxels from those of {name}: {_numbers(grid, reference, name)}")
    return GridMatch("elsewhere", distance_voxels=distance, differences=tuple(found), remedy=_LOOK)


def _one_factor(grid: Geometry, reference: Geometry) -> float | None:
    """The factor by which spacing and origin of the grid must grow to be those of the reference, if there is one."""
    factor = reference.spacing[2] / grid.spacing[2]
    z, y, x = (s * factor for s in grid.spacing)
    a, b, c = (o * factor for o in grid.origin)
    scaled = replace(grid, spacing=(z, y, x), origin=(a, b, c))
    is_unit = _size_differs(grid, reference) > NEAR and _size_differs(scaled, reference) <= SPACING_TOLERANCE
    return factor if is_unit and _distance(scaled, reference) <= NEAR else None


def _mirrored_x_y(grid: Geometry) -> Geometry:
    x, y, z = grid.origin
    rows = [(-row[0], -row[1], row[2]) for row in grid.direction]
    return replace(grid, origin=(-x, -y, z), direction=(rows[0], rows[1], rows[2]))


def _distance(grid: Geometry, reference: Geometry) -> float:
    """Distance of corners in voxels; a spacing that differs by rounding counts as equal, however many voxels."""
    if _size_differs(grid, reference) <= SPACING_TOLERANCE:
        grid = replace(grid, spacing=reference.spacing)
    return corner_distance_voxels(grid, reference)


def _size_differs(grid: Geometry, reference: Geometry) -> float:
    """Largest relative difference of the two spacings."""
    first = 1 if grid.flat or reference.flat else 0
    pairs = [*zip(grid.spacing, reference.spacing, strict=True)][first:]
    return max(abs(a - b) / b for a, b in pairs)


def _spacing_in_words(grid: Geometry, reference: Geometry, name: str) -> str:
    if _size_differs(grid, reference) <= SPACING_TOLERANCE:
        return ""
    return f"spacing {in_mm(grid.spacing)} differs from {in_mm(reference.spacing)} mm of {name}"


def _origins(grid: Geometry, reference: Geometry, name: str) -> str:
    """Both origins as written in the files, which may follow two conventions."""
    if grid.stated_origin and reference.stated_origin:
        return f"origin {grid.stated_origin} differs from {reference.stated_origin} of {name}"
    return f"origin (x, y, z) {in_mm(grid.origin)} differs from {in_mm(reference.origin)} mm (LPS) of {name}"


def _numbers(grid: Geometry, reference: Geometry, name: str) -> str:
    """What differs in the headers: spacing, or origin."""
    if words := _spacing_in_words(grid, reference, name):
        return words
    return _origins(grid, reference, name)
