"""The one family of errors a user can correct.

Each error says three things: what came, what was expected, and what to do. `cli.py` prints it without a traceback and
exits with its code. Anything else that escapes is a bug of autoseg and keeps its traceback.
"""


class _Told(BaseException):
    """What is shown to the user without a traceback."""

    exit_code = 2

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.result: object = None  # a record of what was done all the same, for --json

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.remedy}" if self.remedy else self.what


class AutosegError(_Told, Exception):
    """A mistake or a circumstance the user can correct.

    Args:
        what: what came and what was expected, naming the file, the key or the option.
        remedy: what to do about it, as an instruction ("pass --patient-regex ...").
    """


class UsageError(AutosegError):
    """An option or an argument that cannot be used as given."""

    exit_code = 2


class DataError(AutosegError):
    """Images or labels that cannot be used as they are."""

    exit_code = 3


class StateError(AutosegError):
    """A workspace whose contents do not fit the command (missing stage, stale data, a lock held elsewhere)."""

    exit_code = 4


class StorageError(AutosegError):
    """The disk or the file system refused."""

    exit_code = 5


class OutOfMemory(AutosegError):
    """The memory of the device or of the host does not suffice."""

    exit_code = 6


class Stopped(_Told):
    """Work was stopped from outside and can be resumed.

    It may come at any moment, out of a signal. Like KeyboardInterrupt it is not an `Exception`: nobody who expects that
    something fails (a damaged file, a compiler) may take it for that failure.
    """

    exit_code = 75
    restart_due = False  # a --restart was asked for, and nothing was set aside yet
    resumed_with: tuple[str, ...] = ()  # options that the command needs, in addition, to resume


class Interrupted(Stopped):
    """As Stopped, by Ctrl-C."""

    exit_code = 130


class Misuse(SystemExit):
    """A command line that cannot be parsed; argparse has printed what is wrong with it."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(2)
        self.what = what
        self.remedy = remedy
