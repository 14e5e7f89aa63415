"""The clock of a schedule under a clock of our own, and what stands in a fold's log."""

import json

import pytest

from autoseg import fold_log
from autoseg.fold_log import EPOCHS_OF_A_BUDGET, Clock, FoldLog, Position


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(fold_log, "time", time)
    return time


def test_progress_in_steps(time):
    clock = Clock(spent=0, epochs=4, iterations_per_epoch=25, budget_seconds=None)
    assert [clock.progress(step) for step in (0, 1, 50, 100, 101)] == [0, 0.01, 0.5, 1, 1]
    time.now += 1e6
    assert clock.progress(50) == 0.5  # however long it took


def test_progress_in_seconds(time):
    """Of 100 seconds 20 are kept back for the validation: half of the training is over after 40."""
    clock = Clock(spent=10, epochs=None, iterations_per_epoch=25, budget_seconds=100)
    clock.reserve_seconds = 20
    assert clock.elapsed() == 10  # spent before this process
    assert clock.progress(0) == clock.progress(1000) == pytest.approx(10 / 80)
    time.now += 30
    assert clock.elapsed() == 40
    assert clock.progress(0) == pytest.approx(0.5)
    time.now += 39
    assert clock.progress(0) < 1
    time.now += 1
    assert clock.progress(0) == 1
    time.now += 100
    assert clock.progress(0) == 1


def test_a_budget_below_the_validation_is_over_at_once(time):
    clock = Clock(spent=0, epochs=None, iterations_per_epoch=25, budget_seconds=10)
    clock.reserve_seconds = 30
    time.now += 0.001
    assert clock.progress(0) == 1


def test_a_length_is_epochs_or_seconds():
    for epochs, budget in ((None, None), (3, 60.0)):
        with pytest.raises(AssertionError):
            Clock(spent=0, epochs=epochs, iterations_per_epoch=25, budget_seconds=budget)


def test_epochs_end_after_their_steps_or_a_twentieth_of_the_budget(time):
    assert EPOCHS_OF_A_BUDGET == 20
    by_steps = Clock(spent=0, epochs=4, iterations_per_epoch=25, budget_seconds=None)
    assert [by_steps.epoch_is_over(steps, 1e6) for steps in (1, 24, 25, 26)] == [False, False, True, True]
    by_time = Clock(spent=0, epochs=None, iterations_per_epoch=25, budget_seconds=100)
    assert not by_time.epoch_is_over(24, 4.9)
    assert by_time.epoch_is_over(1, 5.0)
    assert by_time.epoch_is_over(25, 0.1)  # a long budget has as many epochs as fit


def test_a_short_rest_of_the_budget_joins_the_epoch_before(time):
    """Epochs take 5 of 100 seconds, 20 of which are kept back: with 2.5 left one more is begun, with less not."""
    clock = Clock(spent=77.5, epochs=None, iterations_per_epoch=25, budget_seconds=100)
    clock.reserve_seconds = 20
    assert clock.epoch_is_over(25, 5.0)
    time.now += 0.25
    assert not clock.epoch_is_over(25, 5.0)


def epoch(log: FoldLog, number: int, **changes) -> None:
    told = {
        "loss": -0.1234567, "validation_loss": 0.5, "pseudo_dice": [0.81239, None],
        "learning_rate": 0.01, "progress": 0.25,
    }  # fmt: skip
    log.epoch(Position(number, 25 * number, 61.239 * number), **(told | changes))


def test_history_and_log(tmp_path, capsys):
    with FoldLog(tmp_path / "fold_2", 2, ["liver", "tumour"], []) as log:
        log.step(0.5, 0.01)  # before there is any history
        epoch(log, 1)
        log.step(-0.2, 0.26)
        epoch(log, 60, pseudo_dice=[0.9, 0.25], progress=0.5)
        log.say("fold 2  the end")
    rows = [json.loads(line) for line in (tmp_path / "fold_2" / "history.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "epoch": 1,
        "step": 25,
        "seconds": 61.24,
        "loss": -0.12346,
        "validation_loss": 0.5,
        "pseudo_dice": [0.8124, None],
        "learning_rate": 0.01,
    }
    assert [row["epoch"] for row in rows] == [1, 60]
    assert log.history == rows
    lines = (tmp_path / "fold_2" / "log.txt").read_text().splitlines()
    # a quarter took 61 s, the rest takes three times as long; half took 61 min 14 s, so does the rest
    assert lines == [
        "fold 2  epoch   1  step    25  loss -0.123 / +0.500  pseudo Dice liver 0.812  tumour   -   1m01s, 3m04s to go",
        "fold 2  epoch  60  step  1500  loss -0.123 / +0.500  pseudo Dice liver 0.900  tumour 0.250  "
        "1h01m, 1h01m to go",
        "fold 2  the end",
    ]
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line] == lines  # without a terminal: the lines, no bar
    assert shown.err == ""


def test_a_resumed_fold_keeps_its_history(tmp_path):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
    before = log.history
    with FoldLog(tmp_path, 0, ["liver", "tumour"], before) as log:
        epoch(log, 2)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
    assert len(before) == 1  # the checkpoint's own list is not written into


def test_as_many_scores_as_labels(tmp_path):
    with FoldLog(tmp_path, 0, ["liver"], []) as log, pytest.raises(ValueError, match="zip"):
        epoch(log, 1)
