"""Optimisers, learning-rate schedules and the moving average of the weights. One literal table each.

A schedule maps progress in [0, 1], the share of the training that is done, to a factor of the learning rate. Progress
may be steps over all steps or seconds over the time budget, so that the schedule always spans what was asked for. What
depends on validation is a further factor: `Plateau` decides when to reduce the rate, or to end with a `cool_down`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def _sgd(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float | None = None
) -> torch.optim.Optimizer:
    """nnU-Net's optimiser: Nesterov momentum, 0.99."""
    momentum = 0.99 if momentum is None else momentum
    return torch.optim.SGD(
        parameters, learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )


def _adamw(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, momentum: float | None = None
) -> torch.optim.Optimizer:
    """AdamW; its momentum is beta 1, 0.9."""
    betas = 0.9 if momentum is None else momentum, 0.99
    return torch.optim.AdamW(parameters, learning_rate, betas=betas, weight_decay=weight_decay)


# momentum: share of the mean gradient that is kept at each step; None: what is usual for the optimiser
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}

WARM_UP = 0.1  # share of a one-cycle schedule that rises


def _one_cycle(progress: float) -> float:
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


COOL_DOWN = 0.1  # share of a training


def cool_down(since: float, length: float) -> float:
    """Factor that takes a learning rate from where it is to 0.

    Args:
        since, length: what has passed of the cool-down and what it takes, in any one unit. Past the end it is 0.

    It falls fast at first: 1 - sqrt(share), Haegele et al., NeurIPS 2024, who find 10 to 20 % of a training enough.
    """
    return 1 - math.sqrt(min(max(since, 0.0) / length, 1.0)) if length > 0 else 0.0


def cool_down_length(begun: float) -> float:
    """Length of a cool-down that begins at progress `begun`: a share of what came before, at most what is left."""
    return min(COOL_DOWN * begun, 1 - begun)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda progress: (1 - progress) ** 0.9,  # nnU-Net
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "one_cycle": _one_cycle,  # linear rise, cosine fall
    # falls by `Plateau.factor` alone; the weights of the last step predict, so that it, too, ends low
    "reduce_on_plateau": lambda progress: cool_down(progress - (1 - COOL_DOWN), COOL_DOWN),
}
LOWEST_FACTOR = 1e-3  # no step is wasted on a learning rate of zero
REDUCTION = 0.2  # of the learning rate at a plateau
REDUCTIONS = 2  # under reduce_on_plateau; the plateau after these ends the training


def set_learning_rate(
    optimizer: torch.optim.Optimizer, learning_rate: float, schedule: str, progress: float, factor: float = 1.0
) -> float:
    """Set and return the learning rate due at `progress` in [0, 1].

    `factor` is what validation makes of the schedule: `Plateau.factor`, or a `cool_down` begun before its end.
    """
    rate = learning_rate * max(factor * SCHEDULES[schedule](min(max(progress, 0.0), 1.0)), LOWEST_FACTOR)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


@dataclass
class Plateau:
    """Detects when values that ought to fall, such as the validation loss, have all stopped falling.

    Each value is smoothed by an exponential moving average, which begins with the first one. A plateau is found when no
    average has come `tolerance` below the best it was, `patience` updates in a row; then the wait starts again. All
    fields are plain data: `Plateau(**asdict(plateau))` continues where `plateau` stood.

    An average lags behind: at the default smoothing, a fall by 0.1 delays the wait by some 40 updates (the share 0.9^n
    of it that is still to come after n updates must be less than the tolerance).

    Source: the first nnU-Net (Isensee et al., 2018): patience 30, tolerance 5e-3, learning rate / 5.
    """

    patience: int = 15  # updates
    tolerance: float = 1e-3
    smoothing: float = 0.9  # of the averages; 0 takes values as they come
    averages: tuple[float | None, ...] = ()  # one per value
    bests: tuple[float | None, ...] = ()
    waited: int = 0  # updates since one of them was the best, or since the last plateau
    found: int = 0  # plateaus so far

    def update(self, *values: float) -> bool:
        """Add one more of each value; return whether a plateau is found. A value that is not finite never improves."""
        unknown = (None,) * len(values)
        self.averages = tuple(map(self._smoothed, self.averages or unknown, values))
        bests = tuple(map(self._better, self.bests or unknown, self.averages))
        improved, self.bests = bests != (self.bests or unknown), bests
        if improved:
            self.waited = 0
            return False
        self.waited += 1
        if self.waited < self.patience:
            return False
        self.waited = 0
        self.found += 1
        return True

    def _smoothed(self, average: float | None, value: float) -> float | None:
        if not math.isfinite(value):
            return average
        return value if average is None else value + self.smoothing * (average - value)

    def _better(self, best: float | None, average: float | None) -> float | None:
        """The average where it is the new best, otherwise the old one."""
        return average if average is not None and (best is None or average < best - self.tolerance) else best

    @property
    def factor(self) -> float:
        """Of the learning rate under reduce_on_plateau: divided by 5 at each of the first plateaus."""
        return REDUCTION ** min(self.found, REDUCTIONS)


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
