"""Calibration and ROC: by hand, and scikit-learn as oracle."""

import itertools
import math

import numpy as np
import pytest

from autoseg.evaluation.calibration import Ranking, Reliability


def test_reliability_by_hand():
    """Four voxels, of 0.9, 0.9, 0.6 and 0.6 for their most probable class; right, right, right, wrong.

    ECE: bin of 0.9: |1 - 0.9| for two voxels; bin of 0.6: |1/2 - 0.6| for two: 0.1. Brier: 0.02, 0.02, 0.32, 0.72.
    """
    probabilities = np.array([[0.9, 0.1, 0.6, 0.6], [0.1, 0.9, 0.4, 0.4]])
    found = Reliability.empty(10).updated(probabilities, np.array([0, 1, 0, 1]))
    assert found.ece == pytest.approx(0.1)
    assert found.brier == pytest.approx((0.02 + 0.02 + 0.32 + 0.72) / 4)
    assert found.voxels.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]  # 0.6 is in the bin that ends there
    confidence, right = found.curve()
    assert (confidence[8], right[8], confidence[5], right[5]) == pytest.approx((0.9, 1, 0.6, 0.5))
    assert math.isnan(confidence[0])
    alone = Reliability.empty(10).updated(probabilities[1], np.array([0, 1, 0, 1]))  # of the foreground alone
    assert (alone.ece, alone.brier) == pytest.approx((found.ece, found.brier))


def test_extremes():
    sure = Reliability.empty().updated(np.array([1.0, 1.0, 0.0]), np.array([1, 1, 0]))
    assert (sure.ece, sure.brier) == (0, 0)
    wrong = Reliability.empty().updated(np.array([1.0, 0.0]), np.array([0, 1]))
    assert (wrong.ece, wrong.brier) == (1, 2)
    assert math.isnan(Reliability.empty().ece)
    assert math.isnan(Reliability.empty().brier)
    assert math.isnan(Ranking.empty().auc)
    assert math.isnan(Ranking.empty().updated(np.array([0.5]), np.array([True])).auc)


def chunks():
    """Probabilities (3, 50, 40) and classes, whole and in pieces of uneven size."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], size=(50, 40)).transpose(2, 0, 1)
    target = np.where(rng.random((50, 40)) < 0.7, probabilities.argmax(axis=0), rng.integers(0, 3, (50, 40)))
    edges = [0, 1, 8, 30, 30, 41, 49, 50]
    return probabilities, target, list(itertools.pairwise(edges))


def test_chunks_and_sums_are_the_whole():
    probabilities, target, pieces = chunks()
    whole = Reliability.empty().updated(probabilities, target)
    one_by_one, added, ranking = Reliability.empty(), Reliability.empty(), Ranking.empty()
    for low, high in pieces:
        one_by_one = one_by_one.updated(probabilities[:, low:high], target[low:high])
        added = added + Reliability.empty().updated(probabilities[:, low:high], target[low:high])
        ranking = ranking + Ranking.empty().updated(probabilities[1, low:high], target[low:high] == 1)
    for other in (one_by_one, added):
        assert (other.ece, other.brier) == pytest.approx((whole.ece, whole.brier))
        np.testing.assert_array_equal(other.voxels, whole.voxels)
    assert ranking.auc == Ranking.empty().updated(probabilities[1], target == 1).auc


def test_brier_and_roc_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, target, _ = chunks()
    truth, of_class = (target == 1).ravel(), probabilities[1].ravel()
    binary = Reliability.empty().updated(of_class, truth)
    assert binary.brier == pytest.approx(2 * metrics.brier_score_loss(truth, of_class))  # both classes count here
    ranking = Ranking.empty().updated(of_class, truth)
    assert ranking.auc == pytest.approx(metrics.roc_auc_score(truth, of_class), abs=1e-4)
    false_positive_rate, recall, thresholds = ranking.roc()
    assert (false_positive_rate[0], recall[0], thresholds[0]) == (0, 0, math.inf)
    assert (false_positive_rate[-1], recall[-1], thresholds[-1]) == (1, 1, 0)
    at = int(np.argmin(np.abs(thresholds - 0.5)))
    called = np.rint(of_class * (len(recall) - 2)) / (len(recall) - 2) >= 0.5
    assert recall[at] == pytest.approx(called[truth].mean())
    assert false_positive_rate[at] == pytest.approx(called[~truth].mean())


def test_ties_count_as_half():
    ranking = Ranking.empty().updated(np.array([0.5, 0.5, 0.5, 0.5]), np.array([1, 0, 1, 0]))
    assert ranking.auc == 0.5
    assert Ranking.empty().updated(np.array([0.9, 0.1]), np.array([1, 0])).auc == 1
    assert Ranking.empty().updated(np.array([0.9, 0.1]), np.array([0, 1])).auc == 0


def test_ignored_voxels_are_not_counted():
    probabilities, target, _ = chunks()
    target = target.copy()
    expected = Reliability.empty().updated(probabilities[:, 10:], target[10:])
    expected_auc = Ranking.empty().updated(probabilities[1, 10:], target[10:] == 1).auc
    target[:10] = 9
    found = Reliability.empty().updated(probabilities, target, ignore_index=9)
    assert (found.ece, found.brier) == pytest.approx((expected.ece, expected.brier))
    assert Ranking.empty().updated(probabilities[1], target == 1, target != 9).auc == expected_auc
    nothing = Reliability.empty().updated(probabilities[:, :10], target[:10], ignore_index=9)
    assert nothing.voxels.sum() == 0


def test_what_are_no_probabilities_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Reliability.empty().updated(np.zeros((2, 3)), np.zeros(4))
    with pytest.raises(ValueError, match=r"exceed 0\.\.1"):
        Reliability.empty().updated(np.array([0.5, 1.2]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"exceed 0\.\.1"):
        Ranking.empty().updated(np.array([0.5, math.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match="classes"):
        Reliability.empty().updated(np.full((2, 3), 0.5), np.array([0, 1, 2]))
