"""What goes wrong in a fold, read off its history: it overfits, it collapses, it diverges, it lacks a label.

`diagnose` looks at the rows of its history alone and says how the fold stands after the last of them. It compares
a training with itself, its validation with its training patches and its last epochs with its best, so that it needs no
idea of a good Dice. A verdict takes several epochs in a row, because one bad epoch is noise; only a loss that is not
finite is reported immediately.

Dice means the pseudo Dice of fixed patches: of training and of validation cases, measured alike. A label that none of
the patches holds has no Dice (None), or 0 when the network predicts it somewhere; one None shows that its zeros are not
a failure.

Before a label counts as not learnt, the row's `unseen` is checked: the labels that no training case of the fold has.
They are reported once, as a finding of their own, and not judged further. Where many labels share a
verdict, one line says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from autoseg.messages import NAMED, some
from autoseg.training.history import Dice, EpochRow

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Literal["overfit", "collapse", "diverge", "unseen"]

EPOCHS = 3  # judged together: sound trainings waver for an epoch or two, not for three in the same direction


# Overfitting. In sound trainings the patches of training cases score 0.01 to 0.1 better than those of validation cases.
PAUSE_SHARE = 0.25  # validation stagnates when it is no better than it was this share of all epochs ago: ...
MAX_PAUSE = 30  # ... or so many epochs ago; pauses at the beginning are short, those at the end are long
STAGNATION = 0.02  # Dice; a smaller improvement is within the noise of a few validation patches
GAP = 0.2  # Dice, if training patches gained MEMORISED since validation stagnates ...
MEMORISED = 0.03  # ... because otherwise the validation cases are the harder ones, and were from the beginning
WIDE_GAP = 0.35  # Dice; so much is lost on new patients only by a network that knows its own by heart
FALL = 0.1  # Dice that validation lost since its best: more than the noise of three epochs ...
FALLEN_GAP = 0.15  # ... with a gap, because a network that got worse altogether has none
LOSS_RISE = 0.1  # of the validation loss above its best; sound ones waver by 0.02 to 0.05
LOSS_RISE_SHARE = 0.2  # and relative to all it had fallen by, where that is much
LOSS_FALL = 0.02  # of the training loss in the meantime

# Collapse.
NEAR_ZERO = 0.05  # Dice
RISING = 0.005  # Dice; a label that gains this in three epochs is about to be learnt
LATE = 0.6  # share of the training; in short ones small labels begin to be learnt when half is over
LATE_STEPS = 25_000  # or so many steps, a tenth of nnU-Net's training: a long one need not be watched until it is late
LEARNT = 0.2  # Dice in each of three epochs, which no network reaches by chance

# Divergence.
LOSS_JUMP = 0.5  # of the training loss above its best: half of what a perfect Dice term is worth
LOSS_JUMP_SHARE = 0.5  # and relative to all it had fallen by
JUMP_EPOCHS = 2  # the loss of an epoch is a mean of many steps already
SKIPPED = 10  # steps in three epochs; half precision skips fewer while it looks for its scale
SKIPPED_SHARE = 0.1

OVERFIT_REMEDY = (
    "more patients help most; otherwise retrain from scratch (--restart) with --set training.augmentation=default if "
    "it was weaker, with ten times the training.weight_decay, with --set training.dropout=0.2, or with fewer --epochs"
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a fold."""

    kind: Kind
    label: str | None  # None: the fold as a whole
    what: str  # what was seen, in figures
    remedy: str  # options to try


Verdict = tuple[str, str] | None  # what was seen and what to try; None: sound


def diagnose(history: Sequence[EpochRow], label_names: Sequence[str]) -> list[Finding]:
    """Name what is wrong with a fold as it stands after the last row of its history; nothing, if it is sound.

    Args:
        history: of all epochs so far.
        label_names: of the entries of `training_dice` and `pseudo_dice`.
    """
    return _judge(_Curves.read(history, len(label_names)), label_names)


