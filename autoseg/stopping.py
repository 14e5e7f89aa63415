"""Being asked to stop: Ctrl-C, SIGTERM, SIGUSR1, or a time that was set.

Batch systems warn with SIGTERM or SIGUSR1 some time before they kill; the time that was set comes as SIGALRM. Where
work is in the middle of something that must not be torn apart, the request is noted and waits for the next safe point;
anywhere else it ends the work at once.

    with StopSignals(after_seconds) as stop:
        prepare()                        # ends at once
        with stop.deferred():
            while working:
                step()
                if stop.due:
                    save()
                    stop.now()           # raises Stopped or Interrupted

A second Ctrl-C does not wait.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from autoseg.errors import Interrupted, Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGALRM")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ALARM = getattr(signal, "SIGALRM", None)  # Windows has none: there, time is noticed at safe points only


class StopSignals:
    """Requests to stop, from the moment it is entered until it is left.

    Args:
        after_seconds: ask for it when so many seconds have passed, or None.
    """

    def __init__(self, after_seconds: float | None = None) -> None:
        self.after_seconds = after_seconds
        self.began = time.monotonic()
        self.received: int | None = None  # number of a signal
        self.waiting = False  # for a safe point
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may
            self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}
            if self.after_seconds is not None and ALARM in SIGNALS:
                signal.setitimer(signal.ITIMER_REAL, self.after_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before and self.after_seconds is not None and ALARM in SIGNALS:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, action in self.before.items():
            signal.signal(number, action)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let requests wait while the body runs; it looks at `due`. A request nobody looked at ends the work after."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False
        if self.received is not None:
            self.now()

    @property
    def due(self) -> bool:
        """Whether a stop was asked for."""
        return self.received is not None or self._late

    def now(self) -> None:
        """End the work. Raises Interrupted after Ctrl-C, otherwise Stopped."""
        if self.received == signal.SIGINT:
            raise Interrupted("stopped by Ctrl-C")
        if self.received is not None and self.received != ALARM:
            raise Stopped(f"stopped by {signal.Signals(self.received).name}")
        if self.after_seconds is not None:
            raise Stopped(f"stopped after {self.after_seconds:.0f} s, as requested")
        raise Stopped("stopped")

    @property
    def to_pass_on(self) -> int:
        """The signal that passes the request to stop on to a child."""
        return signal.SIGTERM if self.received in (None, ALARM) else self.received

    @property
    def _late(self) -> bool:
        return self.after_seconds is not None and time.monotonic() - self.began >= self.after_seconds

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if not self.waiting:
            self.now()
