"""Further columns of the table of patients, such as site, scanner or sex: what groups of cases are made of.

`patients.csv`, `participants.tsv` or the table of images may have any columns beside those that autoseg knows. They are
kept in the workspace as they are written; nothing is learnt from them. `evaluate --group` compares the groups of one,
and folds of `plan --group` leave one group out.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from autoseg.datasets.contents import table_beside
from autoseg.datasets.pairing import Found, Problem
from autoseg.datasets.spelling import composed, match_ids
from autoseg.datasets.tables import (
    CASE_COLUMNS,
    IMAGE_COLUMN,
    PATIENT_COLUMNS,
    PATIENT_TABLES,
    TABLE_ENDINGS,
    _row_ids,
    image_columns,
    read_table,
)
from autoseg.errors import UsageError
from autoseg.messages import counted, some

OF_IMAGES = ("label", "split", "fold")  # columns of a table of images with a meaning of their own
Columns = dict[str, dict[str, str]]  # column -> case id -> value; cases without a value are left out


def columns_of(found: Found, root: Path, patients: Mapping[str, str]) -> Columns:
    """Read the further columns of the first table that has any: of images, patients.csv, participants.tsv.

    Two values for one case are reported in `found`; the first one counts.

    Args:
        root: the folder of the dataset, or the table of its images.
        patients: case id -> patient, for tables that list patients without cases.
    """
    ids = set(patients)
    if root.suffix.lower() in TABLE_ENDINGS and root.is_file():
        rows = read_table(root)
        names = _row_ids(rows, list(image_columns(rows[0])), root.parent)
        if columns := _collect(
            found, root, ((row, [name] if name in ids else []) for row, name in zip(rows, names, strict=True))
        ):
            return columns
    folder = root if root.is_dir() else root.parent
    for table in PATIENT_TABLES:
        path = table_beside(folder, table)
        if path is None:
            continue
        rows = read_table(path)
        if columns := _collect(found, path, _with_cases(rows, patients)):
            return columns
    return {}


def _with_cases(rows: list[dict[str, str]], patients: Mapping[str, str]) -> Iterable[tuple[dict[str, str], list[str]]]:
    """Each row with its cases: the one it names, or all of its patient, by name or as the beginning of the case id."""
    case_column = next((name for name in CASE_COLUMNS if rows and name in rows[0]), None)
    patient_column = next((name for name in PATIENT_COLUMNS if rows and name in rows[0]), None)
    matched = match_ids([row[case_column] for row in rows], patients).cases if case_column else {}
    named = {" ".join(composed(row[patient_column]).split()) for row in rows} if patient_column else set()
    owner = {case: _participant(case, patient, named) for case, patient in patients.items()}
    for row in rows:
        if case_column and row[case_column]:
            yield row, [matched[row[case_column]]] if row[case_column] in matched else []
        elif patient_column:
            name = " ".join(composed(row[patient_column]).split())
            yield row, [case for case in sorted(patients) if name and owner[case] == name]


def _participant(case: str, patient: str, named: Collection[str]) -> str | None:
    """Which of the participants named in a table a case belongs to; None for none."""
    if patient in named:
        return patient
    begins = [name for name in named if name and re.match(rf"(?:sub-)?{re.escape(name)}(?![0-9A-Za-z])", case)]
    return max(begins, key=len, default=None)


def _collect(found: Found, path: Path, rows: Iterable[tuple[dict[str, str], list[str]]]) -> Columns:
    known = {*CASE_COLUMNS, *PATIENT_COLUMNS, *OF_IMAGES}
    columns: Columns = {}
    for row, cases in rows:
        for name, value in row.items():
            if not name or not value or name in known or IMAGE_COLUMN.fullmatch(name):
                continue
            for case in cases:
                first = columns.setdefault(name, {}).setdefault(case, value)
                if first != value:
                    what = f"two values of {name} for one case: {first} and {value}; the first one counts"
                    found.problems.append(Problem(case, str(path), what, "keep one of the two lines", "warning"))
    return columns


def groups_of(columns: Columns, name: str, cases: Collection[str]) -> dict[str, list[str]]:
    """Groups of the cases by the value of one column: value -> case ids, sorted as numbers where all are numbers.

    Cases without a value are in no group.

    Raises:
        UsageError: there is no such column, or it forms fewer than two groups.
    """
    chosen = name.lower() if name not in columns else name
    if chosen not in columns:
        known = ", ".join(sorted(columns)) or "none beside case and patient"
        raise UsageError(
            f"--group {name}: the table of patients has no such column, it has: {known}",
            remedy="name one of them, or add a column to patients.csv (case,patient,site) and plan again: folds stay "
            "valid",
        )
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        if value := columns[chosen].get(case):
            groups.setdefault(value, []).append(case)
    if len(groups) < 2:
        only = f"only {next(iter(groups))!r}" if groups else "no value"
        raise UsageError(
            f"--group {name}: {only} for these {len(cases)} cases, expected two groups or more",
            remedy="fill in the column in the table of patients and plan again, or name another column",
        )
    return {value: groups[value] for value in sorted(groups, key=_order(groups))}


def require_whole_patients(groups: Mapping[str, Collection[str]], patients: Mapping[str, str], name: str) -> None:
    """Refuse groups that cut a patient in two.

    Raises:
        UsageError: names the patients.
    """
    homes: dict[str, set[str]] = {}
    for value, cases in groups.items():
        for case in cases:
            homes.setdefault(patients[case], set()).add(value)
    both = sorted(patient for patient, values in homes.items() if len(values) > 1)
    if both:
        values = " and ".join(sorted(homes[both[0]]))
        raise UsageError(
            f"--group {name}: {counted(len(both), 'patient')} with cases in several groups, such as {both[0]} in "
            f"{values}: {some(both)}",
            remedy="folds never cut a patient in two: give all cases of a patient one value, or name another column",
        )


def _order(values: Collection[str]) -> Callable[[str], tuple[float | str, str]]:
    """Key that sorts values: as numbers where all are, otherwise as words."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return lambda text: (text.casefold(), text)
    return lambda text: (numbers[text], text)
