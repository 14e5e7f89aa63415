"""Objects over many images: counts, ratios of their sums, intervals, tables."""

import numpy as np
import pytest

from autoseg.evaluation.intervals import interval_of_ratio
from autoseg.evaluation.object_scores import count_objects, object_tables, summarise_objects
from autoseg.imaging.labels import LabelSet, Thing

NUCLEI = LabelSet({"n core": 1, "n border": 2}, things={"n": Thing(1, 2, 1.0)})
PANOPTIC = LabelSet({"n core": 1, "tissue": 2, "n border": 3}, things={"n": Thing(1, 3, 1.0)}, divisor=1000)


def boxes(*spans, shape=(1, 4, 40)):
    """A map with a bar of four rows for each (start, stop, value)."""
    found = np.zeros(shape, int)
    for start, stop, value in spans:
        found[:, :, start:stop] = value
    return found


def test_counts_of_an_image_by_hand():
    reference = boxes((0, 10, 1), (10, 20, 2), (25, 30, 3))
    segmentation = boxes((0, 10, 5), (10, 14, 6), (14, 20, 7), (34, 38, 8))
    found = count_objects(NUCLEI, reference, segmentation)["n"]
    assert (found.reference, found.segmentation) == (3, 4)
    assert found.matched == (2, 2, 2, *[1] * 7)  # IoU 1 and 0.6
    assert found.iou_sum == pytest.approx(1.6)
    assert (found.splits, found.merges) == (1, 0)


def test_ratios_are_of_sums_over_images():
    perfect, empty = boxes((0, 10, 1), (12, 20, 2)), boxes()
    counts = [count_objects(NUCLEI, a, b)["n"] for a, b in ((perfect, perfect), (perfect, empty), (empty, empty))]
    found = summarise_objects(counts, ["p", "q", "r"])
    assert found.average_precision["0.5"] == 0.5
    assert found.mean_average_precision == 0.5
    assert (found.pq, found.rq, found.sq) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0)
    assert found.interval == (0.0, 1.0)
    assert summarise_objects(counts[2:]).pq is None


def test_stuff_is_one_object_per_image():
    reference, segmentation = boxes((0, 10, 1001), (10, 40, 2)), boxes((0, 10, 1002), (10, 30, 2))
    found = count_objects(PANOPTIC, reference, segmentation)
    assert found["n"].matched[0] == 1
    assert found["tissue"].iou_sum == pytest.approx(20 / 30)
    summary = {name: summarise_objects([one], stuff=name == "tissue") for name, one in found.items()}
    assert "panoptic quality: things 1.0000, stuff 0.6667, all 0.8333" in object_tables(summary)


def test_ignored_voxels_count_in_neither():
    reference, segmentation = boxes((0, 10, 1)), boxes((0, 10, 1), (20, 30, 2))
    ignored = boxes((20, 30, 1)) > 0
    assert count_objects(NUCLEI, reference, segmentation, ignored)["n"].segmentation == 1


def test_the_interval_of_a_ratio_of_equal_patients_is_the_ratio():
    assert interval_of_ratio([1, 1, 1], [2, 2, 2], "abc") == (0.5, 0.5)
    assert interval_of_ratio([1, 0], [1, 0], "aa") is None
    low, high = interval_of_ratio([10, 1], [10, 10], "ab")
    assert (low, high) == (0.1, 1.0)
    assert interval_of_ratio([1, 0], [1, 0], "ab") == (1.0, 1.0)  # a patient without objects has no ratio
