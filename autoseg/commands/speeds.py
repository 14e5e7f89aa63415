"""`autoseg evaluate --speeds`: what each speed of `predict` costs and loses on the held-out cases."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.evaluate import folds_to_score, nothing_trained
from autoseg.commands.folds import require_known
from autoseg.commands.inputs import load_records
from autoseg.datasets.dataset import Case
from autoseg.lines import LOG
from autoseg.messages import suggest
from autoseg.nn.devices import choose_device
from autoseg.preprocessing.sources import require_in_place
from autoseg.records import load, save
from autoseg.workspace import FoldName, Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.speeds import SpeedTable
    from autoseg.models.model import Model


def measure_speeds(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
) -> "SpeedTable":
    """Segment every held-out case at all speeds by its own fold, show the table and write speeds.json.

    The largest logit decides, whatever `evaluate --choose` chose: differences are those of the networks.

    Raises:
        StateError: no fold with held-out cases is trained.
    """
    from autoseg.evaluation.speeds import describe, measure_speeds
    from autoseg.models.model import open_model

    name, trained_network, held_out = held_out_by_fold(workspace, configuration, network)
    where = choose_device(device)
    models = {fold: open_model(workspace, name, trained_network, folds=[fold], device=where) for fold in held_out}
    folder = workspace.model(name, trained_network)
    with tempfile.TemporaryDirectory(prefix=".speeds-", dir=folder) as temporary:
        table = measure_speeds(models, held_out, Path(temporary))
    save(workspace.speeds(name, trained_network), table)
    LOG.info(describe(table))
    return table


def held_out_by_fold(
    workspace: Workspace, configuration: str | None, network: str | None
) -> "tuple[str, str, dict[FoldName, list[Case]]]":
    """Configuration and network of a model, and the held-out cases of each of its trained folds.

    Raises:
        StateError: no fold with held-out cases is trained, or files of these cases are missing.
    """
    dataset, plan, splits = load_records(workspace, network)
    name, chosen = plan.configuration(configuration)
    known = {case.id: case for case in dataset.cases}
    scored, notes = folds_to_score(workspace, plan, name, splits)
    require_known(workspace, dataset, scored)
    for note in notes:
        LOG.info(note)
    if not scored:
        raise nothing_trained(workspace, name, chosen.network.name)
    held_out = {split.fold: [known[i] for i in split.validation] for split in scored}
    require_in_place(workspace, dataset, [case for cases in held_out.values() for case in cases])
    return name, chosen.network.name, held_out


def say_expected(
    workspace: Workspace,
    models: "Sequence[Model]",
    speed: str,
    exported: Sequence[Path] = (),
    *,
    top_k: float | None = None,
) -> None:
    """Say what the speed was measured to give, where that was measured for the weights that are about to predict.

    Args:
        speed: or another way, by its name in the table.
        top_k: share of a cascade's tiles; None: all of them.
        exported: the files that hold the models; none: they are of the workspace.
    """
    from autoseg.evaluation.speeds import expected
    from autoseg.models.identity import weights_digest

    model, *others = models
    table = None if others else _table_of(workspace, model, exported)
    if table is None:
        return
    measured = {
        fold: table.weights[str(fold)] == weights_digest(network)
        for fold, network in zip(model.folds, model.networks, strict=True)
        if str(fold) in table.weights
    }
    if measured and all(measured.values()):
        if line := expected(table, speed, top_k):
            LOG.info(line)
    elif exported:
        LOG.info(f"note: the speeds in {exported[0]} were measured with other weights than these")
    else:
        command = suggest(
            "evaluate", "--speeds", workspace=workspace.root, configuration=model.configuration_name,
            network=model.configuration.network.name,
        )  # fmt: skip
        LOG.info(f"note: the speeds were measured with other weights than these; to measure them again: {command}")


def _table_of(workspace: Workspace, model: "Model", exported: Sequence[Path]) -> "SpeedTable | None":
    """What was measured with a model; None where nothing was."""
    from autoseg.evaluation.speeds import SpeedTable
    from autoseg.models.archive import measured_with

    if not exported:
        path = workspace.speeds(model.configuration_name, model.configuration.network.name)
        return load(SpeedTable, path) if path.exists() else None
    return measured_with(SpeedTable, exported[0], model.name, "speeds.json")
