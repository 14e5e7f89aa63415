"""The segmentation of a previous stage as further input of a cascade: one channel per label, damaged in training.

A network that is trained on segmentations as good as those of its own training cases learns to copy them. So in
training, labels grow, shrink, lose their thin parts or their holes, and whole components vanish (nnU-Net v2's chain;
the numbers are in `autoseg.augmentation.presets`).

Dilation by a ball of radius r takes all voxels within r of the mask: a threshold of the Euclidean distance, whose cost
does not grow with the ball. (As a structuring element, the ball of radius 8 visits 2109 neighbours of each voxel.) All
work is done in the bounding box of one label, grown by what its operation reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.augmentation.presets import Augmentation


@dataclass(frozen=True)
class PreviousStage:
    """Segmentations on the grid of the preprocessed cases, and how they become channels."""

    folder: Path  # <case>.npy: (Z, Y, X) int8 or int16 class indices
    num_labels: int
    augmentation: Augmentation

    def open(self, case_id: str) -> np.ndarray:
        """Map the segmentation of a case. It takes 0.1 ms, and what is read often stays in the system's memory."""
        return np.load(self.folder / f"{case_id}.npy", mmap_mode="r")

    def channels(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Damage a patch (*s) of class indices as the table says: (num_labels, *s) float32, one channel per label."""
        return one_hot(self.damaged(indices, rng), self.num_labels)

    def damaged(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Damage a patch (*s) of class indices, OUTSIDE included, as the table says; a copy."""
        return corrupt(indices, self.num_labels, self.augmentation, rng)


def one_hot(indices: np.ndarray, num_labels: int) -> np.ndarray:
    """Class indices (*s) as channels (num_labels, *s) float32 of 0 and 1, for labels 1..n."""
    return np.stack([indices == label for label in range(1, num_labels + 1)]).astype(np.float32)


def corrupt(indices: np.ndarray, num_labels: int, table: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Damage a label map (*s) of 2 or 3 axes as an imperfect stage might have; a copy. Labels come in random order."""
    indices = indices.copy()
    if rng.random() < table.operation:
        for label in _drawn_labels(num_labels, table.operation_per_label, rng):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            operate(indices, label, operation, int(rng.integers(*table.operation_radius, endpoint=True)))
    if rng.random() < table.removal:
        for label in _drawn_labels(num_labels, table.removal_per_label, rng):
            remove_component(indices, label, table.removal_share, rng)
    return indices


def operate(indices: np.ndarray, label: int, operation: Callable[[np.ndarray, int], np.ndarray], radius: int) -> None:
    """Change one label's mask in place. What it gains it takes from others; what it loses is background."""
    mask = indices == label
    if not mask.any():
        return
    box = _box(mask, radius + 1)  # 1: an erosion starts from the voxels outside
    before, part = mask[box], indices[box]
    after = operation(before, radius)
    part[before & ~after] = 0
    part[after] = label


def remove_component(indices: np.ndarray, label: int, share: float, rng: np.random.Generator) -> None:
    """Turn one random component of a label into background, in place.

    Components touch over faces, edges or corners. Those that cover at least `share` of the patch are never taken.
    """
    mask = indices == label
    if not mask.any():
        return
    box = _box(mask, 0)
    labelled, _ = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
    small = 1 + np.flatnonzero(np.bincount(labelled.ravel())[1:] < share * indices.size)
    if len(small):
        indices[box][labelled == rng.choice(small)] = 0


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Voxels at most `radius` voxels from the mask."""
    return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask  # undefined without a mask


def eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """Voxels of the mask more than `radius` voxels from any other. Beyond the array there is nothing that erodes."""
    return mask if mask.all() else ndimage.distance_transform_edt(mask) > radius


def opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask without the parts that no ball fits into."""
    return dilated(eroded(mask, radius), radius)


def closed(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask with the gaps that no ball fits into."""
    return eroded(dilated(mask, radius), radius)


OPERATIONS = (dilated, eroded, opened, closed)


def _drawn_labels(num_labels: int, probability: float, rng: np.random.Generator) -> list[int]:
    """Each label with a probability, in random order."""
    order = rng.permutation(num_labels) + 1
    return order[rng.random(num_labels) < probability].tolist()


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Bounding box of a mask that is not empty, grown by a margin as far as the array goes."""
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    return tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)
