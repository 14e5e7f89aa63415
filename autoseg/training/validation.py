"""How a fold is doing while it trains: loss and pseudo Dice on fixed samples, without augmentation.

The samples are the same in every epoch, and in every training of the fold whatever its seed, so that what changes from
one to the next is the network. Where the held-out volumes are small, some of them are seen whole, tile by tile;
otherwise patches drawn with a seed of their own stand for them. The same is done with half as many samples of training
cases: the gap between the two is what a fold has learnt by heart. Together they take a few percent of an epoch's time.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.previous_stage import PreviousStage, one_hot
from autoseg.dataloading.sampling import cut_patch, sample_generator
from autoseg.dataloading.store import CaseStore, StoredCase
from autoseg.imaging.geometry import Axes3
from autoseg.imaging.labels import OUTSIDE, LabelSet
from autoseg.nn.precision import autocast
from autoseg.nn.sliding_window import tile_starts
from autoseg.planning.plan import Configuration, Plan
from autoseg.training.batches import build_sampler

MIN_SAMPLES = 16  # samples, however short an epoch is
SAMPLE_SHARE = 0.1  # of an epoch's samples; one that is only watched takes a third of the time of one that is learnt
SMALL = 2  # tiles: volumes that come to no more on average are seen whole
PLACES_SEED = 1_000_000  # of where patches lie
OPEN_CASES = 32  # mapped at a time, of the validation and of the training cases; each holds three file descriptors

Batch = dict[str, Any]


def samples_to_validate(batch_size: int, iterations_per_epoch: int) -> int:
    """How many samples of validation cases are looked at after an epoch; of training cases it is half of that."""
    return max(MIN_SAMPLES, int(SAMPLE_SHARE * batch_size * iterations_per_epoch))


@dataclass(frozen=True)
class ValidationBatches:
    """Samples that stand for some cases: iterate over them, as often as you like, for the same batches.

    Only their places are kept. The voxels are cut from the mapped cases each time: 75 patches of 128 x 128 x 128 voxels
    and four channels would take almost three gigabytes of memory.
    """

    open_case: Callable[[str], StoredCase]
    places: tuple[tuple[str, Axes3], ...]  # case and lower corner (z, y, x) of each sample
    patch_size: tuple[int, ...]
    batch_size: int
    stage: PreviousStage | None = None  # of a cascade

    def __iter__(self) -> Iterator[Batch]:
        """{"image": float32 (B, C, *patch), "target": integer class indices (B, *patch)}, on the CPU.

        The last batch may be smaller.
        """
        for first in range(0, len(self.places), self.batch_size):
            samples = self.places[first : first + self.batch_size]
            images, targets = zip(*itertools.starmap(self._cut, samples), strict=True)
            yield {"image": torch.stack(images), "target": torch.stack(targets)}

    def _cut(self, case_id: str, lower: Axes3) -> tuple[Tensor, Tensor]:
        case, size = self.open_case(case_id), self.patch_size
        image = cut_patch(case.image, lower, size, 0.0).astype(np.float32)
        target = np.maximum(cut_patch(case.target, lower, size, OUTSIDE), 0)
        if self.stage:
            before = np.maximum(cut_patch(self.stage.open(case_id), lower, size, OUTSIDE), 0)
            image = np.concatenate([image, one_hot(before, self.stage.num_labels)])
        return torch.from_numpy(image), torch.from_numpy(target)


def choose_batches(
    store: CaseStore,
    cases: Sequence[str],
    plan: Plan,
    configuration: Configuration,
    *,
    samples: int,
    previous: Path | None = None,
) -> ValidationBatches:
    """Choose the samples that stand for these cases.

    Args:
        samples: about how many patches there are to be, in whole batches, or tiles of small volumes.
        previous: for a cascade, the folder of the previous stage's segmentations.
    """
    patch, open_case = configuration.patch_size, lru_cache(OPEN_CASES)(store.open)
    tiles_per_case = sum(tile_count(store.info(case).shape, patch) for case in cases) / len(cases)
    if tiles_per_case > SMALL:
        size = configuration.batch_size
        places = _patches(store, cases, plan, patch, math.ceil(samples / size) * size)
    else:
        seen = evenly_spaced(cases, max(1, int(samples / tiles_per_case)))
        places = [(case, lower) for case in seen for lower in _tiles(store.info(case).shape, patch)]
    stage = PreviousStage(previous, plan.labels.num_labels, AUGMENTATIONS["none"]) if previous else None
    return ValidationBatches(open_case, tuple(places), patch, configuration.batch_size, stage)


def evenly_spaced(cases: Sequence[str], number: int) -> list[str]:
    """So many of these cases, evenly spread over their order; all, if there are no more."""
    number = min(number, len(cases))
    return [cases[i * len(cases) // number] for i in range(number)]


def tile_count(shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """Tiles side by side that cover a volume (Z, Y, X); 2-D ones on every slice."""
    return math.prod(map(len, _starts(shape, patch_size)))


def validate(
    network: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Batch],
    plan: Plan,
    device: torch.device,
    dtype: str,
    *,
    parts: int = 1,
) -> tuple[float, list[float | None]]:
    """Mean loss and pseudo Dice on fixed samples.

    Processes that train together do the same, all of it: a loss is one they work out in common.

    Args:
        parts: in which a batch passes the network.

    The pseudo Dice of a label or region counts voxels over all samples together; None where it occurs in neither.
    """
    heads, ignore_index = plan.heads, plan.labels.ignore_index
    classes = plan.labels.num_labels + 1
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)  # voxels by reference and segmentation
    losses: list[Tensor] = []
    samples: list[int] = []
    network.eval()
    with torch.inference_mode():
        for image, target in _divided(batches, parts):
            image, target = image.to(device), target.to(device)
            with autocast(device, dtype):
                logits = network(image)
            losses.append(criterion(logits, target))
            samples.append(len(target))
            decided = decide(logits[0], heads)
            if ignore_index is not None:
                decided, target = decided[target != ignore_index], target[target != ignore_index]
            joint = target.long().flatten() * classes + decided.flatten()
            confusion += joint.bincount(minlength=classes**2).view(classes, classes)
    network.train()
    loss = torch.stack(losses).cpu().double() @ torch.tensor(samples).double() / sum(samples)  # MPS has no float64
    return float(loss), _dice(confusion.cpu(), list(plan.labels.scored.values()))


def _divided(batches: Iterable[Batch], parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and targets of batches, each in so many parts or in samples."""
    for batch in batches:
        image, target = (batch[key].tensor_split(min(parts, len(batch[key]))) for key in ("image", "target"))
        yield from zip(image, target, strict=True)


