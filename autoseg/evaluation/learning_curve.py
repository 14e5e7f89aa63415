"""How Dice grows with the number of patients: a power law through trainings on shares of them, and what it cannot tell.

    curve_of         Dice of the same held-out cases after training on each share -> Curve
    fit_power_law    the law itself: Dice = a - b * patients^-c

The law is the one that errors of trained networks follow over wide ranges (Hestness et al. 2017, arXiv:1712.00409); for
segmentation it was used by Fischer et al. 2021 (arXiv:2107.05255). `a`, the Dice of endless data, is at most 1; b >= 0.
For a given c the others follow from linear least squares, so every c of a fine grid is tried: there is no start to
choose, and no local optimum.

Intervals are bootstraps: folds are drawn with replacement where there are several, then patients within them, the same
for every share. A single fold cannot show how much a second training on the same patients would differ; where it has
more than three shares, the scatter around the curve is added to the drawn values instead.

How well the law extrapolates is measured: it is fitted to all but the largest share and compared with that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from autoseg.rules import anything, at_least, between, entries, exactly

VERSION = 1
DRAWS = 1000
SEED = 1234
LEVEL = 0.95
EXPONENTS = np.geomspace(0.05, 2.0, 300)
LEAST_SHARES = 3  # three numbers are fitted
CLEAR = 2.0  # an interval of the gain wider than this many gains leaves open how large it is
SMALL_GAIN = 0.0025  # Dice; what is smaller need not be distinguished from 0

Text = Annotated[str, anything("any text")]
Number = Annotated[float, anything("any finite number")]
Percent = Annotated[float, between(0, 100)]
Count = Annotated[int, at_least(0, 10**9)]


@dataclass(frozen=True)
class ShareResult:
    """One training on a share of a fold's patients, and Dice of the fold's held-out cases."""

    share: Percent
    fold: Count
    patients: Count  # trained on
    cases: Count
    steps: Count
    folder: Text  # of the training, within the workspace
    dice: dict[Text, dict[Text, Number]]  # held-out case -> label it holds -> Dice


@dataclass(frozen=True)
class Expected:
    """A value with its 95 % interval."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class SharePoint:
    """One share, over all folds."""

    share: Percent
    patients: Number  # mean over folds
    dice: Expected  # the interval is over patients and folds


@dataclass(frozen=True)
class HeldBack:
    """The largest share against what the curve through the smaller ones expects of it."""

    share: Percent
    expected: Number
    measured: Number
    difference: Expected  # expected - measured, on the same patients

    @property
    def missed(self) -> bool:
        """Whether the curve was off by more than chance explains."""
        return not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class Curve:
    """Dice = a - b * patients^-c, of one label or of the mean over labels."""

    a: Number
    b: Number
    c: Number
    points: Annotated[tuple[SharePoint, ...], entries(1)]
    doubled_patients: Number  # twice those of the largest share
    doubled: Expected  # Dice there
    gain: Expected  # against the largest share
    held_back: HeldBack | None  # None: fewer than four shares
    unclear: tuple[Text, ...]  # why the curve is not to be relied on


@dataclass(frozen=True)
class LearningCurve:
    """learning_curve.json of a workspace."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of learning curves that this autoseg reads")]
    configuration: Text
    network: Text
    length: Text  # of every training, whatever its share
    patients_known: bool
    results: Annotated[tuple[ShareResult, ...], entries(1)]
    mean: Curve | None  # over labels; None: no held-out case holds any
    labels: dict[Text, Curve]


def learning_curve(
    configuration: str,
    network: str,
    length: str,
    results: Sequence[ShareResult],
    labels: Sequence[str],
    patients: dict[str, str],
    *,
    patients_known: bool = True,
) -> LearningCurve:
    """Fit the curves of all labels, and of the mean over labels.

    Args:
        results: of every fold, the same shares.
        labels: names.
        patients: case -> patient.
    """
    of_labels = {label: curve for label in labels if (curve := curve_of(results, patients, [label]))}
    return LearningCurve(
        VERSION, configuration, network, length, patients_known, tuple(results),
        curve_of(results, patients, list(labels)), of_labels,
    )  # fmt: skip


def curve_of(results: Sequence[ShareResult], patients: dict[str, str], labels: Sequence[str]) -> Curve | None:
    """The curve of the mean over labels, of those that each held-out case holds.

    Returns:
        None where no held-out case holds any.

    Raises:
        ValueError: fewer than three shares.
    """
    shares = sorted({result.share for result in results})
    if len(shares) < LEAST_SHARES:
        raise ValueError(f"{len(shares)} shares")
    folds = sorted({result.fold for result in results})
    by_fold = [_sums(results, fold, shares, patients, labels) for fold in folds]
    by_fold = [(sums, counts) for sums, counts in by_fold if len(counts)]
    if not by_fold:
        return None
    sizes = np.array([np.mean([r.patients for r in results if r.share == share]) for share in shares])
    values = sum(sums.sum(axis=0) for sums, _ in by_fold) / sum(counts.sum() for _, counts in by_fold)
    drawn = _drawn(by_fold)
    a, b, c = (float(part[0]) for part in fit_power_law(sizes, values[None]))
    scatter = _scatter(sizes, values) if len(by_fold) == 1 else 0.0
    noise = scatter * np.random.default_rng(SEED + 1).normal(size=drawn.shape)
    twice = 2 * sizes[-1]
    laws = fit_power_law(sizes, drawn + noise)
    doubled, gain = at(laws, twice), at(laws, twice) - at(laws, sizes[-1])
    one_gain = float(at((a, b, c), twice) - at((a, b, c), sizes[-1]))
    found_gain = _expected(one_gain, gain)
    held_back = _held_back(shares, sizes, values, drawn + noise) if len(shares) > LEAST_SHARES else None
    points = tuple(
        SharePoint(share, float(size), _expected(float(value), of_share))
        for share, size, value, of_share in zip(shares, sizes, values, drawn.T, strict=True)
    )
    return Curve(
        a, b, c, points, float(twice), _expected(float(at((a, b, c), twice)), doubled), found_gain, held_back,
        _unclear(found_gain, held_back, len(by_fold)),
    )  # fmt: skip


def fit_power_law(sizes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit Dice = a - b * size^-c by least squares, with a <= 1 and b >= 0.

    Args:
        sizes: (S,) patients, above 0.
        values: (D, S) Dice of D draws.

    Returns:
        a, b and c, each (D,).
    """
    largest = sizes.max()
    powers = (sizes / largest)[None] ** -EXPONENTS[:, None]  # (E, S)
    centre, mean = powers.mean(axis=1), values.mean(axis=1, keepdims=True)
    x, y = powers - centre[:, None], values - mean
    spread, products = (x**2).sum(axis=1), y @ x.T  # (E,), (D, E)
    b = np.maximum(-products / spread, 0)
    a = mean + b * centre
    b_below = np.maximum(((1 - values) @ powers.T) / (powers**2).sum(axis=1), 0)  # where a is 1
    a, b = np.where(a > 1, 1.0, a), np.where(a > 1, b_below, b)
    above = mean - a + b * centre  # of the values, on average
    off = (y**2).sum(axis=1, keepdims=True) + 2 * b * products + b**2 * spread + len(sizes) * above**2
    best = off.argmin(axis=1)
    rows = np.arange(len(values))
    c = EXPONENTS[best]
    return a[rows, best], b[rows, best] * largest**c, c


