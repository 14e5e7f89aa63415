"""Run lengths: counted by hand, the round trip, pycocotools as oracle, and what is not a mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autoseg.imaging.formats.run_lengths import decode, encode, from_text, to_text

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def test_columns_are_counted_from_top_to_bottom_beginning_outside():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert encode(mask) == [2, 3, 1]
    assert encode(~mask) == [0, 2, 3, 1]
    assert encode(np.zeros((2, 3), bool)) == [6]
    assert np.array_equal(decode([2, 3, 1], (2, 3)), mask)


def test_text_by_hand():
    """5 is one group; 40 = 8 + 32 is two, the first with 32 added; the fourth count is a difference: 3 - 40 = -37."""
    assert to_text([5]) == "5"
    assert to_text([40]) == chr(48 + 8 + 32) + "1"
    assert from_text(to_text([5, 40, 7, 3])) == [5, 40, 7, 3]


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_round_trip(mask):
    assert np.array_equal(decode(from_text(to_text(encode(mask))), mask.shape), mask)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_text_holds_any_counts(counts):
    assert from_text(to_text(counts)) == counts


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_text_is_that_of_pycocotools(mask):
    oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is the oracle")
    assert oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() == to_text(encode(mask))


@pytest.mark.parametrize(
    ("counts", "words"),
    [([3, 2], "add up to 5"), ([3, 4], "add up to 7"), ([8, -2], "run of -2"), ([], "add up to 0"), ([10**18], "add")],
)
def test_counts_of_another_size_are_refused_before_memory_is_taken(counts, words):
    with pytest.raises(ValueError, match=words):
        decode(counts, (2, 3))


@pytest.mark.parametrize(
    ("text", "words"),
    [("5 5", "character 2"), ("5é", "character 2"), ("P", "end within"), ("o" * 40, "without an end")],
)
def test_text_that_is_none_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        from_text(text)
