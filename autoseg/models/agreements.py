"""Ways of computing the same that were compared, as rows of one record that a model carries with it.

    archive against workspace     logits of the exported weights
    ONNX against torch            logits of the exported network
    ...                           whoever has another way to compute the same adds a row of its own

The rows of a workspace's model are in its `agreements.json`; `export` adds to them, and writes them into the archive.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from autoseg.planning.plan_fields import Text
from autoseg.records import load, save
from autoseg.rules import anything, at_least, exactly

VERSION = 1


@dataclass(frozen=True)
class Agreement:
    """Two ways of computing the same, compared once."""

    what: Text  # "ONNX against torch"
    on: Text  # what both computed: "fold 0, one tile of 40 × 56 × 40 random numbers"
    measure: Text  # "largest difference of logits"
    value: Annotated[float, anything("any finite number")]
    limit: Annotated[float, at_least(0, 1e30)] | None = None  # that the value must not exceed; None: it is only shown

    def __str__(self) -> str:
        limit = "" if self.limit is None else f", at most {self.limit:g} expected"
        return f"{self.what}: {self.measure} {self.value:.3g}{limit} ({self.on})"


@dataclass(frozen=True)
class Agreements:
    """All that were made with one model."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of agreements that this autoseg reads")]
    rows: tuple[Agreement, ...]

    def with_rows(self, rows: Iterable[Agreement]) -> "Agreements":
        """These and others; a row replaces the one of the same comparison."""
        merged = {(row.what, row.on, row.measure): row for row in (*self.rows, *rows)}
        return Agreements(VERSION, tuple(merged.values()))


def known_agreements(path: Path) -> Agreements:
    """Those in a file; none where there is none."""
    return load(Agreements, path) if path.exists() else Agreements(VERSION, ())


def add_agreements(path: Path, rows: Iterable[Agreement]) -> None:
    """Add rows to those in a file."""
    save(path, known_agreements(path).with_rows(rows))
