"""Overlapping tiles over a whole image: Gaussian weights, mirroring, any number of networks, one accumulator.

Source: nnU-Net v2 (tile positions, Gaussian importance with sigma = tile / 8, mean of logits over tiles and mirrors).
The differences: several tiles run in one batch; the folds of an ensemble share one pass and one float32 accumulator;
and the logits of rows that no later tile touches are handed over at once, so that those of the whole image are never
held (`stream_logits`; `predict_logits` collects them all).
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autoseg.nn.rolling_sums import Block, RollingSums
from autoseg.nn.training_step import is_out_of_memory

LOG = logging.getLogger("autoseg")

Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # (tiles done, tiles in all)
SMALL_TILE = 1 << 16  # voxels; see `images_at_once`
Window = tuple[int, ...]  # where a tile begins, on every spatial axis; may be negative


class Image(Protocol):
    """What is read of an image (C, *spatial): its shape, and `image[:, first:stop]`, float32 rows of all channels."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __getitem__(self, index: tuple[slice, slice]) -> Tensor | np.ndarray: ...


@dataclass(frozen=True)
class Tiling:
    """How an image is divided into tiles."""

    tile: tuple[int, ...]  # its edges; one axis fewer than the image has: a 2-D network visits every slice
    step: float = 0.5  # distance of neighbouring tiles as a share of the tile
    batch: int = 1  # tiles per forward pass
    reuse_constant: bool = False  # tiles of one value in every voxel are computed once; exact


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Start positions of tiles along one axis: evenly spread, at most `step * tile` apart, the ends covered.

    >>> tile_starts(110, 64, 0.5)
    [0, 23, 46]
    """
    if size <= tile:
        return [0]
    count = int(np.ceil((size - tile) / (tile * step))) + 1
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def tile_edge(size: int, patch: int, *, growth: float, multiple: int, step: float) -> int:
    """Edge of the tiles along one axis of an image: the one for which the fewest voxels are computed.

    Tiles may be up to `growth` times as long as the patch, but no longer than the image: padding changes what instance
    normalisation sees, and costs 0.015 of Dice (benchmarks/README.md, section 20). Of edges that cost the same, the one
    closest to the patch is taken; where the image is no longer than that, it stays what the network was trained on.

    Args:
        size: of the image, in voxels.
        multiple: what the network can divide; the patch is a multiple of it.
        step: distance of neighbouring tiles as a share of the tile.

    >>> tile_edge(44, 32, growth=1.5, multiple=8, step=0.5)
    40
    """
    edges = range(patch, max(patch, min(size, int(patch * growth + 1e-6))) + 1, multiple)
    return min(edges, key=lambda edge: edge * len(tile_starts(size, edge, step)))


@lru_cache(maxsize=4)
def gaussian_importance(tile: tuple[int, ...], sigma_share: float = 1 / 8) -> Tensor:
    """Weight of each voxel of a tile, float32 of the tile's shape: a Gaussian about tile // 2, 1 there, never 0."""
    weight = torch.ones(())
    for edge in tile:
        distance = torch.arange(edge, dtype=torch.float32) - edge // 2
        weight = weight[..., None] * torch.exp(-0.5 * (distance / (edge * sigma_share)) ** 2)
    return weight.clamp_min(1e-6)


def flip_sets(axes: Sequence[int], *, even: bool = False) -> list[tuple[int, ...]]:
    """Every set of axes that is flipped at once, none at first; or those of an even number of axes.

    The even ones are half of all. Each axis is flipped in half of them, and so is each pair of axes alike, as in a
    fractional factorial design, so that they stand for all better than those of fewer axes (benchmarks/README.md,
    section 22).

    >>> flip_sets((0, 1, 2), even=True)
    [(), (0, 1), (0, 2), (1, 2)]
    """
    numbers = range(0, len(axes) + 1, 2 if even else 1)
    return [chosen for number in numbers for chosen in itertools.combinations(axes, number)]


