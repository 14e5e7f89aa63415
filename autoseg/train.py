"""One fold: the one visible loop.

`train_fold` reads top to bottom: where the fold stands, its data, its network, the dtype, then epochs of plain steps.
The schedule spans what was asked for: a number of epochs, or a wall-time budget that includes the validation
afterwards. At the end of every epoch the fold is checkpointed; the same command goes on from there.

Files of a fold: `last.pt` (everything needed to go on, and the weights to predict with), `history.jsonl` (one line per
epoch), `log.txt` (what was shown). The weights of the last step are the ones that predict: choosing an epoch by its
validation score would make the cross-validation flatter itself.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.cascade import open_previous
from autoseg.data.splits import Split
from autoseg.data.store import CaseStore
from autoseg.errors import AutosegError, StateError
from autoseg.fold_log import Clock, FoldLog, Position
from autoseg.from_plan import (
    build_plan_loss,
    build_plan_network,
    configuration_mirror_axes,
    head_probabilities,
    patch_stream,
)
from autoseg.nn.checkpoint import load_checkpoint, save_checkpoint
from autoseg.nn.optimization import OPTIMIZERS, WeightAverage, set_learning_rate
from autoseg.nn.precision import autocast, candidates, choose, measure
from autoseg.nn.sliding_window import tile_starts
from autoseg.nn.training_step import clipped_gradients, loss_of, update
from autoseg.plan import Configuration, Plan
from autoseg.processes import available_cores
from autoseg.records import to_plain
from autoseg.workspace import Workspace, lock

CHECKPOINT_VERSION = 1
VALIDATION_STEPS = 8  # batches of fixed patches on which the pseudo Dice is estimated every epoch
VALIDATION_MARGIN = 1.3  # wall time of predicting the validation cases over the bare forward passes
VALIDATION_SECONDS_PER_CASE = 0.1  # reading, resampling and writing a case
CHECKPOINT_SECONDS = 1.0
MAX_WORKERS = 12
PATIENCE_NON_FINITE = 10  # steps in a row without a finite loss before training gives up


@dataclass(frozen=True)
class FoldResult:
    """How a fold ended."""

    fold: int
    folder: Path
    position: Position
    pseudo_dice: tuple[float | None, ...]  # of the last epoch, one per label or region
    already_finished: bool  # nothing was done: the fold had been trained before


def train_fold(
    workspace: Workspace,
    plan: Plan,
    configuration_name: str,
    split: Split,
    *,
    device: torch.device,
    restart: bool = False,
) -> FoldResult:
    """Train one fold of one configuration, or go on where it stopped.

    Args:
        plan: with the epochs or the time budget already set in `plan.training`.
        split: the cases to train on and to validate with.
        restart: begin anew; what was there is kept beside it under another name.

    Raises:
        StateError: data are not preprocessed, the fold was trained under another plan, or another process trains it.
        AutosegError: the loss stays non-finite.
    """
    began = time.perf_counter()
    configuration, training = plan.configurations[configuration_name], plan.training
    folder = workspace.fold(configuration_name, configuration.network.name, split.fold)
    if restart and folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    with lock(folder / ".lock", f"training {folder}"):
        # 1. Where this fold stands
        path = folder / "last.pt"
        state = load_checkpoint(path, device) if path.exists() else None
        if state is not None:
            _require_same_plan(state["plan"], plan, configuration_name, folder)
            if state["finished"]:
                return _result(split.fold, folder, state, already_finished=True)
        position = Position(**state["position"]) if state else Position()

        # 2. Data, network, loss, optimiser
        torch.manual_seed(training.seed + split.fold)
        store = CaseStore(workspace.preprocessed(configuration.data))
        previous = open_previous(workspace, configuration_name, configuration, (*split.train, *split.validation))
        validation = list(
            patch_stream(
                store, split.validation, plan, configuration, previous=previous, augment=False, steps=VALIDATION_STEPS
            )
        )
        network = build_plan_network(plan, configuration).to(device)
        network.deep_supervision = training.deep_supervision  # type: ignore[assignment]
        criterion = build_plan_loss(plan, configuration).to(device)
        optimizer = OPTIMIZERS[training.optimizer](
            network.parameters(), training.learning_rate, training.weight_decay, training.momentum
        )
        average = WeightAverage(network, training.weight_average) if training.weight_average else None
        log = FoldLog(folder, split.fold, list(plan.labels.scored), state["history"] if state else [])

        # 3. The dtype that is fastest and right on this machine; a resumed fold keeps the one it began with
        if state is None:
            dtype, forward_seconds = choose_dtype(network, validation[0]["image"].to(device), training.autocast, log)
        else:
            dtype, forward_seconds = state["dtype"], state["forward_seconds"]
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            if average:
                average.average, average.steps = state["average"], state["average_steps"]
            log.say(f"fold {split.fold}  resumed after epoch {position.epoch}, step {position.step}")
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")

        # 4. The length of the schedule
        clock = Clock(
            spent=position.seconds + time.perf_counter() - began,
            epochs=training.epochs,
            iterations_per_epoch=training.iterations_per_epoch,
            budget_seconds=training.time_budget_seconds,
        )
        clock.reserve_seconds = validation_seconds(store, split, plan, configuration, forward_seconds)

        # 5. Epochs of steps
        stream = iter(
            patch_stream(
                store, split.train, plan, configuration, previous=previous, start_step=position.step,
                workers=worker_count(training.workers, device), pin_memory=device.type == "cuda",
            )
        )  # fmt: skip
        non_finite = 0
        progress = clock.progress(position.step)
        with log:
            while progress < 1:
                losses: list[float] = []
                epoch_began = clock.elapsed()
                for epoch_steps, batch in enumerate(stream, start=1):
                    rate = set_learning_rate(optimizer, training.learning_rate, training.schedule, progress)
                    image = batch["image"].to(device, non_blocking=True)
                    target = batch["target"].to(device, non_blocking=True)
                    loss = training_step(
                        network, criterion, optimizer, scaler, image, target, dtype, training.gradient_clip
                    )
                    position = replace(position, step=position.step + 1)
                    progress = clock.progress(position.step)
                    if math.isfinite(loss):
                        losses.append(loss)
                        non_finite = 0
                        if average:
                            average.update(network)
                    else:
                        non_finite += 1
                        if non_finite == PATIENCE_NON_FINITE:
                            raise _diverged(split.fold, batch["cases"])
                    log.step(loss, progress)
                    if progress >= 1 or clock.epoch_is_over(epoch_steps, clock.elapsed() - epoch_began):
                        break

                # 6. Once per epoch: validate on fixed patches, write down, checkpoint
                if average:
                    average.swap(network)
                validation_loss, pseudo_dice = validate(network, criterion, validation, plan, device, dtype)
                if average:
                    average.swap(network)
                progress = clock.progress(position.step)  # validating used up some of a time budget, too
                position = replace(position, epoch=position.epoch + 1, seconds=clock.elapsed())
                log.epoch(
                    position, loss=sum(losses) / max(len(losses), 1), validation_loss=validation_loss,
                    pseudo_dice=pseudo_dice, learning_rate=rate, progress=progress,
                )  # fmt: skip
                state = {
                    "version": CHECKPOINT_VERSION,
                    "plan": to_plain(plan),
                    "configuration": configuration_name,
                    "fold": split.fold,
                    "train": list(split.train),
                    "validation": list(split.validation),
                    "position": asdict(position),
                    "finished": progress >= 1,
                    "dtype": dtype,
                    "forward_seconds": forward_seconds,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.average if average else None,
                    "average_steps": average.steps if average else 0,
                    "history": log.history,
                }
                save_checkpoint(path, state)
        assert state is not None
        return _result(split.fold, folder, state, already_finished=False)


def training_step(
    network: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    image: Tensor,
    target: Tensor,
    dtype: str,
    gradient_clip: float,
) -> float:
    """Do one optimiser step on a batch and return its loss. A non-finite loss or gradient (NaN) changes no weight.

    Args:
        image: (B, C, *patch) float32.
        target: (B, *patch) class indices.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(network, criterion, image, target, dtype)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    norm = clipped_gradients(loss, network, optimizer, scaler, gradient_clip)
    if not scaler.is_enabled() and not norm.isfinite():  # a scaler skips such a step itself, and scales less
        return math.nan
    update(optimizer, scaler)
    return value


