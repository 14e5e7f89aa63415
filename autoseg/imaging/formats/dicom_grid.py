"""From the positions of parallel slices to a regular grid, and between the two.

    stack_of   positions of slices, in any order -> Stack, sorted along their normal
    grid_of    Stack -> Grid: the geometry of the volume, and how slices get onto it

A series of evenly spaced slices, each exactly behind the other, is a volume as it is stored. Two kinds are resampled:
the slices of a tilted gantry, each of which is shifted in its plane, and slices whose distance changes, which are
interpolated linearly between neighbours onto the smallest usual distance. Everything else is refused, with the numbers.

Positions are world (x, y, z) in mm (LPS). Array index (slice, row, column) is (Z, Y, X).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.geometry import LARGEST_SHEAR, Geometry, Remark, geometry_from_steps
from autoseg.messages import counted

EVEN = 0.02  # of the distance between slices: how far a slice may lie from its place on a regular grid
SAME_PLACE_MM = 1e-3  # slices closer than this are at one position
OFF_LINE_MM = 0.1  # how far a slice of a tilted series may lie from the line through all
USUAL = 0.1  # of the distances of a series must be alike to count as its smallest
LARGEST_CHANGE = 3.0  # largest distance between slices over the smallest, up to which they are interpolated
SHOWN = 3  # gaps that a message lists
REMOVE_LOOSE = "move slices that do not belong to the series into another folder"


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one size, sorted along the normal of their planes."""

    positions: np.ndarray  # (n, 3), world (x, y, z) of the first pixel of each slice, mm
    axes: np.ndarray  # (3, 3), unit vectors: normal, along a column (rows grow), along a row (columns grow)
    shape: tuple[int, int, int]  # slices, rows, columns
    spacing: tuple[float, float]  # mm between rows, and between columns
    thickness: float  # mm; stands in for the distance where there is only one slice
    names: tuple[str, ...]  # of each slice, for messages

    @property
    def heights(self) -> np.ndarray:
        """(n,) places along the normal, mm, ascending."""
        return self.positions @ self.axes[0]


@dataclass(frozen=True)
class Grid:
    """A regular grid, and where each slice of a stack lies on it."""

    geometry: Geometry
    heights: np.ndarray  # (n,) place of each slice along Z, in slices of the grid
    offsets: np.ndarray  # (n, 2) place of its first pixel along Y and X, in pixels of the grid
    extent: tuple[int, int]  # rows and columns of a slice
    resampled: bool  # False: slice i of the stack is slice i of the grid

    def from_slices(self, slices: np.ndarray) -> np.ndarray:
        """Bring an image (n, rows, columns) float32 onto the grid: linear interpolation; beyond the slices its minimum.

        A point of the grid is interpolated between the two slices above and below it, each at the same place in the
        plane, which is right for a tilted gantry as well.
        """
        if not self.resampled:
            return slices
        outside = float(slices.min())
        whole = np.empty(self.geometry.shape, dtype=np.float32)
        for z, plane in enumerate(whole):
            below, share = self._between(z)
            first = self._shifted(slices[below], below, outside)
            if share:
                first = first * np.float32(1 - share) + self._shifted(
                    slices[below + 1], below + 1, outside
                ) * np.float32(share)
            plane[...] = first
        return whole

    def labels_from_slices(self, slices: np.ndarray) -> np.ndarray:
        """Bring labels (n, rows, columns) onto the grid: those of the nearest slice and pixel; 0 beyond the slices."""
        if not self.resampled:
            return slices
        whole = np.zeros(self.geometry.shape, dtype=slices.dtype)
        for z, plane in enumerate(whole):
            below, share = self._between(z)
            k = below + (share > 0.5)
            _copy_shifted(slices[k], plane, *(int(offset) for offset in np.rint(self.offsets[k])))
        return whole

    def labels_to_slices(self, labels: np.ndarray) -> np.ndarray:
        """Bring labels (Z, Y, X) of the grid back to the slices (n, rows, columns), by the nearest voxel."""
        if not self.resampled:
            return labels
        slices = np.zeros((len(self.heights), *self.extent), dtype=labels.dtype)
        for k, plane in enumerate(slices):
            z = min(int(np.rint(self.heights[k])), len(labels) - 1)
            _copy_shifted(labels[z], plane, *(-int(offset) for offset in np.rint(self.offsets[k])))
        return slices

    def _between(self, z: int) -> tuple[int, float]:
        """The slice at or below a height of the grid, and how far the next one counts."""
        below = int(np.searchsorted(self.heights, z + 1e-6, side="right")) - 1
        below = min(max(below, 0), len(self.heights) - 1)
        if below == len(self.heights) - 1:
            return below, 0.0
        share = (z - self.heights[below]) / (self.heights[below + 1] - self.heights[below])
        return below, 0.0 if share < 1e-3 else float(share)

    def _shifted(self, plane: np.ndarray, k: int, outside: float) -> np.ndarray:
        """A slice at its place on the canvas, interpolated between pixels."""
        for axis, offset in enumerate(self.offsets[k]):
            plane = _moved(plane, float(offset), axis, self.geometry.shape[1 + axis], outside)
        return plane


