"""A step of a fold, and a look at its fixed samples, within the memory there is.

Where a batch does not fit, it passes the network in halves, in quarters, ..., from then on; gradients add up.

    step_within_memory      one optimiser step
    validate_within_memory  loss and pseudo Dice of the fixed samples
    TrainingStep            the step itself, in a given number of parts
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoseg.errors import OutOfMemory
from autoseg.lines import LOG
from autoseg.messages import LESS_MEMORY
from autoseg.nn.training_step import clipped_gradients, is_out_of_memory, loss_of, update
from autoseg.training.prompted import segment_with
from autoseg.training.setup import TrainingSession
from autoseg.training.state import seed_of
from autoseg.training.validation import Batch, ValidationBatches, validate


def step_within_memory(fold: TrainingSession, batch: Batch) -> float:
    """Do one step; where it does not fit the memory, again in halves of the batch, and so from then on.

    Raises:
        OutOfMemory: not a single sample fits, or the optimiser state does not fit.
    """
    task, state, training = fold.task, fold.state, fold.task.plan.training
    samples = len(batch["image"])
    while True:
        state.seed_step(task.number, task.ranks.rank)
        try:
            step = TrainingStep(
                fold.trained, fold.criterion, state.optimizer, state.scaler, state.runtime.dtype, training.gradient_clip
            )
            return step(prompted(fold, batch), parts=min(state.micro_batches, samples), meanwhile=fold.bring_next)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        halve_micro_batch(fold, samples, reason)  # outside of `except`: the error no longer holds the feature maps


def prompted(fold: TrainingSession, batch: Batch) -> Batch:
    """A batch with the prompts of this step, where the network takes them; otherwise as it is."""
    if fold.prompting is None:
        return batch
    task, state = fold.task, fold.state
    seed = (task.plan.training.seed, seed_of(task.number), task.ranks.rank, state.position.step)
    return fold.prompting(batch, segment_with(fold.network, task.plan, state.runtime.dtype), seed)


def validate_within_memory(fold: TrainingSession, samples: ValidationBatches) -> tuple[float, list[float | None]]:
    """Loss and pseudo Dice, the same on every rank; batches that do not fit the memory pass in halves, from then on.

    Raises:
        OutOfMemory: not a single sample fits.
    """
    task, state = fold.task, fold.state
    while True:
        try:
            found = validate(
                fold.network, fold.criterion, samples, task.plan, task.device, state.runtime.dtype,
                parts=state.micro_batches,
            )  # fmt: skip
            return task.ranks.broadcast(found)  # what it leads to, all do
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        halve_micro_batch(fold, samples.batch_size, reason)


def halve_micro_batch(fold: TrainingSession, samples: int, reason: str) -> None:
    """Divide batches of `samples` samples into twice as many parts from now on, and drop an interrupted step.

    Several processes would have to do so at the same time: they do not try.

    Raises:
        OutOfMemory: a part is a single sample already.
    """
    task, state = fold.task, fold.state
    if state.micro_batches >= samples or task.ranks.count > 1:
        raise OutOfMemory(
            f"fold {task.number}: {reason}",
            remedy=f"{LESS_MEMORY}, or end other programs that use this device",
        )
    state.micro_batches = min(2 * state.micro_batches, samples)
    state.optimizer.zero_grad(set_to_none=True)
    state.renew_scaler(task.device)
    if task.device.type == "cuda":
        torch.cuda.empty_cache()
    LOG.warning(f"out of memory: from now on, each batch is split into {state.micro_batches} micro-batches")


@dataclass(frozen=True)
class TrainingStep:
    """One optimiser step: what it works with. Call it with a batch."""

    network: nn.Module  # what is trained, on the device; over several processes, what spreads it
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dtype: str  # of the convolutions
    gradient_clip: float  # longest all gradients together may be

    def __call__(
        self, batch: Mapping[str, Any], *, parts: int = 1, meanwhile: Callable[[], None] = lambda: None
    ) -> float:
        """Do one optimiser step on a batch and return its loss. A non-finite loss or gradient (NaN) changes no weight.

        Args:
            batch: "image" (B, C, *patch) float32, "target" (B, *patch) class indices, perhaps "weights" (B, *patch).
            parts: in which the batch passes the network; gradients add up. The Dice of a batch, and the mean over
                weighted or annotated voxels, are then those of its parts.
            meanwhile: done when all work is given to the device, before anybody waits for it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        tensors = [batch["image"], batch["target"], *([batch["weights"]] if "weights" in batch else [])]
        pieces = list(zip(*(tensor.tensor_split(parts) for tensor in tensors), strict=True))
        value = 0.0
        for piece in pieces[:-1]:
            loss = loss_of(self.network, self.criterion, *piece, dtype=self.dtype) * (len(piece[0]) / len(tensors[0]))
            value += float(loss.detach())
            self.scaler.scale(loss).backward()
        loss = loss_of(self.network, self.criterion, *pieces[-1], dtype=self.dtype)
        if parts > 1:
            loss = loss * (len(pieces[-1][0]) / len(tensors[0]))
        norm = clipped_gradients(loss, self.network, self.optimizer, self.scaler, self.gradient_clip)
        meanwhile()
        last, length = torch.stack([loss.detach().float(), norm.float()]).tolist()  # waits for the device, once
        value += last
        finite = math.isfinite(value + length)
        if not finite and not self.scaler.is_enabled():
            return math.nan
        try:
            update(self.optimizer, self.scaler)
        except (RuntimeError, MemoryError) as error:  # perhaps half of the weights are new: no step to try again
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"out of memory for the optimiser state: {str(error).splitlines()[0]}",
                remedy=f"{LESS_MEMORY}, or end other programs that use this device",
            ) from None
        if not finite and self.scaler.get_scale() < 1:  # it skipped such steps while it looked for its scale, in vain
            return math.nan
        return value
