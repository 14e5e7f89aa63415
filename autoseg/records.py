"""Frozen dataclasses to JSON and back, strictly.

A record is a frozen dataclass made of `None`, `bool`, `int`, `float`, `str`, tuples, string-keyed dicts, other records,
`Literal` choices, unions of these, and rules (`Annotated[int, at_least(1, 9)]`, see `rules`). `to_plain` turns one into
what `json` can write; `from_plain` reads it back and names the exact place of an unknown, missing or ill-typed key, or
of a value that breaks a rule: a person edits these files. A field with a default may be absent, so that a record may
gain one without a new version. `override` applies `training.epochs=50` from the command line with the same checks.

Dict keys that are numbers are kept as numbers when the annotation says `dict[int, ...]`. Non-finite floats are refused
both ways, because JSON has no word for them; so is a key that stands twice. What a record's own checks refuse is
reported with its place, too.
"""

import dataclasses
import json
import math
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from autoseg.errors import AutosegError, StateError, UsageError
from autoseg.rules import FieldError, Rule, hints, shown
from autoseg.workspace import write_text

R = TypeVar("R")


class OtherVersion(StateError):
    """A file holds a record of a version that this autoseg does not read."""


def to_plain(value: Any) -> Any:
    """Turn a record into dicts, lists and scalars that `json` writes. Raises ValueError on NaN or infinity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a record cannot hold the value {value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def from_plain(annotation: Any, value: Any, where: str = "record") -> Any:
    """Read what `to_plain` wrote as the given type; `where` is the place named in errors (`plan.json: training`)."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _record(annotation, value, where)
    if origin is Annotated:
        return _ruled(arguments[0], arguments[1:], value, where)
    if annotation is Any:
        return _anything(value, where)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):  # 1 == 1.0 == True
            raise _wrong(where, "one of " + ", ".join(map(repr, arguments)), value)
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        return _dict(arguments, value, where)
    if annotation is None or annotation is type(None):
        if value is not None:
            raise _wrong(where, "null", value)
        return None
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # an integer beyond any float
            pass
        raise _wrong(where, "a finite number", value)
    if annotation in (bool, int, str) and type(value) is annotation:
        return value
    raise _wrong(where, f"a value of type {getattr(annotation, '__name__', annotation)}", value)


def dumps(record: Any) -> str:
    """A record as indented JSON. Short lists stay on one line, so that a person can read it."""
    text = _dumps(to_plain(record)) + "\n"
    # File names that are not UTF-8 reach us as lone surrogates; with a backslash they are JSON's own escapes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def save(path: Path, record: Any) -> None:
    """Write a record as `dumps` puts it, atomically."""
    write_text(path, dumps(record))


