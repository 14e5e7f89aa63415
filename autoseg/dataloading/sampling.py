"""Which case and which place the next patch comes from.

nnU-Net v2's scheme, with five changes:

- Everything follows from (seed, index of the sample): no global state, no dependence on batch size or worker.
- Cases are drawn in rounds. In each round a case comes as often as its weight says, rounded up or down by chance, in
  random order; with equal weights, exactly once. Same expectation as drawing with replacement, less variance.
- Foreground patches are spread evenly over the samples, so that their share is exact (nnU-Net v2: a rounded number per
  batch, 50 % instead of 33 % for a batch of 2), and their cases are drawn among those that have foreground.
- The voxel a foreground patch is aimed at lies anywhere in the patch, not always at its centre: the network must find
  small objects wherever they lie, also where the border cuts them.
- Patches never run past the border, unless the image is smaller than the patch; then the image lies in their middle.

How often a case is drawn, and how often a label is aimed at, are rules in one table, SAMPLERS. A new rule is a function
and a line there; `training.case_sampling` or `training.class_sampling` in the plan names it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.dataloading.store import CaseInfo, StoredCase
from autoseg.imaging.geometry import Axes3

INVERSE_FREQUENCY_POWER = 0.5  # a label 10,000 times rarer is aimed at 100 times as often
REPEAT_POWER = 0.5  # a case whose rarest label occurs in 1 % of the cases is drawn 10 times as often


def equally(label_voxels: np.ndarray) -> np.ndarray:
    """Draw all cases equally often."""
    return np.ones(len(label_voxels))


def by_presence(label_voxels: np.ndarray) -> np.ndarray:
    """Draw a case sqrt(cases / cases with its rarest label) times as often as one without any label.

    Repeat-factor sampling (Gupta et al., LVIS, 2019).
    """
    has = label_voxels > 0
    repeats = (len(label_voxels) / np.maximum(has.sum(axis=0), 1)) ** REPEAT_POWER
    return np.maximum((has * repeats).max(axis=1), 1.0)


def any_label(label_voxels: np.ndarray) -> np.ndarray:
    """Aim at all labels of a case equally often."""
    return np.ones(label_voxels.shape[1])


def by_inverse_frequency(label_voxels: np.ndarray) -> np.ndarray:
    """Aim at a label in proportion to the inverse square root of its voxels in all cases."""
    return np.maximum(label_voxels.sum(axis=0), 1.0) ** -INVERSE_FREQUENCY_POWER


# Rules by name. Each takes the voxels of every label in every case, (cases, labels) int64, and returns relative
# frequencies above 0: those of "case" one per case (cases,), those of "class" one per label (labels,).
Rule = Callable[[np.ndarray], np.ndarray]
SAMPLERS: dict[str, dict[str, Rule]] = {
    "case": {"uniform": equally, "presence": by_presence},
    "class": {"uniform": any_label, "inverse_frequency": by_inverse_frequency},
}


@dataclass(frozen=True)
class PatchChoice:
    """One patch: where it is cut, and why there."""

    case: str
    lower: Axes3  # lower corner in voxels of the stored case; negative where the image is smaller than the patch
    voxel: Axes3 | None = None  # what the patch is aimed at
    class_index: int | None = None  # of the voxel, in a foreground patch


class PatchSampler:
    """Chooses the patch of sample 0, 1, 2, ... of a training.

    Args:
        infos: the cases to draw from, by id.
        labels: what foreground patches are aimed at: class indices united by each region, or one tuple per label.
        foreground_fraction: share of the samples aimed at foreground. Without any foreground there are none.
        case_sampling: how often each case is drawn, a key of SAMPLERS["case"].
        class_sampling: which of a case's labels is aimed at, a key of SAMPLERS["class"].
        seed: of all draws; not negative.
    """

    def __init__(
        self,
        infos: Mapping[str, CaseInfo],
        *,
        labels: Sequence[Sequence[int]],
        foreground_fraction: float,
        case_sampling: str = "uniform",
        class_sampling: str = "uniform",
        seed: int,
    ) -> None:
        assert infos
        assert 0 <= foreground_fraction <= 1
        self.infos = dict(infos)
        self.cases = tuple(infos)
        self.position = {case: position for position, case in enumerate(self.cases)}
        self.labels = tuple(tuple(label) for label in labels)
        self.seed = seed
        self.class_voxels = np.array([info.class_voxels for info in infos.values()], dtype=np.int64)  # (cases, classes)
        label_voxels = np.stack([self.class_voxels[:, list(label)].sum(axis=1) for label in self.labels], axis=1)
        self.has = label_voxels > 0  # (cases, labels)
        self.fraction = foreground_fraction if self.has.any() else 0.0
        self.label_weights = SAMPLERS["class"][class_sampling](label_voxels)
        self.case_weights = SAMPLERS["case"][case_sampling](label_voxels)
        assert self.label_weights.shape == (len(self.labels),), f"{class_sampling}: one weight per label"
        assert self.case_weights.shape == (len(self.cases),), f"{case_sampling}: one weight per case"
        self.has_foreground = self.has.any(axis=1)
        self._rounds: dict[tuple[bool, int], np.ndarray] = {}

    def is_foreground(self, index: int) -> bool:
        """Is this sample aimed at foreground? Of the first n samples, floor(n * fraction) are."""
        return self._aimed_before(index + 1) > self._aimed_before(index)

    def case_of(self, index: int) -> str:
        """The case of a sample."""
        aimed, before = self.is_foreground(index), self._aimed_before(index)
        number, place = divmod(before if aimed else index - before, self._round_length(aimed))
        return self.cases[self._round(aimed, number)[place]]

    def choose(self, index: int, case: StoredCase, patch_size: Sequence[int], rng: np.random.Generator) -> PatchChoice:
        """Choose the patch of a sample within its case (that of `case_of`), drawing from `rng`.

        Args:
            patch_size: (Z, Y, X), or (Y, X) for a slice of the case's first axis.
        """
        position = self.position[case.info.id]
        shape = case.info.shape
        patch = _of_3_axes(patch_size)
        if self.is_foreground(index):
            weights = self.label_weights * self.has[position]
            label = self.labels[rng.choice(len(self.labels), p=weights / weights.sum())]
            voxels = self.class_voxels[position, list(label)]
            class_index = int(rng.choice(label, p=voxels / voxels.sum()))
            rows = case.locations[class_index]
            voxel = _row(rows, rng)
            return PatchChoice(case.info.id, _aim(rng, voxel, shape, patch), voxel, class_index)
        if case.annotated is not None and len(case.annotated):
            voxel = _row(case.annotated, rng)
            return PatchChoice(case.info.id, _aim(rng, voxel, shape, patch), voxel)
        lower = tuple(
            int(rng.integers(0, s - p, endpoint=True)) if s >= p else _centred(s, p)
            for s, p in zip(shape, patch, strict=True)
        )
        return PatchChoice(case.info.id, lower)  # type: ignore[arg-type]

    def _aimed_before(self, index: int) -> int:
        return math.floor(index * self.fraction + 1e-9)  # 1e-9: 100 samples at 0.29 hold 29, not 28

    def _round_length(self, aimed: bool) -> int:
        return int(self.has_foreground.sum()) if aimed else len(self.cases)

    def _round(self, aimed: bool, number: int) -> np.ndarray:
        """Indices of the cases of one round, in order: systematic sampling by weight, then shuffled."""
        if (aimed, number) not in self._rounds:
            self._rounds = {k: v for k, v in self._rounds.items() if k[0] != aimed or abs(k[1] - number) < 2}
            rng = np.random.default_rng([self.seed, 1 + aimed, number])
            weights = self.case_weights * self.has_foreground if aimed else self.case_weights
            length = self._round_length(aimed)
            edges = np.cumsum(weights) * (length / weights.sum())
            edges[np.flatnonzero(weights)[-1] :] = length + 1.0  # against rounding: the last point finds a case
            order = np.searchsorted(edges, rng.random() + np.arange(length), side="right")
            self._rounds[aimed, number] = rng.permutation(order)
        return self._rounds[aimed, number]


def sample_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample, whoever computes it: choice of the place, then augmentation."""
    return np.random.default_rng([seed, 0, index])


