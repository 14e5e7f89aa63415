"""Folds that were begun, looked at without their weights: how far they are, and whether today's training is theirs.

`status`, `evaluate` and `plan` ask about folds that they do not open. What they advise must work as typed, so it is the
rule of `same_training` that decides here, too.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.splits import Split
from autoseg.errors import StateError
from autoseg.models.header import CHECKPOINT_VERSION, NEWEST, read_header
from autoseg.models.same_training import (
    Basis,
    content_differences,
    describe_contents,
    describe_differences,
    options_between,
    plan_differences,
)
from autoseg.planning.plan import Plan
from autoseg.records import from_plain, to_plain
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
    path = folder / NEWEST
    if not path.exists():
        return None
    if header := _header(path):
        return BegunFold(
            header.fold, folder, basis_of(header), header.finished, header.position["epoch"], header.position["step"],
            header.plugins,
        )  # fmt: skip
    from autoseg.models.versions import read_checkpoint

    saved = read_checkpoint(path, mapped=True)
    return BegunFold(
        saved.fold, folder, basis_of(saved), saved.finished, saved.position.epoch, saved.position.step, saved.plugins
    )  # fmt: skip


@dataclass(frozen=True)
class _Header:
    """Of the plain part of a checkpoint, what is looked at here."""

    plan: dict[str, Any]
    configuration: str
    fold: FoldName
    train: tuple[str, ...]
    validation: tuple[str, ...]
    contents: dict[str, tuple[str, ...]]
    init_from: str | None
    plugins: tuple[dict[str, str], ...]
    finished: bool
    position: dict[str, Any]


def _header(path: Path) -> _Header | None:
    """What a checkpoint of this version states about itself; None where torch must read it, and judge what is wrong."""
    found = read_header(path)
    if found is None or found.get("version") != CHECKPOINT_VERSION:
        return None
    try:
        names = [field.name for field in fields(_Header)]
        header = from_plain(_Header, {name: found[name] for name in names}, str(path))
    except (StateError, KeyError):
        return None
    return header if {"epoch", "step"} <= header.position.keys() else None


def basis_of(saved: "Checkpoint | _Header") -> Basis:
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
