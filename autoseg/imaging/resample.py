"""Arrays from one spacing to another: images, label maps and probabilities.

Voxels are cells: index i of n covers the i-th n-th of the extent, so the outer *edges* of the first and the last voxel
stay where they are (align_corners=False, the convention of scikit-image's `resize`). Beyond the edge the outermost
voxel continues.

Every interpolation here is linear in the image and separable, so it is one small matrix per axis (low-pass, spline
prefilter and interpolation in one), applied by matrix products. The matrices are banded; blocks of rows are multiplied
with the columns they touch only. In float32 this agrees with `skimage.transform.resize` to 1e-6 of the image's range
and takes a small fraction of its time. An axis that is much coarser than the others has its own interpolation order,
which is all that resampling "slice by slice" means here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from autoseg.errors import DataError, UsageError
from autoseg.imaging.geometry import Axes3, Vector3
from autoseg.imaging.low_pass import NO_LOW_PASS, LowPass

LOSES_TOO_MUCH = 8  # an axis of this many voxels must keep at least one
GROWS_TOO_MUCH = 1000  # voxels for each voxel: ten times finer along three axes
LARGE = 2**28  # voxels up to which any growth is allowed
_ROWS = 16  # rows of an operator multiplied at once: long enough for BLAS, short enough to profit from the band
_PAD = 16  # voxels of continued edge before the spline prefilter; its memory of the far end is 0.27 ** 16 = 7e-10
_NEGLIGIBLE = 1e-8  # weights below are dropped, to keep the band of a cubic operator short
_TIE = 1e-5  # class scores closer than this are equal: above float32 rounding, far below any real difference
_SLAB_VOXELS = 1 << 23  # output voxels of a label map decided at once, which bounds memory


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float]) -> Axes3:
    """Extent in voxels after resampling: round(shape * spacing / target_spacing), at least 1 (nnU-Net v2's rule).

    Spacings in mm (Z, Y, X).
    """
    z, y, x = (max(1, round(s / t * n)) for s, t, n in zip(spacing, target_spacing, shape, strict=True))
    return z, y, x


def require_possible(
    shape: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float], name: str
) -> Axes3:
    """Extent in voxels after resampling (see `resampled_shape`), refused where it is absurd.

    That is, where an axis of 8 voxels or more, or every axis, would keep less than half a voxel; or where the result
    has more than 1000 times as many voxels, and more than 2**28 (1 GiB per channel): a spacing is wrong, most likely
    its unit.

    Args:
        name: of the image's file, for messages.

    Raises:
        DataError: as above.
    """
    new = resampled_shape(shape, spacing, target_spacing)
    exact = [n * s / t for n, s, t in zip(shape, spacing, target_spacing, strict=True)]
    lost = [axis for axis in range(3) if shape[axis] >= LOSES_TOO_MUCH and exact[axis] < 0.5]
    grown = math.prod(new) > GROWS_TOO_MUCH * math.prod(shape) and math.prod(new) > LARGE
    if not (vanished := bool(lost) or max(exact) < 0.5) and not grown:
        return new
    what = f"{_by(shape)} voxels of {_by(spacing)} mm (z, y, x)"
    if vanished:
        what += f" keep less than one voxel along an axis at the plan's {_by(target_spacing)} mm"
    else:
        what += (
            f" become {_by(new)} at the plan's {_by(target_spacing)} mm: {4 * math.prod(new) / 1e9:.3g} GB per channel"
        )
    raise DataError(
        f"{name}: {what}",
        remedy="correct the voxel size in its header: it may be in another unit (metres, micrometres, inches)",
    )


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)


def separate_axis(spacing: Sequence[float], target_spacing: Sequence[float], threshold: float) -> int | None:
    """Find the axis so coarse that it is resampled on its own, or None (nnU-Net v2's rule).

    If max/min of `spacing` exceeds `threshold`, its coarsest axis; otherwise the same for `target_spacing`. Where two
    axes share that maximum, none. Spacings in mm (Z, Y, X).
    """
    for candidate in (spacing, target_spacing):
        if max(candidate) / min(candidate) > threshold:
            coarsest = [axis for axis, value in enumerate(candidate) if value == max(candidate)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    array: np.ndarray,
    spacing: Vector3,
    target_spacing: Vector3,
    shape: Axes3,
    *,
    order: int,
    coarse_axis_order: int,
    anisotropy_threshold: float,
    low_pass: LowPass,
) -> np.ndarray:
    """Resample an image (C, Z, Y, X) to `shape`; float32. An image that has that shape already is returned unchanged.

    Splines of `order` (0 nearest, 1 linear, 3 cubic), `coarse_axis_order` along a separate axis. An interpolated axis
    that shrinks by more than `low_pass.above` goes through its filter. Results of cubic splines and of filters that
    overshoot are clipped to the range of their channel, so that no overshoot invents intensities; where an axis is
    separate and its slices are copied, to the range of the slice (nnU-Net v2's rule). Works on one channel at a time.
    Spacings in mm (Z, Y, X).

    Raises:
        UsageError: an order that is not 0, 1 or 3.
    """
    if array.shape[1:] == tuple(shape):
        return array
    orders = _axis_orders(spacing, target_spacing, order, coarse_axis_order, anisotropy_threshold)
    operators = _operators(array.shape[1:], shape, orders, low_pass)
    resampled = np.empty((len(array), *shape), dtype=np.float32)
    for channel, result in zip(array, resampled, strict=True):
        result[...] = _apply_all(operators, channel)
        if max(orders) > 1 or low_pass.overshoots:
            np.clip(result, *_range_around(channel, operators, orders), out=result)
    return resampled


def _range_around(
    channel: np.ndarray, operators: "Sequence[_Operator]", orders: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value that a resampled channel may take: of the channel, or of the slice that was resampled."""
    coarse = [axis for axis, order in enumerate(orders) if order == 0]
    if len(coarse) != 1:
        return channel.min(), channel.max()
    others = tuple(axis for axis in range(3) if axis not in coarse)
    rows = operators[coarse[0]].first  # of each resampled slice, the one it copies
    low, high = (end(channel, axis=others, keepdims=True).take(rows, axis=coarse[0]) for end in (np.min, np.max))
    return low, high


def resample_probabilities(
    probabilities: np.ndarray,
    spacing: Vector3,
    target_spacing: Vector3,
    shape: Axes3,
    *,
    anisotropy_threshold: float,
) -> np.ndarray:
    """Resample probabilities (or logits) (K, Z, Y, X) to `shape` linearly, nearest along a separate axis; float32.

    Weights are convex: values stay in their range and sums over K are kept. Spacings in mm (Z, Y, X).
    """
    return resample_image(
        probabilities,
        spacing,
        target_spacing,
        shape,
        order=1,
        coarse_axis_order=0,
        anisotropy_threshold=anisotropy_threshold,
        low_pass=NO_LOW_PASS,
    )


def resample_labels(
    indices: np.ndarray,
    spacing: Vector3,
    target_spacing: Vector3,
    shape: Axes3,
    *,
    coarse_axis_order: int,
    anisotropy_threshold: float,
) -> np.ndarray:
    """Resample class indices (Z, Y, X) to `shape`; same dtype, every value (OUTSIDE and ignore too) is a class.

    Each class present is interpolated linearly as a mask of its own (`coarse_axis_order` along a separate axis), and
    the largest score wins, ties (within 1e-5) going to the lowest class. There are therefore no holes between classes.
    Each class costs the time of its bounding box; one score and the best so far are held, a slab at a time. A map that
    has that shape already is returned unchanged. Spacings in mm (Z, Y, X).
    """
    if indices.shape == tuple(shape):
        return indices
    orders = _axis_orders(spacing, target_spacing, 1, coarse_axis_order, anisotropy_threshold)
    operators = _operators(indices.shape, shape, orders, NO_LOW_PASS)
    resampled = np.empty(shape, dtype=indices.dtype)
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        columns = operators[0].columns(rows)
        slab_operators = (operators[0].part(rows, columns), *operators[1:])
        resampled[rows] = _winning_classes(slab_operators, indices[columns])
    return resampled


@dataclass(frozen=True)
class _Operator:
    """A banded matrix (n_out, n_in) that resamples one axis; row i is zero outside columns first[i]..stop[i]-1."""

    weights: np.ndarray  # float32
    first: np.ndarray
    stop: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray) -> "_Operator":
        used = np.abs(weights) > _NEGLIGIBLE
        first = used.argmax(axis=1)
        stop = weights.shape[1] - used[:, ::-1].argmax(axis=1)
        return cls(weights.astype(np.float32), first, stop)

    @property
    def ratio(self) -> float:
        return self.weights.shape[0] / self.weights.shape[1]

    @property
    def is_selection(self) -> bool:
        """Each output voxel is a copy of one input voxel."""
        return bool((self.stop - self.first == 1).all() and (self.weights.max(axis=1) == 1).all())

    @property
    def is_identity(self) -> bool:
        n_out, n_in = self.weights.shape
        return n_out == n_in and self.is_selection and np.array_equal(self.first, np.arange(n_in))

    def columns(self, rows: slice) -> slice:
        """The columns that some of `rows` need."""
        return slice(int(self.first[rows].min()), int(self.stop[rows].max()))

    def rows(self, columns: slice) -> slice:
        """The rows that need some of `columns`; bands move steadily, so these are neighbours. May be empty."""
        touched = np.flatnonzero((self.first < columns.stop) & (self.stop > columns.start))
        return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0)

    def part(self, rows: slice, columns: slice) -> "_Operator":
        """The operator from `columns` of the input to `rows` of the output; each row keeps one column at least."""
        low, high = columns.start, columns.stop
        first = np.clip(self.first[rows], low, high - 1) - low
        stop = np.clip(self.stop[rows], low + 1, high) - low
        return _Operator(self.weights[rows, columns], first, stop)

    def apply(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Resample `axis` of a contiguous float32 array (Z, Y, X)."""
        n_out, n_in = self.weights.shape
        if self.is_selection:
            return array.take(self.first, axis=axis)
        shape = (*array.shape[:axis], n_out, *array.shape[axis + 1 :])
        result = np.empty(shape, dtype=np.float32)
        after = int(np.prod(shape[axis + 1 :]))
        source, target = array.reshape(-1, n_in, after), result.reshape(-1, n_out, after)
        for start in range(0, n_out, _ROWS):
            rows = slice(start, min(start + _ROWS, n_out))
            columns = self.columns(rows)
            block = self.weights[rows, columns]
            if axis == 2:  # one product over all lines instead of one for each
                np.matmul(source[:, columns, 0], block.T, out=target[:, rows, 0])
            else:
                np.matmul(block, source[:, columns], out=target[:, rows])
        return result


def _axis_orders(
    spacing: Vector3, target_spacing: Vector3, order: int, coarse_axis_order: int, threshold: float
) -> tuple[int, ...]:
    coarse_axis = separate_axis(spacing, target_spacing, threshold)
    return tuple(coarse_axis_order if axis == coarse_axis else order for axis in range(3))


def _operators(
    shape: Sequence[int], new_shape: Sequence[int], orders: Sequence[int], low_pass: LowPass
) -> tuple[_Operator, ...]:
    """One operator per axis; the identity where the extent stays."""
    operators = []
    for n_in, n_out, order in zip(shape, new_shape, orders, strict=True):
        if n_in == n_out:
            weights = np.eye(n_in)
        elif order == 0:
            weights = np.eye(n_in)[(2 * np.arange(n_out) + 1) * n_in // (2 * n_out)]  # the cell at its centre
        else:
            weights = low_pass.weights(n_in, n_out, partial(_interpolate, order=order))
        operators.append(_Operator.of(weights))
    return tuple(operators)


def _interpolate(values: np.ndarray, n_out: int, *, order: int) -> np.ndarray:
    """Resample the first axis of a matrix by a spline of order 1 or 3, in float64."""
    n_in = len(values)
    position = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    cell = np.floor(position).astype(int)
    t = (position - cell)[:, None]
    coefficients = np.pad(values, ((_PAD, _PAD), (0, 0)), mode="edge")
    if order == 1:
        taps = [(0, 1 - t), (1, t)]
    elif order == 3:
        coefficients = ndimage.spline_filter1d(coefficients, order=3, axis=0, mode="mirror")
        taps = [
            (-1, (1 - t) ** 3 / 6),
            (0, (3 * t**3 - 6 * t**2 + 4) / 6),
            (1, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6),
            (2, t**3 / 6),
        ]
    else:
        raise UsageError(f"resampling by a spline of order {order}", remedy="use 0 (nearest), 1 (linear) or 3 (cubic)")
    return sum(weight * coefficients[cell + _PAD + offset] for offset, weight in taps)


def _apply_all(operators: Sequence[_Operator], array: np.ndarray) -> np.ndarray:
    """Resample all axes of one (Z, Y, X) array, those that shrink most first: the rest then has less to do."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    for axis in sorted(range(3), key=lambda axis: operators[axis].ratio):
        if not operators[axis].is_identity:
            array = operators[axis].apply(array, axis)
    return array


def _winning_classes(operators: Sequence[_Operator], indices: np.ndarray) -> np.ndarray:
    """The class with the largest interpolated score at every output voxel."""
    lowest = int(indices.min())
    shape = tuple(len(operator.weights) for operator in operators)
    winner = np.full(shape, lowest, dtype=indices.dtype)
    best = np.zeros(shape, dtype=np.float32)
    for offset, box in enumerate(ndimage.find_objects(indices.astype(np.int32) - lowest + 1)):
        if box is None:
            continue
        rows = tuple(operator.rows(columns) for operator, columns in zip(operators, box, strict=True))
        if any(r.start == r.stop for r in rows):  # it is between the voxels that a coarser grid samples
            continue
        parts = [operator.part(r, c) for operator, r, c in zip(operators, rows, box, strict=True)]
        score = _apply_all(parts, indices[box] == lowest + offset)
        better = score > best[rows] + _TIE
        np.copyto(best[rows], score, where=better)
        np.copyto(winner[rows], lowest + offset, where=better)
    return winner