def stack_of(
    positions: Sequence[np.ndarray],
    axes: np.ndarray,
    extent: tuple[int, int],
    spacing: tuple[float, float],
    thickness: float,
    names: Sequence[str],
) -> tuple[Stack, np.ndarray]:
    """Sort slices along their normal.

    Args:
        positions: world (x, y, z) of the first pixel of each slice, mm.
        axes: (2, 3) unit vectors: along a column (in which rows grow), along a row.
        extent: rows and columns.
        spacing: mm between rows and between columns.
        thickness: mm, of a slice.
        names: of the slices, for messages.

    Returns:
        The stack, and the order: order[i] is the index of its slice i among the arguments.
    """
    along_column, along_row = axes
    normal = np.cross(along_row, along_column)
    normal = normal / np.linalg.norm(normal)
    places = np.array(positions, dtype=np.float64)
    order = np.argsort(places @ normal, kind="stable")
    stack = Stack(
        places[order], np.array([normal, along_column, along_row]), (len(places), *extent), spacing, thickness,
        tuple(names[i] for i in order),
    )  # fmt: skip
    return stack, order


def grid_of(stack: Stack, file: str, numbers: Sequence[int] | None = None) -> Grid:
    """The regular grid of a stack of slices at different heights.

    Args:
        file: the folder, for messages.
        numbers: InstanceNumber of each slice, which show whether a gap is a missing slice; None: not known.

    Raises:
        DataError: slices are missing, or lie at places that no grid and no interpolation explains.
    """
    remarks: list[Remark] = []
    heights = stack.heights - stack.heights[0]
    steps = np.diff(heights)
    if not len(steps):
        distance, places = stack.thickness, np.zeros(1)
    else:
        distance, places = _distance(stack, steps, file, numbers, remarks)
    even = np.array_equal(places, np.arange(len(places)))
    drift, tilt = _tilt(stack, heights, file)
    if tilt is not None:
        remarks.append(tilt)
    count = int(np.floor(places[-1] + 1e-3)) + 1
    first, extent, offsets = _canvas(stack, drift, tilt is not None)
    grid_steps = stack.axes * np.array([distance, *stack.spacing])[:, None]
    step = (stack.positions[-1] - stack.positions[0]) / max(places[-1], 1.0)
    if even and tilt is None and len(steps):
        grid_steps[0] = step  # tiny shear is accepted there
    geometry = geometry_from_steps((count, *extent), grid_steps, first, flat=False, file=file)
    resampled = tilt is not None or not even
    return Grid(replace(geometry, remarks=tuple(remarks)), places, offsets, stack.shape[1:], resampled)


def _distance(
    stack: Stack, steps: np.ndarray, file: str, numbers: Sequence[int] | None, remarks: list[Remark]
) -> tuple[float, np.ndarray]:
    """Distance of the grid's slices in mm, and the place of each slice in that unit (whole numbers where even)."""
    heights = np.concatenate([[0.0], np.cumsum(steps)])
    mean = float(heights[-1] / len(steps))
    if np.abs(heights / mean - np.arange(len(heights))).max() <= EVEN:
        return mean, np.arange(len(heights), dtype=np.float64)
    finest = _finest(steps)
    places = heights / finest
    _refuse_missing(stack, steps, finest, file, numbers)
    widest = float(steps.max())
    found = f"the distance between slices changes: {_distances(steps)}"
    if widest > LARGEST_CHANGE * finest:
        raise DataError(
            f"{file}: {found}; more than a factor of {LARGEST_CHANGE:g} is not interpolated",
            remedy=f"export the series again, complete, with one slice distance; or {REMOVE_LOOSE}",
        )
    remarks.append(
        Remark(
            "slice distance",
            f"{found}; interpolated linearly to {finest:.4g} mm",
            "nothing, if the scan was made so; the segmentation is on the interpolated grid",
        )
    )
    return finest, places


def _finest(steps: np.ndarray) -> float:
    """The smallest distance between slices that is usual: where two blocks of a scan meet, a single one is smaller."""
    for step in np.sort(steps):
        alike = steps[np.abs(steps - step) <= 2 * EVEN * step]
        if len(alike) >= max(2, USUAL * len(steps)):
            return float(np.median(alike))
    return float(steps.min())


