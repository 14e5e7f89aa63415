"""Expected Dice: learnt by `evaluate --expected-dice`, used by `predict --uncertainty`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.datasets.dataset import Dataset
from autoseg.errors import StateError
from autoseg.inference.options import InferenceOptions
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.nn.devices import choose_device
from autoseg.records import load, save
from autoseg.workspace import Workspace

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.commands.evaluate import ScoringOptions
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
    from autoseg.models.model import Model


def learn_expected_dice(
    workspace: Workspace,
    configuration: str | None = None,
    options: "ScoringOptions | None" = None,
    *,
    device: str = "auto",
) -> "ExpectedDiceRecord":
    """Learn from the cross-validation what Dice to expect of new cases, show how well, and write the record.

    The held-out segmentations are scored as by `cross_validate`. Then each fold segments its held-out cases again, over
    every flip by itself, which takes as long as their validation did. A decision of `evaluate --choose` has no part in
    either: the record is of the networks.

    Args:
        options: as for `cross_validate`; None: its defaults.

    Raises:
        StateError: no fold is trained, or there are too few held-out cases.
    """
    from autoseg.commands.evaluate import ScoringOptions, cross_validate
    from autoseg.evaluation.expected_dice import calibrate, describe, require_enough
    from autoseg.evaluation.held_out import agree_on_all, described_options, scored_cases
    from autoseg.models.model import open_model

    result = cross_validate(workspace, configuration, options or ScoringOptions())
    require_enough(len(result.cases))
    cases = {case.id: case for case in load(Dataset, workspace.dataset).cases}
    held_out = {fold.fold: [cases[score.case] for score in fold.cases] for fold in result.folds}
    run = InferenceOptions()
    one = partial(open_model, workspace, result.configuration, result.network, device=choose_device(device))
    LOG.info(f"\nsegmenting {counted(len(result.cases), 'held-out case')} again, each by its own fold: expected Dice")
    found, weights = agree_on_all(lambda fold: one(folds=[fold]), held_out, run)
    words = described_options(one(folds=[result.folds[0].fold]), run)
    patients = {case.id: case.patient for case in cases.values()}
    scored = scored_cases(result, found, patients)
    record = calibrate(result.configuration, result.network, scored, options=words, weights=weights)
    save(workspace.expected_dice(result.configuration, result.network), record)
    LOG.info(describe(record))
    return record


def expected_dice_of(
    workspace: Workspace, models: "Sequence[Model]", options: InferenceOptions, exported: Sequence[Path] = ()
) -> "tuple[ExpectedDiceRecord | None, str]":
    """The record that holds for an ensemble as it is about to be run; or None, and why there is none.

    Args:
        exported: the files that hold the models; none: they are of the workspace.
    """
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
    from autoseg.evaluation.held_out import described_options, weights_of
    from autoseg.models.archive import measured_with

    if len(models) > 1:
        return None, "expected Dice is learnt for one model, and several are averaged"
    (model,) = models
    network = model.configuration.network.name
    path = workspace.expected_dice(model.configuration_name, network)
    learn = suggest(
        "evaluate", "--expected-dice", workspace=workspace.root, configuration=model.configuration_name, network=network
    )
    record: ExpectedDiceRecord | None
    if exported:
        learn = "in the workspace that it was exported from, and export it again"
        record = measured_with(ExpectedDiceRecord, exported[0], model.name, path.name)
        if record is None:
            return None, f"no expected Dice: it was not learnt for this model; do so {learn}"
    elif not path.exists():
        return None, f"no expected Dice: it was not learnt for this model; do so: {learn}"
    else:
        try:
            record = load(ExpectedDiceRecord, path)
        except StateError as error:
            return None, f"no expected Dice: {error.what}; learn it again: {learn}"
    if other := [fold for fold, digest in weights_of(models).items() if record.weights.get(fold) != digest]:
        return None, f"no expected Dice: it was learnt before fold {other[0]} was trained; learn it again: {learn}"
    if (words := described_options(model, options)) != record.options:
        return None, f"no expected Dice: it was learnt with {record.options}, and this is {words}"
    return record, ""
