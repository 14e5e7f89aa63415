"""`autoseg evaluate -m MODEL.zip`: scores of an exported model, made here or carried by it.

    labels_of        the labels it segments, for two folders
    score_with       the labelled test cases of a dataset, segmented by it and scored once
    carried          what was measured before it was exported: scores, speeds, expected Dice

Which cases a fold held out is not in the file. What needs them is measured in the workspace that it was exported from.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from autoseg.commands.decision import apply_decision
from autoseg.commands.inputs import PLAN_FIRST
from autoseg.datasets.dataset import Dataset
from autoseg.errors import StateError, UsageError
from autoseg.evaluation.crossval import CrossValidation, HeldOutScores
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.models.archive import Archive, is_archive, models_named, open_archive
from autoseg.nn.devices import choose_device
from autoseg.records import load, save
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
    from autoseg.evaluation.speeds import SpeedTable
    from autoseg.models.model import Model

R = TypeVar("R")
Measured = Literal["scores", "speeds", "expected Dice"]
OPTIONS: dict[Measured, tuple[str, ...]] = {  # of `evaluate`, that measure it in a workspace
    "scores": (), "speeds": ("--speeds",), "expected Dice": ("--expected-dice",),
}  # fmt: skip


def labels_of(path: Path) -> LabelSet:
    """The labels and regions that an exported model segments.

    Raises:
        StateError: it is refused, or needs a plugin.
        UsageError: it is not called .zip.
    """
    archive = _opened(path)
    first = archive.manifest.models[archive.manifest.predicts[0]]
    return archive.plan(first.folds[0]).labels


def score_with(
    path: Path,
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
) -> HeldOutScores:
    """Segment the labelled test cases of a workspace's dataset by an exported model, score them once, keep the scores.

    They are segmented as `predict` does, by the decision that the file carries.

    Args:
        workspace: of the dataset alone; its own models are not used.
        configuration, network: choose among the models of the file; None: those it was exported to predict with.

    Raises:
        StateError: the dataset has no labelled test cases, or other channels or labels than the model.
    """
    from autoseg.evaluation.crossval import score_test_cases
    from autoseg.evaluation.evaluate import summarise, summary_table
    from autoseg.inference.ensemble import split
    from autoseg.inference.predict import predict_cases
    from autoseg.models.identity import ensemble_digest
    from autoseg.models.opening import open_models

    _opened(path)
    dataset = load(Dataset, workspace.dataset, remedy=PLAN_FIRST)
    models = open_models(path, configuration=configuration, network=network, device=choose_device(device))
    _require_like(models[0], dataset, path)
    cases = [case for case in dataset.test_cases if case.label is not None]
    if not cases:
        raise StateError(
            f"{dataset.name} has no labelled test cases",
            remedy="add imagesTs and labelsTs, or rows with split=test in a table, then plan again",
        )
    rule = apply_decision(workspace, models, [path], optional=False)
    folder = workspace.root / f"test-{rule.digest(ensemble_digest(models))[:12]}"
    kept = folder / "test.json"
    if kept.exists():
        result = load(HeldOutScores, kept)
        LOG.info(f"the test set is scored only once; these are the results of {path.name}:")
    else:
        predict_cases(replace(split(models, by="models"), rule=rule), cases, folder, title="test set")
        names = [" and ".join(dict.fromkeys(of)) for of in zip(*(_names(model) for model in models), strict=True)]
        result = score_test_cases(names[0], names[1], folder, cases, models[0].plan.labels)
        save(kept, result)
    LOG.info(summary_table(summarise(result.cases), counted(len(result.cases), "test case")))
    return result


def carried(
    path: Path, what: Measured, configuration: str | None = None, network: str | None = None, csv: Path | None = None
) -> "CrossValidation | SpeedTable | ExpectedDiceRecord":
    """Show what a model carries that was measured before it was exported.

    Args:
        csv: of scores, also write a row per case and label.

    Raises:
        StateError: it was not measured, or the file is refused.
    """
    from autoseg.evaluation import crossval, expected_dice, speeds
    from autoseg.evaluation.evaluate import write_csv

    archive = _opened(path)
    name = _one_model(archive, configuration, network)
    if what == "speeds":
        table = _record(speeds.SpeedTable, archive, name, "speeds.json", what)
        LOG.info(speeds.describe(table))
        return table
    if what == "expected Dice":
        record = _record(expected_dice.ExpectedDiceRecord, archive, name, "expected_dice.json", what)
        LOG.info(expected_dice.describe(record))
        return record
    result = _record(CrossValidation, archive, name, "crossval.json", what)
    LOG.info(crossval.describe(result, labels_of(path)))
    if csv is not None:
        write_csv(csv, result.cases)
    return result


def _opened(path: Path) -> Archive:
    if not is_archive(path):
        raise UsageError(
            f"-m {path} is not an exported model", remedy="name a file that autoseg export wrote: model.zip"
        )
    return open_archive(path)


def _one_model(archive: Archive, configuration: str | None, network: str | None) -> str:
    """The one model of a file that is asked for."""
    found = models_named(archive, configuration, network)
    if len(found) > 1:
        LOG.info(f"note: it holds {', '.join(found)}; this is {found[0]}, -c names another")
    return found[0]


def _record(record_type: type[R], archive: Archive, name: str, file: str, what: Measured) -> R:
    path = f"models/{name}/{file}"
    if archive.has(path):
        return archive.record(record_type, path)
    raise StateError(
        f"{archive.path} carries no {what} of {name}: the cases that its folds held out are not in it, so that nothing "
        "can be measured on them here",
        remedy=f"in the workspace that it was exported from: {suggest('evaluate', *OPTIONS[what])}; then export it "
        "again; or score it on labelled images of your own: predict with it, then evaluate --predictions DIR "
        "--references DIR",
    )


def _require_like(model: "Model", dataset: Dataset, path: Path) -> None:
    """Refuse a dataset with other channels or labels than a model has. Raises StateError."""
    mine, theirs = model.plan.labels, dataset.labels
    for what, one, other in (
        ("channels", model.plan.channels, dataset.channels), ("labels", mine.values, theirs.values),
        ("regions", mine.regions, theirs.regions),
    ):  # fmt: skip
        if one != other:
            raise StateError(
                f"{path} has the {what} {one}, the dataset {dataset.name} has {other}",
                remedy="score it on a dataset whose channels and labels are those of the model",
            )


def _names(model: "Model") -> tuple[str, str]:
    return model.configuration_name, model.configuration.network.name
