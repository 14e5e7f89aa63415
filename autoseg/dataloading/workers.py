"""Processes that prepare batches, one step after the other, in memory they share with the training.

**A worker may be killed at any moment** (the kernel takes the largest process when memory runs out). Each has a pipe of
its own and shares no lock with anybody, so the end of a pipe is the end of that one worker, even in the middle of a
message. The training sees it when it asks for a batch or waits for one, never in its own arithmetic: no signal handler
is involved. Another worker gets the steps that the dead one owed; as a batch follows from its step alone, it is the
same batch.

Through the pipes go only numbers of steps, and where in the shared memory an array lies (`shared_memory`).
"""

import math
import multiprocessing
import os
import signal
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from autoseg.dataloading.shared_memory import FORKS, Batch, Slots, for_tensors, start_method
from autoseg.errors import AutosegError, OutOfMemory
from autoseg.lines import LOG
from autoseg.plugins import Imported
from autoseg.processes import main_kept_out

PREFETCHED = 4  # batches per worker, in work or ready: evens out slow samples
QUEUED = 2  # steps a worker has before it: the one in work and the next
HELD = 3  # batches the training may hold without a copy: the last one, this one, one that is brought to the device
DEATHS = 3  # in a row that are too many
RECOVERED = 100  # batches after which a death no longer counts
LOOK_SECONDS = 5.0  # how often an idle worker looks whether the training still lives, and the training at a slow one
SLOW_SECONDS = 60.0  # for one batch: worth a warning
HUNG_SECONDS = 600.0  # no batch takes that long
IGNORED = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")  # for the training to decide; those there are on this system
CAUSES = {
    "SIGKILL": ", probably because the system ran out of memory",
    "SIGBUS": ", probably because a disk is full or broken",
    "SIGTERM": ", from outside",
}


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    tasks: deque[tuple[int, int]] = field(default_factory=deque)  # (step, slot), those it has not answered


class Workers:
    """An iterator over the batches of step `start`, `start + 1`, ... up to `stop` (exclusive), or without end.

    Args:
        prepare: makes the batch of a step, always the same one; sent to the workers where they are not forked.
        count: of the processes; they start with the first batch.
        nbytes: what a batch takes, in bytes. Larger ones are possible, but slow.

    Raises (when a batch is asked for):
        OutOfMemory: workers die again and again.
        AutosegError: raised by `prepare`, passed on when its batch is due.
        RuntimeError: any other error of `prepare`; the message holds its traceback.
    """

    def __init__(
        self,
        prepare: Callable[[int], Batch],
        *,
        count: int,
        start: int,
        stop: int | None,
        nbytes: int,
    ) -> None:
        self.prepare = prepare
        self.count = count
        self.due = self.upcoming = start  # the step to deliver next; the one to give to a worker next
        self.stop = math.inf if stop is None else stop
        self.slots = Slots(count * PREFETCHED + HELD, nbytes)
        self.free = deque(range(self.slots.count))
        self.ready: dict[int, tuple[int, Batch | Exception]] = {}  # step -> slot and what came
        self.deaths = 0  # in a row
        self.last_death = start  # the step that was due
        self.workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end, self.workers)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.due >= self.stop or not self._end.alive:
            self.close()
            raise StopIteration
        while len(self.workers) < self.count:
            self.workers.append(self._start())
        self._listen(0)  # learns of the dead, too
        self._await_due()
        slot, result = self.ready.pop(self.due)
        if isinstance(result, Exception):
            self.close()
            raise result
        self.due += 1
        held = self.slots.count - len(self.free) - len(self.ready) - sum(len(worker.tasks) for worker in self.workers)
        free = self.free  # not `self`: a batch may outlive its workers
        batch = self.slots.load(slot, result, lambda: free.append(slot))
        return batch if held <= HELD else for_tensors(batch, Tensor.clone)

    def close(self) -> None:
        """End the workers. Batches that were delivered stay."""
        self._end()

    def _await_due(self) -> None:
        """Wait for the batch that is due; a worker that has stopped working is named, and in the end replaced."""
        began, told = time.monotonic(), False
        while self.due not in self.ready:
            self._listen(LOOK_SECONDS)
            waited = time.monotonic() - began
            owing = next((w for w in self.workers if w.tasks and w.tasks[0][0] == self.due), None)
            if owing is None:
                continue
            if waited > SLOW_SECONDS and not told:
                told = True
                LOG.warning(f"process {owing.process.pid} has been preparing the batch of step {self.due} for a minute")
            if waited > HUNG_SECONDS:
                LOG.warning(f"process {owing.process.pid} seems to hang: killing it")
                owing.process.kill()
                began = time.monotonic()

    def _listen(self, seconds: float) -> None:
        """Give out work, wait so long until a worker answers or dies, and take what is there."""
        self._give_out()
        spoke = wait([worker.pipe for worker in self.workers], seconds)
        for number, worker in enumerate(self.workers):
            if worker.pipe not in spoke:
                continue
            try:
                while worker.pipe.poll():
                    step, result = worker.pipe.recv()
                    self.ready[step] = (worker.tasks.popleft()[1], result)
            except (EOFError, OSError):  # the pipe ended, perhaps in the middle of a message
                self._mourn(worker)
                self.workers[number] = self._start(worker.tasks)
        self._give_out()

    def _give_out(self) -> None:
        while self.free and self.upcoming < self.stop:
            worker = min(self.workers, key=lambda worker: len(worker.tasks))
            if len(worker.tasks) >= QUEUED:
                return
            worker.tasks.append((self.upcoming, self.free.popleft()))
            self.upcoming += 1
            _send(worker, worker.tasks[-1])

    def _start(self, tasks: Sequence[tuple[int, int]] = ()) -> _Worker:
        """Start a process, with what a dead one left undone."""
        ours, theirs = start_method().Pipe()
        inherited = [ours, *(worker.pipe for worker in self.workers)] if FORKS else []
        arguments = (Imported(), self.prepare, self.slots, theirs, inherited)
        process = start_method().Process(target=_work, args=arguments, name="batches", daemon=True)
        try:
            with _undisturbed(), main_kept_out():
                process.start()
        except OSError as error:
            self.close()
            raise OutOfMemory(f"cannot start a worker process: {error.strerror}", remedy=fewer(self.count)) from error
        theirs.close()  # now the worker's end closes with the worker
        worker = _Worker(process, ours, deque(tasks))
        for task in tasks:
            _send(worker, task)
        return worker

    def _mourn(self, worker: _Worker) -> None:
        """Report how a worker ended; raise OutOfMemory if it was one too many."""
        worker.pipe.close()
        worker.process.join(LOOK_SECONDS)
        worker.process.kill()
        worker.process.join()
        code = worker.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        how = f"process {worker.process.pid}, which prepares batches, was killed by {name}{CAUSES.get(name, '')}"
        if name != "SIGTERM":  # a batch system that stops a training may send it to all its processes
            self.deaths = 1 if self.due - self.last_death >= RECOVERED else self.deaths + 1
            self.last_death = self.due
        if self.deaths == DEATHS:
            self.close()
            raise OutOfMemory(f"{how}; {DEATHS} were lost in a row", remedy=fewer(self.count))
        LOG.warning(f"{how}; restarted, no batch was lost")


