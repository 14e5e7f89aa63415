"""Names as people and disks spell them: accents, extensions, upper case, zeros that a spreadsheet removed.

    composed     text in one Unicode form; every id, patient and name passes through it
    find         a listed path -> the file as the disk spells it
    match_ids    ids as written in a table -> the cases that are meant

Spellings are treated as the same only where nothing else can be meant.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.imaging.formats.readers import stem_of

CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})", re.DOTALL)


@dataclass
class Matched:
    """Which cases are meant by the ids of a table."""

    cases: dict[str, str] = field(default_factory=dict)  # as written -> case id
    guessed: dict[str, str] = field(default_factory=dict)  # those that differ by letters' case or leading zeros
    unknown: list[str] = field(default_factory=list)  # as written, without a case


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC): `caf\\u00e9` however it was stored."""
    return unicodedata.normalize("NFC", text)


def find(path: Path) -> Path:
    """The path as the disk spells it: a list may have composed the accents that a folder has decomposed."""
    if str(path).isascii() or os.path.lexists(path) or path.parent == path:
        return path
    parent = find(path.parent)
    try:
        return next((e for e in sorted(parent.iterdir()) if composed(e.name) == composed(path.name)), path)
    except OSError:
        return path


def match_ids(written: Iterable[str], ids: Collection[str]) -> Matched:
    """Find the case that each id of a table means.

    An id may be written as the case, as a file of it (`c1.nii.gz`, `images/c1_0000.nii.gz`), or, where only one case
    can be meant, in other letters (`C1`) or without leading zeros (`1` for `001`).
    """
    known, found = set(ids), Matched()
    alike = {rule: _grouped(known, rule) for rule in (str.casefold, _without_zeros)}
    for text in dict.fromkeys(written):
        name = composed(stem_of(Path(text.replace("\\", "/"))))
        forms = (composed(text), name, name.removesuffix("_0000"))
        exact = next((form for form in forms if form in known), None)
        guesses = [groups.get(rule(form), []) for rule, groups in alike.items() for form in forms]
        only = next((guess[0] for guess in guesses if len(guess) == 1), None)
        if exact is not None:
            found.cases[text] = exact
        elif only is not None:
            found.cases[text] = found.guessed[text] = only
        else:
            found.unknown.append(text)
    return found


def _grouped(ids: Iterable[str], rule: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case_id in ids:
        groups.setdefault(rule(case_id), []).append(case_id)
    return groups


def _without_zeros(name: str) -> str:
    """Numbers without their leading zeros; other names unchanged, so that p01 does not match p1 by chance."""
    return name.lstrip("0") or "0" if name.isdecimal() else name
