"""Arguments of the Python interface: held against their annotations, and brought into the form that commands take.

checked      a function whose calls are refused with an AutosegError that says what was expected
options_of   keywords as the record of options whose fields have their names
intake_of    what a dataset cannot say itself, from lists and dicts, or as it is typed
lines_to     where lines are shown while a call runs
"""

import difflib
import functools
import inspect
import json
import math
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from autoseg.api.spelling import in_python
from autoseg.cli import as_out_of_memory
from autoseg.commands.arguments import parse_folds
from autoseg.datasets.dataset import IntakeOptions, parse_options
from autoseg.errors import AutosegError, UsageError
from autoseg.lines import show, shown_by
from autoseg.messages import complete
from autoseg.processes import is_import_of_main
from autoseg.rules import FieldError, shown
from autoseg.workspace import FoldName, Workspace

P = ParamSpec("P")
R = TypeVar("R")

File = str | os.PathLike[str]
FoldNames = int | str | Sequence[int | str]  # 0, [0, 2], "0..4", "full"
Names = str | Sequence[str]
Settings = Names | Mapping[str, Any]
Labels = str | Mapping[str, int | str]  # name -> value, or "#rrggbb" in pictures
Regions = str | Mapping[str, Sequence[int]]
Say = Callable[[str], None]

WORDS = {
    bool: "True or False", int: "a whole number", float: "a finite number", str: "text", os.PathLike: "a path",
    types.NoneType: "None", Callable: "a function", Any: "anything",
}  # fmt: skip


class _Unfit(Exception):
    """A value does not fit an annotation."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Hold the arguments of every call against the names and annotations of a function, or of a method.

    Numbers of numpy become Python's; a list or an array becomes a tuple. Commands that errors suggest name the
    workspace and are calls of Python. Lines go to the argument `say`, where the function has one.

    Raises (when it is called):
        UsageError: an unknown or missing argument, a wrong type, or a call by a worker that imports a user's script.
        OutOfMemory: whatever torch calls it.
    """
    signature, name = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_import_of_main():
            raise UsageError(
                f"autoseg.{name}() is called by a script that a worker process imports",
                remedy='move the call below the line `if __name__ == "__main__":`, or remove that line',
            )
        arguments = _bound(name, signature, args, kwargs)
        try:
            with lines_to(arguments["say"]) if "say" in arguments else nullcontext():
                return function(**arguments)  # type: ignore[call-arg]
        except AutosegError as error:
            _complete(error, arguments.get("workspace", arguments.get("path")))
            raise
        except Exception as error:
            if full := as_out_of_memory(error):
                raise _complete(full, arguments.get("workspace")) from error
            raise

    return call


def _complete(error: AutosegError, workspace: File | None) -> AutosegError:
    """The same error; commands that it suggests name the workspace, and are calls."""
    where = None if workspace is None else as_path(workspace)
    error.what, error.remedy = (in_python(complete(text, where)) for text in (error.what, error.remedy))
    return error


class _NoTerminal:
    """A stream that claims not to be a terminal."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return False


@contextmanager
def lines_to(say: Say | None) -> Iterator[None]:
    """Let a function take the lines of the body; `print` beside progress bars, and None takes none and shows no bar."""
    with shown_by(show if say is print else say), _without_bars() if say is None else nullcontext():
        yield


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let no progress bar appear while the body runs: they do on a terminal alone."""
    with redirect_stderr(_NoTerminal(sys.stderr)):
        yield


def _bound(name: str, signature: inspect.Signature, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included. Raises UsageError."""
    takes = f"it takes {', '.join(key for key in signature.parameters if key != 'self')}"
    if unknown := next((key for key in kwargs if key not in signature.parameters), None):
        close = difflib.get_close_matches(unknown, signature.parameters, 1)
        remedy = f"did you mean {close[0]}? {takes}" if close else takes
        raise UsageError(f"autoseg.{name}() has no argument {unknown!r}", remedy=remedy)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"autoseg.{name}(): {error}", remedy=takes) from None
    for key, value in bound.arguments.items():
        if (annotation := signature.parameters[key].annotation) is inspect.Parameter.empty:
            continue  # self
        try:
            bound.arguments[key] = _fitted(annotation, value)
        except _Unfit:
            raise UsageError(
                f"autoseg.{name}(): {key}: expected {_words(annotation)}, found {shown(value)}",
                remedy=f"see help(autoseg.{name})",
            ) from None
    bound.apply_defaults()
    return bound.arguments


def _fitted(annotation: Any, value: Any) -> Any:
    """A value in the form of an annotation. Raises _Unfit."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        for choice in arguments:
            with suppress(_Unfit):
                return _fitted(choice, value)
        raise _Unfit
    if origin is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in arguments)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {_fitted(arguments[0], key): _fitted(arguments[1], entry) for key, entry in value.items()}
        fits = False
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        entries = value.tolist() if hasattr(value, "tolist") else value  # an array
        if isinstance(entries, (list, tuple, range)):
            return tuple(_fitted(arguments[0], entry) for entry in entries)
        fits = False
    elif annotation in (int, float):
        return _number(annotation, value)
    elif origin is os.PathLike:
        fits = isinstance(value, os.PathLike)
    else:
        fits = annotation is Any or (callable(value) if origin is Callable else isinstance(value, annotation))
    if not fits:
        raise _Unfit
    return value


