"""Workers deliver every step once, in order and unharmed, whatever happens to them; and they end when they must."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from autoseg.dataloading import shared_memory, workers
from autoseg.dataloading.shared_memory import Slots
from autoseg.dataloading.workers import HELD, PREFETCHED, Workers
from autoseg.errors import DataError, OutOfMemory
from autoseg.lines import shown_by


@dataclass(frozen=True)
class Numbers:
    """Batches that follow from their step; and what happens to those who prepare some of them."""

    folder: Path | None = None  # remembers who was killed
    die_at: tuple[int, ...] = ()  # steps that end their worker
    deaths: int = 1  # how often they do
    by: int = signal.SIGKILL  # or an exit code, if negative
    seconds: float = 0.0  # that an odd step takes

    def __call__(self, step: int) -> dict:
        if step in self.die_at:
            number = len(list(self.folder.glob(f"{step}.*")))
            if number < self.deaths:
                (self.folder / f"{step}.{number}").touch()
                if self.by < 0:
                    os._exit(-self.by)
                os.kill(os.getpid(), self.by)
        time.sleep(self.seconds * (step % 2))
        return {
            "image": torch.full((2, 300), float(step)),
            "parts": [torch.arange(step % 7, dtype=torch.int16), torch.tensor(step, dtype=torch.int8)],
            "cases": [f"case{step}"],
            "step": step,
        }


def started(prepare=Numbers(), *, count=1, start=0, stop=30, nbytes=4096) -> Workers:
    return Workers(prepare, count=count, start=start, stop=stop, nbytes=nbytes)


@pytest.fixture(autouse=True)
def nothing_unexpected_is_said(request):
    """In a test that does not ask for what is said."""
    with nullcontext() if "said" in request.fixturenames else shown_by(pytest.fail):
        yield


def check(batch: dict, step: int) -> None:
    assert batch["step"] == step
    assert batch["cases"] == [f"case{step}"]
    assert torch.equal(batch["image"], torch.full((2, 300), float(step)))
    first, second = batch["parts"]
    assert torch.equal(first, torch.arange(step % 7, dtype=torch.int16))
    assert torch.equal(second, torch.tensor(step, dtype=torch.int8))
    assert (first.dtype, second.dtype) == (torch.int16, torch.int8)


def check_all(batches, first=0, stop=30) -> None:
    step = first - 1
    for step, batch in enumerate(batches, start=first):
        check(batch, step)
    assert step == stop - 1


def pids(batches: Workers) -> list[int]:
    return [worker.process.pid for worker in batches.workers]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.thorough
def test_a_worker_that_hangs_is_named_and_replaced(monkeypatch, said):
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(workers, "HUNG_SECONDS", 0.9)
    batches = started(count=2)
    check(next(batches), 0)
    (hanging, _) = pids(batches)
    os.kill(hanging, signal.SIGSTOP)
    check_all(batches, first=1)
    assert len(said) == 3
    assert f"process {hanging} has been preparing" in said[0]
    assert f"process {hanging} seems to hang" in said[1]
    assert f"process {hanging}, which prepares batches, was killed by SIGKILL" in said[2]
    assert is_gone(hanging)


def test_want_of_memory_in_a_worker_is_told_as_such():
    def prepare(step: int) -> dict:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="out of memory while preparing the batch of step 0"):
        next(started(prepare))


# Order and memory ---------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_step_comes_once_and_in_order(count):
    check_all(started(count=count))
    check_all(started(Numbers(seconds=0.005), count=count, start=11), first=11)


def test_batches_that_are_kept_stay_what_they_are():
    check_all(list(started()))
    kept = {}
    for step, batch in enumerate(started(stop=60)):
        if step % 5 == 0:
            kept[step] = batch["image"][0][10:]  # of a batch that is gone otherwise
    assert len(kept) == 12 > PREFETCHED + HELD
    for step, row in kept.items():
        assert torch.equal(row, torch.full((290,), float(step)))


def test_a_training_that_lets_go_of_its_batches_gets_no_copy(monkeypatch):
    copies = []
    monkeypatch.setattr(workers, "for_tensors", lambda batch, function: copies.append(1) or batch)
    check_all(started(count=2, stop=100), stop=100)
    assert not copies
    list(started(stop=HELD))
    assert not copies
    list(started(stop=HELD + 4))
    assert len(copies) == 4


def test_batches_outlive_their_workers():
    batches = started()
    first = next(batches)
    batches.close()
    del batches
    gc.collect()
    check(first, 0)
    first["image"] += 1  # memory of ours


@pytest.mark.parametrize("nbytes", [1, 64, 2400, 2464, 4096])
def test_what_finds_no_room_in_a_slot_comes_all_the_same(nbytes):
    """The image takes 2400 bytes."""
    check_all(started(nbytes=nbytes, stop=9), stop=9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, torch.int16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 5)])
def test_tensors_come_back_from_a_slot(dtype, shape):
    memory, gone = Slots(2, 1000), []
    tensor = (torch.arange(int(np.prod(shape))) % 2).reshape(shape).to(dtype)
    for slot in (0, 1):
        stored = memory.store(slot, {"a": tensor, "b": [tensor.clone(), "text"]})
        batch = memory.load(slot, stored, lambda slot=slot: gone.append(slot))
        assert batch["b"][1] == "text"
        for back in (batch["a"], batch["b"][0]):
            assert back.dtype == dtype
            assert torch.equal(back, tensor)
        part = batch["b"][0].detach()  # the same voxels
        del batch, back
        assert gone == list(range(slot))
        del part
        assert gone == list(range(slot + 1))


def test_memory_that_cannot_be_had_is_told():
    with pytest.raises(OutOfMemory, match=r"cannot reserve .* MB of shared memory.*\n.*--set training\.workers=0"):
        Slots(2**20, 2**40)


# Deaths -------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_killed_at_a_random_moment_changes_nothing(count, monkeypatch, said):
    monkeypatch.setattr(workers, "DEATHS", 1000)
    rng = np.random.default_rng(count)
    batches = started(Numbers(seconds=0.004), count=count, stop=120)
    killed = []
    for step, batch in enumerate(batches):
        check(batch, step)
        if step % 12 == 5:
            time.sleep(rng.uniform(0, 0.01))
            process = batches.workers[rng.integers(count)].process
            process.kill()
            process.join()
            killed.append(process.pid)
    assert step == 119
    assert len(said) == len(set(killed)) == 10
    for pid, text in zip(killed, said, strict=True):
        assert f"process {pid}, " in text
        assert "SIGKILL, probably because the system ran out of memory" in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_killed_while_its_batch_is_awaited_changes_nothing(tmp_path, count, said):
    check_all(started(Numbers(tmp_path, die_at=(0, 7)), count=count))
    assert len(said) == 2


def test_a_worker_killed_in_the_middle_of_a_message_changes_nothing(said):
    """More than a pipe holds: the worker stands still until somebody reads."""

    def much(step: int) -> dict:
        return {"image": torch.full((2**21,), float(step))}

    batches = started(much, nbytes=64, stop=4)
    assert next(batches)["image"][0] == 0
    (worker,) = batches.workers
    assert worker.pipe.poll(20)  # the next message has begun
    time.sleep(0.05)
    os.kill(worker.process.pid, signal.SIGKILL)
    for step in (1, 2, 3):
        image = next(batches)["image"]
        assert image.shape == (2**21,)
        assert (image == step).all()
    assert len(said) == 1


def test_three_deaths_in_a_row_are_too_many(tmp_path, said):
    batches = started(Numbers(tmp_path, die_at=(2,), deaths=99), count=4)
    check(next(batches), 0)
    check(next(batches), 1)
    with pytest.raises(OutOfMemory, match=r"SIGKILL, probably.* out of memory; 3 were lost in a row") as caught:
        next(batches)
    assert "--set training.workers=2)" in caught.value.remedy
    assert len(said) == 2
    assert batches.workers == []
    assert list(batches) == []


@pytest.mark.thorough
@pytest.mark.parametrize(("recovered", "enough"), [(12, True), (28, False)])
def test_deaths_with_many_batches_between_them_do_not_count(tmp_path, monkeypatch, recovered, enough, said):
    """One worker is at most 7 steps ahead, so what dies at 20, 40, 60 is missed after 13 to 27 batches more."""
    monkeypatch.setattr(workers, "RECOVERED", recovered)
    batches = started(Numbers(tmp_path, die_at=(20, 40, 60, 80)), stop=100)
    if enough:
        check_all(batches, stop=100)
    else:
        with pytest.raises(OutOfMemory):
            check_all(batches)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("by", "text"), [(signal.SIGTERM, "SIGTERM, from outside;"), (signal.SIGXCPU, "SIGXCPU;"), (-3, "exit code 3;")]
)
def test_other_ends_are_named(tmp_path, by, text, said):
    check_all(started(Numbers(tmp_path, die_at=(3,), by=by, deaths=2)))
    assert [text in line for line in said] == [True] * 2


def test_a_training_that_is_being_stopped_may_lose_all_workers(tmp_path, said):
    check_all(started(Numbers(tmp_path, die_at=(3,), by=signal.SIGTERM, deaths=5)))
    assert len(said) == 5


def test_a_process_that_cannot_be_started_is_told(monkeypatch):
    batches = started(count=5)

    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", refuse)
    with pytest.raises(OutOfMemory, match=r"Cannot allocate memory\n.*--set training\.workers=2\)"):
        next(batches)


# Errors -------------------------------------------------------------------------------------------


def fail_at_two(step: int) -> dict:
    if step == 2:
        raise ValueError("a bad voxel")
    if step == 7:
        raise DataError("a bad case", remedy="leave it out")
    return Numbers()(step)


def test_an_error_is_passed_on_when_its_batch_is_due():
    for count in (1, 2):
        batches = started(fail_at_two, count=count)
        check(next(batches), 0)
        check(next(batches), 1)
        with pytest.raises(RuntimeError, match=r"(?s)batch of step 2 .*in fail_at_two.*ValueError: a bad voxel"):
            next(batches)
        assert batches.workers == []
    batches = started(fail_at_two, start=7)
    with pytest.raises(DataError, match="a bad case") as caught:
        next(batches)
    assert caught.value.remedy == "leave it out"


# The end ------------------------------------------------------------------------------------------


def test_workers_end_with_their_stream():
    def used(stop=30) -> tuple[Workers, list[int]]:
        batches = started(count=2, stop=stop)
        next(batches)
        assert len(pids(batches)) == 2
        return batches, pids(batches)

    exhausted, first = used(stop=1)
    assert list(exhausted) == []
    closed, second = used()
    closed.close()
    closed.close()
    assert list(closed) == []
    dropped, third = used()
    del dropped
    for pid in (*first, *second, *third):
        assert is_gone(pid)


def test_no_signal_handler_is_installed():
    """What raises in a handler raises anywhere, in the middle of an optimiser's step."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    batches = started(count=2)
    next(batches)
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert before[signal.SIGCHLD] == signal.SIG_DFL


