"""Held-out predictions, test cases and any two folders against their references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.commands.decision import decision_of, open_with_rule
from autoseg.commands.folds import require_known
from autoseg.commands.inputs import load_records
from autoseg.commands.proof import curves_of, note_cheaper, prove_unseen
from autoseg.commands.report import report_or_warn
from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.intake import IntakeOptions
from autoseg.datasets.label_sets import labels_of_objects
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.messages import counted, some, suggest
from autoseg.planning.plan import Plan
from autoseg.plugins import require_plugins
from autoseg.preprocessing.sources import changed_lists, changed_since, plan_again, require_in_place
from autoseg.records import load, save
from autoseg.workspace import FULL, FoldName, Workspace, begun_folds

if TYPE_CHECKING:  # torch is imported where something is predicted
    from autoseg.evaluation.crossval import CrossValidation, HeldOutScores
    from autoseg.evaluation.evaluate import CaseScore, ScoreJob, Summary
    from autoseg.evaluation.measures import Given
    from autoseg.evaluation.object_scores import ObjectSummary


@dataclass(frozen=True)
class FolderScores:
    """A folder of segmentations against a folder of references."""

    cases: "tuple[CaseScore, ...]"
    summary: "dict[str, dict[str, Summary]]"  # label or region -> metric -> over all cases
    objects: "dict[str, ObjectSummary]" = field(default_factory=dict)  # of things, and of stuff beside them

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice over the labels; None where no case holds any."""
        from autoseg.evaluation.evaluate import mean_over_labels

        return mean_over_labels(self.summary)


@dataclass(frozen=True)
class ScoringOptions:
    """How a cross-validation is scored and what is written of it."""

    network: str | None = None  # None: the planned one
    tolerance: float | Mapping[str, float] | None = None  # mm, of surfaces, for all labels or by label; None: 1
    tubes: str | Sequence[str] = ()  # labels whose centre-lines are compared
    csv: Path | None = None  # also a row per case and label
    good: float = 0.8  # mean Dice above which the verdict is good,
    poor: float = 0.5  # and below which it is poor
    workers: int | None = None  # processes; None: as cores and memory allow
    report: bool = True  # also write the page about the workspace


def cross_validate(
    workspace: Workspace, configuration: str | None = None, options: ScoringOptions = ScoringOptions()
) -> "CrossValidation":
    """Score the held-out predictions of every trained fold of one model, show the tables and write its crossval.json.

    Before anything is scored, it is proven that no fold saw a patient whose cases it holds out. Where no model is
    named, those trained beside it are shown for comparison, a line each. Then the report of the workspace is written,
    unless `options.report` is False.

    Raises:
        StateError: no fold is trained, or one saw a patient whose cases it holds out.
    """
    from autoseg.evaluation.crossval import cross_validate_folds, describe
    from autoseg.evaluation.evaluate import write_csv
    from autoseg.evaluation.statistics import Bands, write_statistics

    dataset, plan, splits = load_records(workspace, options.network)
    name, chosen = plan.configuration(configuration)
    model = (name, chosen.network.name)
    scored, notes = folds_to_score(workspace, plan, name, splits)
    require_known(workspace, dataset, scored)
    jobs = _jobs(workspace, dataset, plan, model, scored, options)
    for note in notes:
        LOG.info(note)
    if not jobs:
        raise nothing_trained(workspace, *model)
    coverage = prove_unseen(workspace, dataset, plan, name, splits, [*jobs])
    held_out = {case for split in scored for case in split.validation}
    _note_changes(workspace, [case for case in dataset.cases if case.id in held_out])
    patients = {case.id: case.patient for case in dataset.cases}
    bands = Bands(options.good, options.poor)
    result = cross_validate_folds(
        *model, jobs, len(splits.splits), patients=patients, bands=bands, workers=options.workers
    )
    result = replace(result, coverage=coverage, curves=curves_of(workspace.model(*model), plan, [*jobs]))
    save(workspace.crossval(*model), result)
    assert result.mean_dice is not None
    write_statistics(workspace.statistics(*model), result.summary, result.mean_dice, result.per_fold)
    if options.csv:
        write_csv(options.csv, result.cases)
    LOG.info(describe(result, plan.labels))
    leakage_or_warn(workspace, dataset, splits, options.workers)
    note_cheaper(workspace, *model, [*jobs])
    others = _other_models(workspace, model) if configuration is None and options.network is None else []
    for line in [*_decision(workspace, *model), *others]:
        LOG.info(line)
    if options.report:
        report_or_warn(workspace, *model)
    return result


def _jobs(
    workspace: Workspace,
    dataset: Dataset,
    plan: Plan,
    model: tuple[str, str],
    scored: Sequence[Split],
    options: ScoringOptions,
) -> "dict[FoldName, list[ScoreJob]]":
    """The held-out segmentations of each fold beside their references, which are still where they were."""
    from autoseg.evaluation.crossval import validation_jobs
    from autoseg.evaluation.measures import measures_of, with_measures

    measures = measures_of(options.tolerance, options.tubes)
    cases = {case.id: case for case in dataset.cases}
    jobs = {}
    for split in scored:
        held_out = [cases[i] for i in split.validation]
        require_in_place(workspace, dataset, held_out)
        folder = workspace.fold(*model, split.fold) / "validation"
        jobs[split.fold] = with_measures(validation_jobs(folder, held_out, plan.labels), measures)
    return jobs


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