def cut_patch(array: np.ndarray, lower: Sequence[int], size: Sequence[int], pad_value: float) -> np.ndarray:
    """Copy a patch out of an array, padded where it runs past the border.

    Args:
        array: (..., Z, Y, X), of any dtype; may be a memory map.
        lower: lower corner (z, y, x); may be negative.
        size: (Z, Y, X); or (Y, X) for the slice lower[0], returned without the axis Z.
        pad_value: what stands outside the image.
    """
    flat = len(size) == 2
    extent = [1, *size] if flat else list(size)
    shape = array.shape[-3:]
    inner: list[slice] = []
    outer: list[slice] = []
    for first, length, limit in zip(lower, extent, shape, strict=True):
        start, stop = min(max(first, 0), limit), max(min(first + length, limit), 0)
        inner.append(slice(start, max(start, stop)))
        outer.append(slice(start - first, max(start, stop) - first))
    here: tuple[Any, ...] = (..., *inner)
    there: tuple[Any, ...] = (..., *outer)
    if all(s.stop - s.start == length for s, length in zip(inner, extent, strict=True)):
        patch = np.array(array[here])
    else:
        patch = np.full((*array.shape[:-3], *extent), pad_value, dtype=array.dtype)
        patch[there] = array[here]
    return patch[..., 0, :, :] if flat else patch


def _of_3_axes(patch_size: Sequence[int]) -> Axes3:
    """A patch as it lies in the stored case: a 2-D one is one slice thick."""
    assert len(patch_size) in (2, 3)
    z, y, x = [1, *patch_size][-3:]
    return z, y, x


def _row(rows: np.ndarray, rng: np.random.Generator) -> Axes3:
    z, y, x = rows[rng.integers(len(rows))].tolist()
    return z, y, x


def _aim(rng: np.random.Generator, voxel: Axes3, shape: Axes3, patch_size: Axes3) -> Axes3:
    """Lower corner of a patch that has the voxel at any of its places alike, kept inside the image."""
    lower = []
    for v, s, p in zip(voxel, shape, patch_size, strict=True):
        corner = v - int(rng.integers(p))
        lower.append(min(max(corner, 0), s - p) if s >= p else _centred(s, p))
    return lower[0], lower[1], lower[2]


def _centred(shape: int, patch: int) -> int:
    """Lower corner that puts a smaller image in the middle of the patch."""
    return -((patch - shape) // 2)
