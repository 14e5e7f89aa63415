"""The lists of a dataset (dataset.json, tables, folds, patients), corrected in a copy.

read_lenient     an almost valid JSON file -> its content, what is wrong, what is ambiguous
mend_json        correct what is wrong, where only one reading is possible
listed_files     the files that dataset.json or a table names
relocate         paths that lead out of the copy, or to a file that was renamed -> paths within the copy
drop_cases       cases that were left out -> no list names them
set_num_training the number of cases
"""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.datasets.pairing import Problem
from autoseg.datasets.spelling import find
from autoseg.datasets.tables import CASE_COLUMNS, TABLE_ENDINGS, _row_ids, image_columns, lists_images, read_table
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import stem_of
from autoseg.messages import counted
from autoseg.workspace import write_text

DESCRIPTION, SPLITS, PATIENTS, PARTICIPANTS = "dataset.json", "splits_final.json", "patients.csv", "participants.tsv"
JSON_FILES = (DESCRIPTION, SPLITS)
_DESCRIPTIVE = ("name", "description", "reference", "licence", "license", "release", "author", "citation", "date")
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # byte order marks


class _Object(dict):
    """An object of JSON. The last of repeated keys counts, as everywhere in Python; the others are kept, too."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        last = {key: number for number, (key, _) in enumerate(pairs)}
        self.earlier = [(key, value) for number, (key, value) in enumerate(pairs) if last[key] != number]

    def items(self) -> Any:
        return [*self.earlier, *super().items()]


@dataclass
class Lenient:
    """Content of a JSON file, read leniently."""

    content: Any
    faults: list[tuple[str, str]] = field(default_factory=list)  # what was, what is now
    doubtful: list[str] = field(default_factory=list)  # what is ambiguous


def read_lenient(path: Path) -> Lenient:
    """Read a JSON file that may begin with a byte order mark, have commas before a bracket, or repeat keys.

    Keys that are repeated with one value, or in a description that autoseg does not read, are removed from the content,
    which is to be written instead. Those with two values stay in it.

    Raises:
        DataError: it is not JSON, even with these corrected.
    """
    raw = path.read_bytes()
    mark = next((mark for mark in _MARKS if raw.startswith(mark)), b"")
    faults: list[tuple[str, str]] = []
    try:
        text = raw[len(mark) :].decode(_MARKS.get(mark, "utf-8"))
        if mark:
            faults.append((f"a byte order mark ({_MARKS[mark]}) at the beginning", "UTF-8 without a mark"))
        try:
            objects, content = _parsed(text)
        except json.JSONDecodeError:
            text, commas = _without_surplus_commas(text)
            objects, content = _parsed(text)
            faults.append((f"{counted(commas, 'comma')} before a closing bracket", "no such comma"))
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets are neither of its errors
        raise DataError(f"{path} is not valid JSON: {error}", remedy="correct it") from None
    found = Lenient(content, faults)
    for each in objects:
        for key, value in list(each.earlier):
            if (equal := json.dumps(value) == json.dumps(each[key])) or key.lower() in _DESCRIPTIVE:
                each.earlier.remove((key, value))
                found.faults.append((f"the key {key!r} twice", "once" if equal else f"once: {str(each[key])[:40]!r}"))
            else:
                values = f"{str(value)[:40]!r} and {str(each[key])[:40]!r}"
                found.doubtful.append(f"the key {key!r} is repeated, with the values {values}; the last one counts")
    return found


def mend_json(path: Path) -> Lenient:
    """Correct a JSON file where only one reading is possible; ambiguous entries stay unchanged.

    Raises:
        DataError: it is not JSON, even with these corrected.
    """
    found = read_lenient(path)
    if found.faults:
        write_json(path, found.content)
    return found


def repeated_keys(folder: Path) -> list[Problem]:
    """Problems for keys that a dataset.json or splits_final.json repeats: JSON readers use the last one."""
    problems = []
    for path in (path for name in JSON_FILES if (path := named(folder, name)) is not None):
        try:
            found = read_lenient(path)
        except (DataError, OSError):
            continue  # reported where it is read
        remedy = "keep one of the two"
        problems += [Problem(None, str(path), what, remedy, stays=True) for what in found.doubtful]
        twice = [was for was, _ in found.faults if was.startswith("the key")]
        problems += [Problem(None, str(path), f"{was} in this file", remedy, "warning") for was in twice]
    return problems


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    write_text(path, json.dumps(content, indent=4, ensure_ascii=False) + "\n")


def listed_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(text, path) of every file that the dataset.json or the tables of a folder name, or a table; existing or not."""
    folder = root if root.is_dir() else root.parent
    if root.is_dir() and (folder / DESCRIPTION).is_file():
        for container, key in _paths_in(read_lenient(folder / DESCRIPTION).content):
            yield container[key], _absolute(container[key], folder)
    for table in tables_in(root):
        rows = read_table(table)
        for row in rows:
            for column in (*image_columns(rows[0]), "label"):
                if row[column]:
                    yield row[column], _absolute(row[column], folder)


