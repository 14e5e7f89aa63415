"""How far a command is: lines where there is no terminal, none in between, none on a terminal."""

import io
import sys

import pytest

from autoseg.lines import shown_by
from autoseg.progress import Progress, progressed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("autoseg.progress.time.monotonic", lambda: now[0])
    return now


def run(clock, seconds):
    said = []
    with shown_by(said.append), Progress(4, "predict") as progress:
        for one in seconds:
            clock[0] += one
            progress.update()
    return said


def test_a_line_a_minute_where_there_is_no_terminal(clock):
    assert run(clock, (40, 30, 30, 60)) == ["predict: 2 of 4 in 1m10s, about 1m10s to go"]
    assert run(clock, (60, 60, 60, 60)) == [
        "predict: 1 of 4 in 1m00s, about 3m00s to go",
        "predict: 2 of 4 in 2m00s, about 2m00s to go",
        "predict: 3 of 4 in 3m00s, about 1m00s to go",
    ]
    assert run(clock, (1, 1, 1, 1)) == []


def test_a_bar_and_no_line_on_a_terminal(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(clock, (60, 60, 60, 60)) == []
    assert "predict:   0%" in terminal.getvalue()


def test_items_come_through_and_an_error_ends_it(clock):
    def items():
        yield "a"
        clock[0] += 90
        yield "b"
        raise KeyError

    said, found = [], []
    with shown_by(said.append), pytest.raises(KeyError):
        found.extend(progressed(items(), 3, "rank"))
    assert said == ["rank: 2 of 3 in 1m30s, about 45 s to go"]
    assert [*progressed("xyz", 3, "rank")] == ["x", "y", "z"]
