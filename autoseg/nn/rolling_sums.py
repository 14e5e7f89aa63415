"""Weighted sums of overlapping tiles, held only as long as a tile can still touch them.

Tiles come in raster order: layer by layer along the first axis ("rows"), and within a layer from line to line along the
second. The sums are kept in cells, some rows of a strip of lines, which are made when the first tile touches them, and
handed over and released when the last one has:

              lines of the image ->
    rows      | past   | seen by this tile | to come  |      `=` cells that are held
    s[i]      |        |========|==========|==========|      what layer i - 1 left of layer i's rows is still to come
    s[i + 1]  |========|========|==========|==========|
      ...     |========|========|==========|          |

So about half of what one layer of tiles covers is held, and two tiles' lines of the other half; nothing depends on the
number of rows of the image. Sums are divided by their weights where they are: nothing is copied.
"""

import itertools
import logging
import tempfile
from bisect import bisect_left
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
        self.layers = [slice(max(start, 0), min(start + tile[0], shape[0])) for start in starts[0]]  # their rows
        self.strips = [slice(0, shape[1])] if whole_rows else _strips(starts[1], shape[1])
        bounds = sorted({row for rows in self.layers for row in (rows.start, rows.stop)})
        self._rows = list(itertools.pairwise(bounds))  # of the cells
        self._touched = [  # by layer: its cells' rows
            range(bisect_left(bounds, rows.start), bisect_left(bounds, rows.stop)) for rows in self.layers
        ]
        following = [*(touched.start for touched in self._touched[1:]), len(self._rows)]
        self._done = [range(touched.start, stop) for touched, stop in zip(self._touched, following, strict=True)]
        self._device, self._place = device, 0
        self._next = (0, 0)  # layer and strip that are closed next
        self._cells: dict[tuple[int, int], Tensor] = {}  # rows and strip -> (K + 1, rows, lines, *rest), weights last

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
        lines = slice(max(start[1], 0), min(start[1] + self.tile[1], self.shape[1]))
        rest, of_rest = self._rest(start)
        for number, strip in enumerate(self.strips):
            low, high = max(lines.start, strip.start), min(lines.stop, strip.stop)
            if low >= high:
                continue
            of_lines = slice(low - start[1], high - start[1])
            within = (slice(None), slice(low - strip.start, high - strip.start), *rest)
            for piece in self._touched[layer]:
                sums, (first, stop) = self._cell(piece, number), self._rows[piece]
                of_tile = (slice(first - start[0], stop - start[0]), of_lines, *of_rest)
                weight = importance[of_tile].to(sums.device)
                sums[:-1][(slice(None), *within)].addcmul_(logits[(slice(None), *of_tile)].to(sums.device), weight)
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
        for key in list(self._cells):
            moved = self._allocate(self._cells[key].shape)
            moved.copy_(self._cells[key])
            self._cells[key] = moved
        return True

    def _rest(self, start: Sequence[int]) -> tuple[list[slice], list[slice]]:
        """The axes after the lines: where a tile lies in the image, and the part of it that does."""
        inside, of_tile = [], []
        for begin, edge, size in zip(start[2:], self.tile[2:], self.shape[2:], strict=True):
            low, high = max(begin, 0), min(begin + edge, size)
            inside.append(slice(low, high))
            of_tile.append(slice(low - begin, high - begin))
        return inside, of_tile

    def _cell(self, piece: int, strip: int) -> Tensor:
        """The sums of some rows of a strip, 0 at first."""
        if (piece, strip) not in self._cells:
            (first, stop), lines = self._rows[piece], self.strips[strip]
            sums = self._allocate((self.channels + 1, stop - first, lines.stop - lines.start, *self.shape[2:]))
            self._cells[piece, strip] = sums.zero_()
        return self._cells[piece, strip]

    def _close(self, layer: int, strip: int) -> Iterator[Block]:
        """Hand over the cells of a strip that no later layer reaches, and release them."""
        for piece in self._done[layer]:
            sums, (first, stop) = self._cell(piece, strip), self._rows[piece]
            logits, covered = sums[:-1], sums[-1]
            logits /= covered.clamp_min(torch.finfo(torch.float32).tiny)  # where there is no tile, they remain 0
            yield Block(slice(first, stop), self.strips[strip], logits, covered)
            del self._cells[piece, strip], sums, logits, covered

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


def _strips(starts: Sequence[int], lines: int) -> list[slice]:
    """Lines between the starts of tiles, which those of one row of tiles share; after the last start, as far apart."""
    begins = sorted({max(start, 0) for start in starts})
    step = begins[-1] - begins[-2] if len(begins) > 1 else lines
    begins += range(begins[-1] + step, lines, step)
    return [slice(begin, end) for begin, end in itertools.pairwise([*begins, lines])]


def _allocate(shape: Sequence[int], place: str, device: torch.device) -> Tensor:
    """Float32 memory on the device, on the host, or mapped from a temporary file that is gone when it is released."""
    with torch.inference_mode(False):  # they are divided outside of it
        if place == "file":
            with tempfile.TemporaryFile() as file:
                return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=tuple(shape)))
        return torch.empty(tuple(shape), device=device if place == "device" else "cpu")
