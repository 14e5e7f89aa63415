"""Work on many cases at once, in processes that cannot hang.

`concurrent.futures` notices a killed worker at once (the kernel kills the largest process when memory runs out) and
says so. Workers start from a fork server that has imported what they need but holds no thread and no big array.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import psutil
from tqdm import tqdm

from autoseg.errors import OutOfMemory

Job = TypeVar("Job")
Result = TypeVar("Result")

BYTES_PER_WORKER = 2 * 2**30  # free memory one worker should find
PRELOAD = ("autoseg.problems", "autoseg.fingerprint", "autoseg.preprocess", "autoseg.evaluate")


def available_cores() -> int:
    """Cores this process may run on (a container or a scheduler may have given fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        workers = min(available_cores(), max(1, psutil.virtual_memory().available // BYTES_PER_WORKER))
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
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
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
