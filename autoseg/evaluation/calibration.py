"""Whether probabilities mean what they say: calibration error, Brier score, reliability, ROC.

`Reliability` and `Ranking` hold counts. They are updated with one chunk of voxels after the other, and added where
several processes counted, so that a whole dataset fits: what they hold does not grow with it.

Sources: Guo et al., "On calibration of modern neural networks", ICML 2017 (expected calibration error); Brier,
"Verification of forecasts", 1950; Fawcett, "An introduction to ROC analysis", 2006.
"""

from dataclasses import dataclass

import numpy as np

BINS = 15  # of confidence
STEPS = 1 << 14  # of a probability: areas under curves are exact to about 1 / STEPS


@dataclass(frozen=True)
class Reliability:
    """How often the most probable class is right, by how probable it was."""

    voxels: np.ndarray  # (BINS,) int64, by confidence: bin i is above i / BINS and up to (i + 1) / BINS
    confidence: np.ndarray  # (BINS,) float64, sum of the largest probability of each voxel
    correct: np.ndarray  # (BINS,) int64 voxels whose most probable class is right
    squares: float = 0.0  # sum over voxels and classes of (probability - 1 or 0) ** 2

    @classmethod
    def empty(cls, bins: int = BINS) -> "Reliability":
        """Before any voxel."""
        return cls(np.zeros(bins, dtype=np.int64), np.zeros(bins), np.zeros(bins, dtype=np.int64))

    def updated(self, probabilities: np.ndarray, target: np.ndarray, ignore_index: int | None = None) -> "Reliability":
        """Count a chunk of voxels.

        Args:
            probabilities: (K, *s) float, of classes that exclude each other; or (*s), of the foreground alone.
            target: (*s) class indices; for foreground alone, bool or 0 and 1.
            ignore_index: voxels of `target` that are not counted.

        Raises:
            ValueError: shapes do not fit, a probability outside 0..1, or a class that has none.
        """
        bins = len(self.voxels)
        probable, target = _columns(probabilities, target, ignore_index)
        if not target.size:
            return self
        largest = probable.max(axis=0)
        right = probable.argmax(axis=0) == target
        index = np.clip(np.ceil(largest * bins).astype(np.int64) - 1, 0, bins - 1)
        of_truth = np.take_along_axis(probable, target[None], axis=0)[0]
        # (p - 1)^2 for the true class and p^2 for the others: the sum of p^2, plus 1 - 2p of the true class
        squares = float(np.square(probable).sum() + (1 - 2 * of_truth).sum())
        return Reliability(
            self.voxels + np.bincount(index, minlength=bins),
            self.confidence + np.bincount(index, weights=largest, minlength=bins),
            self.correct + np.bincount(index[right], minlength=bins),
            self.squares + squares,
        )

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.voxels + other.voxels,
            self.confidence + other.confidence,
            self.correct + other.correct,
            self.squares + other.squares,
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over voxels of |share that is right - confidence| of their bin, or NaN."""
        return _ratio(float(np.abs(self.correct - self.confidence).sum()), int(self.voxels.sum()))

    @property
    def brier(self) -> float:
        """Brier score, 0 (sure and right) to 2 (sure and wrong): over classes, mean over voxels; NaN of none."""
        return _ratio(self.squares, int(self.voxels.sum()))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean confidence and share that is right in each bin, float64 (BINS,); NaN where no voxel is."""
        with np.errstate(invalid="ignore"):
            return self.confidence / self.voxels, self.correct / self.voxels


@dataclass(frozen=True)
class Ranking:
    """How many voxels of a class, and of all others, have each probability of it, in steps."""

    positives: np.ndarray  # (STEPS + 1,) int64 voxels of the class, by their probability times STEPS, rounded
    negatives: np.ndarray  # (STEPS + 1,) int64 of all others

    @classmethod
    def empty(cls, steps: int = STEPS) -> "Ranking":
        """Before any voxel."""
        return cls(np.zeros(steps + 1, dtype=np.int64), np.zeros(steps + 1, dtype=np.int64))

    def updated(self, probability: np.ndarray, truth: np.ndarray, counted: np.ndarray | None = None) -> "Ranking":
        """Count a chunk of voxels.

        Args:
            probability: (*s) float, of the class.
            truth: (*s) bool, where it is.
            counted: (*s) bool, voxels that are annotated; None: all.

        Raises:
            ValueError: shapes differ, or a probability outside 0..1.
        """
        probable, target = _columns(probability, np.asarray(truth).astype(np.int64), None)
        foreground, inside = probable[1], target.astype(bool)
        if counted is not None:
            foreground, inside = foreground[counted.reshape(-1)], inside[counted.reshape(-1)]
        steps = len(self.positives) - 1
        index = np.rint(foreground * steps).astype(np.int64)
        return Ranking(
            self.positives + np.bincount(index[inside], minlength=steps + 1),
            self.negatives + np.bincount(index[~inside], minlength=steps + 1),
        )

    def __add__(self, other: "Ranking") -> "Ranking":
        return Ranking(self.positives + other.positives, self.negatives + other.negatives)

    def roc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ROC curve: false-positive rate, recall and the threshold of each point, float64 (STEPS + 2,).

        Voxels at or above the threshold are called positive. The first point, of no voxel, has the threshold inf. A
        rate is NaN where no voxel is of that kind.
        """
        steps = len(self.positives) - 1
        rates = []
        for counts in (self.negatives, self.positives):
            above = np.concatenate([[0], np.cumsum(counts[::-1])])
            rates.append(above / above[-1] if above[-1] else np.full(len(above), np.nan))
        return rates[0], rates[1], np.concatenate([[np.inf], np.arange(steps, -1, -1) / steps])

    @property
    def auc(self) -> float:
        """Area under the ROC curve: how likely a voxel of the class is more probable than another; NaN without either.

        Voxels of one step count as half, as ties do.
        """
        false_positive_rate, recall, _ = self.roc()
        return float(np.diff(false_positive_rate) @ (recall[1:] + recall[:-1]) / 2)


def _columns(probabilities: np.ndarray, target: np.ndarray, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 (K, n) and classes int64 (n,) of the voxels that count."""
    probabilities, target = np.asarray(probabilities), np.asarray(target)
    if probabilities.shape == target.shape:
        foreground = probabilities.reshape(1, -1).astype(np.float64)
        columns = np.concatenate([1 - foreground, foreground])
    elif probabilities.shape[1:] == target.shape:
        columns = probabilities.reshape(len(probabilities), -1).astype(np.float64)
    else:
        raise ValueError(f"probabilities {probabilities.shape} and target {target.shape} do not fit")
    classes = target.reshape(-1).astype(np.int64)
    if ignore_index is not None:
        columns, classes = columns[:, classes != ignore_index], classes[classes != ignore_index]
    if columns.size and not (columns.min() >= 0 and columns.max() <= 1):
        raise ValueError(f"probabilities {columns.min()}..{columns.max()} exceed 0..1")
    if classes.size and not (classes.min() >= 0 and classes.max() < len(columns)):
        raise ValueError(f"classes {classes.min()}..{classes.max()} of {len(columns)} with a probability")
    return columns, classes


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")
