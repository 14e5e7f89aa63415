"""Folds, one after the other, each with the predictions of its held-out cases; before a cascade, its previous stage."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.folds import Folds, TrainOptions
from autoseg.commands.plan import FOLDS
from autoseg.commands.prompts import continued_fold, with_prompts_planned
from autoseg.commands.report import live_report, reported
from autoseg.datasets.splits import Split
from autoseg.errors import StateError, Stopped, UsageError
from autoseg.lines import LOG, shown_by
from autoseg.messages import counted, duration, suggest
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.stopping import StopSignals
from autoseg.workspace import FULL, FoldName, Workspace

if TYPE_CHECKING:  # torch is imported when training begins
    import torch

    from autoseg.nn.distributed import Ranks
    from autoseg.training.setup import FoldOptions
    from autoseg.training.train import FoldResult


@dataclass(frozen=True)
class TrainedFold:
    """How the training of a fold ended. What it is worth on whole images: see `commands.evaluate.cross_validate`."""

    fold: FoldName
    configuration: str
    network: str
    folder: Path  # checkpoints, log, history, and the segmentations of its held-out cases in validation/
    epochs: int
    steps: int
    pseudo_dice: dict[str, float | None]  # label or region -> that of the last epoch's held-out patches
    warnings: tuple[str, ...]  # what is wrong with it, and what to try
    already_finished: bool  # nothing was done: it had been trained before

    @classmethod
    def of(cls, result: "FoldResult", plan: Plan, configuration: str) -> "TrainedFold":
        """The result of one fold of a configuration of a plan."""
        dice = dict(zip(plan.labels.scored, result.pseudo_dice, strict=bool(result.pseudo_dice)))
        return cls(
            result.fold, configuration, plan.configurations[configuration].network.name, result.folder,
            result.position.epoch, result.position.step, dice, result.warnings, result.already_finished,
        )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """The folds of a command, and what trains them."""

    folds: Folds
    device: "torch.device"
    stop: StopSignals
    ranks: "Ranks"
    report: bool = True  # keep the workspace's report up to date


def train_folds(workspace: Workspace, options: TrainOptions = TrainOptions()) -> list[TrainedFold]:
    """Train folds one after the other, each followed by the prediction of its validation cases.

    A fold that is trained already is left alone; one that was interrupted is resumed. A cascade first trains all
    missing folds of its previous stage: every case it sees in training needs a segmentation by a fold that held it out.
    Started by torchrun, its processes train each fold together.

    Raises:
        Stopped: by a signal, or after the time that was set; what was done is saved.
    """
    import torch

    from autoseg.nn.distributed import Ranks

    device = choose_device(options.device)
    if options.prompts:
        options = with_prompts_planned(workspace, options)
    with StopSignals(options.stop_after_seconds) as stop, Ranks.from_environment(device.type) as ranks:
        if ranks.count > 1 and device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        with shown_by(None) if ranks.rank > 0 else nullcontext():  # of several processes, the first one reports
            wanted = options.report and ranks.rank == 0
            with reported(workspace, options.configuration, options.network, wanted=wanted):
                results = _train(_Run(Folds.open(workspace, options), device, stop, ranks, options.report), options)
            if len(results) > 1:  # of a single one they were shown last
                for line in (line for result in results for line in result.warnings):
                    LOG.warning(line)
    return results


def train_prepared(pairs: Iterable[tuple[Folds, Split]], name: str, options: TrainOptions) -> list[TrainedFold]:
    """Train folds, each with the records it is given with, as `train_folds` does.

    Args:
        pairs: which folds, in which workspace; of no cascade. Their cases are preprocessed when it is their turn.
        name: of the configuration.

    Raises:
        Stopped: by a signal, or after the time that was set; what was done is saved.
    """
    from autoseg.nn.distributed import Ranks

    device = choose_device(options.device)
    with StopSignals(options.stop_after_seconds) as stop, Ranks.from_environment(device.type) as ranks:
        if ranks.count > 1:
            raise UsageError("several processes train together here", remedy="start it without torchrun")
        return [
            TrainedFold.of(
                _train_fold(_Run(folds, device, stop, ranks), name, split, fold_options(options)), folds.plan, name
            )
            for folds, split in pairs
        ]


def _train(run: _Run, options: TrainOptions) -> list[TrainedFold]:
    folds = run.folds
    name, configuration = folds.plan.configuration(options.configuration)
    for one in filter(None, (configuration.cascade_from, name)):
        _require_even_batch(folds.plan.configurations[one].batch_size, run.ranks.count, one)
    chosen = folds.chosen(options.folds)
    if options.finish:
        chosen = begun_among(folds, name, chosen)
    folds.require_sources()
    results: list[TrainedFold] = []
    if options.folds is not None and len(chosen) < len(options.folds) and not options.finish:
        LOG.info(f"note: only {len(folds.splits.splits)} folds: there are too few patients for {FOLDS}")
    replaced = not options.restart
    try:
        if configuration.cascade_from:
            results += _train_previous_stage(run, name, options)
        if run.ranks.rank == 0:
            folds.preprocess(name)
            if configuration.cascade_from:
                LOG.info(f"stage 2 of 2: {name}")
                folds.bring_previous_stage(name, restart=options.restart, chosen=chosen)
        run.ranks.barrier()
        for number, split in enumerate(chosen):
            try:
                of_fold = fold_options(options)
                if options.prompts:
                    begins_with = continued_fold(folds, name, split.fold, restart=options.restart)
                    of_fold = replace(of_fold, init_from=begins_with)
                result = _train_fold(run, name, split, of_fold)
                results.append(TrainedFold.of(result, folds.plan, name))
                replaced = True
            except Stopped as stopped:
                replaced = replaced or not stopped.restart_due
                later = [str(other.fold) for other in chosen[number + (not stopped.restart_due) :]]
                if options.restart and replaced and later:
                    LOG.info(f"not yet retrained, needs --restart: fold {','.join(later)}")
                raise
    except Stopped as stopped:
        stopped.restart_due = not replaced
        raise
    return results


def begun_among(folds: Folds, name: str, chosen: "list[Split]") -> "list[Split]":
    """The folds that were begun, of those chosen; says which were not. Raises StateError where none was."""
    begun = [split for split in chosen if (folds.folder(name, split.fold) / "last.pt").exists()]
    if not begun:
        raise StateError(
            f"no fold of {name} has been started: there is nothing to finish",
            remedy=f"train them: {suggest('train', workspace=folds.workspace.root, configuration=name)}",
        )
    for split in chosen:
        if split not in begun:
            LOG.info(f"note: fold {split.fold} has not been started: there is nothing to finish")
    return begun


def fold_options(options: TrainOptions) -> "FoldOptions":
    """What of a command's options concerns a fold; `--finish` without a length or settings keeps those of the fold."""
    from autoseg.training.setup import FoldOptions

    lengths = (options.epochs, options.steps, options.time_budget_seconds)
    as_begun = options.finish and not options.settings and all(length is None for length in lengths)
    return FoldOptions(
        options.restart, options.init_from, options.checkpoint_seconds, options.finish, as_begun, options.settings
    )


