"""What each speed of `predict` costs and loses: every held-out case is segmented at all speeds by its own fold.

    ways_of          what is measured: the speeds, --top-k of a cascade, --skip-empty where there are such tiles
    measure_speeds   folds and their held-out cases -> SpeedTable
    describe         SpeedTable -> lines
    expected         what to expect of one way, in a line

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
from autoseg.evaluation.statistics import mean_dice_of
from autoseg.imaging.formats.readers import ending_of, read_labels
from autoseg.inference.options import SPEEDS, InferenceOptions, options_at
from autoseg.messages import counted, ruled
from autoseg.rules import anything, exactly
from autoseg.workspace import FoldName

if TYPE_CHECKING:
    from autoseg.models.model import Model

VERSION = 1
LEVEL = 0.95  # of the intervals
SHARES = (0.5, 0.2, 0.1)  # of a cascade's tiles that are measured
SKIPPING = "skip-empty"
LOOKED_AT = 3  # cases in which nearly empty tiles are looked for
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
    """One speed, or another way to save time, on the held-out cases."""

    name: Text
    step: float  # distance of neighbouring tiles as a share of the tile
    flips: int  # forward passes per tile
    dice: Estimate | None  # None: no case has a Dice
    change: Estimate | None  # of Dice, against accurate, case by case
    seconds_per_case: float
    top_k: float | None = None  # share of a cascade's tiles that were computed; None: all
    same: float | None = None  # share of the voxels with the label that accurate gives them; None: not measured


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


@dataclass(frozen=True)
class Way:
    """How cases are segmented, by its name in the table."""

    name: str
    options: InferenceOptions


def ways_of(model: "Model", cases: Sequence[Case]) -> list[Way]:
    """The ways to segment that are worth measuring with a model, accurate first.

    Args:
        cases: of which the first are looked at for nearly empty tiles.
    """
    ways = [Way(name, options_at(name)) for name in SPEEDS]
    accurate = ways[0].options
    if model.previous is not None:
        ways += [Way(name_of_share(share), replace(accurate, top_k=share)) for share in SHARES]
    skipping = replace(accurate, skip_empty=True)
    if any(_leaves_out(model, skipping, case) for case in cases[:LOOKED_AT]):
        ways.append(Way(SKIPPING, skipping))
    return ways


def name_of_share(share: float) -> str:
    """The name of a share of a cascade's tiles in the table: "top-k 20%"."""
    return f"top-k {100 * share:g}%"


def measure_speeds(
    models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], folder: Path
) -> SpeedTable:
    """Segment every fold's held-out cases in all ways, and score them.

    Args:
        models: one per fold, of that fold alone.
        cases: with labels, by fold.
        folder: where segmentations are written; the caller removes it.

    Raises:
        DataError: an image or a label cannot be read.
    """
    from autoseg.models.identity import weights_digest

    fold, first = next(iter(models.items()))
    measured: list[MeasuredSpeed] = []
    reference: dict[str, float] = {}
    ways, number = ways_of(first, cases[fold]), sum(map(len, cases.values()))
    for way in ways:
        scores, seconds = _segmented(way, models, cases, folder)
        dice = {score.case: mean for score in scores if (mean := mean_dice_of(score)) is not None}
        reference = reference or dice
        measured.append(
            MeasuredSpeed(
                name=way.name,
                step=way.options.step,
                flips=_passes(way.options, first),
                dice=Estimate.of([*dice.values()]) if dice else None,
                change=Estimate.of([dice[case] - reference[case] for case in dice]) if dice else None,
                seconds_per_case=seconds / number,
                top_k=way.options.top_k,
                same=_same(folder, way.name, ways[0].name),
            )
        )
    return SpeedTable(
        VERSION, first.configuration_name, first.configuration.network.name, device_name(first),
        {str(fold): weights_digest(model.networks[0]) for fold, model in models.items()}, number, tuple(measured),
    )  # fmt: skip


