"""Work in processes: results in order, errors as they were, and no hang when a worker is killed."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoseg import processes
from autoseg.errors import DataError, OutOfMemory
from autoseg.processes import available_cores, map_in_processes

JOBS = 8


# What runs in the workers must stand at the top of a module.


def square_late(number: int) -> tuple[int, int]:
    """The sooner it is started, the later it is done."""
    time.sleep(0.02 * (JOBS - number))
    return number**2, os.getpid()


def kill_itself_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_zero(job: tuple[int, Path]) -> None:
    number, folder = job
    if number == 0:
        raise DataError("case 0 is damaged", remedy="leave it out")
    (folder / str(number)).touch()
    time.sleep(0.1)


def divide(number: int) -> float:
    return 1 / number


def whoami(_: int) -> int:
    return os.getpid()


@pytest.mark.thorough
def test_results_come_in_the_order_of_the_jobs():
    found = map_in_processes(square_late, range(JOBS), title="squares", workers=2)
    assert [square for square, _ in found] == [number**2 for number in range(JOBS)]
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize(("jobs", "workers"), [(3, 0), (3, 1), (1, 5)])
def test_one_worker_is_this_process(jobs, workers):
    assert map_in_processes(whoami, range(jobs), title="who", workers=workers) == [os.getpid()] * jobs


def test_no_jobs():
    assert map_in_processes(divide, [], title="nothing") == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills otherwise")
def test_a_killed_worker_is_said_and_not_waited_for():
    with pytest.raises(OutOfMemory, match="worker process died during 'reading'") as caught:
        map_in_processes(kill_itself_at_three, range(JOBS), title="reading", workers=2)
    assert "--workers" in caught.value.remedy
    assert caught.value.exit_code == 6


def test_an_error_in_a_worker_comes_back_as_it_was_and_ends_the_rest(tmp_path):
    with pytest.raises(DataError) as caught:
        map_in_processes(refuse_zero, [(number, tmp_path) for number in range(60)], title="reading", workers=2)
    assert (caught.value.what, caught.value.remedy) == ("case 0 is damaged", "leave it out")
    assert len(list(tmp_path.iterdir())) < 59  # jobs not begun are dropped


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_code_keeps_its_type(workers):
    with pytest.raises(ZeroDivisionError):
        map_in_processes(divide, [2, 0, 1], title="divide", workers=workers)


@pytest.mark.parametrize(("cores", "gigabytes", "workers"), [(8, 5, 2), (8, 100, 8), (3, 100, 3)])
def test_workers_are_as_many_as_cores_and_memory_allow(monkeypatch, cores, gigabytes, workers):
    class Asked(Exception):
        pass

    def pool(count: int, **_: object) -> None:
        raise Asked(count)

    memory = SimpleNamespace(available=gigabytes * 2**30)
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    monkeypatch.setattr(processes.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", pool)
    with pytest.raises(Asked) as caught:
        map_in_processes(whoami, range(100), title="who")
    assert caught.value.args == (workers,)
    memory.available = 2**29
    assert map_in_processes(whoami, range(2), title="who") == [os.getpid()] * 2  # too little for a second one


def test_cores_are_those_given_to_this_process(monkeypatch):
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert available_cores() == 3


# ---- memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of this process, of version 2; the machine has a million bytes left and gives all its cores."""
    monkeypatch.setattr(processes, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processes, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processes, "available_cores", lambda: os.cpu_count())
    monkeypatch.setattr(processes.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    (tmp_path / "own").write_text("0::/job/step\n")

    def group(path, limit, used, cache, names=("memory.max", "memory.current", "inactive_file")):
        folder = tmp_path / "groups" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cache}\n")

    return group


def test_free_memory_without_control_groups_is_that_of_the_machine(groups, monkeypatch):
    assert processes.free_memory() == 1_000_000
    monkeypatch.setattr(processes, "available_cores", lambda: os.cpu_count() / 2)
    assert processes.free_memory() == 500_000  # others will come for the rest


def test_what_a_group_holds_as_cache_is_free(groups):
    groups("", 5000, 4900, 4000)  # inside a container there is only the topmost
    assert processes.free_memory() == 4100


def test_the_tightest_of_all_groups_counts(groups):
    groups("job/step", "max", 500, 0)
    groups("job", 3000, 1000, 0)
    groups("", 90_000, 2000, 0)
    assert processes.free_memory() == 2000
    groups("job/step", 1200, 500, 100)
    assert processes.free_memory() == 800
    groups("job/step", 400, 500, 0)
    assert processes.free_memory() == 0


def test_groups_of_version_1_are_known(groups, tmp_path):
    (tmp_path / "own").write_text("5:cpu,cpuacct:/other\n4:memory:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    groups("memory/job", 4000, 3000, 500, names)
    groups("memory/other", 10, 10, 0, names)
    assert processes.free_memory() == 1500