def validate(
    network: nn.Module,
    criterion: nn.Module,
    batches: Sequence[dict[str, Any]],
    plan: Plan,
    device: torch.device,
    dtype: str,
) -> tuple[float, list[float | None]]:
    """Mean loss and pseudo Dice on fixed patches.

    The pseudo Dice of a label or region counts voxels over all patches together; None where it occurs in neither.
    """
    heads = plan.heads
    scored = list(plan.labels.scored.values())
    counts = torch.zeros(len(scored), 3, dtype=torch.int64)  # intersection, reference, segmentation
    total = 0.0
    with torch.inference_mode():
        for batch in batches:
            target = batch["target"].to(device)
            with autocast(device, dtype):
                logits = network(batch["image"].to(device))
            total += float(criterion(logits, target))
            probabilities = head_probabilities(logits[0].float(), heads.has_regions).movedim(1, 0)
            decided = torch.from_numpy(heads.decide(probabilities.cpu().numpy()))
            reference = target.cpu()
            annotated = torch.ones_like(reference, dtype=torch.bool)
            if plan.labels.ignore_index is not None:
                annotated = reference != plan.labels.ignore_index
            for i, indices in enumerate(scored):
                union = torch.tensor(indices)
                r = torch.isin(reference, union) & annotated
                s = torch.isin(decided.to(reference.dtype), union) & annotated
                counts[i] += torch.stack(((r & s).sum(), r.sum(), s.sum()))
    dice = [2 * int(i) / int(r + s) if r + s > 0 else None for i, r, s in counts]
    return total / len(batches), dice


