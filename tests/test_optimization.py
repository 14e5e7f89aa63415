"""Learning-rate schedules, optimiser steps and weight averages, worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.nn.optimization import LOWEST_FACTOR, OPTIMIZERS, SCHEDULES, WeightAverage, set_learning_rate


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
