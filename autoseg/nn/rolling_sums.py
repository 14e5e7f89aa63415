"""Weighted sums of overlapping tiles, held only as long as a tile can still touch them.

Tiles come in raster order: layer by layer along the first axis ("rows"), and within a layer from line to line along the
second. The sums are kept in strips of lines. A strip has all the rows of a layer only between the first and the last
tile of that layer that touches it; otherwise it has the few rows that this layer and the next one share:

              lines of the image ->
    rows      | closed | open   | open   | waiting |      `=` rows that are held
    s[i]      |        |========|========|=========|
    s[i + 1]  |========|========|========|=========|      waiting strips hold what layer i - 1 left of layer i's rows
      ...     |========|========|========|         |

So about half of what one layer of tiles covers is held, and two tiles' lines of the other half; nothing depends on the
number of rows of the image. A strip is closed by the tile after its last one: rows that no later layer reaches are
divided by their weights and handed over, without a copy.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.nn.training_step import is_out_of_memory

PLACES = ("device", "host", "file")  # where sums are, one after the other as memory runs out
LOG = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Block:
    """Finished logits of some rows and lines of an image."""

    rows: slice
    lines: slice
    logits: Tensor  # (K, rows, lines, *rest) float32; valid until the next block is asked for
    covered: Tensor  # (rows, lines, *rest) float32: the sum of weights, 0 where no tile was computed


class RollingSums:
    """Sums of the logits of all tiles, strip by strip.

    Args:
        channels: K, of the logits.
        shape: of the image: rows, lines and at most one axis more.
        tile: the same axes of a tile.
        starts: of tiles along rows and along lines, ascending; a tile may begin before the image and end after it.
        whole_rows: one strip of all lines: blocks are whole rows, and all the rows of a layer are held.
        device: where the sums are as long as there is memory.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        tile: Sequence[int],
        starts: tuple[Sequence[int], Sequence[int]],
        *,
        whole_rows: bool,
        device: torch.device,
    ) -> None:
        self.channels, self.shape, self.tile = channels, tuple(shape), tuple(tile)
        self.layers = [
            slice(max(start, 0), min(start + tile[0], shape[0])) for start in starts[0]
        ]  # the rows of each layer
        begins = [0] if whole_rows else sorted({max(start, 0) for start in starts[1]})
        ends = [*begins[1:], shape[1]]
        self.strips = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
        self._device, self._place = device, 0
        self._next = (0, 0)  # layer and strip that are closed next
        self._open: dict[int, Tensor] = {}  # strip -> (K + 1, rows of the layer, lines, *rest): sums, and weights last
        self._kept: dict[int, Tensor] = {}  # strip -> the same of the rows that the next layer shares
        self.most_elements = 0  # held at once, so far

    def finish_before(self, layer: int, line: int) -> Iterator[Block]:
        """Close what a tile of this layer and these first lines, and all after it, cannot touch; yield its blocks."""
        strip = next((n for n, lines in enumerate(self.strips) if lines.stop > max(line, 0)), len(self.strips))
        while self._next < (layer, strip):
            yield from self._close(*self._next)
            at, closed = self._next
            self._next = (at, closed + 1) if closed + 1 < len(self.strips) else (at + 1, 0)

    def finish(self) -> Iterator[Block]:
        """Close all that is left; yield its blocks."""
        yield from self.finish_before(len(self.layers), 0)

    def add(self, layer: int, start: Sequence[int], logits: Tensor, importance: Tensor) -> None:
        """Add a tile's logits (K, *tile) by their weights (*tile). Start: of the tile, on all axes."""
        rows, lines = self.layers[layer], slice(max(start[1], 0), min(start[1] + self.tile[1], self.shape[1]))
        of_rows = slice(rows.start - start[0], rows.stop - start[0])
        rest, of_rest = self._rest(start)
        for number, strip in enumerate(self.strips):
            low, high = max(lines.start, strip.start), min(lines.stop, strip.stop)
            if low >= high:
                continue
            sums = self._opened(layer, number)
            within = (slice(None), slice(low - strip.start, high - strip.start), *rest)
            of_tile = (of_rows, slice(low - start[1], high - start[1]), *of_rest)
            part = logits[(slice(None), *of_tile)].to(sums.device)
            weight = importance[of_tile].to(sums.device)
            sums[:-1][(slice(None), *within)].addcmul_(part, weight)
            sums[-1][within] += weight

    def step_down(self) -> bool:
        """Move the sums to where there is more memory; False if they are there already. Says what happened."""
        on_host = self._device.type == "cpu"
        if self._place == len(PLACES) - 1:
            return False
        self._place = len(PLACES) - 1 if on_host else self._place + 1
        where = {"host": "the machine's memory", "file": f"a temporary file in {tempfile.gettempdir()}"}
        place = PLACES[self._place]
        LOG.warning("out of memory: the sums of the tiles are continued in %s", where[place])
        for held in (self._open, self._kept):
            for strip in list(held):
                moved = self._allocate(held[strip].shape)
                moved.copy_(held[strip])
                held[strip] = moved
        return True

    def _rest(self, start: Sequence[int]) -> tuple[list[slice], list[slice]]:
        """The axes after the lines: where a tile lies in the image, and the part of it that does."""
        inside, of_tile = [], []
        for begin, edge, size in zip(start[2:], self.tile[2:], self.shape[2:], strict=True):
            low, high = max(begin, 0), min(begin + edge, size)
            inside.append(slice(low, high))
            of_tile.append(slice(low - begin, high - begin))
        return inside, of_tile

    def _opened(self, layer: int, strip: int) -> Tensor:
        """The sums of a strip with all the rows of a layer."""
        if strip in self._open:
            return self._open[strip]
        rows, lines = self.layers[layer], self.strips[strip]
        sums = self._allocate((self.channels + 1, rows.stop - rows.start, lines.stop - lines.start, *self.shape[2:]))
        kept = self._kept.pop(strip, None)
        shared = 0 if kept is None else kept.shape[1]
        if kept is not None:
            sums[:, :shared] = kept
        sums[:, shared:] = 0
        self._open[strip] = sums
        self._count()
        return sums

    def _close(self, layer: int, strip: int) -> Iterator[Block]:
        """Hand over the rows of a strip that no later layer reaches, and keep the others."""
        sums, rows = self._opened(layer, strip), self.layers[layer]
        last = layer + 1 == len(self.layers)
        stop = rows.stop if last else min(self.layers[layer + 1].start, rows.stop)
        done = sums[:, : stop - rows.start]
        logits, covered = done[:-1], done[-1]
        if stop > rows.start:
            logits /= covered.clamp_min(torch.finfo(torch.float32).tiny)  # where there is no tile, they remain 0
            yield Block(slice(rows.start, stop), self.strips[strip], logits, covered)
        left = rows.stop - stop
        if len(self.strips) == 1 and left and self.layers[layer + 1].stop - stop == len(sums[0]):
            for row in range(left):  # the same rows are needed at once: no second buffer
                sums[:, row] = sums[:, row + stop - rows.start]
            sums[:, left:] = 0
            return
        if left:
            kept = self._allocate((len(sums), left, *sums.shape[2:]))
            kept.copy_(sums[:, stop - rows.start :])
            self._kept[strip] = kept
            self._count()
        del self._open[strip]

    def _allocate(self, shape: Sequence[int]) -> Tensor:
        """Memory without content for sums; elsewhere where there is none."""
        while True:
            try:
                return _allocate(shape, PLACES[self._place], self._device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self.step_down():
                    raise

    def _count(self) -> None:
        held = sum(sums.numel() for group in (self._open, self._kept) for sums in group.values())
        self.most_elements = max(self.most_elements, held)


def _allocate(shape: Sequence[int], place: str, device: torch.device) -> Tensor:
    """Float32 memory on the device, on the host, or mapped from a temporary file that is gone when it is released."""
    with torch.inference_mode(False):  # they are divided outside of it
        if place == "file":
            with tempfile.TemporaryFile() as file:
                return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=tuple(shape)))
        return torch.empty(tuple(shape), device=device if place == "device" else "cpu")