def _train_fold(run: _Run, name: str, split: Split, options: "FoldOptions") -> "FoldResult":
    """Train one fold and predict its held-out cases; what is done already is left alone."""
    from autoseg.inference.predict import options_for, predict_cases
    from autoseg.inference.rehearsal import seconds_beside_network
    from autoseg.models.model import open_model
    from autoseg.training.setup import TrainingTask
    from autoseg.training.train import train_fold
    from autoseg.training.validation_budget import inference_of

    folds = run.folds

    def beside_network() -> float:
        return seconds_beside_network(folds.workspace, folds.plan, name, folds.cases(split), run.device)

    def page() -> None:
        live_report(folds.workspace, name, folds.plan.configurations[name].network.name)

    task = TrainingTask(
        folds.workspace, folds.plan, name, split, run.device, run.ranks, beside_network=beside_network,
        page=page if run.report else None,
    )  # fmt: skip
    result = train_fold(task, options, run.stop)
    if run.ranks.rank > 0:
        return result  # the first process predicts; the others wait for it at the next fold
    if result.already_finished:
        for remark in result.remarks:
            LOG.info(f"fold {split.fold}  {remark}")
    if split.fold == FULL:
        state = "is already trained" if result.already_finished else "is trained"
        LOG.info(
            f"fold {FULL}  {state} on all {len(split.train)} cases ({result.folder}); its quality is estimated "
            "only by the cross-validation of the folds"
        )
        return result
    # what was predicted before is of older weights, if there are new ones
    missing = folds.unpredicted(name, split) if result.already_finished else folds.cases(split)
    if result.already_finished and not missing:
        done = f"fold {split.fold}  is already trained and validated ({result.folder})"
        LOG.info(f"{done}; --restart retrains it from scratch")
        return result
    network = folds.plan.configurations[name].network.name
    model = open_model(folds.workspace, name, network, folds=[split.fold], device=run.device)
    folder = result.folder / "validation"
    way, began = inference_of(result.folder), time.perf_counter()
    predict_cases([model], missing, folder, options_for(way), title=f"fold {split.fold} validation")
    folds.note_predicted(name, split)
    how = f", {way}, which is cheaper than `predict`" if way and way.cheaper else ""
    took = duration(time.perf_counter() - began)
    cases = counted(len(split.validation), "validation case")
    LOG.info(f"fold {split.fold}  {cases} predicted into {folder} in {took}{how}")
    return result


