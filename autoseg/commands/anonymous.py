"""What leaves with a model names nobody: records of a workspace without case ids, patients and paths.

A case is called `case-07` instead, the same in every record, in an order that follows from none of its names. Left out
are digests of images, by which somebody who has an image could see that it was among the training cases, and notes that
list cases. Where a text of another record names a case or leads to a folder, that part is replaced.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg.datasets.dataset import Dataset
from autoseg.errors import StateError
from autoseg.evaluation.crossval import CrossValidation, FoldScores
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.records import from_plain, to_plain

SHORTEST = 4  # characters of an id that is looked for within a text; shorter ones may be words or numbers
HIDDEN = "(left out)"
ABSOLUTE = re.compile(r"""(?<![\w./])(?:/(?:[^/\s'",;:]+/)+[^/\s'",;:]*|[A-Za-z]:\\[^\s'",;]+)""")


@dataclass(frozen=True)
class Anonymizer:
    """Replaces names.

    Args:
        cases: case id, or patient -> what it is called instead; empty: names are kept.
        words: texts that stay, whatever is called like them: labels and channels.
    """

    cases: Mapping[str, str]
    words: frozenset[str] = frozenset()
    replaced: set[str] = field(default_factory=set)  # what was found so far, in words

    @classmethod
    def of(cls, dataset: Dataset | None, fingerprint: Fingerprint | None, plan: Plan) -> "Anonymizer":
        """For all cases that a workspace knows."""
        cases = (*dataset.cases, *dataset.test_cases) if dataset else ()
        ids = {case.id for case in (fingerprint.cases if fingerprint else ())} | {case.id for case in cases}
        names = _numbered(ids, "case") | _numbered({case.patient for case in cases} - ids, "patient")
        return cls(names, frozenset([*plan.labels.values, *plan.labels.regions, *plan.channels, plan.dataset]))

    def fingerprint(self, record: Fingerprint) -> Fingerprint:
        """The measurements of each case under its new name."""
        if not self.cases:
            return record
        kept = tuple(note for note in record.notes if self.text(note) == note)
        self.replaced.add("digests of the images")
        if len(kept) < len(record.notes):
            self.replaced.add("notes of the fingerprint that list cases")
        cases = [replace(case, id=self.cases[case.id], digest="") for case in record.cases]
        return replace(record, cases=tuple(sorted(cases, key=lambda case: case.id)), notes=kept)

    def scores(self, record: CrossValidation) -> CrossValidation:
        """The scores of each case under its new name."""
        if not self.cases:
            return record
        folds = []
        for fold in record.folds:
            cases = [replace(score, case=self.cases.get(score.case, HIDDEN)) for score in fold.cases]
            folds.append(FoldScores(fold.fold, tuple(sorted(cases, key=lambda score: score.case))))
        return replace(record, folds=tuple(folds))

    def plan(self, record: Plan) -> Plan:
        """The same plan; only texts for people may have named a case."""
        plain = to_plain(record)
        return from_plain(Plan, plain | {"decisions": self.plain(plain["decisions"])}, "plan")

    def json(self, path: Path) -> str:
        """The content of a JSON file, its texts naming nobody; the same content where they did not.

        Raises:
            StateError: it is not JSON.
        """
        try:
            text = path.read_text(encoding="utf-8")
            plain = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise StateError(f"{path} is not valid JSON: {error}", remedy="make it again, or delete it") from None
        changed = self.plain(plain)
        return text if changed == plain else json.dumps(changed, indent=1, ensure_ascii=False) + "\n"

    def plain(self, value: Any) -> Any:
        """Plain data, their texts and keys replaced."""
        if isinstance(value, dict):
            return {self.text(key): self.plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(entry) for entry in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """A text whose cases have their new names, and which leads to no folder."""
        if text in self.words:
            return text
        if text in self.cases:
            return self.cases[text]
        found = ABSOLUTE.sub(HIDDEN, text)
        if found != text:
            self.replaced.add("paths")
        for name in sorted(self._names_in(found), key=len, reverse=True):
            found = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", self.cases[name], found)
        return found

    def _names_in(self, text: str) -> list[str]:
        return [name for name in self.cases if len(name) >= SHORTEST and name in text]

    def left_out(self) -> tuple[str, ...]:
        """What was replaced or left out, in words."""
        names = ("names of cases and patients",) if self.cases else ()
        return (*names, *sorted(self.replaced))


def kept_names() -> Anonymizer:
    """One that keeps names of cases, and leaves out paths alone."""
    return Anonymizer({})


def _numbered(names: Iterable[str], kind: str) -> dict[str, str]:
    """Names -> `case-07`, in the order of their digests, which says nothing about them."""
    ordered: Sequence[str] = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
    width = len(str(len(ordered)))
    return {name: f"{kind}-{number:0{width}d}" for number, name in enumerate(ordered, start=1)}
