"""`autoseg evaluate --calibration`: whether the probabilities of held-out cases mean what they say."""

from typing import TYPE_CHECKING

from autoseg.commands.speeds import held_out_by_fold
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.nn.devices import choose_device
from autoseg.planning.fingerprint import Fingerprint
from autoseg.records import load, save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.sureness import Sureness


def measure_calibration(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
) -> "Sureness":
    """Segment every held-out case by its own fold, show how right it is where it is how sure, write calibration.json.

    What `evaluate --choose` chose has no part in it: probabilities are those of the networks.

    Raises:
        StateError: no fold with held-out cases is trained.
    """
    from autoseg.evaluation.sureness import describe, measure_sureness, spread_labels
    from autoseg.models.model import open_model

    name, trained_network, held_out = held_out_by_fold(workspace, configuration, network)
    where = choose_device(device)
    models = {fold: open_model(workspace, name, trained_network, folds=[fold], device=where) for fold in held_out}
    cases = load(Fingerprint, workspace.fingerprint).cases
    spread = spread_labels([{label: one.count for label, one in case.components.items()} for case in cases])
    scored = next(iter(models.values())).plan.heads.scored
    LOG.info(f"segmenting {counted(sum(map(len, held_out.values())), 'held-out case')} again, each by its own fold")
    found = measure_sureness(models, held_out, [label for label in spread if label in scored])
    save(workspace.calibration(name, trained_network), found)
    LOG.info(describe(found))
    return found
