"""The interval of a mean: of values worked out by hand, and of normal ones, where a closed form exists."""

import numpy as np
import pytest

from autoseg.evaluation.intervals import interval_of_mean


def test_normal_values_have_the_interval_of_the_textbook():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    low, high = interval_of_mean(values, range(400))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error * 1.96)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error * 1.96)


def test_cases_of_one_patient_count_as_one():
    """Each of 20 patients has 8 equal cases: the interval is that of 20 values, not of 160."""
    patients = np.random.default_rng(0).normal(0.8, 0.1, 20)
    values, groups = np.repeat(patients, 8), np.repeat(np.arange(20), 8)
    assert interval_of_mean(values, groups.tolist()) == pytest.approx(interval_of_mean(patients, range(20)))


def test_two_patients_are_drawn_in_four_ways():
    """Means 0, 0.5, 0.5, 1: the 2.5 % quantile is 0, the 97.5 % quantile 1."""
    assert interval_of_mean([0.0, 1.0], ["a", "b"]) == (0.0, 1.0)


def test_one_patient_has_no_interval():
    assert interval_of_mean([0.5, 0.6], ["a", "a"]) is None
    assert interval_of_mean([], []) is None
