"""Several processes as one training, each with an equal share of every batch: torchrun's ranks, with DDP.

    sum_over_ranks, mean_over_ranks   of which a loss is made, so that it is that of the whole batch
    Ranks                             how the processes meet, agree, average gradients, and notice that one is gone

**Why the gradients are those of one process.** A loss is a function L of sums S over the batch, such as overlaps,
weighted entropies and their weights. Every rank r holds a part s_r of S and, by `sum_over_ranks`, computes L(S): all
ranks see the loss of the whole batch. S enters the loss of each of the R ranks, so that the backward pass adds up what
all of them want of it: dL/ds_r comes to R dL/dS, and the parameters of rank r get R dL/dS ds_r/dw. DDP replaces this by
its mean over the ranks: dL/dS times the sum of ds_r/dw, which is dL/dw. No factor is left to the caller.

Every call of a loss is therefore collective: all ranks make it, equally often and in the same order, or all wait.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from autoseg.errors import AutosegError, UsageError
from autoseg.nn.deep_supervision import rest_idle_heads

TIMEOUT = timedelta(minutes=10)  # that ranks wait for each other's share of one work; compiling takes a few
BARRIER_TIMEOUT = timedelta(days=1)  # and for the work of one alone, such as to preprocess, or to predict a fold


class _SumOverRanks(torch.autograd.Function):
    """The sum of what all ranks hold; its gradient is the sum of what all ranks want."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _added_up(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted: Tensor) -> Tensor:
        return _added_up(wanted)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Add up a tensor of any shape and dtype over the ranks, differentiably; `x` itself where there is one process.

    All ranks get the same bits.
    """
    return _SumOverRanks.apply(x) if dist.is_initialized() else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Average over the ranks, differentiably: the mean over a batch, of the means over its equal shares."""
    return _SumOverRanks.apply(x) / dist.get_world_size() if dist.is_initialized() else x


def _added_up(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@dataclass
class Ranks:
    """Where this process stands among those that train together; alone by default.

    As a context it parts from the others at its end, and names the loss of one:

        with Ranks.from_environment("cuda") as ranks:
            trained = ranks.wrap(network, device)

    Raises:
        AutosegError: inside of the context, another rank ended or did not answer within TIMEOUT. Under NCCL, torch's
            watchdog may end this process instead, after as long. torchrun ends all ranks as soon as it sees one fail.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # of the ranks on this machine: its GPU
    local_count: int = 1  # of the ranks on this machine
    patient: dist.ProcessGroup | None = field(default=None, init=False, repr=False, compare=False)  # of barriers

    @classmethod
    def from_environment(cls, device_type: str) -> "Ranks":
        """Meet the other ranks that torchrun has started; alone where it has started none.

        Args:
            device_type: cpu or cuda, where the training runs; on cuda each rank takes the GPU of its local rank.

        Raises:
            UsageError: there are fewer GPUs than ranks on this machine, or ranks of another device than these.
            AutosegError: not all ranks came within TIMEOUT.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not os.environ.keys() >= set(names):
            return cls()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        rank, count, local_rank = (int(os.environ[name]) for name in names)
        ranks = cls(rank, count, local_rank, here)
        if ranks.count > 1:
            ranks.init("env://", device_type)
        return ranks

    def init(self, place: str, device_type: str, timeout: timedelta = TIMEOUT) -> None:
        """Join the other ranks at a `place` all know, a URL as `init_process_group` takes it.

        Numbers on the CPU are exchanged by gloo, on either kind of device; an all_max never waits for a GPU.
        """
        if device_type not in ("cpu", "cuda"):
            raise UsageError(
                f"{self.count} ranks on the device {device_type}; ranks are supported on cuda and cpu",
                remedy="start one process, without torchrun, or pass --device cpu",
            )
        if device_type == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"local rank {self.local_rank} has no GPU: this machine has {torch.cuda.device_count()}",
                    remedy=f"pass torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu",
                )
            torch.cuda.set_device(self.local_rank)
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        try:
            dist.init_process_group(
                backend, init_method=place, rank=self.rank, world_size=self.count, timeout=timeout
            )  # fmt: skip
            self.patient = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
        except RuntimeError as error:
            raise AutosegError(
                f"rank {self.rank} of {self.count} did not reach the others within {timeout.total_seconds():.0f} s",
                remedy="start all ranks with one torchrun command; for several machines, see its --rdzv-endpoint",
            ) from error

    def all_max(self, *values: float) -> tuple[float, ...]:
        """The greatest of each value over all ranks: what one wants (a stop, more time), all do. Finite values."""
        if self.count == 1:
            return values
        greatest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
        return tuple(greatest.tolist())

    def all_sum(self, counts: Tensor) -> Tensor:
        """Add up counts of any shape over all ranks."""
        return _added_up(counts) if self.count > 1 else counts

    def all_mean(self, value: float) -> float:
        """Average a value over all ranks."""
        return float(self.all_sum(torch.tensor(value, dtype=torch.float64))) / self.count

    def broadcast(self, value: Any) -> Any:
        """What rank 0 holds, on every rank: plain data, such as a choice that each would measure differently."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def all_gather(self, items: Sequence[Any]) -> list[Any]:
        """The plain data of all ranks, in their order, on every rank."""
        if self.count == 1:
            return list(items)
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, list(items))
        return [item for items_of_one in held for item in items_of_one]

    def barrier(self) -> None:
        """Wait until all ranks are here, BARRIER_TIMEOUT at most."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(()), group=self.patient)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """What to call instead of `network` where gradients are wanted; alone, the network itself.

        Gradients are then those of the loss of the whole batch, and all ranks start from rank 0's weights. `network`
        keeps its parameters, its attributes and the keys of its state_dict; call itself where no gradients are wanted.
        Its `deep_supervision` has to stand: DDP waits for the gradient of every parameter that learns, hence heads
        without a loss are taken out of what learns. Stages may be checkpointed. All ranks do the same steps: a step
        that is skipped is skipped by all, which a loss of the whole batch sees to.
        """
        if self.count == 1:
            return network
        rest_idle_heads(network)
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # there are none that change
            gradient_as_bucket_view=True,  # not kept twice
        )

    def close(self) -> None:
        """Part from the other ranks, if this one has met them."""
        if self.count > 1 and dist.is_initialized():
            self.patient = None  # who holds a group keeps its connections open
            dist.destroy_process_group()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        # Over gloo the others notice at once. NCCL would wait for them: after an error, the end of the process parts.
        if error is None or not dist.is_initialized() or dist.get_backend() == "gloo":
            self.close()
        if self.count > 1 and _of_a_lost_rank(error):
            raise AutosegError(
                f"rank {self.rank} of {self.count}: another rank ended, or did not answer in time",
                remedy="read the last messages of the other ranks; the same command resumes from the last checkpoint",
            ) from error


def _of_a_lost_rank(error: BaseException | None) -> bool:
    """Whether it comes of the exchange between ranks; gloo's errors are known by their text alone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
