"""Logits on another grid, and the labels that they decide, row by row of the new grid; float32, numpy alone.

A row of the new grid lies between two rows of the old one. Both are divided into blocks of a few voxels, whose products
stay in the cache: first across rows, then along the columns, then along the lines. Interpolation is a convex
combination, so that most of it is never computed:

- Where one class has the largest logit at all voxels of the old grid in a block, it is the label of the whole block.
- A class whose logit is below the mean of those classes that are the largest somewhere in the block, at every voxel,
  stays below that mean between the voxels, and so below one of them: it cannot win.
- A region whose logits have one sign in a block is inside or outside everywhere.

This is exact: labels differ from those of all classes at every voxel only where float32 rounding decides between two.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoseg.imaging.taps import Taps

EDGE = 16  # voxels of the old grid along a block
MANY = 4  # parts of the classes, one of which wins somewhere in a block whose classes are all computed
PARTS = 8  # in which threads take the blocks of a row


@dataclass(frozen=True)
class Strip:
    """One axis of a block: outputs, the inputs they need, and the matrix between them."""

    outputs: slice
    inputs: slice
    matrix: np.ndarray  # (outputs, inputs) float32


@dataclass(frozen=True)
class Plane:
    """How the lines and columns of a row are resampled.

    Args:
        edge: of blocks, in voxels of the old grid. A block also sees the first voxels of the next one.
    """

    lines: Taps
    columns: Taps
    edge: int = EDGE

    @property
    def shape(self) -> tuple[int, int]:
        """Of a row on the new grid."""
        return len(self.lines), len(self.columns)

    @property
    def is_identity(self) -> bool:
        """Whether lines and columns stay as they are."""
        return self.lines.is_identity and self.columns.is_identity

    @cached_property
    def strips(self) -> tuple[list[Strip], list[Strip]]:
        """Of the lines and of the columns, one for each block."""
        return _strips(self.lines, self.edge), _strips(self.columns, self.edge)

    def spread(self, of_blocks: np.ndarray) -> np.ndarray:
        """What is known of each block (by, bx), for each voxel (lines, columns) of the new row."""
        return of_blocks[_block_of(self.lines, self.edge)][:, _block_of(self.columns, self.edge)]


class Row:
    """One row of the old grid, and what is known of its blocks.

    Args:
        logits: (K, lines, columns) float32.
    """

    def __init__(self, logits: np.ndarray, edge: int = EDGE) -> None:
        self.logits, self._edge = logits, edge

    @cached_property
    def winners(self) -> np.ndarray:
        """The class of the largest logit at each voxel (lines, columns)."""
        return decide_row(self.logits.copy(), None, np.min_scalar_type(len(self.logits) - 1))

    @cached_property
    def first(self) -> np.ndarray:
        """The lowest of the winners in each block (by, bx)."""
        return _extremes(self.winners[None], self._edge, np.minimum)[0]

    @cached_property
    def last(self) -> np.ndarray:
        """The highest."""
        return _extremes(self.winners[None], self._edge, np.maximum)[0]

    @cached_property
    def upper(self) -> np.ndarray:
        """The largest logit of each class in each block (K, by, bx)."""
        return _extremes(self.logits, self._edge, np.maximum)

    @cached_property
    def lower(self) -> np.ndarray:
        """The smallest."""
        return _extremes(self.logits, self._edge, np.minimum)


def resample_row(low: Row, high: Row, share: float, plane: Plane) -> np.ndarray:
    """Logits (K, lines, columns) float32 of a row that lies this share of the way from `low` to `high`."""
    source = low.logits if share == 0 else (1 - share) * low.logits + share * high.logits
    if plane.is_identity:
        return source
    row = np.empty((len(source), *plane.shape), dtype=np.float32)
    for line in plane.strips[0]:
        for column in plane.strips[1]:
            part = source[:, line.inputs, column.inputs] @ column.matrix.T
            row[:, line.outputs, column.outputs] = line.matrix @ part
    return row


def decide_rows(
    low: Row,
    high: Row,
    shares: np.ndarray,
    plane: Plane,
    regions: Sequence[int] | None,
    out: np.ndarray,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Decide the labels of some rows of the new grid that lie between the same two rows of the old one.

    Args:
        shares: (n,) float32, of `high` in each row.
        regions: the class index that each region writes, in this order, where its logit is above 0; None: the class
            with the largest logit, the lowest of those that are equal.
        out: (n, lines, columns) unsigned, filled with class indices.
        pool: threads that share the blocks; None: this one does all.
    """
    if regions is None:
        first = np.minimum(low.first, high.first)
        out[:] = plane.spread(first.astype(out.dtype))
        mixed = np.argwhere(first != np.maximum(low.last, high.last))
        inside = None
    else:
        inside, outside = np.minimum(low.lower, high.lower) > 0, np.maximum(low.upper, high.upper) <= 0
        out[:] = plane.spread(_painted(inside, regions, out.dtype))
        mixed = np.argwhere(~(inside | outside).all(axis=0))

    def work(blocks: np.ndarray) -> None:
        for y, x in blocks:
            line, column = plane.strips[0][y], plane.strips[1][x]
            labels = out[:, line.outputs, column.outputs]
            if not labels.size:  # a coarser grid has no voxel there
                continue
            if inside is None:
                classes = _possible(low, high, line.inputs, column.inputs)
                labels[:] = _largest(_scores(low, high, shares, line, column, classes), classes.astype(out.dtype))
                continue
            undecided = np.flatnonzero(~(inside | outside)[:, y, x])
            masks = np.empty((len(inside), *labels.shape), dtype=bool)
            masks[:] = inside[:, y, x, None, None, None]
            masks[undecided] = _scores(low, high, shares, line, column, undecided) > 0
            labels[:] = _painted(masks, () if regions is None else regions, out.dtype)

    _share(work, mixed, pool)