def _train_previous_stage(run: _Run, name: str, options: TrainOptions) -> list[TrainedFold]:
    """Train the folds of a cascade's previous stage that are not done, and return how they ended.

    Raises:
        StateError: those that are done were trained on other channels, labels or orientations.
    """
    from autoseg.models.model import open_model, require_common
    from autoseg.training.setup import FoldOptions

    folds = run.folds
    before, configuration = folds.plan.configuration(folds.plan.configurations[name].cascade_from)
    undone = [split for split in folds.splits.splits if folds.unpredicted(before, split)]
    for split in folds.splits.splits:
        if split not in undone:
            _require_held_out(folds, before, split)
    done = len(folds.splits.splits) - len(undone)
    LOG.info(f"stage 1 of 2: {before}, {done} of {len(folds.splits.splits)} folds are already trained and validated")
    if undone:
        folds.preprocess(before)
    of_a_fold = FoldOptions(checkpoint_seconds=options.checkpoint_seconds, settings=options.settings)
    results = [TrainedFold.of(_train_fold(run, before, split, of_a_fold), folds.plan, before) for split in undone]
    run.ranks.barrier()  # until the first process has predicted the last of them
    model = open_model(folds.workspace, before, configuration.network.name, folds=None, device=run.device)
    require_common({name: folds.plan, model.name: model.plan})  # before the cascade is trained, not after
    return results


def _require_held_out(folds: Folds, name: str, split: Split) -> None:
    """Refuse a finished fold of a previous stage that learnt from cases which it is to hold out today.

    Raises:
        StateError: a cascade would see better segmentations of these cases than of any others.
    """
    from autoseg.models.begun import read_begun

    begun = read_begun(folds.folder(name, split.fold))
    if begun and (seen := sorted(set(begun.basis.train) & set(split.validation))):
        again = suggest("train", "-f", split.fold, "--restart", workspace=folds.workspace.root, configuration=name)
        raise StateError(
            f"fold {split.fold} of {name} was trained on {seen[0]}, which splits.json now holds out",
            remedy=f"restore the splits.json it was trained with, or retrain it: {again}",
        )


def _require_even_batch(batch_size: int, processes: int, name: str) -> None:
    """Raises UsageError where a batch cannot be split evenly over the processes that train together."""
    if batch_size % processes:
        raise UsageError(
            f"{processes} processes cannot share a batch of {batch_size} samples evenly",
            remedy=f"--set configurations.{name}.batch_size={-(-batch_size // processes) * processes}, "
            f"or start as many processes as divide {batch_size}",
        )
