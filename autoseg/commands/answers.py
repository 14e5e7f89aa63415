"""The one way in which commands answer with --json: one JSON document on stdout, and nothing else there.

    {"command": "status", "exit_code": 0, "result": {...}}
    {"command": "plan", "exit_code": 3, "error": {"kind": "DataError", "what": "...", "remedy": "..."}}

A command that reports returns an `Answer`; what is a record in Python is an object here, with the same names. Its lines
for people are printed to stderr, also those that a library or another process prints. Exit codes are the same as
without --json.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from autoseg.errors import AutosegError, Misuse, Stopped

OPTION = "--json"


@dataclass(frozen=True)
class Answer:
    """What a command found: a record, or plain data; and its exit code."""

    result: Any
    code: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    command: str | None  # None: the command line names none
    code: int
    result: Any = None
    error: BaseException | None = None

    def document(self) -> str:
        """As JSON."""
        plain: dict[str, Any] = {"command": self.command, "exit_code": self.code}
        if self.error is not None:
            plain["error"] = _described(self.error)
        if self.result is not None:
            plain["result"] = as_json(self.result)
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def answer(run: Callable[[], Outcome]) -> int:
    """Run a command, print its document, and return its exit code."""
    with _stdout_for_the_document() as show:
        try:
            outcome = run()
        except Exception as error:  # a bug of autoseg: the traceback follows
            show(Outcome(None, 1, error=error).document())
            raise
        show(outcome.document())
    return outcome.code


def as_json(value: Any) -> Any:
    """A record, or anything made of records, as data that `json` writes; what is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(as_json, value), key=str)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, SupportsIndex):
        return int(value)
    if isinstance(value, SupportsFloat):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an answer cannot hold a {type(value).__name__}: {value!r}")


def _described(error: BaseException) -> dict[str, str]:
    kind = "UsageError" if isinstance(error, Misuse) else type(error).__name__
    if isinstance(error, (AutosegError, Stopped, Misuse)):
        return {"kind": kind, "what": error.what, "remedy": error.remedy}
    return {"kind": kind, "what": str(error), "remedy": ""}


@contextmanager
def _stdout_for_the_document() -> Iterator[Callable[[str], None]]:
    """Send to stderr what is printed to stdout, by this process and those it starts; yields what prints the rest."""
    out = sys.stdout
    saved = None
    if sys.__stdout__ is not None and out is sys.__stdout__:  # otherwise it is not a descriptor of this process
        sys.__stdout__.flush()
        saved = os.dup(1)
        os.dup2(2, 1)

    def show(text: str) -> None:
        if saved is None:
            print(text, file=out, flush=True)
            return
        sys.stdout.flush()
        with open(os.dup(saved), "w", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")

    try:
        with redirect_stdout(sys.stderr):
            yield show
    finally:
        if saved is not None and out is not None:
            out.flush()
            os.dup2(saved, 1)
            os.close(saved)