def tables_in(root: Path) -> list[Path]:
    """The table of images itself, or those in a folder."""
    if root.is_file():
        return [root] if root.suffix.lower() in TABLE_ENDINGS else []
    return [file for file in sorted(root.iterdir()) if file.is_file() and lists_images(file)]


def relocate(copy: Path, translate: Callable[[str], str]) -> list[tuple[str, str, str]]:
    """Replace paths in dataset.json and the tables of a copy; returns (list, old, new) of each."""
    changed: list[tuple[str, str, str]] = []

    def new(name: str, text: str) -> str:
        if (other := translate(text)) != text:
            changed.append((name, text, other))
        return other

    if (path := copy / DESCRIPTION).is_file():
        content = read_lenient(path).content
        for container, key in _paths_in(content):
            container[key] = new(DESCRIPTION, container[key])
        if changed:
            write_json(path, content)
    for table in tables_in(copy):
        before = len(changed)
        header, rows, separator = _raw(table)
        wanted = {*image_columns(dict.fromkeys(header, "")), "label"}
        for row in rows[1:]:
            row[:] = [new(table.name, t) if t and name in wanted else t for name, t in zip(header, row, strict=False)]
        if len(changed) > before:
            _write_raw(table, rows, separator)
    return changed


def drop_cases(copy: Path, ids: set[str], removed: set[Path]) -> list[tuple[str, str]]:
    """Remove cases from every list of a copy; returns (list, what it named) of each.

    Args:
        ids: of the cases.
        removed: their files, which identify the entries of lists without ids.
    """
    dropped: list[tuple[str, str]] = []
    if (path := copy / DESCRIPTION).is_file():
        content = read_lenient(path).content
        gone = _drop_described(content, ids, removed, copy)
        if gone:
            write_json(path, content)
        dropped += [(DESCRIPTION, name) for name in gone]
    if splits := named(copy, SPLITS):
        folds = read_lenient(splits).content
        parts = [part for fold in folds if isinstance(fold, dict) for part in fold.values() if isinstance(part, list)]
        gone = sorted({str(i) for part in parts for i in part if means(i, ids)})
        for part in parts if gone else ():
            part[:] = [i for i in part if not means(i, ids)]
        if gone:
            write_json(splits, folds)
        dropped += [(splits.name, name) for name in gone]
    patients = named(copy, PATIENTS)
    for table in [*tables_in(copy), *([patients] if patients else [])]:
        dropped += [(table.name, name) for name in _drop_rows(table, ids)]
    return dropped


