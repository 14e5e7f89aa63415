"""Held-out predictions, test cases and any two folders against their references."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.commands.folds import require_known
from autoseg.commands.inputs import load_records
from autoseg.datasets.dataset import parse_options
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.plugins import require_plugins
from autoseg.preprocessing.sources import changed_lists, changed_since, plan_again, require_in_place
from autoseg.records import load, save
from autoseg.workspace import FULL, Workspace, begun_folds

if TYPE_CHECKING:  # torch is imported where something is predicted
    from autoseg.evaluation.crossval import CrossValidation, HeldOutScores
    from autoseg.evaluation.evaluate import CaseScore, Summary


@dataclass(frozen=True)
class FolderScores:
    """A folder of segmentations against a folder of references."""

    cases: "tuple[CaseScore, ...]"
    summary: "dict[str, dict[str, Summary]]"  # label or region -> metric -> over all cases

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice over the labels; None where no case holds any."""
        from autoseg.evaluation.evaluate import mean_over_labels

        return mean_over_labels(self.summary)


def cross_validate(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    csv: Path | None = None,
    workers: int | None = None,
) -> "CrossValidation":
    """Score the held-out predictions of every trained fold of one model, show the tables and write its crossval.json.

    Where no model is named, those trained beside it are shown for comparison, a line each.
    """
    from autoseg.evaluation.crossval import cross_validate_folds, describe, validation_jobs
    from autoseg.evaluation.evaluate import write_csv
    from autoseg.training.validation_budget import inference_of

    dataset, plan, splits = load_records(workspace, network)
    name, chosen = plan.configuration(configuration)
    cases = {case.id: case for case in dataset.cases}
    scored, notes = folds_to_score(workspace, plan, name, splits)
    require_known(workspace, dataset, scored)
    jobs = {}
    for split in scored:
        held_out = [cases[i] for i in split.validation]
        require_in_place(workspace, dataset, held_out)
        folder = workspace.fold(name, chosen.network.name, split.fold)
        jobs[split.fold] = validation_jobs(folder / "validation", held_out, plan.labels)
    for note in notes:
        LOG.info(note)
    if not jobs:
        raise StateError(
            f"{workspace.root} has no trained fold of {name} ({chosen.network.name}) with held-out cases",
            remedy="train first: "
            + suggest("train", workspace=workspace.root, configuration=name, network=chosen.network.name),
        )
    for path in changed_lists(workspace):
        again = plan_again(workspace)
        LOG.warning(f"note: {path} changed since it was planned; the folds were made from the old content: {again}")
    for path in changed_since(workspace, [cases[i] for split in scored for i in split.validation]):
        LOG.warning(f"note: {path} changed since it was planned; the scores compare with the current files")
    result = cross_validate_folds(name, chosen.network.name, jobs, len(splits.splits), workers=workers)
    save(workspace.crossval(name, chosen.network.name), result)
    if csv:
        write_csv(csv, result.cases)
    LOG.info(describe(result, plan.labels))
    for fold in jobs:
        way = inference_of(workspace.fold(name, chosen.network.name, fold))
        if way and way.cheaper:
            LOG.info(f"note: fold {fold} lacked the time to segment as predict does: {way}; predict may score higher")
    if configuration is None and network is None:
        for line in _other_models(workspace, (name, chosen.network.name)):
            LOG.info(line)
    return result


def folds_to_score(workspace: Workspace, plan: Plan, name: str, splits: Splits) -> tuple[list[Split], list[str]]:
    """The folds whose held-out segmentations are those of a finished training, and why others are not among them."""
    from autoseg.evaluation.crossval import segmented
    from autoseg.models.begun import begun_of, split_of, standing

    network = plan.configurations[name].network.name
    found_folds, damaged = begun_of(workspace, name, network)
    scored, notes = [], [f"WARNING: skipping fold {fold}: {what}" for fold, what in damaged.items()]
    for fold, begun in found_folds.items():
        require_plugins(begun.plugins, begun.folder)
        if fold == FULL:
            notes.append("note: full is trained on all cases: none is held out, so the tables do not include it")
            continue
        split = split_of(fold, splits.splits, ())
        model: dict[str, Any] = {"workspace": workspace.root, "configuration": name, "network": network}
        train = suggest("train", "-f", fold, **model)
        if split is None:
            notes.append(f"note: skipping fold {fold}: it is no longer in splits.json")
            continue
        found = standing(begun, plan, name, split, workspace)
        resume = suggest("train", "-f", fold, *found.options, **model)
        honest = found.other_cases and begun.finished and not set(begun.basis.train) & set(split.validation)
        if honest and segmented(begun.folder / "validation", split.validation):
            scored.append(split)  # it was trained with other cases, but with none of those
            notes.append(f"note: fold {fold}: {found.refused}; none of its held-out cases was among them")
        elif found.refused:
            notes.append(f"WARNING: skipping fold {fold}: {found.refused}; to retrain it: {train} --restart")
        elif not begun.finished:
            where = f"epoch {begun.epoch}, step {begun.step}"
            notes.append(f"note: skipping fold {fold}: it is not trained to the end ({where}); resume it: {resume}")
        elif not segmented(begun.folder / "validation", split.validation):
            notes.append(f"note: skipping fold {fold}: some held-out cases are not segmented yet; do so: {resume}")
        else:
            scored.append(split)
            notes += [f"note: fold {fold}: {found.remark}; to retrain it: {train} --restart"] if found.remark else []
    return scored, notes