def _note_changes(workspace: Workspace, cases: Sequence[Case]) -> None:
    """Say which files are others than when the dataset was planned."""
    for path in changed_lists(workspace):
        again = plan_again(workspace)
        LOG.warning(f"note: {path} changed since it was planned; the folds were made from the old content: {again}")
    for path in changed_since(workspace, cases):
        LOG.warning(f"note: {path} changed since it was planned; the scores compare with the current files")


def leakage_or_warn(workspace: Workspace, dataset: Dataset, splits: Splits, workers: int | None) -> None:
    """Look for images on both sides of a fold; what fails is a warning, because the scores are written."""
    from autoseg.evaluation.leakage import check_leakage

    try:
        check_leakage(workspace, dataset, splits, workers=workers)
    except Exception as error:
        LOG.warning(f"WARNING: images were not compared across folds: {type(error).__name__}: {error}")


def nothing_trained(workspace: Workspace, name: str, network: str) -> StateError:
    """The refusal where a model has no fold with held-out cases to score."""
    train = suggest("train", workspace=workspace.root, configuration=name, network=network)
    what = f"{workspace.root} has no trained fold of {name} ({network}) with held-out cases"
    return StateError(what, remedy=f"train first: {train}")


def _decision(workspace: Workspace, name: str, network: str) -> list[str]:
    """What was chosen for a model, and whether it was trained since."""
    found = decision_of(workspace, name, network)
    if found is None:
        return []
    chosen = workspace.decision(name, network).stat().st_mtime
    later = [fold for fold, path in begun_folds(workspace.model(name, network)).items()
             if fold != FULL and (path / "last.pt").stat().st_mtime > chosen]  # fmt: skip
    if not later:
        return found.in_short()
    again = suggest("evaluate", "--choose", workspace=workspace.root, configuration=name, network=network)
    return [*found.in_short(), f"note: fold {some(later)} was trained after that; to choose again: {again}"]


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

    They are segmented as `predict` does, by what `evaluate --choose` chose. A second call shows what the first one
    found: a test set that is looked at again and again is none.

    Args:
        model: an exported file to predict with; None: the folds of the workspace.

    Raises:
        StateError: the dataset has no labelled test cases, or a fold is not trained.
    """
    from autoseg.commands.predict import PredictOptions
    from autoseg.evaluation.crossval import HeldOutScores, score_test_cases
    from autoseg.evaluation.evaluate import summarise, summary_table
    from autoseg.inference.ensemble import split
    from autoseg.inference.predict import predict_cases

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
        options = PredictOptions(configuration, network, folds=tuple(folds), device=device)
        models, rule = open_with_rule(workspace, plan, (), options)
        folder = workspace.model(name, chosen.network.name) / "test"
        predict_cases(replace(split(models, by="models"), rule=rule), cases, folder, title="test set")
        pairs = [(model.configuration_name, model.configuration.network.name) for model in models]
        names = [" and ".join(dict.fromkeys(of)) for of in zip(*pairs, strict=True)]
        result = score_test_cases(names[0], names[1], folder, cases, models[0].plan.labels)
        save(workspace.test, result)
    LOG.info(summary_table(summarise(result.cases), counted(len(result.cases), "test case")))
    return result


def evaluate_folders(
    predictions: Path,
    references: Path,
    workspace: Workspace | None = None,
    *,
    intake: IntakeOptions = IntakeOptions(),
    measures: "Given" = (None, ()),
    csv: Path | None = None,
    workers: int | None = None,
    model: Path | None = None,
) -> FolderScores:
    """Compare two folders of label files and show the tables.

    Args:
        workspace: whose plan names the labels, where `intake` does not; without a plan they are the values found.
        intake: `labels`, `instances` and `divisor` of it.
        measures: a tolerance in mm, or one for each label; and the labels that are tubes.
        model: an exported file that names the labels, instead of a workspace.

    Raises:
        DataError: files cannot be paired, lie on other grids, or hold values that are not labels.
    """
    from autoseg.evaluation.evaluate import (
        confusion_table,
        label_files,
        labels_found,
        objects_over_cases,
        pair_folders,
        score_cases,
        summarise,
        summary_table,
        total_confusion,
        write_csv,
    )
    from autoseg.evaluation.measures import measures_of, with_measures
    from autoseg.evaluation.object_scores import object_tables

    if intake.instances is not None:
        label_set = labels_of_objects(intake, list(map(str, label_files(references))), workers=workers)
    elif intake.labels is not None:
        label_set = LabelSet(intake.labels)
    elif model is not None:
        from autoseg.commands.evaluate_exported import labels_of

        label_set = labels_of(model)
    elif workspace is not None and workspace.plan.exists():
        label_set = load(Plan, workspace.plan).labels
    else:
        label_set = labels_found(references)
    jobs = with_measures(pair_folders(predictions, references, label_set), measures_of(*measures))
    scores = score_cases(jobs, workers=workers)
    summary = summarise(scores, {})  # nobody says which cases are of one patient
    objects = objects_over_cases(scores, label_set, {})
    LOG.info(summary_table(summary, counted(len(scores), "case")))
    if objects:
        LOG.info("\n" + object_tables(objects))
    LOG.info("\n" + confusion_table(total_confusion(scores), ["background", *label_set.values]))
    if csv:
        write_csv(csv, scores)
    return FolderScores(scores, summary, objects)
