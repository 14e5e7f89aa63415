"""Stored cases to a stream of batches: the same batches wherever they are prepared.

A sample is known by its index, counted from the beginning of the training. Its case, its place and its augmentation
follow from (seed, index) alone. So the number of workers changes nothing, nor does a worker that is killed, and a
training resumed at step s starts with exactly the batch that would have come. The stream has no epochs: it does not
pause or restart between them.

    stream = make_stream(store, cases, ..., chain="worker", device_chain=DeviceChain(...), worker_count=4)
    for batch in stream:
        batch = stream.finish(batch, device)

The parts: `patches` (what is cut), `batches` (how it is augmented), `workers` and `shared_memory` (where that is done).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from autoseg.augmentation.host_chain import build_chain
from autoseg.augmentation.presets import Augmentation
from autoseg.dataloading.batches import HostBatches, Shard, TorchBatches, TorchChain
from autoseg.dataloading.patches import PatchReader
from autoseg.dataloading.previous_stage import PreviousStage
from autoseg.dataloading.sampling import PatchSampler
from autoseg.dataloading.shared_memory import FORKS, Batch, for_tensors
from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.dataloading.workers import HELD, PREFETCHED, Workers
from autoseg.imaging.components import component_weights
from autoseg.processes import free_memory

MEMORY_SHARE = 0.25  # of the free memory: what the cases may occupy to be held in it
BATCHES_SHARE = 0.5  # of what is free then: what batches may occupy that workers have prepared
RAW_ROOM = 4  # times a raw batch is larger than its patches: 1.5 on average, 1 of 50 batches of two exceeds 4

ChainName = Literal["host", "worker", "device"]


class BatchStream:
    """An iterator over the batches of a training, in order of steps.

    Args:
        batches: prepares the batch of a step, and finishes it.
        start_step, stop_step: the first step to deliver, and the one after the last; None: a stream without end.
        worker_count: processes that prepare batches; 0 prepares them here. They start with the first batch.
        nbytes: of a batch; only workers need to know it.
        pin_memory: for copies to CUDA.
        say: told of workers that died and were replaced.

    Raises (when a batch is asked for):
        OutOfMemory: workers die again and again.
        Whatever preparing the batch raises; from a worker as an AutosegError, or a RuntimeError with the traceback.
    """

    def __init__(
        self,
        batches: HostBatches | TorchBatches,
        *,
        start_step: int = 0,
        stop_step: int | None = None,
        worker_count: int = 0,
        nbytes: int = 1,
        pin_memory: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.batches = batches
        self.step = start_step
        self.stop_step = math.inf if stop_step is None else stop_step
        self.pin_memory = pin_memory
        self.workers: Workers | None = None
        if worker_count:
            self.workers = Workers(
                batches, count=worker_count, start=start_step, stop=stop_step, nbytes=nbytes, say=say
            )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The batch of the next step, as `finish` takes it; without workers it is prepared now."""
        if self.step >= self.stop_step:
            raise StopIteration
        if self.workers is not None:
            batch = next(self.workers)
        else:
            with _one_thread():
                batch = self.batches(self.step)
        self.step += 1
        return for_tensors(batch, Tensor.pin_memory) if self.pin_memory else batch

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Bring a batch to the device, and augment it there if the chain runs on the device."""
        return self.batches.finish(batch, device)

    def close(self) -> None:
        """End the workers. Batches that were delivered stay."""
        self.stop_step = self.step
        if self.workers is not None:
            self.workers.close()


def make_stream(
    store: CaseStore,
    cases: Sequence[str],
    *,
    patch_size: Sequence[int],
    batch_size: int,
    labels: Sequence[Sequence[int]],
    augmentation: Augmentation,
    mirror_axes: Sequence[int],
    masked_channels: Sequence[int] = (),
    rgb: bool = False,
    anisotropic: bool | None = None,
    border: float = 0.0,
    chain: ChainName = "host",
    device_chain: TorchChain | None = None,
    previous: Path | None = None,
    num_labels: int = 0,
    component_weight: float = 0.0,
    ignore_index: int | None = None,
    foreground_fraction: float,
    case_sampling: Literal["uniform", "presence"] = "uniform",
    class_sampling: Literal["uniform", "inverse_frequency"] = "uniform",
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    worker_count: int = 0,
    pin_memory: bool = False,
    memory_limit: int | None = None,
    say: Callable[[str], None] = print,
) -> BatchStream:
    """Make the stream of batches of a training.

    Args:
        store, cases: the preprocessed cases, and the ids to draw from.
        patch_size: (Z, Y, X), or (Y, X) for slices.
        batch_size: samples per step.
        labels: what foreground patches are aimed at, as class indices; see `PatchSampler`, also for
            foreground_fraction, case_sampling and class_sampling.
        augmentation: the table; see `build_chain`, also for mirror_axes, masked_channels, rgb, anisotropic and border.
        chain: "host" augments with the host chain, "worker" with `device_chain` where batches are prepared, "device"
            with it when they are finished.
        device_chain: made of the same settings as the host chain; not needed for "host".
        previous, num_labels: a folder with the segmentation of a previous stage of every case, on the grid of the
            store (<case>.npy, class indices), and the number of its labels: they become further channels.
        component_weight: power of the weights of components, see `component_weights`; 0: no weights. Not with "device".
        ignore_index: class index of voxels that nobody annotated, or None.
        seed: not negative. Give validation patches another seed than training.
        start_step, stop_step: the first step to deliver, and the one after the last; None: a stream without end.
        rank, ranks: deliver one of `ranks` equal parts of every batch.
        worker_count: processes that prepare batches; 0 prepares them here. Fewer, if memory is short.
        pin_memory: for copies to CUDA.
        memory_limit: bytes the cases may occupy in memory (0: never held); None: a quarter of what is free.
        say: told what happens to workers.

    Returns:
        A stream of batches that are, when finished, {"image": float32 (B, C, *patch), "target": uint8 or int16
        (B, *patch), "cases": list of ids}, with C + num_labels channels in a cascade, and "weights": float32
        (B, *patch) where component_weight is not 0.
    """
    infos = {case: store.info(case) for case in cases}
    sampler = PatchSampler(
        infos, patch_size=patch_size, labels=labels, seed=seed,
        foreground_fraction=foreground_fraction, case_sampling=case_sampling, class_sampling=class_sampling,
    )  # fmt: skip
    stage = PreviousStage(previous, num_labels, augmentation) if previous else None
    free = free_memory() // ranks  # of which each takes its share
    limit = int(free * MEMORY_SHARE) if memory_limit is None else memory_limit
    in_memory = (FORKS or not worker_count) and sum(map(store.nbytes, cases)) <= limit
    reader = PatchReader(store, sampler, stage, in_memory=in_memory)
    shard = Shard(batch_size, rank, ranks)
    weigh = partial(component_weights, power=component_weight, ignore_index=ignore_index) if component_weight else None
    batches: HostBatches | TorchBatches
    if chain == "host":
        host_chain = build_chain(
            augmentation, patch_size=patch_size, mirror_axes=mirror_axes, anisotropic=anisotropic,
            masked_channels=masked_channels, rgb=rgb, border=border,
        )  # fmt: skip
        batches = HostBatches(reader, host_chain, shard, weigh)
    else:
        assert device_chain is not None, f"chain {chain!r} needs a device chain"
        batches = TorchBatches(reader, device_chain, shard, chain == "device", weigh)
    nbytes = _batch_bytes(list(infos.values()), patch_size, shard.size, num_labels, chain)
    return BatchStream(
        batches, start_step=start_step, stop_step=stop_step, worker_count=_affordable(worker_count, nbytes, free, say),
        nbytes=nbytes, pin_memory=pin_memory, say=say,
    )  # fmt: skip


def _batch_bytes(
    infos: Sequence[CaseInfo], patch_size: Sequence[int], samples: int, num_labels: int, chain: ChainName
) -> int:
    """Bytes that a batch takes between preparing and finishing it."""
    channels, widest = infos[0].channels, max(np.dtype(info.image_dtype).itemsize for info in infos)
    raw = RAW_ROOM * (channels * widest + 2 * 2)  # the image as stored, and two label maps
    augmented = 4 * (channels + num_labels) + 2 + 4  # the image, the target and weights
    per_voxel = raw if chain == "device" else augmented
    return samples * (math.prod(patch_size) * per_voxel + 2**10)  # where each array begins, it is aligned


def _affordable(worker_count: int, nbytes: int, free: int, say: Callable[[str], None]) -> int:
    """As many workers as there is memory for their batches."""
    count = min(worker_count, max(int((free * BATCHES_SHARE / nbytes - HELD) // PREFETCHED), 0))
    if count < worker_count:
        say(
            f"{free / 2**20:.0f} MB of memory are free, too little for what {worker_count} processes prepare "
            f"(batches of {nbytes / 2**20:.0f} MB): {count} do it. End other programs, or give this one more memory"
        )
    return count


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as in a worker: a sum of many numbers depends on how many threads add them up.

    numpy's threads wait for each other in loops that take a core each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _thread_pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # to look for them takes a while
