"""What `autoseg check --fix` did to the copy of a data set, one record per change, as a table and as a CSV file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.messages import aligned

LEFT_OUT = "left out"  # the method of a change that removes a file or a case from the copy
PASSED_OVER = "skipped"  # files that are not part of a dataset: nothing is lost
NOT_MENDED = "not repaired"  # why an applicable repair was not made; `check` still reports the fault
COLUMNS = ("case", "file", "what was", "what is now", "method")


@dataclass(frozen=True)
class Change:
    """One difference between a dataset and its corrected copy."""

    case: str  # empty: the dataset as a whole
    file: str  # in the copy
    what_was: str
    what_is: str
    method: str


def change_table(changes: Sequence[Change]) -> str:
    """Format changes as a table, one line each."""
    return "\n".join(aligned([COLUMNS, *(_row(change) for change in changes)]))


def change_csv(changes: Sequence[Change]) -> str:
    """The same as CSV text. No column is named as in a table of images: the file does not change what a folder is."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[name.replace(" ", "_") for name in COLUMNS], *map(_row, changes)])
    return text.getvalue()


def _row(change: Change) -> tuple[str, ...]:
    return change.case or "(all)", change.file, change.what_was, change.what_is, change.method
