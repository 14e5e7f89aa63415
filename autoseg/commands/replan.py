"""Planning again where folds are trained: nothing of theirs is lost, and their state is reported."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.commands.inputs import keep_aside, open_plan
from autoseg.datasets.dataset import Dataset, IntakeOptions
from autoseg.datasets.splits import Splits
from autoseg.errors import StateError, UsageError
from autoseg.imaging.normalize import STATISTICS, uses_statistics
from autoseg.lines import LOG, shown_by
from autoseg.messages import suggest
from autoseg.models.begun import begun_of, split_of, standing
from autoseg.planning.plan import ChannelNormalization, Plan
from autoseg.planning.prompted import kept_prompts
from autoseg.records import load
from autoseg.workspace import FoldName, Workspace

STATISTICS_TOLERANCE = 0.02  # of the standard deviation


def require_own_folder(workspace: Workspace, root: Path) -> None:
    """Refuse to write a workspace's dataset.json over that of a dataset.

    Raises:
        UsageError: the workspace is the dataset's folder, or has a dataset.json that autoseg did not write.
    """
    remedy = "choose another folder: " + suggest("plan", root, workspace=Path("OTHER_WORKSPACE"))
    if workspace.root.resolve() == root.expanduser().resolve():
        raise UsageError(f"-w {workspace.root} is the dataset itself: their files would be mixed", remedy=remedy)
    with suppress(OSError, ValueError, RecursionError):
        written = json.loads(workspace.dataset.read_text(encoding="utf-8"))
        if isinstance(written, dict) and "root" not in written and written:
            what = f"{workspace.dataset} was not written by autoseg and would be overwritten"
            raise UsageError(what, remedy=remedy)


def require_related(workspace: Workspace, dataset: Dataset) -> None:
    """Refuse to plan another dataset over the trained folds of one.

    Raises:
        StateError: folds were begun, and none of their cases is in the dataset.
    """
    here = {case.id for case in dataset.cases}
    for name, network in workspace.models():
        for begun in begun_of(workspace, name, network)[0].values():
            there = {*begun.basis.train, *begun.basis.validation}
            if there and not there & here:
                raise StateError(
                    f"{workspace.root} holds models of another dataset, {begun.basis.plan['dataset']}: none of the "
                    f"{len(there)} cases that {begun.folder} was trained with is in {dataset.root}",
                    remedy="plan into another workspace: "
                    + suggest("plan", Path(dataset.root), workspace=Path("OTHER_WORKSPACE")),
                )


class Replanning:
    """What is in a workspace before it is planned again.

    Args:
        paths: records that planning replaces; they are read at once.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.paths = (workspace.plan, workspace.splits) if workspace.models() else ()
        self.stamp = time.strftime("%Y%m%d-%H%M%S")

    def keep(self, path: Path) -> None:
        """Keep a copy of a record that is about to be replaced, under another name."""
        if path in self.paths:
            keep_aside(path, self.stamp)

    def kept(self) -> list[str]:
        """Report the copies that differ from the new records; remove those that do not."""
        notes = []
        for path in self.paths:
            aside = path.with_name(f"{path.stem}.before-{self.stamp}{path.suffix}")
            if not aside.exists():
                continue
            if aside.read_bytes() == path.read_bytes():
                aside.unlink()
            else:
                notes.append(f"note: folds were trained under another {path.name}, saved as {aside}")
        return notes


def with_kept_statistics(plan: Plan, workspace: Workspace) -> Plan:
    """The plan with the intensity statistics that trained folds know, where today's hardly differ.

    They are measured on the foreground: one corrected label moves them by next to nothing, and yet no fold would see
    the images as it did before.
    """
    if not workspace.models() or not workspace.plan.exists():
        return plan
    try:
        earlier = load(Plan, workspace.plan)
    except StateError:  # it is about to be replaced
        return plan
    if plan.channels != earlier.channels or plan.normalization == earlier.normalization:
        return plan
    if not all(map(_hardly_differ, earlier.normalization, plan.normalization)):
        return plan
    if any(uses_statistics(channel.scheme) for channel in plan.normalization):
        LOG.info(
            "note: the foreground's intensity statistics differ from those of the trained folds by less than "
            f"{STATISTICS_TOLERANCE:.0%} of a standard deviation: keeping those of the folds"
        )
    return replace(plan, normalization=earlier.normalization)


def with_kept_prompts(plan: Plan, workspace: Workspace) -> Plan:
    """The plan with prompts for the configurations that the present plan has them for."""
    try:
        return kept_prompts(plan, load(Plan, workspace.plan)) if workspace.plan.exists() else plan
    except StateError:  # it is about to be replaced
        return plan


def _hardly_differ(a: ChannelNormalization, b: ChannelNormalization) -> bool:
    if (a.scheme, a.inside_mask) != (b.scheme, b.inside_mask):
        return False
    allowed = STATISTICS_TOLERANCE * a.std
    return all(abs(getattr(a, key) - getattr(b, key)) <= allowed for key in STATISTICS)


def folds_after(workspace: Workspace, dataset: Dataset, plan: Plan, splits: Splits) -> list[str]:
    """What becomes of every fold that was begun: a line for those that stay valid, and one for each that does not."""
    lines = []
    everything = tuple(case.id for case in dataset.cases if case.id not in splits.test)
    for name, network in workspace.models():
        if name not in plan.configurations:
            lines.append(f"note: {name}-{network} is trained, but the plan no longer has a configuration {name}")
            continue
        with shown_by(None):  # no plan that is made here is news
            own = open_plan(workspace, network)
        valid: list[FoldName] = []
        for fold, begun in begun_of(workspace, name, network)[0].items():
            split = split_of(fold, splits.splits, everything)
            if split is None:
                lines.append(f"note: fold {fold} of {name}-{network} is trained, but that fold no longer exists")
                continue
            found = standing(begun, own, name, split, workspace)
            model: dict[str, Any] = {"workspace": workspace.root, "configuration": name, "network": network}
            again = suggest("train", "-f", fold, "--restart", **model)
            if found.refused:
                lines.append(f"note: fold {fold} of {name}-{network}: {found.refused}; to retrain it: {again}")
                continue
            valid.append(fold)
            if found.held_out and begun.finished:
                scores = suggest("evaluate", **model)
                lines.append(f"note: fold {fold} of {name}-{network}: {found.held_out}; score it again: {scores}")
            if found.remark:
                lines.append(f"note: fold {fold} of {name}-{network}: {found.remark}; to retrain it: {again}")
        if valid:
            lines.append(f"{name}-{network}: fold {','.join(map(str, valid))} stay{'s' * (len(valid) == 1)} valid")
    return lines


def options_again(intake: IntakeOptions, more: Sequence[tuple[str, object]]) -> tuple[str, ...]:
    """Options of `autoseg plan` as they are typed.

    Args:
        more: option and value; None, False and () are left out, True stands alone, a tuple repeats its option.
    """
    labels = intake.labels and ",".join(f"{name}={value}" for name, value in intake.labels.items())
    regions = intake.regions and ",".join(f"{n}={'+'.join(map(str, v))}" for n, v in intake.regions.items())
    pairs = [
        ("--channels", intake.channels and ",".join(intake.channels)), ("--labels", labels), ("--regions", regions),
        ("--ignore", intake.ignore), ("--patient-regex", intake.patient_regex),
        ("--instances", intake.instances and ",".join(intake.instances)), ("--divisor", intake.divisor), *more,
    ]  # fmt: skip
    words: list[str] = []
    for flag, value in pairs:
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [word for part in value for word in (flag, str(part))]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return tuple(words)
