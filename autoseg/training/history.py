"""The history of a fold: one row per epoch, and `history.jsonl`, which holds a row per line.

Figures are rounded when a row is made, and what is not finite becomes None: JSON has no word for it. Of a fold that
holds no case out, a row has neither `validation_loss` nor `pseudo_dice`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import StateError
from autoseg.records import from_plain, to_plain
from autoseg.workspace import write_text

FILE = "history.jsonl"
DECIMALS = {"seconds": 2, "loss": 5, "validation_loss": 5, "training_dice": 4, "pseudo_dice": 4, "progress": 4}

REMEDY = "delete the file: a training that resumes, or is repeated with --restart, writes it again"

Dice = tuple[float | None, ...]  # one per label or region; None where no patch holds it, and nothing was found


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """What one epoch came to."""

    epoch: int  # finished epochs, this one included
    step: int  # optimiser steps
    seconds: float  # since the training began
    loss: float | None  # mean of the epoch's steps; None where none was finite
    training_dice: Dice  # of fixed patches of training cases
    validation_loss: float | None = None  # of fixed patches of held-out cases; None where it is not finite
    pseudo_dice: Dice | None = None  # of the same patches; None where no case is held out
    learning_rate: float
    skipped: int  # steps of this epoch without a finite loss or gradient
    progress: float  # share of the training that is done
    unseen: tuple[int, ...] = ()  # labels, by position, that no training case has

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _rounded(value, DECIMALS.get(name)))

    @property
    def mean_dice(self) -> float | None:
        """Mean pseudo Dice of the labels that have one; None where there is none."""
        known = [dice for dice in self.pseudo_dice or () if dice is not None]
        return sum(known) / len(known) if known else None

    def to_plain(self) -> dict[str, Any]:
        """The row as a line of `history.jsonl` holds it."""
        plain = to_plain(self)
        absent = {"unseen"} if not self.unseen else set()
        if self.pseudo_dice is None:
            absent |= {"validation_loss", "pseudo_dice"}
        return {key: value for key, value in plain.items() if key not in absent}

    @classmethod
    def from_plain(cls, plain: Any, where: str) -> "EpochRow":
        """Read what `to_plain` made. Raises StateError that names a key which is missing, unknown or ill-typed."""
        return from_plain(cls, plain, where)


def write_history(folder: Path, rows: Sequence[EpochRow]) -> None:
    """Write the history of a fold, atomically, in place of an older one. Raises StorageError."""
    write_text(folder / FILE, "".join(json.dumps(row.to_plain()) + "\n" for row in rows))


def read_history(folder: Path) -> list[EpochRow]:
    """The history of a fold; no row where it has not come to the end of an epoch.

    Raises:
        StateError: a line is not a row; the message names file, line and key.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def rows_of(kept: Sequence[Mapping[str, Any]], where: Path) -> list[EpochRow]:
    """The history that a checkpoint kept; `where` is named in errors."""
    return [EpochRow.from_plain(row, f"{where}: history[{i}]") for i, row in enumerate(kept)]


def _row(line: str, where: str) -> EpochRow:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise StateError(f"{where} is not valid JSON: {error}", remedy=REMEDY) from None
    try:
        return EpochRow.from_plain(plain, where)
    except StateError as error:
        raise StateError(error.what, remedy=REMEDY) from None


def _rounded(value: Any, decimals: int | None) -> Any:
    """A figure, or several: rounded, None where it is not finite; what comes of numpy or torch as Python's own."""
    if isinstance(value, (list, tuple)):
        return tuple(_rounded(entry, decimals) for entry in value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(value) if decimals is None else round(float(value), decimals)
    return value
