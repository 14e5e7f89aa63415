"""Outlines to label maps: pixels counted by hand, who lies over whom, pycocotools as oracle, hostile coordinates."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import DataError
from autoseg.imaging.formats import contours
from autoseg.imaging.formats.contours import inside
from autoseg.imaging.formats.outline_maps import Meaning, draw
from autoseg.imaging.formats.outlines import (
    Disc,
    Outline,
    Patch,
    Rings,
    Runs,
    fill,
    names_of,
    polygon,
)  # fmt: skip

SHAPE = (8, 10)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return polygon([x0, y0, x1, y0, x1, y1, x0, y1])


def square(name: str, *corners: float, **more) -> Outline:
    return Outline(name, (Rings((box(*corners),)),), **more)


def pixels(outline: Outline, shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    if (found := fill(outline, shape)) is not None:
        row, column, part = found
        mask[row : row + part.shape[0], column : column + part.shape[1]] = part
    return mask


def drawn(outlines, meaning: Meaning, shape=SHAPE):
    return draw(outlines, shape, meaning, "file.json")


def remarks(outlines, meaning: Meaning) -> dict[str, str]:
    return {remark.kind: remark.what for remark in drawn(outlines, meaning).remarks}


# ---- which pixels ----------------------------------------------------------------------------------------------------


def test_a_pixel_belongs_to_a_polygon_if_its_centre_does():
    assert np.argwhere(pixels(square("a", 2, 3, 4, 4))).tolist() == [[3, 2], [3, 3]]  # the edges of the pixels
    assert pixels(square("a", 2.4, 3.4, 3.6, 4.6)).sum() == 4  # centres at 2.5, 3.5 and at 3.5, 4.5
    assert not pixels(square("a", 2.6, 3.6, 3.4, 4.4)).any()  # between centres


def test_a_centre_on_a_left_or_upper_edge_is_inside_and_on_the_others_is_not():
    assert np.argwhere(pixels(square("a", 2.5, 3.5, 4.5, 5.5))).tolist() == [[3, 2], [3, 3], [4, 2], [4, 3]]


def test_parts_are_united_even_where_they_overlap_and_a_hole_is_a_ring():
    two = Outline("a", (Rings((box(0, 0, 4, 4),)), Rings((box(2, 2, 6, 6),))))
    assert pixels(two).sum() == 16 + 16 - 4
    holed = Outline("a", (Rings((box(0, 0, 6, 6), box(2, 2, 4, 4))),))
    assert pixels(holed).sum() == 36 - 4


def test_a_polygon_that_crosses_itself_is_filled_by_even_and_odd():
    bow = Outline("a", (Rings((polygon([0, 0, 8, 8, 8, 0, 0, 8]),)),))  # two triangles that meet in the middle
    expected = np.array([[(x - 4) ** 2 > (y - 4) ** 2 for x in np.arange(8) + 0.5] for y in np.arange(8) + 0.5])
    assert (pixels(bow, (8, 8)) == expected).mean() > 0.87  # the diagonals are on the line


def test_a_circle_holds_the_centres_within_its_radius():
    found = pixels(Outline("a", (Disc(5.0, 4.0, 2.0),)))
    centres = [(r, c) for r in range(8) for c in range(10) if math.hypot(c + 0.5 - 5, r + 0.5 - 4) <= 2]
    assert [tuple(one) for one in np.argwhere(found).tolist()] == centres


def test_what_lies_beyond_the_image_is_cut_off():
    assert pixels(square("a", -5, -5, 2, 3)).sum() == 6
    assert pixels(Outline("a", (Patch(6, 8, np.ones((5, 5), bool)),))).sum() == 4
    assert pixels(Outline("a", (Patch(-2, -3, np.ones((5, 5), bool)),))).sum() == 3 * 2
    assert fill(square("a", 20, 20, 30, 30), SHAPE) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-6, 18), st.floats(-6, 18)), min_size=3, max_size=9))
def test_pixels_are_those_of_a_test_of_every_centre(points):
    """The box a polygon is filled in changes nothing; centres nearer than 1e-6 to an edge are left out."""
    corners = np.array(points)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    expected, near = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        at = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
        crossed = (y0 <= y) != (y1 <= y)
        near |= crossed & (abs(at - x) < 1e-6)
        expected ^= crossed & (at <= x)
    found = pixels(Outline("a", (Rings((corners,)),)))
    assert np.array_equal(found | near, expected | near)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12)), min_size=3, max_size=7, unique=True))
def test_agrees_with_pycocotools_on_corners_of_pixels(points):
    """It rounds to a grid five times as fine: only pixels differ whose centres an edge passes nearby."""
    oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is the oracle")
    corners = np.clip(np.array(points, dtype=float), 0, [SHAPE[1], SHAPE[0]])  # it clips coordinates, and not the shape
    theirs = oracle.decode(oracle.frPyObjects([corners.ravel().tolist()], *SHAPE))[..., 0].astype(bool)
    ours = pixels(Outline("a", (Rings((corners,)),)))
    for row, column in np.argwhere(theirs != ours).tolist():
        assert _distance(corners, column + 0.5, row + 0.5) < 0.36


def _distance(corners: np.ndarray, x: float, y: float) -> float:
    """From a point to the nearest edge of a polygon."""
    a, b = corners, np.roll(corners, -1, axis=0)
    along = b - a
    share = ((np.array([x, y]) - a) * along).sum(1) / np.maximum((along**2).sum(1), 1e-12)
    nearest = a + np.clip(share, 0, 1)[:, None] * along
    return float(np.hypot(*(nearest - (x, y)).T).min())


def test_a_polygon_of_many_edges_is_filled_a_few_at_a_time(monkeypatch):
    """A zigzag crosses every row with every edge; memory for all crossings at once would not be bounded."""
    x, y = np.repeat(np.linspace(0, 30, 100), 2), np.tile([-1.0, 31.0], 100)
    zigzag = np.stack([x, y], axis=1)
    at_once = inside(zigzag, (30, 30))
    monkeypatch.setattr(contours, "CROSSINGS", 70)
    assert np.array_equal(inside(zigzag, (30, 30)), at_once)
    assert at_once.any()


# ---- which values ----------------------------------------------------------------------------------------------------


def test_the_smaller_object_lies_over_the_larger_one_in_either_order():
    large, small = square("cell", 0, 0, 8, 8), square("nucleus", 2, 2, 4, 4)
    meaning = Meaning({"cell": 1, "nucleus": 2})
    for outlines in ([large, small], [small, large]):
        array = drawn(outlines, meaning).array
        assert ((array == 2).sum(), (array == 1).sum()) == (4, 60)


def test_names_are_compared_without_case_and_others_are_left_out():
    array = drawn([square("Cell_Body", 0, 0, 2, 2), square("dirt", 4, 4, 6, 6)], Meaning({"cell body": 7})).array
    assert np.unique(array).tolist() == [0, 7]


def test_later_objects_lie_over_earlier_ones_and_numbers_have_no_gaps():
    outlines = [square("n", 0, 0, 2, 2), square("n", 4, 4, 5, 5), square("n", 4, 4, 6, 6), square("n", 1, 1, 3, 3)]
    found = drawn(outlines, Meaning({}, things={"n": 1}))
    assert found.values == (1, 2, 3)
    assert found.objects == (outlines[0], outlines[2], outlines[3])  # the second is covered by the third
    assert {int(v): int((found.array == v).sum()) for v in (1, 2, 3)} == {1: 3, 2: 4, 3: 4}
    (overlap,) = found.remarks
    assert overlap.kind == "overlap"
    assert overlap.what.startswith("2 pixels of 11 labelled ones (0.18) in several objects, 1 object covered")


def test_with_a_divisor_kinds_are_numbered_apart_over_what_is_no_object():
    outlines = [square("cell", 0, 0, 2, 2), square("tissue", 0, 0, 10, 8), square("lymph", 3, 0, 4, 1),
                square("cell", 6, 0, 7, 1)]  # fmt: skip
    meaning = Meaning({"tissue": 3, "cell": 1, "lymph": 2}, things={"cell": 1, "lymph": 2}, divisor=1000)
    array = drawn(outlines, meaning).array
    assert np.unique(array).tolist() == [3, 1001, 1002, 2001]
    assert array[0, 6] == 1002


def test_what_is_smaller_than_an_object_lies_over_it_also_where_it_has_no_number():
    outlines = [square("nucleus", 2, 2, 4, 4), square("cell", 0, 0, 6, 6), square("background", 0, 0, 1, 1)]
    array = drawn(outlines, Meaning({"cell": 1, "nucleus": 2}, things={"cell": 1}, divisor=1000)).array
    assert [int((array == value).sum()) for value in (2, 1001)] == [4, 36 - 4 - 1]
    alone = drawn(outlines, Meaning({}, things={"cell": 1})).array
    assert (alone == 1).sum() == 36 - 1


def test_without_a_divisor_other_labels_are_left_out():
    meaning = Meaning({"tissue": 1}, things={"cell": 1})
    array = drawn([square("tissue", 0, 0, 9, 7), square("cell", 0, 0, 1, 1)], meaning).array
    assert array.sum() == 1


def test_what_nobody_annotated_gets_the_ignore_value_except_where_an_object_is():
    crowd = square("cell", 0, 0, 6, 6, not_annotated=True)
    cell = square("cell", 0, 0, 2, 2)
    for meaning in (Meaning({"cell": 1}, 255), Meaning({}, 255, {"cell": 1})):
        array = drawn([cell, crowd], meaning).array
        assert ((array == 255).sum(), (array == 1).sum()) == (32, 4)
    without = drawn([cell, crowd], Meaning({"cell": 1}))
    assert np.unique(without.array).tolist() == [0, 1]
    assert "32 pixels that nobody annotated" in without.remarks[0].what


def test_background_in_an_object_is_a_hole():
    array = drawn([square("a", 0, 0, 6, 6), square("_background_", 2, 2, 4, 4)], Meaning({"a": 1})).array
    assert (array == 1).sum() == 32
    assert names_of([square("_background_", 0, 0, 1, 1), square("a", 0, 0, 1, 1)]) == {"a": 1}


def test_a_label_value_may_be_any():
    assert drawn([square("a", 0, 0, 1, 1)], Meaning({"a": 2**31 - 1})).array.max() == 2**31 - 1


def test_more_objects_than_numbers_are_refused():
    many = [square("a", i, 0, i + 1, 1) for i in range(5)]
    with pytest.raises(DataError, match="5 objects, expected fewer than 5"):
        drawn(many, Meaning({}, ignore=5, things={"a": 1}))
    with pytest.raises(DataError, match="divisor"):
        drawn(many, Meaning({"a": 1}, things={"a": 1}, divisor=4))


# ---- where they lie --------------------------------------------------------------------------------------------------


def test_objects_outside_are_left_out_with_a_remark_and_refused_where_all_are():
    here, there = square("a", 0, 0, 2, 2), square("a", 50, 60, 52, 62)
    assert "1 object of 2 outside the image (10 x 8)" in remarks([here, there], Meaning({"a": 1}))["outlines outside"]
    with pytest.raises(DataError, match="all 1 object lie outside the image of 10 x 8 pixels: from x 50 to 52, y 60"):
        drawn([there], Meaning({"a": 1}))


def test_an_object_beyond_the_edge_by_more_than_a_pixel_is_remarked_on():
    assert "outlines cut" not in remarks([square("a", 0, 0, 11, 9)], Meaning({"a": 1}))
    assert "1 object of 1 beyond the edge" in remarks([square("a", 0, 0, 14, 9)], Meaning({"a": 1}))["outlines cut"]


def test_objects_without_a_pixel_are_remarked_on():
    outlines = [square("a", 0, 0, 1, 1), square("a", 2.1, 2.1, 2.2, 2.2), Outline("b", ())]
    found = remarks(outlines, Meaning({"a": 1, "b": 2}))
    assert found["empty outlines"].startswith("2 objects of 3 without the centre of any pixel (a, b)")


def test_coordinates_between_0_and_1_are_no_pixels():
    with pytest.raises(DataError, match="between 0 and 1, expected pixels"):
        drawn([square("a", 0.1, 0.1, 0.4, 0.4), square("a", 0.5, 0.6, 0.9, 0.9)], Meaning({"a": 1}))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([1, 2, 3], "odd number of coordinates"),
        ([0, 0, math.nan, 1, 2, 2], "a coordinate is nan"),
        ([0, 0, math.inf, 1, 2, 2], "a coordinate is inf"),
        ([0, 0, 1e300, 1, 2, 2], r"a coordinate is 1e\+300"),
        ([0, 0, 10**400, 1, 2, 2], "a coordinate is"),
        ([0, 0, "3", 1, 2, 2], "not a number"),
        ([0, 0, None, 1, 2, 2], "not a number"),
        ([0, 0, True, 1, 2, 2], "not a number"),
    ],
)
def test_damaged_coordinates_are_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        polygon(numbers)


def test_run_lengths_of_another_image_are_refused():
    with pytest.raises(DataError, match="cannot be drawn"):
        drawn([Outline("a", (Runs((50,), (5, 10)),))], Meaning({"a": 1}))