def at(law: Sequence, size: float) -> np.ndarray:
    """Dice of a power law (a, b, c), numbers or arrays of them, with this many patients."""
    a, b, c = law
    return a - b * size**-c


def _sums(
    results: Sequence[ShareResult], fold: int, shares: Sequence[float], patients: dict[str, str], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of Dice (patients, shares) and number of cases (patients,) of a fold's held-out cases that hold a label."""
    by_share = {result.share: result.dice for result in results if result.fold == fold}
    cases = [case for case, dice in by_share[shares[0]].items() if any(label in dice for label in labels)]
    rows = {name: row for row, name in enumerate(dict.fromkeys(patients.get(case, case) for case in cases))}
    sums, counts = np.zeros((len(rows), len(shares))), np.zeros(len(rows))
    for case in cases:
        row = rows[patients.get(case, case)]
        counts[row] += 1
        for column, share in enumerate(shares):
            dice = by_share[share][case]
            sums[row, column] += np.mean([dice[label] for label in labels if label in dice])
    return sums, counts


def _drawn(by_fold: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean Dice (DRAWS, S) over drawn folds and, within each, drawn patients."""
    generator = np.random.default_rng(SEED)
    times = generator.multinomial(len(by_fold), [1 / len(by_fold)] * len(by_fold), size=DRAWS)  # of each fold
    sums, counts = np.zeros((DRAWS, by_fold[0][0].shape[1])), np.zeros(DRAWS)
    for fold, (of_patients, cases) in enumerate(by_fold):
        number = len(cases)
        chosen = generator.multinomial(times[:, fold] * number, [1 / number] * number)  # (DRAWS, patients)
        sums += chosen @ of_patients
        counts += chosen @ cases
    return sums / counts[:, None]


def _scatter(sizes: np.ndarray, values: np.ndarray) -> float:
    """Standard deviation around the curve; 0 where three shares leave none."""
    free = len(values) - LEAST_SHARES
    if free < 1:
        return 0.0
    law = [part[0] for part in fit_power_law(sizes, values[None])]
    return float(np.sqrt(((values - at(law, sizes)) ** 2).sum() / free))  # type: ignore[arg-type]


def _held_back(shares: Sequence[float], sizes: np.ndarray, values: np.ndarray, drawn: np.ndarray) -> HeldBack:
    """The largest share against the curve through the others."""
    expected = float(at(fit_power_law(sizes[:-1], values[None, :-1]), sizes[-1])[0])
    off = at(fit_power_law(sizes[:-1], drawn[:, :-1]), sizes[-1]) - drawn[:, -1]
    return HeldBack(shares[-1], expected, float(values[-1]), _expected(expected - float(values[-1]), off))


def _expected(value: float, drawn: np.ndarray) -> Expected:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Expected(value, float(low), float(high))


def _unclear(gain: Expected, held_back: HeldBack | None, folds: int) -> tuple[str, ...]:
    """Why a curve is not to be relied on; nothing where it is."""
    reasons = []
    if gain.high - gain.low > CLEAR * max(gain.value, SMALL_GAIN):
        reasons.append(f"the interval of the gain, {gain.low:+.4f} to {gain.high:+.4f}, is too wide to tell")
    if held_back is None:
        reasons.append("three shares can always be fitted: a fourth would show whether the curve is right")
        if folds == 1:
            reasons.append("one fold cannot show how much another training on the same patients would differ")
    elif held_back.missed:
        reasons.append(
            f"the curve through the smaller shares expects {held_back.expected:.4f} at {held_back.share:g} %, where "
            f"{held_back.measured:.4f} was measured: it does not extrapolate"
        )
    return tuple(reasons)
