"""`autoseg evaluate --clicks`: what clicks bring on the held-out cases of a model with prompts."""

from typing import TYPE_CHECKING

from autoseg.commands.inputs import open_plan
from autoseg.commands.speeds import held_out_by_fold
from autoseg.errors import StateError
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.nn.devices import choose_device
from autoseg.planning.prompted import prompted_of
from autoseg.records import save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.click_curves import ClickTable


def measure_clicks(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    clicks: int = 20,
    device: str = "auto",
) -> "ClickTable":
    """Correct every held-out case by simulated clicks, by its own fold, show the table and write clicks.json.

    Args:
        configuration: that has prompts, or that one with prompts continues; None: the recommended one.
        clicks: on a case, at most.

    Raises:
        StateError: no fold with prompts and held-out cases is trained.
    """
    from autoseg.evaluation.click_curves import describe, measure_clicks
    from autoseg.models.model import open_model

    plan = open_plan(workspace, network)
    name = prompted_of(plan, configuration)
    if name is None:
        before, chosen = plan.configuration(configuration)
        own = chosen.network.name if network else None
        train = suggest("train", "--prompts", workspace=workspace.root, configuration=before, network=own)
        raise StateError(f"no model with prompts is planned that continues {before}", remedy=f"train one: {train}")
    name, trained_network, held_out = held_out_by_fold(workspace, name, network)
    where = choose_device(device)
    models = {fold: open_model(workspace, name, trained_network, folds=[fold], device=where) for fold in held_out}
    LOG.info(f"correcting {counted(sum(map(len, held_out.values())), 'held-out case')}, each by its own fold")
    found = measure_clicks(models, held_out, most=clicks)
    save(workspace.clicks(name, trained_network), found)
    LOG.info(describe(found))
    return found