def _number(kind: type, value: Any) -> Any:
    """A whole or a finite number, Python's or numpy's. Raises _Unfit."""
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
        raise _Unfit
    return kind(value)


def _words(annotation: Any) -> str:
    """What an annotation asks for."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict from {_words(arguments[0])} to {_words(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_words(arguments[0])}"
    return WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


# ---- into the form that commands take


def as_path(file: File) -> Path:
    return Path(file).expanduser()


def in_workspace(folder: File) -> Workspace:
    return Workspace(as_path(folder))


def folds_of(folds: FoldNames | None) -> tuple[FoldName, ...] | None:
    """Folds by name; None for all. Raises UsageError."""
    if folds is None:
        return None
    text = folds if isinstance(folds, str) else str(folds) if isinstance(folds, int) else " ".join(map(str, folds))
    try:
        return parse_folds(text)
    except UsageError:
        remedy = "write 0, [0, 2], '0..4', 'full', or leave it out for all"
        raise UsageError(f"folds: {shown(folds)} names no folds", remedy=remedy) from None


def names_of(names: Names) -> tuple[str, ...]:
    """Names in a list, or separated by commas."""
    return tuple(filter(None, (name.strip() for name in names.split(",")))) if isinstance(names, str) else tuple(names)


def settings_of(settings: Settings) -> tuple[str, ...]:
    """Changes of the plan as they are typed after `--set`, from {"training.learning_rate": 0.001} or as typed."""
    if isinstance(settings, Mapping):
        return tuple(f"{key}={_setting(key, value)}" for key, value in settings.items())
    return (settings,) if isinstance(settings, str) else tuple(settings)


def _setting(key: str, value: Any) -> str:
    """A value as JSON; a text that nobody would take for anything else as it is."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    try:
        return json.dumps(value.tolist() if hasattr(value, "tolist") else value)
    except (TypeError, ValueError):
        raise UsageError(f"settings: {key}: {shown(value)} is neither text, a number nor a list of them") from None


def intake_of(
    channels: Names | None = None,
    labels: Labels | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    patient_regex: str | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
) -> IntakeOptions:
    """What a dataset cannot say itself. Raises UsageError."""
    return parse_options(
        channels=channels if isinstance(channels, str) or channels is None else ",".join(channels),
        labels=labels_text(labels),
        regions=_pairs("regions", regions, lambda values: "+".join(map(str, values))),
        ignore=ignore,
        patient_regex=patient_regex,
        instances=instances if isinstance(instances, str) or instances is None else ",".join(instances),
        divisor=divisor,
    )


def labels_text(labels: Labels | None) -> str | None:
    """Labels as they are typed: liver=1,tumour=2."""
    return _pairs("labels", labels, str)


def _pairs(what: str, pairs: str | Mapping[str, Any] | None, text: Callable[[Any], str]) -> str | None:
    if pairs is None or isinstance(pairs, str):
        return pairs
    if bad := next((name for name in pairs if {",", "="} & set(name)), None):
        raise UsageError(f"{what}: the name {bad!r} has a comma or an equals sign", remedy="choose another name")
    return ",".join(f"{name}={text(value)}" for name, value in pairs.items())


READ: dict[str, Callable[[Any], Any]] = {  # keyword -> what brings it into the form of the field of its name
    "folds": folds_of,
    "settings": settings_of,
    "configurations": names_of,
    "models": names_of,
    "init_from": lambda file: None if file is None else as_path(file),
    "patients": lambda file: None if file is None else as_path(file),
    "references": lambda file: None if file is None else as_path(file),
    "csv": lambda file: None if file is None else as_path(file),
    "labels": labels_text,
    "shares": lambda shares: tuple(map(float, shares)),
}


def options_of(kind: type[R], given: Mapping[str, Any]) -> R:
    """The record of options whose fields are keywords of the same names; what is not a field of it is left out.

    Raises:
        UsageError: a value breaks the rule of its field, or two exclude each other.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    try:
        return kind(**{name: READ.get(name, lambda value: value)(given[name]) for name in names})
    except FieldError as error:
        raise UsageError(error.what, remedy=error.remedy) from None
