"""Names of labels that are the left and the right of one thing, and names that only look so."""

import pytest

from autoseg.planning.laterality import MIN_PAIRED_CASES, fixed_order, left_right_pair


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
