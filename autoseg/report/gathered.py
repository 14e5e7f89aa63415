"""What a report is made of: the records of a workspace, as far as they exist.

A workspace is reported at any time: planned only, while a fold trains, evaluated in part. So every record may be
missing, and one that cannot be read becomes a line in `problems` instead of an error.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.splits import Splits
from autoseg.errors import AutosegError, StateError
from autoseg.evaluation.crossval import CrossValidation
from autoseg.messages import ANY_DATASET, suggest
from autoseg.models.begun import BegunFold, read_begun
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.preprocessing.sources import Sources
from autoseg.records import load
from autoseg.training.history import EpochRow, read_history
from autoseg.training.machines import Session, sessions_of
from autoseg.workspace import FoldName, Workspace, fold_of, fold_order

T = TypeVar("T")

EXTRAS = ("leakage.json", "learning_curve.json")  # of the workspace: records of other commands, shown where they exist
MODEL_EXTRAS = ("decision.json", "speeds.json")  # the same, of the model's folder
LIVE_SECONDS = 600.0  # a fold that is not finished and wrote within so long is being trained


@dataclass(frozen=True)
class GatheredFold:
    """One fold of the reported model."""

    fold: FoldName
    folder: Path
    history: tuple[EpochRow, ...]
    begun: BegunFold | None  # None: no checkpoint that can be read
    segmented: int  # held-out cases with a segmentation
    live: bool  # it seems to be training now
    sessions: tuple[Session, ...] = ()  # where it was trained; none: not recorded

    @property
    def finished(self) -> bool:
        return self.begun is not None and self.begun.finished


@dataclass(frozen=True)
class Gathered:
    """The records of a workspace, and of one of its models."""

    workspace: Workspace
    configuration: str
    network: str
    plan: Plan
    dataset: Dataset | None
    fingerprint: Fingerprint | None
    splits: Splits | None
    sources: Sources | None
    folds: tuple[GatheredFold, ...]  # begun ones, by number
    scores: CrossValidation | None
    others: dict[str, CrossValidation]  # models evaluated beside this one -> their scores
    extras: dict[str, Any] = field(default_factory=dict)  # file name -> plain data
    problems: tuple[str, ...] = ()  # records that cannot be read
    made: float = 0.0  # seconds since 1970

    @property
    def live(self) -> bool:
        """Whether a fold of this model seems to be training now."""
        return any(fold.live for fold in self.folds)

    @property
    def cases(self) -> dict[str, Case]:
        """Case id -> its files."""
        return {case.id: case for case in self.dataset.cases} if self.dataset else {}

    @property
    def patients(self) -> dict[str, str]:
        """Case id -> patient, where a dataset names them; otherwise each case is its own."""
        return {case.id: case.patient for case in self.dataset.cases} if self.dataset else {}

    @property
    def planned_folds(self) -> int:
        return len(self.splits.splits) if self.splits else 0

    def command(self, name: str, *arguments: object, model: bool = True) -> str:
        """A command about this workspace, and about the reported model where that is not the recommended one."""
        default = self.configuration == self.plan.recommended and self.network == _network_of(self.plan)
        chosen = {} if default or not model else {"configuration": self.configuration, "network": self.network}
        return suggest(name, *arguments, workspace=self.workspace.root, **chosen)


def gather(
    workspace: Workspace, configuration: str | None = None, network: str | None = None, *, live: bool | None = None
) -> Gathered:
    """Read what exists of a workspace.

    Args:
        configuration, network: of the model to report; None: the recommended one, or where that was never trained, the
            first that was.
        live: whether a training is running; None: judged by when its folds last wrote.

    Raises:
        StateError: nothing has been planned, or there is no such model.
    """
    remedy = "make a plan first: " + suggest("plan", ANY_DATASET, workspace=workspace.root)
    plan = load(Plan, workspace.plan, remedy=remedy)
    name, chosen = _model(workspace, plan, configuration, network)
    if network is not None and workspace.plan_for(network).exists():
        plan = load(Plan, workspace.plan_for(network))
    problems: list[str] = []
    read = _Reader(problems)
    crossval = workspace.crossval(name, chosen)
    extras = {path.name: workspace.root / path.name for path in map(Path, EXTRAS)}
    extras |= {file: workspace.model(name, chosen) / file for file in MODEL_EXTRAS}
    plain = {file: read.one(path, _plain) for file, path in extras.items()}
    others = {
        f"{one}, {other}": read.record(CrossValidation, workspace.crossval(one, other))
        for one, other in workspace.models()
        if (one, other) != (name, chosen)
    }
    return Gathered(
        workspace=workspace,
        configuration=name,
        network=chosen,
        plan=plan,
        dataset=read.record(Dataset, workspace.dataset),
        fingerprint=read.record(Fingerprint, workspace.fingerprint),
        splits=read.record(Splits, workspace.splits),
        sources=read.record(Sources, workspace.sources),
        folds=tuple(_folds(workspace.model(name, chosen), read, live)),
        scores=read.record(CrossValidation, crossval),
        others={model: scores for model, scores in others.items() if scores is not None},
        extras={file: found for file, found in plain.items() if found is not None},
        problems=tuple(problems),
        made=time.time(),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads records; what cannot be read becomes a problem."""

    problems: list[str]

    def one(self, path: Path, read: Callable[[Path], T]) -> T | None:
        if not path.exists():
            return None
        try:
            return read(path)
        except (AutosegError, OSError, ValueError, RecursionError) as error:
            what = error.what if isinstance(error, AutosegError) else f"{path}: {error}"
            self.problems.append(f"cannot be read, and is left out: {what}")
            return None

    def record(self, kind: type[T], path: Path) -> T | None:
        return self.one(path, lambda file: load(kind, file))


def _plain(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _network_of(plan: Plan) -> str:
    return plan.configurations[plan.recommended].network.name


def _model(workspace: Workspace, plan: Plan, configuration: str | None, network: str | None) -> tuple[str, str]:
    """Configuration and network to report. Raises StateError where there is no such configuration."""
    name = configuration or plan.recommended
    if name not in plan.configurations and (name, network) not in workspace.models():
        known = ", ".join(plan.configurations)
        raise StateError(f"there is no configuration {name!r}", remedy=f"choose one of {known}")
    own = plan.configurations[name].network.name if name in plan.configurations else ""
    chosen = (name, network or own)
    begun = workspace.models()
    if chosen in begun or (configuration, network) != (None, None) or not begun:
        return chosen
    return begun[0]


def _folds(model: Path, read: _Reader, live: bool | None) -> list[GatheredFold]:
    folders = {fold_of(path): path for path in model.glob("fold_*") if path.is_dir()}
    found = []
    for fold in sorted((name for name in folders if name is not None), key=fold_order):
        folder = folders[fold]
        history = read.one(folder, read_history)
        begun = read.one(folder, read_begun)
        if not history and begun is None and not (folder / "log.txt").exists():
            continue
        segmented = sum(path.name[0] != "." for path in (folder / "validation").glob("*"))
        finished = begun is not None and begun.finished
        recent = not finished and _seconds_since(folder) < LIVE_SECONDS
        sessions = read.one(folder, sessions_of) or ()
        trains = recent and live is not False
        found.append(GatheredFold(fold, folder, tuple(history or ()), begun, segmented, trains, sessions))
    return found


def _seconds_since(folder: Path) -> float:
    """Since a fold last wrote its log or history."""
    times = [path.stat().st_mtime for name in ("log.txt", "history.jsonl") if (path := folder / name).exists()]
    return time.time() - max(times) if times else float("inf")
