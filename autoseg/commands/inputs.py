"""What commands start from: the records of a workspace, the plan for a network, and a device."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.errors import StateError, UsageError
from autoseg.messages import ANY_DATASET, suggest
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.planning.planner import with_network
from autoseg.planning.table import glance
from autoseg.records import load, save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    import torch

PLAN_FIRST = "make a plan first: " + suggest("plan", ANY_DATASET)
DEVICES = ("cuda", "cpu", "mps")
Say = Callable[[str], None]


def load_records(workspace: Workspace, network: str | None = None, say: Say = print) -> tuple[Dataset, Plan, Splits]:
    """Dataset, plan (see `open_plan`) and splits of a workspace.

    Raises:
        StateError: nothing has been planned, or the folds name a case that is not in the dataset.
    """
    dataset = load(Dataset, workspace.dataset, remedy=PLAN_FIRST)
    plan = open_plan(workspace, network, say)
    splits = load(Splits, workspace.splits, remedy=PLAN_FIRST)
    known = {case.id for case in dataset.cases}
    for i, split in enumerate(splits.splits):
        for key, ids in (("train", split.train), ("validation", split.validation)):
            if unknown := [case_id for case_id in ids if case_id not in known]:
                raise StateError(
                    f"{workspace.splits.name}.splits[{i}].{key}: expected cases of {workspace.dataset.name}, found "
                    f"{unknown[0]!r}",
                    remedy=f"correct it in {workspace.splits}, or plan again: "
                    + suggest("plan", Path(dataset.root), workspace=workspace.root),
                )
    return dataset, plan, splits


def open_plan(workspace: Workspace, network: str | None = None, say: Say = print) -> Plan:
    """The plan of a workspace for one network: plan.json, or for another network than its own plan-<network>.json.

    That one is made from plan.json where it is missing, or where plan.json has come to see the data in another way
    since: then it is shown at a glance.

    Raises:
        StateError: nothing has been planned.
        UsageError: there is no such network (the message lists those that exist).
    """
    plan = load(Plan, workspace.plan, remedy=PLAN_FIRST)
    if network is None or network == plan.configurations[plan.recommended].network.name:
        return plan
    path = workspace.plan_for(network)
    if path.exists() and _data_side(known := load(Plan, path)) == _data_side(plan):
        return known
    keep_aside(path, time.strftime("%Y%m%d-%H%M%S"))
    made = with_network(plan, load(Fingerprint, workspace.fingerprint, remedy=PLAN_FIRST), network)
    save(path, made)
    say("\n".join([f"plan for {network}, with all its decisions in {path}:", *glance(made)]))
    return made


def keep_aside(path: Path, stamp: str) -> None:
    """Copy a record that is about to be replaced: plan.json to plan.before-STAMP.json."""
    if path.exists():
        shutil.copy2(path, path.with_name(f"{path.stem}.before-{stamp}{path.suffix}"))


def _data_side(plan: Plan) -> tuple:
    """What networks that are trained side by side must have in common."""
    data = {name: (c.data, c.spacing, c.cascade_from) for name, c in plan.configurations.items()}
    rules = (plan.channels, plan.labels, plan.orientation, plan.axis_order, plan.normalization, plan.resampling)
    return (plan.fingerprint, *rules, data)


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Under torchrun, a CUDA device without a number is that of the process's local rank: whoever touches another GPU
    keeps a few hundred megabytes of it. It becomes the current one, for pinned memory and for libraries.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.partition(":")[0] not in DEVICES:
        raise UsageError(f"--device {name!r}: expected one of {', '.join(DEVICES)}", remedy="use --device cpu, or auto")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            rank = int(os.environ.get("LOCAL_RANK", 0))
            number = rank if rank < torch.cuda.device_count() else 0  # Ranks.meet tells of too few GPUs
            device = torch.device("cuda", number if device.index is None else device.index)
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}", remedy="use --device cpu, or auto"
        ) from None
    return device


def gpu_memory_gb() -> float | None:
    """Memory in GB of the first CUDA device, or None without one. torch is asked only where a driver is installed."""
    if shutil.which("nvidia-smi") is None:
        return None
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None
