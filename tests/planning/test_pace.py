"""Plans for a CPU follow the CPU: rates rounded, the reference machine's plan, smaller steps on a slower one."""

import math
from dataclasses import replace

import pytest

from autoseg.planning.budget import CPU
from autoseg.planning.cost import Figures, Step
from autoseg.planning.pace import (
    ENOUGH_STEPS,
    REFERENCE,
    SMALLEST_STEP,
    Pace,
    pace,
    pace_of,
    rounded,
    steps_in,
)
from autoseg.planning.plan import Plan
from autoseg.planning.planner import with_network
from plans import ONE, decided, plan
from synthetic_fingerprints import label_set, uniform
from synthetic_memory import ElementMemory

LABELS = label_set(3)
LARGE = uniform(ONE, (150, 300, 280), 20, LABELS)
SMALL = uniform(ONE, (36, 50, 35), 160, LABELS)


def times(factor: float, seconds: float | None = None) -> Pace:
    """A machine so many times as fast as the reference."""
    return pace({dims: rate * factor for dims, rate in REFERENCE.items()}, seconds)


def sizes(made: Plan) -> dict[str, tuple]:
    return {name: (c.patch_size, c.batch_size, c.network) for name, c in made.configurations.items()}


# ---- rates


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(185e9, 185e9), (200e9, 185e9), (152e9, 185e9), (150e9, 123e9), (60e9, 54.8e9), (1e12, 937e9)],
)
def test_rates_are_rounded_to_powers_of_one_and_a_half(rate, expected):
    """185 divided by 1.5 is 123.3, by 1.5 again 82.2, and 54.8; between 185 and 123.3 the middle is 151."""
    assert rounded(rate, 2) == expected
    assert rounded(expected, 2) == pytest.approx(expected, rel=0.003)


def test_noise_within_a_class_changes_nothing():
    assert pace({2: 170e9, 3: 230e9}) == pace({2: 200e9, 3: 250e9}) == pace()


def test_what_a_step_may_take_by_hand():
    """An hour, nine tenths of it for 6000 steps: 0.54 s each. At 81.7e9, rounded to 72.6e9, and 3100 operations an
    element that is 12.6e6 elements, of which one sample has half."""
    slow = times(1 / 3)
    assert slow.seconds_per_step == pytest.approx(0.54)
    assert slow.flops_per_second[3] == pytest.approx(72.6e9, rel=1e-3)
    limits = slow.limits(CPU)
    assert limits.elements[3] == pytest.approx(12.6e6, rel=0.01)
    assert limits.patch_elements[3] == pytest.approx(6.3e6, rel=0.01)
    assert limits.elements[2] == pytest.approx(18.2e6, rel=0.01)


def test_limits_are_bounded_both_ways():
    assert times(100).limits(CPU) == times(1).limits(CPU) == CPU
    assert times(1e-3).limits(CPU).elements == pytest.approx(SMALLEST_STEP)
    assert times(1, 1e6).limits(CPU) == CPU


def test_steps_in_a_time():
    assert steps_in(3600, 0.54) == 6000
    assert steps_in(600, 0.1) == 5400


# ---- plans


@pytest.mark.thorough
@pytest.mark.parametrize("found", [LARGE, SMALL], ids=["large", "small"])
def test_the_reference_machine_and_faster_ones_have_the_plan_of_the_measurements(found):
    usual = plan(found, LABELS)
    for quick in (None, times(1), times(0.9), times(8)):
        assert sizes(plan(found, LABELS, pace=quick)) == sizes(usual)


@pytest.mark.thorough
def test_a_machine_three_times_slower_gets_smaller_steps():
    usual, slow = plan(LARGE, LABELS, pace=times(1)), plan(LARGE, LABELS, pace=times(1 / 3))
    for name, made in slow.configurations.items():
        elements = made.elements * made.batch_size
        assert elements < usual.configurations[name].elements * usual.configurations[name].batch_size
        assert elements <= times(1 / 3).limits(CPU).elements[made.dims]
        assert min(made.patch_size) >= 16
    value, reason = decided(slow, "3.0")
    assert "1.26e+07 elements in 3-D" in value
    assert f"fewer than {ENOUGH_STEPS} steps" in reason
    assert "no measurement favours larger ones" in decided(usual, "3.0")[1]


@pytest.mark.thorough
def test_a_longer_fold_makes_up_for_a_slower_machine():
    assert sizes(plan(LARGE, LABELS, pace=times(1 / 3, 4 * 3600))) == sizes(plan(LARGE, LABELS))


@pytest.mark.thorough
def test_the_rate_is_kept_with_the_plan_and_another_network_is_sized_by_it():
    slow = plan(LARGE, LABELS, pace=times(1 / 3))
    rates = {c.dims: c.cost.flops_per_second for c in slow.configurations.values()}
    assert rates == times(1 / 3).flops_per_second
    assert pace_of(slow).flops_per_second == rates
    other = with_network(slow, LARGE, "attention_unet", memory=ElementMemory())
    back = with_network(other, LARGE, "unet", memory=ElementMemory())
    assert sizes(back) == sizes(slow)
    assert sizes(back) != sizes(plan(LARGE, LABELS))


def test_plans_for_gpus_do_without():
    for options in ({"vram_gb": 8}, {"rules": "nnunet"}, {"preset": "m"}):
        usual = plan(SMALL, LABELS, **options)
        assert plan(SMALL, LABELS, pace=times(1 / 10), **options) == usual
        assert pace_of(usual) is None
    assert pace_of(plan(SMALL, LABELS)) is None


class Counted(ElementMemory):
    """Tells seconds, as a CPU's trace does."""

    def __init__(self, known: Pace) -> None:
        self.pace = known

    def train(self, step: Step) -> Figures:
        return replace(super().train(step), flops=49 * 10**9, seconds=self.pace.step_seconds(3, 49e9))


def test_the_steps_of_a_fold_are_said():
    """49 G operations at 245 G a second take 0.2 s, and 0.01 s for their calls: 3240 s hold 15,400 of them."""
    made = plan(SMALL, LABELS, pace=pace(), memory=Counted(pace()))
    value, reason = decided(made, "3.12 steps (3d_fullres)")
    assert value == "about 15000 in 1h"
    assert reason.startswith("0.21 s per step")
    assert made.configurations["3d_fullres"].cost.seconds_per_step == pytest.approx(0.21)


def test_a_plan_without_volumes_has_a_pace_for_them():
    flat = uniform(ONE, (1, 300, 200), 5, LABELS)
    made = plan(flat, LABELS, pace=times(1 / 3))
    known = pace_of(made)
    assert known.flops_per_second[2] == times(1 / 3).flops_per_second[2]
    assert math.isclose(known.flops_per_second[3] / REFERENCE[3], known.flops_per_second[2] / REFERENCE[2])
