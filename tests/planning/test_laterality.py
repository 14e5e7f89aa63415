"""Left and right by name, and labels on one side alone whose twin is background."""

from dataclasses import replace

import pytest

from autoseg.imaging.symmetry import MirrorSide
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.laterality import MIN_PAIRED_CASES, OneSided, fixed_order, left_right_pair, one_sided
from autoseg.records import from_plain, to_plain
from plans import plan
from synthetic_fingerprints import label_set, uniform


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kidney_left", "kidney_right"),
        ("left lung", "right lung"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("lh_cortex", "rh_cortex"),
        ("femur_l", "femur_r"),
        ("L kidney", "R kidney"),
        ("LeftLung", "RightLung"),
        ("lungLeft", "lungRight"),
        ("KidneyL", "KidneyR"),
        ("leftlung", "rightlung"),
        ("lt.parotid", "rt.parotid"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("left", "right"),
        ("clavicula_LEFT", "clavicula_right"),
    ],
)
def test_pairs_are_found_whatever_their_order(one, other):
    assert set(left_right_pair(["liver", one, "spleen", other])) == {one, other}
    assert set(left_right_pair([other, "liver", one])) == {one, other}


@pytest.mark.parametrize(
    "names",
    [
        ["liver", "tumour"],
        ["kidney_left", "spleen"],  # one side alone: mirrored, it is still the only one of its kind
        ["lung_left", "kidney_right"],
        ["anterior", "posterior"],
        ["lesion", "resion"],
        ["cleft", "bright"],
        ["left", "left lung"],
        [],
    ],
)
def test_other_names_are_no_pair(names):
    assert left_right_pair(names) is None


def centroids(*values):
    """One case per pair: where two labels lie along axis 1; None where one is absent."""
    return [{"a": (0.0, a, 9.0), "b": (0.0, b, 1.0)} if b is not None else {"a": (0.0, a, 9.0)} for a, b in values]


def test_order_is_fixed_where_one_label_lies_before_the_other_in_nearly_all_cases():
    assert fixed_order(centroids(*[(1.0, 2.0)] * 20), 1) == ("a", "b")
    assert fixed_order(centroids(*[(1.0, 2.0)] * 19, (2.0, 1.0)), 1) == ("a", "b")  # 95 %
    assert fixed_order(centroids(*[(1.0, 2.0)] * 18, *[(2.0, 1.0)] * 2), 1) is None
    assert fixed_order(centroids(*[(2.0, 1.0)] * 20), 1) == ("b", "a")
    assert fixed_order(centroids(*[(1.0, 2.0)] * 20), 2) == ("b", "a")


def test_order_is_unknown_where_few_cases_show_both_labels():
    enough = [(1.0, 2.0)] * MIN_PAIRED_CASES
    assert fixed_order(centroids(*enough, *[(1.0, None)] * 9), 1) == ("a", "b")
    assert fixed_order(centroids(*enough[1:], *[(1.0, None)] * 9), 1) is None
    assert fixed_order([], 0) is None


def test_labels_at_one_place_have_no_order():
    """Flat images: along the axis of one voxel all centres are 0."""
    assert fixed_order(centroids(*[(1.0, 2.0)] * 20), 0) is None


# ---- a label on one side alone


ALIKE = MirrorSide(offset_mm=30.0, likeness=0.8, outline=0.5, mirrored_outline=0.45)


def sided(*sides, name="a"):
    """One case per entry: the comparison of a label, or None where it is on no side."""
    return [{} if side is None else {name: side} for side in sides]


def test_a_label_on_one_side_whose_twin_is_background():
    found = one_sided(sided(*[ALIKE] * 5), {"a": 5})
    assert found == OneSided("a", 5, 5, 0.8, None)
    assert one_sided(sided(*[ALIKE] * 4), {"a": 4}) is not None
    assert one_sided(sided(*[ALIKE] * 3), {"a": 3}) is None  # too few to be no chance
    assert one_sided([], {}) is None


