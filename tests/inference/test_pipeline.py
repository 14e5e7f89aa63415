"""Reading ahead and writing behind: the order, what waits for what, and what becomes of errors. Nothing is timed."""

import os
import sys
import threading
from collections.abc import Callable

import pytest

from autoseg.errors import DataError, OutOfMemory
from autoseg.inference.pipeline import NICE, Ahead, Writer


def test_one_item_is_read_ahead_and_no_more():
    """While an item is used, the next one is read, and the one after it is not begun."""
    begun: list[int] = []
    started = {n: threading.Event() for n in range(6)}

    def read(item: int, slot: int) -> tuple[int, int]:
        begun.append(item)
        started[item].set()
        return item * 10, slot

    seen = []
    with Ahead(read, range(5)) as ahead:
        for item, read in ahead:
            seen.append(read.result())
            if item < 4:
                assert started[item + 1].wait(10)
            assert begun == list(range(min(item + 2, 5)))
    assert seen == [(0, 0), (10, 1), (20, 0), (30, 1), (40, 0)]


def test_items_are_read_in_one_thread_that_yields_the_cores():
    found = []

    def read(item: int, _: int) -> None:
        found.append((threading.get_ident(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with Ahead(read, range(3)) as ahead:
        assert len([item for item, _ in ahead]) == 3
    ((thread, niceness),) = set(found)
    assert thread != threading.get_ident()
    if sys.platform == "linux":
        assert niceness == min(19, usual + NICE)


def test_what_does_not_fit_is_read_when_it_is_due():
    begun: list[int] = []
    with Ahead(lambda item, _: begun.append(item), range(4), fits=lambda item: item != 2) as ahead:
        for item, read in ahead:
            read.result()
            if item == 1:
                assert begun == [0, 1]
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [OutOfMemory("full"), MemoryError()])
def test_what_found_no_memory_beside_another_is_read_once_more_before_the_next(error):
    tries: list[int] = []

    def once(item: int, _: int) -> int:
        tries.append(item)
        if item == 1 and tries.count(1) == 1:
            raise error
        return item

    with Ahead(once, range(3)) as ahead:
        assert [read.result() for _, read in ahead] == [0, 1, 2]
    assert tries == [0, 1, 1, 2]

    def never(item: int, _: int) -> int:
        raise error

    with Ahead(never, range(2)) as ahead, pytest.raises(type(error)):
        [read.result() for _, read in ahead]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_of_reading_is_raised_where_the_item_is_used(bad):
    def read(item: int, _: int) -> int:
        if item == bad:
            raise DataError(f"{item} is damaged")
        return item

    seen: list[object] = []
    with Ahead(read, range(3)) as ahead:
        for _, read in ahead:
            try:
                seen.append(read.result())
            except DataError as error:
                seen.append(str(error))
    assert seen == [f"{n} is damaged" if n == bad else n for n in range(3)]


def test_what_cannot_even_be_looked_at_is_refused_by_its_reader():
    def fits(_: int) -> bool:
        raise OSError("no such file")

    def read(item: int, _: int) -> int:
        if item == 1:
            raise DataError("missing")
        return item

    with Ahead(read, range(2), fits) as ahead:
        first, second = [read for _, read in ahead]
    assert first.result() == 0
    with pytest.raises(DataError, match="missing"):
        second.result()


def test_nothing_is_read_after_the_body_was_left():
    begun: list[int] = []

    def stopped() -> None:
        with Ahead(lambda item, _: begun.append(item), range(9)) as ahead:
            for _, read in ahead:
                read.result()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert begun in ([0], [0, 1])
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


def test_one_thing_is_written_at_a_time_in_order():
    gate, written = threading.Event(), []
    with Writer() as writer:
        writer.put(lambda: gate.wait(10) and written.append("a"))
        other = threading.Thread(target=lambda: writer.put(written.append, "b"))
        other.start()
        assert written == []
        gate.set()
        other.join(10)
        writer.settle()
        assert written == ["a", "b"]


def fail() -> None:
    raise OSError("disk full")


def put(*writes: Callable[[], object], then: BaseException | None = None) -> None:
    """Put things one after the other, and leave the body, with an error or without."""
    with Writer() as writer:
        for write in writes:
            writer.put(write)
        if then is not None:
            raise then


def test_an_error_of_writing_is_raised_at_the_next_turn_or_at_the_end():
    written: list[str] = []
    with pytest.raises(OSError, match="disk full"):
        put(fail, lambda: written.append("after a failure"))
    assert written == []
    with pytest.raises(OSError, match="disk full"):
        put(fail)
    with Writer() as writer:
        writer.check()  # nothing was written
        writer.put(fail)
        assert writer._last.exception() is not None  # waits
        with pytest.raises(OSError, match="disk full"):
            writer.check()


def test_what_is_being_written_is_completed_when_the_work_is_stopped():
    gate, written = threading.Event(), []
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        put(lambda: gate.wait(10) and written.append("a"), then=KeyboardInterrupt())
    assert written == ["a"]
    with pytest.raises(KeyboardInterrupt):  # which counts, not what writing raised
        put(fail, then=KeyboardInterrupt())
