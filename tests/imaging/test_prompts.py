"""Prompts as channels, and the simulated person, by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.imaging.prompts import (
    HINT,
    Click,
    InBox,
    Scribble,
    channels_of,
    draw,
    line_through,
    next_prompt,
    prompt_channels,
    reach_of,
)


def drawn(prompts, shape=(5, 7, 7), spacing=(1.0, 1.0, 1.0), radius=1.0, labels=2, lower=(0, 0, 0)):
    return draw(prompts, shape, spacing, radius_mm=radius, num_labels=labels, lower=lower)


def test_no_prompt_is_zero_everywhere():
    channels = channels_of([], np.zeros((3, 4), int), (1.0, 1.0), radius_mm=2.0, num_labels=3)
    assert channels.shape == (prompt_channels(3), 3, 4) == (7, 3, 4)
    assert channels.dtype == np.float32
    assert not channels.any()


def test_a_click_is_a_ball_in_the_channel_of_its_label():
    """Radius 1 on voxels of 1 mm: the voxel and its six neighbours."""
    channels = drawn([Click((2, 3, 3), 1)])
    assert channels[1].sum() == 7
    assert channels[1, 2, 3, 3] == channels[1, 1, 3, 3] == channels[1, 2, 3, 4] == 1
    assert not channels[[0, 2]].any()


def test_balls_follow_the_spacing():
    """Slices of 5 mm: a ball of 2.5 mm is a disc of 21 pixels on one of them."""
    channels = drawn([Click((2, 3, 3), 2)], spacing=(5.0, 1.0, 1.0), radius=2.5)
    assert channels[2].sum() == channels[2, 2].sum() == 21
    assert reach_of(2.5, (5.0, 1.0, 0.5)) == (0, 2, 5)


def test_the_last_prompt_counts():
    channels = drawn([Click((2, 3, 3), 1), Click((2, 3, 4), 0)])
    assert channels[0].sum() == 7
    assert channels[1].sum() == 5  # the ball without its centre and the voxel to its right
    assert not (channels[0] * channels[1]).any()


def test_a_window_sees_its_part():
    whole = drawn([Click((2, 3, 3), 1), InBox((0, 2, 2), (5, 6, 7), 2)])
    part = drawn([Click((2, 3, 3), 1), InBox((0, 2, 2), (5, 6, 7), 2)], shape=(3, 4, 3), lower=(1, 2, 4))
    np.testing.assert_array_equal(part, whole[:, 1:4, 2:6, 4:7])
    assert not drawn([Click((2, 3, 3), 1)], shape=(2, 2, 2), lower=(-9, 0, 0)).any()


def test_a_box_hints_and_a_click_in_it_says_more():
    channels = drawn([Click((2, 3, 3), 1), InBox((1, 2, 2), (4, 5, 6), 1)])
    assert (channels[1] == HINT).sum() == 3 * 3 * 4 - 7
    assert channels[1, 2, 3, 3] == 1


def test_a_scribble_is_a_line_of_balls():
    channels = drawn([Scribble(((2, 3, 1), (2, 3, 5)), 1)], radius=0.5)
    np.testing.assert_array_equal(np.flatnonzero(channels[1, 2, 3]), [1, 2, 3, 4, 5])
    assert channels[1].sum() == 5


def test_the_mask_follows_the_prompts():
    mask = np.array([[0, 1], [2, 2]])
    channels = channels_of([Click((0, 0), 2)], mask, (1.0, 1.0), radius_mm=0.1, num_labels=2)
    np.testing.assert_array_equal(channels[:3], [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]])
    np.testing.assert_array_equal(channels[3:], [[[0, 1], [0, 0]], [[0, 0], [1, 1]]])


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=4))
def test_lines_are_connected_and_pass_through_their_points(points):
    line = line_through(points)
    assert set(points) <= set(line)
    assert len(set(line)) == len(line)
    if len(points) == 2:
        assert all(max(abs(a - b) for a, b in zip(p, q, strict=True)) == 1 for p, q in itertools.pairwise(line))


def test_the_largest_error_is_clicked_at_its_deepest_voxel():
    """A missed square of 5 x 5 and a false one of 3 x 3: its centre, and label 1; then background in the other."""
    reference, mask = np.zeros((12, 20), int), np.zeros((12, 20), int)
    reference[2:7, 3:8] = 1
    mask[6:9, 14:17] = 1
    assert next_prompt(reference, mask, (1.0, 1.0)) == Click((4, 5), 1)
    mask[2:7, 3:8] = 1
    assert next_prompt(reference, mask, (1.0, 1.0)) == Click((7, 15), 0)
    assert next_prompt(reference, reference, (1.0, 1.0)) is None


def test_depth_is_measured_in_mm_and_ends_at_the_edge_of_the_image():
    """3 x 9 voxels of 4 x 1 mm at the upper edge: 8 mm deep in the middle row, but never more than 5 mm from an end."""
    reference, mask = np.zeros((8, 9), int), np.zeros((8, 9), int)
    reference[:3] = 1
    assert next_prompt(reference, mask, (4.0, 1.0)) == Click((1, 4), 1)


def test_a_wrong_label_is_an_error_of_the_right_one():
    reference, mask = np.full((3, 9), 2), np.full((3, 9), 1)
    mask[:, :2] = 2
    assert next_prompt(reference, mask, (1.0, 1.0)) == Click((1, 3), 2)


def test_ignored_voxels_are_no_error():
    reference, mask = np.full((3, 9), 3), np.zeros((3, 9), int)
    assert next_prompt(reference, mask, (1.0, 1.0), ignored=3) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_person_who_is_not_exact_stays_deep_inside(seed):
    reference = np.zeros((21, 21), int)
    reference[3:18, 3:18] = 1
    rng = np.random.default_rng(seed)
    clicked = next_prompt(reference, np.zeros_like(reference), (1.0, 1.0), rng=rng)
    assert max(abs(i - 10) for i in clicked.at) <= 2  # 8 deep, so 5.6 or more
    scribbled = next_prompt(reference, np.zeros_like(reference), (1.0, 1.0), kind="scribble", rng=rng)
    assert all(reference[point] for point in line_through(scribbled.points))
    box = next_prompt(reference, np.zeros_like(reference), (1.0, 1.0), kind="box", rng=rng)
    assert isinstance(box, InBox)
    assert all(abs(a - 3) <= 2 and abs(b - 18) <= 2 for a, b in zip(box.lower, box.upper, strict=True))


def test_an_exact_box_is_that_of_the_object():
    reference = np.zeros((9, 9), int)
    reference[1:4, 2:6] = 1
    reference[6:8, 6:8] = 1
    assert next_prompt(reference, np.zeros((9, 9), int), (1.0, 1.0), kind="box") == InBox((1, 2), (4, 6), 1)


def test_a_box_where_background_is_missed_is_a_click():
    mask = np.zeros((9, 9), int)
    mask[1:4, 2:5] = 1
    assert next_prompt(np.zeros((9, 9), int), mask, (1.0, 1.0), kind="box") == Click((2, 3), 0)
