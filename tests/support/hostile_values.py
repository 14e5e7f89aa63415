"""Values that no key of a record expects: `from hostile_values import HOSTILE, leaves, put`."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]

HOSTILE: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "0": 0,
    "-1": -1,
    "1": 1,
    "2": 2,
    "5": 5,
    "-0.0": -0.0,
    "0.5": 0.5,
    "1.5": 1.5,
    "-1e-9": -1e-9,
    "1e-320": 1e-320,
    "1e308": 1e308,
    "10**30": 10**30,
    "-10**30": -(10**30),
    "10**400": 10**400,
    "nan": math.nan,
    "inf": math.inf,
    "empty text": "",
    "text": "quantum",
    "number as text": "3",
    "path": "../../elsewhere",
    "absolute path": "/etc/passwd",
    "zero byte": "a\0b",
    "unicode": "Größe \u202e \U0001f4a5",
    "surrogate": "\ud800",
    "long text": "x" * 5000,
    "empty list": [],
    "[0]": [0],
    "[5]": [5],
    "[0, 0]": [0, 0],
    "[-1, -1, -1]": [-1, -1, -1],
    "[1, 1]": [1, 1],
    "[1, 1, 1]": [1, 1, 1],
    "[2, 2, 2]": [2, 2, 2],
    "[1.5, 1.5, 1.5]": [1.5, 1.5, 1.5],
    "[nan, 1, 1]": [math.nan, 1, 1],
    "[16, 16, 16, 16]": [16, 16, 16, 16],
    "lists in lists": [[[1]]],
    "deep": DEEP,
    "list of null": [None],
    "list of text": ["a"],
    "many": [1] * 3000,
    "empty object": {},
    "object": {"a": 1},
    "object of objects": {"a": {"b": {}}},
}


def leaves(plain: Any, place: tuple = ()) -> Iterator[tuple]:
    """Places of all values of plain data, those that hold others included, as keys and indices."""
    if place:
        yield place
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from leaves(value, (*place, key))
    elif isinstance(plain, list):
        for i, value in enumerate(plain):
            yield from leaves(value, (*place, i))


def put(plain: Any, place: tuple, value: Any) -> Any:
    """A copy of plain data with another value in one place."""
    changed = copy.deepcopy(plain)
    node = changed
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    return changed


def spelled(place: tuple) -> str:
    """A place as errors write it: `training.mirror_axes[0]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def as_json(value: Any) -> str:
    return json.dumps(value)
