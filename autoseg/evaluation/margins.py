"""Logits of a held-out case as compact counts, from which any decision rule can be scored without the network.

Of every voxel only this matters: by how much the logit of each class is below the largest one (or, for regions, each
logit itself), in steps of STEP, and what the reference says. Voxels that agree in both are counted together: a few
thousand rows per case instead of a volume of logits per label.

For offsets that are multiples of STEP the result is that of the logits themselves: a class k wins over the largest one
where the distance is below the difference of their offsets, and no step of the distance is divided by that limit. The
second largest is marked, so that it is known which class follows where the largest is lowered. Only where several
offsets let two other classes compete is a difference below STEP not resolved.

    MarginCounter   consumes the logits of an ensemble, row by row
    MarginTable     the counts of one case; `confusion` scores a rule
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.imaging.labels import LabelSet
from autoseg.workspace import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

STEP = 0.25  # of logits
REACH = 40  # steps; classes that are further below the largest never win (10 in logits: a share of 1 in 22000)
HALF = 30  # steps above and below 0 of the logit of a region
_BITS, _PER_WORD = 7, 9  # codes of a voxel packed into words, to count equal ones fast


@dataclass(frozen=True)
class MarginTable:
    """The voxels of one case, those that are alike counted together.

    Args:
        codes: (n, K) int8: 0 for the class of the largest logit, otherwise 1 + twice the whole steps below it (at most
            REACH), and 1 more but for the second largest; of regions, whole steps above 0, from -HALF - 1 to HALF.
        reference: (n,) int16 class indices; annotated voxels alone.
        counts: (n,) int64 voxels.
        outside: (C,) int64 voxels by reference class beyond the cropped box, which are background in any case.
    """

    codes: np.ndarray
    reference: np.ndarray
    counts: np.ndarray
    outside: np.ndarray

    def confusion(self, offsets: np.ndarray, heads: LabelSet) -> np.ndarray:
        """Confusion matrix int64 (C, C), [reference, segmentation], of a rule that adds offsets (K,) to the logits."""
        classes = heads.num_labels + 1
        decided = self._decided(np.asarray(offsets, np.float32), heads)
        found = np.bincount(
            self.reference.astype(np.int64) * classes + decided, weights=self.counts, minlength=classes**2
        )
        confusion = found.astype(np.int64).reshape(classes, classes)
        confusion[:, 0] += self.outside
        return confusion

    def _decided(self, offsets: np.ndarray, heads: LabelSet) -> np.ndarray:
        if not heads.has_regions:
            steps, behind = np.divmod(np.maximum(self.codes, 1).astype(np.float32) - 1, 2)
            scores = -(steps + 0.5 + behind / 4) * STEP
            scores[self.codes == 0] = 0
            scores[steps >= REACH] = -np.inf
            return (scores + offsets).argmax(axis=1)
        inside = (self.codes.astype(np.float32) + 0.5) * STEP + offsets > 0
        decided = np.zeros(len(self.codes), dtype=np.int64)
        for column, index in zip(inside.T, heads.region_indices, strict=True):
            decided[column] = index
        return decided

    def divided(self, column: int) -> "tuple[MarginTable, MarginTable]":
        """The voxels where an offset of one class can matter, and the others."""
        near = np.abs(self.codes[:, column].astype(np.int16)) <= 2 * REACH
        nothing = np.zeros_like(self.outside)
        parts = [
            MarginTable(self.codes[rows], self.reference[rows], self.counts[rows], outside)
            for rows, outside in ((near, nothing), (~near, self.outside))
        ]
        return parts[0], parts[1]

    def save(self, path: Path, key: str) -> None:
        """Write the table, with what identifies what it was made of. Raises StorageError."""
        arrays = {"codes": self.codes, "reference": self.reference, "counts": self.counts, "outside": self.outside}
        write_atomically(path, lambda file: np.savez_compressed(file, key=np.array(key), **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, key: str) -> "MarginTable | None":
        """Read a table; None where there is none, or it was made of something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["key"]) != key:
                    return None
                return cls(file["codes"], file["reference"], file["counts"], file["outside"])
        except (OSError, ValueError, KeyError, EOFError):
            return None
        except Exception as error:  # zipfile and zlib have errors of their own for damaged files
            if type(error).__module__ in ("zipfile", "zlib"):
                return None
            raise