@pytest.mark.parametrize(
    "sides",
    [
        [ALIKE, ALIKE, ALIKE, ALIKE, None],  # in one of five it crosses the middle
        [ALIKE, ALIKE, ALIKE, ALIKE, replace(ALIKE, offset_mm=-30.0)],  # or is on the other side
    ],
)
def test_nearly_all_cases_have_it_on_the_same_side(sides):
    assert one_sided(sided(*sides), {"a": 5}) is None
    assert one_sided(sided(*sides, *[ALIKE] * 15), {"a": 20}).sided == 19


@pytest.mark.parametrize(
    "changed",
    [
        {"likeness": 0.45},
        {"outline": 0.15, "mirrored_outline": 0.15},  # hardly to be seen in its own place
        {"mirrored_outline": 0.29},  # as bright there, and yet no such shape: the spleen in the liver
        {"mirrored_outline": -0.5},
        {"other_label": "liver"},  # the place belongs to an organ on both sides
    ],
)
def test_organs_that_look_different_at_the_mirrored_place_are_mirrored(changed):
    """Liver, spleen, heart."""
    assert one_sided(sided(*[replace(ALIKE, **changed)] * 5), {"a": 5, "liver": 5}) is None


def test_the_median_of_the_cases_decides():
    unlike = replace(ALIKE, likeness=0.1, mirrored_outline=0.0)
    assert one_sided(sided(*[ALIKE] * 3, *[unlike] * 2), {"a": 5}) is not None
    assert one_sided(sided(*[ALIKE] * 2, *[unlike] * 3), {"a": 5}) is None


def test_two_labels_at_each_others_place_whatever_their_names():
    one, other = replace(ALIKE, other_label="b"), replace(ALIKE, offset_mm=-30.0, likeness=0.7, other_label="a")
    found = one_sided([{"a": one, "b": other}] * 5, {"a": 5, "b": 5})
    assert (found.label, found.other) == ("a", "b")


def plan_with(sides, **options):
    labels = label_set(2)
    found = uniform((2.0, 1.0, 1.0), (60, 90, 90), len(sides), labels)
    cases = tuple(replace(case, mirror_sides=side) for case, side in zip(found.cases, sides, strict=True))
    return plan(replace(found, cases=cases), labels, **options)


def reason(plan):
    return next(d.reason for d in plan.decisions if d.step == "5.7 mirroring")


def test_the_plan_leaves_left_and_right_out_and_says_why():
    sides = sided(*[ALIKE] * 5, name="label1")
    plan = plan_with(sides)
    assert plan.training.mirror_axes == (0, 1)
    assert reason(plan) == (
        "label1 is on the same side in 5 of 5 cases, and its mirrored place looks similar (correlation 0.80) and is "
        "background: mirroring would teach a contradiction (training.mirror_axes; left to right is axis 2)"
    )
    assert plan_with(sided(*[None] * 5)).training.mirror_axes == (0, 1, 2)
    assert "training.mirror_axes; left to right is axis 2" in reason(plan_with(sided(*[None] * 5)))


def test_without_orientation_no_axis_is_left_to_right():
    plan = plan_with(sided(*[ALIKE] * 5, name="label1"), orientation="as_stored")
    assert plan.training.mirror_axes == (0, 1, 2)
    assert "no axis is left to right" in reason(plan)


def test_nnunets_rules_mirror_always():
    plan = plan_with(sided(*[ALIKE] * 5, name="label1"), rules="nnunet")
    assert plan.training.mirror_axes == (0, 1, 2)


def test_what_was_measured_of_sides_leaves_the_hash_of_a_fingerprint():
    """Fingerprints made before have none, and the voxels are in the hash already."""
    found = uniform((2.0, 1.0, 1.0), (60, 90, 90), 2, label_set(2))
    marked = replace(found, cases=tuple(replace(case, mirror_sides={"label1": ALIKE}) for case in found.cases))
    assert marked.hash == found.hash
    assert from_plain(Fingerprint, to_plain(marked)) == marked
