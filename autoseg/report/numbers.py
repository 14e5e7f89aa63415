"""The numbers that figures and tables of a report show, apart from how they are drawn.

outliers       cases unlike the others: modified z-score above 3.5 (Iglewicz and Hoaglin 1993)
sizes_of       reference and segmented size of every label of every held-out case
bland_altman   bias and 95 % limits of agreement of two measurements (Bland and Altman 1986)
band           mean and standard deviation of curves over their common part
interval_text  a mean with its interval over patients
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.evaluation.statistics import mean_dice_of
from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import CaseFingerprint, Fingerprint
from autoseg.workspace import FoldName

Floats = NDArray[np.float64]

OUTLYING = 3.5  # modified z-score
MAD_TO_SIGMA = 0.6745  # of a normal distribution: 0.6745 sigma is the median absolute deviation
MEAN_TO_SIGMA = 0.7979  # and this many the mean absolute deviation, which is used where the median one is 0
LEAST_CASES = 5  # of which one can be unlike the others
ORDERS = 30.0  # largest over smallest value from which ratios matter, not differences
LEAST_RATIO = 1.15  # a size or spacing closer to the median is not an outlier, however alike the others are


@dataclass(frozen=True)
class Outlier:
    """One case that is unlike the others in one measurement."""

    case: str
    what: str
    value: float
    median: float
    score: float  # modified z-score, signed
    unit: str


@dataclass(frozen=True)
class OutlierGroup:
    """Cases that are unlike the others in one measurement, on one side of the median."""

    what: str
    above: bool
    cases: tuple[Outlier, ...]  # the most unlike first

    @property
    def values(self) -> tuple[float, float]:
        """The smallest and the largest."""
        values = [one.value for one in self.cases]
        return min(values), max(values)


@dataclass(frozen=True)
class Sizes:
    """One label of one held-out case, in the unit of `size_unit`."""

    case: str
    fold: FoldName
    label: str
    reference: float
    segmented: float
    dice: float | None


@dataclass(frozen=True)
class Agreement:
    """Of differences (segmented - reference): their mean, and where 95 % of them lie if they are normal."""

    bias: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Band:
    """Curves on a common axis."""

    x: Floats
    mean: Floats
    std: Floats
    curves: int


def modified_z(values: Floats) -> Floats:
    """Modified z-scores: distance from the median in robust standard deviations; 0 where all values are equal."""
    from_median = values - np.median(values)
    spread = np.median(np.abs(from_median)) / MAD_TO_SIGMA
    if spread == 0:
        spread = np.abs(from_median).mean() / MEAN_TO_SIGMA
    return from_median / spread if spread > 0 else np.zeros_like(from_median)


def outliers(fingerprint: Fingerprint) -> list[Outlier]:
    """Cases unlike the others in spacing, size, intensities or the size of a label; the most unlike first."""
    cases = fingerprint.cases
    found: list[Outlier] = []
    flat = all(case.shape[0] == 1 for case in cases)
    for axis, name in list(enumerate("zyx"))[1 if flat else 0 :]:
        found += _unlike(cases, f"spacing along {name}", "mm", {c.id: c.spacing[axis] for c in cases}, log=True)
        extents = {c.id: c.shape[axis] * c.spacing[axis] for c in cases}
        found += _unlike(cases, f"extent along {name}", "mm", extents, log=True)
    for index, channel in enumerate(fingerprint.channels):
        measured = {c.id: c.intensities[index] for c in cases if len(c.intensities) > index}
        medians = {case: one.median for case, one in measured.items()}
        widths = {case: one.p99_5 - one.p00_5 for case, one in measured.items()}
        found += _unlike(cases, f"median intensity of {channel}", "", medians, log=_orders(medians))
        found += _unlike(cases, f"intensity range of {channel}", "", widths, log=True)
    unit, scale = size_unit(cases)
    for label in fingerprint.labels:
        sizes = {c.id: c.class_voxels.get(label, 0) * math.prod(c.spacing) * scale for c in cases}
        present = {case: size for case, size in sizes.items() if size > 0}
        found += _unlike(cases, f"size of {label}", unit, present, log=True)
    return sorted(found, key=lambda one: -abs(one.score))


def grouped(found: Sequence[Outlier]) -> list[OutlierGroup]:
    """Outliers by measurement and side; the group with the most unlike case first."""
    groups: dict[tuple[str, bool], list[Outlier]] = {}
    for one in found:
        groups.setdefault((one.what, one.score > 0), []).append(one)
    return [OutlierGroup(what, above, tuple(cases)) for (what, above), cases in groups.items()]


def _orders(values: Mapping[str, float]) -> bool:
    """Whether values above 0 are of different orders of magnitude."""
    return bool(values) and min(values.values()) > 0 and max(values.values()) >= ORDERS * min(values.values())


def _unlike(
    cases: Sequence[CaseFingerprint], what: str, unit: str, values: Mapping[str, float], *, log: bool = False
) -> list[Outlier]:
    """Outliers of one measurement; on a logarithmic scale where ratios matter."""
    names = [case.id for case in cases if case.id in values and (values[case.id] > 0 or not log)]
    if len(names) < LEAST_CASES:
        return []
    known = np.array([values[name] for name in names], float)
    scores = modified_z(np.log(known) if log else known)
    median = float(np.median(known))
    return [
        Outlier(name, what, float(value), median, float(score), unit)
        for name, value, score in zip(names, known, scores, strict=True)
        if abs(score) > OUTLYING and not (log and max(value / median, median / value) < LEAST_RATIO)
    ]


def size_unit(cases: Sequence[CaseFingerprint]) -> tuple[str, float]:
    """Unit of a label's size, and how many of it are a mm3: ml; mm2 of flat images, or pixels without spacing."""
    if any(case.shape[0] > 1 for case in cases):
        return "ml", 1e-3
    return ("pixels" if all(case.spacing == (1, 1, 1) for case in cases) else "mm²"), 1.0