class MarginCounter:
    """Counts the logits of one ensemble over a case. A consumer of rows (`inference.streaming`).

    Args:
        heads: `Plan.heads`.
        reference: (Z, Y, X) class indices in the cropped box, in the plan's axis order.
        members: which of the members that are run form this ensemble, and of each the model it is a part of.
        outside: (C,) voxels by reference class beyond the box.
    """

    def __init__(self, heads: LabelSet, reference: np.ndarray, members: dict[int, int], outside: np.ndarray) -> None:
        self.heads, self.reference, self.members, self.outside = heads, reference, members, outside
        self._found: list[tuple[np.ndarray, np.ndarray]] = []  # packed rows, counts

    def take(self, rows: slice, logits: "Sequence[Tensor]") -> None:
        """Count some rows."""
        from autoseg.inference.ensemble import ensemble_logits

        own = [logits[number] for number in self.members]
        scores = ensemble_logits(own, [*self.members.values()], self.heads.has_regions).numpy()
        reference = self.reference[rows].reshape(-1)
        flat = scores.reshape(len(scores), -1)
        known = (reference >= 0) & (reference <= self.heads.num_labels)
        if not known.all():
            flat, reference = flat[:, known], reference[known]
        self._found.append(_counted(_packed(_codes(flat, self.heads.has_regions), reference)))
        if len(self._found) > 16:
            self._found = [_merged(self._found)]

    def result(self) -> MarginTable:
        """The counts of all rows."""
        heads = self.heads.num_heads
        packed, counts = _merged(self._found) if self._found else (np.empty((0, 1 + -(-heads // _PER_WORD)), int), [])
        codes, reference = _unpacked(np.asarray(packed, np.int64), heads)
        if self.heads.has_regions:
            codes = codes - HALF - 1
        return MarginTable(codes.astype(np.int8), reference, np.asarray(counts, np.int64), self.outside)


def _codes(scores: np.ndarray, has_regions: bool) -> np.ndarray:
    """Codes (K, n) from 0 on, of logits (K, n)."""
    if has_regions:
        return (np.clip(np.floor(scores / STEP), -HALF - 1, HALF) + HALF + 1).astype(np.int64)
    largest = scores.argmax(axis=0)
    columns = np.arange(scores.shape[1])
    below = scores[largest, columns] - scores
    codes = 2 + 2 * np.minimum(np.floor(below / STEP), REACH).astype(np.int64)
    below[largest, columns] = np.inf
    if len(scores) > 1:
        second = below.argmin(axis=0)
        codes[second, columns] -= codes[second, columns] < 2 + 2 * REACH  # beyond reach it does not matter
    codes[largest, columns] = 0
    return codes


def _packed(codes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Codes (K, n) and reference (n,) as words (n, w) int64."""
    words = [reference.astype(np.int64)]
    for start in range(0, len(codes), _PER_WORD):
        word = np.zeros(codes.shape[1], np.int64)
        for code in codes[start : start + _PER_WORD]:
            word = (word << _BITS) | code
        words.append(word)
    return np.stack(words, axis=1)


def _unpacked(packed: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, K) and reference (n,) of words."""
    codes = np.empty((len(packed), heads), np.int64)
    for number, start in enumerate(range(0, heads, _PER_WORD), start=1):
        word = packed[:, number].copy()
        for column in reversed(range(start, min(start + _PER_WORD, heads))):
            codes[:, column] = word & (2**_BITS - 1)
            word >>= _BITS
    return codes, packed[:, 0].astype(np.int16)


def _counted(packed: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of words, and how often each occurs."""
    if not len(packed):
        return packed, np.empty(0, np.int64)
    weights = np.ones(len(packed), np.int64) if counts is None else counts
    runs, lengths = _runs(packed, weights)  # neighbours are mostly alike: what is sorted then is short
    order = np.lexsort(runs.T)
    return _runs(runs[order], lengths[order])


def _runs(packed: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows that follow each other, as one."""
    starts = np.flatnonzero(np.append(True, (packed[1:] != packed[:-1]).any(axis=1)))
    return packed[starts], np.add.reduceat(counts, starts)


def _merged(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return _counted(np.concatenate([rows for rows, _ in found]), np.concatenate([counts for _, counts in found]))
