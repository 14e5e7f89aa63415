"""Charts of a training: loss, Dice and learning rate of all folds, their mean and spread, and what happened when.

The axis is the share of the training that is done, because folds of a time budget make different numbers of epochs.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.report.data_figures import Figure
from autoseg.report.gathered import GatheredFold
from autoseg.report.numbers import Band, band
from autoseg.report.svg import INK, chart, colour, inline
from autoseg.training.diagnosis import diagnose
from autoseg.training.history import Dice, EpochRow
from autoseg.workspace import FoldName

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHECKED = 40  # epochs of a fold at which its findings are looked for, evenly spaced
EVENTS = (  # what is looked for in a fold's log -> what happened
    (re.compile(r"resumed after epoch"), "resumed"),
    (re.compile(r"cooling down the learning rate"), "cool-down began"),
    (re.compile(r"non-finite loss, step skipped"), "step skipped"),
    (re.compile(r"out of memory"), "out of memory, batch split"),
    (re.compile(r"non-finite losses in a row"), "weights restored"),
)
LOG_EPOCH = re.compile(r"\bepoch +(\d+) +step +\d+ ")


@dataclass(frozen=True)
class Event:
    """Something that happened in a fold."""

    fold: FoldName
    epoch: int
    progress: float  # share of the training
    what: str
    dice: float  # mean Dice of validation patches then, or of training patches; NaN: not known


def training_figures(folds: Sequence[GatheredFold], label_names: Sequence[str]) -> list[Figure]:
    """Loss, Dice, Dice of each label and learning rate; nothing where no fold has finished an epoch."""
    known = [fold for fold in folds if fold.history]
    if not known:
        return []
    events = [event for fold in known for event in events_of(fold, label_names)]
    found = [_loss(known, events), _dice(known, events)]
    if 1 < len(label_names) <= 12 and any(row.pseudo_dice for fold in known for row in fold.history):
        found.append(_labels(known, label_names))
    return [*found, _rate(known)]


def events_of(fold: GatheredFold, label_names: Sequence[str]) -> list[Event]:
    """What happened in a fold, by epoch: its best validation, findings where they appear, and what its log names."""
    rows = fold.history
    by_epoch = {row.epoch: row for row in rows}

    def event(row: EpochRow, what: str) -> Event:
        return Event(fold.fold, row.epoch, row.progress, what, row.mean_dice or mean_of(row.training_dice) or math.nan)

    found = []
    dice = [(row.mean_dice, row) for row in rows if row.mean_dice is not None]
    if dice:
        best = max(dice, key=lambda pair: pair[0])[1]
        found.append(event(best, f"best validation Dice, {best.mean_dice:.3f}"))
    told: set[tuple[str, str | None]] = set()
    for index in np.unique(np.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).astype(int)):
        for finding in diagnose(rows[: index + 1], label_names):
            if (finding.kind, finding.label) not in told:
                told.add((finding.kind, finding.label))
                what = f"{finding.kind}: {finding.label}" if finding.label else finding.kind
                found.append(event(rows[index], what))
    found += [
        event(by_epoch[epoch], f"{what}{f' ({count} times)' if count > 1 else ''}")
        for (epoch, what), count in _logged(fold).items()
        if epoch in by_epoch
    ]
    return sorted(found, key=lambda event: event.progress)


def _logged(fold: GatheredFold) -> dict[tuple[int, str], int]:
    """Epoch and kind of what a fold's log names -> how often; nothing without a log."""
    path = fold.folder / "log.txt"
    if not path.exists():
        return {}
    epoch = 0
    found: dict[tuple[int, str], int] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := LOG_EPOCH.search(line):
            epoch = int(match[1])
            continue
        for pattern, what in EVENTS:
            if pattern.search(line):
                found[epoch, what] = found.get((epoch, what), 0) + 1
    return found


def curve(rows: Sequence[EpochRow], value: Callable[[EpochRow], float | None]) -> tuple[list[float], list]:
    """Percent of the training done, and a value of each epoch; epochs that a fold repeated count once, as last made."""
    last = {row.epoch: row for row in rows}
    return [100 * row.progress for row in last.values()], [value(row) for row in last.values()]


def mean_of(dice: Dice | None) -> float | None:
    """Mean over the labels that have a Dice."""
    known = [one for one in dice or () if one is not None]
    return float(np.mean(known)) if known else None


