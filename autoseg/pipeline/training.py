"""Folds, one after the other, each with the predictions of its held-out cases; before a cascade, its previous stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cascade import prepare_previous
from autoseg.data.splits import Split, Splits
from autoseg.dataset import Case, Dataset
from autoseg.errors import UsageError
from autoseg.pipeline.opening import Say, choose_device, load_records
from autoseg.pipeline.planning import FOLDS
from autoseg.plan import Plan
from autoseg.preprocess import preprocess
from autoseg.records import override
from autoseg.stopping import StopSignals
from autoseg.workspace import Workspace

if TYPE_CHECKING:  # torch is imported when training begins
    import torch

    from autoseg.fold import FoldOptions
    from autoseg.nn.ranks import Ranks
    from autoseg.train import FoldResult


@dataclass(frozen=True)
class TrainOptions:
    """What `autoseg train` can be told."""

    folds: tuple[int, ...] | None = None  # None: all
    configuration: str | None = None  # None: the recommended one
    network: str | None = None  # None: the one of plan.json
    epochs: int | None = None
    steps: int | None = None
    time_budget_seconds: float | None = None  # per fold, validation included
    device: str = "auto"
    restart: bool = False  # of the folds named; the previous stage of a cascade is left alone
    init_from: Path | None = None  # a trained model to begin with; of the folds named, too
    stop_after_seconds: float | None = None  # of this command
    checkpoint_seconds: float = 60.0
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Run:
    """What the folds of one command share."""

    workspace: Workspace
    dataset: Dataset
    plan: Plan  # with the length of the training and all settings
    splits: Splits
    device: "torch.device"
    say: Say
    stop: StopSignals
    ranks: "Ranks"

    def cases(self, split: Split) -> list[Case]:
        """The held-out cases of a fold."""
        cases = {case.id: case for case in self.dataset.cases}
        return [cases[i] for i in split.validation]

    def prediction(self, name: str, split: Split, case: Case) -> Path:
        """Where a fold of a configuration puts its segmentation of a held-out case."""
        from autoseg.predict import output_ending

        network = self.plan.configurations[name].network.name
        folder = self.workspace.fold(name, network, split.fold)
        return folder / "validation" / f"{case.id}{output_ending(case)}"

    def unpredicted(self, name: str, split: Split) -> list[Case]:
        """Held-out cases that a fold has not segmented yet."""
        return [case for case in self.cases(split) if not self.prediction(name, split, case).exists()]


def train_folds(workspace: Workspace, options: TrainOptions = TrainOptions(), say: Say = print) -> "list[FoldResult]":
    """Train folds one after the other, each followed by the prediction of its validation cases.

    A fold that is trained already is left alone; one that was interrupted goes on. A cascade first trains all missing
    folds of its previous stage: every case it sees in training needs a segmentation by a fold that held it out.
    Started by torchrun, its processes train each fold together.

    Raises:
        Stopped: by a signal, or after the time that was set; what was done is saved.
    """
    import torch

    from autoseg.nn.ranks import Ranks

    device = choose_device(options.device)
    with StopSignals(options.stop_after_seconds) as stop, Ranks.from_environment(device.type) as ranks:
        if ranks.count > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        results = _train(workspace, options, device, stop, ranks, say if ranks.rank == 0 else _say_nothing)
    for result in results:
        for finding in result.findings:
            say(f"fold {result.fold}  {finding}")
    return results


def _train(
    workspace: Workspace, options: TrainOptions, device: "torch.device", stop: StopSignals, ranks: "Ranks", say: Say
) -> "list[FoldResult]":
    from autoseg.fold import FoldOptions

    dataset, plan, splits = load_records(workspace, options.network, say)
    plan = _with_length(override(plan, options.settings), options)
    name, configuration = plan.configuration(options.configuration)
    _require_even_batch(configuration.batch_size, ranks.count, name)
    chosen = _chosen(splits, options.folds)
    run = _Run(workspace, dataset, plan, splits, device, say, stop, ranks)
    if options.folds is not None and len(chosen) < len(options.folds):
        say(f"note: there are only {len(splits.splits)} folds, because there are too few patients for {FOLDS}")
    if configuration.cascade_from:
        _train_previous_stage(run, name)
    replaced: list[str] = []
    if ranks.rank == 0:
        preprocess(dataset, plan, name, workspace)
        replaced = _bring_previous_stage(run, name) if configuration.cascade_from else []
    ranks.barrier()
    fold_options = FoldOptions(options.restart, options.init_from, options.checkpoint_seconds)
    results = [_train_fold(run, name, split, fold_options) for split in chosen]
    if replaced and (old := [result.fold for result in results if result.already_finished]):
        folds = ",".join(map(str, old))
        say(f"note: fold {folds} of {name} learnt from older segmentations; --restart trains it on those of today")
    return results


def _train_fold(run: _Run, name: str, split: Split, options: "FoldOptions") -> "FoldResult":
    """Train one fold and predict its held-out cases; what is done already is left alone."""
    from autoseg.model import open_model
    from autoseg.predict import predict_cases
    from autoseg.train import train_fold

    result = train_fold(
        run.workspace, run.plan, name, split, device=run.device, options=options, stop=run.stop, ranks=run.ranks
    )
    if run.ranks.rank > 0:
        return result  # the first process predicts; the others wait for it at the next fold
    missing = run.unpredicted(name, split)
    if result.already_finished and not missing:
        run.say(f"fold {split.fold}  is trained and validated already ({result.folder}); --restart trains it anew")
        return result
    network = run.plan.configurations[name].network.name
    model = open_model(run.workspace, name, network, folds=[split.fold], device=run.device)
    folder = result.folder / "validation"
    predict_cases([model], missing, folder, title=f"fold {split.fold} validation")
    run.say(f"fold {split.fold}  {len(split.validation)} validation cases predicted into {folder}")
    return result


def _train_previous_stage(run: _Run, name: str) -> None:
    """Train the folds of a cascade's previous stage that are not done.

    Raises:
        StateError: those that are done were trained on other channels, labels or orientations.
    """
    from autoseg.fold import FoldOptions
    from autoseg.model import open_model, require_common

    before, configuration = run.plan.configuration(run.plan.configurations[name].cascade_from)
    undone = [split for split in run.splits.splits if run.unpredicted(before, split)]
    done = len(run.splits.splits) - len(undone)
    run.say(f"stage 1 of 2: {before}, {done} of {len(run.splits.splits)} folds are trained and validated already")
    if undone:
        preprocess(run.dataset, run.plan, before, run.workspace)
    for split in undone:
        _train_fold(run, before, split, FoldOptions())
    model = open_model(run.workspace, before, configuration.network.name, folds=None, device=run.device)
    require_common({name: run.plan, model.name: model.plan})  # before the cascade is trained, not after


def _bring_previous_stage(run: _Run, name: str) -> list[str]:
    """Bring the previous stage's held-out segmentations to the cascade's grid; ids of those that were out of date."""
    before, _ = run.plan.configuration(run.plan.configurations[name].cascade_from)
    sources = {case.id: run.prediction(before, split, case) for split in run.splits.splits for case in run.cases(split)}
    run.say(f"stage 2 of 2: {name}")
    return prepare_previous(run.workspace, run.plan, name, run.dataset.cases, sources)


def _with_length(plan: Plan, options: TrainOptions) -> Plan:
    """The plan with the epochs, the steps or the time budget that was asked for; one excludes the others."""
    epochs, steps, seconds = options.epochs, options.steps, options.time_budget_seconds
    if epochs is None and steps is None and seconds is None:
        return plan
    training = replace(plan.training, epochs=epochs, steps=steps, time_budget_seconds=seconds)
    return replace(plan, training=training)


def _require_even_batch(batch_size: int, processes: int, name: str) -> None:
    """Raises UsageError where a batch cannot be split evenly over the processes that train together."""
    if batch_size % processes:
        raise UsageError(
            f"{processes} processes cannot share a batch of {batch_size} samples evenly",
            remedy=f"--set configurations.{name}.batch_size={-(-batch_size // processes) * processes}, "
            f"or start as many processes as divide {batch_size}",
        )


def _say_nothing(_: str) -> None:
    """What all processes but the first say."""


def _chosen(splits: Splits, folds: Sequence[int] | None) -> list[Split]:
    existing = {split.fold: split for split in splits.splits}
    wanted = list(existing) if folds is None else list(folds)
    missing = [fold for fold in wanted if fold not in existing]
    if missing and set(wanted) & set(existing) and len(existing) < FOLDS:
        return [existing[fold] for fold in wanted if fold in existing]  # fewer patients than folds: what exists
    if missing:
        raise UsageError(f"there is no fold {missing[0]}", remedy=f"the folds are {', '.join(map(str, existing))}")
    return [existing[fold] for fold in wanted]
