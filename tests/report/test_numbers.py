"""The numbers behind the figures, worked out by hand or by another library."""

import numpy as np
import pytest
from scipy import stats

from autoseg.evaluation.crossval import CrossValidation, FoldScores
from autoseg.evaluation.evaluate import CaseScore, summarise
from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import CaseFingerprint, Fingerprint, ImageIntensities
from autoseg.report.numbers import (
    band,
    bland_altman,
    case_means,
    interval_text,
    modified_z,
    outliers,
    quartiles,
    size_unit,
    sizes_of,
)


def case(name: str, spacing=(1.0, 1.0, 1.0), shape=(10, 20, 30), voxels=100, median=50.0) -> CaseFingerprint:
    intensities = (ImageIntensities(0.0, median, 100.0),)
    return CaseFingerprint(name, shape, shape, spacing, {"organ": voxels}, {}, 0, 0, name, intensities=intensities)


def fingerprint(*cases: CaseFingerprint) -> Fingerprint:
    return Fingerprint(1, ("CT",), ("organ",), cases, (), ())


def scored(name: str, reference: int, both: int, segmented: int) -> CaseScore:
    """A case with one label, by voxels in the reference, in both maps and in the segmentation."""
    dice = 2 * both / (reference + segmented) if reference + segmented else None
    confusion = ((1000, segmented - both), (reference - both, both))
    return CaseScore(name, confusion, {"organ": {"dice": dice, "precision": None, "recall": None}})


def crossval(*folds: tuple[CaseScore, ...]) -> CrossValidation:
    every = [one for fold in folds for one in fold]
    return CrossValidation(
        1, "3d_fullres", "unet", tuple(FoldScores(i, fold) for i, fold in enumerate(folds)), 5, summarise(every)
    )


def test_modified_z_scores_are_those_of_scipy():
    values = np.array([1.0, 2, 2, 3, 4, 4, 5, 40])
    spread = stats.median_abs_deviation(values, scale="normal")
    assert modified_z(values) == pytest.approx((values - np.median(values)) / spread, rel=1e-3)


def test_where_half_of_the_values_are_equal_the_mean_deviation_is_used():
    """The median deviation is 0: 6 values of 5, and one of 12, whose mean deviation is 1."""
    assert modified_z(np.array([5.0] * 6 + [12.0]))[-1] == pytest.approx(7 / (1 / 0.7979))
    assert (modified_z(np.array([3.0] * 5)) == 0).all()


def test_outliers_are_found_and_named():
    usual = [case(f"c{i}", voxels=90 + 4 * i, median=48.0 + i) for i in range(9)]
    odd = [
        case("thick", spacing=(5.0, 1.0, 1.0)),
        case("small", voxels=2),
        case("bright", median=900.0),
    ]
    found = {(one.case, one.what) for one in outliers(fingerprint(*usual, *odd))}
    assert found == {
        ("thick", "spacing along z"),
        ("thick", "extent along z"),
        ("thick", "size of organ"),  # 5 times the volume
        ("small", "size of organ"),
        ("bright", "median intensity of CT"),
    }


def test_cases_that_are_alike_have_no_outliers():
    assert outliers(fingerprint(*[case(f"c{i}", median=50.0 + i % 3) for i in range(12)])) == []


def test_a_size_that_differs_by_little_is_no_outlier_however_alike_the_others_are():
    cases = [case(f"c{i}", spacing=(1.0, 1.0, 1.0 + 1e-3 * i)) for i in range(8)]
    assert outliers(fingerprint(*cases, case("odd", spacing=(1.0, 1.0, 1.1)))) == []


def test_units_of_sizes():
    assert size_unit([case("a")]) == ("ml", 1e-3)
    assert size_unit([case("a", shape=(1, 20, 30))]) == ("pixels", 1.0)
    assert size_unit([case("a", spacing=(1.0, 0.5, 0.5), shape=(1, 20, 30))]) == ("mm²", 1.0)


def test_sizes_come_from_the_confusion_matrix():
    """Voxels of 2 x 1 x 1 mm: 500 of the reference are 1 ml, 250 of the segmentation half of it."""
    scores = crossval((scored("a", 500, 250, 250),))
    (one,) = sizes_of(scores, fingerprint(case("a", spacing=(2.0, 1.0, 1.0))), LabelSet({"organ": 1}))
    assert (one.reference, one.segmented, one.fold, one.label) == (1.0, 0.5, 0, "organ")
    assert one.dice == pytest.approx(2 * 250 / 750)
    assert sizes_of(scores, None, LabelSet({"organ": 1})) == []


def test_limits_of_agreement_by_hand():
    """Differences 1, 2, 3: bias 2, standard deviation 1."""
    found = bland_altman([10, 10, 10], [11, 12, 13])
    assert (found.bias, found.low, found.high, found.cases) == pytest.approx((2, 2 - 1.96, 2 + 1.96, 3))
    assert bland_altman([1], [2]) is None


def test_a_band_is_the_mean_of_the_common_part():
    """y = x and y = x + 2, known from 0 to 10 and from 2 to 8."""
    found = band([([0, 10], [0, 10]), ([2, 5, 8], [4, None, 10])])
    assert (found.x[0], found.x[-1], found.curves) == (2, 8, 2)
    assert found.mean == pytest.approx(found.x + 1)
    assert found.std == pytest.approx(np.ones_like(found.x))
    assert band([]) is None
    assert band([([0, 1], [1, 1]), ([2, 3], [1, 1])]) is None


def test_means_of_cases_leave_out_what_is_undefined():
    two = CaseScore("a", ((1,),), {"x": {"dice": 0.5}, "y": {"dice": None}})
    none = CaseScore("b", ((1,),), {"x": {"dice": None}, "y": {"dice": None}})
    assert case_means([two, none]) == {"a": 0.5}


def test_texts_of_intervals_and_quartiles():
    assert interval_text([0.5, 0.5, 0.5], ["a", "b", "c"]) == "0.500 to 0.500"
    assert interval_text([0.5, 0.6], ["a", "a"]) == interval_text([], []) == "-"
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
