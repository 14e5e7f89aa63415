"""Where a workspace stands and what to type next; versions and hardware."""

import importlib.metadata
import json
import platform
from pathlib import Path

import psutil

from autoseg import __version__
from autoseg.data.splits import Splits
from autoseg.plan import Plan
from autoseg.processes import available_cores
from autoseg.records import load
from autoseg.suggestions import ANY_DATASET, suggest
from autoseg.workspace import Workspace

LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "scikit-image", "batchgenerators", "tqdm", "matplotlib")


def status(workspace: Workspace) -> str:
    """What exists in a workspace, fold by fold, and the next command."""
    if not workspace.plan.exists():
        return f"{workspace.root}: nothing planned yet\nnext: " + suggest("plan", ANY_DATASET, workspace=workspace.root)
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    cases = len(splits.splits[0].train) + len(splits.splits[0].validation)
    lines = [f"{workspace.root}: {plan.dataset}, {cases} cases, {len(splits.splits)} folds, planned for {plan.device}"]
    untrained: dict[str, list[int]] = {}
    for name, configuration in plan.configurations.items():
        mark = " (recommended)" if name == plan.recommended else ""
        after = f", after {configuration.cascade_from}" if configuration.cascade_from else ""
        lines.append(f"{name}-{configuration.network.name}{after}{mark}")
        told, untrained[name] = _model_status(workspace, name, configuration.network.name, splits)
        lines += told
    planned = [(name, configuration.network.name) for name, configuration in plan.configurations.items()]
    for name, network in workspace.models():
        if (name, network) not in planned:
            lines += [f"{name}-{network}", *_model_status(workspace, name, network, splits)[0]]
    todo = untrained[plan.recommended]
    if todo:
        command = suggest("train", "-f", ",".join(map(str, todo)), workspace=workspace.root)
    elif not workspace.crossval(plan.recommended, plan.configurations[plan.recommended].network.name).exists():
        command = suggest("evaluate", workspace=workspace.root)
    else:
        command = suggest("predict", "-i", "IMAGES", "-o", "SEGMENTATIONS", workspace=workspace.root)
    return "\n".join([*lines, f"next: {command}"])


def _model_status(workspace: Workspace, name: str, network: str, splits: Splits) -> tuple[list[str], list[int]]:
    """A line for each fold of a model, and the folds that are not done."""
    lines, undone = [], []
    for split in splits.splits:
        text, done = _fold_status(workspace.fold(name, network, split.fold), len(split.validation))
        lines.append(f"  fold {split.fold}: {text}")
        if not done:
            undone.append(split.fold)
    return lines, undone


def _fold_status(folder: Path, validation_cases: int) -> tuple[str, bool]:
    history = folder / "history.jsonl"
    if not history.exists():
        return "not trained", False
    last = json.loads(history.read_text(encoding="utf-8").splitlines()[-1])
    dice = [d for d in last["pseudo_dice"] if d is not None]
    text = f"epoch {last['epoch']}, step {last['step']}, pseudo Dice {sum(dice) / max(len(dice), 1):.3f}"
    predicted = sum(path.name[0] != "." for path in (folder / "validation").glob("*"))
    if predicted < validation_cases:
        return f"{text}; {predicted} of {validation_cases} validation cases predicted", False
    return f"{text}; trained and validated", True


def environment() -> str:
    """Versions of autoseg and what it stands on, cores, memory and devices."""
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
