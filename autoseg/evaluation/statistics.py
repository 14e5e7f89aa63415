"""Statistics of a cross-validation: pooled over cases with intervals over patients, per fold, and verdicts in words.

    pooled      one metric over all cases: mean, median, quartiles, 95 % bootstrap interval of the mean over patients
    per fold    mean and standard deviation
    verdict     good, fair or poor by the mean Dice; folds and labels that failed, in words

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
from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.intervals import interval_of_mean
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
class Pooled:
    """One metric over all cases for which it is defined."""

    cases: int
    undefined: int
    patients: int = 0
    mean: float | None = None
    std: float | None = None
    median: float | None = None
    q1: float | None = None  # quartiles: the interquartile range is q1 to q3
    q3: float | None = None
    low: float | None = None  # 95 % interval of the mean, by a bootstrap over patients; None: fewer than two patients
    high: float | None = None


@dataclass(frozen=True)
class Spread:
    """One metric over the cases of one fold."""

    mean: float | None
    std: float | None
    cases: int


@dataclass(frozen=True)
class Flag:
    """A fold, a label, or a label in a fold that failed or is behind."""

    what: str  # in words
    fold: FoldName | None = None
    label: str | None = None


Table = dict[str, dict[str, Pooled]]  # label -> metric -> statistics
FoldTable = dict[str, dict[str, dict[str, Spread]]]  # fold -> label -> metric


def pool(values: Sequence[float | None], patients: Sequence[str]) -> Pooled:
    """Statistics of one metric; `values` and `patients` have an entry per case."""
    known = [(value, patient) for value, patient in zip(values, patients, strict=True) if value is not None]
    if not known:
        return Pooled(0, len(values))
    numbers, groups = np.array([value for value, _ in known]), [patient for _, patient in known]
    q1, median, q3 = np.quantile(numbers, [0.25, 0.5, 0.75])
    low, high = interval_of_mean(numbers.tolist(), groups) or (None, None)
    return Pooled(
        len(known), len(values) - len(known), len(set(groups)), float(numbers.mean()), float(numbers.std()),
        float(median), float(q1), float(q3), low, high,
    )  # fmt: skip


def mean_dice_of(case: CaseScore) -> float | None:
    """Mean Dice of a case over the labels that have one; None if none has."""
    found = [dice for metrics in case.scores.values() if (dice := metrics["dice"]) is not None]
    return sum(found) / len(found) if found else None


def pool_cases(cases: Sequence[CaseScore], patients: Mapping[str, str]) -> tuple[Table, Pooled]:
    """Statistics of every label and metric, and of the mean Dice over labels.

    Args:
        patients: case -> patient; a case that it lacks is a patient of its own.
    """
    who = [patients.get(case.case, case.case) for case in cases]
    table = {
        label: {metric: pool([case.scores[label][metric] for case in cases], who) for metric in metrics}
        for label, metrics in (cases[0].scores.items() if cases else ())
    }
    return table, pool([mean_dice_of(case) for case in cases], who)


def spread_in_folds(folds: Mapping[FoldName, Sequence[CaseScore]]) -> FoldTable:
    """Mean and standard deviation of every label and metric in every fold."""
    return {
        str(fold): {
            label: {metric: _spread([case.scores[label][metric] for case in cases]) for metric in metrics}
            for label, metrics in (cases[0].scores.items() if cases else ())
        }
        for fold, cases in folds.items()
    }


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


def interval_table(table: Table, mean: Pooled, bands: Bands, metric: str = "dice") -> str:
    """A row per label: mean ± std, median, quartiles, interval, verdict."""
    rows = [[metric, "mean ± std", "median", "quartiles", "95 % interval", "cases", "patients", "verdict"]]
    for label, found in [*((label, metrics[metric]) for label, metrics in table.items()), ("mean", mean)]:
        rows.append([
            label, _plus_minus(found.mean, found.std), _number(found.median), _range(found.q1, found.q3),
            _range(found.low, found.high), str(found.cases), str(found.patients), bands.of(found.mean),
        ])  # fmt: skip
    return ruled(rows)


def verdict_in_words(table: Table, mean: Pooled, bands: Bands) -> str:
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


def write_statistics(path: Path, table: Table, mean: Pooled, folds: FoldTable) -> None:
    """One row per label and metric over all cases, then one per fold; an undefined value is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["mean", "std", "median", "q1", "q3", "low", "high", "cases", "undefined", "patients"]
    writer.writerow(["fold", "label", "metric", *columns])
    for label, metrics in [*table.items(), ("mean over labels", {"dice": mean})]:
        for metric, found in metrics.items():
            writer.writerow(["all", label, metric, *(_cell(getattr(found, column)) for column in columns)])
    for fold, labels in folds.items():
        for label, spreads in labels.items():
            for metric, spread in spreads.items():
                cells = {"mean": spread.mean, "std": spread.std, "cases": spread.cases}
                writer.writerow([fold, label, metric, *(_cell(cells.get(column)) for column in columns)])
    write_text(path, text.getvalue())


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def _of(label: str) -> Callable[[CaseScore], float | None]:
    return lambda case: case.scores[label]["dice"]


def _mean(cases: Sequence[CaseScore], value: Callable[[CaseScore], float | None]) -> float | None:
    known = [number for case in cases if (number := value(case)) is not None]
    return float(np.mean(known)) if known else None


def _apart(cases: Sequence[CaseScore], others: Sequence[CaseScore], patients: Mapping[str, str]) -> bool:
    """Whether the interval of some cases ends below where that of the others begins."""
    ends = []
    for group in (cases, others):
        found = pool([mean_dice_of(case) for case in group], [patients.get(case.case, case.case) for case in group])
        ends.append((found.low, found.high))
    (_, high), (low, _) = ends
    return high is not None and low is not None and high < low


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, 0)
    return Spread(float(np.mean(known)), float(np.std(known)), len(known))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plus_minus(mean: float | None, std: float | None) -> str:
    return "-" if mean is None or std is None else f"{mean:.4f} ± {std:.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"
