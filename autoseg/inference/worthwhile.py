"""Which tiles of a cascade are worth computing, by the labels of its previous stage; the others keep those labels.

A previous stage is right about the inside of an organ and about the background, and wrong at surfaces, where its grid
is too coarse. A tile is worth as much as there are surfaces in it, weighted as its logits are: least at its edge.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from autoseg.errors import UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.nn.rolling_sums import Block
from autoseg.nn.sliding_window import Tiling, Window, gaussian_importance, windows_of

SURE = 20.0  # logit of a label that is kept: a probability of 1 to 2e-9


def worthwhile(labels: np.ndarray, tiling: Tiling, share: float) -> set[Window]:
    """The tiles worth computing: at most this share of all, and none without a surface.

    Args:
        labels: (Z, Y, X) class indices of the previous stage, on the grid of the tiles.
        share: > 0 and <= 1.

    Raises:
        UsageError: a share that is none.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of {share:g} of the tiles", remedy="give more than 0% and at most 100%")
    surface = surfaces(labels)
    windows = windows_of(labels.shape, tiling)
    tile = (1,) * (3 - len(tiling.tile)) + tuple(tiling.tile)
    importance = gaussian_importance(tile).numpy()
    worth = {window: _worth(surface, window, importance) for window in windows}
    most = math.ceil(share * len(windows))
    best = sorted((window for window in windows if worth[window] > 0), key=lambda window: -worth[window])
    return set(best[:most])


def surfaces(labels: np.ndarray) -> np.ndarray:
    """Voxels (Z, Y, X) bool with another label at one of their faces."""
    surface = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        changes = labels[low] != labels[high]
        surface[low] |= changes
        surface[high] |= changes
    return surface


def keep_labels(block: Block, labels: np.ndarray, heads: LabelSet) -> None:
    """Write the labels (Z, Y, X) of a previous stage into a block, as logits, where no tile was computed."""
    missing = block.covered == 0
    if not bool(missing.any()):
        return
    known = torch.from_numpy(labels[block.rows, block.lines].astype(np.int64)).to(missing.device)
    for logits, inside in zip(block.logits, _members(heads), strict=True):
        kept = torch.isin(known, torch.tensor(inside, device=known.device))
        logits[missing] = torch.where(kept, SURE, -SURE)[missing]


def _members(heads: LabelSet) -> Sequence[Sequence[int]]:
    """The class indices that each head stands for."""
    return heads.regions_as_indices if heads.has_regions else [(index,) for index in range(heads.num_heads)]


def _worth(surface: np.ndarray, window: Window, importance: np.ndarray) -> float:
    inside = [
        slice(max(begin, 0), min(begin + edge, size))
        for begin, edge, size in zip(window, importance.shape, surface.shape, strict=True)
    ]
    of_tile = tuple(slice(i.start - begin, i.stop - begin) for i, begin in zip(inside, window, strict=True))
    return float(importance[of_tile][surface[tuple(inside)]].sum())