def _other_models(workspace: Workspace, shown: tuple[str, str]) -> list[str]:
    """One line for each model that is trained beside the one shown: its mean Dice, where it was evaluated."""
    from autoseg.evaluation.crossval import CrossValidation
    from autoseg.evaluation.evaluate import mean_over_labels

    lines = []
    for configuration, network in workspace.models():
        path = workspace.crossval(configuration, network)
        if (configuration, network) == shown:
            continue
        if not path.exists():
            command = suggest("evaluate", workspace=workspace.root, configuration=configuration, network=network)
            lines.append(f"{configuration}, {network}: not evaluated ({command})")
            continue
        result = load(CrossValidation, path)
        dice = mean_over_labels(result.summary)
        mean = "-" if dice is None else f"{dice:.4f}"
        lines.append(
            f"{configuration}, {network}: mean Dice {mean}, {counted(len(result.cases), 'case')} in "
            f"{counted(len(result.folds), 'fold')}"
        )
    return lines


def score_test_set(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    model: Path | None = None,
) -> "HeldOutScores":
    """Predict the dataset's held-out test cases with the ensemble of all folds, score them once, and keep the scores.

    A second call shows what the first one found: a test set that is looked at again and again is none.

    Args:
        model: an exported file to predict with; None: the folds of the workspace.

    Raises:
        StateError: the dataset has no labelled test cases, or a fold is not trained.
    """
    from autoseg.evaluation.crossval import HeldOutScores, score_test_cases
    from autoseg.evaluation.evaluate import summarise, summary_table
    from autoseg.inference.predict import predict_cases
    from autoseg.models.model import open_model

    if model is not None:
        from autoseg.commands.evaluate_exported import score_with

        return score_with(model, workspace, configuration, network=network, device=device)
    dataset, plan, splits = load_records(workspace, network)
    if workspace.test.exists():
        result = load(HeldOutScores, workspace.test)
        LOG.info(
            f"the test set is scored only once; these are the results of {result.configuration} ({result.network}):"
        )
    else:
        cases = [case for case in dataset.test_cases if case.label is not None]
        if not cases:
            raise StateError(
                f"{dataset.name} has no labelled test cases",
                remedy="add imagesTs and labelsTs, or rows with split=test in a table, then plan again",
            )
        name, chosen = plan.configuration(configuration)
        folds = [split.fold for split in splits.splits]
        begun = begun_folds(workspace.model(name, chosen.network.name))
        if FULL in begun and not set(folds) & set(begun):
            LOG.info("note: no fold is trained; predicting with the model of all cases")
            folds = [FULL]
        opened = open_model(workspace, name, chosen.network.name, folds=folds, device=choose_device(device))
        folder = workspace.model(name, chosen.network.name) / "test"
        predict_cases([opened], cases, folder, title="test set")
        result = score_test_cases(name, chosen.network.name, folder, cases, opened.plan.labels)
        save(workspace.test, result)
    LOG.info(summary_table(summarise(result.cases), counted(len(result.cases), "test case")))
    return result


def evaluate_folders(
    predictions: Path,
    references: Path,
    workspace: Workspace | None = None,
    *,
    labels: str | None = None,
    csv: Path | None = None,
    workers: int | None = None,
    model: Path | None = None,
) -> FolderScores:
    """Compare two folders of label files and show the tables.

    Args:
        workspace: whose plan names the labels, where `labels` does not; without a plan they are the values found.
        model: an exported file that names the labels, instead of a workspace.

    Raises:
        DataError: files cannot be paired, lie on other grids, or hold values that are not labels.
    """
    from autoseg.evaluation.evaluate import (
        confusion_table,
        labels_found,
        pair_folders,
        score_cases,
        summarise,
        summary_table,
        total_confusion,
        write_csv,
    )

    if labels is not None:
        label_set = LabelSet(parse_options(labels=labels).labels or {})
    elif model is not None:
        from autoseg.commands.evaluate_exported import labels_of

        label_set = labels_of(model)
    elif workspace is not None and workspace.plan.exists():
        label_set = load(Plan, workspace.plan).labels
    else:
        label_set = labels_found(references)
    scores = score_cases(pair_folders(predictions, references, label_set), workers=workers)
    summary = summarise(scores)
    LOG.info(summary_table(summary, counted(len(scores), "case")))
    LOG.info("\n" + confusion_table(total_confusion(scores), ["background", *label_set.values]))
    if csv:
        write_csv(csv, scores)
    return FolderScores(scores, summary)
