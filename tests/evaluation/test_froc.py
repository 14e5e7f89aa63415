"""Lesions and false alarms: one image by hand, and a curve by hand."""

import math

import numpy as np
import pytest

from autoseg.evaluation.froc import FALSE_ALARMS, Candidates, candidates, froc


def test_candidates_by_hand():
    """Of three lesions two are hit, both by one candidate."""
    reference = np.array([[1, 1, 0, 1, 1, 0, 0, 0, 0, 1]], dtype=bool)
    probability = np.array([[0.1, 0.9, 0.3, 0.2, 0.01, 0.0, 0.7, 0.6, 0.0, 0.0]])
    found = candidates(probability, reference)
    assert found == Candidates(lesions=3, found=(0.9, 0.9), alarms=(0.7,))
    assert candidates(probability, reference, least=0.25) == Candidates(3, (0.9,), (0.7,))
    ignored = np.zeros_like(reference)
    ignored[0, 6:] = True
    assert candidates(probability, reference, ignored=ignored) == Candidates(2, (0.9, 0.9), ())
    twice = candidates(np.array([0.3, 0, 0.9, 0, 0.5]), np.ones(5, dtype=bool))
    assert twice == Candidates(1, (0.9,), ())  # three candidates on one lesion: the best one counts
    nothing = np.zeros((2, 3, 4))
    assert candidates(nothing, nothing > 0) == Candidates(0, (), ())
    with pytest.raises(ValueError, match="differ in shape"):
        candidates(probability, reference.T)


def test_a_curve_by_hand():
    """Two images, four lesions. Down the scores: 0.9 found, 0.8 alarm, 0.7 two found, 0.6 two alarms."""
    curve = froc([Candidates(3, (0.9, 0.7), (0.8, 0.6)), Candidates(1, (0.7,), (0.6,))])
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.false_alarms.tolist() == [0, 0.5, 0.5, 1.5]
    assert curve.sensitivity.tolist() == [0.25, 0.25, 0.75, 0.75]
    assert [curve.at(number) for number in FALSE_ALARMS] == [0.25, 0.25, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert curve.score == pytest.approx((2 * 0.25 + 5 * 0.75) / 7)


def test_images_without_lesions_or_candidates():
    assert froc([Candidates(2, (), ())]).score == 0  # nothing is claimed
    alarms_alone = froc([Candidates(0, (), (0.5,))])
    assert math.isnan(alarms_alone.sensitivity[0])
    loud = froc([Candidates(1, (0.4,), (0.9,) * 9)])  # nine alarms before the lesion
    assert loud.score == 0
    with pytest.raises(ValueError, match="needs an image"):
        froc([])
