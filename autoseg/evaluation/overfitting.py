"""How the curves of a fold ended, in words: the gap to its training cases, and when validation turned.

The findings are those of `training.diagnosis`, which also warns while a fold trains. Here they are put together with
two figures that hold for sound folds, too: how much higher the Dice of training patches was at the end, and after which
epoch the Dice of validation patches was not exceeded any more. Both are means of EPOCHS epochs: one is noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoseg.training.diagnosis import EPOCHS, diagnose
from autoseg.training.history import EpochRow
from autoseg.workspace import FoldName

TURNED = 0.01  # Dice that validation lost since its best; less is the noise of a few patches


@dataclass(frozen=True)
class CurveVerdict:
    """What the curves of one fold show."""

    fold: FoldName
    verdict: Literal["sound", "overfit", "failed", "unknown"]
    words: str
    epochs: int = 0
    gap: float | None = None  # Dice of training patches above that of validation patches, at the end
    best_epoch: int | None = None  # middle of the epochs in which validation was best
    lost: float | None = None  # Dice that validation lost since then
    remedy: str = ""


def judge_curves(fold: FoldName, history: Sequence[EpochRow], labels: Sequence[str]) -> CurveVerdict:
    """Judge a fold by its history.

    Args:
        history: a row per epoch; empty where there is none.
        labels: names of what the rows have a Dice of.
    """
    known = [row for row in history if row.mean_dice is not None and any(d is not None for d in row.training_dice)]
    if len(known) < EPOCHS:
        what = f"{len(known)} epochs with a Dice, {EPOCHS} are needed" if history else "there is no history"
        return CurveVerdict(fold, "unknown", f"fold {fold}: not known whether it overfits: {what}", len(history))
    validation = _smooth([row.mean_dice or 0.0 for row in known])
    training = _smooth([float(np.mean([d for d in row.training_dice if d is not None])) for row in known])
    gap, at = float(training[-1] - validation[-1]), int(np.argmax(validation))
    lost, epoch = float(validation[at] - validation[-1]), known[at + EPOCHS // 2].epoch
    figures = _figures(gap, lost, epoch, known[-1].epoch)
    findings = diagnose(history, labels)
    overfit = [finding for finding in findings if finding.kind == "overfit"]
    failed = [finding for finding in findings if finding.kind in ("diverge", "collapse")]
    verdict: Literal["sound", "overfit", "failed"] = "failed" if failed else "overfit" if overfit else "sound"
    word = {"sound": "does not overfit", "overfit": "overfits", "failed": "failed"}[verdict]
    named = [*failed, *overfit, *(finding for finding in findings if finding.kind == "unseen")]
    words = f"fold {fold} {word}: {figures}" + "".join(f"; {finding.what}" for finding in named)
    remedy = named[0].remedy if named else ""
    return CurveVerdict(fold, verdict, words, len(history), gap, epoch, lost, remedy)


def _figures(gap: float, lost: float, epoch: int, last: int) -> str:
    """The gap, and when validation turned."""
    text = f"the Dice of training patches is {gap:.3f} above that of validation patches" if gap >= 0 else (
        f"the Dice of validation patches is {-gap:.3f} above that of training patches"
    )  # fmt: skip
    if lost > TURNED:
        return f"{text}, and validation turned around epoch {epoch} of {last}, {lost:.3f} lost since"
    if epoch >= last - EPOCHS // 2:
        return f"{text}, and validation did not turn before the end (epoch {last})"
    return f"{text}, and validation was best around epoch {epoch} of {last}"


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Means of EPOCHS values in a row, (n - EPOCHS + 1,)."""
    return np.convolve(values, np.full(EPOCHS, 1 / EPOCHS), mode="valid")
