"""Options of a loss or a network in a plan: the keywords of its function, held against its signature.

A plan names a function of a table and keeps its options in a dict. Which there are, their defaults and what they may be
stands in the signature alone:

    def dice_focal(*, focal_gamma: Annotated[float, at_least(0, 100)] = 2.0, **given): ...

Annotations are those of a record (see `records`); a keyword without one takes any plain data.
"""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from autoseg.records import from_plain
from autoseg.rules import FieldError

REQUIRED = inspect.Parameter.empty
WITHOUT_NAME = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


@dataclass(frozen=True)
class Option:
    """One keyword of a function: what it may be, and what it is where nobody says it, or REQUIRED."""

    annotation: Any
    default: Any


def options_of(function: Callable[..., Any], given: Collection[str]) -> dict[str, Option]:
    """The keywords of a function (or a class) but those that everyone of its table is `given`, in their order."""
    hints = typing.get_type_hints(_called(function), include_extras=True)
    return {
        name: Option(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in given and parameter.kind not in WITHOUT_NAME
    }


def check_options(
    options: Mapping[str, Any], function: Callable[..., Any], given: Collection[str], *, name: str, where: str
) -> None:
    """Hold the options of the function called `name` against its signature.

    Raises:
        FieldError: a keyword it does not have, a value that does not fit, or one missing that has no default; the
            message begins with `where`.
    """
    known = options_of(function, given)
    for key, value in options.items():
        if key not in known:
            expected = f"one of {', '.join(map(repr, known))}" if known else "no options"
            raise FieldError(f"{where}.{key}: expected {expected}, which {name} takes, found {key!r}")
        from_plain(known[key].annotation, value, f"{where}.{key}")
    for key, option in known.items():
        if option.default is REQUIRED and key not in options:
            raise FieldError(f"{where}: expected {key!r}, which {name} needs and has no default for")


def with_defaults(options: Mapping[str, Any], function: Callable[..., Any], given: Collection[str]) -> dict[str, Any]:
    """All options of a function: those that are set, and the defaults of the others."""
    known = options_of(function, given)
    return {key: option.default for key, option in known.items() if option.default is not REQUIRED} | dict(options)


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the annotations stand at: of a class, its `__init__`."""
    return function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
