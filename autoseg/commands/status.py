"""Where a workspace stands and what to type next."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.commands.inputs import known_plan
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError
from autoseg.messages import ANY_DATASET, counted, suggest
from autoseg.models.begun import BegunFold, begun_of, standing
from autoseg.planning.plan import Plan
from autoseg.preprocessing.sources import changed_lists, changed_since, plan_again, require_in_place
from autoseg.records import load
from autoseg.training.history import read_history
from autoseg.workspace import FULL, FoldName, Workspace

ALONE = "models without their dataset"


@dataclass(frozen=True)
class FoldStatus:
    """One fold of a model."""

    fold: FoldName
    state: str  # in words
    done: bool  # trained, and its held-out cases segmented
    epoch: int = 0
    step: int = 0
    pseudo_dice: float | None = None  # mean over labels, of the last epoch's held-out patches
    options: tuple[str, ...] = ()  # with which `autoseg train` takes it up


@dataclass(frozen=True)
class ModelStatus:
    """One configuration with one network."""

    configuration: str
    network: str
    recommended: bool
    previous: str | None  # the configuration that a cascade begins with
    folds: tuple[FoldStatus, ...]

    @property
    def undone(self) -> list[FoldStatus]:
        """The partitions that are not done."""
        return [fold for fold in self.folds if not fold.done and fold.fold != FULL]

    def lines(self) -> list[str]:
        """Its name, and a line for each fold."""
        after = f", after {self.previous}" if self.previous else ""
        mark = " (recommended)" if self.recommended else ""
        names = {fold.fold: FULL if fold.fold == FULL else f"fold {fold.fold}" for fold in self.folds}
        return [
            f"{self.configuration}-{self.network}{after}{mark}",
            *(f"  {names[fold.fold]}: {fold.state}" for fold in self.folds),
        ]


@dataclass(frozen=True)
class WorkspaceStatus:
    """A workspace, fold by fold, and the next command."""

    workspace: Path
    next: str
    dataset: str | None = None  # None: nothing is planned yet
    cases: int = 0
    folds: int = 0  # 0: the models came without the cases they were trained on
    device: str | None = None
    remarks: tuple[str, ...] = ()  # where the dataset is not as it was planned
    models: tuple[ModelStatus, ...] = ()

    def describe(self) -> str:
        """As a few lines to read."""
        if self.dataset is None:
            return f"{self.workspace}: nothing planned yet\nnext: {self.next}"
        sizes = f"{counted(self.cases, 'case')}, {counted(self.folds, 'fold')}"
        what = f"{self.dataset}, {sizes}, planned for {self.device}" if self.folds else f"{self.dataset}, {ALONE}"
        models = [line for model in self.models for line in model.lines()]
        return "\n".join([f"{self.workspace}: {what}", *self.remarks, *models, f"next: {self.next}"])


def status(workspace: Workspace) -> str:
    """What exists in a workspace, fold by fold, and the next command, as text."""
    return status_of(workspace).describe()


def status_of(workspace: Workspace) -> WorkspaceStatus:
    """What exists in a workspace, fold by fold, and the next command."""
    if not workspace.plan.exists():
        return WorkspaceStatus(workspace.root, suggest("plan", ANY_DATASET, workspace=workspace.root))
    if not workspace.splits.exists() and workspace.models():
        return _without_dataset(workspace)
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    remarks, replan = _dataset_status(workspace)
    planned = [(name, configuration.network.name) for name, configuration in plan.configurations.items()]
    models = {pair: _model_status(workspace, plan, *pair, splits) for pair in planned}
    for name, network in workspace.models():
        if (name, network) not in models:
            known = _model_status(workspace, _plan_for(workspace, plan, network), name, network, splits)
            models[name, network] = replace(known, recommended=False, previous=None)
    network = plan.configurations[plan.recommended].network.name
    return WorkspaceStatus(
        workspace=workspace.root,
        next=_next(workspace, plan.recommended, network, models[plan.recommended, network].undone, replan),
        dataset=plan.dataset,
        cases=len(splits.splits[0].train) + len(splits.splits[0].validation),
        folds=len(splits.splits),
        device=plan.device,
        remarks=tuple(remarks),
        models=tuple(models.values()),
    )


def _without_dataset(workspace: Workspace) -> WorkspaceStatus:
    """Models that came without the cases they were trained on, such as imported ones: they can only predict."""
    plan = load(Plan, workspace.plan)
    models = []
    for name, network in workspace.models():
        found, damaged = begun_of(workspace, name, network)
        folds = [
            *(FoldStatus(i, f"{one.epoch} epochs", one.finished, one.epoch, one.step) for i, one in found.items()),
            *(FoldStatus(i, why, False) for i, why in damaged.items()),
        ]
        previous = plan.configurations[name].cascade_from if name in plan.configurations else None
        models.append(ModelStatus(name, network, name == plan.recommended, previous, tuple(folds)))
    command = suggest("predict", "-i", "IMAGES", "-o", "SEGMENTATIONS", workspace=workspace.root)
    return WorkspaceStatus(workspace.root, command, plan.dataset, models=tuple(models))


def next_command(workspace: Workspace) -> str:
    """The command that is due in a workspace that is planned."""
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    network = plan.configurations[plan.recommended].network.name
    undone = _model_status(workspace, plan, plan.recommended, network, splits).undone
    return _next(workspace, plan.recommended, network, undone, _dataset_status(workspace)[1])


def _next(workspace: Workspace, name: str, network: str, todo: Sequence[FoldStatus], replan: str) -> str:
    """The command that brings the recommended model further.

    Args:
        replan: the command that is due before anything is trained or scored, because the dataset changed; or "".
    """
    crossval = workspace.crossval(name, network)
    to_score = not crossval.exists() or _scored_before(workspace, crossval)
    if replan and (todo or to_score):
        return replan
    if todo:
        folds = ",".join(str(one.fold) for one in todo if one.options == todo[0].options)
        return suggest("train", "-f", folds, *todo[0].options, workspace=workspace.root)
    if to_score:
        return suggest("evaluate", workspace=workspace.root)
    return suggest("predict", "-i", "IMAGES", "-o", "SEGMENTATIONS", workspace=workspace.root)


def _dataset_status(workspace: Workspace) -> tuple[list[str], str]:
    """A line where the dataset is not as it was planned, and the command that plans it again."""
    if not workspace.dataset.exists():
        return [], ""
    dataset = load(Dataset, workspace.dataset)
    try:
        require_in_place(workspace, dataset, dataset.cases)
    except StateError as error:
        moved = not Path(dataset.root).exists()
        return [f"{error.what}; {error.remedy}"], plan_again(workspace, "NEWPLACE" if moved else None)
    changed = [*changed_lists(workspace), *changed_since(workspace, dataset.cases)]
    if not changed:
        return [], ""
    others = f" and {len(changed) - 1} other files" if len(changed) > 1 else ""
    again = plan_again(workspace)
    return [f"changed since it was planned: {changed[0]}{others}; plan again: {again}"], again


def _scored_before(workspace: Workspace, crossval: Path) -> bool:
    """Whether references or segmentations are younger than the scores."""
    dataset = load(Dataset, workspace.dataset) if workspace.dataset.exists() else None
    references = [case.label for case in dataset.cases if case.label] if dataset else []
    paths = [*map(Path, references), *crossval.parent.glob("fold_*[0-9]/validation/*")]
    scored = crossval.stat().st_mtime
    return any(_last_change(path) > scored for path in paths if path.name[0] != "." and path.exists())


def _last_change(path: Path) -> float:
    """When a file was written or put in its place."""
    stat = path.stat()
    return stat.st_mtime if sys.platform == "win32" else max(stat.st_mtime, stat.st_ctime)


def _plan_for(workspace: Workspace, plan: Plan, network: str) -> Plan:
    path = workspace.plan_for(network)
    return known_plan(path) or plan


def _model_status(workspace: Workspace, plan: Plan, name: str, network: str, splits: Splits) -> ModelStatus:
    """Each fold of a model, and the model of all cases where it was begun."""
    folds = []
    begun, damaged = begun_of(workspace, name, network)
    for split in splits.splits:
        found = _fold_status(workspace.fold(name, network, split.fold), split)
        if split.fold in damaged:
            found = replace(found, state=f"{found.state}; {damaged[split.fold]}", done=False)
        elif split.fold in begun:
            found = _begun_status(workspace, plan, name, split, begun[split.fold], found)
        folds.append(found)
    if FULL in damaged:
        folds.append(FoldStatus(FULL, f"{damaged[FULL]}; --restart retrains it from scratch", False))
    elif FULL in begun:
        folds.append(_full_status(workspace, plan, name, begun[FULL], splits))
    previous = plan.configurations[name].cascade_from if name in plan.configurations else None
    return ModelStatus(name, network, name == plan.recommended, previous, tuple(folds))


def _full_status(workspace: Workspace, plan: Plan, name: str, begun: BegunFold, splits: Splits) -> FoldStatus:
    """The model of all cases: how far it is, and what the current plan and cases mean for it."""
    where = "trained on all cases, none is held out" if begun.finished else "not trained to the end"
    text = f"epoch {begun.epoch}, step {begun.step}; {where}"
    known = FoldStatus(FULL, text, begun.finished, begun.epoch, begun.step)
    if name not in plan.configurations:
        return known
    everything = tuple({case: None for split in splits.splits for case in (*split.train, *split.validation)})
    if workspace.dataset.exists():
        everything = tuple(c.id for c in load(Dataset, workspace.dataset).cases if c.id not in splits.test)
    found = standing(begun, plan, name, Split(FULL, everything, ()), workspace)
    if found.refused:
        return replace(
            known, state=f"{text}; {found.refused}; -f full --restart retrains it from scratch", done=False
        )  # fmt: skip
    return replace(known, state=f"{text}; {found.remark}") if found.remark else known


def _begun_status(
    workspace: Workspace, plan: Plan, name: str, split: Split, begun: BegunFold, known: FoldStatus
) -> FoldStatus:
    """What a checkpoint adds to what is known of a fold."""
    if name not in plan.configurations:
        return known
    found = standing(begun, plan, name, split, workspace)
    if found.refused:
        state = f"{known.state}; {found.refused}; --restart retrains it from scratch"
        return replace(known, state=state, done=False, options=("--restart",))
    if not begun.finished:
        state = f"{known.state.partition(';')[0]}; not trained to the end"
        return replace(known, state=state, done=False, options=found.options)
    state = f"{known.state}; {found.remark}" if found.remark else known.state
    return replace(known, state=state, options=found.options)


def _fold_status(folder: Path, split: Split) -> FoldStatus:
    """How far a fold is by its history and its segmentations; a history may be damaged."""
    known = FoldStatus(split.fold, "", False)
    try:
        history = read_history(folder)
    except StateError as error:
        text = f"{error.what} ({error.remedy})"
    else:
        if not history:
            started = (folder / "last.pt").exists()
            return replace(known, state="started, first epoch not complete" if started else "not trained")
        last = history[-1]
        text = f"epoch {last.epoch}, step {last.step}, pseudo Dice {last.mean_dice or 0:.3f}"
        known = replace(known, epoch=last.epoch, step=last.step, pseudo_dice=last.mean_dice)
    predicted = sum(path.name[0] != "." for path in (folder / "validation").glob("*"))
    done = predicted >= len(split.validation)
    more = "trained and validated" if done else f"{predicted} of {len(split.validation)} validation cases predicted"
    return replace(known, state=f"{text}; {more}", done=done)
