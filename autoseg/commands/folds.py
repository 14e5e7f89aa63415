"""The folds of a command: their options, which they are, what they read and where they predict to."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from autoseg.commands.inputs import load_records
from autoseg.commands.plan import FOLDS
from autoseg.dataloading.store import CaseStore
from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError, UsageError
from autoseg.lines import LOG
from autoseg.planning.plan import Plan
from autoseg.planning.plan_fields import Seconds, Steps
from autoseg.preprocessing.cascade import prepare_previous
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.sources import plan_again, require_unchanged
from autoseg.rules import MAX_EPOCHS, at_least, check_fields
from autoseg.workspace import FULL, FoldName, Workspace, write_text

Epochs = Annotated[int, at_least(1, MAX_EPOCHS)]
SEGMENTED = "segmented.json"  # of a fold: which images its held-out segmentations were made of


@dataclass(frozen=True)
class TrainOptions:
    """The options of `autoseg train` and of `autoseg.train_folds`, and their defaults."""

    folds: tuple[FoldName, ...] | None = None  # None: all partitions
    configuration: str | None = None  # None: the recommended one
    network: str | None = None  # None: the one of plan.json
    epochs: Epochs | None = None  # length of the training of a fold; at most one of these three
    steps: Steps | None = None
    time_budget_seconds: Seconds | None = None  # per fold, validation included
    device: str = "auto"
    restart: bool = False  # of the folds named; the previous stage of a cascade is left alone
    finish: bool = False  # let folds that were begun cool down at once
    init_from: Path | None = None  # a trained model to begin with; of the folds named, too
    prompts: bool = False  # continue trained folds as ones that prompts correct
    stop_after_seconds: Seconds | None = None  # of this command
    checkpoint_seconds: Seconds = 60.0
    settings: tuple[str, ...] = ()  # key=value, that change the plan
    report: bool = True  # write the workspace's report while folds train and at the end

    def __post_init__(self) -> None:
        check_fields(self)
        lengths = (self.epochs, self.steps, self.time_budget_seconds)
        if sum(length is not None for length in lengths) > 1:
            raise UsageError("epochs, steps and a time budget exclude each other", remedy="give one of them")
        if self.prompts and self.init_from:
            what = "--prompts begins with the weights of the trained folds, --init-from with those of another model"
            raise UsageError(what, remedy="leave one of them out")
        if self.finish and (self.restart or self.init_from):
            other = "--restart" if self.restart else "--init-from"
            what = f"--finish ends a started training, {other} starts a new one"
            raise UsageError(what, remedy="leave one of them out")


@dataclass(frozen=True)
class Folds:
    """The records that the folds of one command share."""

    workspace: Workspace
    dataset: Dataset
    plan: Plan  # with the length of the training and all settings
    splits: Splits

    @classmethod
    def open(cls, workspace: Workspace, options: TrainOptions) -> "Folds":
        """Those of a workspace. Raises StateError where nothing has been planned."""
        dataset, plan, splits = load_records(workspace, options.network)
        return cls(workspace, dataset, _with_length(plan.with_settings(options.settings), options), splits)

    def chosen(self, folds: Sequence[FoldName] | None) -> list[Split]:
        """The folds of these names, or all partitions. Of fewer patients than folds: those that exist.

        Raises:
            UsageError: there is no such fold.
        """
        existing = {split.fold: split for split in self.splits.splits}
        if folds is not None and FULL in folds:
            existing[FULL] = self.full()
        wanted = list(existing) if folds is None else list(folds)
        missing = [fold for fold in wanted if fold not in existing]
        if missing and not (set(wanted) & set(existing) and len(existing) < FOLDS):
            names = [str(split.fold) for split in self.splits.splits]
            raise UsageError(f"there is no fold {missing[0]}", remedy=f"the folds are {', '.join(names)}, and full")
        chosen = [existing[fold] for fold in wanted if fold in existing]
        require_known(self.workspace, self.dataset, chosen)
        return chosen

    def full(self) -> Split:
        """The fold that trains on all cases but those held out for the test, and validates on none."""
        return Split(FULL, tuple(case.id for case in self.dataset.cases if case.id not in self.splits.test), ())

    def folder(self, name: str, fold: FoldName) -> Path:
        """Of a fold of a configuration."""
        return self.workspace.fold(name, self.plan.configurations[name].network.name, fold)

    def require_sources(self) -> None:
        """Refuse a dataset that has moved, or that changed since it was planned. Raises StateError."""
        require_unchanged(self.workspace, self.dataset, self.dataset.cases)

    def cases(self, split: Split) -> list[Case]:
        """The held-out cases of a fold."""
        cases = {case.id: case for case in self.dataset.cases}
        return [cases[i] for i in split.validation]

    def prediction(self, name: str, split: Split, case: Case) -> Path:
        """Where a fold of a configuration puts its segmentation of a held-out case."""
        from autoseg.inference.label_files import output_ending

        return self.folder(name, split.fold) / "validation" / f"{case.id}{output_ending(case)}"

    def unpredicted(self, name: str, split: Split) -> list[Case]:
        """Held-out cases that a fold has not segmented yet, or whose image is another since it did."""
        segmented, today = self._segmented(name, split), self._images(name, split)
        return [
            case
            for case in self.cases(split)
            if not self.prediction(name, split, case).exists()
            or today[case.id] != segmented.get(case.id, today[case.id])
        ]

    def note_predicted(self, name: str, split: Split) -> None:
        """Keep which images the segmentations of a fold's held-out cases were made of."""
        text = json.dumps(self._segmented(name, split) | self._images(name, split), indent=1)
        write_text(self.folder(name, split.fold) / SEGMENTED, text + "\n")

    def done(self, name: str, split: Split) -> bool:
        """Whether a fold is trained and its held-out cases are segmented."""
        if split.fold != FULL:
            return not self.unpredicted(name, split)
        from autoseg.models.begun import read_begun

        begun = read_begun(self.folder(name, FULL))
        return begun is not None and begun.finished

    def _segmented(self, name: str, split: Split) -> dict[str, str]:
        """Held-out case -> digest of the image that was segmented, as far as it was kept."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder(name, split.fold) / SEGMENTED).read_text(encoding="utf-8"))
        return {}

    def _images(self, name: str, split: Split) -> dict[str, str]:
        """Held-out case -> digest of its current image; "" where it is not preprocessed."""
        store = CaseStore(self.workspace.preprocessed(self.plan.configurations[name].data))
        found = {}
        for case in split.validation:
            try:
                found[case] = store.info(case).content[0]
            except StateError:
                found[case] = ""
        return found

    def preprocess(self, name: str) -> None:
        """Preprocess the cases for a configuration; those that are stored are left alone."""
        preprocess(self.dataset, self.plan, name, self.workspace)

    def bring_previous_stage(self, name: str, *, restart: bool, chosen: Sequence[Split]) -> None:
        """Bring the previous stage's held-out segmentations to a cascade's grid.

        Says which folds learnt from older ones.

        Args:
            restart, chosen: whether folds are retrained from scratch, and which.
        """
        before, _ = self.plan.configuration(self.plan.configurations[name].cascade_from)
        sources = {
            case.id: self.prediction(before, split, case) for split in self.splits.splits for case in self.cases(split)
        }
        replaced = prepare_previous(self.workspace, self.plan, name, self.dataset.cases, sources)
        old = [split.fold for split in chosen if self.done(name, split)]
        if replaced and old and not restart:
            which = f"fold {','.join(map(str, old))} of {name}"
            LOG.warning(f"note: {which} was trained on outdated segmentations; retrain with --restart")


def require_known(workspace: Workspace, dataset: Dataset, splits: Sequence[Split]) -> None:
    """Refuse folds of cases that the dataset does not have. Raises StateError."""
    known = {case.id for case in dataset.cases}
    for split in splits:
        if unknown := [case for case in (*split.train, *split.validation) if case not in known]:
            raise StateError(
                f"{workspace.splits}: fold {split.fold} names {len(unknown)} cases that {workspace.dataset} does not "
                f"have, for instance {unknown[0]}",
                remedy=f"restore the splits.json that was planned, or plan again: {plan_again(workspace)}",
            )


def _with_length(plan: Plan, options: TrainOptions) -> Plan:
    """The plan with the epochs, the steps or the time budget that was asked for; one excludes the others."""
    epochs, steps, seconds = options.epochs, options.steps, options.time_budget_seconds
    if epochs is None and steps is None and seconds is None:
        return plan
    training = replace(plan.training, epochs=epochs, steps=steps, time_budget_seconds=seconds)
    return replace(plan, training=training)
