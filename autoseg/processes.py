"""Work on many cases at once, in processes that cannot hang.

`concurrent.futures` notices a killed worker at once (the kernel kills the largest process when memory runs out) and
says so. Workers start from a fork server that has imported what they need but holds no thread and no big array.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import psutil
from tqdm import tqdm

from autoseg.errors import OutOfMemory
from autoseg.plugins import LOADED, import_plugins

Job = TypeVar("Job")
Result = TypeVar("Result")

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
        except OSError:  # there is no such group here, or it is not told
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
            futures = {pool.submit(function, job): i for i, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    bar.update()
            except BrokenProcessPool:
                raise OutOfMemory(
                    f"a worker process died during {title!r}: probably the system ran out of memory and killed it",
                    remedy="use fewer workers (--workers 1), or a machine with more memory",
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results  # type: ignore[return-value]
