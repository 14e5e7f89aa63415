"""Components, the imaged body and boxes: small masks by hand, scipy's own hole filling as oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from autoseg.imaging.components import bounding_box, component_sizes, component_weights, components, nonzero_mask

MASKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3), elements=st.booleans())


def test_components_by_hand():
    mask = np.zeros((6, 8, 9), dtype=bool)
    mask[0, 0, 0] = True  # one voxel
    mask[2:4, 2:5, 3:4] = True  # 6 voxels ...
    mask[4, 5, 4] = True  # ... and a seventh that touches a corner
    mask[5, 0, 6:9] = True  # 3 voxels
    found = components(mask)
    np.testing.assert_array_equal(found.sizes, [7, 3, 1])
    np.testing.assert_array_equal(found.extents, [[3, 4, 2], [1, 1, 3], [1, 1, 1]])
    np.testing.assert_array_equal(component_sizes(mask), [7, 3, 1])


@pytest.mark.parametrize("mask", [np.zeros((3, 4, 5), dtype=bool), np.zeros((1, 1, 1), dtype=bool)])
def test_an_empty_mask_has_no_components(mask):
    found = components(mask)
    assert found.sizes.shape == (0,)
    assert found.extents.shape == (0, 3)


def test_a_full_mask_is_one_component():
    found = components(np.ones((3, 4, 5), dtype=bool))
    assert found.sizes.tolist() == [60]
    assert found.extents.tolist() == [[3, 4, 5]]


def flood(mask):
    """Sizes and extents of 26-connected components, by walking from voxel to voxel."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    measured = []
    while left:
        reached = [left.pop()]
        for z, y, x in reached:
            near = {v for v in left if max(abs(v[0] - z), abs(v[1] - y), abs(v[2] - x)) <= 1}
            left -= near
            reached.extend(near)
        corners = np.array(reached)
        measured.append((len(reached), tuple((np.ptp(corners, axis=0) + 1).tolist())))
    return sorted(measured, reverse=True)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3), elements=st.sampled_from([False, False, False, True])))
def test_components_equal_a_flood(mask):
    found = components(mask)
    assert (np.diff(found.sizes) <= 0).all()
    pairs = zip(found.sizes.tolist(), map(tuple, found.extents.tolist()), strict=True)
    assert sorted(pairs, reverse=True) == flood(mask)


def filled_plainly(mask):
    """The definition: zeros without a way out over faces are filled; axes of extent 1 offer no way."""
    return ndimage.binary_fill_holes(mask.squeeze()).reshape(mask.shape) if mask.squeeze().ndim else mask


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_nonzero_mask_equals_the_plain_definition(mask):
    np.testing.assert_array_equal(nonzero_mask(mask[None].astype(np.float32)), filled_plainly(mask))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, st.tuples(*[st.integers(3, 7)] * 3), elements=st.sampled_from([True, True, True, False])))
def test_nonzero_mask_of_dense_bodies_in_air(mask):
    body = np.pad(mask, ((1, 2), (0, 3), (2, 0)))
    np.testing.assert_array_equal(nonzero_mask(body[None]), filled_plainly(body))


def test_nonzero_mask_unites_channels_and_fills():
    array = np.zeros((2, 5, 6, 7), dtype=np.float32)
    array[0, 1:4, 1:4, 1:4] = -3
    array[0, 2, 2, 2] = 0  # a hole
    array[1, 2, 2, 5] = 1
    expected = np.zeros((5, 6, 7), dtype=bool)
    expected[1:4, 1:4, 1:4] = True
    expected[2, 2, 5] = True
    np.testing.assert_array_equal(nonzero_mask(array), expected)
    array[0, 2, 2, 3] = 0  # a tunnel to the outside: no hole any more
    expected[2, 2, 2:4] = False
    np.testing.assert_array_equal(nonzero_mask(array), expected)


def test_a_hole_closed_over_edges_is_a_hole():
    array = np.ones((1, 3, 3, 3), dtype=np.float32)
    array[0, 1, 1, 1] = 0
    array[0, 0, 0, 0] = 0  # touches the hole at a corner only
    mask = nonzero_mask(array)
    assert mask[1, 1, 1]
    assert not mask[0, 0, 0]