def _draw(axes: "Axes", curves: Sequence[tuple[list[float], list]], index: int, name: str, line: str = "-") -> None:
    """Thin curves of the folds, and their mean with a band of one standard deviation."""
    found = band(curves)
    alone = len(curves) == 1
    for x, y in curves:
        axes.plot(x, _numbers(y), line, color=colour(index), linewidth=1.4 if alone else 0.7, alpha=1 if alone else 0.4,
                  label=name if alone else None, marker="." if len(x) == 1 else None)  # fmt: skip
    if found is not None and found.curves > 1:
        axes.fill_between(found.x, *_edges(found), color=colour(index), alpha=0.18, linewidth=0)
        axes.plot(found.x, found.mean, line, color=colour(index), linewidth=1.8, label=name)


def _edges(found: Band) -> tuple[np.ndarray, np.ndarray]:
    return found.mean - found.std, found.mean + found.std


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _loss(folds: Sequence[GatheredFold], events: Sequence[Event]) -> Figure:
    with chart() as (figure, axes):
        _draw(axes, [curve(fold.history, lambda row: row.loss) for fold in folds], 0, "training patches", "--")
        validated = [fold for fold in folds if any(row.validation_loss is not None for row in fold.history)]
        if validated:
            curves = [curve(fold.history, lambda row: row.validation_loss) for fold in validated]
            _draw(axes, curves, 1, "validation patches")
        _finish(axes, "loss", events)
        return Figure("Loss", _caption(folds, "Loss of each epoch."), inline(figure, "loss", "Loss over the training"))


def _dice(folds: Sequence[GatheredFold], events: Sequence[Event]) -> Figure:
    with chart() as (figure, axes):
        known = [curve(fold.history, lambda row: mean_of(row.training_dice)) for fold in folds]
        _draw(axes, known, 0, "training patches", "--")
        held_out = [curve(fold.history, lambda row: row.mean_dice) for fold in folds if fold.history[-1].pseudo_dice]
        if held_out:
            _draw(axes, held_out, 1, "validation patches")
        _finish(axes, "mean Dice of fixed patches", events, marked=True)
        axes.set_ylim(top=1)
        caption = _caption(folds, "Dots mark each fold's best validation; crosses mark the other events listed below.")
        return Figure("Dice while training", caption, inline(figure, "dice", "Dice of patches over the training"))


def _labels(folds: Sequence[GatheredFold], label_names: Sequence[str]) -> Figure:
    held_out = [fold for fold in folds if fold.history[-1].pseudo_dice]
    with chart() as (figure, axes):
        for i, name in enumerate(label_names):
            curves = [
                curve(fold.history, lambda row, i=i: row.pseudo_dice[i] if row.pseudo_dice else None)  # type: ignore[misc]
                for fold in held_out
            ]
            _draw(axes, curves, i, name)
        _finish(axes, "Dice of validation patches", ())
        axes.set_ylim(top=1)
        caption = _caption(held_out, "Each label on the validation patches.")
        return Figure("Dice of each label", caption, inline(figure, "labels", "Dice of each label over the training"))


def _rate(folds: Sequence[GatheredFold]) -> Figure:
    with chart() as (figure, axes):
        for i, fold in enumerate(folds):
            x, y = curve(fold.history, lambda row: row.learning_rate)
            axes.plot(x, y, color=colour(i), linewidth=1.2, label=f"fold {fold.fold}")
        _finish(axes, "learning rate", ())
        return Figure("Learning rate", "At the end of each epoch.", inline(figure, "rate", "Learning rate"))


def _finish(axes: "Axes", label: str, events: Sequence[Event], *, marked: bool = False) -> None:
    for event in events if marked else ():
        best = event.what.startswith("best")
        look: dict[str, Any] = {"marker": "o" if best else "x", "color": colour(4) if best else INK, "markersize": 4}
        axes.plot(100 * event.progress, event.dice, linestyle="", clip_on=False, zorder=4, **look)
    axes.set_xlabel("share of the training, %")
    axes.set_ylabel(label)
    axes.legend(labelcolor=INK, loc="best")


def _caption(folds: Sequence[GatheredFold], text: str) -> str:
    if len(folds) == 1:
        return f"Fold {folds[0].fold}. {text}"
    return f"Thick: mean of {len(folds)} folds; band: ± 1 standard deviation; thin: each fold. {text}"
