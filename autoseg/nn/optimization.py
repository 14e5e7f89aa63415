"""Optimisers, learning-rate schedules and the moving average of the weights. One literal table each.

A schedule maps progress in [0, 1], the share of the training that is done, to a factor of the learning rate. Progress
may be steps over all steps or seconds over the time budget, so that the schedule always spans what was asked for.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def _sgd(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """nnU-Net's optimiser: Nesterov momentum 0.99."""
    return torch.optim.SGD(parameters, learning_rate, momentum=0.99, nesterov=True, weight_decay=weight_decay)


def _adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}

WARM_UP = 0.1  # share of a one-cycle schedule that rises


def _one_cycle(progress: float) -> float:
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda progress: (1 - progress) ** 0.9,  # nnU-Net
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "one_cycle": _one_cycle,  # linear rise, cosine fall
}
LOWEST_FACTOR = 1e-3  # no step is wasted on a learning rate of zero


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, schedule: str, progress: float) -> float:
    """Set and return the learning rate due at `progress` in [0, 1]."""
    rate = learning_rate * max(SCHEDULES[schedule](min(max(progress, 0.0), 1.0)), LOWEST_FACTOR)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class WeightAverage:
    """Exponential moving average of a network's parameters; young averages forget faster.

    The decay at step s is min(decay, (1 + s) / (10 + s)), the usual correction for the first steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.average: list[Tensor] = [p.detach().clone() for p in network.parameters()]

    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [p.detach() for p in network.parameters()], 1 - decay)
        self.steps += 1

    def swap(self, network: nn.Module) -> None:
        """Exchange the network's weights with the average; swapping twice restores both."""
        with torch.no_grad():
            for parameter, average in zip(network.parameters(), self.average, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)
