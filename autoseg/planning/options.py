"""Options of a loss or a network in a plan: keywords of its function, checked against its signature.

A plan names a function of a table and keeps its options in a dict. Their names, defaults and allowed values are defined
only by the signature:

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
    """One keyword of a function: its allowed values, and its default, or REQUIRED."""

    annotation: Any
    default: Any


def options_of(function: Callable[..., Any], given: Collection[str]) -> dict[str, Option]:
    """The keywords of a function (or a class), in order, without those `given` to every function of its table."""
    hints = typing.get_type_hints(_called(function), include_extras=True)
    return {
        name: Option(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in given and parameter.kind not in WITHOUT_NAME
    }


def check_options(
    options: Mapping[str, Any], function: Callable[..., Any], given: Collection[str], *, name: str, where: str
) -> None:
    """Check the options of the function called `name` against its signature.

    Raises:
        FieldError: an unknown keyword, an invalid value, or a missing keyword without a default; the message begins
            with `where`.
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
    """All options of a function: those set, and the defaults of the others."""
    known = options_of(function, given)
    return {key: option.default for key, option in known.items() if option.default is not REQUIRED} | dict(options)


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the annotations: of a class, its `__init__`."""
    return function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
