"""One thread that computes, job after job in the order in which they came, and says how far it is."""

import contextvars
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal

from autoseg.serve.refusals import Refused

MOST_WAITING = 16  # jobs of one visitor
TICK_SECONDS = 30.0  # between two calls of what is done now and then

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Cancelled(Exception):
    """The case of a job was closed."""


class Job:
    """Something to compute.

    Attributes:
        owner: who asked for it.
        what: "open", "segment", "explain", "correct", "undo" or "save".
        progress: from 0 to 1.
        result: what `run` returns or raises, as a future.
        seconds: how long it took; 0 before its end.
    """

    def __init__(self, owner: str, what: str, run: Callable[["Job"], Any]) -> None:
        self.owner, self.what, self.run = owner, what, run
        self.state: State = "waiting"
        self.progress, self.seconds = 0.0, 0.0
        self.result: Future[Any] = Future()
        self._given_up = threading.Event()

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")

    def cancel(self) -> None:
        """Give it up: it ends before it begins, or where it next reports its progress."""
        self._given_up.set()

    def report(self, share: float) -> None:
        """Note how far it is. Raises Cancelled where it was given up."""
        if self._given_up.is_set():
            raise Cancelled
        self.progress = min(1.0, max(self.progress, share))


class Worker:
    """The thread. `tick` is called between jobs, at least every TICK_SECONDS."""

    def __init__(self, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        context = contextvars.copy_context()  # lines go where those of the command go
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="serve-work", daemon=True)
        self._thread.start()

    def submit(self, owner: str, what: str, run: Callable[[Job], Any]) -> Job:
        """Queue a job.

        Raises:
            Refused: its owner has MOST_WAITING waiting, or the server is being stopped.
        """
        job = Job(owner, what, run)
        with self._changed:
            if self._closed:
                raise Refused(503, "the server is being stopped", remedy="start it again: autoseg serve")
            if sum(one.owner == owner for one in self._waiting) >= MOST_WAITING:
                raise Refused(429, f"{MOST_WAITING} of your jobs are waiting", remedy="wait until some have ended")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def place(self, job: Job) -> int:
        """How many jobs come before this one; 0 where it runs or has ended."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def close(self) -> None:
        """Give up all jobs, and wait for the thread to end."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.cancel()
            self._changed.notify()
        self._thread.join(60)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(TICK_SECONDS)
                if not self._waiting and self._closed:
                    return
                job = self._running = self._waiting.popleft() if self._waiting else None
            if job is not None:
                _run(job)
            with self._changed:
                self._running = None
            try:
                self._tick()
            except Exception as error:  # the thread has to stay
                traceback.print_exception(error)


def _run(job: Job) -> None:
    """Compute a job; whatever it raises belongs to who asked for it."""
    began = time.monotonic()
    job.state = "running"
    try:
        job.report(0.0)
        found = job.run(job)
    except BaseException as error:
        job.state = "cancelled" if isinstance(error, Cancelled) else "failed"
        with suppress(Exception):
            job.result.set_exception(error)
    else:
        job.seconds, job.progress, job.state = time.monotonic() - began, 1.0, "done"
        with suppress(Exception):
            job.result.set_result(found)
