"""Tiles of an image that hold hardly anything: --skip-empty leaves them out, and their voxels are background.

An image is divided in two by Otsu's threshold, channel by channel: what is above it in any channel is body. A tile is
nearly empty if no more than one in a thousand of its voxels is. That suits images whose background is dark, as that of
CT, MR and fluorescence is; nothing proves that the networks would find nothing there. `evaluate --speeds` measures on
held-out cases what it saves, what it costs in Dice, and how many voxels keep their label.

(Tiles of one value in every voxel are computed once without asking: that changes nothing.)
"""

import math
from collections.abc import Sequence

import numpy as np

from autoseg.nn.sliding_window import Tiling, Window, windows_of

MOST_BODY = 1e-3  # share of a tile's voxels that may be body while it is nearly empty
SAMPLED = 2**20  # voxels of a channel that its threshold is made of
BINS = 256


def occupied(box: np.ndarray, grid: Sequence[int], tiling: Tiling) -> set[Window]:
    """The tiles that are to be computed: all that are not nearly empty.

    Args:
        box: (C, Z, Y, X), the cropped image as it was read.
        grid: (Z, Y, X) that the tiles lie on; it covers the box.
        tiling: of the grid.
    """
    body = body_of(box)
    scale = [size / new for size, new in zip(body.shape, grid, strict=True)]
    tile = (1,) * (3 - len(tiling.tile)) + tuple(tiling.tile)
    kept = set()
    for window in windows_of(tuple(grid), tiling):
        inside = [
            slice(math.floor(max(begin, 0) * by), math.ceil(min(begin + edge, size) * by))
            for begin, edge, size, by in zip(window, tile, grid, scale, strict=True)
        ]
        part = body[tuple(inside)]
        if np.count_nonzero(part) > MOST_BODY * part.size:
            kept.add(window)
    return kept


def body_of(image: np.ndarray) -> np.ndarray:
    """Voxels (Z, Y, X) bool of an image (C, Z, Y, X) that are above the threshold of their channel in any of them."""
    body = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        step = max(1, round((channel.size / SAMPLED) ** (1 / 3)))
        body |= channel > threshold(channel[::step, ::step, ::step])
    return body


def threshold(values: np.ndarray) -> float:
    """Otsu's threshold of numbers: the one with the largest variance between the two sides; the value of equal ones.

    Source: Otsu 1979, by a histogram of BINS bins between the 0.1 and the 99.9 % quantile, beyond which values count as
    these: a single bright voxel would otherwise decide.
    """
    low, high = np.quantile(values, (0.001, 0.999))
    if low == high:
        return float(low)
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[np.nanargmax(apart) + 1])
