"""Folds that were begun, looked at without their weights: how far they are, and whether today's training is theirs.

`status`, `evaluate` and `plan` ask about folds that they do not open. What they advise must work as typed, so it is the
rule of `same_training` that decides here, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.splits import Split
from autoseg.errors import StateError
from autoseg.models.same_training import (
    Basis,
    content_differences,
    describe_contents,
    describe_differences,
    options_between,
    plan_differences,
)
from autoseg.planning.plan import Plan
from autoseg.records import to_plain
from autoseg.workspace import FULL, FoldName, Workspace, begun_folds

if TYPE_CHECKING:
    from autoseg.models.versions import Checkpoint


@dataclass(frozen=True)
class BegunFold:
    """A fold as its newest checkpoint describes it, without the weights."""

    fold: FoldName
    folder: Path
    basis: Basis
    finished: bool
    epoch: int
    step: int
    plugins: tuple[dict[str, str], ...] = ()  # that it was trained with (see `plugins.require_plugins`)


@dataclass(frozen=True)
class Standing:
    """What today's plan, folds and cases mean for a fold that was begun."""

    refused: str = ""  # why it neither resumes nor is scored
    other_cases: bool = False  # it is refused for them
    remark: str = ""  # what its owner should know
    held_out: str = ""  # what became of its held-out cases
    options: tuple[str, ...] = ()  # with which `autoseg train` takes it up again


def read_begun(folder: Path) -> BegunFold | None:
    """Look at the newest checkpoint of a fold; None where there is none.

    Raises:
        StateError: it is damaged, or of another version.
    """
    from autoseg.models.checkpoint import NEWEST
    from autoseg.models.versions import read_checkpoint

    path = folder / NEWEST
    if not path.exists():
        return None
    saved = read_checkpoint(path, mapped=True)
    return BegunFold(
        saved.fold, folder, basis_of(saved), saved.finished, saved.position.epoch, saved.position.step, saved.plugins
    )  # fmt: skip


def basis_of(saved: "Checkpoint") -> Basis:
    """What the weights of a checkpoint follow from."""
    return Basis(
        saved.plan, saved.configuration, saved.train, saved.validation, saved.contents, saved.init_from
    )  # fmt: skip


def begun_of(workspace: Workspace, name: str, network: str) -> tuple[dict[FoldName, BegunFold], dict[FoldName, str]]:
    """The folds of a model that were begun, by number, FULL last; and of those that cannot be read, why."""
    found, damaged = {}, {}
    for fold, folder in begun_folds(workspace.model(name, network)).items():
        try:
            begun = read_begun(folder)
        except StateError as error:
            damaged[fold] = error.what
            continue
        if begun:
            found[fold] = begun
    return found, damaged


def standing(begun: BegunFold, plan: Plan, name: str, split: Split, workspace: Workspace) -> Standing:
    """Whether a fold's training is that of the current plan and folds, but for settings that `train` can be given."""
    now = to_plain(plan)
    options = options_between(begun.basis.plan, now, name)
    if options is None:
        found = plan_differences(begun.basis.plan, now, name)
        seen = {key: values for key, values in found.items() if not key.startswith("training.")}
        return Standing(refused=f"trained under a different plan: {describe_differences(seen)}")
    for what, here, there in (
        ("train on", split.train, begun.basis.train),
        ("hold out", split.validation, begun.basis.validation),
    ):
        if differ := sorted(set(here) ^ set(there)):
            many = f"({len(differ)} differ, for instance {differ[0]})"
            refused = f"trained with other cases: the fold now lists others to {what} {many}"
            return Standing(refused=refused, other_cases=True)
    contents = contents_today(workspace, plan, name, (*split.train, *split.validation))
    changed = content_differences(begun.basis.contents, contents, split.train)
    if changed and not begun.finished:
        return Standing(refused=f"started with other contents: {describe_contents(changed)}")
    remark = f"since it was trained, {describe_contents(changed)}" if changed else ""
    other = content_differences(begun.basis.contents, contents, split.validation)
    held_out = f"of its held-out cases, {describe_contents(other)}" if other else ""
    return Standing(remark=remark, held_out=held_out, options=tuple(options))


def contents_today(workspace: Workspace, plan: Plan, name: str, cases: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Digests of cases as they are preprocessed today; those that are not are left out."""
    store = CaseStore(workspace.preprocessed(plan.configurations[name].data))
    found = {}
    for case in cases:
        try:
            found[case] = store.info(case).content
        except StateError:
            continue
    return found


def split_of(fold: FoldName, splits: tuple[Split, ...], all_cases: tuple[str, ...]) -> Split | None:
    """The cases of a fold as they are today; None where that fold no longer exists."""
    if fold == FULL:
        return Split(FULL, all_cases, ())
    return next((split for split in splits if split.fold == fold), None)