def test_a_flat_image_has_holes_in_its_plane():
    array = np.zeros((1, 1, 5, 5), dtype=np.float32)
    array[0, 0, 1:4, 1:4] = 1
    array[0, 0, 2, 2] = 0
    assert nonzero_mask(array).sum() == 9


def test_nonzero_mask_of_nothing_and_of_everything():
    assert not nonzero_mask(np.zeros((2, 3, 4, 5), dtype=np.float32)).any()
    assert nonzero_mask(np.full((1, 3, 4, 5), -1024, dtype=np.float32)).all()


def test_nonzero_mask_leaves_its_input():
    array = np.ones((2, 3, 3, 3), dtype=bool)
    array[:, 1, 1, 1] = False
    array[0, 0, 0, 0] = False
    before = array.copy()
    nonzero_mask(array)
    np.testing.assert_array_equal(array, before)


def test_bounding_box_by_hand():
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1, 4, 6] = True
    assert bounding_box(mask) == ((1, 2), (4, 5), (6, 7))
    mask[3, 2, 0] = True
    assert bounding_box(mask) == ((1, 4), (2, 5), (0, 7))


def test_bounding_box_of_an_empty_mask_is_the_whole_array():
    assert bounding_box(np.zeros((5, 6, 7), dtype=bool)) == ((0, 5), (0, 6), (0, 7))


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_bounding_box_is_tight(mask):
    where = np.argwhere(mask)
    if len(where):
        assert bounding_box(mask) == tuple(zip(where.min(axis=0), where.max(axis=0) + 1, strict=True))


# Weights ------------------------------------------------------------------------------------------


def test_weights_of_components_by_hand():
    """Label 1: components of 4, 1 and 1 voxels, 2 on average. Label 2: one. Label 3 is ignored."""
    target = np.array(
        [
            [1, 1, 0, 0, 1, 3],
            [1, 1, 0, 2, 0, 3],
            [0, 0, 0, 0, 2, 0],  # touches at a corner
            [1, 0, 3, 0, 0, 0],
        ],
        np.uint8,
    )
    expected = np.ones((4, 6))
    expected[:2, :2] = 0.5
    expected[0, 4] = expected[3, 0] = 2.0
    weights = component_weights(target, 1.0, ignore_index=3)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_allclose(component_weights(target, 0.5, 3), np.sqrt(expected), rtol=1e-6)
    np.testing.assert_array_equal(component_weights(target.astype(np.int16), 1.0, 3), expected)
    alone = component_weights(target, 1.0)  # 2 and 1 voxels of label 3
    np.testing.assert_array_equal(alone[target == 3], [0.75, 0.75, 1.5])
    assert (component_weights(target, 0.0, 3) == 1).all()


def test_corners_of_three_axes_touch_and_weights_have_bounds():
    target = np.zeros((9, 30, 30), np.int16)
    target[0, 0, 0] = target[1, 1, 1] = 5  # 2 voxels
    target[3:] = 5  # 5400, on average 2701
    weights = component_weights(target, 1.0)
    assert weights[0, 0, 0] == weights[1, 1, 1] == np.float32(20.0)
    assert weights[5, 0, 0] == np.float32(2701 / 5400)
    assert (component_weights(target, 4.0)[3:] == np.float32((2701 / 5400) ** 4)).all()
    assert (component_weights(target, 5.0)[3:] == np.float32(0.05)).all()
    assert (component_weights(np.zeros((2, 3), np.uint8), 1.0) == 1).all()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 3)))
def test_with_a_power_of_one_all_components_of_a_label_weigh_the_same(target):
    """Those that the bounds do not touch: nothing here is 20 times the mean."""
    weights = component_weights(target, 1.0)
    assert (weights[target == 0] == 1).all()
    for label in (1, 2, 3):
        labelled, count = ndimage.label(target == label, structure=np.ones((3, 3, 3)))
        totals = ndimage.sum_labels(weights, labelled, range(1, count + 1))
        free = ndimage.maximum(weights, labelled, range(1, count + 1)) < 20
        if count:
            np.testing.assert_allclose(np.array(totals)[np.array(free)], (target == label).sum() / count, rtol=1e-5)
