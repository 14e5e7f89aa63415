"""Parts of the cases: each case in one, the same for everybody, parts of parts too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UsageError
from autoseg.inference.shards import Shard, parse_shard


def test_every_nth_case_from_the_number_on():
    assert Shard(2, 3).of("abcdefgh") == ["b", "e", "h"]
    assert Shard(1, 1).of("abc") == ["a", "b", "c"]
    assert Shard(3, 3).of("ab") == []


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_parts_and_parts_of_parts_hold_each_case_once(cases, count, inner):
    items = range(cases)
    parts = [Shard(number, count) for number in range(1, count + 1)]
    assert sorted(item for part in parts for item in part.of(items)) == list(items)
    for part in parts:
        below = [part.part(number, inner) for number in range(1, inner + 1)]
        assert sorted(item for one in below for item in one.of(items)) == part.of(items)


def test_as_typed():
    assert parse_shard("2/8") == parse_shard(" 2/8 ") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize(
    "text", ["", "2", "2/", "/8", "0/8", "9/8", "2/0", "-1/8", "a/b", "2/8/9", "1.0/2", "1/9999999"]
)
def test_what_is_not_a_part_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)
