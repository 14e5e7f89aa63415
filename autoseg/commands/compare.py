"""`autoseg compare A B`: two models, or two folders of segmentations, on the same cases."""

import csv as tables
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.datasets.dataset import Dataset, parse_options
from autoseg.datasets.tables import scans_of_patients
from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import some
from autoseg.records import load
from autoseg.workspace import Workspace, write_text

if TYPE_CHECKING:
    from autoseg.commands.sides import Side
    from autoseg.evaluation.compare import Comparison, Scored


@dataclass(frozen=True)
class CompareOptions:
    """The options of `autoseg compare` and of `autoseg.compare`, and their defaults."""

    references: Path | None = None  # of folders; None: those of the other side's dataset
    labels: str | None = None  # None: those of a workspace, or the values found
    patients: Path | None = None  # table of case and patient; None: those of the datasets
    metric: str = "dice"  # the one that decides
    csv: Path | None = None
    workers: int | None = None


def compare(a: str, b: str, workspace: Workspace, options: CompareOptions = CompareOptions()) -> "Comparison":
    """Compare B with A on the cases that both have, and show the verdict and the tables.

    Args:
        a, b: what to compare; see `commands.sides`.
        workspace: whose models can be named alone, and whose plan and patients hold where no other are given.

    Raises:
        UsageError: one of them cannot be compared, or an option is missing.
        DataError: they have nothing in common, or other references.
    """
    from autoseg.commands.sides import open_side, prepared, require_alike, scored_side
    from autoseg.evaluation.compare import compare, rows_of
    from autoseg.evaluation.comparison_text import describe

    labels = None if options.labels is None else LabelSet(parse_options(labels=options.labels).labels or {})
    sides = [open_side(text, workspace) for text in (a, b)]
    if a == b:
        raise UsageError(f"A and B are both {a}", remedy="name two things to compare")
    for i in sorted((0, 1), key=lambda i: sides[i].workspace is None):  # a folder may need what a workspace knows
        sides[i] = prepared(sides[i], sides[1 - i], options.references, labels, workspace)
    common = _common_cases(sides[0], sides[1])
    require_alike(sides[0], sides[1], common, workers=options.workers)
    one, other = (scored_side(side, common, workers=options.workers) for side in sides)
    _require_common(one, other, options.metric)
    patients = _patients(sides, workspace, options.patients)
    notes = [
        f"{side.name} does not record its references: they are taken to be the same" for side in sides if side.table
    ]
    result = compare(one, other, patients, metric=options.metric, notes=notes)
    if options.csv:
        text = io.StringIO()
        tables.writer(text, lineterminator="\n").writerows(rows_of(one, other, patients, result))
        write_text(options.csv, text.getvalue())
    LOG.info(describe(result))
    return result


def _patients(sides: "list[Side]", workspace: Workspace, table: Path | None) -> dict[str, str] | None:
    """Case -> patient: of the table, or the datasets of both sides, or that of `-w`; None where none knows."""
    if table is not None:
        return {case: patient for case, (patient, _) in scans_of_patients(table).items()}
    found = sides[1].patients | sides[0].patients
    if not found and all(side.workspace is None for side in sides) and workspace.dataset.exists():
        dataset = load(Dataset, workspace.dataset)
        if dataset.patients_known:
            found = {case.id: case.patient for case in (*dataset.cases, *dataset.test_cases)}
    return found or None


def _common_cases(a: "Side", b: "Side") -> set[str]:
    """The cases that both sides have. Raises DataError where there is none."""
    from autoseg.commands.sides import cases_of

    ours, theirs = cases_of(a), cases_of(b)
    if not ours & theirs:
        raise DataError(
            f"A and B have no case in common: {a.name} has {some(sorted(ours))}, {b.name} has {some(sorted(theirs))}",
            remedy="compare segmentations of the same cases, under the same names",
        )
    return ours & theirs


def _require_common(a: "Scored", b: "Scored", metric: str) -> None:
    """Raise DataError where both sides have no label in common, or not the metric that decides."""
    labels, metrics = [], []
    for side in (a, b):
        labels.append(list(dict.fromkeys(label for of_case in side.cases.values() for label in of_case)))
        first = next(iter(next(iter(side.cases.values()), {}).values()), {})
        metrics.append(list(first))
    remedies = {
        "label": "score both with the same names of labels: --labels NAME=VALUE,...",
        "metric": "write both tables with the same metrics",
    }
    for what, (ours, theirs) in (("label", labels), ("metric", metrics)):
        if not set(ours) & set(theirs):
            raise DataError(
                f"A and B have no {what} in common: {a.name} has {some(ours) or 'none'}, {b.name} has "
                f"{some(theirs) or 'none'}",
                remedy=remedies[what],
            )
    if metric not in (common := [name for name in metrics[0] if name in metrics[1]]):
        raise UsageError(f"--metric {metric}: both sides do not have it", remedy=f"they have {', '.join(common)}")
