"""One fold: the one visible loop.

`train_fold` reads top to bottom: where the fold stands, its network, its data, what is fastest here, then steps until
the schedule ends. The schedule spans what was asked for: epochs, steps, or a wall-time budget that includes the
validation afterwards (`validation_budget`). Where neither validation loss nor Dice improves, the learning
rate cools down and the training ends.

Nothing is lost: once a minute, after every epoch and when it is asked to stop, the fold writes a checkpoint; the same
command resumes there, with the exact batch that was due.

Files of a fold: `last.pt`, `previous.pt` and their digests (everything needed to resume, and the weights to predict
with), `history.jsonl` (one line per epoch), `log.txt` (what was shown), `progress.png`, `machines.json` (with what, and
where). The weights of the last step are the ones that predict: choosing an epoch by its validation score would make the
cross-validation flatter itself.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoseg.errors import AutosegError, Stopped
from autoseg.lines import LOG
from autoseg.models.checkpoint import NEWEST, load_newest, remove_leftovers
from autoseg.models.same_training import content_differences
from autoseg.models.versions import Checkpoint, Position
from autoseg.nn.precision import forward_seconds
from autoseg.plugins import require_plugins
from autoseg.stopping import StopSignals
from autoseg.training.diagnosis import diagnose
from autoseg.training.fold_folder import FoldFolder, held
from autoseg.training.history import EpochRow, rows_of
from autoseg.training.logger import FoldLog, warning_of_fold
from autoseg.training.machines import note_machine
from autoseg.training.resume import (
    contents_of,
    nothing_to_finish,
    remarks_on_contents,
    require_same_training,
    with_settings_of,
)
from autoseg.training.setup import FoldOptions, TrainingSession, TrainingTask, checkpoint_of, open_fold
from autoseg.training.validation_budget import keep_inference
from autoseg.training.within_memory import step_within_memory, validate_within_memory
from autoseg.workspace import FoldName

PATIENCE_NON_FINITE = 10  # steps in a row without a finite loss before training goes back to a checkpoint
MAX_ROLLBACKS = 2  # times it does so before it gives up


@dataclass(frozen=True)
class FoldResult:
    """How a fold ended."""

    fold: FoldName
    folder: Path
    position: Position
    pseudo_dice: tuple[float | None, ...]  # of the last epoch, one per label or region; () where none is held out
    warnings: tuple[str, ...]  # what is wrong with it, and what to try
    already_finished: bool  # nothing was done: the fold had been trained before
    remarks: tuple[str, ...] = ()  # on cases whose content changed since


def train_fold(task: TrainingTask, options: FoldOptions, stop: StopSignals) -> FoldResult:
    """Train one fold of one configuration, or resume it where it stopped.

    Args:
        stop: asked after every step whether to save and end.

    Raises:
        StateError: data are not preprocessed; the fold was trained under another plan, with other cases or contents or
            from another model; or another process trains it.
        Stopped: it was asked for; the fold is saved.
        OutOfMemory: a single sample does not fit.
        AutosegError: the loss stays non-finite.
    """
    with held(task.folder, options.restart, task.ranks) as folder:
        try:
            return _train_held(task, options, stop, folder)
        except Stopped as stopped:
            stopped.restart_due = folder.aside is not None and not folder.replaced
            raise


def _train_held(task: TrainingTask, options: FoldOptions, stop: StopSignals, folder: FoldFolder) -> FoldResult:
    began = time.perf_counter()
    if task.ranks.rank == 0:
        remove_leftovers(task.folder)
    # on the CPU: the device need not hold it twice; what is to be replaced is not read
    saved, damage = (None, "") if options.restart else newest_checkpoint(task.folder)
    task = replace(task, contents=contents_of(task))
    remarks: list[str] = []
    history: list[EpochRow] = []
    if saved:
        require_plugins(saved.plugins, task.folder)
        if options.as_begun:
            task = with_settings_of(saved, task)
        require_same_training(saved, task, options)
        remarks = remarks_on_contents(saved, task, options)
        history = rows_of(saved.history, task.folder / NEWEST)
        if saved.finished:
            return _result(task, saved.position, history, remarks, already_finished=True)
    if options.finish and not (saved and saved.position.step):
        raise nothing_to_finish(task)
    labels = list(task.plan.labels.scored)
    silent = task.ranks.rank > 0
    with FoldLog(
        task.folder, task.number, labels, history, unseen=task.unseen_labels, quiet=silent, held_back=options.restart,
        page=task.page,
    ) as log:  # fmt: skip
        for remark in filter(None, (damage, *remarks)):
            LOG.warning(remark)
        fold = open_fold(task, options, stop, log, folder, saved, began)
        if saved and content_differences(saved.contents, task.contents, task.split.validation):
            fold.state.forget_plateau()  # measured on other samples
        del saved
        with stop.deferred(), fold:
            train(fold, options)
        log.summarise()
    return _result(task, fold.state.position, log.history, remarks, already_finished=False)


def train(fold: TrainingSession, options: FoldOptions) -> None:
    """Run optimiser steps until the schedule ends."""
    state, clock, ranks = fold.state, fold.clock, fold.task.ranks
    fold.open_stream()
    if state.position.step == 0:
        begin(fold)
    if ranks.rank == 0:
        note_machine(fold.task.folder, state.position.step, fold.task.device)
    saved_at = clock.elapsed()
    (schedule,) = ranks.all_max(clock.progress(state.position.step))  # share of the schedule that is done
    if options.finish and state.cooling_since is None:
        state.cooling_since = schedule
        LOG.info("--finish: cooling down the learning rate, then training ends")
    finished = False
    while not finished:
        batch = fold.next_batch()
        learning_rate = state.set_learning_rate(schedule)
        loss = step_within_memory(fold, batch)
        state.advance(loss, clock.elapsed())
        if not math.isfinite(loss):
            named = ", ".join(dict.fromkeys(ranks.all_gather(batch["cases"])))  # the loss is that of all
            LOG.warning(f"step {state.position.step}: non-finite loss, step skipped (cases {named})")
            if state.position.consecutive_nonfinite == PATIENCE_NON_FINITE:
                rollback(fold, named)

        # What depends on time and signals is agreed upon by all processes that train together
        schedule, epoch_over, stopping = ranks.all_max(
            clock.progress(state.position.step),
            clock.epoch_is_over(state.position.epoch_steps, state.position.epoch_seconds),
            fold.stop.due,
        )
        progress = state.due_progress(schedule)  # share of the training, which may end before its schedule
        fold.log.step(loss, progress)

        if progress >= 1 or epoch_over:
            finish_epoch(fold, learning_rate, schedule)
            (schedule,) = ranks.all_max(clock.progress(state.position.step))  # validating took some of a time budget
            progress = state.due_progress(schedule)
        finished = progress >= 1
        if finished:
            settle_validation(fold)
        late = clock.elapsed() - saved_at >= options.checkpoint_seconds
        sound = state.position.consecutive_nonfinite == 0  # a state to go back to
        if finished or stopping or ((epoch_over or late or fold.checkpoints.failed) and sound):
            if problem := fold.checkpoints.failed:
                LOG.warning(f"{problem}; retrying")
            save(fold, finished=finished)
            saved_at = clock.elapsed()
        if stopping and not finished:
            fold.checkpoints.wait()
            LOG.info(f"saved after step {state.position.step}")
            fold.stop.now()


def begin(fold: TrainingSession) -> None:
    """Set aside what stood in the fold's folder, now that all else works, and write the first checkpoint.

    Raises:
        StorageError: it cannot be written; the old fold has its name again.
    """
    fold.prepare_first()
    fold.folder.begin()
    try:
        save(fold, finished=False)
        if fold.folder.replaced:
            fold.checkpoints.wait()
        fold.log.release()
    except Exception:
        fold.folder.put_back()
        raise


def finish_epoch(fold: TrainingSession, learning_rate: float, schedule: float) -> None:
    """Look at the fixed samples, write the epoch down, and notice a plateau."""
    state, position = fold.state, fold.state.position
    validation_loss = pseudo_dice = None
    plateau = ""
    began = fold.clock.elapsed()
    with state.averaged():
        if fold.validation_samples:
            validation_loss, pseudo_dice = validate_within_memory(fold, fold.validation_samples)
        _, training_dice = validate_within_memory(fold, fold.train_samples)
    if validation_loss is not None and pseudo_dice is not None:
        plateau = state.watch_plateau(validation_loss, pseudo_dice, schedule)
    state.position = position.next_epoch(fold.clock.elapsed())
    row = EpochRow(
        epoch=state.position.epoch,
        step=position.step,
        seconds=state.position.seconds,
        loss=position.mean_loss,
        training_dice=tuple(training_dice),
        validation_loss=validation_loss,
        pseudo_dice=None if pseudo_dice is None else tuple(pseudo_dice),
        learning_rate=learning_rate,
        skipped=position.skipped,
        progress=state.due_progress(schedule),
    )
    fold.log.epoch(row)
    if plateau:
        LOG.info(plateau)
    follow_the_time(fold, began)


def follow_the_time(fold: TrainingSession, began: float) -> None:
    """Correct what a time budget reserves for the validation, by forward passes timed now.

    Args:
        began: when the epoch's last step was done, by the clock.
    """
    if fold.clock.budget_seconds is None:
        return
    watching = fold.clock.elapsed() - began
    passes = forward_seconds(fold.network, fold.tile, fold.state.runtime.dtype)
    fold.after.observe(*fold.task.ranks.broadcast((passes, watching)))
    if message := fold.after.follow(fold.clock):
        LOG.info(message)


def settle_validation(fold: TrainingSession) -> None:
    """Choose how the validation cases are segmented, now that the last step is done, and write it down."""
    if not fold.validation_samples:
        return
    if message := fold.after.settle(fold.clock):
        LOG.info(message)
    if fold.task.ranks.rank == 0:
        keep_inference(fold.task.folder, fold.after.way)


def rollback(fold: TrainingSession, named: str) -> None:
    """Go back to the last checkpoint and continue more carefully: in float32, or with half the learning rate.

    Args:
        named: the cases of the last step, for the message.

    Raises:
        AutosegError: that was done MAX_ROLLBACKS times already.
    """
    state = fold.state
    rollbacks, runtime = state.rollbacks, state.runtime
    factor, micro_batches = state.learning_rate_factor, state.micro_batches
    if rollbacks == MAX_ROLLBACKS:
        raise AutosegError(
            f"fold {fold.task.number}: {PATIENCE_NON_FINITE} non-finite losses in a row (last cases: {named}), "
            f"even after {MAX_ROLLBACKS} returns to an earlier checkpoint",
            remedy="check these images; or try --set training.learning_rate=..., --set training.autocast=float32",
        )
    fold.checkpoints.wait()
    fold.task.ranks.barrier()  # until the first has written what all read
    saved, _ = newest_checkpoint(fold.task.folder)
    assert saved is not None, "a checkpoint is written before the first step"
    state.restore(saved)
    state.position = replace(state.position, consecutive_nonfinite=0)
    state.learning_rate_factor, state.micro_batches = factor, micro_batches
    fold.log.history[:] = rows_of(saved.history, fold.task.folder / NEWEST)
    state.rollbacks = rollbacks + 1
    if runtime.dtype != "float32":
        state.runtime = replace(runtime, dtype="float32")
        state.scaler = torch.amp.GradScaler(fold.task.device.type, enabled=False)
        change = "now in float32"
    else:
        state.learning_rate_factor /= 2
        change = "now with half the learning rate"
    fold.open_stream()
    LOG.warning(f"{PATIENCE_NON_FINITE} non-finite losses in a row: restored step {state.position.step}, {change}")


def save(fold: TrainingSession, *, finished: bool) -> None:
    """Have the first process write a checkpoint, in the background of the following steps."""
    if fold.task.ranks.rank == 0:
        fold.checkpoints.save(checkpoint_of(fold, finished=finished).to_plain())


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, str]:
    """The newest checkpoint of a fold that is whole, on the CPU, and what the user should know; see `load_newest`."""
    plain, damage = load_newest(folder)
    return None if plain is None else Checkpoint.from_plain(plain, folder / NEWEST), damage


def _result(
    task: TrainingTask,
    position: Position,
    history: Sequence[EpochRow],
    remarks: Sequence[str],
    *,
    already_finished: bool,
) -> FoldResult:
    findings = diagnose(history, list(task.plan.labels.scored))
    name, network = task.configuration_name, task.configuration.network.name
    warnings = tuple(warning_of_fold(finding, task.number, name, network) for finding in findings)
    pseudo_dice = history[-1].pseudo_dice or ()
    return FoldResult(task.number, task.folder, position, pseudo_dice, warnings, already_finished, tuple(remarks))
