"""What comes after the last step: estimates worked out by hand, on a clock that passes when told to."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autoseg.datasets.splits import Split
from autoseg.errors import StateError
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import options_for
from autoseg.inference.rehearsal import case_to_measure
from autoseg.messages import duration
from autoseg.training import budget as budget_clock
from autoseg.training.budget import Clock
from autoseg.training.validation_budget import (
    CLOSING_SECONDS,
    FILE,
    SECONDS_PER_CASE,
    SLACK,
    STEADY,
    VALIDATION_MARGIN,
    AfterTraining,
    Inference,
    estimate,
    inference_of,
    keep_inference,
    patches,
    ways,
)
from made_up_time import Time
from plans import plan_of

FULL, SOME, NONE = (
    Inference((0, 1, 2)),
    Inference((2,), cheaper=True),
    Inference((), step=0.75, tile=2.0, cheaper=True),
)


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(budget_clock, "time", time)
    return time


def clock_of(budget: float, *, start: float = 0.0) -> Clock:
    clock = Clock(spent=start, total_steps=None, iterations_per_epoch=50, budget_seconds=budget)
    clock.start_seconds = start
    return clock


def after_of(forward: float = 0.1, *, passes=(800, 100, 50), beside: float = 4.0) -> AfterTraining:
    """With passes of 0.1 s: 88, 11 and 5.5 s of them with the margin, 4 s beside them, 2.5 + 1.5 s before and after."""
    return AfterTraining(
        (FULL, SOME, NONE), passes, forward_seconds=forward, watching_seconds=2.5, beside_seconds=beside
    )


def test_the_figures_that_values_below_rest_on():
    assert (VALIDATION_MARGIN, CLOSING_SECONDS, SECONDS_PER_CASE, STEADY, SLACK) == (1.1, 1.5, 0.1, 0.15, 0.03)
    assert [after_of().seconds(n) for n in range(3)] == pytest.approx([96, 19, 13.5])
    assert [after_of().validation_seconds(n) for n in range(3)] == pytest.approx([92, 15, 9.5])


# ---- when the fold begins


def test_a_validation_of_less_than_a_third_is_done_in_full(time):
    clock, after = clock_of(300), after_of()
    assert after.begin(clock) == "validation takes about 1m36s of the 5m00s"
    assert after.way is FULL
    assert clock.reserve_seconds == pytest.approx(96)


def test_one_of_more_than_a_third_is_done_in_a_cheaper_way_and_said(time):
    clock, after = clock_of(240), after_of()
    assert after.begin(clock) == (
        "full validation would take about 1m36s of the 4m00s: validating mirrored along 1 of the axes, tiles 0.5 of a "
        "tile apart instead, in about 19 s"
    )
    assert after.way is SOME
    assert clock.reserve_seconds == pytest.approx(19)


def test_the_start_counts_not_as_time_to_train(time):
    """Of 300 seconds 30 went into the start: a third of the rest is 90, and the validation in full takes 96."""
    after = after_of()
    after.begin(clock_of(300, start=30))
    assert after.way is SOME


def test_one_that_fits_in_no_way_runs_over_and_the_training_has_two_thirds(time):
    clock, after = clock_of(30), after_of()
    told = after.begin(clock)
    assert after.way is NONE
    assert clock.reserve_seconds == pytest.approx(10)
    assert told.endswith(
        "without mirroring, tiles 0.75 of a tile apart, of up to 2 times the patch's edges instead, in about 14 s; "
        "training ends after 20 s, validation overruns the budget, to about 34 s"
    )


def test_no_budget_is_refused_for_198_cases(time):
    """As reported: 10783 s for the validation, of a budget of 300 s. Each case takes 400 passes of 0.1 s in full."""
    clock, after = clock_of(300, start=20), after_of(passes=(198 * 400, 198 * 50, 198 * 20), beside=60.0)
    told = after.begin(clock)
    assert "would take about 2h26m of the 5m00s" in told
    assert "validation overruns the budget" in told
    assert clock.reserve_seconds == pytest.approx(280 / 3)
    assert clock.progress(0) == pytest.approx(20 / (300 - 280 / 3))


def test_without_a_budget_there_is_nothing_to_keep_back():
    clock, after = Clock(spent=0, total_steps=9, iterations_per_epoch=3, budget_seconds=None), after_of(1e6)
    assert after.begin(clock) == after.settle(clock) == ""
    assert (after.way, clock.reserve_seconds) == (FULL, 0)


def test_without_held_out_cases_there_is_nothing_to_say(time):
    clock, after = clock_of(300), after_of(passes=(0, 0, 0), beside=0.0)
    assert after.begin(clock) == ""
    assert clock.reserve_seconds == 4


# ---- while training runs


def test_a_start_that_was_held_up_is_corrected_after_the_first_epoch(time):
    """As reported: 3520 ms at the start for what then takes 600."""
    clock, after = clock_of(300), after_of(0.1 * 3520 / 600)
    after.begin(clock)
    assert after.way is SOME
    assert clock.reserve_seconds == pytest.approx(4 + 110 * 0.1 * 3520 / 600 + 4)
    time.now += 15
    after.observe([0.1, 0.1, 0.1], 2.5)
    assert "takes about 1m36s" in after.follow(clock)
    assert after.way is FULL
    assert clock.reserve_seconds == pytest.approx(96)


def test_a_start_that_was_too_good_is_corrected_too(time):
    clock, after = clock_of(300), after_of(0.05)
    after.begin(clock)
    assert clock.reserve_seconds == pytest.approx(52)
    after.observe([0.2], 2.5)
    assert "full validation would take about 3m04s" in after.follow(clock)
    assert clock.reserve_seconds == pytest.approx(4 + 22 + 4)


def test_neither_a_stalled_pass_nor_a_stalled_epoch_changes_anything(time):
    clock, after = clock_of(300), after_of()
    after.begin(clock)
    for forward, watching in (([0.1, 0.1, 1.0], 2.5), ([0.1] * 3, 2.5), ([1.0] * 3, 25.0), ([0.1] * 3, 2.5)):
        after.observe(forward, watching)
        assert after.follow(clock) == ""
    assert clock.reserve_seconds == pytest.approx(96)


def test_a_machine_that_stays_slow_is_followed(time):
    """Of the last five epochs three are slow."""
    clock, after = clock_of(3000), after_of()
    after.begin(clock)
    for forward in (0.1, 0.1, 0.1, 0.1, 0.2, 0.2):
        after.observe([forward], 2.5)
        after.follow(clock)
        assert clock.reserve_seconds == pytest.approx(96)
    after.observe([0.2], 2.5)
    after.follow(clock)
    assert clock.reserve_seconds == pytest.approx(4 + 176 + 4)


def test_the_way_does_not_waver(time):
    """The limit is 100 s: the way in full, of 880 * forward + 8 s, goes beyond 115, and comes back below 85."""
    clock, after = clock_of(300), after_of()
    after.begin(clock)
    found = []
    for seconds in (99, 114, 116, 99, 86, 84):
        for _ in range(5):
            after.observe([(seconds - 8) / 880], 2.5)
            after.follow(clock)
        found.append(after.way)
    assert found == [FULL, FULL, SOME, SOME, SOME, FULL]


# ---- when the last step is done


@pytest.mark.parametrize(
    ("left", "way"),
    [
        (92.0, FULL),
        (85.0, FULL),  # 92 s, and 1.5 to close, run over by 8.5, of 9 that may
        (84.0, SOME),
        (200.0, FULL),  # a plateau ended the training
        (8.0, SOME),
        (7.0, NONE),
        (-40.0, NONE),  # the cheapest, where nothing fits
    ],
)
def test_the_time_that_is_left_decides_in_the_end(time, left, way):
    clock, after = clock_of(300), after_of()
    after.begin(clock)
    time.now += 300 - left
    told = after.settle(clock)
    assert after.way is way
    assert bool(told) == (way is not FULL)
    assert (f"in about {duration(after.validation_seconds())}" in told) == bool(told)


def test_time_that_is_left_after_all_is_used(time):
    """Planned in the cheaper way, ended early: 100 s are left, the validation in full takes 92."""
    clock, after = clock_of(240), after_of()
    after.begin(clock)
    time.now += 140
    assert after.settle(clock).startswith("1m40s left: segmenting the validation cases mirrored along 3 of")
    assert after.way is FULL


# ---- ways, and what they take


def test_ways_become_cheaper_one_by_one():
    plan = plan_of(mirror_axes=(0, 1, 2))
    found = ways(plan, "cuda", 3)
    assert [way.mirror_axes for way in found] == [(0, 1, 2), (1, 2), (2,), (), (), ()]
    assert [way.step for way in found] == [0.5, 0.5, 0.5, 0.5, 0.75, 0.75]
    assert [way.tile for way in found] == [1.0] * 5 + [2.0]
    assert [way.cheaper for way in found] == [False] + [True] * 5
    assert [way.mirror_axes for way in ways(plan, "cpu", 2)] == [(1, 2), (2,), (), (), ()]
    unmirrored = plan_of(mirror_axes=(0, 1, 2), test_time_mirroring=False)
    assert [way.mirror_axes for way in ways(unmirrored, "cpu", 3)] == [(), (), ()]


class Shapes:
    """Stands for a store of cases of known shapes."""

    def __init__(self, **shapes: tuple[int, int, int]) -> None:
        self.shapes = shapes

    def info(self, case: str) -> SimpleNamespace:
        return SimpleNamespace(shape=self.shapes[case])


@pytest.mark.parametrize(
    ("name", "patch", "axes", "mirroring", "passes"),
    [
        # a: ends 20 - 16, 40 - 16, 41 - 16 need 1, 3, 4 steps of 8: 2 * 4 * 5 tiles; b fits into one
        ("3d_fullres", (16, 16, 16), (0, 1, 2), True, (2 * 4 * 5 + 1) * 8),
        ("3d_fullres", (16, 16, 16), (2,), True, (2 * 4 * 5 + 1) * 2),
        ("3d_fullres", (16, 16, 16), (0, 1, 2), False, 2 * 4 * 5 + 1),
        # slices: 20 of 4 * 5 tiles, 7 of one
        ("2d", (16, 16), (0, 1, 2), True, (20 * 4 * 5 + 7) * 4),
        ("2d", (16, 16), (0, 1, 2), False, 20 * 4 * 5 + 7),
    ],
)
def test_forward_passes_of_a_validation_in_full(name, patch, axes, mirroring, passes):
    plan = plan_of(mirror_axes=axes, test_time_mirroring=mirroring)
    configuration = replace(plan.configurations[name], patch_size=patch)
    store, split = Shapes(a=(20, 40, 41), b=(7, 16, 9), c=(90, 90, 90)), Split(0, ("c",), ("a", "b"))
    after = estimate(
        store, split, plan, configuration, device_type="cuda", watched=112, forward_seconds=0.25, beside_seconds=None
    )
    assert after.forward_passes[0] == passes
    assert after.seconds(0) == pytest.approx(112 * 0.25 + 1.5 + 1.1 * 0.25 * passes + 2 * 0.1)


def test_larger_tiles_and_wider_steps_take_fewer_passes():
    """Edges of 32 voxels: 3 tiles of 16 half a tile apart, 3 tiles three quarters apart, 1 of 32."""
    configuration = replace(plan_of().configurations["3d_fullres"], patch_size=(16, 16, 16))
    shapes = [(32, 32, 32)]
    assert patches(configuration, shapes, Inference(())) == 27
    assert patches(configuration, shapes, Inference((2,), step=0.75)) == 2 * 27
    assert patches(configuration, [(28, 28, 28)], Inference((), step=0.75)) == 8  # 12 more voxels are one step of 12
    assert patches(configuration, shapes, Inference((), tile=2.0)) == 8  # one tile of eight times the voxels


def test_a_cascade_goes_through_its_previous_stage_first():
    """At half the resolution 16 x 16 x 16 voxels are left of 32 x 32 x 32: one tile beside 27."""
    plan = plan_of(mirror_axes=())
    fine = replace(plan.configurations["3d_fullres"], patch_size=(16, 16, 16), spacing=(1.0, 1.0, 1.0))
    coarse = replace(fine, spacing=(2.0, 2.0, 2.0))
    plan = replace(plan, configurations=plan.configurations | {"3d_lowres": coarse})
    cascade = replace(fine, cascade_from="3d_lowres")
    store, split = Shapes(a=(32, 32, 32)), Split(0, (), ("a",))
    known = {"device_type": "cuda", "watched": 0, "forward_seconds": 1.0, "beside_seconds": 0.0}
    assert estimate(store, split, plan, fine, **known).forward_passes[0] == 27
    assert estimate(store, split, plan, cascade, **known).forward_passes[0] == 28


@pytest.mark.parametrize(("volumes", "chosen"), [([5, 3, 9], 3), ([1, 100, 60, 90], 60), ([7], 7), ([40, 41, 19], 40)])
def test_the_case_to_measure_is_small_but_no_exception(volumes, chosen):
    """The smallest of half the median or more: the medians are 5, 75, 7 and 40."""
    assert volumes[case_to_measure(volumes)] == chosen


# ---- the record beside the predictions


def test_the_way_is_written_down_and_read_back(tmp_path):
    assert inference_of(tmp_path) is None
    keep_inference(tmp_path, NONE)
    assert inference_of(tmp_path) == NONE
    (tmp_path / FILE).write_text('{"mirror_axes": [2], "steps": 0.5}')
    with pytest.raises(StateError, match=FILE):
        inference_of(tmp_path)


def test_what_predicts_follows_the_way():
    assert options_for(None) == InferenceOptions()
    assert options_for(SOME) == InferenceOptions(step=0.5, mirroring=True, tile=1.0, mirror_axes=(2,))
    assert options_for(NONE) == InferenceOptions(step=0.75, mirroring=False, tile=2.0, mirror_axes=())
