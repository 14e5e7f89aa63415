"""Shared memory for batches: a worker writes the arrays of a batch into a slot, the training reads them where they are.

A batch costs the training no copy and no allocation. Its slot is free again when the last tensor of the batch is gone.

The memory is anonymous, not a file in /dev/shm, of which containers often have 64 MB: what is written beyond that ends
a process with a bus error. (Where processes are not forked, on macOS and Windows, it is a temporary file.)
"""

import ctypes
import math
import mmap
import multiprocessing
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import OutOfMemory

FORKS = sys.platform == "linux"  # shares the cases held in memory; safe, as torch starts no threads in a worker
ALIGNMENT = 64  # bytes

Batch = dict[str, Any]  # values: tensors, lists, or small things that can be sent through a pipe


@dataclass(frozen=True)
class Stored:
    """Where an array lies in its slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Slots:
    """Shared memory for `count` batches of `nbytes` bytes.

    Raises:
        OutOfMemory: the system does not promise that much.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self.count = count
        self.nbytes = aligned(nbytes)
        total = self.count * self.nbytes
        try:  # pages that nobody writes to take no memory
            self.block: Any = mmap.mmap(-1, total) if FORKS else start_method().RawArray(ctypes.c_byte, total)
        except OSError as error:
            raise OutOfMemory(
                f"cannot reserve {total / 2**20:.0f} MB of shared memory for batches: {error.strerror}",
                remedy="use fewer processes to prepare them (--set training.workers=0), or end other programs",
            ) from error

    def store(self, slot: int, batch: Batch) -> Batch:
        """Copy the tensors of a batch into a slot, and put in their place where they lie.

        A tensor for which no room is left becomes an array, to be sent through the pipe.
        """
        writer = _Writer(self._of(slot))
        return {
            name: [writer.store(item) for item in value] if isinstance(value, list) else writer.store(value)
            for name, value in batch.items()
        }

    def load(self, slot: int, batch: Batch, when_gone: Callable[[], None]) -> Batch:
        """The batch that was stored, its tensors views of the slot; `when_gone` is called when none of them is left."""
        memory = self._of(slot)  # each view keeps this array alive, and this array the memory
        weakref.finalize(memory, when_gone).atexit = False
        return {
            name: [_loaded(item, memory) for item in value] if isinstance(value, list) else _loaded(value, memory)
            for name, value in batch.items()
        }

    def _of(self, slot: int) -> np.ndarray:
        return np.frombuffer(self.block, np.uint8, self.nbytes, slot * self.nbytes)


class _Writer:
    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.used = 0

    def store(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        array = value.numpy()
        if self.used + array.nbytes > len(self.memory):
            return array
        there = Stored(self.used, array.shape, array.dtype.str)
        self.used += aligned(array.nbytes)
        _view(there, self.memory)[...] = array
        return there


def _loaded(value: Any, memory: np.ndarray) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return torch.from_numpy(_view(value, memory)) if isinstance(value, Stored) else value


def _view(there: Stored, memory: np.ndarray) -> np.ndarray:
    dtype = np.dtype(there.dtype)
    stop = there.offset + math.prod(there.shape) * dtype.itemsize
    return memory[there.offset : stop].view(dtype).reshape(there.shape)


def for_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The same batch with a function applied to all its tensors."""

    def of(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    return {name: [of(item) for item in v] if isinstance(v, list) else of(v) for name, v in batch.items()}


def aligned(nbytes: int) -> int:
    """Bytes up to where the next array may begin."""
    return math.ceil(nbytes / ALIGNMENT) * ALIGNMENT


def start_method() -> Any:
    """How processes begin here: forked, or from nothing."""
    return multiprocessing.get_context("fork" if FORKS else "spawn")
