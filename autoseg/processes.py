"""Work on many cases at once, in processes that cannot hang.

`concurrent.futures` notices a killed worker at once (the kernel kills the largest process when memory runs out) and
says so. Workers start from a fork server that has imported what they need but holds no thread and no big array.

A process that is not forked imports the main module of the program, in case a function of its own is to run there. A
script that calls autoseg without `if __name__ == "__main__":` would start its work again in every worker. What workers
do is in autoseg: such a script is kept from them (`main_kept_out`).
"""

import ast
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import psutil
from tqdm import tqdm

from autoseg.errors import AutosegError, OutOfMemory
from autoseg.plugins import LOADED, import_plugins

Job = TypeVar("Job")
Result = TypeVar("Result")

_MAIN = threading.RLock()  # held while the main module is hidden
BYTES_PER_WORKER = 2 * 2**30  # free memory one worker should find
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUP_FILES = {  # of a controller: limit, use, and what of the use is cache that can be had back (versions 2 and 1)
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
PRELOAD = (
    "autoseg.datasets.checks.problems",
    "autoseg.planning.fingerprint",
    "autoseg.preprocessing.preprocess",
    "autoseg.evaluation.evaluate",
)


def available_cores() -> int:
    """Cores this process may run on (a container or a scheduler may have given fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes this process may still use: of the machine, or of a control group it belongs to (containers, SLURM).

    A process that was given a part of the machine's cores takes no more than that part of its memory: others will come
    for the rest.
    """
    free = int(psutil.virtual_memory().available * min(1.0, available_cores() / (os.cpu_count() or 1)))
    for folder, (limit, used, cache) in _control_groups():
        try:
            most = (folder / limit).read_text().strip()
            known = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if most.isdigit():
                free = min(free, int(most) - int((folder / used).read_text()) + int(known.get(cache, 0)))
        except OSError:  # there is no such group here, or it cannot be read
            continue
    return max(free, 0)


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """This process's group and all above it, with their files; inside a container only the topmost exists."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in GROUP_FILES.keys() & set(controllers.split(",")):
            root = CONTROL_GROUPS / name
            group = root / path.lstrip("/")
            yield from ((one, GROUP_FILES[name]) for one in (group, *group.parents) if one.is_relative_to(root))


def map_in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, title: str, workers: int | None = None
) -> list[Result]:
    """Apply a module-level function to every job and return the results in the order of the jobs.

    Args:
        workers: processes; None takes the cores and the free memory into account; 0 stays in this process.
        title: shown beside the progress bar (on a terminal only).

    Raises:
        OutOfMemory: a worker was killed, most likely by the system for want of memory.
        AutosegError: a worker ended in another way that it should not.
    """
    if workers is None:
        workers = min(available_cores(), max(1, free_memory() // BYTES_PER_WORKER))
    workers = min(workers, len(jobs))
    bar = tqdm(total=len(jobs), desc=title, disable=None, leave=False)
    results: list[Result | None] = [None] * len(jobs)
    with bar:
        if workers <= 1:
            for i, job in enumerate(jobs):
                results[i] = function(job)
                bar.update()
            return results  # type: ignore[return-value]
        context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            context.set_forkserver_preload(list(PRELOAD))
        with ProcessPoolExecutor(
            workers, mp_context=context, initializer=import_plugins, initargs=(tuple(LOADED),)
        ) as pool:
            processes = pool._processes  # the pool lets go of them when it is shut down
            try:
                with main_kept_out():
                    futures = {pool.submit(function, job): i for i, job in enumerate(jobs)}
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    bar.update()
            except BrokenProcessPool:
                pool.shutdown()
                raise _death(title, [process.exitcode or 0 for process in processes.values()]) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results  # type: ignore[return-value]


def _death(title: str, codes: Sequence[int]) -> AutosegError:
    """What is raised for a pool that lost a worker.

    Args:
        codes: how its processes ended: an exit code, or minus a signal. The pool ends the others by SIGTERM.
    """
    others = [code for code in codes if code not in (0, -signal.SIGTERM)]
    if others and others[0] > 0:
        return AutosegError(
            f"a worker process ended with exit code {others[0]} during {title!r}",
            remedy="read its output above; with --workers 0 the error is raised in this process",
        )
    return OutOfMemory(
        f"a worker process died during {title!r}: probably the system ran out of memory and killed it",
        remedy="use fewer workers (--workers 1), or a machine with more memory",
    )


@contextmanager
def main_kept_out() -> Iterator[None]:
    """Let processes that are started in the body not import the main module, unless it is written for that.

    With `if __name__ == "__main__":` it is: what it defines and registers above that line is known in the workers, too.
    """
    main = sys.modules["__main__"]
    if _is_importable(main):
        yield
        return
    with _MAIN:
        hidden: dict[str, object] = {
            name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)
        }
        main.__spec__ = None
        try:
            yield
        finally:
            vars(main).update(hidden)


def _is_importable(main: ModuleType) -> bool:
    """Whether the file of a main module tests at its top level whether it is the main module."""
    try:
        source = Path(main.__file__ or "").read_bytes()
        statements = ast.parse(source).body
    except (AttributeError, OSError, SyntaxError, ValueError):  # a notebook, standard input, a program in one file
        return False
    tests = [ast.unparse(statement.test) for statement in statements if isinstance(statement, ast.If)]
    return any("__name__" in test and "__main__" in test for test in tests)


def is_import_of_main() -> bool:
    """Whether this process is a worker that is importing the main module."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)