def fewer(count: int) -> str:
    """What to do where the memory does not suffice for this number of workers."""
    return (
        f"use fewer processes (--set training.workers={count // 2}), or end other programs: the batches stay the same, "
        "and the same command resumes the training"
    )


def _send(worker: _Worker, task: tuple[int, int]) -> None:
    with suppress(OSError):  # it is dead: `_listen` will learn of it and pass the task on
        worker.pipe.send(task)


def _end(workers: list[_Worker]) -> None:
    """Kill: there is nothing in a worker that could be lost."""
    for worker in workers:
        worker.process.kill()
        worker.pipe.close()
    for worker in workers:
        worker.process.join()
    workers.clear()


def _work(
    _: Imported, prepare: Callable[[int], Batch], slots: Slots, pipe: Connection, inherited: Sequence[Connection]
) -> None:
    """What a worker does: prepare the steps it is sent, until its pipe ends or its parent is gone."""
    for end in inherited:  # forked along; as long as one is open, its pipe does not end
        end.close()
    _leave_the_group()
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's and scipy's own
    with suppress(EOFError, OSError):  # of the pipe alone: those of `prepare` are passed on
        while _is_told(pipe):
            step, slot = pipe.recv()
            try:
                result: Batch | Exception = slots.store(slot, prepare(step))
            except AutosegError as error:
                result = error
            except MemoryError:
                result = OutOfMemory(f"out of memory while preparing the batch of step {step}", remedy=fewer(2))
            except Exception:
                result = RuntimeError(f"the batch of step {step} cannot be prepared:\n{traceback.format_exc()}")
            pipe.send((step, result))


def _is_told(pipe: Connection) -> bool:
    """Wait for a message; False if the training ended silently."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not pipe.poll(LOOK_SECONDS):
        if os.name == "posix" and os.getppid() != parent.pid:
            return False
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back while a process is forked: it starts with the same ones held back, until it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signals() -> list[signal.Signals]:
    """Those for the training alone, as far as this system has them."""
    return [getattr(signal, name) for name in (*IGNORED, "SIGTERM") if hasattr(signal, name)]


def _leave_the_group() -> None:
    """Leave the process group, so that its signals reach the training alone.

    Ctrl-C and the signals of batch systems go to the whole group: the training decides what they mean. What reaches a
    worker all the same is ignored, except for SIGTERM, by which Python ends its processes when it exits.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in _signals():  # to ignore one discards what came of it since the fork
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals())