def load(record_type: type[R], path: Path, remedy: str = "") -> R:
    """Read a record written by `save`.

    Raises:
        StateError: the file is missing, is not JSON, or does not fit the record; the message names the place.
        OtherVersion: it holds a version of the record that is not read here.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StateError(f"{path} does not exist", remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{path} cannot be read as text: {error}", remedy=remedy) from None
    return loads(record_type, text, path, name=path.name)


def loads(record_type: type[R], text: str, where: object, *, name: str = "", remedy: str = "") -> R:
    """Read a record from the text that `dumps` made.

    Args:
        where: what holds the text, for errors; `name`: shorter, for places within it.
        remedy: what to do about a text that cannot be read; "": to undo or correct an edit of it.

    Raises:
        StateError, OtherVersion: see `load`.
    """
    try:
        plain = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise StateError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}", remedy=remedy or "undo the last edit"
        ) from None
    except (ValueError, RecursionError) as error:  # a key that stands twice; thousands of digits or brackets
        raise StateError(f"{where} is not valid JSON: {error}", remedy=remedy or "undo the last edit") from None
    _require_version(record_type, plain, where)
    try:
        return from_plain(record_type, plain, name or str(where))
    except StateError as error:
        raise StateError(error.what, remedy=error.remedy or remedy or f"correct it in {where}") from None


def override(record: R, settings: Sequence[str], where: str = "plan") -> R:
    """Apply `a.b=value` settings to a record and return the changed copy.

    Values are read as JSON where they parse (`0.5`, `[1,2]`, `null`, `true`), otherwise as text. A key that does not
    exist is added where a dict holds anything, such as the options of a function.

    Raises:
        UsageError: a setting without `=`, or a key the record does not have (the message lists those it has).
    """
    plain = to_plain(record)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set {setting!r} has no '='", remedy="write it as --set training.epochs=50")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets
            raise UsageError(f"--set {key}: the value cannot be read: {error}", remedy="write a plain value") from None
        *parents, last = key.split(".")
        node = plain
        for depth, part in enumerate(parents):
            if not isinstance(node, dict) or part not in node:
                raise _no_such_key(key, ".".join(parents[: depth + 1]), node)
            node = node[part]
        if not isinstance(node, dict) or not (last in node or _takes_any_key(type(record), parents)):
            raise _no_such_key(key, key, node)
        node[last] = value
    try:
        return from_plain(type(record), plain, where)
    except StateError as error:
        raise UsageError(error.what, remedy=error.remedy) from None


def _takes_any_key(annotation: Any, path: Sequence[str]) -> bool:
    """Whether a path of keys leads to a `dict[..., Any]`."""
    for part in path:
        annotation = _without_rules(annotation)
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            annotation = hints(annotation).get(part)
        else:
            annotation = get_args(annotation)[1] if get_origin(annotation) is dict else None
    annotation = _without_rules(annotation)
    return get_origin(annotation) is dict and get_args(annotation)[1] is Any


def _without_rules(annotation: Any) -> Any:
    """The type itself, of one with rules or of one that may be None."""
    if get_origin(annotation) is Annotated:
        return _without_rules(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _without_rules(next(choice for choice in get_args(annotation) if choice is not type(None)))
    return annotation


def _require_version(record_type: Any, plain: Any, where: object) -> None:
    """Refuse a record of another version before its keys are looked at: which keys it has follows from its version.

    The remedy is the record's REMEDY_FOR_OTHER_VERSIONS, where it has one; others can be corrected by hand.

    Raises:
        OtherVersion: says what came, what is read here, and what to do.
    """
    remedy = getattr(record_type, "REMEDY_FOR_OTHER_VERSIONS", None)
    if remedy is None or not isinstance(plain, dict) or "version" not in plain:
        return
    version, (rule, *_) = plain["version"], hints(record_type)["version"].__metadata__
    if type(version) is not int or not rule.fits(version):
        raise OtherVersion(f"{where} is of version {shown(version)}; expected {rule.expected}", remedy=remedy)


def _record(record_type: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, f"an object ({record_type.__name__})", value)
    fields = {f.name: f for f in dataclasses.fields(record_type)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise StateError(
            f"{where}: unknown key {unknown[0]!r}", remedy=f"{record_type.__name__} has: {', '.join(fields)}"
        )
    missing = [name for name, f in fields.items() if name not in value and not _has_default(f)]
    if missing:
        raise StateError(f"{where}: missing key {missing[0]!r}", remedy=f"add it to {record_type.__name__}")
    arguments = {
        name: from_plain(hint, value[name], f"{where}.{name}")
        for name, hint in hints(record_type).items()
        if name in value
    }
    try:
        record = record_type(**arguments)
        if hasattr(record, "check_agreement"):
            record.check_agreement()
        return record
    except FieldError as error:
        raise FieldError(f"{where}.{error.what}", remedy=error.remedy) from None
    except AutosegError as error:  # the record's own checks, which do not know where it stands
        raise StateError(f"{where}: {error.what}", remedy=error.remedy) from None


def _has_default(record_field: dataclasses.Field) -> bool:
    return record_field.default is not dataclasses.MISSING or record_field.default_factory is not dataclasses.MISSING


def _ruled(annotation: Any, rules: tuple, value: Any, where: str) -> Any:
    read = from_plain(annotation, value, where)
    for rule in rules:
        if isinstance(rule, Rule) and not rule.fits(read):
            raise _wrong(where, rule.expected, value, rule.remedy)
    return read


def _union(arguments: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for choice in arguments:
        if choice is type(None):
            continue
        try:
            return from_plain(choice, value, where)
        except StateError as error:
            errors.append(error)
    raise errors[0]


def _tuple(arguments: tuple, value: Any, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(from_plain(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise _wrong(where, f"a list of {len(arguments)} values", value)
    return tuple(from_plain(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))


def _dict(arguments: tuple, value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    key_type, value_type = arguments
    return {_key(key_type, k, where): from_plain(value_type, v, f"{where}.{k}") for k, v in value.items()}


def _key(key_type: Any, text: str, where: str) -> Any:
    plain_type, *rules = get_args(key_type) if get_origin(key_type) is Annotated else (key_type,)
    with suppress(ValueError):
        if str(key := plain_type(text)) == text:  # int() reads " 1", "01" and "1_0" too
            return _ruled(plain_type, tuple(rules), key, f"{where}, key {text!r}")
    raise _wrong(where, f"keys of type {plain_type.__name__}", text)


def _anything(value: Any, where: str) -> Any:
    try:
        to_plain(value)
    except (TypeError, ValueError, RecursionError):
        raise _wrong(where, "plain data with finite numbers", value) from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice in one object")
    return found


def _wrong(where: str, expected: str, value: Any, remedy: str = "") -> StateError:
    return FieldError(f"{where}: expected {expected}, found {shown(value)}", remedy=remedy)


def _no_such_key(key: str, place: str, node: Any) -> UsageError:
    exist = ", ".join(node) if isinstance(node, dict) else "no keys"
    return UsageError(f"--set {key}: there is no {place!r}", remedy=f"existing names: {exist}")


def _dumps(value: Any, indent: int = 0) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) + indent <= 110 or not isinstance(value, (dict, list)) or not value:
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        rows = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {_dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + _dumps(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
