"""The next case is read while this one computes, and what is finished is written, in a thread each.

    with Ahead(read, cases, fits) as ahead, Writer() as writer:
        for case, coming in ahead:
            result = compute(coming.result())
            writer.put(write, case, result)

Memory is bounded: one case is read ahead, and one result at most waits to be written. What goes wrong in a thread is
raised where its result is used: a case that cannot be read when its turn comes, a full disk at the next `put`. When
the body ends, however it ends, the file that is being written is completed, and nothing else is begun.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from autoseg.errors import OutOfMemory

Item = TypeVar("Item")
Read = TypeVar("Read")
NICE = 10  # added to the niceness of both threads: where cores are few, the computation has them


class Ahead(Generic[Item, Read]):
    """Iterates over items and what was read of them, in order; the next item is read while the body of the loop runs.

    What was read is a future that is done: its `result` raises what reading raised. Where memory did not suffice while
    another item was in use, the item is read once more when it is due.

    Args:
        read: (item, slot) -> what was read. Slots alternate between 0 and 1: an item is read into one while what is in
            the other is used.
        items: what to read.
        fits: whether there is memory to read an item while another one is computed; otherwise it is read when it is
            due.
    """

    def __init__(
        self, read: Callable[[Item, int], Read], items: Sequence[Item], fits: Callable[[Item], bool] = lambda _: True
    ) -> None:
        self._read, self._items, self._fits = read, items, fits
        self._thread = ThreadPoolExecutor(1, "read", initializer=_yield_cores)

    def __enter__(self) -> "Ahead[Item, Read]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Item, Future[Read]]]:
        ahead: Future[Read] | None = None
        for number, item in enumerate(self._items):
            read, ahead = ahead or self._begin(number), None
            if isinstance(read.exception(), (OutOfMemory, MemoryError)):  # waits; nothing else is in memory now
                read = self._begin(number)
                read.exception()
            if number + 1 < len(self._items) and self._has_room(self._items[number + 1]):
                ahead = self._begin(number + 1)
            yield item, read

    def _begin(self, number: int) -> Future[Read]:
        return self._thread.submit(self._read, self._items[number], number % 2)

    def _has_room(self, item: Item) -> bool:
        """Whether an item may be read ahead; one that cannot even be looked at is refused in its turn."""
        try:
            return self._fits(item)
        except Exception:
            return True


class Writer:
    """Writes one thing after the other in a thread; `put` waits for the one before."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "write", initializer=_yield_cores)
        self._last: Future[Any] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.settle()

    def put(self, write: Callable[..., object], *arguments: object) -> None:
        """Have something written once what was put before is written. Raises what that raised."""
        self.settle()
        self._last = self._thread.submit(write, *arguments)

    def settle(self) -> None:
        """Wait until everything is written. Raises what writing it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def check(self) -> None:
        """Raise what writing raised, if it has ended; does not wait."""
        if self._last is not None and self._last.done():
            self.settle()


def _yield_cores() -> None:
    """Let the computation have the cores where it competes for them with this thread (Linux has niceness by thread)."""
    if sys.platform == "linux":
        with suppress(OSError):
            here = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, here, os.getpriority(os.PRIO_PROCESS, here) + NICE)
