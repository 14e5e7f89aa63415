"""The clock of a fold's schedule: how much of the training is done, by steps or by a time budget.

A budget is wall time for everything. Time for what comes after the last step (the validation) is reserved, a third
at most: training never has less than two thirds of what the start left. The estimate of it is corrected while training
runs (`autoseg.training.validation_budget`), and the end of the schedule moves with it.
"""

import math
import time

SHORT_EPOCHS = 20  # a short time budget, or a short length in steps, is cut into so many epochs to watch
MOST_RESERVED = 1 / 3  # of the time that is left when training begins
WATCHED_SHARE = 0.1  # of an epoch under a time budget, that looking at the fixed samples may take
MOST_HASTE = 0.5  # of the time until the end of the schedule, that one correction may take away


def epoch_steps(length: int | None, iterations_per_epoch: int) -> int:
    """Steps of an epoch: as asked for; in a training of a short length in steps fewer, for SHORT_EPOCHS epochs.

    Args:
        length: of the training in steps, or None when it is given in epochs or in seconds.
    """
    return iterations_per_epoch if length is None else min(iterations_per_epoch, math.ceil(length / SHORT_EPOCHS))


class Clock:
    """Progress of a training whose length is given in steps or in seconds.

    Args:
        spent: seconds spent before this process took over.
        total_steps: length in steps, or None when a time budget rules.
        iterations_per_epoch: steps of an epoch (see `epoch_steps`).
        budget_seconds: wall time for everything, validation included, or None.
    """

    def __init__(
        self, *, spent: float, total_steps: int | None, iterations_per_epoch: int, budget_seconds: float | None
    ) -> None:
        assert (total_steps is None) != (budget_seconds is None)
        self.begin = time.perf_counter() - spent
        self.iterations_per_epoch = iterations_per_epoch
        self.total_steps = total_steps
        self.budget_seconds = budget_seconds
        self.start_seconds = 0.0  # that went into the start, before the first step
        self.reserve_seconds = 0.0  # reserved for the validation after the last step
        self.watching_seconds = 0.0  # that go into the fixed samples after an epoch, as far as known

    def elapsed(self) -> float:
        return time.perf_counter() - self.begin

    @property
    def most_reserved(self) -> float:
        """Seconds that may be reserved at most, so that training has its share."""
        assert self.budget_seconds is not None
        return MOST_RESERVED * max(self.budget_seconds - self.start_seconds, 0.0)

    def reserve(self, seconds: float, *, training: bool = False) -> None:
        """Reserve `seconds`, `most_reserved` at most, for what comes after the last step.

        Args:
            training: steps were done already. The end of the schedule then comes closer by MOST_HASTE of what is left
                at most, so that the learning rate has time to fall.
        """
        assert self.budget_seconds is not None
        wanted = min(seconds, self.most_reserved)
        if training:
            end, now = self.budget_seconds - self.reserve_seconds, self.elapsed()
            wanted = min(wanted, self.budget_seconds - now - (1 - MOST_HASTE) * max(end - now, 0.0))
        self.reserve_seconds = max(wanted, 0.0)

    @property
    def _half(self) -> float:
        assert self.budget_seconds is not None
        return (self.budget_seconds - self.reserve_seconds) / 2

    def remaining(self) -> float:
        """Seconds of the budget that are left, for everything; negative when it is overdrawn."""
        assert self.budget_seconds is not None
        return self.budget_seconds - self.elapsed()

    def progress(self, step: int) -> float:
        """Share of the training that is done, in [0, 1]."""
        if self.total_steps is not None:
            return min(step / self.total_steps, 1.0)
        assert self.budget_seconds is not None
        return min(self.elapsed() / max(self.budget_seconds - self.reserve_seconds, 1e-9), 1.0)

    def epoch_is_over(self, steps: int, seconds: float) -> bool:
        """Whether an epoch ends after `steps` steps, begun `seconds` ago.

        Epochs have `iterations_per_epoch` steps; under a short time budget they end sooner, so that there are about
        SHORT_EPOCHS of them to watch, or fewer on a machine so slow that watching would take more than WATCHED_SHARE
        of the time. What would be left for less than half an epoch joins the one before.
        """
        if self.budget_seconds is None:
            return steps >= self.iterations_per_epoch
        share = max(self.budget_seconds / SHORT_EPOCHS, min(self.watching_seconds / WATCHED_SHARE, self._half))
        left = self.budget_seconds - self.reserve_seconds - self.elapsed()
        return (steps >= self.iterations_per_epoch or seconds >= share) and left >= min(share, seconds) / 2
