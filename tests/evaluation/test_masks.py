"""Rims and centre-lines of masks: by hand, and by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoseg.evaluation import masks
from autoseg.evaluation.masks import MaskPair, boundary_iou, centreline_dice, rim

FLAT = (True, False, False)
SOLID = (False, False, False)


def pair(reference, segmentation, spacing=(1.0, 1.0, 1.0), tolerance_mm=1.0, flat=SOLID):
    return MaskPair(np.asarray(reference, bool), np.asarray(segmentation, bool), spacing, tolerance_mm, flat)


def square(shape, low, high):
    mask = np.zeros(shape, dtype=bool)
    mask[(..., *[slice(a, b) for a, b in zip(low, high, strict=True)])] = True
    return mask


def test_boundary_iou_by_hand():
    """A square of 8 x 8 pixels and one that is moved by one: rims of 28, which share 2 corners and 2 x 6 pixels.

    The sides along the movement coincide but for their ends: pixels 1..7 of 8, twice: 14. The other sides are parallel,
    and cross the first ones nowhere else.
    """
    one, other = square((1, 12, 12), (1, 1), (9, 9)), square((1, 12, 12), (1, 2), (9, 10))
    given_pair = pair(one, other, flat=FLAT)
    assert rim(one, given_pair).sum() == 28
    assert boundary_iou(given_pair) == pytest.approx(14 / (2 * 28 - 14))
    assert boundary_iou(pair(one, other, flat=FLAT, tolerance_mm=2.0)) == pytest.approx(
        np.logical_and(one & ~square(one.shape, (3, 3), (7, 7)), other & ~square(one.shape, (3, 4), (7, 8))).sum()
        / np.logical_or(one & ~square(one.shape, (3, 3), (7, 7)), other & ~square(one.shape, (3, 4), (7, 8))).sum()
    )


def test_the_rim_is_as_thick_as_the_tolerance_and_one_voxel_at_least():
    cube = square((12, 12, 12), (2, 2, 2), (10, 10, 10))
    for spacing, tolerance_mm, thickness in (
        ((1.0, 1.0, 1.0), 1.0, (1, 1, 1)),
        ((1.0, 1.0, 1.0), 0.1, (1, 1, 1)),
        ((5.0, 1.0, 1.0), 2.0, (1, 2, 2)),
        ((1.0, 0.5, 1.0), 1.0, (1, 2, 1)),
    ):
        found = rim(cube, pair(cube, cube, spacing, tolerance_mm))
        middle = found[:, 6, 6], found[6, :, 6], found[6, 6, :]
        assert [int(line.sum()) for line in middle] == [min(8, 2 * t) for t in thickness]


def by_brute_force(mask, spacing, tolerance_mm):
    """Every voxel of the mask against every voxel outside, with a layer around the image."""
    padded = np.pad(mask, 1)
    outside, found = np.argwhere(~padded), np.zeros_like(mask)
    for voxel in np.argwhere(padded):
        steps = np.abs(outside - voxel)
        near = np.linalg.norm(steps * np.array(spacing), axis=1) <= tolerance_mm + 1e-4
        found[tuple(voxel - 1)] = (near | (steps.sum(axis=1) == 1)).any()
    return found


@settings(max_examples=50, deadline=None)
@given(
    mask=hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
    tolerance_mm=st.sampled_from([0.3, 1.0, 2.0]),
    few=st.sampled_from([0, 100]),
)
def test_the_rim_equals_brute_force(mask, spacing, tolerance_mm, few):
    """By shifting the mask, and by a distance map of it."""
    kept, masks._FEW = masks._FEW, few or masks._FEW
    try:
        expected = by_brute_force(mask, spacing, tolerance_mm)
        np.testing.assert_array_equal(rim(mask, pair(mask, mask, spacing, tolerance_mm)), expected)
    finally:
        masks._FEW = kept


def test_a_wide_rim_uses_a_distance_map(monkeypatch):
    rng = np.random.default_rng(0)
    mask = rng.random((9, 10, 11)) > 0.02
    of = pair(mask, mask, (1.0, 0.5, 0.5), 2.0)
    expected = by_brute_force(mask, of.spacing, of.tolerance_mm)
    assert not expected.all()  # the mask has a core
    np.testing.assert_array_equal(rim(mask, of), expected)
    monkeypatch.setattr(masks, "_FEW", 1000)
    np.testing.assert_array_equal(rim(mask, of), expected)


def test_centreline_dice_of_tubes_by_hand():
    """A tube of 3 x 3 voxels and 30 long, of which the last 10 are missing: all of the short line is right, 2/3 found.

    Ends of centre-lines are shorter than the tube by up to its radius.
    """
    tube = np.zeros((7, 7, 40), dtype=bool)
    tube[2:5, 2:5, 5:35] = True
    short = tube.copy()
    short[:, :, 25:] = False
    found = centreline_dice(pair(tube, short))
    assert found == pytest.approx(2 * (2 / 3) / (1 + 2 / 3), abs=0.03)
    assert centreline_dice(pair(tube, tube)) == 1
    beside = np.roll(tube, 3, axis=0)
    assert centreline_dice(pair(tube, beside)) == 0
    thick = tube.copy()
    thick[1:6, 1:6, 5:35] = True
    assert centreline_dice(pair(tube, thick)) == 1  # as thick as it may be, the line is the same


def test_a_gap_counts_by_its_length_in_a_flat_image():
    vessel = np.zeros((1, 9, 60), dtype=bool)
    vessel[0, 3:6, 2:58] = True
    gap = vessel.copy()
    gap[0, :, 20:40] = False
    found = centreline_dice(pair(vessel, gap, flat=FLAT))
    assert found == pytest.approx(2 * (36 / 56) / (1 + 36 / 56), abs=0.03)


@pytest.mark.parametrize("metric", [boundary_iou, centreline_dice])
def test_of_empty_masks(metric):
    empty, line = np.zeros((3, 5, 9), dtype=bool), np.zeros((3, 5, 9), dtype=bool)
    line[1, 2, 1:8] = True
    assert math.isnan(metric(pair(empty, empty)))
    assert metric(pair(line, empty)) == 0
    assert metric(pair(empty, line)) == 0
    assert metric(pair(line, line)) == 1
    nothing = np.zeros((0, 0, 0), dtype=bool)
    assert math.isnan(metric(pair(nothing, nothing)))
