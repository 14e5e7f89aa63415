"""Overlapping tiles over a whole image: Gaussian weights, mirroring, any number of networks, one accumulator.

Source: nnU-Net v2 (tile positions, Gaussian importance with sigma = tile / 8, mean of logits over tiles and mirrors).
Two differences: several tiles run in one batch, and members of an ensemble share one pass and one float32 accumulator.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # (tiles done, tiles in all)


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


def mirrored(network: Network, axes: Sequence[int]) -> Network:
    """Average the logits of `network` over all flips of the given spatial axes (0 is the first spatial axis)."""
    subsets = [s for n in range(len(axes) + 1) for s in itertools.combinations([a + 2 for a in axes], n)]

    def averaged(image: Tensor) -> Tensor:
        total = network(image)
        for flips in subsets[1:]:
            total = total + network(image.flip(flips)).flip(flips)
        return total / len(subsets)

    return averaged


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
    tile = tuple(tile)
    if image.ndim - 1 == len(tile) + 1:
        stack = torch.empty((out_channels, *image.shape[1:]), device=image.device)
        for z in range(len(stack[0])):
            stack[:, z] = predict_logits(
                image[:, z], networks, out_channels=out_channels, tile=tile, step=step, tile_batch=tile_batch,
                progress=_over_slices(progress, z, len(stack[0])),
            )  # fmt: skip
        return stack
    padded, inner = _pad_to(image, tile)
    spatial = padded.shape[1:]
    positions = list(itertools.product(*(tile_starts(s, t, step) for s, t in zip(spatial, tile, strict=True))))
    windows = [tuple(slice(p, p + t) for p, t in zip(position, tile, strict=True)) for position in positions]
    importance = gaussian_importance(tile).to(image.device)
    total = torch.zeros((out_channels, *spatial), device=image.device)
    weight = torch.zeros(spatial, device=image.device)
    done = 0
    with torch.inference_mode():
        for batch in _batches(windows, tile_batch):
            tiles = torch.stack([padded[(slice(None), *window)] for window in batch])
            logits = networks[0](tiles).float()
            for network in networks[1:]:
                logits = logits + network(tiles).float()
            logits = logits / len(networks)
            for window, tile_logits in zip(batch, logits, strict=True):
                total[(slice(None), *window)] += tile_logits * importance
                weight[window] += importance
            del logits, tile_logits  # or they would be held together with those of the next batch
            done += len(batch)
            if progress:
                progress(done, len(windows))
        total /= weight
    return total[(slice(None), *inner)]


def _over_slices(progress: Progress | None, z: int, slices: int) -> Progress | None:
    """What slice z reports, as progress over all slices."""
    if progress is None:
        return None
    return lambda done, total: progress(z * total + done, slices * total)


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pad_to(image: Tensor, tile: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (C, *spatial) with zeros, centred, to at least the tile; also return where the image now lies."""
    pads = [max(t - s, 0) for s, t in zip(image.shape[1:], tile, strict=True)]
    before = [p // 2 for p in pads]
    inner = tuple(slice(b, b + s) for b, s in zip(before, image.shape[1:], strict=True))
    flat = [n for b, p in zip(reversed(before), reversed(pads), strict=True) for n in (b, p - b)]
    return torch.nn.functional.pad(image, flat), inner
