"""Names of labels that are the left and the right of one thing, and names that only look so."""

import pytest

from autoseg.laterality import left_right_pair


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
