"""Where a result comes from: versions, digests, commands, seeds, hardware and hours."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.messages import counted, duration, suggest, typed_duration
from autoseg.report.gathered import Gathered, GatheredFold
from autoseg.training.machines import Machine
from autoseg.workspace import sha256

SHORT = 16  # characters of a digest that are shown; the title attribute has all
CHECKSUMS = "checkpoints.sha256"


@dataclass(frozen=True)
class Digest:
    """The digest of one thing."""

    what: str
    value: str

    @property
    def short(self) -> str:
        return self.value[:SHORT]


@dataclass(frozen=True)
class TrainingTime:
    """How long one fold was trained."""

    fold: str
    epochs: int
    steps: int
    seconds: float
    how: str  # precision and what else was chosen at start-up


@dataclass(frozen=True)
class UsedMachine:
    """A machine, and what was done on it."""

    of: str
    machine: Machine


def machines(of: Gathered, here: Machine | None) -> list[UsedMachine]:
    """Where the folds were trained, one entry for all that were on equal machines.

    Args:
        here: the machine that writes the page, stated where no fold recorded its own.
    """
    found: list[tuple[Machine, list[str]]] = []
    for fold in of.folds:
        for one in fold.sessions:
            steps = f" after step {one.after}" if one.after else ""
            for machine, folds in found:
                if machine == one.machine:
                    folds.append(f"{fold.fold}{steps}")
                    break
            else:
                found.append((one.machine, [f"{fold.fold}{steps}"]))
    used = [UsedMachine(f"Of the training of fold {', '.join(folds)}.", machine) for machine, folds in found]
    if not used and here is not None:
        used = [UsedMachine("Of the machine that wrote this page; no training recorded its own.", here)]
    return used


def digests(of: Gathered) -> list[Digest]:
    """Of the data, the plan, the folds and the weights, as far as they are known."""
    found = []
    if of.sources is not None:
        every = hashlib.sha256("\n".join(sorted(f.sha256 for f in of.sources.files.values())).encode()).hexdigest()
        found.append(Digest(f"{counted(len(of.sources.files), 'file')} of images and labels", every))
    if of.fingerprint is not None:
        found.append(Digest("fingerprint of the data", of.fingerprint.hash))
    found += [Digest(path.name, sha256(path)) for path in (of.workspace.plan, of.workspace.splits) if path.exists()]
    for fold in of.folds:
        path = fold.folder / CHECKSUMS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = [line.split() for line in lines if len(line.split()) == 2]
        found += [Digest(f"weights of fold {fold.fold}", value) for value, name in known if name == "last.pt"]
    return found


def commands(of: Gathered) -> list[str]:
    """What repeats the workspace, made from its records."""
    where = of.workspace.root
    found = []
    if of.dataset is not None:
        given = of.sources.planned_with if of.sources else ()
        found.append(suggest("plan", Path(of.dataset.root), *given, workspace=where))
    lengths: dict[tuple[str, ...], list[str]] = {}
    for fold in of.folds:
        lengths.setdefault(_length(fold), []).append(str(fold.fold))
    for length, folds in lengths.items():
        found.append(of.command("train", "-f", ",".join(folds), *length))
    if of.scores is not None:
        found.append(of.command("evaluate"))
    return [*found, of.command("report")]


def _length(fold: GatheredFold) -> tuple[str, ...]:
    """The option that sets the length of a fold's training."""
    training: dict[str, Any] = fold.begun.basis.plan.get("training", {}) if fold.begun else {}
    if training.get("time_budget_seconds"):
        return ("--time-budget", typed_duration(training["time_budget_seconds"]))
    if training.get("steps"):
        return ("--steps", str(training["steps"]))
    return ("--epochs", str(training["epochs"])) if training.get("epochs") else ()


def seeds(of: Gathered) -> list[tuple[str, str]]:
    """What was seeded, and with what."""
    found = [("training: weights, order of cases, augmentation", str(of.plan.training.seed))]
    return [*found, ("division into folds", str(of.splits.seed))] if of.splits else found


def times(of: Gathered) -> list[TrainingTime]:
    """Epochs, steps and time of each fold."""
    found = []
    for fold in of.folds:
        if fold.history:
            last = fold.history[-1]
            found.append(TrainingTime(str(fold.fold), last.epoch, last.step, last.seconds, _chosen(fold)))
    return found


def total_time(folds: Sequence[TrainingTime]) -> str:
    """Sum over the folds, in words."""
    return f"{duration(sum(fold.seconds for fold in folds))} of training in {counted(len(folds), 'fold')}"


def _chosen(fold: GatheredFold) -> str:
    """What a training chose at start-up, as its log states it: the device and its precision."""
    path = fold.folder / "log.txt"
    if not path.exists():
        return ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if "forward and backward" in line or "not autotuned" in line:
            return line.partition("  ")[2]
    return ""


def version_line() -> str:
    return f"autoseg {__version__}"
