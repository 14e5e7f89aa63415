"""Metrics of voxel counts: by hand, and scikit-learn as oracle."""

import math

import numpy as np
import pytest

from autoseg.evaluation.metrics import METRICS, OverlapCounts, accuracy, confusion_matrix, f_beta, overlap_counts
from autoseg.imaging.labels import OUTSIDE


def overlaps(tp, fp, fn, tn=0, voxel_ml=None):
    return {name: metric(OverlapCounts(tp, fp, fn, tn, voxel_ml)) for name, metric in METRICS.items()}


# --- overlap ----------------------------------------------------------------------------------------------------------


def test_confusion_matrix_by_hand():
    reference = np.array([[[0, 0, 1, 1, 2, 2]]], dtype=np.int16)
    segmentation = np.array([[[0, 1, 1, 1, 0, 2]]], dtype=np.uint8)
    confusion = confusion_matrix(reference, segmentation, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 1]])
    assert overlap_counts(confusion, (1,)) == OverlapCounts(tp=2, fp=1, fn=0, tn=3)
    assert overlap_counts(confusion, (2,)) == OverlapCounts(tp=1, fp=0, fn=1, tn=4)
    assert overlap_counts(confusion, (1, 2)) == OverlapCounts(tp=3, fp=1, fn=1, tn=1)
    # within a union, one class taken for the other is right
    assert overlap_counts(np.array([[5, 1, 1], [2, 10, 20], [2, 30, 40]]), (1, 2)) == OverlapCounts(100, 2, 4, 5)


def test_ignored_voxels_take_part_in_nothing():
    reference = np.array([0, 1, 3, 3, 2], dtype=np.int16)
    segmentation = np.array([0, 1, 2, 1, 2], dtype=np.int16)
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 3, ignore_index=3), np.eye(3))
    np.testing.assert_array_equal(confusion_matrix(np.full(5, 3), segmentation, 3, ignore_index=3), np.zeros((3, 3)))


def test_outside_counts_as_background():
    reference = np.array([OUTSIDE, OUTSIDE, 1], dtype=np.int8)
    segmentation = np.array([0, 1, OUTSIDE], dtype=np.int8)
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 2), [[1, 1], [1, 0]])


@pytest.mark.parametrize("bad", [2, -2, 9])
@pytest.mark.parametrize("where", ["reference", "segmentation"])
def test_an_index_out_of_range_is_refused(bad, where):
    arrays = {"reference": np.zeros(4, dtype=np.int16), "segmentation": np.zeros(4, dtype=np.int16)}
    arrays[where][2] = bad
    with pytest.raises(ValueError, match=r"exceed 0\.\.1"):
        confusion_matrix(num_classes=2, **arrays)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(np.zeros((2, 3), dtype=int), np.zeros((3, 2), dtype=int), 2)


@pytest.mark.parametrize("chunk", [1 << 20, 7, 359])  # one, many, and one voxel (of 360) over
def test_confusion_matrix_equals_sklearn(chunk, monkeypatch):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr("autoseg.evaluation.metrics._CHUNK", chunk)
    rng = np.random.default_rng(0)
    reference, segmentation = rng.integers(0, 6, size=(2, 5, 8, 9)).astype(np.int16)
    keep = reference != 5
    segmentation[segmentation == 5] = 1
    reference, segmentation = reference.transpose(2, 0, 1), segmentation.transpose(2, 0, 1)
    keep = keep.transpose(2, 0, 1)
    expected = sklearn_metrics.confusion_matrix(reference[keep], segmentation[keep], labels=range(5))
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 5, ignore_index=5), expected)


def test_overlap_metrics_by_hand():
    assert overlaps(tp=3, fp=1, fn=2, tn=9, voxel_ml=0.5) == {
        "dice": 6 / 9, "iou": 3 / 6, "recall": 3 / 5, "precision": 3 / 4, "specificity": 9 / 10,
        "f2": 5 * 3 / (5 * 3 + 4 * 2 + 1), "volume_error": -1 / 5, "volume_error_ml": -0.5,
    }  # fmt: skip
    perfect = {"dice": 1, "iou": 1, "recall": 1, "precision": 1, "specificity": 1, "f2": 1, "volume_error": 0}
    assert overlaps(tp=4, fp=0, fn=0, tn=1, voxel_ml=2) == perfect | {"volume_error_ml": 0}
    wrong = overlaps(tp=0, fp=2, fn=3, tn=0)
    assert [wrong[name] for name in ("dice", "iou", "recall", "precision", "specificity", "f2")] == [0] * 6


def test_overlap_metrics_of_empty_masks():
    nan = pytest.approx(math.nan, nan_ok=True)
    assert overlaps(tp=0, fp=0, fn=0, tn=5, voxel_ml=1) == {
        "dice": nan, "iou": nan, "recall": nan, "precision": nan, "specificity": 1, "f2": nan,
        "volume_error": nan, "volume_error_ml": 0,
    }  # fmt: skip
    assert overlaps(tp=0, fp=2, fn=0, tn=6, voxel_ml=1) == {
        "dice": 0, "iou": 0, "recall": nan, "precision": 0, "specificity": 0.75, "f2": 0,
        "volume_error": math.inf, "volume_error_ml": 2,
    }  # fmt: skip
    assert overlaps(tp=0, fp=0, fn=2, tn=5, voxel_ml=1) == {
        "dice": 0, "iou": 0, "recall": 0, "precision": nan, "specificity": 1, "f2": 0,
        "volume_error": -1, "volume_error_ml": -2,
    }  # fmt: skip
    assert math.isnan(overlaps(tp=2, fp=0, fn=0)["specificity"])  # the reference fills the image
    assert math.isnan(overlaps(tp=2, fp=1, fn=0)["volume_error_ml"])  # nobody knows the size of a voxel


def test_f_beta_lies_between_precision_and_recall():
    counts = OverlapCounts(tp=6, fp=2, fn=6, tn=0)  # precision 3/4, recall 1/2, Dice 3/5
    assert f_beta(counts, 1) == pytest.approx(0.6)
    assert f_beta(counts, 0) == pytest.approx(0.75)
    assert f_beta(counts, 1000) == pytest.approx(0.5, abs=1e-5)
    assert f_beta(counts, 2) == pytest.approx(5 * 0.75 * 0.5 / (4 * 0.75 + 0.5))  # the formula in textbooks


def test_accuracy_stands_beside_that_of_finding_nothing():
    assert accuracy(np.array([[90, 2], [5, 3]])) == (0.93, 0.92)
    assert all(map(math.isnan, accuracy(np.zeros((2, 2), dtype=np.int64))))