def _segmented(
    way: Way, models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], folder: Path
) -> tuple[list[CaseScore], float]:
    """Scores of all held-out cases segmented in one way, and the seconds it took."""
    from autoseg.inference.predict import predict_cases

    scores: list[CaseScore] = []
    seconds = 0.0
    for fold, model in models.items():
        out = folder / way.name / f"fold_{fold}"
        began = time.perf_counter()
        predict_cases([model], cases[fold], out, way.options, title=f"{way.name}, fold {fold}")
        seconds += time.perf_counter() - began
        jobs = [replace(job, surfaces=False) for job in validation_jobs(out, cases[fold], model.plan.labels)]
        scores += score_cases(jobs)
    return scores, seconds


def _passes(options: InferenceOptions, model: "Model") -> int:
    """Forward passes per tile."""
    from autoseg.models.build import configuration_mirror_axes
    from autoseg.nn.sliding_window import flip_sets

    axes = configuration_mirror_axes(model.plan, model.configuration, options.mirror_axes)
    mirrored = model.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
    return len(flip_sets(axes, even=options.even_flips)) if mirrored else 1


def _same(folder: Path, way: str, reference: str) -> float:
    """Share of the voxels of all cases with the label that another way gave them."""
    same = voxels = 0
    for path in sorted((folder / reference).glob("fold_*/*")):
        if path.name[0] == "." or ending_of(path) is None:
            continue
        one, other = (read_labels(file).array for file in (path, folder / way / path.relative_to(folder / reference)))
        same, voxels = same + int((one == other).sum()), voxels + one.size
    return same / voxels


def _leaves_out(model: "Model", options: InferenceOptions, case: Case) -> bool:
    """Whether a case has tiles that are left out."""
    from autoseg.datasets.dataset import load_case
    from autoseg.inference.member import EnsembleMember
    from autoseg.nn.sliding_window import windows_of

    plan, member = model.plan, EnsembleMember(replace(model, previous=None), options)
    loaded = load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
    shape = member.prepare(loaded).image.shape
    kept = member.chosen(loaded, np.zeros((1, 1, 1), np.uint8))
    return kept is not None and len(kept) < len(windows_of(shape[1:], member.tiling(shape)))


def device_name(model: "Model") -> str:
    """What a model computes on."""
    import torch

    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{model.device.type}, {counted(torch.get_num_threads(), 'thread')}"


def describe(table: SpeedTable) -> str:
    """The table, to read: a line for each speed."""
    title = f"{table.configuration}, {table.network}: {counted(table.cases, 'held-out case')}, {table.device}"
    rows = [
        ["speed", "step", "passes", "Dice", "95 % interval", "against accurate", "labels", "s per case", "speed-up"]
    ]
    slowest = table.speeds[0].seconds_per_case
    for speed in table.speeds:
        dice, change = speed.dice, speed.change
        rows.append([
            speed.name, f"{speed.step:g}", str(speed.flips),
            f"{dice.mean:.4f}" if dice else "-", f"{dice.low:.4f} to {dice.high:.4f}" if dice else "-",
            f"{change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})" if change else "-",
            "-" if speed.same is None else _share(speed.same), f"{speed.seconds_per_case:.3g}",
            f"{slowest / speed.seconds_per_case:.1f}x",
        ])  # fmt: skip
    return f"{title}\n\n{ruled(rows)}"


def _share(same: float) -> str:
    """A share of equal labels in percent, never rounded up to all of them."""
    return "100 %" if same == 1 else f"{math.floor(same * 1e6) / 1e4:.4f} %"


def expected(table: SpeedTable, name: str, top_k: float | None = None) -> str:
    """What a way was measured to give, in a line; empty where the table lacks it.

    Args:
        top_k: the share of a cascade's tiles, of which the nearest that was measured counts; None: the way of the name.
    """
    if top_k is not None:
        shares = [speed for speed in table.speeds if speed.top_k is not None]
        name = min(shares, key=lambda speed: abs(speed.top_k - top_k)).name if shares else ""  # type: ignore[operator]
    for speed in table.speeds:
        if speed.name == name and speed.dice and speed.change:
            dice, change = speed.dice, speed.change
            nearest = "" if top_k in (None, speed.top_k) else ", the nearest share that was measured"
            return (
                f"{name}{nearest}: Dice {dice.mean:.4f} ({dice.low:.4f} to {dice.high:.4f}) on "
                f"{counted(table.cases, 'held-out case')}, {change.mean:+.4f} against accurate; "
                f"{speed.seconds_per_case:.3g} s per case ({table.device})"
            )
    return ""