def _refuse_missing(stack: Stack, steps: np.ndarray, finest: float, file: str, numbers: Sequence[int] | None) -> None:
    """Refuse gaps that are multiples of the distance and stand alone, or over which the slices' numbers jump as well.

    A distance that changes for good, or for at least two slices in a row, is the protocol of the scan instead.
    """
    ratio = steps / finest
    whole = (np.rint(ratio) >= 2) & (np.abs(ratio - np.rint(ratio)) <= 5 * EVEN)
    if not whole.any() or not ((np.abs(ratio - 1) <= 5 * EVEN) | whole).all():
        return
    if numbers is not None and len(set(numbers)) == len(numbers):
        jumps = np.abs(np.diff(np.asarray(numbers, dtype=np.int64)))
        missing = whole & (jumps == np.rint(ratio))
        usual = not missing.any() and bool((jumps == 1).all())
        if usual:
            return  # numbered without a gap: nothing was lost
    else:
        missing = np.zeros(len(steps), dtype=bool)
    alone = [not (whole[max(i - 1, 0) : i].any() or whole[i + 1 : i + 2].any()) for i in range(len(steps))]
    missing |= whole & np.array(alone)
    if not missing.any():
        return
    count = int((np.rint(ratio[missing]) - 1).sum())
    gaps = [f"{steps[i]:.4g} mm between {stack.names[i]} and {stack.names[i + 1]}" for i in np.flatnonzero(missing)]
    shown = ", ".join(gaps[:SHOWN]) + (f", and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else "")
    raise DataError(
        f"{file}: {counted(count, 'slice')} missing of {stack.shape[0] + count}: the distance between slices is "
        f"{finest:.4g} mm, but {shown}",
        remedy="copy or export the series again; part of the anatomy is not in these files",
    )


def _tilt(stack: Stack, heights: np.ndarray, file: str) -> tuple[np.ndarray, Remark | None]:
    """Where slices lie in their planes relative to the first, (n, 2) mm along Y and X; and a remark about a tilt.

    Raises:
        DataError: the slices do not lie along one line.
    """
    along = (stack.positions - stack.positions[0]) @ stack.axes[1:].T
    if len(heights) < 2:
        return along, None
    slope = heights @ along / (heights @ heights)  # mm in the plane per mm along the normal
    off = float(np.abs(along - heights[:, None] * slope).max())
    if off > OFF_LINE_MM:
        k = int(np.abs(along - heights[:, None] * slope).max(axis=1).argmax())
        raise DataError(
            f"{file}: the slices do not lie along one line: {stack.names[k]} is up to {off:.3g} mm beside it",
            remedy=REMOVE_LOOSE,
        )
    shear = float(np.linalg.norm(slope))
    if shear <= LARGEST_SHEAR:
        return along, None
    angle = float(np.degrees(np.arctan(shear)))
    what = (
        f"the gantry is tilted by {angle:.3g} degrees: the slices are shifted by up to "
        f"{float(np.abs(along).max()):.4g} mm in their planes; resampled onto a rectangular grid"
    )
    remedy = "nothing: the segmentation is on that grid, parallel to the slices"
    return heights[:, None] * slope, Remark("tilt", what, remedy)


def _canvas(stack: Stack, drift: np.ndarray, tilted: bool) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Position of the grid's first voxel, its rows and columns, and where each slice starts on it, in pixels."""
    rows, columns = stack.shape[1:]
    if not tilted:
        return stack.positions[0], (rows, columns), np.zeros((len(drift), 2))
    offsets = drift / np.array(stack.spacing)
    low = np.floor(offsets.min(axis=0) + 1e-6)
    offsets = offsets - low
    beyond = np.ceil(offsets.max(axis=0) - 1e-6)
    first = stack.positions[0] + (low * np.array(stack.spacing)) @ stack.axes[1:]
    return first, (rows + int(beyond[0]), columns + int(beyond[1])), offsets


def _distances(steps: np.ndarray) -> str:
    """Distances between neighbouring slices, in runs: "11 of 4.2 mm, then 16 of 7.4 mm"."""
    runs: list[list[float]] = []
    for step in steps.tolist():
        if runs and abs(step - runs[-1][0]) <= 5 * EVEN * runs[-1][0]:
            runs[-1][1] += 1
        else:
            runs.append([step, 1])
    if len(runs) > SHOWN:
        return f"{steps.min():.4g} to {steps.max():.4g} mm"
    return ", then ".join(f"{number:.0f} of {step:.4g} mm" for step, number in runs)


def _moved(plane: np.ndarray, offset: float, axis: int, length: int, outside: float) -> np.ndarray:
    """A plane shifted by `offset` pixels along an axis onto `length` pixels, linear between pixels."""
    if axis == 1:
        return _moved(plane.T, offset, 0, length, outside).T
    result = np.full((length, plane.shape[1]), np.float32(outside), dtype=np.float32)
    whole = int(np.floor(offset))
    share = np.float32(offset - whole)
    if share < 1e-4:
        result[whole : whole + len(plane)] = plane
        return result
    inner = plane[:-1] * share + plane[1:] * (1 - share)  # pixel c of the canvas is pixel c - offset of the slice
    result[whole + 1 : whole + len(plane)] = inner
    if share < 0.5:  # half a pixel beyond the centre of the last one, as far as it covers
        result[whole] = plane[0]
    if share >= 0.5:
        result[whole + len(plane)] = plane[-1]
    return result


def _copy_shifted(source: np.ndarray, target: np.ndarray, rows: int, columns: int) -> None:
    """Copy a plane into another one, moved by whole pixels; what falls outside is cut off."""
    parts = []
    for move, n, m in ((rows, source.shape[0], target.shape[0]), (columns, source.shape[1], target.shape[1])):
        start, stop = max(0, move), min(m, n + move)
        parts.append((slice(start, stop), slice(start - move, stop - move)))
    (to_rows, of_rows), (to_columns, of_columns) = parts
    target[to_rows, to_columns] = source[of_rows, of_columns]