def worker_count(wanted: int | None, device: torch.device) -> int:
    """Processes that prepare patches: as asked for, otherwise all cores but one beside a GPU, one beside a CPU."""
    if wanted is not None:
        return wanted
    return max(1, min(available_cores() - 1, MAX_WORKERS)) if device.type != "cpu" else 1


def choose_dtype(network: nn.Module, image: Tensor, wanted: str, log: FoldLog) -> tuple[str, float]:
    """Dtype of the convolutions, and the seconds one forward pass of `image`'s batch takes in it.

    `wanted` is "auto" (measure and choose) or a dtype to use as it is.
    """
    if image.device.type != "cpu":
        image = image[:1]  # the plan fills the device with a batch in half precision: in float32 it would not fit
    tried = candidates(image.device) if wanted == "auto" else tuple(dict.fromkeys(("float32", wanted)))
    trials = measure(network, image, tried)
    chosen = choose(trials) if wanted == "auto" else trials[-1]
    shown = ", ".join(f"{t.dtype} {1000 * t.seconds:.0f} ms (off by {t.difference:.1%})" for t in trials)
    log.say(f"fold {log.fold}  {image.device.type}, forward and backward: {shown} -> {chosen.dtype}")
    return chosen.dtype, chosen.forward_seconds / len(image)


def validation_seconds(
    store: CaseStore, split: Split, plan: Plan, configuration: Configuration, forward_seconds: float
) -> float:
    """Estimate the wall time after the last step, from the measured time of one patch.

    That is the last pseudo Dice, the checkpoint, and the prediction of the fold's validation cases.
    """
    tiles = 0
    for case in split.validation:
        shape = store.info(case).shape
        slices = shape[0] if configuration.dims == 2 else 1
        starts = (
            tile_starts(s, t, 0.5) for s, t in zip(shape[-configuration.dims :], configuration.patch_size, strict=True)
        )
        tiles += slices * math.prod(len(s) for s in starts)
    axes = configuration_mirror_axes(plan, configuration) if plan.training.test_time_mirroring else ()
    forward = (
        VALIDATION_MARGIN * forward_seconds * (VALIDATION_STEPS * configuration.batch_size + tiles * 2 ** len(axes))
    )
    return forward + CHECKPOINT_SECONDS + VALIDATION_SECONDS_PER_CASE * len(split.validation)


def _require_same_plan(trained: Any, plan: Plan, name: str, folder: Path) -> None:
    """Refuse to go on under other settings than those a fold began with.

    What was predicted of its cost may differ, the reasons in the plan, the other configurations, and the number of
    workers, which changes no batch.
    """
    workers = plan.training.workers
    before, now = (_what_decides(plain, name, workers) for plain in (Plan.upgrade(trained), to_plain(plan)))
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise StateError(
            f"{folder} was trained under another plan: {', '.join(changed)} differ",
            remedy="repeat the options it was begun with, or begin anew with --restart (the old fold is kept aside)",
        )


def _what_decides(plan: dict[str, Any], name: str, workers: int | None) -> dict[str, Any]:
    """What the weights of a fold follow from, of a plan as plain data."""
    indifferent = ("decisions", "configurations", "recommended", "rules", "preset", "device", "vram_gb")
    kept = {key: value for key, value in plan.items() if key not in indifferent}
    configuration = {key: value for key, value in plan["configurations"][name].items() if key != "cost"}
    return kept | {"training": plan["training"] | {"workers": workers}, f"configurations.{name}": configuration}


def _diverged(fold: int, cases: Sequence[str]) -> AutosegError:
    return AutosegError(
        f"fold {fold}: the loss was not finite in {PATIENCE_NON_FINITE} steps in a row, the last on cases "
        + ", ".join(cases),
        remedy="look at these images; or try --set training.learning_rate=..., --set training.autocast=float32",
    )


def _result(fold: int, folder: Path, state: dict[str, Any], *, already_finished: bool) -> FoldResult:
    last = state["history"][-1]["pseudo_dice"]
    return FoldResult(fold, folder, Position(**state["position"]), tuple(last), already_finished)
