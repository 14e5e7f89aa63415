"""Paired differences: p-values counted by hand, other libraries as oracles, false alarms and power by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from autoseg.evaluation import paired
from autoseg.evaluation.paired import (
    detectable,
    expanded_level,
    holm,
    interval_of_difference,
    least_p,
    sign_flips,
)


def test_p_values_by_hand():
    """Of the 8 flips of 1, 2, 3 the sums are 6, 0, 2, 4 and their opposites: 6 is one of four."""
    assert sign_flips([1, 2, 3], "abc") == (0.25, True)
    assert sign_flips([1, 2, -3], "abc") == (1.0, True)  # 0: every sum is at least as extreme
    assert sign_flips([-1, 2, 3], "abc") == (0.5, True)  # 4, as 6
    assert sign_flips([5], "a") == (1.0, True)
    assert sign_flips([0.0, 0.0], "ab") == (1.0, True)


def test_cases_of_a_patient_are_flipped_together():
    """1 + 2 and 3: sums 6 and 0; as three patients 6 is one of four."""
    assert sign_flips([1, 2, 3], "aab") == (0.5, True)
    assert sign_flips([1, -1, 3, 4], "aabc") == sign_flips([3, 4], "bc") == (0.5, True)


def test_p_values_are_those_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1, 10)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert sign_flips(values, range(10)) == (pytest.approx(expected.pvalue), True)


def test_many_patients_are_drawn(monkeypatch):
    values = np.random.default_rng(1).normal(0.4, 1, 18)
    exact, counted = sign_flips(values, range(18))
    monkeypatch.setattr(paired, "EXACT_UP_TO", 5)
    drawn, drawn_counted = sign_flips(values, range(18))
    assert (counted, drawn_counted) == (True, False)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / paired.DRAWS) + 1e-4)


def test_exact_sums_of_decimals():
    """0.1 + 0.2 + 0.3 is another float than 0.3 + 0.2 + 0.1: both count as the same sum."""
    values = [0.1, 0.2, 0.3, 0.1]
    by_hand = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flips(values, range(4))[0] == np.mean([total > 0.7 - 1e-9 for total in by_hand]) == 2 / 16


def test_holm_by_hand():
    """0.01 x 3, then 0.03 x 2, then 0.04, which may not be smaller than the one before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert least_p(5) == 0.0625


def test_expanded_intervals_are_as_wide_as_those_of_student():
    """For normal values; the plain bootstrap of 8 values would be 24 % narrower."""
    values = np.random.default_rng(2).normal(0, 1, 8)
    low, high = interval_of_difference(values, range(8))
    expected = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.12)
    assert 0.95 < expanded_level(1000) < 0.951 < expanded_level(8)
    assert interval_of_difference([1.0, 2.0], "aa") is None


def test_detectable_difference_of_many_patients():
    """(1.96 + 0.8416) standard errors of a mean; clusters of equal cases count once."""
    values = np.random.default_rng(3).normal(0.1, 1, 4000)
    error = values.std(ddof=1) / np.sqrt(4000)
    assert detectable(values, range(4000)) == pytest.approx(2.8016 * error, rel=1e-3)
    twice = detectable(np.repeat(values, 2), np.repeat(range(4000), 2))
    assert twice == pytest.approx(2.8016 * error, rel=1e-3)
    assert detectable(values, range(4000), alpha=0.01) > detectable(values, range(4000))
    assert detectable([1.0, 3.0], "aa") is None
    assert detectable([0.5, 0.5, 0.5], "abc") == 0.0


@pytest.mark.parametrize("patients", [2, 3, 5, 20, 300])
def test_detectable_difference_of_few_patients(patients):
    """The power of the t test there is 80 %, by the distribution itself."""
    values = np.random.default_rng(4).normal(0, 1, patients)
    shift = detectable(values, range(patients)) / stats.sem(values)
    found = stats.nct.sf(stats.t.ppf(0.975, patients - 1), patients - 1, shift)
    assert found == pytest.approx(0.8, abs=1e-6)


def differences(generator: np.random.Generator, patients: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One or two cases per patient that are alike, with heavy tails, symmetric around `shift`."""
    cases = np.repeat(range(patients), generator.integers(1, 3, patients))
    own = generator.standard_t(3, patients)
    return shift + own[cases] + 0.3 * generator.normal(size=len(cases)), cases


@pytest.mark.thorough
@pytest.mark.parametrize("patients", [8, 30])
def test_a_null_raises_a_false_alarm_in_one_of_twenty(patients, monkeypatch):
    monkeypatch.setattr(paired, "DRAWS", 2000)
    generator = np.random.default_rng(5)
    p_values, covered = [], 0
    for _ in range(1000):
        values, groups = differences(generator, patients)
        p_values.append(sign_flips(values, groups)[0])
        low, high = interval_of_difference(values, groups)
        covered += low <= 0 <= high
    alarms = np.mean(np.array(p_values) <= 0.05)
    assert 0.03 <= alarms <= 0.07  # standard error 0.007
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.05)
    assert 0.92 <= covered / 1000 <= 0.98


@pytest.mark.thorough
def test_the_detectable_difference_is_found_four_times_in_five(monkeypatch):
    monkeypatch.setattr(paired, "DRAWS", 2000)
    generator = np.random.default_rng(6)
    shift = np.median([detectable(generator.normal(size=25), range(25)) for _ in range(200)])
    found = np.mean([sign_flips(generator.normal(shift, 1, 25), range(25))[0] <= 0.05 for _ in range(400)])
    assert 0.74 <= found <= 0.86  # standard error 0.02
