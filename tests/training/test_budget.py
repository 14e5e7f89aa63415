"""The clock of a schedule, on time that passes when told to."""

import pytest

from autoseg.training import budget as budget_clock
from autoseg.training.budget import SHORT_EPOCHS, Clock, epoch_steps
from made_up_time import Time


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(budget_clock, "time", time)
    return time


def test_progress_in_steps(time):
    clock = Clock(spent=0, total_steps=100, iterations_per_epoch=25, budget_seconds=None)
    assert [clock.progress(step) for step in (0, 1, 50, 100, 101)] == [0, 0.01, 0.5, 1, 1]
    time.now += 1e6
    assert clock.progress(50) == 0.5  # however long it took


def test_progress_in_seconds(time):
    """Of 100 seconds 20 are kept back for the validation: half of the training is over after 40."""
    clock = Clock(spent=10, total_steps=None, iterations_per_epoch=25, budget_seconds=100)
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
    clock = Clock(spent=0, total_steps=None, iterations_per_epoch=25, budget_seconds=10)
    clock.reserve_seconds = 30
    time.now += 0.001
    assert clock.progress(0) == 1


def test_a_length_is_steps_or_seconds():
    for total_steps, budget in ((None, None), (75, 60.0)):
        with pytest.raises(AssertionError):
            Clock(spent=0, total_steps=total_steps, iterations_per_epoch=25, budget_seconds=budget)


def test_epochs_end_after_their_steps_or_a_twentieth_of_the_budget(time):
    assert SHORT_EPOCHS == 20
    by_steps = Clock(spent=0, total_steps=100, iterations_per_epoch=25, budget_seconds=None)
    assert [by_steps.epoch_is_over(steps, 1e6) for steps in (1, 24, 25, 26)] == [False, False, True, True]
    by_time = Clock(spent=0, total_steps=None, iterations_per_epoch=25, budget_seconds=100)
    assert not by_time.epoch_is_over(24, 4.9)
    assert by_time.epoch_is_over(1, 5.0)
    assert by_time.epoch_is_over(25, 0.1)  # a long budget has as many epochs as fit


@pytest.mark.parametrize(
    ("total", "steps"), [(10_000, 250), (5_000, 250), (4_999, 250), (4_980, 249), (21, 2), (1, 1), (None, 250)]
)
def test_a_short_length_in_steps_has_twenty_epochs(total, steps):
    assert epoch_steps(total, 250) == steps


def test_the_rest_is_short_beside_the_epochs_there_are(time):
    """A day, in epochs of 250 steps and 40 s: 2100 s before its end there are many to come, 19 s before it none."""
    clock = Clock(spent=0.0, total_steps=None, iterations_per_epoch=250, budget_seconds=86_400.0)
    time.now += 86_400 - 2100
    assert clock.epoch_is_over(250, 40.0)
    time.now += 2100 - 19
    assert not clock.epoch_is_over(250, 40.0)


def test_a_short_rest_of_the_budget_joins_the_epoch_before(time):
    """Epochs take 5 of 100 seconds, 20 of which are kept back: with 2.5 left one more is begun, with less not."""
    clock = Clock(spent=77.5, total_steps=None, iterations_per_epoch=25, budget_seconds=100)
    clock.reserve_seconds = 20
    assert clock.epoch_is_over(25, 5.0)
    time.now += 0.25
    assert not clock.epoch_is_over(25, 5.0)


def budget_of(time, seconds: float = 300.0, *, start: float = 0.0) -> Clock:
    clock = Clock(spent=start, total_steps=None, iterations_per_epoch=25, budget_seconds=seconds)
    clock.start_seconds = start
    return clock


def test_training_has_two_thirds_of_what_the_start_left(time):
    """Of 300 seconds 30 went into the start: 90 are kept back at most, however long the validation takes."""
    clock = budget_of(time, start=30.0)
    clock.reserve(80.0)
    assert clock.reserve_seconds == 80
    clock.reserve(10_783.0)
    assert clock.reserve_seconds == pytest.approx(90)
    assert clock.progress(0) == pytest.approx(30 / 210)


def test_a_start_that_took_nearly_all_leaves_something_to_train_in(time):
    clock = budget_of(time, 41.0, start=40.0)
    clock.reserve(1000.0)
    assert clock.progress(0) == pytest.approx(40 / (41 - 1 / 3))
    assert clock.progress(0) < 1
    late = budget_of(time, 41.0, start=50.0)
    late.reserve(1000.0)
    assert (late.reserve_seconds, late.remaining()) == (0, pytest.approx(-9))


def test_what_is_kept_back_can_always_be_given_back(time):
    clock = budget_of(time)
    clock.reserve(100.0)
    time.now += 150
    clock.reserve(20.0, training=True)
    assert clock.progress(0) == pytest.approx(150 / 280)


def test_the_end_of_the_schedule_comes_closer_by_half_at_most(time):
    """After 200 of 280 seconds the estimate rises by 70: the end would be 10 s away, and is 40."""
    clock = budget_of(time)
    clock.reserve(20.0)
    time.now += 200
    clock.reserve(90.0, training=True)
    assert clock.reserve_seconds == pytest.approx(60)
    time.now += 20
    clock.reserve(90.0, training=True)
    assert clock.reserve_seconds == pytest.approx(70)  # 20 s are left, of which 10 may go
    time.now += 15
    assert clock.progress(0) == 1
    clock.reserve(95.0, training=True)  # after the end nothing is left to be taken away
    assert clock.reserve_seconds == pytest.approx(65)
    assert clock.progress(0) == 1


def test_watching_takes_a_tenth_of_the_time_at_most(time):
    """Of 300 seconds an epoch takes 15; where watching takes 3 it takes 30, where it takes 60 half of the schedule."""
    clock = budget_of(time)
    found = []
    for watching in (0.0, 1.0, 3.0, 60.0):
        clock.watching_seconds = watching
        found.append(next(seconds for seconds in range(1000) if clock.epoch_is_over(1, seconds)))
    assert found == [15, 15, 30, 150]
    assert clock.epoch_is_over(25, 1.0)  # so many steps are an epoch in any case
    clock.reserve(100.0)
    assert not clock.epoch_is_over(1, 99.0)
    assert clock.epoch_is_over(1, 100.0)
