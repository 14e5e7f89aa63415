"""What each speed of `predict` costs and loses: every held-out case is segmented at all speeds by its own fold.

    measure_speeds   folds and their held-out cases -> SpeedTable
    describe         SpeedTable -> lines
    expected         what to expect of one speed, in a line

Dice is that of `evaluate`: the mean over labels, then over cases. Its interval is Student's over cases. Differences are
taken case by case, so that they are known far better than the means. Time is wall time of whole cases, with reading and
writing, on the device that the table names.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from autoseg.datasets.dataset import Case
from autoseg.evaluation.crossval import validation_jobs
from autoseg.evaluation.evaluate import CaseScore, score_cases
from autoseg.inference.options import SPEEDS, options_at
from autoseg.messages import counted, ruled
from autoseg.rules import anything, exactly
from autoseg.workspace import FoldName

if TYPE_CHECKING:
    from autoseg.models.model import Model

VERSION = 1
LEVEL = 0.95  # of the intervals
Text = Annotated[str, anything("any text")]


@dataclass(frozen=True)
class Estimate:
    """A mean over cases with its interval; both ends equal the mean where one case alone is known."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Mean and Student's interval of one value or more."""
        from scipy import stats

        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, mean, mean)
        margin = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        return cls(mean, mean - margin, mean + margin)


@dataclass(frozen=True)
class MeasuredSpeed:
    """One speed on the held-out cases."""

    name: Text
    step: float  # distance of neighbouring tiles as a share of the tile
    flips: int  # forward passes per tile
    dice: Estimate | None  # None: no case has a Dice
    change: Estimate | None  # of Dice, against accurate, case by case
    seconds_per_case: float


@dataclass(frozen=True)
class SpeedTable:
    """All speeds of one model, as measured; speeds.json in the model's folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of speed tables that this autoseg reads")]
    configuration: Text
    network: Text
    device: Text  # "cpu, 2 threads", or the name of a GPU
    weights: dict[Text, Text]  # fold -> digest of its weights
    cases: int
    speeds: tuple[MeasuredSpeed, ...]


def measure_speeds(
    models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], folder: Path
) -> SpeedTable:
    """Segment every fold's held-out cases at all speeds, and score them.

    Args:
        models: one per fold, of that fold alone.
        cases: with labels, by fold.
        folder: where segmentations are written; the caller removes it.

    Raises:
        DataError: an image or a label cannot be read.
    """
    from autoseg.inference.predict import predict_cases
    from autoseg.models.build import configuration_mirror_axes
    from autoseg.models.identity import weights_digest
    from autoseg.nn.sliding_window import flip_sets

    first = next(iter(models.values()))
    measured: list[MeasuredSpeed] = []
    reference: dict[str, float] = {}
    number = sum(map(len, cases.values()))
    for name in SPEEDS:
        scores: list[CaseScore] = []
        seconds = 0.0
        for fold, model in models.items():
            out, options = folder / name / f"fold_{fold}", options_at(name)
            began = time.perf_counter()
            predict_cases([model], cases[fold], out, options, title=f"{name}, fold {fold}")
            seconds += time.perf_counter() - began
            jobs = [replace(job, surfaces=False) for job in validation_jobs(out, cases[fold], model.plan.labels)]
            scores += score_cases(jobs)
        dice = {score.case: mean for score in scores if (mean := mean_dice(score)) is not None}
        reference = reference or dice
        options = options_at(name)
        axes = configuration_mirror_axes(first.plan, first.configuration, options.mirror_axes)
        mirrored = first.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
        measured.append(
            MeasuredSpeed(
                name, options.step, len(flip_sets(axes, even=options.even_flips)) if mirrored else 1,
                Estimate.of([*dice.values()]) if dice else None,
                Estimate.of([dice[case] - reference[case] for case in dice]) if dice else None, seconds / number,
            )
        )  # fmt: skip
    return SpeedTable(
        VERSION, first.configuration_name, first.configuration.network.name, device_name(first),
        {str(fold): weights_digest(model.networks[0]) for fold, model in models.items()}, number, tuple(measured),
    )  # fmt: skip


def mean_dice(score: CaseScore) -> float | None:
    """Mean Dice of a case over the labels that have one; None if none has."""
    found = [dice for metrics in score.scores.values() if (dice := metrics["dice"]) is not None]
    return sum(found) / len(found) if found else None


def device_name(model: "Model") -> str:
    """What a model computes on."""
    import torch

    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{model.device.type}, {counted(torch.get_num_threads(), 'thread')}"


def describe(table: SpeedTable) -> str:
    """The table, to read: a line for each speed."""
    title = f"{table.configuration}, {table.network}: {counted(table.cases, 'held-out case')}, {table.device}"
    rows = [["speed", "step", "passes", "Dice", "95 % interval", "against accurate", "s per case", "speed-up"]]
    slowest = table.speeds[0].seconds_per_case
    for speed in table.speeds:
        dice, change = speed.dice, speed.change
        rows.append([
            speed.name, f"{speed.step:g}", str(speed.flips),
            f"{dice.mean:.4f}" if dice else "-", f"{dice.low:.4f} to {dice.high:.4f}" if dice else "-",
            f"{change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})" if change else "-",
            f"{speed.seconds_per_case:.3g}", f"{slowest / speed.seconds_per_case:.1f}x",
        ])  # fmt: skip
    return f"{title}\n\n{ruled(rows)}"


def expected(table: SpeedTable, name: str) -> str:
    """What a speed was measured to give, in a line; empty where the table lacks it."""
    for speed in table.speeds:
        if speed.name == name and speed.dice and speed.change:
            dice, change = speed.dice, speed.change
            return (
                f"{name}: Dice {dice.mean:.4f} ({dice.low:.4f} to {dice.high:.4f}) on "
                f"{counted(table.cases, 'held-out case')}, {change.mean:+.4f} against accurate; "
                f"{speed.seconds_per_case:.3g} s per case ({table.device})"
            )
    return ""
