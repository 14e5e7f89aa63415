"""Where a workspace stands and what to type next; versions and hardware."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoseg import __version__
from autoseg.commands.inputs import known_plan
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError
from autoseg.messages import ANY_DATASET, counted, suggest
from autoseg.models.begun import BegunFold, begun_of, standing
from autoseg.planning.plan import Plan
from autoseg.preprocessing.sources import changed_lists, changed_since, plan_again, require_in_place
from autoseg.processes import available_cores
from autoseg.records import load
from autoseg.training.history import read_history
from autoseg.workspace import FULL, FoldName, Workspace

LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "scikit-image", "batchgenerators", "tqdm", "matplotlib")


def status(workspace: Workspace) -> str:
    """What exists in a workspace, fold by fold, and the next command."""
    if not workspace.plan.exists():
        return f"{workspace.root}: nothing planned yet\nnext: " + suggest("plan", ANY_DATASET, workspace=workspace.root)
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    cases = len(splits.splits[0].train) + len(splits.splits[0].validation)
    sizes = f"{counted(cases, 'case')}, {counted(len(splits.splits), 'fold')}"
    lines = [f"{workspace.root}: {plan.dataset}, {sizes}, planned for {plan.device}"]
    told, replan = _dataset_status(workspace)
    lines += told
    todo: dict[str, list[Todo]] = {}
    for name, configuration in plan.configurations.items():
        mark = " (recommended)" if name == plan.recommended else ""
        after = f", after {configuration.cascade_from}" if configuration.cascade_from else ""
        lines.append(f"{name}-{configuration.network.name}{after}{mark}")
        found, todo[name] = _model_status(workspace, plan, name, configuration.network.name, splits)
        lines += found
    planned = [(name, configuration.network.name) for name, configuration in plan.configurations.items()]
    for name, network in workspace.models():
        if (name, network) not in planned:
            lines.append(f"{name}-{network}")
            lines += _model_status(workspace, _plan_for(workspace, plan, network), name, network, splits)[0]
    network = plan.configurations[plan.recommended].network.name
    command = _next(workspace, plan.recommended, network, todo[plan.recommended], replan)
    return "\n".join([*lines, f"next: {command}"])


def next_command(workspace: Workspace) -> str:
    """The command that is due in a workspace that is planned."""
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    network = plan.configurations[plan.recommended].network.name
    todo = _model_status(workspace, plan, plan.recommended, network, splits)[1]
    return _next(workspace, plan.recommended, network, todo, _dataset_status(workspace)[1])


@dataclass(frozen=True)
class Todo:
    """A fold that is not done, and the options that `autoseg train` takes it up with."""

    fold: FoldName
    options: tuple[str, ...] = ()


def _next(workspace: Workspace, name: str, network: str, todo: Sequence[Todo], replan: str) -> str:
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


def _model_status(
    workspace: Workspace, plan: Plan, name: str, network: str, splits: Splits
) -> tuple[list[str], list[Todo]]:
    """A line for each fold of a model, and the folds that are not done."""
    lines, undone = [], []
    begun, damaged = begun_of(workspace, name, network)
    for split in splits.splits:
        folder = workspace.fold(name, network, split.fold)
        text, done = _fold_status(folder, len(split.validation))
        options: tuple[str, ...] = ()
        if split.fold in damaged:
            text, done = f"{text}; {damaged[split.fold]}", False
        elif split.fold in begun:
            text, done, options = _begun_status(workspace, plan, name, split, begun[split.fold], text, done)
        lines.append(f"  fold {split.fold}: {text}")
        if not done:
            undone.append(Todo(split.fold, options))
    if FULL in damaged:
        lines.append(f"  full: {damaged[FULL]}; --restart retrains it from scratch")
    elif FULL in begun:
        lines.append(_full_status(workspace, plan, name, begun[FULL], splits))
    return lines, undone


def _full_status(workspace: Workspace, plan: Plan, name: str, begun: BegunFold, splits: Splits) -> str:
    """The line of the model of all cases: how far it is, and what the current plan and cases mean for it."""
    where = "trained on all cases, none is held out" if begun.finished else "not trained to the end"
    text = f"  {FULL}: epoch {begun.epoch}, step {begun.step}; {where}"
    if name not in plan.configurations:
        return text
    everything = tuple({case: None for split in splits.splits for case in (*split.train, *split.validation)})
    if workspace.dataset.exists():
        everything = tuple(c.id for c in load(Dataset, workspace.dataset).cases if c.id not in splits.test)
    found = standing(begun, plan, name, Split(FULL, everything, ()), workspace)
    if found.refused:
        return f"{text}; {found.refused}; -f full --restart retrains it from scratch"
    return f"{text}; {found.remark}" if found.remark else text


def _begun_status(
    workspace: Workspace, plan: Plan, name: str, split: Split, begun: BegunFold, text: str, done: bool
) -> tuple[str, bool, tuple[str, ...]]:
    """What a checkpoint adds to the line of a fold, whether it is done, and the options to take it up with."""
    if name not in plan.configurations:
        return text, done, ()
    found = standing(begun, plan, name, split, workspace)
    if found.refused:
        return f"{text}; {found.refused}; --restart retrains it from scratch", False, ("--restart",)
    if not begun.finished:
        return f"{text.partition(';')[0]}; not trained to the end", False, found.options
    return f"{text}; {found.remark}" if found.remark else text, done, found.options


def _fold_status(folder: Path, validation_cases: int) -> tuple[str, bool]:
    """How far a fold is by its history and its files, and whether it is done; a history may be damaged."""
    try:
        history = read_history(folder)
    except StateError as error:
        text = f"{error.what} ({error.remedy})"
    else:
        if not history:
            return ("started, first epoch not complete" if (folder / "last.pt").exists() else "not trained"), False
        last = history[-1]
        text = f"epoch {last.epoch}, step {last.step}, pseudo Dice {last.mean_dice or 0:.3f}"
    predicted = sum(path.name[0] != "." for path in (folder / "validation").glob("*"))
    if predicted < validation_cases:
        return f"{text}; {predicted} of {validation_cases} validation cases predicted", False
    return f"{text}; trained and validated", True


def environment() -> str:
    """Versions of autoseg and its libraries, cores, memory and devices."""
    import torch

    lines = [f"autoseg {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    for library in LIBRARIES:
        try:
            lines.append(f"  {library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"  {library} is not installed")
    memory = psutil.virtual_memory()
    lines.append(f"{available_cores()} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if not torch.cuda.is_available():
        lines.append("no CUDA device")
    return "\n".join(lines)