def _possible(low: Row, high: Row, lines: slice, columns: slice) -> np.ndarray:
    """The classes that may win between the voxels of a block, ascending."""
    rows = (low,) if high is low else (low, high)
    winners = np.zeros(len(low.logits), dtype=bool)
    for row in rows:
        winners[row.winners[lines, columns]] = True
    if MANY * np.count_nonzero(winners) > len(winners):  # to find out would take longer than it saves
        return np.arange(len(winners))
    possible = winners.copy()
    for row in rows:
        logits = row.logits[:, lines, columns]
        mean = logits[winners].mean(axis=0)
        possible |= (logits >= mean).any(axis=(1, 2))
    return np.flatnonzero(possible)


def decide_row(logits: np.ndarray, regions: Sequence[int] | None, dtype: np.dtype) -> np.ndarray:
    """Labels (...) of logits (K, ...), which are overwritten, by the same rule."""
    if regions is None:
        return _largest(logits, np.arange(len(logits), dtype=dtype))
    return _painted(logits > 0, regions, dtype)


def _share(work: Callable[[np.ndarray], None], blocks: np.ndarray, pool: ThreadPoolExecutor | None) -> None:
    if pool is None or len(blocks) < PARTS:
        work(blocks)
        return
    for done in [pool.submit(work, part) for part in np.array_split(blocks, PARTS)]:
        done.result()


def _scores(low: Row, high: Row, shares: np.ndarray, line: Strip, column: Strip, classes: np.ndarray) -> np.ndarray:
    """Logits (classes, n, lines, columns) of a block in some rows of the new grid."""
    scores = low.logits[classes, line.inputs, column.inputs][:, None]
    if shares.any():
        t = shares[:, None, None]
        scores = scores * (1 - t) + high.logits[classes, line.inputs, column.inputs][:, None] * t
    elif len(shares) > 1:
        scores = scores.repeat(len(shares), axis=1)
    count, n, m, w = scores.shape
    along = scores.reshape(count, n * m, w) @ column.matrix.T
    return line.matrix @ along.reshape(count, n, m, -1)


def _largest(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The class of the largest of scores (K, ...), which are overwritten; the first of those that are equal.

    Neighbours compete in rounds: every comparison is one operation on long arrays.

    Args:
        classes: (K,) unsigned, their names.
    """
    names = classes.reshape(-1, *[1] * (scores.ndim - 1))
    while len(scores) > 1:
        first, second = scores[:-1:2], scores[1::2]
        better = (second > first).view(np.uint8)
        won = names[1::2] - names[:-1:2]  # modulo the size of the dtype
        won = won * better
        won += names[:-1:2]
        np.maximum(first, second, out=first)
        if len(scores) % 2:
            won = np.concatenate([won, np.broadcast_to(names[-1:], won[:1].shape)])
        scores, names = scores[::2], won
    return np.broadcast_to(names[0], scores.shape[1:])


def _painted(inside: np.ndarray, regions: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Class indices (...) of regions (R, ...) bool, written one over the other."""
    labels = np.zeros(inside.shape[1:], dtype=dtype)
    for mask, index in zip(inside, regions, strict=True):
        labels[mask] = index
    return labels


def _strips(axis: Taps, edge: int) -> list[Strip]:
    blocks, strips = _block_of(axis, edge), []
    for number in range(_number(axis.size, edge)):
        outputs = slice(int(np.searchsorted(blocks, number)), int(np.searchsorted(blocks, number + 1)))
        inputs = slice(number * edge, min((number + 1) * edge, axis.size - 1) + 1)
        part = axis.part(outputs, inputs.start, inputs.stop - inputs.start)
        strips.append(Strip(outputs, inputs, part.matrix()))
    return strips


def _number(size: int, edge: int) -> int:
    """Of blocks along an axis: the last voxel begins none."""
    return max(1, -(-(size - 1) // edge))


def _block_of(axis: Taps, edge: int) -> np.ndarray:
    """For each voxel of the new axis the block that holds all that it is made of."""
    return np.minimum(axis.low // edge, _number(axis.size, edge) - 1)


def _extremes(logits: np.ndarray, edge: int, extreme: np.ufunc) -> np.ndarray:
    """Largest or smallest of (K, lines, columns) in blocks that share their outermost voxels (K, by, bx)."""
    for axis in (1, 2):
        count = _number(logits.shape[axis], edge)
        found = logits.take(np.arange(count) * edge, axis=axis)
        for offset in range(1, edge + 1):
            index = (slice(None),) * axis
            more = logits[(*index, slice(offset, None, edge))][(*index, slice(count))]
            part = found[(*index, slice(more.shape[axis]))]
            extreme(part, more, out=part)
        logits = found
    return logits
