"""Stored cases to a stream of batches: the same batches wherever they are prepared.

A sample is known by its index, counted from the beginning of the training. Its case, its place and its augmentation
follow from (seed, index) alone. So the number of workers changes nothing, nor does a worker that is killed, and a
training resumed at step s starts with exactly the batch that would have come. The stream has no epochs: it does not
pause or restart between them.

It is composed of parts that are built before and handed over:

    sampler = PatchSampler(infos, labels=..., foreground_fraction=0.33, seed=0)   which case, which place
    reader = PatchReader(store, sampler, in_memory=False)                         what is cut there
    chain = DeviceChain(table, channels=1, patch_size=(64, 128, 128), ...)        how it is augmented, and how large
    batches = TorchBatches(reader, chain, Shard(batch_size=2), on_device=True)    step -> batch
    stream = BatchStream(batches, worker_count=4)                                 where batches are prepared
    for batch in stream:
        batch = stream.finish(batch, device)

A finished batch is {"image": float32 (B, C, *patch), "target": uint8 or int16 (B, *patch), "cases": list of ids}, with
one channel more per label of a previous stage, and "weights": float32 (B, *patch) where components are weighed.
`autoseg.training.batches` builds all of it of a plan.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from autoseg.dataloading.batches import HostBatches, TorchBatches
from autoseg.dataloading.shared_memory import Batch, for_tensors
from autoseg.dataloading.workers import Workers


class BatchStream:
    """An iterator over the batches of a training, in order of steps.

    Args:
        batches: prepares the batch of a step, and finishes it.
        start_step, stop_step: the first step to deliver, and the one after the last; None: a stream without end.
        worker_count: processes that prepare batches; 0 prepares them here. They start with the first batch.
        pin_memory: for copies to CUDA.

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
        pin_memory: bool = False,
    ) -> None:
        self.batches = batches
        self.step = start_step
        self.stop_step = math.inf if stop_step is None else stop_step
        self.pin_memory = pin_memory
        self.workers: Workers | None = None
        if worker_count:
            self.workers = Workers(batches, count=worker_count, start=start_step, stop=stop_step, nbytes=batches.nbytes)

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
