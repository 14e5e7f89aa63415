"""What a training consists of between two steps: everything that a checkpoint keeps and a resumed fold needs.

The data are not part of it: a batch follows from the seed and its step alone, and so does what a step draws itself
(dropout), see `seed_step`. So a state at step s, and the steps after it, give the same weights to the bit, whether the
process that takes them is the one that took those before or not (at the same number of threads, on the same machine).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from autoseg.models.versions import Checkpoint, Position, RuntimeSettings
from autoseg.nn.optimization import (
    OPTIMIZERS,
    REDUCTIONS,
    Plateau,
    WeightAverage,
    cool_down,
    cool_down_length,
    set_learning_rate,
)
from autoseg.planning.plan import Training
from autoseg.workspace import FULL, FoldName

FULL_SEED = 1_000_000  # stands for a number of FULL: it draws apart from all other folds


@dataclass
class TrainState:
    """A training between two steps."""

    training: Training
    runtime: RuntimeSettings  # made when the fold began
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    plateau: Plateau | None
    position: Position = field(default_factory=Position)
    cooling_since: float | None = None  # progress at which the cool-down began
    learning_rate_factor: float = 1.0  # halved by a rollback
    micro_batches: int = 1  # parts in which a batch passes the network, so that it fits the memory
    rollbacks: int = 0  # returns to an earlier checkpoint

    @classmethod
    def begin(
        cls, network: nn.Module, training: Training, runtime: RuntimeSettings, device: torch.device
    ) -> "TrainState":
        """The state before the first step, with the network as it is."""
        return cls(
            training,
            runtime,
            network,
            OPTIMIZERS[training.optimizer](
                network.parameters(), training.learning_rate, training.weight_decay, training.momentum
            ),
            torch.amp.GradScaler(device.type, enabled=runtime.dtype == "float16"),
            WeightAverage(network, training.weight_average) if training.weight_average else None,
            Plateau(patience=training.patience) if training.patience else None,
        )

    def advance(self, loss: float, seconds: float) -> None:
        """Note that a step was done, so many seconds after the beginning."""
        self.position = self.position.after(loss, seconds)
        if self.average and math.isfinite(loss):
            self.average.update(self.network)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network its averaged weights while the body runs, where there are any."""
        if self.average:
            self.average.swap(self.network)
        yield
        if self.average:
            self.average.swap(self.network)

    def due_progress(self, progress: float) -> float:
        """Share of the training that is done, given that of the schedule: 1 at the end of a cool-down, too."""
        if self.cooling_since is None:
            return progress
        end = self.cooling_since + cool_down_length(self.cooling_since)
        return 1.0 if progress >= end else progress / end

    def renew_scaler(self, device: torch.device) -> None:
        """Let the scaler forget a step that was broken off."""
        fresh = torch.amp.GradScaler(device.type, enabled=self.scaler.is_enabled())
        if fresh.is_enabled():
            fresh.load_state_dict(self.scaler.state_dict())
        self.scaler = fresh

    def set_learning_rate(self, progress: float) -> float:
        """Set and return the rate that is due at a share of the schedule."""
        factor = self.learning_rate_factor
        if self.plateau and self.training.schedule == "reduce_on_plateau":
            factor *= self.plateau.factor
        if self.cooling_since is not None:
            factor *= cool_down(progress - self.cooling_since, cool_down_length(self.cooling_since))
        return set_learning_rate(self.optimizer, self.training.learning_rate, self.training.schedule, progress, factor)

    def watch_plateau(self, validation_loss: float, pseudo_dice: Sequence[float | None], progress: float) -> str:
        """Add what validation found after an epoch; return what a plateau leads to, in words, or "".

        Both have to stagnate. The loss rises when a network grows too sure of its mistakes, while its
        segmentations still get better; Dice stands at 0 while the loss of a small label already falls.
        """
        if self.plateau is None or self.cooling_since is not None or progress >= 1:
            return ""
        known = [dice for dice in pseudo_dice if dice is not None]
        missed = 1 - sum(known) / len(known) if known else math.nan
        if not self.plateau.update(validation_loss, missed):
            return ""
        since = f"no better validation loss or pseudo Dice in {self.plateau.patience} epochs"
        if self.training.schedule == "reduce_on_plateau" and self.plateau.found <= REDUCTIONS:
            return f"{since}: reducing the learning rate"
        self.cooling_since = progress
        return f"{since}: cooling down the learning rate, then training ends"

    def forget_plateau(self) -> None:
        """Restart the wait for a plateau: what was measured so far no longer compares."""
        if self.plateau:
            self.plateau = replace(self.plateau, averages=(), bests=(), waited=0)

    def seed_step(self, fold: FoldName, rank: int) -> None:
        """Seed what the coming step draws; steps, folds and ranks draw apart from each other."""
        sequence = np.random.SeedSequence([self.training.seed, seed_of(fold), rank, self.position.step])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def kept(self) -> dict[str, Any]:
        """The fields of a `Checkpoint` that say what this state is; tensors are shared with it."""
        return {
            "runtime": self.runtime,
            "position": self.position,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.average if self.average else None,
            "average_steps": self.average.steps if self.average else 0,
            "plateau": self.plateau,
            "cooling_since": self.cooling_since,
            "learning_rate_factor": self.learning_rate_factor,
            "micro_batches": self.micro_batches,
            "rollbacks": self.rollbacks,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Become what a checkpoint kept; the runtime settings stay those this state began with.

        Its tensors may lie on the CPU: what belongs on the device is brought there.
        """
        self.position = saved.position
        self.network.load_state_dict(saved.network)
        self.optimizer.load_state_dict(saved.optimizer)
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        if self.average:
            for average, kept in zip(self.average.average, saved.average or (), strict=True):
                average.copy_(kept)
            self.average.steps = saved.average_steps
        if self.plateau and saved.plateau:
            self.plateau = saved.plateau
        self.cooling_since = saved.cooling_since
        self.learning_rate_factor = saved.learning_rate_factor
        self.micro_batches, self.rollbacks = saved.micro_batches, saved.rollbacks


def seed_of(fold: FoldName) -> int:
    """The number by which a fold's draws differ from those of others."""
    return FULL_SEED if fold == FULL else fold
