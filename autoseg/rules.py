"""What a value of a record may be: rules in its annotation, with the words that name them in errors.

    epochs: Annotated[int, at_least(1, 1_000_000)] | None

`records.from_plain` holds what it reads against them, at any depth, and names the exact place of what does not fit;
`check_fields` holds a record against them that was made by hand. A rule sees one value. What fields have to do with
each other is checked by `__post_init__` of the record or, for what is put together in steps, by its `check_agreement`,
which `from_plain` calls. Both raise a `FieldError` that names one of the fields.

    at_least, above, between   ranges of numbers, with an upper end that no sensible value reaches
    odd                        odd numbers of a range
    one_of                     names of a table, those that are there when a value is checked
    entries                    how many entries a list has; `distinct`: none of them twice
    file_name, file_path       text that names a file or a folder, or leads there
    anything                   for a field that needs no rule, and says so
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from autoseg.errors import StateError
from autoseg.messages import counted

MAX_STEPS = 10**9  # of a training, or of an epoch
MAX_EPOCHS = 10**6
MAX_SECONDS = 10.0 * 366 * 86400
MAX_WORKERS = 1024
MAX_GIGABYTES = 10_000.0  # of a device's memory
REGISTER = "correct the name, or name the file that registers it: --plugin FILE.py"
MAX_COUNT = 2.0**63  # of bytes or operations: beyond, a number means nothing


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: whether a value fits, and what is expected, in words that follow "expected"."""

    fits: Callable[[Any], bool]
    words: str | Callable[[], str]  # a function where they depend on what a table holds
    remedy: str = ""  # what to do about a value that does not fit, where that says more than the words

    @property
    def expected(self) -> str:
        return self.words if isinstance(self.words, str) else self.words()


class FieldError(StateError):
    """A field of a record that does not fit; `what` begins with its name. `records.from_plain` adds where it stands."""


def at_least(low: float, most: float) -> Rule:
    return Rule(lambda value: low <= value <= most, f"{low:.12g} or more, at most {most:.12g}")


def above(low: float, most: float) -> Rule:
    return Rule(lambda value: low < value <= most, f"more than {low:.12g}, at most {most:.12g}")


def between(low: float, high: float, *, below: bool = False) -> Rule:
    """From `low` to `high`; `below`: without `high` itself."""
    words = f"{low:.12g} to {high:.12g}"
    if below:
        return Rule(lambda value: low <= value < high, f"{words}, less than {high:.12g}")
    return Rule(lambda value: low <= value <= high, words)


def odd(low: int, high: int) -> Rule:
    return Rule(lambda value: low <= value <= high and value % 2 == 1, f"an odd number, {low} to {high}")


def one_of(names: Collection[str] | Callable[[], Collection[str]]) -> Rule:
    """A name of a table, or of the table that a function returns: one that imports it when it is asked for."""
    table = names if callable(names) else lambda: names
    return Rule(lambda value: value in table(), lambda: f"one of {', '.join(map(repr, table()))}", REGISTER)


def exactly(wanted: int, words: str) -> Rule:
    return Rule(lambda value: value == wanted, words)


def entries(low: int, high: int | None = None, *, distinct: bool = False) -> Rule:
    """A list of `low` to `high` entries; `high` None: of any number from `low` on."""
    words = f"{low} or more entries" if high is None else in_entries(low) if low == high else f"{low} to {high} entries"
    return Rule(
        lambda value: (
            low <= len(value) <= (len(value) if high is None else high)
            and not (distinct and len(set(value)) < len(value))
        ),
        words + (" without repetition" if distinct else ""),
    )


def file_name() -> Rule:
    """One part of a path: no slash, not "." or "..", at most 200 bytes."""
    return Rule(
        lambda value: (
            0 < len(value.encode("utf-8", "surrogatepass")) <= 200
            and not {"/", "\0"} & set(value)
            and value not in (".", "..")
        ),
        "a name for a file, without slashes",
    )


def file_path() -> Rule:
    return Rule(lambda value: 0 < len(value) < 2**15 and "\0" not in value, "the path of a file")


def anything(words: str) -> Rule:
    """For fields where the type says all; the words say why."""
    return Rule(lambda value: True, words)


def check_fields(record: Any) -> None:
    """Hold the fields of a record against the rules of their annotations. Raises FieldError for the first to fail."""
    kind: Any = type(record)
    for name, annotation in hints(kind).items():
        _check(annotation, getattr(record, name), name)


def check_same_length(record: Any, names: Sequence[str], length: int, why: str) -> None:
    """Raise FieldError for the first of the named fields that has not so many entries."""
    for name in names:
        found = getattr(record, name)
        if len(found) != length:
            raise FieldError(f"{name}: expected {in_entries(length)}, {why}, found {len(found)}: {shown(found)}")


@functools.cache
def hints(record_type: type) -> dict[str, Any]:
    """Annotations of a record's fields, with their rules."""
    found = typing.get_type_hints(record_type, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(record_type)}


def in_entries(length: int) -> str:
    """A number of entries, in words."""
    return counted(length, "entry", "entries")


def shown(value: Any) -> str:
    """A value as errors show it: cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a thousand brackets; integers of thousands of digits
        text = f"a {type(value).__name__} too long to be shown"
    return text if len(text) < 80 else text[:77] + "..."


def _check(annotation: Any, value: Any, where: str) -> None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        _check(arguments[0], value, where)
        for rule in arguments[1:]:
            if not rule.fits(value):
                raise FieldError(f"{where}: expected {rule.expected}, found {shown(value)}", remedy=rule.remedy)
    elif origin in (Union, types.UnionType):
        if value is not None:
            for choice in arguments:
                if choice is not type(None):
                    _check(choice, value, where)
    elif origin is tuple:
        each = [arguments[0]] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        for i, (inner, entry) in enumerate(zip(each, value, strict=False)):
            _check(inner, entry, f"{where}[{i}]")
    elif origin is dict:
        for key, entry in value.items():
            _check(arguments[0], key, f"{where}, key {key!r}")
            _check(arguments[1], entry, f"{where}.{key}")
