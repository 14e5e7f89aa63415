"""Polygons and masks: values counted by hand, skimage as oracle, and the round trip."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autoseg.imaging.formats.contours import rasterise, trace


def square(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [high, low], [high, high], [low, high]])


def test_a_square_holds_the_pixels_whose_centres_it_holds():
    assert rasterise([square(0.5, 3.5)], (6, 6)).sum() == 9
    assert np.argwhere(rasterise([square(1.6, 2.4)], (6, 6))).tolist() == [[2, 2]]


def test_nested_polygons_are_a_hole_and_an_island_whatever_their_order():
    outer, hole, island = square(-0.5, 8.5), square(1.5, 6.5), square(3.5, 4.5)
    for polygons in ([outer, hole, island], [island, outer, hole], [hole, island, outer]):
        mask = rasterise(polygons, (9, 9))
        assert mask.sum() == 81 - 25 + 1
        assert mask[4, 4]
        assert not mask[3, 3]


def test_polygons_that_overlap_in_part_are_united():
    mask = rasterise([square(-0.5, 4.5), square(2.5, 7.5)], (9, 9))
    assert mask.sum() == 25 + 25 - 4


def test_parts_outside_the_image_are_cut_off():
    assert rasterise([square(-10.0, 2.5)], (4, 5)).sum() == 9
    assert rasterise([square(10.0, 12.5)], (4, 5)).sum() == 0
    assert rasterise([square(2.5, 12.5)], (4, 5)).sum() == 2


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_skimage(seed):
    draw = pytest.importorskip("skimage.draw", reason="scikit-image is the oracle")
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 12))
    radii = np.random.default_rng(seed + 100).uniform(3, 14, 12)
    polygon = 15.123 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    expected = np.zeros((31, 31), bool)
    expected[draw.polygon(polygon[:, 1], polygon[:, 0], expected.shape)] = True
    assert np.array_equal(rasterise([polygon], expected.shape), expected)


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_tracing_a_mask_and_filling_it_again_is_exact(mask):
    assert np.array_equal(rasterise(trace(mask), mask.shape), mask)


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_another_program_that_unites_polygons_fills_the_same(mask):
    """Holes are cut open, so that a reader needs no rule about nested polygons."""
    draw = pytest.importorskip("skimage.draw", reason="scikit-image is the oracle")
    found = np.zeros(mask.shape, bool)
    for polygon in trace(mask):
        # moved by a tiny amount: skimage counts centres on an edge, and keyholes run through centres inside
        found |= draw.polygon2mask(mask.shape, polygon[:, ::-1])
    assert np.array_equal(found, mask)


def test_a_ring_is_one_polygon_without_a_crossing_of_its_hole():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (polygon,) = trace(mask)
    x, y = polygon.T
    assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(25 - 4 / 8 - 0.5)


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(3, 12), st.integers(3, 12)), elements=st.booleans()))
def test_cuts_to_holes_stay_inside(mask):
    """Along a cut, programs that draw outlines fill pixels: all of them belong to the structure.

    Outlines run half-way between rows where they are level, so a level edge through the centres of a row is a cut.
    """
    for polygon in trace(mask):
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 == y1 == round(y0):
                low, high = sorted((x0, x1))
                assert mask[int(y0), int(np.ceil(low)) : int(np.floor(high)) + 1].all()


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    assert len(trace(np.eye(2, dtype=bool))) == 2
