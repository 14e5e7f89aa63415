"""Objects found, split and merged: small maps by hand, and panoptica as oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from autoseg.evaluation.objects import (
    IOU_THRESHOLDS,
    LESION_METRICS,
    Detection,
    average_precision,
    detected,
    lesions,
    matches,
    object_overlaps,
    panoptic_quality,
    pooled,
    precision,
    recognition_quality,
    segmentation_quality,
    sensitivity,
    splits_and_merges,
)

# Reference: objects 1, 2 (four voxels each), 7 (two), 9 (one). Segmentation: 5 has three voxels of 1 and one beside it,
# 3 has two of 2, 2 is nowhere near, 40 is 9.
REFERENCE = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0, 7, 7, 0, 9]])
SEGMENTED = np.array([[0, 5, 5, 5, 5, 0, 3, 3, 0, 0, 2, 0, 0, 0, 40]])


def test_overlaps_by_hand():
    found = object_overlaps(REFERENCE, SEGMENTED)
    assert found.reference_sizes.tolist() == [4, 4, 2, 1]
    assert found.segmentation_sizes.tolist() == [1, 2, 4, 1]  # of 2, 3, 5, 40
    assert found.pairs.tolist() == [[0, 2], [1, 1], [3, 3]]
    assert found.shared.tolist() == [3, 2, 1]
    assert found.iou.tolist() == [3 / 5, 2 / 4, 1]


def test_detection_by_hand():
    overlaps = object_overlaps(REFERENCE, SEGMENTED)
    assert detected(overlaps, 0.5) == Detection(tp=3, fp=1, fn=1, iou_sum=pytest.approx(2.1))  # 0.5 is reached
    half = detected(overlaps, 0.55)
    assert half == Detection(tp=2, fp=2, fn=2, iou_sum=pytest.approx(1.6))
    assert (sensitivity(half), precision(half), recognition_quality(half)) == (0.5, 0.5, 0.5)
    assert segmentation_quality(half) == pytest.approx(0.8)
    assert panoptic_quality(half) == pytest.approx(0.4)
    assert pooled([half, half, Detection(1, 0, 0, 1.0)]) == Detection(5, 4, 4, pytest.approx(4.2))
    assert pooled([]) == Detection(0, 0, 0, 0.0)


def test_average_precision_over_thresholds():
    """Three matches of 0.5, 0.6 and 1 among four and four objects: 3/5, 2/6 and 1/7."""
    found = average_precision([object_overlaps(REFERENCE, SEGMENTED)])
    assert tuple(found) == IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert list(found.values()) == pytest.approx([3 / 5, 2 / 6, 2 / 6] + [1 / 7] * 7)
    nothing = np.zeros((3, 3), int)
    assert math.isnan(average_precision([object_overlaps(nothing, nothing)])[0.5])
    both = average_precision([object_overlaps(REFERENCE, SEGMENTED), object_overlaps(nothing, nothing)])
    assert both == found  # objects are counted, not images


def test_an_object_is_matched_once_and_the_larger_iou_first():
    """One segmented object covers two: IoU 6/10 with the one, 4/10 with the other, which stays without a match."""
    reference = np.array([1] * 6 + [2] * 4)
    overlaps = object_overlaps(reference, np.ones(10, int))
    assert overlaps.pairs[matches(overlaps, 0.1)].tolist() == [[0, 0]]
    assert detected(overlaps, 0.1) == Detection(1, 0, 1, 0.6)


def test_splits_and_merges_by_hand():
    """1 is cut in two, 2 has a speck beside its piece, one voxel in twenty, 3 and 4 are joined, 5 and 6 are well."""
    reference = np.array([1] * 10 + [0] + [2] * 20 + [0] + [3] * 5 + [4] * 5 + [0] + [5] * 4 + [6] * 4)
    segmentation = np.array([1] * 5 + [2] * 5 + [0] + [3] * 19 + [4] + [0] + [5] * 10 + [0] + [6] * 4 + [7] * 4)
    assert splits_and_merges(object_overlaps(reference, segmentation)) == (1, 1)
    assert splits_and_merges(object_overlaps(segmentation, reference)) == (1, 1)
    assert splits_and_merges(object_overlaps(reference, reference)) == (0, 0)
    # moved by half an object: no object lies in two others by more than half
    assert splits_and_merges(object_overlaps(np.repeat([1, 2, 3], 4), np.repeat([0, 1, 2, 3, 4, 5], 2))) == (2, 0)
    nothing = np.zeros(4, int)
    assert splits_and_merges(object_overlaps(nothing, nothing)) == (0, 0)


def test_ignored_voxels_belong_to_no_object():
    ignored = np.zeros_like(REFERENCE, dtype=bool)
    ignored[0, 3:5] = True  # the voxels that tell 1 from 5 on one side; and half of what is left is common
    found = object_overlaps(REFERENCE, SEGMENTED, ignored=ignored)
    assert found.reference_sizes.tolist() == [3, 4, 2, 1]
    assert found.iou.tolist() == [2 / 3, 2 / 4, 1]


def test_what_is_no_instance_map_is_refused():
    good = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="differ in shape"):
        object_overlaps(good, good.T)
    with pytest.raises(ValueError, match="the segmentation holds float64"):
        object_overlaps(good, good.astype(float))
    with pytest.raises(ValueError, match="the reference holds -1"):
        object_overlaps(good - 1, good)
    for threshold in (0, 1.01, -1, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            matches(object_overlaps(good, good), threshold)


@settings(max_examples=60, deadline=None)
@given(
    maps=st.tuples(*[hnp.arrays(np.int32, (4, 6), elements=st.sampled_from([0, 0, 1, 2, 3, 2_000_000_000]))] * 2),
    threshold=st.sampled_from([0.1, 0.5, 0.75]),
)
def test_objects_equal_brute_force(maps, threshold):
    """Sizes, shared voxels and greedy matches, with sets of voxels; numbers may be as large as they like."""
    objects = [{n: set(np.flatnonzero(m == n).tolist()) for n in np.unique(m) if n} for m in maps]
    iou = {(a, b): len(x & y) / len(x | y) for a, x in objects[0].items() for b, y in objects[1].items() if x & y}
    left, found = dict(iou), []
    while left and max(left.values()) >= threshold:
        best = max(left.values())
        a, b = min(pair for pair, value in left.items() if value == best)
        found.append(best)
        left = {pair: value for pair, value in left.items() if pair[0] != a and pair[1] != b}
    overlaps = object_overlaps(*maps)
    assert sorted(overlaps.iou.tolist()) == pytest.approx(sorted(iou.values()))
    result = detected(overlaps, threshold)
    assert (result.tp, result.fp, result.fn) == (
        len(found), len(objects[1]) - len(found), len(objects[0]) - len(found),
    )  # fmt: skip
    assert result.iou_sum == pytest.approx(sum(found))


# panoptica 2.1.7: Panoptica_Evaluator(UNMATCHED_INSTANCE, NaiveThresholdMatching(matching_threshold=...)), on the maps
# of the test below: tp, fp, fn, rq, sq, pq.
ORACLE = {
    0.1: (29, 14, 20, 0.6304347826, 0.5485841002, 0.3458464980),
    0.5: (18, 25, 31, 0.3913043478, 0.6678927514, 0.2613493375),
    0.7: (6, 37, 43, 0.1304347826, 0.8426948610, 0.1099167210),
}


@pytest.mark.parametrize("threshold", ORACLE)
def test_objects_equal_those_of_panoptica(threshold):
    rng = np.random.default_rng(3)
    fields = [rng.standard_normal((20, 30, 40))]
    fields.append(fields[0] + 0.4 * rng.standard_normal((20, 30, 40)))
    overlaps = object_overlaps(*(ndimage.label(ndimage.gaussian_filter(f, 1.5) > 0.12)[0] for f in fields))
    found = detected(overlaps, threshold)
    qualities = [quality(found) for quality in (recognition_quality, segmentation_quality, panoptic_quality)]
    assert [found.tp, found.fp, found.fn, *qualities] == pytest.approx(ORACLE[threshold], abs=1e-9)


def test_lesions_are_components():
    """Two lesions that touch at a corner are one; one of three is hit by a third of it, one missed, one invented."""
    reference, segmentation = np.zeros((2, 5, 9, 20), dtype=bool)
    reference[1, 1:3, 1:3] = reference[2, 3:5, 3:5] = True  # one of 8 voxels
    segmentation[1, 1:3, 1:3] = True
    reference[2, 2, 8:17] = True
    segmentation[2, 2, 8:11] = True
    reference[4, 8, 19] = True
    segmentation[4, 0, 0] = True
    found = {name: metric(lesions(reference, segmentation)) for name, metric in LESION_METRICS.items()}
    assert found == pytest.approx({
        "lesion_tp": 2, "lesion_fp": 1, "lesion_fn": 1, "lesion_sensitivity": 2 / 3, "lesion_precision": 2 / 3,
        "lesion_f1": 2 / 3, "rq": 1 / 3, "sq": 0.5, "pq": 0.5 / 3,
    })  # fmt: skip  # at 0.5, the first alone matches: 4 of 8 voxels


def test_lesions_of_empty_masks():
    empty, one = np.zeros((2, 3, 4), dtype=bool), np.ones((2, 3, 4), dtype=bool)
    nan = pytest.approx(math.nan, nan_ok=True)
    names = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "pq", "rq", "sq")

    def values(reference, segmentation):
        return [LESION_METRICS[name](lesions(reference, segmentation)) for name in names]

    assert values(empty, empty) == [nan] * 6
    assert values(one, empty) == [0, nan, 0, 0, 0, nan]
    assert values(empty, one) == [nan, 0, 0, 0, 0, nan]
    assert values(one, one) == [1] * 6
    nothing = np.zeros((0, 0, 0), dtype=bool)
    assert values(nothing, nothing) == [nan] * 6
