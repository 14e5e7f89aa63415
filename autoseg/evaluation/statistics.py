"""What the scores of a cross-validation say: intervals over patients, verdicts, what failed.

    mean_over_cases   mean Dice over labels, with its interval
    interval_table    every label with its interval and verdict: good, fair or poor by the mean Dice
    find_flags        folds and labels that failed
    write_statistics  all of it as a table

The mean over labels is taken per case, over the labels that have a Dice there, so that it has an interval, too.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from autoseg.errors import UsageError
from autoseg.evaluation.evaluate import CaseScore, Summary, summary_of
from autoseg.messages import ruled, some
from autoseg.rules import between
from autoseg.workspace import FoldName, write_text

Verdict = Literal["good", "fair", "poor", "unknown"]
BEHIND = 0.05  # Dice; a fold is named that is worse than the others by more than this, beyond chance


@dataclass(frozen=True)
class Bands:
    """Where verdicts change, as mean Dice."""

    good: Annotated[float, between(0, 1)] = 0.8  # good above
    poor: Annotated[float, between(0, 1)] = 0.5  # poor below

    def __post_init__(self) -> None:
        if not 0 <= self.poor <= self.good <= 1:
            raise UsageError(
                f"verdicts: poor below {self.poor:g} and good above {self.good:g}",
                remedy="give numbers from 0 to 1, --poor not above --good",
            )

    def of(self, dice: float | None) -> Verdict:
        """The verdict on a mean Dice."""
        if dice is None:
            return "unknown"
        return "good" if dice > self.good else "poor" if dice < self.poor else "fair"


USUAL_BANDS = Bands()


@dataclass(frozen=True)
class Flag:
    """A fold, a label, or a label in a fold that failed or is behind."""

    what: str  # in words
    fold: FoldName | None = None
    label: str | None = None


Table = Mapping[str, Mapping[str, Summary]]  # label -> metric -> statistics


def mean_dice_of(case: CaseScore) -> float | None:
    """Mean Dice of a case over the labels that have one; None if none has."""
    found = [dice for metrics in case.scores.values() if (dice := metrics["dice"]) is not None]
    return sum(found) / len(found) if found else None


def mean_over_cases(cases: Sequence[CaseScore], patients: Mapping[str, str]) -> Summary:
    """Statistics of the mean Dice over labels, which is taken case by case.

    Args:
        patients: case -> patient; a case that it lacks is a patient of its own.
    """
    return summary_of([mean_dice_of(case) for case in cases], [patients.get(case.case, case.case) for case in cases])


def find_flags(folds: Mapping[FoldName, Sequence[CaseScore]], patients: Mapping[str, str], bands: Bands) -> list[Flag]:
    """Folds and labels that failed: poor as a whole or in one fold, or behind the other folds beyond chance."""
    everything = [case for cases in folds.values() for case in cases]
    labels = [*everything[0].scores] if everything else []
    flags = []
    for label in labels:
        dice = _mean(everything, _of(label))
        if dice is None:
            flags.append(Flag(f"{label}: no reference and no segmentation contains it", label=label))
        elif dice < bands.poor:
            flags.append(Flag(f"{label} failed: mean Dice {dice:.3f}, poor is below {bands.poor:g}", label=label))
    for fold, cases in folds.items():
        others = [case for name, own in folds.items() if name != fold for case in own]
        dice, rest = _mean(cases, mean_dice_of), _mean(others, mean_dice_of)
        if dice is not None and dice < bands.poor:
            against = f", {rest:.3f} in the other folds" if rest is not None else ""
            flags.append(Flag(f"fold {fold} failed: mean Dice {dice:.3f}{against}", fold))
            continue
        if dice is not None and rest is not None and rest - dice > BEHIND and _apart(cases, others, patients):
            flags.append(Flag(f"fold {fold} is behind: mean Dice {dice:.3f}, {rest:.3f} in the other folds", fold))
        for label in labels:
            own, rest = _mean(cases, _of(label)), _mean(others, _of(label))
            if own is not None and rest is not None and own < bands.poor <= rest:
                what = f"{label} failed in fold {fold}: mean Dice {own:.3f}, {rest:.3f} in the other folds"
                flags.append(Flag(what, fold, label))
    return flags


def interval_table(table: Table, mean: Summary, bands: Bands, metric: str = "dice") -> str:
    """A row per label: mean ± std, median, quartiles, interval, verdict."""
    rows = [[metric, "mean ± std", "median", "quartiles", "95 % interval", "cases", "patients", "verdict"]]
    for label, found in [*((label, metrics[metric]) for label, metrics in table.items()), ("mean", mean)]:
        rows.append([
            label, _plus_minus(found.mean, found.std), _number(found.median), _range(found.quartiles),
            _range(found.interval), str(found.defined), str(found.patients), bands.of(found.mean),
        ])  # fmt: skip
    return ruled(rows)


def verdict_in_words(table: Table, mean: Summary, bands: Bands) -> str:
    """Which labels are good, fair and poor, in a sentence or two."""
    by_verdict: dict[str, list[str]] = {"good": [], "fair": [], "poor": [], "unknown": []}
    for label, metrics in table.items():
        dice = metrics["dice"].mean
        by_verdict[bands.of(dice)].append(label if dice is None else f"{label} ({dice:.2f})")
    parts = [f"{verdict}: {some(labels, 8)}" for verdict, labels in by_verdict.items() if labels]
    scale = f"good is above {bands.good:g}, poor below {bands.poor:g}"
    if mean.mean is None:
        return f"verdict: unknown, no case has a Dice ({scale})"
    return f"verdict: {bands.of(mean.mean)}, mean Dice {mean.mean:.3f} ({scale}). {'; '.join(parts)}"


def write_statistics(path: Path, table: Table, mean: Summary, folds: Mapping[str, Table]) -> None:
    """One row per label and metric over all cases, then one per fold; an undefined value is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["mean", "std", "median", "q1", "q3", "low", "high", "cases", "undefined", "patients"]
    writer.writerow(["fold", "label", "metric", *columns])
    over_all = {**table, "mean over labels": {"dice": mean}}
    for fold, labels in {"all": over_all, **folds}.items():
        for label, metrics in labels.items():
            for metric, found in metrics.items():
                ends = (*(found.quartiles or (None, None)), *(found.interval or (None, None)))
                counts = (found.defined, found.undefined, found.patients or None)
                cells = (found.mean, found.std, found.median, *ends, *counts)
                writer.writerow([fold, label, metric, *("" if cell is None else cell for cell in cells)])
    write_text(path, text.getvalue())


def _of(label: str) -> Callable[[CaseScore], float | None]:
    return lambda case: case.scores[label]["dice"]


def _mean(cases: Sequence[CaseScore], value: Callable[[CaseScore], float | None]) -> float | None:
    known = [number for case in cases if (number := value(case)) is not None]
    return float(np.mean(known)) if known else None


def _apart(cases: Sequence[CaseScore], others: Sequence[CaseScore], patients: Mapping[str, str]) -> bool:
    """Whether the interval of some cases ends below where that of the others begins."""
    ends = []
    for group in (cases, others):
        interval = mean_over_cases(group, patients).interval
        if interval is None:
            return False
        ends.append(interval)
    (_, high), (low, _) = ends
    return high < low


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plus_minus(mean: float | None, std: float | None) -> str:
    return "-" if mean is None or std is None else f"{mean:.4f} ± {std:.3f}"


def _range(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
