"""Patches as they are stored: case and place of a sample chosen, and its voxels cut out of the memory map.

The part of the image that a deformation reaches is known before it is read, so a chain draws first, then the patch is
cut with that margin, then the chain continues.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autoseg.dataloading.previous_stage import PreviousStage
from autoseg.dataloading.sampling import PatchSampler, cut_patch, sample_generator
from autoseg.dataloading.store import CaseStore, StoredCase
from autoseg.imaging.labels import OUTSIDE

OPEN_CASES = 64  # mapped at a time, per process; each holds three file descriptors


class Drawn(Protocol):
    """What a chain has drawn for one sample."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Voxels beyond the patch that are reached, on either side of each axis."""


class Chain(Protocol):
    """What a chain of augmentation says before a patch is cut. It alone holds the size of a training's patches."""

    patch_size: tuple[int, ...]  # (Z, Y, X) or (Y, X), as the network sees it
    border: float  # what stands outside the image

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw what decides how much of the image is needed."""


@dataclass(frozen=True)
class RawPatch:
    """A sample before augmentation: the patch, grown by the margin of what was drawn for it."""

    case: str
    image: np.ndarray  # (C, *size) float16 or float32, as stored
    target: np.ndarray  # (*size) int8 or int16 class indices, OUTSIDE = -1
    previous: np.ndarray | None  # (*size) class indices of a previous stage, OUTSIDE where there is no image
    drawn: Any  # by the chain
    rng: np.random.Generator  # of the sample, as the chain left it


class PatchReader:
    """Sample index -> raw patch.

    Args:
        store: the preprocessed cases.
        sampler: chooses case and place; its cases must be in the store.
        previous: the segmentations that a cascade sees beside the image, or None.
        in_memory: read all cases now and keep them. Processes forked from this one share the memory.
    """

    def __init__(
        self, store: CaseStore, sampler: PatchSampler, previous: PreviousStage | None = None, *, in_memory: bool
    ) -> None:
        self.store = store
        self.sampler = sampler
        self.previous = previous
        self.in_memory = in_memory
        self.cases: dict[str, StoredCase] = {}
        if in_memory:
            self.cases = {case: store.open(case).in_memory() for case in sampler.cases}

    def read(self, index: int, chain: Chain) -> RawPatch:
        """Cut the patch of a sample, as wide as the chain's draw needs it."""
        rng = sample_generator(self.sampler.seed, index)
        case = self._open(self.sampler.case_of(index))
        lower = self.sampler.choose(index, case, chain.patch_size, rng).lower
        drawn = chain.draw(rng)
        margin = drawn.margin
        size = [length + 2 * m for length, m in zip(chain.patch_size, margin, strict=True)]
        lower = tuple(first - m for first, m in zip(lower, (0, *margin)[-3:], strict=True))  # type: ignore[assignment]
        image = cut_patch(case.image, lower, size, chain.border)
        target = cut_patch(case.target, lower, size, OUTSIDE)
        previous = None
        if self.previous is not None:
            previous = cut_patch(self.previous.open(case.info.id), lower, size, OUTSIDE)
        return RawPatch(case.info.id, image, target, previous, drawn, rng)

    def __getstate__(self) -> dict[str, Any]:
        """Mapped files are not sent to a new process: it opens its own."""
        return self.__dict__ | ({} if self.in_memory else {"cases": {}})

    def _open(self, case_id: str) -> StoredCase:
        if case_id not in self.cases:
            if len(self.cases) >= OPEN_CASES:
                self.cases.pop(next(iter(self.cases)))
            self.cases[case_id] = self.store.open(case_id)
        return self.cases[case_id]
