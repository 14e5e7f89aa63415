"""`autoseg evaluate --group COLUMN`: held-out scores by site, scanner, or any column of the table of patients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.commands.evaluate import ScoringOptions, cross_validate
from autoseg.commands.inputs import load_records
from autoseg.datasets.columns import groups_of
from autoseg.lines import LOG
from autoseg.records import save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.groups import GroupScores


def compare_groups(
    workspace: Workspace,
    configuration: str | None = None,
    options: ScoringOptions | None = None,
    *,
    groups: Sequence[str],
) -> "GroupScores":
    """Cross-validate as `evaluate` does, then show and store a table for each column and the largest gap in it.

    Args:
        options: as for `cross_validate`; None: its defaults.
        groups: columns of the table of patients.

    Raises:
        UsageError: there is no such column, or it forms fewer than two groups.
        StateError: no fold with held-out cases is trained.
    """
    from autoseg.evaluation.groups import METRIC, VERSION, GroupScores, compare, describe

    options = options or ScoringOptions()
    dataset, plan, _ = load_records(workspace, options.network)
    name, chosen = plan.configuration(configuration)
    patients = {case.id: case.patient for case in dataset.cases}
    columns = {column.lower(): groups_of(dataset.columns, column, patients) for column in groups}  # refused at once
    result = cross_validate(workspace, configuration, options)
    tables = tuple(compare(result.cases, found, patients, column) for column, found in columns.items())
    scores = GroupScores(VERSION, name, chosen.network.name, METRIC, tables)
    save(workspace.groups(name, chosen.network.name), scores)
    for table in tables:
        LOG.info("\n" + describe(table))
    return scores