def ever_found(history: Sequence[EpochRow], label_names: Sequence[str]) -> set[tuple[Kind, str | None]]:
    """Kind and label of all that `diagnose` would have named after one of the rows."""
    curves = _Curves.read(history, len(label_names))
    findings = (_judge(curves.until(epochs), label_names) for epochs in range(1, len(curves) + 1))
    return {(finding.kind, finding.label) for found in findings for finding in found}


@dataclass(frozen=True)
class _Curves:
    """A history in columns of (epochs,), of the Dice (epochs, labels); float64 with NaN where there is no figure."""

    epoch: Floats
    step: Floats
    progress: Floats
    skipped: Floats
    learning_rate: Floats
    loss: Floats
    validation_loss: Floats
    broken: Bools  # a loss was measured, and was not finite
    training: Floats  # Dice
    validation: Floats  # Dice
    validated: Bools  # the Dice of validation patches was measured
    unseen: Bools  # (epochs, labels): no training case has the label

    @classmethod
    def read(cls, history: Sequence[EpochRow], labels: int) -> "_Curves":
        validated = np.array([row.pseudo_dice is not None for row in history], dtype=bool)
        loss = _column([row.loss for row in history])
        validation_loss = _column([row.validation_loss for row in history])
        return cls(
            epoch=_column([row.epoch for row in history]),
            step=_column([row.step for row in history]),
            progress=_column([row.progress for row in history]),
            skipped=_column([row.skipped for row in history]),
            learning_rate=_column([row.learning_rate for row in history]),
            loss=loss,
            validation_loss=validation_loss,
            broken=np.isnan(loss) | (validated & np.isnan(validation_loss)),
            training=_dice([row.training_dice for row in history], labels),
            validation=_dice([row.pseudo_dice or () for row in history], labels),
            validated=validated,
            unseen=np.array([[i in row.unseen for i in range(labels)] for row in history], dtype=bool),
        )

    def until(self, epochs: int) -> "_Curves":
        """The first so many epochs."""
        return _Curves(**{name: column[:epochs] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.epoch)

    def occurring(self, label: int) -> list[Floats]:
        """Dice of a label, of validation patches and of training patches, as far as they are known to hold it."""
        always = np.ones(len(self), dtype=bool)
        columns = ((self.validation, self.validated), (self.training, always))
        return [dice[:, label] for dice, known in columns if known[-1] and np.isfinite(dice[known, label]).all()]

    def when(self, index: int) -> str:
        return f"epoch {self.epoch[index]:.0f}"

    @property
    def position(self) -> str:
        return f"after {self.progress[-1]:.0%} of the training"

    @property
    def lower_rate(self) -> str:
        """A third of the highest learning rate so far, as text."""
        highest = _best(self.learning_rate)
        return f"{highest[1] / 3:.1g}" if highest and highest[1] > 0 else "..."


def _judge(curves: _Curves, label_names: Sequence[str]) -> list[Finding]:
    if not len(curves):
        return []
    with np.errstate(all="ignore"):  # figures may be of any size
        return [
            *_divergence(curves),
            *_unseen(curves, label_names),
            *_collapse(curves, label_names),
            *_overfitting(curves, label_names),
        ]


# Divergence


def _divergence(curves: _Curves) -> list[Finding]:
    what = _broken_loss(curves) or _jumped_loss(curves) or _skipped_steps(curves)
    remedy = (
        f"retrain from scratch (--restart) with --set training.learning_rate={curves.lower_rate}, or with "
        "--set training.autocast=float32; if single images are to blame, log.txt names them"
    )
    return [Finding("diverge", None, what, remedy)] if what else []


def _broken_loss(curves: _Curves) -> str | None:
    if not curves.broken[-1]:
        return None
    which = "training" if np.isnan(curves.loss[-1]) else "validation"
    return f"the {which} loss of {curves.when(-1)} is not finite"


def _jumped_loss(curves: _Curves) -> str | None:
    best = _best(-curves.loss[:-JUMP_EPOCHS])
    if best is None:
        return None
    at, lowest = best[0], -best[1]
    first = curves.loss[np.isfinite(curves.loss)][0]
    recent = curves.loss[-JUMP_EPOCHS:]
    if not (recent - lowest >= max(LOSS_JUMP, LOSS_JUMP_SHARE * (first - lowest))).all():
        return None
    return f"the training loss rose from {lowest:+.3f} ({curves.when(at)}) to {recent[-1]:+.3f}"


def _skipped_steps(curves: _Curves) -> str | None:
    before = curves.step[-EPOCHS - 1] if len(curves) > EPOCHS else 0
    steps, skipped = curves.step[-1] - before, np.nansum(curves.skipped[-EPOCHS:])
    if not (skipped >= SKIPPED and skipped >= SKIPPED_SHARE * steps):
        return None
    return f"{skipped:.0f} of the last {steps:.0f} steps were skipped: loss or gradients were not finite"


# Labels without a training case


def _unseen(curves: _Curves, label_names: Sequence[str]) -> list[Finding]:
    names = [name for name, unseen in zip(label_names, curves.unseen[-1], strict=True) if unseen]
    if not names:
        return []
    one = len(names) == 1
    what = f"{some(names)} {'is' if one else 'are'} in none of the fold's training cases"
    remedy = (
        f"no training setting changes that: annotate {'it' if one else 'them'} in more patients, or leave "
        f"{'it' if one else 'them'} out of the labels"
    )
    return [Finding("unseen", names[0] if one else None, what, remedy)]


# Collapse


def _collapse(curves: _Curves, label_names: Sequence[str]) -> list[Finding]:
    columns = [[] if curves.unseen[-1, label] else curves.occurring(label) for label in range(len(label_names))]
    verdicts = [(name, _collapsed(curves, name, dice)) for name, dice in zip(label_names, columns, strict=True) if dice]
    return _findings("collapse", verdicts)


def _collapsed(curves: _Curves, name: str, dice: Sequence[Floats]) -> Verdict:
    """Judge one label by its Dice on validation and training patches, those that hold it."""
    if len(curves) < EPOCHS or not all((column[-EPOCHS:] < NEAR_ZERO).all() for column in dice):
        return None
    stands = f"its Dice is {dice[0][-EPOCHS:].mean():.3f} {curves.position}"
    before = [_best(_windows(column).min(axis=1)) for column in dice]
    if all(best and best[1] >= LEARNT for best in before) and before[0]:
        at, was = before[0]
        return (
            f"{name} was learnt (Dice {was:.2f} around {curves.when(at + EPOCHS // 2)}) and then lost: {stands}",
            f"retrain from scratch (--restart) with --set training.learning_rate={curves.lower_rate}, or with "
            "--set training.autocast=float32",
        )
    late = curves.progress[-1] >= LATE or curves.step[-1] >= LATE_STEPS
    if not late or any(column[-1] - column[-EPOCHS] > RISING for column in dice):
        return None
    return (
        f"{name} is not learnt: {stands}",
        "check its outlines in a few training cases; retrain from scratch (--restart) with --set "
        "training.foreground_fraction=0.66 --set training.class_sampling=inverse_frequency, or with --set "
        "training.loss=dice_focal, or train longer",
    )


# Overfitting


def _overfitting(curves: _Curves, label_names: Sequence[str]) -> list[Finding]:
    """Judge by the Dice of every label, otherwise by the losses."""
    columns = [curves.occurring(label) for label in range(len(label_names))]
    verdicts = [
        (name, _memorised(curves, name, *dice))
        for name, dice in zip(label_names, columns, strict=True)
        if len(dice) == 2
    ]
    return _findings("overfit", verdicts) or _findings("overfit", [(None, _parting_losses(curves))])


def _memorised(curves: _Curves, name: str, validation: Floats, training: Floats) -> Verdict:
    """Judge one label by its Dice on validation patches and on training patches."""
    pause = min(max(EPOCHS, int(PAUSE_SHARE * len(curves))), MAX_PAUSE)
    if len(curves) < EPOCHS + pause or not (validation > 0).any():  # never above 0: perhaps no patch holds the label
        return None
    known, new = _windows(training).mean(axis=1), _windows(validation).mean(axis=1)
    best = _best(new[:-pause])
    if best is None or not new[-1] <= best[1] + STAGNATION:
        return None
    gap = known[-1] - new[-1]
    stagnant_since = np.argmax(new >= new[-1] - STAGNATION)
    memorises = gap >= GAP and known[-1] - known[stagnant_since] >= MEMORISED
    falls = gap >= FALLEN_GAP and best[1] - new[-1] >= FALL and known[-1] >= known[best[0]]
    if not (gap >= WIDE_GAP or memorises or falls):
        return None
    return (
        f"{name} has a Dice of {known[-1]:.2f} on patches of training cases but {new[-1]:.2f} on those of validation "
        f"cases, which was already {best[1]:.2f} around {curves.when(best[0] + EPOCHS // 2)}",
        OVERFIT_REMEDY,
    )


def _parting_losses(curves: _Curves) -> Verdict:
    """Judge by a validation loss that rises while the training loss falls, unless the Dice improves all the same."""
    if len(curves) < 2 * EPOCHS:
        return None
    loss, new = _windows(curves.loss).mean(axis=1), _windows(curves.validation_loss)
    best = _best(-new[:-EPOCHS].mean(axis=1))
    if best is None:
        return None
    at, lowest = best[0], -best[1]
    fallen = curves.validation_loss[np.isfinite(curves.validation_loss)][0] - lowest
    if not (new[-1] - lowest >= max(LOSS_RISE, LOSS_RISE_SHARE * fallen)).all() or not loss[-1] <= loss[at] - LOSS_FALL:
        return None
    dice = _windows(_mean_of_labels(curves.validation)).mean(axis=1)
    if dice[-1] > dice[at] + STAGNATION:
        return None  # the network is too sure of its mistakes, and yet makes fewer
    return (
        f"the validation loss rose from {lowest:+.3f} (around {curves.when(at + EPOCHS // 2)}) to {new[-1, -1]:+.3f} "
        f"while the training loss fell from {loss[at]:+.3f} to {loss[-1]:+.3f}",
        OVERFIT_REMEDY,
    )


# What the judgements share


def _findings(kind: Kind, verdicts: Sequence[tuple[str | None, Verdict]]) -> list[Finding]:
    """One finding per label with a verdict; a single one where all of several labels have one, or many have."""
    found = [(label, *verdict) for label, verdict in verdicts if verdict]
    if len(found) == len(verdicts) > 1:
        _, what, remedy = found[0]
        return [Finding(kind, None, f"all {len(found)} labels, for instance: {what}", remedy)]
    if len(found) > NAMED:
        _, what, remedy = found[0]
        names = some(label for label, _, _ in found)
        counted = f"{len(found)} of {len(verdicts)} labels ({names}), for instance: {what}"
        return [Finding(kind, None, counted, remedy)]
    return [Finding(kind, label, what, remedy) for label, what, remedy in found]


def _best(values: Floats) -> tuple[int, float] | None:
    """Where the highest figure stands, and what it is; None where there is none."""
    if not np.isfinite(values).any():
        return None
    at = int(np.nanargmax(values))
    return at, float(values[at])


def _windows(values: Floats) -> Floats:
    """All EPOCHS values in a row of (epochs,): (epochs - EPOCHS + 1, EPOCHS)."""
    return sliding_window_view(values, EPOCHS)


def _mean_of_labels(dice: Floats) -> Floats:
    """Mean over the labels that have a Dice, (epochs, labels) -> (epochs,)."""
    return np.nansum(dice, axis=1) / np.isfinite(dice).sum(axis=1)


def _column(values: Sequence[float | None]) -> Floats:
    """Figures of all epochs (epochs,), NaN where there is none."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _dice(rows: Sequence[Dice], labels: int) -> Floats:
    """Dice of all epochs (epochs, labels), NaN where there is none."""
    table = np.full((len(rows), labels), np.nan)
    for line, dice in zip(table, rows, strict=True):
        line[: len(dice)] = _column(dice[:labels])
    return table
