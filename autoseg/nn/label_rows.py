"""From blocks of logits on the network's grid to rows on the image's grid: their labels, or the logits themselves.

Blocks come from `sliding_window.stream_logits` in raster order and are used at once. Of what was used, one row of
logits is kept for the next layer, and one line for the next strip: a voxel of the new grid lies between at most two of
the old one. On a CPU the labels are those of `imaging.logit_rows`, which computes only the classes that can win; on
other devices all classes are computed.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from autoseg.imaging.logit_rows import Plane, Row, decide_row, decide_rows, resample_row
from autoseg.imaging.taps import Taps
from autoseg.nn.rolling_sums import Block

Axes = tuple[Taps, Taps, Taps]


class LabelRows:
    """Decides the labels of a whole image, block by block.

    Args:
        axes: how rows, lines and columns become those of the image.
        regions: the class index that each region writes, in this order, where its logit is above 0; None: the class of
            the largest logit, the lowest of those that are equal.
        labels: (Z, Y, X) unsigned on the image's grid, filled with class indices.
        offsets: (K,) float32, added to the logits; None: they decide as they are. Interpolation preserves constants,
            so that it does not matter on which of the grids they are added.
    """

    def __init__(
        self, axes: Axes, regions: Sequence[int] | None, labels: np.ndarray, offsets: np.ndarray | None = None
    ) -> None:
        self.axes, self.regions, self.labels = axes, regions, labels
        self._offsets = None if offsets is None else torch.from_numpy(offsets).reshape(-1, 1, 1, 1)
        self._same_grid = all(axis.is_identity for axis in axes)
        self._planes: dict[int, Plane] = {}  # by the first line of a strip
        self._matrices: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._last: dict[int, Row | Tensor] = {}  # the last row of a strip, with a line of the strip before
        self._edges: dict[int, Tensor] = {}  # by the first row: the last line (K, rows, 1, columns) of the strip before
        self._pool = ThreadPoolExecutor(torch.get_num_threads()) if torch.get_num_threads() > 1 else None

    def take(self, block: Block) -> None:
        """Decide what can be decided now. The block's logits may be overwritten."""
        if self._offsets is not None:
            block.logits.add_(self._offsets.to(block.logits.device))
        if self._same_grid:
            self._decide_as_they_are(block)
            return
        first, rows = block.lines.start, block.rows
        plane = self._plane(block.lines, block.logits.device)
        lines = self.axes[1].outputs(block.lines)
        for n, number in enumerate(range(rows.start, rows.stop)):
            row = block.logits[:, n]
            row = torch.cat([self._edges[rows.start][:, n], row], dim=1) if first else row.clone()
            here = Row(row.numpy(), plane.edge) if _on_cpu(row) else row
            for outputs, shares, low in self._between(number, self._last.get(first, here), here):
                if lines.start < lines.stop:
                    self._decide(low, here, shares, plane, self.labels[outputs, lines])
            self._last[first] = here
        self._edges[rows.start] = block.logits[:, :, -1:].clone()
        if block.lines.stop == self.axes[1].size:
            del self._edges[rows.start]

    def __enter__(self) -> "LabelRows":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def _plane(self, lines: slice, device: torch.device) -> Plane:
        if lines.start not in self._planes:
            first = max(lines.start - 1, 0)
            axis = self.axes[1].part(self.axes[1].outputs(lines), first, lines.stop - first)
            plane = self._planes[lines.start] = Plane(axis, self.axes[2])
            self._matrices[id(plane)] = _matrices(plane, device)
        return self._planes[lines.start]

    def _between(self, number: int, last: Row | Tensor, here: Row | Tensor) -> Iterator[tuple]:
        """Rows of the image that row `number` completes: which, the share of that row, and the row before it."""
        axis = self.axes[0]
        outputs = axis.outputs(slice(number, number + 1))
        middle = int(np.searchsorted(axis.low[outputs], number)) + outputs.start
        if outputs.start < middle:
            part = slice(outputs.start, middle)
            yield part, axis.share[part], last
        if middle < outputs.stop:
            part = slice(middle, outputs.stop)
            yield part, axis.share[part], here

    def _decide(self, low: Row | Tensor, high: Row | Tensor, shares: np.ndarray, plane: Plane, out: np.ndarray) -> None:
        if isinstance(low, Row) and isinstance(high, Row):
            decide_rows(low, high, shares, plane, self.regions, out, self._pool)
            return
        assert isinstance(low, Tensor)
        assert isinstance(high, Tensor)
        for share, labels in zip(shares, out, strict=True):
            labels[...] = _decided(_resampled(low, high, float(share), self._matrices[id(plane)]), self.regions)

    def _decide_as_they_are(self, block: Block) -> None:
        out = self.labels[block.rows, block.lines]
        for n, labels in enumerate(out):
            if _on_cpu(block.logits):
                labels[...] = decide_row(block.logits[:, n].numpy(), self.regions, labels.dtype)
            else:
                labels[...] = _decided(block.logits[:, n], self.regions)


def resampled_rows(blocks: Iterator[Block], axes: Axes) -> Iterator[Tensor]:
    """Rows (K, Y, X) float32 of the image's grid, on the CPU, in order, from blocks of whole rows."""
    plane, last, matrices = Plane(axes[1], axes[2]), None, None
    for block in blocks:
        for n, number in enumerate(range(block.rows.start, block.rows.stop)):
            here = block.logits[:, n].clone()  # the block is gone when the next row needs it
            before = here if last is None else last
            outputs = axes[0].outputs(slice(number, number + 1))
            for low, share in zip(axes[0].low[outputs], axes[0].share[outputs], strict=True):
                lower = here if low == number else before
                if _on_cpu(here):
                    row = resample_row(Row(lower.numpy()), Row(here.numpy()), float(share), plane)
                    yield torch.from_numpy(row)
                    continue
                matrices = matrices or _matrices(plane, here.device)
                yield _resampled(lower, here, float(share), matrices).cpu()
            last = here


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _matrices(plane: Plane, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """What resamples lines and columns on a device; None where they stay as they are."""
    if plane.is_identity:
        return None
    return torch.from_numpy(plane.lines.matrix()).to(device), torch.from_numpy(plane.columns.matrix().T).to(device)


def _resampled(low: Tensor, high: Tensor, share: float, matrices: tuple[Tensor, Tensor] | None) -> Tensor:
    """The same as `resample_row`, on a device."""
    row = low if share == 0 else (1 - share) * low + share * high
    return row if matrices is None else matrices[0] @ row @ matrices[1]


def _decided(logits: Tensor, regions: Sequence[int] | None) -> np.ndarray:
    """Labels of logits (K, ...) on a device."""
    if regions is None:
        return logits.argmax(dim=0).cpu().numpy()
    labels = torch.zeros(logits.shape[1:], dtype=torch.int32, device=logits.device)
    for of_region, index in zip(logits, regions, strict=True):
        labels[of_region > 0] = index
    return labels.cpu().numpy()
