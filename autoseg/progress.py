"""How far a command is: a bar on a terminal, and in a log a line a minute.

Progress     counts what is done
progressed   the same for what is iterated over
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from autoseg.lines import LOG
from autoseg.messages import duration

T = TypeVar("T")
EVERY_SECONDS = 60.0  # a line, where there is no terminal


class Progress:
    """Counts what is done of something, and shows it while the body runs.

    Args:
        total: how many there are.
        title: what is done with them, before the bar or the number.
    """

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done = total, title, 0
        self._bar = tqdm(total=total, desc=title, disable=None, leave=False)
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self) -> None:
        """Count one more."""
        self.done += 1
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and self.done < self.total and now - self._said >= EVERY_SECONDS:
            self._said, spent = now, now - self._began
            rest = spent / self.done * (self.total - self.done)
            LOG.info(f"{self.title}: {self.done} of {self.total} in {duration(spent)}, about {duration(rest)} to go")


def progressed(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items, each counted when the next one is asked for."""
    with Progress(total, title) as progress:
        for item in items:
            yield item
            progress.update()
