"""What commands start from: the records of a workspace, and the plan for a network."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.errors import StateError
from autoseg.lines import LOG
from autoseg.messages import ANY_DATASET, suggest
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.planning.planner import with_network
from autoseg.planning.table import glance
from autoseg.records import OtherVersion, load, save
from autoseg.workspace import Workspace

PLAN_FIRST = "make a plan first: " + suggest("plan", ANY_DATASET)


def load_records(workspace: Workspace, network: str | None = None) -> tuple[Dataset, Plan, Splits]:
    """Dataset, plan (see `open_plan`) and splits of a workspace.

    Raises:
        StateError: nothing has been planned, or the folds name a case that is not in the dataset.
    """
    dataset = load(Dataset, workspace.dataset, remedy=PLAN_FIRST)
    plan = open_plan(workspace, network)
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


def open_plan(workspace: Workspace, network: str | None = None) -> Plan:
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
    known = known_plan(path)
    if known and _data_side(known) == _data_side(plan):
        return known
    keep_aside(path, time.strftime("%Y%m%d-%H%M%S"))
    made = with_network(plan, load(Fingerprint, workspace.fingerprint, remedy=PLAN_FIRST), network)
    save(path, made)
    LOG.info("\n".join([f"plan for {network}, with all its decisions in {path}:", *glance(made)]))
    return made


def known_plan(path: Path) -> Plan | None:
    """The plan in a file; None where there is none of this version, so that it is made again."""
    with suppress(OtherVersion):
        return load(Plan, path) if path.exists() else None
    return None


def keep_aside(path: Path, stamp: str) -> None:
    """Copy a record that is about to be replaced: plan.json to plan.before-STAMP.json."""
    if path.exists():
        shutil.copy2(path, path.with_name(f"{path.stem}.before-{stamp}{path.suffix}"))


def _data_side(plan: Plan) -> tuple:
    """What networks that are trained side by side must have in common."""
    data = {name: (c.data, c.spacing, c.cascade_from) for name, c in plan.configurations.items() if not c.prompts}
    rules = (plan.channels, plan.labels, plan.orientation, plan.axis_order, plan.normalization, plan.resampling)
    return (plan.fingerprint, *rules, data)
