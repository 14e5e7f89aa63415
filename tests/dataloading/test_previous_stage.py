"""How the segmentation of a previous stage is damaged: by hand on small arrays, and against structuring elements."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading import previous_stage as module
from autoseg.dataloading.previous_stage import (
    PreviousStage,
    closed,
    corrupt,
    dilated,
    eroded,
    one_hot,
    opened,
    operate,
    remove_component,
)

OFF = AUGMENTATIONS["none"]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cube(size: int, low: int, high: int) -> np.ndarray:
    """A solid cube of voxels low..high - 1 in an array of size³."""
    mask = np.zeros((size,) * 3, bool)
    mask[(slice(low, high),) * 3] = True
    return mask


# Balls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "radius", "voxels"), [(2, 1, 5), (2, 2, 13), (3, 1, 7), (3, 2, 33), (3, 3, 123)])
def test_a_voxel_grows_to_a_ball(dims, radius, voxels):
    """The number of whole numbers (z, y, x) with z² + y² + x² up to r²."""
    mask = np.zeros((9,) * dims, bool)
    mask[(4,) * dims] = True
    assert dilated(mask, radius).sum() == voxels
    assert eroded(~mask, radius).sum() == mask.size - voxels


def test_a_cube_shrinks_from_within_the_patch_only():
    np.testing.assert_array_equal(eroded(cube(9, 2, 7), 1), cube(9, 3, 6))
    np.testing.assert_array_equal(eroded(cube(9, 0, 5), 1), cube(9, 0, 4))  # nobody knows what lies beyond the patch
    assert not eroded(cube(9, 2, 7), 3).any()
    assert eroded(np.ones((4, 4, 4), bool), 8).all()


def test_opening_takes_thin_parts_and_closing_fills_gaps():
    handled = cube(11, 3, 8)
    handled[5, 5, :3] = True  # a handle of one voxel
    expected = opened(cube(11, 3, 8), 1)
    expected[5, 5, 2] = True  # the ball about (5, 5, 3) fits, thanks to the first voxel of the handle
    np.testing.assert_array_equal(opened(handled, 1), expected)
    assert not opened(cube(11, 5, 6), 2).any()  # nothing is left to grow again
    hollow = cube(11, 3, 8)
    hollow[5, 5, 5] = False
    np.testing.assert_array_equal(closed(hollow, 1), cube(11, 3, 8))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 4), st.floats(0, 1), st.integers(0, 10**6),
    st.sampled_from(module.OPERATIONS),
)  # fmt: skip
def test_operations_are_those_of_structuring_elements(shape, radius, share, seed, operation):
    """Within the box of the label as in the whole patch, which scipy visits ball by ball."""
    mask = generator(seed).random(shape) < share
    ball = sum(np.square(axis - radius) for axis in np.indices((2 * radius + 1,) * len(shape))) <= radius**2

    def grow(m):
        return ndimage.binary_dilation(m, ball)

    def shrink(m):
        return ndimage.binary_erosion(m, ball, border_value=1)

    expected = {
        dilated: grow, eroded: shrink, opened: lambda m: grow(shrink(m)), closed: lambda m: shrink(grow(m)),
    }[operation](mask)  # fmt: skip
    indices = np.where(mask, 2, 0).astype(np.int8)
    operate(indices, 2, operation, radius)
    np.testing.assert_array_equal(indices == 2, expected)
    assert set(np.unique(indices)) <= {0, 2}


def test_a_label_takes_from_others_and_leaves_background():
    indices = np.array([[0, 1, 1, 1, 2, 2, 0]], np.int8)
    operate(indices, 1, dilated, 1)
    assert indices.tolist() == [[1, 1, 1, 1, 1, 2, 0]]
    operate(indices, 1, eroded, 2)
    assert indices.tolist() == [[1, 1, 1, 0, 0, 2, 0]]
    operate(indices, 3, dilated, 5)  # a label that is not there
    assert indices.tolist() == [[1, 1, 1, 0, 0, 2, 0]]


# Components ---------------------------------------------------------------------------------------


def test_only_components_below_the_share_vanish():
    """A patch of 100 voxels: 15 of them are 15 %, which stay; 14 go."""
    indices = np.zeros((10, 10), np.int8)
    indices[0:3, 0:5] = 1  # 15 voxels
    small = indices.copy()
    small[2, 4] = 0
    for seed in range(5):
        kept, emptied = indices.copy(), small.copy()
        remove_component(kept, 1, 0.15, generator(seed))
        remove_component(emptied, 1, 0.15, generator(seed))
        np.testing.assert_array_equal(kept, indices)
        assert not emptied.any()


def test_one_component_of_the_label_vanishes_whole():
    indices = np.zeros((4, 4, 5), np.int8)
    indices[0, 0, 0] = indices[1, 1, 1] = 1  # touch at a corner: one component
    indices[3, 3, 3:] = 1
    indices[0, 3, 0] = 2
    left = set()
    for seed in range(20):
        damaged = indices.copy()
        remove_component(damaged, 1, 0.15, generator(seed))
        assert damaged[0, 3, 0] == 2
        left.add(tuple(np.flatnonzero(damaged == 1).tolist()))
    first, second = (0, 1 * 20 + 5 + 1), (3 * 20 + 15 + 3, 3 * 20 + 15 + 4)
    assert left == {first, second}


# The table ----------------------------------------------------------------------------------------

TWO = np.zeros((12, 12), np.int8)
TWO[2:5, 2:5], TWO[7:10, 7:10] = 1, 2


def changed_labels(table, seed: int) -> list[bool]:
    damaged = corrupt(TWO, 2, table, generator(seed))
    return [bool(((damaged == label) != (label == TWO)).any()) for label in (1, 2)]


@pytest.mark.parametrize("kind", ["operation", "removal"])
@pytest.mark.parametrize(("sample", "label"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.3, 1.0), (1.0, 0.3)])
def test_probabilities_are_shares_of_samples_and_of_labels(kind, sample, label, monkeypatch):
    table = replace(OFF, **{kind: sample, f"{kind}_per_label": label}, operation_radius=(1, 1), removal_share=0.15)
    monkeypatch.setattr(module, "OPERATIONS", (eroded,))  # others may leave a square as it is
    changed = np.array([changed_labels(table, 1000 + seed) for seed in range(500)])
    share = sample * label
    assert changed.mean() == pytest.approx(share, abs=0.0 if share in (0, 1) else 0.06)
    if sample == 0.3:
        assert (changed[:, 0] == changed[:, 1]).all()  # one draw for the sample
    if label == 0.3:
        assert 0.03 < (changed[:, 0] & changed[:, 1]).mean() < 0.16  # a draw for each label: 0.09


def test_radius_operation_and_order_are_drawn_from_all_there_are(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "operate", lambda *arguments: seen.append(arguments[1:]))
    for seed in range(200):
        corrupt(TWO, 2, replace(OFF, operation=1.0, operation_per_label=1.0), generator(seed))
    assert {label for label, _, _ in seen[::2]} == {1, 2}  # which comes first
    assert {operation for _, operation, _ in seen} == set(module.OPERATIONS)
    assert {radius for _, _, radius in seen} == set(range(1, 9))


def test_the_numbers_are_those_of_nnunet():
    for strength in ("nnunet", "default"):
        table = AUGMENTATIONS[strength]
        assert (table.operation, table.operation_per_label, table.operation_radius) == (0.4, 0.5, (1, 8))
        assert (table.removal, table.removal_per_label, table.removal_share) == (0.2, 0.5, 0.15)
    for strength in ("none", "mirror"):
        assert changed_labels(AUGMENTATIONS[strength], 0) == [False, False]
        assert AUGMENTATIONS[strength].operation == AUGMENTATIONS[strength].removal == 0


def test_the_input_is_left_alone_and_the_generator_decides():
    before = TWO.copy()
    table = replace(OFF, operation=1.0, removal=1.0, operation_radius=(1, 3))
    results = [[corrupt(TWO, 2, table, generator(seed)) for seed in range(20)] for _ in range(2)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(TWO, before)
    assert TWO.dtype == results[0][0].dtype


# Channels -----------------------------------------------------------------------------------------


def test_each_label_is_a_channel():
    channels = one_hot(np.array([[0, 3], [1, 3]], np.int8), 3)
    assert channels.dtype == np.float32
    assert channels.tolist() == [[[0, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 1]]]


def test_channels_are_those_of_the_damaged_map(tmp_path):
    table = replace(OFF, removal=1.0, removal_per_label=1.0)
    channels = PreviousStage(tmp_path, 2, table).channels(TWO, generator())
    assert channels.shape == (2, 12, 12)
    assert not channels.any()  # both squares are one small component each
    np.testing.assert_array_equal(PreviousStage(tmp_path, 2, OFF).channels(TWO, generator()), one_hot(TWO, 2))
