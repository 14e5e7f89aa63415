"""The lines that commands show: records of one logger of Python's `logging`, named "autoseg".

LOG        the logger: `LOG.info(text)`, and `LOG.warning(text)` for what may need a person
shown_by   while the body runs, each line is handed to a function, or none is shown
kept_by    the same, in addition to what shows it: the log.txt of a fold
rewritten  while the body runs, each line is put in another way: "fold 0  " before it
show       a line on standard output, above progress bars

The command line and the Python interface call `shown_by`. Where nobody did, lines go where the user's own `logging` is
configured to send them, and nowhere without one.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOG = logging.getLogger("autoseg")
LOG.addHandler(logging.NullHandler())  # or Python would print warnings automatically

Show = Callable[[str], object]


class LineHandler(logging.Handler):
    """Hands the text of each record to a function. What that raises is raised where the line was logged.

    It takes the lines of those who installed it: two threads may show theirs in two places.
    """

    def __init__(self, show: Show) -> None:
        super().__init__()
        self.show = show
        self.addFilter(lambda record: self in _active.get())

    def emit(self, record: logging.LogRecord) -> None:
        self.show(record.getMessage())


_active: ContextVar[tuple[LineHandler, ...]] = ContextVar("active", default=())
_rewrite: ContextVar[Callable[[str], str] | None] = ContextVar("rewrite", default=None)


def show(text: str) -> None:
    """Show a line on standard output at once: a log that is followed should not lag behind."""
    if bars := sys.modules.get("tqdm"):
        bars.tqdm.write(text)
        sys.stdout.flush()
    else:
        print(text, flush=True)


@contextmanager
def shown_by(function: Show | None) -> Iterator[None]:
    """While the body runs, hand each line to a function instead of to those that took it before; None shows nothing."""
    if function is None:
        token = _active.set(())
        try:
            yield
        finally:
            _active.reset(token)
    else:
        handler = LineHandler(function)
        with _installed(handler, (handler,)):
            yield


@contextmanager
def kept_by(function: Show) -> Iterator[None]:
    """While the body runs, hand each line to a function, too, after those that take it already."""
    handler = LineHandler(function)
    with _installed(handler, (*_active.get(), handler)):
        yield


@contextmanager
def rewritten(function: Callable[[str], str]) -> Iterator[None]:
    """While the body runs, put each line as a function returns it, whoever takes it."""
    token = _rewrite.set(function)
    try:
        yield
    finally:
        _rewrite.reset(token)


class _Installed:
    """Handlers that are installed now, and how the logger stood before the first one."""

    lock = threading.Lock()
    handlers: list[LineHandler] = []  # noqa: RUF012
    before = (logging.NOTSET, True)


@contextmanager
def _installed(handler: LineHandler, active: tuple[LineHandler, ...]) -> Iterator[None]:
    """Install a handler while the body runs; `active`: those that take the lines of the body.

    Lines are of level INFO, which a logger withholds as Python comes. Where the user did not ask for it, it is let
    through, but not to the handlers of the root logger, which would show it a second time.
    """
    with _Installed.lock:
        if not _Installed.handlers:
            _Installed.before = (LOG.level, LOG.propagate)
        if not LOG.isEnabledFor(logging.INFO):
            LOG.setLevel(logging.INFO)
            LOG.propagate = False
        _Installed.handlers.append(handler)
        LOG.addHandler(handler)
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)
        with _Installed.lock:
            LOG.removeHandler(handler)
            _Installed.handlers.remove(handler)
            if not _Installed.handlers:
                LOG.setLevel(_Installed.before[0])
                LOG.propagate = _Installed.before[1]


def _put_otherwise(record: logging.LogRecord) -> bool:
    if rewrite := _rewrite.get():
        record.msg, record.args = rewrite(record.getMessage()), ()
    return True


LOG.addFilter(_put_otherwise)