@pytest.mark.thorough
@pytest.mark.parametrize("busy", [True, False])
def test_workers_end_with_a_training_that_is_killed(busy):
    """In the middle of a message; and idle, while the other end of their pipe lives on in another process."""
    program = f"""
        import os, time, torch
        from autoseg.dataloading.workers import Workers
        def prepare(step):
            return {{"image": torch.zeros(2**21 if step and {busy} else 1)}}
        batches = Workers(prepare, count=2, start=0, stop=None if {busy} else 1, nbytes=64)
        next(batches)
        pids = [worker.process.pid for worker in batches.workers]
        if {busy}:
            for worker in batches.workers:
                worker.pipe.poll(20)
        elif os.fork() == 0:
            os.close(1)
            time.sleep(60)
        print(*pids, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        numbers = [int(word) for word in parent.stdout.readline().split()]
        assert len(numbers) == 2
        assert not any(map(is_gone, numbers))
        parent.kill()
    patience = time.monotonic() + 30
    while not all(map(is_gone, numbers)) and time.monotonic() < patience:
        time.sleep(0.05)
    ended = all(map(is_gone, numbers))
    for end, number in ((os.killpg, parent.pid), *((os.kill, number) for number in numbers)):
        with suppress(ProcessLookupError):
            end(number, signal.SIGKILL)
    assert ended


@pytest.mark.slow
def test_where_processes_are_not_forked(monkeypatch, tmp_path, said):
    monkeypatch.setattr(shared_memory, "FORKS", False)
    monkeypatch.setattr(workers, "FORKS", False)
    check_all(started(Numbers(tmp_path, die_at=(5,)), stop=12), stop=12)
    assert len(said) == 1
