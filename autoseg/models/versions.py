"""What a checkpoint holds, field by field, and which version of it this autoseg reads.

`checkpoint` writes and reads files of plain data and tensors; here these data get their types. A file of another
version, or with a key too few or too many, is refused, with the command that trains its fold from scratch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autoseg.dataloading.batches import ChainName
from autoseg.errors import StateError
from autoseg.messages import suggest
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.header import CHECKPOINT_VERSION
from autoseg.nn.optimization import Plateau
from autoseg.records import from_plain
from autoseg.rules import hints, shown
from autoseg.workspace import FoldName, fold_of

STATES: dict[str, tuple[type, ...]] = {  # of torch, which checks what is in them when it loads them
    "network": (dict,), "optimizer": (dict,), "scaler": (dict,), "average": (list, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class RuntimeSettings:
    """How a fold is trained on the machine it began on; plain data."""

    dtype: str  # of the convolutions, a key of `autoseg.nn.precision.DTYPES`
    channels_last: bool
    compiled: bool
    chain: ChainName  # what augments, and where: see `autoseg.dataloading.batches`
    forward_seconds: float  # of one sample in this dtype, in the usual layout and not compiled, as in prediction


@dataclass(frozen=True)
class Position:
    """Where a training stands."""

    epoch: int = 0  # finished epochs
    step: int = 0  # steps done, those left out for a loss that was not finite included
    seconds: float = 0.0  # wall time spent so far
    # of the epoch that is not finished
    epoch_steps: int = 0
    epoch_seconds: float = 0.0
    loss_sum: float = 0.0  # of the steps with a finite loss
    skipped: int = 0  # the others
    consecutive_nonfinite: int = 0  # of these, in a row, up to now

    def after(self, loss: float, seconds: float) -> "Position":
        """One step further, so many seconds after the beginning; a loss that is not finite counts as skipped."""
        finite = math.isfinite(loss)
        return replace(
            self,
            step=self.step + 1,
            seconds=seconds,
            epoch_steps=self.epoch_steps + 1,
            epoch_seconds=self.epoch_seconds + seconds - self.seconds,
            loss_sum=self.loss_sum + (loss if finite else 0.0),
            skipped=self.skipped + (not finite),
            consecutive_nonfinite=0 if finite else self.consecutive_nonfinite + 1,
        )

    @property
    def mean_loss(self) -> float | None:
        """Of the finite steps of this epoch; None if there was none."""
        finite = self.epoch_steps - self.skipped
        return self.loss_sum / finite if finite else None

    def next_epoch(self, seconds: float) -> "Position":
        """At the beginning of the epoch that follows."""
        return Position(self.epoch + 1, self.step, seconds, consecutive_nonfinite=self.consecutive_nonfinite)


@dataclass(frozen=True)
class Checkpoint:
    """A fold between two steps: all that is needed to resume it, and the weights it predicts with."""

    # which training it is
    plan: dict[str, Any]  # as plain data: plans are compared as they were written
    configuration: str
    fold: FoldName
    train: tuple[str, ...]  # case ids
    validation: tuple[str, ...]
    contents: dict[str, tuple[str, ...]]  # case id -> digests of what it held, see `same_training.PARTS`
    init_from: str | None  # the model whose weights it began with
    plugins: tuple[dict[str, str], ...]  # name and sha256 of each it was trained with, see `plugins.require_plugins`
    # how far it is
    finished: bool
    position: Position
    history: tuple[dict[str, Any], ...]  # rows of history.jsonl
    # what it needs to take the next step
    runtime: RuntimeSettings
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: list[Tensor] | None  # of the weights, in the order of the network's parameters
    average_steps: int
    plateau: Plateau | None
    cooling_since: float | None  # progress at which the cool-down began
    learning_rate_factor: float
    micro_batches: int
    rollbacks: int
    version: int = CHECKPOINT_VERSION

    def to_plain(self) -> dict[str, Any]:
        """Plain data and tensors, as `checkpoint` writes them; the tensors are shared, not copied."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "train": list(self.train),
            "validation": list(self.validation),
            "contents": {case: list(parts) for case, parts in self.contents.items()},
            "position": asdict(self.position),
            "history": list(self.history),
            "plugins": list(self.plugins),
            "runtime": asdict(self.runtime),
            "plateau": asdict(self.plateau) if self.plateau else None,
        }

    @classmethod
    def from_plain(cls, plain: Any, path: Path) -> "Checkpoint":
        """Read what `to_plain` made, out of a file that is named in errors.

        Raises:
            StateError: it is of another version, or a key is missing, unknown or of another type.
        """
        if not isinstance(plain, Mapping) or "version" not in plain:
            raise StateError(
                f"{path} is not a checkpoint of autoseg: it states no version",
                remedy="name a checkpoint that a training of autoseg has written",
            )
        if plain["version"] != CHECKPOINT_VERSION:
            raise StateError(
                f"{path} is a checkpoint of version {shown(plain['version'])}, this autoseg reads version "
                f"{CHECKPOINT_VERSION}",
                remedy=from_scratch(path),
            )
        record: type = cls
        types = hints(record)
        for what, keys in (("missing", types.keys() - plain.keys()), ("unknown", plain.keys() - types.keys())):
            if keys:
                raise StateError(f"{path}: {what} key {min(map(str, keys))!r}", remedy=from_scratch(path))
        try:
            return cls(**{key: _entry(key, kind, plain[key], f"{path}: {key}") for key, kind in types.items()})
        except StateError as error:
            raise StateError(error.what, remedy=from_scratch(path)) from None


def _entry(key: str, kind: Any, value: Any, where: str) -> Any:
    """One entry of a checkpoint, checked. Raises StateError that names it."""
    if key not in STATES:
        return from_plain(kind, value, where)
    if not isinstance(value, STATES[key]):
        raise StateError(f"{where}: expected a {STATES[key][0].__name__}, found a {type(value).__name__}")
    return value


def read_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read one checkpoint onto the CPU; see `load_checkpoint`, also for `mapped`.

    Raises:
        StateError: the file is missing or damaged, or of another version.
    """
    return Checkpoint.from_plain(load_checkpoint(path, mapped=mapped), path)


def from_scratch(path: Path) -> str:
    """What to do about a checkpoint that cannot be read: the command that trains its fold from scratch."""
    fold, model = fold_of(path.parent), path.parent.parent
    name, _, network = model.name.rpartition("-")
    if fold is None or not name or model.parent.name != "models":
        return "train that model from scratch with this autoseg"
    workspace = model.parent.parent
    command = suggest("train", "-f", fold, "--restart", workspace=workspace, configuration=name, network=network)
    return f"retrain from scratch: {command} (the old folder is renamed)"
