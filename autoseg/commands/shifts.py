"""`autoseg evaluate --shifts`: what a model's Dice loses on held-out cases that are changed in a known way."""

from typing import TYPE_CHECKING

from autoseg.commands.speeds import held_out_by_fold
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.nn.devices import choose_device
from autoseg.records import save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.shifts import ShiftTable


def measure_shifts(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    cases: int | None = None,
    device: str = "auto",
) -> "ShiftTable":
    """Segment held-out cases under all shifts, each by its own fold, show the table and write shifts.json.

    The largest logit decides, whatever `evaluate --choose` chose: the loss is that of the networks.

    Args:
        cases: of each fold, at most; None: all. Each is segmented 16 times.

    Raises:
        StateError: no fold with held-out cases is trained.
    """
    from autoseg.evaluation.corruptions import SHIFTS
    from autoseg.evaluation.shifts import chosen_cases, describe, measure_shifts
    from autoseg.models.model import open_model

    name, trained_network, held_out = held_out_by_fold(workspace, configuration, network)
    chosen = chosen_cases(held_out, cases)
    where = choose_device(device)
    models = {fold: open_model(workspace, name, trained_network, folds=[fold], device=where) for fold in chosen}
    times = 1 + sum(len(shift.strengths) for shift in SHIFTS.values())
    LOG.info(
        f"segmenting {counted(sum(map(len, chosen.values())), 'held-out case')} {times} times each, by its own fold"
    )
    table = measure_shifts(models, chosen, held_out=sum(map(len, held_out.values())))
    save(workspace.shifts(name, trained_network), table)
    LOG.info(describe(table))
    return table
