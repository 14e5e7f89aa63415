"""The same segmentation the plainest way, everything held at once: what the streamed one is compared with.

One accumulator for the whole grid, all logits resampled together, then the largest. Of the streamed computation it uses
the prepared image, the networks and where tiles begin, and nothing else.

    labels_at_once    an image by one model -> labels, and how far the two best classes are apart
    compare           two segmentations of it -> voxels with another label, and how many of them are ties

Logits are held for the whole image: it is for checks on images that allow it (`bytes_needed`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.dataloading.previous_stage import one_hot
from autoseg.datasets.dataset import LoadedCase
from autoseg.imaging.components import as_slices
from autoseg.inference.member import EnsembleMember, previous_labels
from autoseg.inference.options import InferenceOptions
from autoseg.models.model import Model
from autoseg.nn.precision import autocast
from autoseg.nn.sliding_window import gaussian_importance, windows_of

TIE = 1e-3  # difference of logits below which either of two labels is right: several times what rounding makes of them
UNMIRRORED = InferenceOptions(mirroring=False)  # how the images of a check are segmented


@dataclass(frozen=True)
class Compared:
    """Two segmentations of the same images; they add up."""

    voxels: int
    differ: int  # voxels with another label
    ties: int  # of these, where both labels are equally good: their logits hardly differ

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(self.voxels + other.voxels, self.differ + other.differ, self.ties + other.ties)


@dataclass(frozen=True)
class Dense:
    """What was computed at once, on the grid of the image in the plan's axis order."""

    labels: np.ndarray  # (Z, Y, X) class indices; background beyond the box
    logits: np.ndarray  # (K, Z, Y, X) float32 in the box
    box: tuple[slice, slice, slice]
    regions: bool  # whether each head is a region by itself; otherwise the largest of all logits decides


def labels_at_once(model: Model, loaded: LoadedCase) -> Dense:
    """Segment an image by the mean logits of a model's folds, without flips.

    Args:
        model: of a cascade, its previous stage is computed in the same way.
    """
    member = EnsembleMember(model, UNMIRRORED)
    prepared, heads = member.prepare(loaded), model.plan.heads
    image = np.asarray(prepared.image[:, 0 : prepared.placement.shape[0]])
    if model.previous:
        before = previous_labels(labels_at_once(model.previous, loaded).labels, prepared.placement, model.plan)
        image = np.concatenate([image, one_hot(before, model.plan.labels.num_labels)])
    on_grid = _accumulated(member, torch.from_numpy(image))
    logits = prepared.placement.back(on_grid.numpy(), model.plan.resampling)
    if heads.has_regions:
        inside = np.zeros(logits.shape[1:], np.uint16)
        for of_region, index in zip(logits, heads.region_indices, strict=True):
            inside[of_region > 0] = index
    else:
        inside = logits.argmax(axis=0)
    labels = prepared.placement.uncrop(inside.astype(np.min_scalar_type(heads.num_labels)))
    return Dense(labels, logits, as_slices(prepared.placement.box), heads.has_regions)


def compare(labels: np.ndarray, dense: Dense, tie: float = TIE) -> Compared:
    """Count where a segmentation has another label than the one that was computed at once.

    Args:
        labels: (Z, Y, X) class indices of the whole image.
        dense: of the same image.
        tie: difference of logits below which two labels are equally good; of a region, of its logit to 0.
    """
    differ = labels != dense.labels
    inside = differ[dense.box]
    logits = dense.logits[:, inside]
    if dense.regions:
        ties = (np.abs(logits) < tie).any(axis=0)
    else:
        pair = (labels[dense.box][inside], dense.labels[dense.box][inside])
        first, second = (np.take_along_axis(logits, of[None].astype(np.intp), axis=0)[0] for of in pair)
        ties = np.abs(first - second) < tie
    return Compared(labels.size, int(differ.sum()), int(ties.sum()))


def bytes_needed(model: Model, shape: Sequence[int], grid: Sequence[int]) -> int:
    """Memory that `labels_at_once` takes, about.

    Args:
        shape: (Z, Y, X) of the image.
        grid: (Z, Y, X) of the configuration.
    """
    heads = model.plan.heads.num_heads
    return 4 * ((heads + 1) * math.prod(grid) + 2 * heads * math.prod(shape))


def tiles_of(model: Model, grid: Sequence[int]) -> int:
    """How many tiles a grid (Z, Y, X) has, those of the previous stage not counted."""
    member = EnsembleMember(model, UNMIRRORED)
    return len(windows_of(tuple(grid), member.tiling((1, *grid))))


@torch.inference_mode()
def _accumulated(member: EnsembleMember, image: Tensor) -> Tensor:
    """Mean logits (K, Z, Y, X) float32 of all tiles of an image (C, Z, Y, X), on the CPU."""
    model, shape = member.model, tuple(image.shape[1:])
    tiling = member.tiling(image.shape)
    tile = (1,) * (3 - len(tiling.tile)) + tuple(tiling.tile)
    windows = windows_of(shape, tiling)
    low = [max(0, -min(window[axis] for window in windows)) for axis in range(3)]
    high = [
        max(0, max(window[axis] for window in windows) + edge - size)
        for axis, (edge, size) in enumerate(zip(tile, shape, strict=True))
    ]
    flat = itertools.chain.from_iterable(zip(reversed(low), reversed(high), strict=True))
    padded = torch.nn.functional.pad(image, tuple(flat))
    importance = gaussian_importance(tile)
    total = torch.zeros((model.plan.heads.num_heads, *padded.shape[1:]))
    weight = torch.zeros(padded.shape[1:])
    network = _mean_of(model)
    for window in windows:
        place = tuple(slice(b + m, b + m + edge) for b, m, edge in zip(window, low, tile, strict=True))
        part = padded[(slice(None), *place)].to(model.device)
        seen = part.reshape(1, len(part), *tiling.tile)
        total[(slice(None), *place)] += network(seen)[0].cpu().reshape(-1, *tile) * importance
        weight[place] += importance
    inner = tuple(slice(m, m + size) for m, size in zip(low, shape, strict=True))
    return (total / weight)[(slice(None), *inner)]


def _mean_of(model: Model) -> Callable[[Tensor], Tensor]:
    """The mean logits of a model's folds at full resolution."""

    def mean(image: Tensor) -> Tensor:
        with autocast(model.device, model.dtype):
            return torch.stack([network(image)[0].float() for network in model.networks]).mean(dim=0)

    return mean
