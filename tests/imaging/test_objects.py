"""Cores and borders of objects, and the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.imaging.objects import BORDER, CORE, ObjectRows, grow_in_bands, grow_objects, split_objects


def row(text: str) -> np.ndarray:
    """A map (1, 1, X) from digits."""
    return np.array([[[*map(int, text)]]])


def test_the_border_lies_towards_other_objects_as_wide_as_asked():
    classes = split_objects(row("011111111222222220"), 2.0)
    assert classes.ravel().tolist() == [int(c) for c in "011111122221111110"]
    assert classes.dtype == np.uint8


def test_without_others_nearby_there_is_no_border():
    assert split_objects(row("1111100"), 2.0).ravel().tolist() == [int(c) for c in "1111100"]
    assert split_objects(row("1111000222"), 3.0).ravel().tolist() == [int(c) for c in "1111000111"]  # 4 voxels away
    assert split_objects(row("1111002222"), 3.0).ravel().tolist() == [int(c) for c in "1112002111"]
    assert (split_objects(np.full((2, 3, 4), 7), 2.0) == CORE).all()


def test_every_object_has_a_core_however_small():
    objects = np.zeros((1, 9, 12), int)
    objects[0, 2, 2], objects[0, 4:7, 4:7], objects[0, 1:3, 8:11] = 1, 2, 3
    classes = split_objects(objects, 3.0)
    assert all((classes[objects == number] == CORE).any() for number in (1, 2, 3))
    between = split_objects(row("1123"), 3.0).ravel().tolist()
    assert between == [CORE, BORDER, CORE, CORE]  # the reaches are 2, 1 and 1, the border half of that


def test_along_a_coarse_axis_the_outermost_slice_of_an_object_is_border():
    objects = np.zeros((5, 9, 9), int)
    objects[:2], objects[2:] = 1, 2
    classes = split_objects(objects, 2.0, (5.0, 1.0, 1.0))
    assert classes[:, 4, 4].tolist() == [CORE, BORDER, BORDER, CORE, CORE]


def test_a_width_of_zero_leaves_components_as_they_are():
    assert (split_objects(row("0110220"), 0.0) == (row("0110220") > 0)).all()


def test_objects_that_touch_are_separated_again():
    objects = np.zeros((1, 12, 20), int)
    objects[0, 2:10, 2:10], objects[0, 2:10, 10:18] = 5, 9
    grown, following = grow_objects(split_objects(objects, 2.0))
    assert following == 3
    assert (grown == np.where(objects == 5, 1, np.where(objects == 9, 2, 0))).all()


def test_without_the_border_they_would_be_one():
    objects = np.zeros((1, 12, 20), int)
    objects[0, 2:10, 2:10], objects[0, 2:10, 10:18] = 1, 2
    assert grow_objects(split_objects(objects, 0.0))[1] == 2


def test_a_piece_without_a_core_is_an_object_and_small_ones_are_left_out():
    classes = np.zeros((1, 5, 12), np.uint8)
    classes[0, 1:4, 1:4], classes[0, 2, 8:10] = BORDER, CORE
    assert grow_objects(classes)[0].max() == 2
    grown, following = grow_objects(classes, smallest=3.0)
    assert following == 2
    assert grown[0, 2].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert grow_objects(classes, (1.0, 2.0, 1.0), smallest=3.0)[1] == 3  # then two voxels are 4 mm³


def test_a_core_that_is_too_small_does_not_split_an_object():
    classes = np.full((1, 5, 12), BORDER, np.uint8)
    classes[0, 1:4, 1:5], classes[0, 2, 10] = CORE, CORE
    assert grow_objects(classes)[1] == 3
    assert grow_objects(classes, smallest=2.0)[1] == 2


def test_objects_meet_half_way_between_their_cores():
    classes = row("1222221")
    assert grow_objects(classes)[0].ravel()[[0, 1, 2, 4, 5, 6]].tolist() == [1, 1, 1, 2, 2, 2]


def test_pieces_that_share_an_edge_or_a_corner_alone_are_apart():
    classes = np.zeros((1, 4, 4), np.uint8)
    classes[0, :2, :2], classes[0, 2:, 2:] = CORE, CORE
    assert grow_objects(classes)[1] == 3


def test_nothing_makes_no_object():
    grown, following = grow_objects(np.zeros((2, 3, 4), np.uint8))
    assert following == 1
    assert not grown.any()
    assert not split_objects(np.zeros((2, 3, 4), int), 2.0).any()


maps = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 6)), elements=st.integers(0, 2))


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(maps, st.data())
def test_rows_give_the_same_objects_with_the_same_numbers_as_the_whole(classes, data):
    axis = 1 if len(classes) == 1 else 0
    smallest = data.draw(st.sampled_from([0.0, 2.0, 4.0]))
    spacing = (3.0, 1.0, 0.5)
    whole, following = grow_objects(classes, spacing, smallest=smallest, axis=axis)
    rows, parts, start = ObjectRows(spacing, smallest=smallest, axis=axis), [], 0
    while start < classes.shape[axis]:
        stop = start + data.draw(st.integers(1, 4))
        parts.append(rows.take(classes.take(range(start, min(stop, classes.shape[axis])), axis=axis),
                               last=stop >= classes.shape[axis]))  # fmt: skip
        start = stop
    assert (np.concatenate(parts, axis=axis) == whole).all()
    assert rows.count == following - 1


@settings(max_examples=100, deadline=None)
@given(maps)
def test_every_voxel_of_the_foreground_belongs_to_one_connected_object(classes):
    grown, count = grow_in_bands(classes)
    assert ((grown > 0) == (classes > 0)).all()
    assert sorted({*np.unique(grown)} - {0}) == [*range(1, count + 1)]


def test_rows_are_handed_back_as_soon_as_their_objects_are_complete():
    classes = np.zeros((1, 9, 3), np.uint8)
    classes[0, 1:3, 1], classes[0, 5:8, 1] = CORE, CORE
    rows = ObjectRows(axis=1)
    assert rows.take(classes[:, :2]).shape[1] == 1  # the first object may continue
    assert rows.take(classes[:, 2:6]).shape[1] == 4
    assert rows.take(classes[:, 6:], last=True).shape[1] == 4
    assert rows.count == 2


@pytest.mark.parametrize("band", [1, 64, 10**9])
def test_bands_of_any_size_give_the_same(band, monkeypatch):
    random = np.random.default_rng(0)
    classes = (random.random((6, 20, 20)) < 0.4).astype(np.uint8) * random.integers(1, 3, (6, 20, 20)).astype(np.uint8)
    monkeypatch.setattr("autoseg.imaging.objects.BAND_VOXELS", band)
    assert (grow_in_bands(classes)[0] == grow_objects(classes)[0]).all()
