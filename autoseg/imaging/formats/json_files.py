"""JSON files that may be large: one list of them is walked through, and not kept.

    read_json   a whole file
    read_top    a file whose top is an object: its members, and of one list only what a function makes of each element
    element     one element of that list, read from its place in the file

Errors name the file, line and column.
"""

import json
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from autoseg.errors import DataError

CORRECT = "correct it, or export it again"
_BLANKS = re.compile(r"[ \t\n\r]*")


class Span(NamedTuple):
    """A part of a file, in bytes."""

    start: int
    stop: int


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, with or without a mark at its beginning. Raises DataError."""
    return _parsed(path.read_bytes(), path)


def read_top(path: Path, name: str, visit: Callable[[Any, Span], None]) -> Any:
    """Read a JSON file without keeping one of its lists.

    Args:
        name: of the member of the top object that is such a list.
        visit: called with every element of it, and its place in the file. Text in it may be spelled wrongly where it
            is not ASCII: read it with `element`.

    Returns:
        The content; the list, if it is one, is None. What is not an object at the top is read as a whole.

    Raises:
        DataError: it is not JSON.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty, expected JSON", remedy=CORRECT)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _require_utf8(data, path)
            text = str(data, "latin-1")  # every byte is one character, so that places in the text are those in the file
    try:
        return _Walk(text, path, name, visit).top()
    except json.JSONDecodeError as error:
        raise _invalid(path, error) from None
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise _invalid(path, error) from None


def element(file: IO[bytes], span: Span, path: Path) -> Any:
    """Read one element of a file that `read_top` visited; objects that are none are read as empty."""
    file.seek(span.start)
    found = _parsed(file.read(span.stop - span.start), path)
    return found if isinstance(found, dict) else {}


class _Walk:
    """The members of a JSON object, one after the other."""

    def __init__(self, text: str, path: Path, name: str, visit: Callable[[Any, Span], None]) -> None:
        self.text, self.path, self.name, self.visit = text, path, name, visit
        self.decode = json.JSONDecoder().raw_decode
        self.at = 3 if text.startswith("\xef\xbb\xbf") else 0
        self.ascii = text.isascii()

    def top(self) -> Any:
        self._skip()
        if self.text[self.at : self.at + 1] != "{":
            return self._value()
        members: dict[str, Any] = {}
        self.at += 1
        self._skip()
        while not self._took("}"):
            if members and not self._took(","):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            self._skip()
            if self.text[self.at : self.at + 1] != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, self.at)
            key, self.at = self.decode(self.text, self.at)
            self._skip()
            if not self._took(":"):
                raise json.JSONDecodeError("Expecting ':' delimiter", self.text, self.at)
            self._skip()
            if key == self.name and self.text[self.at : self.at + 1] == "[":
                self._elements()
                members[key] = None  # it was walked through, and is not kept
            else:
                members[key] = self._value()
            self._skip()
        self._skip()
        if self.at < len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, self.at)
        return members

    def _elements(self) -> None:
        self.at += 1
        self._skip()
        first = True
        while not self._took("]"):
            if not first and not self._took(","):
                raise json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at)
            self._skip()
            first, start = False, self.at
            found, self.at = self.decode(self.text, self.at)
            self.visit(found, Span(start, self.at))
            self._skip()

    def _value(self) -> Any:
        start = self.at
        found, self.at = self.decode(self.text, self.at)
        if self.ascii:
            return found
        return json.loads(self.text[start : self.at].encode("latin-1").decode("utf-8"))

    def _skip(self) -> None:
        match = _BLANKS.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _took(self, mark: str) -> bool:
        found = self.text[self.at : self.at + 1] == mark
        self.at += found
        return found


def _parsed(data: bytes, path: Path) -> Any:
    if not data:
        raise DataError(f"{path} is empty, expected JSON", remedy=CORRECT)
    _require_utf8(data, path)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _invalid(path, error) from None


def _require_utf8(data: bytes | mmap.mmap, path: Path) -> None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is text in UTF-16, expected UTF-8", remedy="save it again in UTF-8")
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as error:
        what = f"{path} is not text in UTF-8: byte {error.object[error.start]:#x} at {error.start}"
        raise DataError(what, remedy="save it again in UTF-8") from None


def _invalid(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not valid JSON: {error}", remedy=CORRECT)
