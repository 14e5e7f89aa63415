"""Folds that leave one group out: a site, a scanner, whatever a column of the table of patients says.

A random fold shows how a model does on new patients of the places that it knows. To know how it does at a new place,
each fold validates on all cases of one group and trains on those of the others.
"""

from collections.abc import Mapping

from autoseg.datasets.columns import Columns, groups_of, require_whole_patients
from autoseg.datasets.splits import VERSION, Split, Splits
from autoseg.errors import UsageError
from autoseg.messages import counted, some


def folds_by_group(
    columns: Columns, name: str, patients: Mapping[str, str], *, seed: int, existing: Splits | None = None
) -> Splits:
    """One fold per group, which validates on it; groups in order of their values.

    Args:
        columns: further columns of the table of patients, of `Dataset.columns`.
        name: of the column.
        patients: case id -> patient, of the cases to divide.
        existing: folds made earlier by the same column: their groups keep their numbers, new groups come after them.

    Raises:
        UsageError: there is no such column, it forms fewer than two groups, a case has no value, or a patient has
            cases in two groups.
    """
    groups = groups_of(columns, name, patients)
    require_whole_patients(groups, patients, name)
    if without := sorted(set(patients) - {case for cases in groups.values() for case in cases}):
        raise UsageError(
            f"--group {name}: {counted(len(without), 'case')} without a value: {some(without)}",
            remedy="fill in the column in the table of patients: a case of an unknown group may be of the one left out",
        )
    order = list(groups)
    if existing is not None and existing.group == name.lower():
        home = {case: fold for fold, split in enumerate(existing.splits) for case in split.validation}
        known = {value: min((home[c] for c in cases if c in home), default=None) for value, cases in groups.items()}
        order.sort(key=lambda value: (known[value] is None, known[value] or 0))
    splits = []
    for fold, value in enumerate(order):
        held_out = set(groups[value])
        splits.append(Split(fold, tuple(sorted(set(patients) - held_out)), tuple(sorted(held_out))))
    shown = ", ".join(
        f"fold {fold}: {value} ({counted(len(groups[value]), 'case')})" for fold, value in enumerate(order)
    )
    note = f"each fold leaves one {name.lower()} out: {shown}"
    return Splits(VERSION, seed, tuple(splits), (), (note,), name.lower())
