"""Components of a label map corrected in bounded memory: islands removed, holes filled.

A mask is labelled slab by slab; components that touch across two slabs are joined afterwards, so that beside the label
map there is one slab of numbers and a few values per component. A second pass labels each slab again, which gives the
same numbers, and corrects it.

    component   voxels of a label or region that share a face, an edge or a corner
    hole        voxels outside the label that no path over faces leads out of; of them, background alone is filled
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SLAB = 2**24  # voxels that are labelled at once
EVERYWHERE = np.ones((3, 3, 3), dtype=bool)  # faces, edges and corners

MaskOf = Callable[[np.ndarray], np.ndarray]  # class indices of some rows -> bool


@dataclass(frozen=True)
class Correction:
    """What is done to the components of one label or region.

    Args:
        indices: class indices that belong to it.
        filled_with: class index that its holes get.
        replaced_by: class index that removed components get.
        keep_largest: remove all components but the largest.
        min_voxels: remove components of fewer voxels; 0: none.
        fill_holes: fill background inside it; after the removal.
    """

    indices: tuple[int, ...]
    filled_with: int
    replaced_by: int = 0
    keep_largest: bool = False
    min_voxels: float = 0.0
    fill_holes: bool = False


def correct(labels: np.ndarray, corrections: Sequence[Correction], *, slab: int = SLAB) -> None:
    """Correct a label map in place, one label after the other.

    Args:
        labels: (Z, Y, X) unsigned class indices; may be mapped from a file.
        slab: voxels that are held in memory as numbers of components, at least a row.
    """
    for one in corrections:
        if one.keep_largest or one.min_voxels > 0:
            _remove(labels, one, slab)
        if one.fill_holes:
            _fill(labels, one, slab)


def _remove(labels: np.ndarray, one: Correction, slab: int) -> None:
    found = _Joined(labels, lambda rows: np.isin(rows, one.indices), EVERYWHERE, slab)
    removed = found.sizes < one.min_voxels
    if one.keep_largest and len(found.sizes):
        removed |= np.arange(len(found.sizes)) != int(np.argmax(found.sizes))
    if not removed.any():
        return
    for rows, numbers in found.slabs():
        rows[np.append(False, removed)[numbers + 1]] = one.replaced_by


def _fill(labels: np.ndarray, one: Correction, slab: int) -> None:
    found = _Joined(labels, lambda rows: ~np.isin(rows, one.indices), None, slab)
    holes = ~found.at_border
    if not holes.any():
        return
    for rows, numbers in found.slabs():
        rows[np.append(False, holes)[numbers + 1] & (rows == 0)] = one.filled_with


class _Joined:
    """The components of a mask of a label map, found slab by slab and joined.

    `sizes` (n,) int64 voxels and `at_border` (n,) bool of each component; an axis of extent 1 has no border.
    """

    def __init__(self, labels: np.ndarray, mask_of: MaskOf, structure: np.ndarray | None, slab: int) -> None:
        self._labels, self._mask_of, self._structure = labels, mask_of, structure
        row = max(1, int(np.prod(labels.shape[1:], dtype=np.int64)))
        self._rows = max(1, slab // row)
        sizes, at_border, pairs = [], [], []
        offset, before = 0, None
        self._offsets: list[int] = []
        for start, numbers, count in self._labelled():
            self._offsets.append(offset)
            sizes.append(np.bincount(numbers.reshape(-1), minlength=count + 1)[1:])
            at_border.append(self._touching(numbers, count, start))
            if before is not None:
                pairs.append(_neighbours(before, numbers[0], self._structure is not None, offset))
            before = np.where(numbers[-1] > 0, numbers[-1] + offset, 0)
            offset += count
        joined = np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
        graph = coo_array((np.ones(len(joined), bool), (joined[:, 0] - 1, joined[:, 1] - 1)), shape=(offset, offset))
        self._roots: np.ndarray = np.empty(0, np.int64)
        count = 0
        if offset:
            count, self._roots = connected_components(graph, directed=False)
        flat = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
        self.sizes = np.bincount(self._roots, weights=flat, minlength=count).astype(np.int64)
        self.at_border = np.zeros(count, dtype=bool)
        if offset:
            self.at_border[self._roots[np.concatenate(at_border)]] = True

    def slabs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of the label map, to be changed, and the component of each voxel: -1 where the mask is not."""
        for (start, numbers, count), offset in zip(self._labelled(), self._offsets, strict=True):
            roots = np.append(-1, self._roots[offset : offset + count])
            yield self._labels[start : start + len(numbers)], roots[numbers]

    def _labelled(self) -> Iterator[tuple[int, np.ndarray, int]]:
        """First row of a slab, the number of the component at each of its voxels, and how many there are."""
        for start in range(0, len(self._labels), self._rows):
            mask = self._mask_of(self._labels[start : start + self._rows])
            if not mask.any():
                yield start, np.zeros(mask.shape, np.int32), 0
                continue
            numbers, count = ndimage.label(mask, structure=self._structure)
            yield start, numbers, count

    def _touching(self, numbers: np.ndarray, count: int, start: int) -> np.ndarray:
        """Which components of a slab touch the border of the image, (count,) bool."""
        touching = np.zeros(count + 1, dtype=bool)
        for axis in (1, 2):
            if numbers.shape[axis] > 1:
                touching[numbers.take(0, axis=axis)] = touching[numbers.take(-1, axis=axis)] = True
        if len(self._labels) > 1:
            if start == 0:
                touching[numbers[0]] = True
            if start + len(numbers) == len(self._labels):
                touching[numbers[-1]] = True
        return touching[1:]


def _neighbours(before: np.ndarray, here: np.ndarray, diagonal: bool, offset: int) -> np.ndarray:
    """Pairs (n, 2) of components that touch across two rows.

    Args:
        before: (Y, X) numbers of the last row of the slab before, counted over all slabs; 0: none.
        here: (Y, X) numbers of the first row of the slab, counted from 1 within it.
        diagonal: whether edges and corners count.
        offset: components of all slabs before.
    """
    pairs = []
    for dy in (-1, 0, 1) if diagonal else (0,):
        for dx in (-1, 0, 1) if diagonal else (0,):
            one, other = _shifted(before, dy, dx), _shifted(here, -dy, -dx)
            both = (one > 0) & (other > 0)
            if both.any():
                pairs.append(np.unique(np.stack([one[both], other[both] + offset], axis=1), axis=0))
    return np.concatenate(pairs).astype(np.int64) if pairs else np.empty((0, 2), np.int64)


def _shifted(row: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """The part of a row that overlaps with itself moved by (dy, dx)."""
    y = slice(max(dy, 0), row.shape[0] + min(dy, 0))
    x = slice(max(dx, 0), row.shape[1] + min(dx, 0))
    return row[y, x]
