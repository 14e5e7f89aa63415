"""Two values per case: how large their mean difference is, how sure, and how large it would have to be to be seen.

    sign_flips        p-value of a mean difference of zero, by exchanging the two sides of whole patients
    interval_of_mean  (`intervals`) at `expanded_level`, which makes up for few patients
    detectable        smallest mean difference that as many cases with this spread would show
    holm              p-values of several tests, corrected so that all of them together keep the level

A patient's cases are exchanged and drawn together, because they are not independent of each other.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np

from autoseg.evaluation.intervals import LEVEL, SEED, interval_of_mean
from autoseg.rules import anything, at_least, between

EXACT_UP_TO = 20  # patients that differ: 2^19 distinct exchanges
DRAWS = 20_000  # exchanges drawn where there are more
POWER = 0.8
CHUNK = 1000  # exchanges drawn at once

Number = Annotated[float, anything("any finite number")]
Count = Annotated[int, at_least(0, 10**9)]
Share = Annotated[float, between(0, 1)]


@dataclass(frozen=True)
class Paired:
    """B minus A in one metric, case by case."""

    cases: Count  # with a value on both sides
    patients: Count
    mean_a: Number
    mean_b: Number
    difference: Number  # mean of B - A
    low: Number | None  # 95 % interval of the difference; None: a single patient
    high: Number | None
    p: Share  # that a difference at least this large occurs where A and B are alike
    p_corrected: Share  # by Holm, among the labels; the same as p where there is one test
    exact: bool  # every exchange was counted; False: 20,000 were drawn
    detectable: Number | None  # smallest difference found 4 times in 5; None: a single patient
    won_a: Count | None  # cases in which A is better; None: nobody knows which values are better
    won_b: Count | None
    tied: Count
    unpaired: Count  # further cases that have a value on one side alone

    @property
    def shown(self) -> bool:
        """Whether a difference was shown."""
        return self.p_corrected <= 1 - LEVEL


def sign_flips(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, bool]:
    """Two-sided p-value of a mean difference of zero: the share of sign flips of whole groups that are as extreme.

    Exact where at most EXACT_UP_TO groups differ; otherwise by random flips, counted with the observed one (Phipson and
    Smyth 2010).

    Args:
        values: one difference per case.
        groups: the patient of each.

    Returns:
        The p-value, and whether it is exact.
    """
    sums = _by_group(values, groups)[0]
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0, True
    least = abs(sums.sum()) * (1 - 1e-9)  # sums in another order may differ in the last digit
    if len(sums) <= EXACT_UP_TO:
        flipped = sums[:1]  # of a flip and its opposite, one is enough
        for value in sums[1:]:
            flipped = np.concatenate([flipped + value, flipped - value])
        return float((np.abs(flipped) >= least).mean()), True
    generator = np.random.default_rng(SEED)
    extreme = 0
    for _ in range(DRAWS // CHUNK):
        signs = generator.integers(2, size=(CHUNK, len(sums))) * 2.0 - 1
        extreme += int((np.abs(signs @ sums) >= least).sum())
    return (extreme + 1) / (DRAWS + 1), False


def interval_of_difference(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean difference over patients; None for a single patient."""
    patients = len(set(groups))
    return interval_of_mean(values, groups, level=expanded_level(patients)) if patients > 1 else None


@cache
def expanded_level(patients: int, level: float = LEVEL) -> float:
    """The level at which a percentile interval over that many patients covers `level`, as Student's would.

    A bootstrap of n values has (n - 1) / n of their variance, and its quantiles are those of a normal distribution
    (Hesterberg 2015, "What teachers should know about the bootstrap", expanded percentile interval).
    """
    from scipy import stats

    margin = stats.t.ppf((1 + level) / 2, patients - 1) * np.sqrt(patients / (patients - 1))
    return float(1 - 2 * stats.norm.sf(margin))


def detectable(
    values: Sequence[float], groups: Sequence[Hashable], *, alpha: float = 1 - LEVEL, power: float = POWER
) -> float | None:
    """The smallest true mean difference that a test of as many patients with this spread finds with the given power.

    From the noncentral t distribution of the mean over patients.

    Returns:
        None for a single patient, whose spread nobody knows.
    """
    sums, counts = _by_group(values, groups)
    free = len(sums) - 1
    if free < 1:
        return None
    mean = sums.sum() / counts.sum()
    error = np.sqrt(((sums - counts * mean) ** 2).sum() * len(sums) / free) / counts.sum()
    return float(_errors_to_detect(free, alpha, power) * error)


@cache
def _errors_to_detect(free: int, alpha: float, power: float) -> float:
    """The difference that a t test with this many degrees of freedom finds, in standard errors."""
    from scipy import optimize, stats

    critical = stats.t.ppf(1 - alpha / 2, free)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(critical, free, shift) - power)  # the other tail is negligible there

    return optimize.brentq(lacking, 0, 10 * critical + 10)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values of several tests, in their order (Holm 1979)."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def least_p(patients: int) -> float:
    """The smallest p-value that any differences of this many patients can have."""
    return float(2.0 ** (1 - patients))


def _by_group(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group, in order of appearance."""
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = np.array([order[group] for group in groups], dtype=np.int64)
    return np.bincount(index, weights=np.asarray(values, float)), np.bincount(index)
