"""Some of many names, numbers of things, durations, columns: as messages put them."""

import pytest

from autoseg.messages import aligned, counted, duration, some


def test_some_of_many_names():
    assert some([]) == ""
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some((n for n in range(4)), 3) == "0, 1, 2 and 1 more"


def test_numbers_of_things():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1m00s"), (60, "1m00s"), (193.2, "3m13s"), (3599.6, "1h00m"),
        (3600, "1h00m"), (10783, "2h59m"),
    ],
)  # fmt: skip
def test_durations_are_shown(seconds, text):
    assert duration(seconds) == text


def test_columns_begin_below_each_other():
    assert aligned([("a", "what", ""), ("long", "b", "c")]) == ["a     what", "long  b     c"]