def mirrored(network: Network, axes: Sequence[int], *, even: bool = False) -> Network:
    """Average the logits of `network` over flips of the given spatial axes (0 is the first): all, or the even ones."""
    subsets = flip_sets([axis + 2 for axis in axes], even=even)

    def averaged(image: Tensor) -> Tensor:
        together = max(1, images_at_once(image.device, image.shape[2:]) // len(image))
        return _mean(_of_flips(network, image, subsets, together))

    return averaged


def images_at_once(device: torch.device, tile: Sequence[int]) -> int:
    """How many tiles or flips of one a pass should have at least, for speed.

    On a CPU, torch computes a single small image by a convolution of its own, which takes twice as long as oneDNN's;
    two images are left to oneDNN. More than two, and two larger ones, gain nothing: they no longer fit the cache
    (benchmarks/README.md, section 22).
    """
    return 2 if device.type == "cpu" and math.prod(tile) <= SMALL_TILE else 1


def _of_flips(network: Network, image: Tensor, subsets: Sequence[Sequence[int]], together: int) -> Iterator[Tensor]:
    """Logits of each flip of some tiles, flipped back; so many flips go through the network together."""
    for first in range(0, len(subsets), together):
        flips = subsets[first : first + together]
        logits = network(torch.cat([image.flip(axes) for axes in flips]) if len(flips) > 1 else image.flip(flips[0]))
        for axes, part in zip(flips, logits.chunk(len(flips)), strict=True):
            yield part.flip(axes)


def predict_logits(
    image: Tensor,
    networks: Sequence[Network],
    *,
    out_channels: int,
    tile: Sequence[int],
    step: float = 0.5,
    tile_batch: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Run networks over overlapping tiles of one image and return their mean logits.

    Args:
        image: (C, *spatial) float32, on the device the networks run on. Spatial has as many axes as `tile`, or one more
            at the front: then a 2-D network visits every slice.
        networks: each maps (B, C, *tile) to logits (B, K, *tile).
        step: distance of neighbouring tiles as a share of the tile.
        tile_batch: tiles per forward pass.
        progress: called with (tiles done, tiles in all).

    Returns:
        Logits (K, *spatial) float32 on the device of `image`.
    """
    tile, lines = tuple(tile), image
    if image.ndim == 2:  # a signal, in tests: an axis of lines is added
        tile, lines, networks = (*tile, 1), image[..., None], [_without_axis(network, -1) for network in networks]
    logits = torch.empty((out_channels, *lines.shape[1:]), device=image.device)
    tiling = Tiling(tile, step, tile_batch)
    for block in stream_logits(
        lines, networks, tiling, out_channels=out_channels, device=image.device, progress=progress
    ):
        logits[:, block.rows, block.lines] = block.logits
    return logits.reshape(out_channels, *image.shape[1:])


def stream_logits(
    image: Image | Tensor,
    networks: Sequence[Network],
    tiling: Tiling,
    *,
    out_channels: int,
    device: torch.device,
    whole_rows: bool = False,
    chosen: Callable[[Window], bool] | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Run networks over overlapping tiles of one image; yield mean logits as soon as no later tile touches them.

    Every voxel comes once: the rows (first spatial axis) of a strip of lines in their order, and those of the strips
    before it earlier. The logits are the same bit for bit whatever the blocks are. What is held grows with a layer of
    tiles, and not with the number of rows (see `rolling_sums`).

    Where memory runs out, batches of tiles are halved; then the sums move to the host, then to a temporary file. What
    was computed is kept: the tile that failed is repeated, and no other.

    Args:
        image: (C, *spatial) float32, anywhere; rows of it are brought to the device. Spatial has as many axes as the
            tile, or one more at the front.
        networks: each maps (B, C, *tile) on the device to logits (B, K, *tile).
        whole_rows: blocks have all lines of some rows. Holds about twice as much.
        chosen: by where a tile begins, whether it is computed; None: all are. Where none is, logits are 0 and so is
            `Block.covered`.
        progress: called with (tiles done, tiles in all).

    Raises:
        What the networks raise, and what says that there is no memory where none of this helps.
    """
    spatial = tuple(image.shape[1:])
    tile, starts = _layout(spatial, tiling)
    if len(tile) > len(tiling.tile):
        networks = [_without_axis(network, 2) for network in networks]
    sums = RollingSums(out_channels, spatial, tile, (starts[0], starts[1]), whole_rows=whole_rows, device=device)
    source = _Source(image, tile, device)
    runner = _Runner(networks, source, sums, tiling)
    importance = gaussian_importance(tile).to(device)
    places = [(layer, (row, *rest)) for layer, row in enumerate(starts[0]) for rest in itertools.product(*starts[1:])]
    todo = [place for place in places if chosen is None or chosen(place[1])]
    done = 0
    while batch := todo[done : done + runner.batch]:
        yield from sums.finish_before(batch[0][0], batch[0][1][1])  # before the network needs memory
        logits = runner.run([window for _, window in batch])
        for layer, window in batch:
            yield from sums.finish_before(layer, window[1])
            _add(sums, layer, window, logits.pop(0), importance)
        done += len(batch)
        if progress:
            progress(done, len(todo))
    yield from sums.finish()


def windows_of(shape: Sequence[int], tiling: Tiling) -> list[Window]:
    """Where the tiles of an image of this shape begin, in the order in which they are computed."""
    return list(itertools.product(*_layout(shape, tiling)[1]))


def _layout(shape: Sequence[int], tiling: Tiling) -> tuple[tuple[int, ...], list[list[int]]]:
    """The tile on every spatial axis of an image (of one voxel where a 2-D network visits slices), and its starts."""
    tile = (1,) * (len(shape) - len(tiling.tile)) + tuple(tiling.tile)
    return tile, [_starts(size, edge, tiling.step) for size, edge in zip(shape, tile, strict=True)]


def _starts(size: int, tile: int, step: float) -> list[int]:
    """Where tiles begin along an axis: one in the middle of an axis that is shorter, every voxel for tiles of one."""
    if tile == 1:
        return list(range(size))
    return tile_starts(size, tile, step) if size >= tile else [-((tile - size) // 2)]


@torch.inference_mode()
def _add(sums: RollingSums, layer: int, window: Window, logits: Tensor, importance: Tensor) -> None:
    sums.add(layer, window, logits, importance)


def _without_axis(network: Network, axis: int) -> Network:
    """A network for tiles with an axis of one voxel that it does not have."""
    return lambda tiles: network(tiles.squeeze(axis)).unsqueeze(axis)


class _Source:
    """Tiles of an image; of its rows only those of one layer are on the device."""

    def __init__(self, image: Image | Tensor, tile: Sequence[int], device: torch.device) -> None:
        self.image, self.tile, self.device = image, tuple(tile), device
        self._first: int | None = None
        self._rows = torch.empty(0)

    def cut(self, window: Window) -> Tensor:
        """The tile (C, *tile) that begins there, with zeros where it lies beyond the image; a view where it can."""
        spatial = self.image.shape[1:]
        inside = [
            slice(max(begin, 0), min(begin + edge, size))
            for begin, edge, size in zip(window, self.tile, spatial, strict=True)
        ]
        if self._first != window[0]:
            rows = self.image[:, inside[0]]
            self._rows, self._first = torch.as_tensor(rows).to(self.device), window[0]
        part = self._rows[(slice(None), slice(None), *inside[1:])]
        if part.shape[1:] == self.tile:
            return part
        tile = part.new_zeros((len(part), *self.tile))
        at = [slice(i.start - begin, i.stop - begin) for i, begin in zip(inside, window, strict=True)]
        tile[(slice(None), *at)] = part
        return tile


class _Runner:
    """Runs the networks on batches of tiles, and recovers where memory runs out. `batch` is how many it takes now."""

    def __init__(self, networks: Sequence[Network], source: _Source, sums: RollingSums, tiling: Tiling) -> None:
        self.batch = tiling.batch
        self._networks, self._source, self._sums = networks, source, sums
        self._reuse = tiling.reuse_constant
        self._known: tuple[tuple[float, ...], Tensor] | None = None  # values of a constant tile, its logits

    def run(self, windows: Sequence[Window]) -> list[Tensor]:
        """Mean logits (K, *tile) float32 of the networks, for each tile."""
        logits: list[Tensor] = []
        while len(logits) < len(windows):
            batch = windows[len(logits) : len(logits) + self.batch]
            try:
                logits += self._compute(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._relieve(len(batch)):
                    raise
            else:
                continue
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return logits

    def _relieve(self, tiles: int) -> bool:
        """Whether there is something left to do for want of memory; says what is done."""
        if tiles > 1:
            self.batch = max(1, tiles // 2)
            LOG.warning("out of memory with %d tiles at once: continuing with %d", tiles, self.batch)
            return True
        return self._sums.step_down()

    @torch.inference_mode()
    def _compute(self, windows: Sequence[Window]) -> list[Tensor]:
        tiles = [self._source.cut(window) for window in windows]
        values = [_constant(tile) if self._reuse else None for tile in tiles]
        known = [value is not None and self._known is not None and value == self._known[0] for value in values]
        needed = [tile for tile, is_known in zip(tiles, known, strict=True) if not is_known]
        computed: list[Tensor] = []
        if needed:
            stacked = torch.stack(needed)
            computed = list(_mean(network(stacked).float() for network in self._networks))
        logits = [self._known[1] if is_known and self._known else computed.pop(0) for is_known in known]
        for value, of_tile in zip(values, logits, strict=True):
            if value is not None and (self._known is None or self._known[0] != value):
                self._known = value, of_tile.clone()
        return logits


def _constant(tile: Tensor) -> tuple[float, ...] | None:
    """The values of a tile (C, *tile) whose channels are constant; None for any other."""
    flat = tile.flatten(1)
    first = flat[:, :1]
    if not bool((flat[:, ::101] == first).all()) or not bool((flat == first).all()):
        return None
    return tuple(first[:, 0].tolist())


def _mean(logits: Iterator[Tensor]) -> Tensor:
    """Mean of tensors that are made one after the other; the first may be somebody else's and is left as it is."""
    total, count = next(logits), 1
    for more in logits:
        total = total + more if count == 1 else total.add_(more)
        count += 1
        del more  # or it would be held while the next one is made
    return total if count == 1 else total.div_(count)