def decide(logits: Tensor, heads: LabelSet) -> Tensor:
    """Class indices (B, *s) from logits (B, K, *s), as `LabelSet.decide` decides from probabilities."""
    if not heads.has_regions:
        return logits.argmax(dim=1)
    decided = torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for head, index in enumerate(heads.region_indices):
        decided[logits[:, head] > 0] = index
    return decided


def _dice(confusion: Tensor, scored: Sequence[tuple[int, ...]]) -> list[float | None]:
    """Dice of each union of class indices; None where neither the reference nor the segmentation has a voxel of it."""
    dice: list[float | None] = []
    for indices in scored:
        of_reference, of_segmentation = confusion[list(indices)], confusion[:, list(indices)]
        voxels = int(of_reference.sum() + of_segmentation.sum())
        dice.append(2 * int(of_reference[:, list(indices)].sum()) / voxels if voxels else None)
    return dice


def _patches(
    store: CaseStore, cases: Sequence[str], plan: Plan, patch_size: Sequence[int], samples: int
) -> list[tuple[str, Axes3]]:
    """Case and lower corner of patches, as many of them on foreground as in training."""
    sampler = build_sampler(store, cases, plan, PLACES_SEED)
    chosen = [
        sampler.choose(index, store.open(sampler.case_of(index)), patch_size, sample_generator(PLACES_SEED, index))
        for index in range(samples)
    ]
    return [(choice.case, choice.lower) for choice in chosen]


def _tiles(shape: Sequence[int], patch_size: Sequence[int]) -> Iterator[Axes3]:
    """Lower corners of the tiles that cover a volume."""
    return itertools.product(*_starts(shape, patch_size))  # type: ignore[return-value]


def _starts(shape: Sequence[int], patch_size: Sequence[int]) -> list[list[int]]:
    """Where tiles begin along Z, Y, X: side by side; one in the middle of an axis that is shorter than it."""
    extent = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    return [
        tile_starts(edge, tile, 1.0) if edge > tile else [(edge - tile) // 2]
        for edge, tile in zip(shape, extent, strict=True)
    ]
