"""How a fold's training is timed and told: the clock of its schedule, the bar, the lines, the history.

`history.jsonl` is the truth, one JSON object per epoch; the lines on screen and in `log.txt` say the same in short.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from autoseg.workspace import write_text

EPOCHS_OF_A_BUDGET = 20


@dataclass(frozen=True)
class Position:
    """Where a training stands."""

    epoch: int = 0  # finished epochs
    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # wall time spent so far


class Clock:
    """Progress of a training whose length is given in steps or in seconds.

    Args:
        spent: seconds spent before this process took over.
        epochs: length in epochs of `iterations_per_epoch` steps, or None when a time budget rules.
        budget_seconds: wall time for everything, validation included, or None.
    """

    def __init__(
        self, *, spent: float, epochs: int | None, iterations_per_epoch: int, budget_seconds: float | None
    ) -> None:
        assert (epochs is None) != (budget_seconds is None)
        self.begin = time.perf_counter() - spent
        self.iterations_per_epoch = iterations_per_epoch
        self.total_steps = None if epochs is None else epochs * iterations_per_epoch
        self.budget_seconds = budget_seconds
        self.reserve_seconds = 0.0  # kept back for the validation after the last step

    def elapsed(self) -> float:
        return time.perf_counter() - self.begin

    def progress(self, step: int) -> float:
        """Share of the training that is done, in [0, 1]."""
        if self.total_steps is not None:
            return min(step / self.total_steps, 1.0)
        assert self.budget_seconds is not None
        return min(self.elapsed() / max(self.budget_seconds - self.reserve_seconds, 1e-9), 1.0)

    def epoch_is_over(self, steps: int, seconds: float) -> bool:
        """Whether an epoch of so many steps, begun so many seconds ago, is at its end.

        Epochs have `iterations_per_epoch` steps; under a short time budget they end sooner, so that there are about
        EPOCHS_OF_A_BUDGET of them to watch. What would be left for less than half an epoch joins the one before.
        """
        if self.budget_seconds is None:
            return steps >= self.iterations_per_epoch
        share = self.budget_seconds / EPOCHS_OF_A_BUDGET
        left = self.budget_seconds - self.reserve_seconds - self.elapsed()
        return (steps >= self.iterations_per_epoch or seconds >= share) and left >= share / 2


class FoldLog:
    """Writes a fold's log; shows a bar on a terminal and one line per epoch everywhere."""

    def __init__(
        self, folder: Path, fold: int, label_names: Sequence[str], history: Sequence[Mapping[str, Any]]
    ) -> None:
        self.folder = folder
        self.fold = fold
        self.label_names = tuple(label_names)
        self.history: list[dict[str, Any]] = [dict(row) for row in history]
        self.bar = tqdm(
            total=1000, disable=None, leave=False, desc=f"fold {fold}",
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}",
        )  # fmt: skip

    def __enter__(self) -> "FoldLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """Show a line and keep it in log.txt."""
        tqdm.write(text)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def step(self, loss: float, progress: float) -> None:
        """Move the bar."""
        self.bar.set_postfix_str(
            f"loss {loss:+.3f}{self._dice(self.history[-1]) if self.history else ''}", refresh=False
        )
        self.bar.update(int(progress * 1000) - self.bar.n)

    def epoch(
        self, position: Position, *, loss: float, validation_loss: float, pseudo_dice: Sequence[float | None],
        learning_rate: float, progress: float,
    ) -> None:  # fmt: skip
        """Append one epoch to the history, write it down and show it."""
        row = {
            "epoch": position.epoch,
            "step": position.step,
            "seconds": round(position.seconds, 2),
            "loss": round(loss, 5),
            "validation_loss": round(validation_loss, 5),
            "pseudo_dice": [None if d is None else round(d, 4) for d in pseudo_dice],
            "learning_rate": learning_rate,
        }
        self.history.append(row)
        write_text(self.folder / "history.jsonl", "".join(json.dumps(r) + "\n" for r in self.history))
        remaining = position.seconds * (1 - progress) / max(progress, 1e-9)
        self.say(
            f"fold {self.fold}  epoch {position.epoch:3d}  step {position.step:5d}  loss {loss:+.3f} / "
            f"{validation_loss:+.3f}{self._dice(row)}  {_duration(position.seconds)}, {_duration(remaining)} to go"
        )

    def _dice(self, row: Mapping[str, Any]) -> str:
        shown = (
            f"{name} {'  - ' if dice is None else f'{dice:.3f}'}"
            for name, dice in zip(self.label_names, row["pseudo_dice"], strict=True)
        )
        return "  pseudo Dice " + "  ".join(shown)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