def named(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, in upper or lower case; None where there is none."""
    return next((entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name and entry.is_file()), None)


def means(written: object, ids: set[str]) -> bool:
    """Whether an entry of a list means one of these cases: by its id or a file of it, in any form of Unicode."""
    text = unicodedata.normalize("NFC", str(written))
    stem = stem_of(text.replace("\\", "/").rpartition("/")[2])
    known = {unicodedata.normalize("NFC", case_id) for case_id in ids}
    return not known.isdisjoint({text, stem, stem.removesuffix("_0000")})


def set_num_training(copy: Path, cases: int) -> int | None:
    """Correct `numTraining` of dataset.json; returns the old value, or None if it was correct."""
    path = copy / DESCRIPTION
    content = read_lenient(path).content if path.is_file() else {}
    declared = content.get("numTraining") if isinstance(content, dict) else None
    if declared is None or declared == cases:
        return None
    content["numTraining"] = cases
    write_json(path, content)
    return declared


def declared_ending(copy: Path) -> str:
    """`file_ending` of dataset.json in lower case, or an empty text."""
    try:
        content = read_lenient(copy / DESCRIPTION).content
    except (DataError, OSError):
        return ""
    return str(content.get("file_ending") or "").lower() if isinstance(content, dict) else ""


def set_ending(copy: Path, ending: str | None) -> None:
    """Declare another `file_ending` in dataset.json, or none."""
    content = read_lenient(copy / DESCRIPTION).content
    content.pop("file_ending", None)
    if ending:
        content["file_ending"] = ending
    write_json(copy / DESCRIPTION, content)


def _parsed(text: str) -> tuple[list[_Object], Any]:
    """All objects of a JSON text, and its content. Raises JSONDecodeError."""
    objects: list[_Object] = []

    def collected(pairs: Sequence[tuple[str, Any]]) -> _Object:
        objects.append(_Object(pairs))
        return objects[-1]

    return objects, json.loads(text, object_pairs_hook=collected)


def _without_surplus_commas(text: str) -> tuple[str, int]:
    """Text without the commas before a closing bracket (outside of strings), and how many were removed."""
    removed = 0

    def keep(match: re.Match[str]) -> str:
        nonlocal removed
        removed += match[0] == ","
        return "" if match[0] == "," else match[0]

    return re.sub(r'"(?:\\.|[^"\\])*"|,(?=\s*[\]}])', keep, text), removed


def _paths_in(content: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every path in a dataset.json: its lists `training` and `test`, its object `dataset`."""
    if not isinstance(content, dict):
        return
    for name in ("training", "test"):
        entries = content.get(name)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, str):
                yield entries, index
            elif isinstance(entry, dict):
                yield from ((entry, key) for key in ("image", "label") if isinstance(entry.get(key), str))
    cases = content.get("dataset")
    for entry in cases.values() if isinstance(cases, dict) else ():
        if isinstance(entry, dict):
            images = entry.get("images")
            yield from ((images, i) for i, image in enumerate(images or ()) if isinstance(image, str))
            if isinstance(entry.get("label"), str):
                yield entry, "label"


def _absolute(text: str, folder: Path) -> Path:
    return find(Path(os.path.normpath(folder / Path(os.path.expandvars(text)).expanduser())))


def _drop_described(content: Any, ids: set[str], removed: set[Path], copy: Path) -> list[str]:
    gone: list[str] = []
    if not isinstance(content, dict):
        return gone
    if isinstance(entries := content.get("training"), list):
        for entry in list(entries):
            if isinstance(entry, dict) and means(entry.get("image"), ids):
                entries.remove(entry)
                gone.append(str(entry["image"]))
    if isinstance(entries := content.get("test"), list):
        for entry in list(entries):
            image = entry.get("image") if isinstance(entry, dict) else entry
            if isinstance(image, str) and _absolute(image, copy) in removed:
                entries.remove(entry)
                gone.append(image)
    if isinstance(cases := content.get("dataset"), dict):
        for case_id in [case_id for case_id in cases if means(case_id, ids)]:
            del cases[case_id]
            gone.append(case_id)
    return gone


def _drop_rows(table: Path, ids: set[str]) -> list[str]:
    header, rows, separator = _raw(table)
    entries = read_table(table)
    if not entries:
        return []
    columns = list(image_columns(entries[0]))
    if columns:
        names = _row_ids(entries, columns, table.parent)
    elif column := next((name for name in CASE_COLUMNS if name in header), None):
        names = [entry[column] for entry in entries]
    else:
        return []
    if gone := [name for name in names if means(name, ids)]:
        kept = [row for name, row in zip(names, rows[1:], strict=True) if not means(name, ids)]
        _write_raw(table, [rows[0], *kept], separator)
    return gone


def _raw(table: Path) -> tuple[list[str], list[list[str]], str]:
    """Column names in lower case; rows unchanged, with the first line, without blank ones; separator."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        separator = "\t" if table.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
        rows = [row for row in csv.reader(file, delimiter=separator) if any(text.strip() for text in row)]
    return [name.strip().lower() for name in rows[0]] if rows else [], rows, separator


def _write_raw(table: Path, rows: Sequence[Sequence[str]], separator: str) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    write_text(table, text.getvalue())
