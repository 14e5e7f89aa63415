"""Values in files and class indices of the network, worked out by hand."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.errors import UsageError
from autoseg.imaging.labels import OUTSIDE, LabelSet
from autoseg.records import _dumps, from_plain, to_plain

relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# BraTS as it was: 1 core, 2 oedema, 4 enhancing; nobody has 3.
BRATS = LabelSet(
    values={"enhancing": 4, "core": 1, "oedema": 2},
    regions={"whole": (1, 2, 4), "tumour core": (1, 4), "enhancing": (4,)},
    region_values=(2, 1, 4),
)
WITH_IGNORE = LabelSet(values={"liver": 1, "tumour": 3}, ignore=7, aliases={200: 3, 255: 7, 254: 0})


@st.composite
def label_sets(draw):
    numbers = draw(st.lists(st.integers(1, 12) | st.just(70000), min_size=1, max_size=9, unique=True))
    count = draw(st.integers(1, len(numbers)))
    values, spare = numbers[:count], numbers[count:]
    ignore = spare.pop() if spare and draw(st.booleans()) else None
    own = [0, *values] + ([] if ignore is None else [ignore])
    unions = draw(st.lists(st.sets(st.sampled_from(values), min_size=1).map(tuple), max_size=3))
    return LabelSet(
        values={f"label {value}": value for value in values},
        regions={f"region {i}": union for i, union in enumerate(unions)},
        region_values=tuple(values[0] for _ in unions),
        ignore=ignore,
        aliases={alias: draw(st.sampled_from(own)) for alias in spare},
    )


file_values = st.lists(st.integers(-2, 13) | st.just(70000), max_size=30).map(lambda found: np.array(found, np.int32))


# Indices


def test_indices_follow_the_values_whatever_the_order_of_names():
    assert list(BRATS.values.items()) == [("core", 1), ("oedema", 2), ("enhancing", 4)]
    indices = BRATS.to_indices(np.array([[[0, 1], [2, 4]]], dtype=np.uint8))
    assert indices.tolist() == [[[0, 1], [2, 3]]]
    assert indices.dtype == np.int16
    assert BRATS.num_labels == 3


def test_gap_is_closed_inside_and_opened_again_for_files():
    labels = LabelSet({"nucleus": 255})
    indices = labels.to_indices(np.array([[0, 255, 255]], dtype=np.int32))
    assert indices.tolist() == [[0, 1, 1]]
    back = labels.to_file_values(indices)
    assert back.tolist() == [[0, 255, 255]]
    assert back.dtype == np.uint8


def test_ignored_voxels_come_after_the_last_label():
    assert WITH_IGNORE.ignore_index == 3
    assert WITH_IGNORE.to_indices(np.array([0, 1, 3, 7])).tolist() == [0, 1, 2, 3]
    assert LabelSet({"a": 1}).ignore_index is None


def test_ignore_value_below_the_labels_changes_no_index():
    labels = LabelSet({"a": 5, "b": 6}, ignore=1)
    assert labels.to_indices(np.array([0, 1, 5, 6])).tolist() == [0, 3, 1, 2]


def test_aliases_mean_what_they_stand_for():
    assert WITH_IGNORE.to_indices(np.array([200, 255, 254, 3])).tolist() == [2, 3, 0, 2]


def test_unexpected_values_are_counted():
    found = np.array([0, 5, 1, 5, -1, 7, 200], dtype=np.int32)
    assert WITH_IGNORE.unexpected(found) == {-1: 1, 5: 2}
    with pytest.raises(ValueError, match=r"unexpected label values \{-1: 1, 5: 2\}"):
        WITH_IGNORE.to_indices(found)
    assert WITH_IGNORE.unexpected(np.array([0, 1, 3, 7])) == {}


def test_fractions_are_never_truncated_to_labels():
    with pytest.raises(AssertionError):
        WITH_IGNORE.to_indices(np.array([0.0, 0.9]))


def test_outside_is_never_written_as_the_last_label():
    with pytest.raises(AssertionError):
        WITH_IGNORE.to_file_values(np.array([OUTSIDE, 1], dtype=np.int8))


@pytest.mark.parametrize(
    ("value", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (70000, np.uint32)]
)
def test_written_dtype_is_the_smallest_that_holds_the_values(value, dtype):
    written = LabelSet({"a": value}).to_file_values(np.array([0, 1], dtype=np.uint8))
    assert written.dtype == dtype
    assert written.tolist() == [0, value]


@relaxed
@given(label_sets(), file_values)
def test_indices_and_file_values_are_inverse(labels, found):
    array = np.append(found[np.isin(found, [*labels.values.values()])], 0).reshape(1, 1, -1)
    indices = labels.to_indices(array)
    assert indices.min() >= 0
    assert indices.max() <= labels.num_labels
    assert np.array_equal(labels.to_file_values(indices), array)


@relaxed
@given(label_sets(), file_values)
def test_every_value_is_either_unexpected_or_has_the_index_of_its_meaning(labels, array):
    known = {0: 0} | {value: i for i, value in enumerate(sorted(labels.values.values()), start=1)}
    if labels.ignore is not None:
        known[labels.ignore] = labels.num_labels + 1
    known |= {alias: known[value] for alias, value in labels.aliases.items()}
    assert labels.unexpected(array) == {v: int((array == v).sum()) for v in set(array.tolist()) if v not in known}
    expected = np.array([value for value in array.tolist() if value in known], dtype=np.int32)
    assert labels.to_indices(expected).tolist() == [known[value] for value in expected.tolist()]


@relaxed
@given(label_sets())
def test_label_set_survives_its_file(labels):
    back = from_plain(LabelSet, json.loads(_dumps(to_plain(labels))))
    assert back == labels
    assert list(back.values.items()) == list(labels.values.items()), "the order of indices"


# Heads, regions and decisions


def test_heads_are_labels_with_background_or_regions_without():
    assert LabelSet({"a": 1, "b": 2}).num_heads == 3
    assert LabelSet({"a": 1, "b": 2}, ignore=3).num_heads == 3, "the ignore label is never predicted"
    assert BRATS.num_heads == 3
    assert BRATS.has_regions
    assert not WITH_IGNORE.has_regions


def test_regions_unite_indices_not_values():
    assert BRATS.regions_as_indices == ((1, 2, 3), (1, 3), (3,))
    assert BRATS.scored == {"whole": (1, 2, 3), "tumour core": (1, 3), "enhancing": (3,)}


def test_labels_are_scored_one_by_one_without_regions():
    assert WITH_IGNORE.scored == {"liver": (1,), "tumour": (2,)}
    assert WITH_IGNORE.regions_as_indices == ()


def test_labels_as_regions_keep_their_values():
    as_regions = WITH_IGNORE.as_regions()
    assert as_regions.scored == WITH_IGNORE.scored
    assert as_regions.num_heads == 2
    assert as_regions.decide(np.array([[0.9, 0.2, 0.9, 0.1], [0.1, 0.8, 0.7, 0.2]])).tolist() == [1, 2, 2, 0]
    assert BRATS.as_regions() == BRATS


def test_softmax_decides_for_the_largest():
    #                 voxel:    0    1    2    3 (a tie goes to the first)
    probabilities = np.array([[0.6, 0.2, 0.1, 0.4], [0.3, 0.5, 0.1, 0.4], [0.1, 0.3, 0.8, 0.2]])
    decided = WITH_IGNORE.decide(probabilities)
    assert decided.tolist() == [0, 1, 2, 0]
    assert decided.dtype == np.uint8
    assert WITH_IGNORE.to_file_values(decided).tolist() == [0, 1, 3, 0]


def test_regions_write_in_order_and_the_later_one_overwrites():
    #   region          writes     voxel: none whole core all  core without whole
    probabilities = np.array(
        [
            [0.1, 0.9, 0.9, 0.9, 0.2],  # whole: 2
            [0.1, 0.2, 0.8, 0.6, 0.7],  # tumour core: 1
            [0.5, 0.2, 0.3, 0.9, 0.1],  # enhancing: 4; one half is not more than one half
        ]
    )
    decided = BRATS.decide(probabilities)
    assert BRATS.to_file_values(decided).tolist() == [0, 2, 1, 4, 1]


def test_decision_keeps_the_shape_and_finds_a_dtype_for_many_labels():
    many = LabelSet({f"l{value}": value for value in range(1, 301)})
    probabilities = np.zeros((301, 2, 1, 3), np.float32)
    probabilities[300, 1, 0, 2] = 1
    decided = many.decide(probabilities)
    assert decided.shape == (2, 1, 3)
    assert decided.dtype == np.uint16
    assert decided[1, 0, 2] == 300


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": {}}, "no foreground label"),
        ({"values": {"a": 0}}, "must be positive"),
        ({"values": {"a": -1}}, "must be positive"),
        ({"values": {"a": 1, "b": 1}}, "two labels share a value"),
        ({"values": {"a": 1}, "ignore": 1}, "ignore value 1 is also a label"),
        ({"values": {"a": 1}, "ignore": 0}, "ignore value is 0"),
        ({"values": {"a": 1}, "regions": {"r": (1, 2)}, "region_values": (1,)}, r"regions contain the values \[2\]"),
        ({"values": {"a": 1}, "regions": {"r": (0, 1)}, "region_values": (1,)}, r"regions contain the values \[0\]"),
        ({"values": {"a": 1}, "regions": {"r": ()}, "region_values": (1,)}, "region 'r' contains no labels"),
        ({"values": {"a": 1}, "regions": {"r": (1,)}}, "1 regions but 0 values"),
        ({"values": {"a": 1}, "region_values": (1,)}, "0 regions but 1 values"),
        ({"values": {"a": 1}, "regions": {"r": (1,)}, "region_values": (2,)}, r"writes the values \[2\]"),
        ({"values": {"a": 1}, "aliases": {9: 2}}, "9 cannot stand for 2"),
        ({"values": {"a": 1, "b": 2}, "aliases": {1: 2}}, "1 cannot stand for 2"),
        ({"values": {"a": 1}, "aliases": {0: 1}}, "0 cannot stand for 1"),
        ({"values": {"a": 1}, "ignore": 5, "aliases": {5: 1}}, "5 cannot stand for 1"),
    ],
)
def test_impossible_label_set_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        LabelSet(**arguments)
