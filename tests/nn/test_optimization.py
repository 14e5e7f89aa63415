"""Learning-rate schedules, optimiser steps and weight averages, worked out by hand."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.nn.optimization import (
    LOWEST_FACTOR,
    OPTIMIZERS,
    SCHEDULES,
    Plateau,
    WeightAverage,
    cool_down,
    set_learning_rate,
)


def network_of(*values):
    """A network whose two parameters hold the given numbers."""
    network = nn.ParameterList([nn.Parameter(torch.full((2,), float(value))) for value in values])
    assert len(list(network.parameters())) == len(values)
    return network


def values_of(network):
    return [parameter[0].item() for parameter in network.parameters()]


def fill(network, *values):
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.fill_(value)


# ---- schedules ----


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        ("poly", 0, 1),
        ("poly", 0.5, 0.535887),  # 0.5 ** 0.9
        ("poly", 0.9, 0.125893),  # 0.1 ** 0.9
        ("poly", 1, 0),
        ("cosine", 0, 1),
        ("cosine", 0.25, 0.853553),  # (1 + sqrt(1/2)) / 2
        ("cosine", 0.5, 0.5),
        ("cosine", 1, 0),
        ("one_cycle", 0, 0),
        ("one_cycle", 0.05, 0.5),  # half of the warm-up
        ("one_cycle", 0.1, 1),
        ("one_cycle", 0.55, 0.5),  # half of the fall
        ("one_cycle", 0.325, 0.853553),  # a quarter of it
        ("one_cycle", 1, 0),
        ("reduce_on_plateau", 0, 1),
        ("reduce_on_plateau", 0.9, 1),
        ("reduce_on_plateau", 0.925, 0.5),  # a quarter of the cool-down: 1 - sqrt(1/4)
        ("reduce_on_plateau", 0.964, 0.2),  # 1 - sqrt(0.64)
        ("reduce_on_plateau", 1, 0),
    ],
)
def test_schedules_by_hand(schedule, progress, factor):
    assert SCHEDULES[schedule](progress) == pytest.approx(factor, abs=1e-6)


@given(st.sampled_from(list(SCHEDULES)), st.floats(0, 1), st.floats(0, 1))
def test_schedules_stay_in_range_and_fall_after_the_warm_up(schedule, a, b):
    early, late = sorted((a, b))
    factors = SCHEDULES[schedule](early), SCHEDULES[schedule](late)
    assert all(0 <= factor <= 1 for factor in factors)
    if schedule != "one_cycle" or early >= 0.1:
        assert factors[0] >= factors[1] - 1e-12
    elif late < 0.1:
        assert factors[0] <= factors[1]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_rate_is_set_everywhere_and_never_zero(schedule):
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 7.0}], 1.0)
    for progress in (0.0, 0.05, 0.5, 1.0):
        expected = 0.02 * max(SCHEDULES[schedule](progress), LOWEST_FACTOR)
        assert set_learning_rate(optimizer, 0.02, schedule, progress) == pytest.approx(expected)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
    assert expected == pytest.approx(2e-5)  # a thousandth at the end, not 0


def test_progress_beyond_the_ends_counts_as_the_ends():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    for schedule in SCHEDULES:
        assert set_learning_rate(optimizer, 1.0, schedule, 1.2) == set_learning_rate(optimizer, 1.0, schedule, 1.0)
        assert set_learning_rate(optimizer, 1.0, schedule, -0.2) == set_learning_rate(optimizer, 1.0, schedule, 0.0)


def test_a_factor_reduces_any_schedule_but_not_to_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    assert set_learning_rate(optimizer, 0.02, "cosine", 0.5, factor=0.2) == pytest.approx(0.02 * 0.5 * 0.2)
    assert set_learning_rate(optimizer, 0.02, "poly", 0.0, factor=1e-9) == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("since", "length", "factor"),
    [(0, 8, 1), (2, 8, 0.5), (4.5, 8, 0.25), (8, 8, 0), (9, 8, 0), (-1, 8, 1), (0.02, 0.08, 0.5), (0, 0, 0)],
)
def test_cool_down_by_hand(since, length, factor):
    assert cool_down(since, length) == pytest.approx(factor, abs=1e-6)


# ---- plateaus ----


def found_at(plateau, values):
    """Numbers (from 1) of the updates that found a plateau."""
    return [number for number, value in enumerate(values, start=1) if plateau.update(value)]


def test_a_plateau_is_found_on_time_and_again_after_as_long():
    falling = [1.0, 0.8, 0.6, 0.5]
    assert found_at(Plateau(patience=3, smoothing=0), falling + [0.5] * 7) == [7, 10]
    assert found_at(Plateau(patience=15, smoothing=0), falling + [0.5] * 14) == []
    assert found_at(Plateau(smoothing=0), falling + [0.5] * 15) == [19]


def test_rising_is_no_improvement_and_neither_is_nan():
    assert found_at(Plateau(patience=3, smoothing=0), [0.5, 0.6, 0.7, 0.8]) == [4]
    plateau = Plateau(patience=3)
    assert found_at(plateau, [0.5, math.nan, 0.5, math.inf]) == [4]
    assert plateau.averages == (0.5,)
    assert found_at(Plateau(patience=2), [math.nan, math.nan]) == [2]


def test_an_improvement_starts_the_wait_anew():
    values = [0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4]
    assert found_at(Plateau(patience=3, smoothing=0), values) == [7]
    assert found_at(Plateau(patience=3, smoothing=0, tolerance=0.2), values) == [4, 7]  # too little to count
    assert found_at(Plateau(patience=3, smoothing=0, tolerance=0.15), [0.5, 0.4, 0.3, 0.3, 0.3, 0.3]) == [6]  # in sum


def test_all_values_must_stand_still():
    plateau = Plateau(patience=3, smoothing=0)
    pairs = [(0.5, 0.9), (0.5, 0.8), (0.6, 0.8), (0.4, 0.9), (0.4, 0.9), (0.4, 0.7), (0.4, 0.7), (0.4, 0.7), (0.4, 0.7)]
    assert [number for number, pair in enumerate(pairs, start=1) if plateau.update(*pair)] == [9]
    assert plateau.bests == (0.4, 0.7)


def test_the_average_by_hand_and_how_far_it_lags():
    plateau = Plateau(smoothing=0.9)
    averages = [plateau.averages[0] for value in (1.0, 0.5, 0.0) if not plateau.update(value)]
    assert averages == pytest.approx([1.0, 0.95, 0.855])
    # of a fall by 0.1, 0.1 * 0.9^n is still to come after n updates: 0.02 below the last best it is at n = 3 (0.0729),
    # 7 (0.0478), 13 (0.0254) and 28 (0.0052), and never again
    fall = [0.1] + [0.0] * 60
    assert found_at(Plateau(patience=15, tolerance=0.02), fall) == [1 + 28 + 15, 1 + 28 + 30]
    assert found_at(Plateau(patience=5, tolerance=0.02), fall)[0] == 1 + 7 + 5


def test_noise_on_a_falling_loss_finds_no_plateau():
    rng = np.random.default_rng(0)
    falling = 0.5 - 0.002 * np.arange(200)
    noisy = falling + rng.normal(0, 0.02, 200)
    assert found_at(Plateau(), noisy) == []
    assert found_at(Plateau(smoothing=0), noisy) != []  # as it would without the average
    flat = np.concatenate([noisy, np.full(150, falling[-1]) + rng.normal(0, 0.02, 150)])
    first = found_at(Plateau(), flat)[0]
    assert 215 <= first <= 270


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(0, 40))
def test_a_plateau_goes_on_from_plain_data(values, cut):
    whole = Plateau(patience=3, smoothing=0.5)
    expected = [whole.update(value) for value in values]
    first = Plateau(patience=3, smoothing=0.5)
    seen = [first.update(value) for value in values[:cut]]
    plain = asdict(first)
    assert {type(value) for value in plain.values()} == {int, float, tuple}
    second = Plateau(**plain)
    assert seen + [second.update(value) for value in values[cut:]] == expected
    assert second == whole


def test_the_rate_is_divided_by_five_at_the_first_two_plateaus():
    plateau = Plateau(patience=2, smoothing=0)
    factors = [plateau.factor for _ in range(9) if plateau.update(1.0) or True]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.04, 0.04, 0.04])


# ---- optimisers ----


def step(network, optimizer, gradient):
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_sgd_has_nesterov_momentum_and_weight_decay():
    network = network_of(1.0)
    optimizer = OPTIMIZERS["sgd"](network.parameters(), 0.1, 0.5)
    step(network, optimizer, 2.0)
    # g = 2 + 0.5 * 1; velocity = g; step 0.1 * (g + 0.99 * velocity)
    first = 1 - 0.1 * 2.5 * 1.99
    assert values_of(network) == pytest.approx([first])
    step(network, optimizer, -1.0)
    gradient = -1 + 0.5 * first
    velocity = 0.99 * 2.5 + gradient
    assert values_of(network) == pytest.approx([first - 0.1 * (gradient + 0.99 * velocity)])


def test_adamw_decays_weights_apart_from_the_gradient():
    network = network_of(1.0)
    optimizer = OPTIMIZERS["adamw"](network.parameters(), 0.1, 0.5)
    step(network, optimizer, 2.0)
    first = 1 - 0.1 * 0.5 - 0.1  # the decay, and a first step of the rate times the gradient's sign
    assert values_of(network) == pytest.approx([first])
    step(network, optimizer, -1.0)
    mean = (0.1 * 0.9 * 2 - 0.1 * 1) / (1 - 0.9**2)
    square = (0.01 * 0.99 * 4 + 0.01 * 1) / (1 - 0.99**2)
    assert values_of(network) == pytest.approx([first * (1 - 0.05) - 0.1 * mean / math.sqrt(square)])


def test_momentum_of_sgd():
    network = network_of(1.0)
    optimizer = OPTIMIZERS["sgd"](network.parameters(), 0.1, 0.0, 0.5)
    step(network, optimizer, 2.0)
    assert values_of(network) == pytest.approx([1 - 0.1 * 2 * 1.5])
    without = network_of(1.0)
    step(without, OPTIMIZERS["sgd"](without.parameters(), 0.1, 0.0, 0.0), 2.0)
    assert values_of(without) == pytest.approx([0.8])


def test_momentum_of_adamw_is_its_first_beta():
    network = network_of(1.0)
    optimizer = OPTIMIZERS["adamw"](network.parameters(), 0.1, 0.0, 0.5)
    step(network, optimizer, 2.0)
    step(network, optimizer, -1.0)
    mean = (0.5 * 0.5 * 2 - 0.5 * 1) / (1 - 0.5**2)  # 0: the first pulls half as much as the second
    assert mean == 0
    assert values_of(network) == pytest.approx([1 - 0.1])


# ---- average ----


def test_the_average_by_hand():
    network = network_of(0.0, 10.0)
    average = WeightAverage(network, decay=0.5)
    fill(network, 1.0, 20.0)
    average.update(network)  # decay 1/10
    assert [a[0].item() for a in average.average] == pytest.approx([0.9, 0.1 * 10 + 0.9 * 20])
    fill(network, 2.0, 20.0)
    average.update(network)  # decay 2/11
    assert [a[0].item() for a in average.average] == pytest.approx([(2 * 0.9 + 9 * 2) / 11, (2 * 19 + 9 * 20) / 11])
    before = average.average[0][0].item()
    average.steps = 8
    average.update(network)  # (1 + 8) / (10 + 8) = 0.5 = the decay
    assert average.average[0][0].item() == pytest.approx((before + 2) / 2)
    average.steps = 1000
    average.update(network)  # 1001 / 1010 is more than the decay, which holds
    assert average.average[0][0].item() == pytest.approx((before + 2) / 4 + 1)
    assert average.steps == 1001


def test_the_average_does_not_follow_the_network_by_itself():
    network = network_of(3.0)
    average = WeightAverage(network, decay=0.9)
    fill(network, 5.0)
    assert average.average[0].tolist() == [3.0, 3.0]
    assert not average.average[0].requires_grad


def test_updating_leaves_the_network_alone():
    network = network_of(3.0)
    average = WeightAverage(network, decay=0.9)
    fill(network, 5.0)
    average.update(network)
    assert values_of(network) == [5.0]


def test_swapping_exchanges_and_swapping_twice_restores():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    average = WeightAverage(network, decay=0.9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    average.update(network)
    weights = [p.detach().clone() for p in network.parameters()]
    averages = [a.clone() for a in average.average]
    objects = [id(p) for p in network.parameters()]

    average.swap(network)
    assert all(torch.equal(p, a) for p, a in zip(network.parameters(), averages, strict=True))
    assert all(torch.equal(a, w) for a, w in zip(average.average, weights, strict=True))
    assert not any(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))

    average.swap(network)
    assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(average.average, averages, strict=True))
    assert [id(p) for p in network.parameters()] == objects  # an optimiser still holds the same parameters
    assert all(p.requires_grad for p in network.parameters())