def sizes_of(scores: CrossValidation, fingerprint: Fingerprint | None, labels: LabelSet) -> list[Sizes]:
    """Size of every label of every held-out case in its reference and its segmentation; of cases of known spacing."""
    known = {case.id: case for case in fingerprint.cases} if fingerprint else {}
    scale = size_unit(tuple(known.values()))[1] if known else 1.0
    return [
        Sizes(case.case, fold.fold, label, *_voxels(case, classes, voxel), case.scores[label].get("dice"))
        for fold in scores.folds
        for case in fold.cases
        if case.case in known
        for voxel in [math.prod(known[case.case].spacing) * scale]
        for label, classes in labels.scored.items()
        if label in case.scores
    ]


def _voxels(case: CaseScore, classes: Sequence[int], size: float) -> tuple[float, float]:
    """Size of a label in reference and segmentation, from the confusion matrix."""
    confusion, chosen = np.array(case.confusion, float), list(classes)
    return float(confusion[chosen].sum() * size), float(confusion[:, chosen].sum() * size)


def bland_altman(reference: Sequence[float], segmented: Sequence[float]) -> Agreement | None:
    """Bias and limits of agreement, mean ± 1.96 standard deviations (n - 1); None for fewer than two cases."""
    differences = np.asarray(segmented, float) - np.asarray(reference, float)
    if len(differences) < 2:
        return None
    bias, spread = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
    return Agreement(bias, bias - spread, bias + spread, len(differences))


def band(curves: Sequence[tuple[Sequence[float], Sequence[float | None]]], points: int = 101) -> Band | None:
    """Mean and standard deviation of curves, interpolated linearly, from the latest start to the earliest end.

    Args:
        curves: x, rising, and y of each; points without y are left out.
    """
    known = [[(x, y) for x, y in zip(*curve, strict=True) if y is not None] for curve in curves]
    arrays = [np.array(curve, float) for curve in known if len(curve) > 1]
    if not arrays:
        return None
    low, high = max(curve[0, 0] for curve in arrays), min(curve[-1, 0] for curve in arrays)
    if not low < high:
        return None
    x = np.linspace(low, high, points)
    y = np.array([np.interp(x, curve[:, 0], curve[:, 1]) for curve in arrays])
    return Band(x, y.mean(axis=0), y.std(axis=0), len(arrays))


def case_means(cases: Sequence[CaseScore]) -> dict[str, float]:
    """Case id -> mean Dice over the labels that have one; cases where none has are left out."""
    return {case.case: mean for case in cases if (mean := mean_dice_of(case)) is not None}


def interval_text(values: Sequence[float], groups: Sequence[str], digits: int = 3) -> str:
    """A 95 % interval of a mean as "0.871 to 0.893"; "-" where nobody knows it."""
    ends = interval_of_mean(values, groups) if len(values) else None
    return f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}" if ends else "-"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    low, median, high = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)
