"""How well the parts of an ensemble agree on each label of a case: what the quality of its segmentation is judged by.

    pairwise_dice  mean Dice over pairs of members of one fold (its flips) or, where each fold is one member, over pairs
                   of folds: the strongest simple score for failures (Zenk et al. 2025, arXiv 2406.03323)
    soft_dice      Dice that a fold's own probabilities expect of its segmentation: 2 sum(p s) / (sum(p) + sum(s)) with
                   probabilities p and segmentation s (soft Dice confidence, Borges et al. 2024, arXiv 2402.10665);
                   the mean over folds

Both are counted while rows pass by; nothing of the size of a volume is held. A label that no member finds has neither.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autoseg.imaging.labels import LabelSet
from autoseg.inference.ensemble import probabilities
from autoseg.models.build import head_probabilities

SCORES = ("pairwise_dice", "soft_dice")


@dataclass(frozen=True)
class Agreement:
    """Scores of one case: label or region -> value; labels that are not found are missing."""

    pairwise_dice: dict[str, float] = field(default_factory=dict)  # empty where there is one member
    soft_dice: dict[str, float] = field(default_factory=dict)

    def of(self, score: str) -> dict[str, float]:
        """The values of one of SCORES."""
        return self.pairwise_dice if score == "pairwise_dice" else self.soft_dice


class AgreementCounter:
    """Counts the agreement of the members of one case. A consumer of rows."""

    def __init__(self, heads: LabelSet, fold_of: Sequence[int]) -> None:
        """Start a case.

        Args:
            heads: `Plan.heads`.
            fold_of: of each member, the fold it is a part of (`Ensemble.fold_of`).
        """
        self.heads, self.fold_of = heads, tuple(fold_of)
        members, names = len(self.fold_of), len(heads.scored)
        several = len(set(self.fold_of)) < members  # folds of several members: their flips are compared
        pairs = itertools.combinations(range(members), 2)
        self.pairs = [(a, b) for a, b in pairs if not several or self.fold_of[a] == self.fold_of[b]]
        folds = len(set(self.fold_of))
        self._sizes = np.zeros((members, names), dtype=np.int64)
        self._both = np.zeros((len(self.pairs), names), dtype=np.int64)
        self._soft = np.zeros((3, folds, names))  # sums of p s, p, s

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Count rows of the box: one tensor (K, n, Y, X) float32 per member."""
        masks = [self._decided(head_probabilities(part[None], self.heads.has_regions)[0]) for part in logits]
        flat = [mask.reshape(len(mask), -1) for mask in masks]
        anywhere = torch.stack([mask.any(dim=0) for mask in flat]).any(dim=0)
        if anywhere.any():
            flat = [mask[:, anywhere] for mask in flat]
            self._sizes += np.stack([mask.sum(dim=1).cpu().numpy() for mask in flat])
            for number, (a, b) in enumerate(self.pairs):
                self._both[number] += (flat[a] & flat[b]).sum(dim=1).cpu().numpy()
        for number, fold in enumerate(dict.fromkeys(self.fold_of)):
            own = [part for part, of in zip(logits, self.fold_of, strict=True) if of == fold]
            found = probabilities(own, [0] * len(own), self.heads.has_regions)
            decided, expected = self._decided(found), self._scored(found)
            self._soft[0, number] += (expected * decided).sum(dim=(1, 2, 3), dtype=torch.float64).cpu().numpy()
            self._soft[1, number] += expected.sum(dim=(1, 2, 3), dtype=torch.float64).cpu().numpy()
            self._soft[2, number] += decided.sum(dim=(1, 2, 3)).cpu().numpy()

    def result(self) -> Agreement:
        """The scores of all rows that were counted."""
        pairwise, soft = {}, {}
        for column, name in enumerate(self.heads.scored):
            found = []
            for number, (a, b) in enumerate(self.pairs):
                size = self._sizes[a, column] + self._sizes[b, column]
                if size:
                    found.append(2 * self._both[number, column] / size)
            if found:
                pairwise[name] = float(np.mean(found))
            inner, expected, decided = self._soft[:, :, column]
            some = decided > 0
            if some.any():  # a fold that does not find what others find is sure of nothing
                soft[name] = float(np.mean(np.where(some, 2 * inner / np.maximum(expected + decided, 1e-12), 0.0)))
        return Agreement(pairwise, soft)

    def _decided(self, found: Tensor) -> Tensor:
        """Masks bool (names, ...) of what probabilities (K, ...) decide, of labels or regions."""
        if self.heads.has_regions:
            return found > 0.5
        best = found.argmax(dim=0)
        return torch.stack([best == index for index in range(1, self.heads.num_labels + 1)])

    def _scored(self, found: Tensor) -> Tensor:
        """Probabilities (names, ...) of labels or regions."""
        return found if self.heads.has_regions else found[1:]
