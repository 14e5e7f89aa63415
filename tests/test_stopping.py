"""Requests to stop: at once, at the next safe point, by signal, by time, by impatience."""

import os
import signal
import time

import pytest

from autoseg.errors import Interrupted, Stopped
from autoseg.stopping import StopSignals


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0)  # python runs the answer before the next instruction


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Stopped, 75), (signal.SIGUSR1, Stopped, 75)],
)
def test_a_signal_ends_the_work_at_once(number, error, code):
    with StopSignals(), pytest.raises(error, match="stopped by") as caught:
        send(number)
    assert caught.value.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_deferred_it_waits_for_the_safe_point(number):
    done = []

    def work(stop: StopSignals) -> None:
        with stop.deferred():
            assert not stop.due
            send(number)
            done.append("the rest of the step")
            assert stop.due
            done.append("saved")
            stop.now()

    with StopSignals() as stop, pytest.raises(Stopped):
        work(stop)
    assert done == ["the rest of the step", "saved"]


def test_a_request_that_nobody_looked_at_ends_the_work_afterwards():
    with StopSignals() as stop, pytest.raises(Stopped, match="SIGTERM"), stop.deferred():
        send(signal.SIGTERM)


def test_a_second_ctrl_c_does_not_wait():
    done = []
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        twice(stop, signal.SIGINT, done)
    assert done == ["once"]


def test_a_second_sigterm_waits_as_the_first():
    done = []
    with StopSignals() as stop, pytest.raises(Stopped, match="SIGTERM"):
        twice(stop, signal.SIGTERM, done)
    assert done == ["once", "twice"]


def twice(stop: StopSignals, number: int, done: list[str]) -> None:
    with stop.deferred():
        for word in ("once", "twice"):
            send(number)
            done.append(word)


def test_time_is_noticed_at_safe_points(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignals(after_seconds=60) as stop, stop.deferred():
        now[0] = 159.9
        assert not stop.due
        now[0] = 160.0
        assert stop.due
        with pytest.raises(Stopped, match="after 60 s") as caught:
            stop.now()
    assert caught.value.exit_code == 75


def test_the_time_that_was_set_ends_what_cannot_look_at_it():
    with StopSignals(after_seconds=0.05) as stop, pytest.raises(Stopped, match="as requested"):
        time.sleep(20)
    assert stop.to_pass_on == signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_nobody_takes_a_stop_for_a_failure():
    """What comes out of a signal, at any moment, must not end up in somebody's `except Exception`."""

    def read_a_file() -> str:
        try:
            send(signal.SIGTERM)
        except Exception:
            return "the file is damaged"
        return "read"

    with StopSignals(), pytest.raises(Stopped):
        read_a_file()


def test_outside_everything_is_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
