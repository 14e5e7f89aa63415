"""Ways of computing the same that were compared, as rows of one record that a model carries with it.

    archive against workspace     logits of the exported weights, labels of held-out cases
    ONNX against torch            logits of the exported network, labels of held-out cases
    streamed against dense        labels of held-out cases
    ...                           whoever has another way to compute the same adds a row of its own

The rows of a workspace's model are in its `agreements.json`; `export` adds to them, and writes into the archive those
of the weights that are in it.
"""

from collections.abc import Collection, Iterable
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
    weights: Text | None = None  # digest of the weights that computed it; None: not recorded

    @property
    def holds(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        limit = "" if self.limit is None else f", at most {self.limit:g} expected"
        broken = "" if self.holds else "WARNING: "
        return f"{broken}{self.what}: {self.measure} {self.shown}{limit} ({self.on})"

    @property
    def shown(self) -> str:
        """The value, to read; a count as it is."""
        return f"{self.value:.0f}" if float(self.value).is_integer() else f"{self.value:.3g}"


@dataclass(frozen=True)
class Agreements:
    """All that were made with one model."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of agreements that this autoseg reads")]
    rows: tuple[Agreement, ...]

    def with_rows(self, rows: Iterable[Agreement]) -> "Agreements":
        """These and others; a row replaces the one of the same comparison."""
        merged = {(row.what, row.on, row.measure): row for row in (*self.rows, *rows)}
        return Agreements(VERSION, tuple(merged.values()))

    def worst(self) -> tuple[Agreement, ...]:
        """Of each comparison and measure the row with the largest value."""
        found: dict[tuple[str, str], Agreement] = {}
        for row in self.rows:
            known = found.setdefault((row.what, row.measure), row)
            if row.value > known.value:
                found[row.what, row.measure] = row
        return tuple(found.values())

    def of_weights(self, digests: Collection[str]) -> "Agreements":
        """Those that were computed with these weights: a fold may have been trained again since."""
        return Agreements(VERSION, tuple(row for row in self.rows if row.weights is None or row.weights in digests))


def known_agreements(path: Path) -> Agreements:
    """Those in a file; none where there is none."""
    return load(Agreements, path) if path.exists() else Agreements(VERSION, ())


def add_agreements(path: Path, rows: Iterable[Agreement]) -> None:
    """Add rows to those in a file."""
    save(path, known_agreements(path).with_rows(rows))
