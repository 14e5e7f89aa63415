"""`autoseg evaluate --choose`: models, decision rule and corrections, chosen on the held-out cases."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.commands.evaluate import ScoringOptions, cross_validate, folds_to_score
from autoseg.commands.inputs import load_records
from autoseg.commands.proof import prove_unseen
from autoseg.commands.report import report_or_warn
from autoseg.datasets.dataset import Case
from autoseg.errors import StateError, UsageError
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.models.decision import ComponentRule, Decision, Rule
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.progress import Progress
from autoseg.records import save
from autoseg.workspace import FoldName, Workspace

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.evaluation.choose import HeldOutCases
    from autoseg.evaluation.crossval import CrossValidation
    from autoseg.evaluation.evaluate import ScoreJob
    from autoseg.evaluation.margins import MarginTable
    from autoseg.models.decision import Choice
    from autoseg.models.model import Model

ALL = ("model", "thresholds", "components")  # unless others are named
SLOW = ("crf",)  # only where it is named
MOST_MODELS = 4  # that are compared, with every pair of them


@dataclass(frozen=True)
class _Task:
    """What is chosen, and on what."""

    workspace: Workspace
    plan: Plan
    result: "CrossValidation"
    held: "HeldOutCases"
    cases: dict[FoldName, list[Case]]
    device: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.result.configuration, self.result.network

    @property
    def name(self) -> str:
        return "-".join(self.pair)


def choose_decision(
    workspace: Workspace,
    configuration: str | None = None,
    options: ScoringOptions | None = None,
    *,
    choose: Sequence[str] = ALL,
    recall: Mapping[str, float] | None = None,
    device: str = "auto",
) -> Decision:
    """Choose on the held-out cases which models predict, by which rule, and which components are corrected.

    Each choice is accepted only where it improves cases whose fold had no part in it, beyond chance. The decision is
    kept in the folder of the model, and `predict` applies it.

    Args:
        options: as for `cross_validate`, which comes first; None: its defaults. The report follows the decision.
        choose: which choices: "model", "thresholds", "components", which alone needs no network; and "crf", which
            takes long and is made only where it is named.
        recall: label or region -> recall that it must reach.

    Raises:
        StateError: no fold is trained, or one saw a patient whose cases it holds out.
        UsageError: a label that does not exist, or a recall that is not a share.
    """
    from autoseg.evaluation.choose import describe

    options = options or ScoringOptions()
    asked = tuple(choose) or ALL
    _require_known(asked)
    targets = dict(recall or {})
    _, plan, _ = load_records(workspace, options.network)
    _require_targets(targets, plan)
    scores = cross_validate(workspace, configuration, replace(options, report=False))
    task = _task(workspace, plan, scores, device)
    predicts: tuple[tuple[str, str], ...] = (task.pair,)
    offsets: dict[str, float] = {}
    choices: list[Choice] = []
    if targets or {"model", "thresholds"} & set(asked):
        predicts, offsets, weights, choices = _by_logits(task, asked, targets)
    else:
        weights = _weights(task, predicts)
    rule = Rule(offsets)
    if "crf" in asked:
        rule, choice = _by_crf(task, predicts, rule)
        choices.append(choice)
    corrected, more, after = _by_components(task, predicts, rule, "components" in asked, options.workers)
    before = np.mean([_dice_of(score, plan) for score in task.result.cases])
    decision = Decision(
        1, tuple("-".join(pair) for pair in predicts), weights, replace(rule, components=corrected), task.name,
        (*choices, *more), len(task.held.cases), len(set(task.held.patients)), tuple(str(fold) for fold in task.cases),
        float(before), after,
    )  # fmt: skip
    for pair in dict.fromkeys([task.pair, *([] if task.pair in predicts else predicts[:1])]):
        save(workspace.decision(*pair), decision)  # where predict looks for it, whichever of them is opened
    LOG.info("\n" + describe(decision))
    if options.report:
        report_or_warn(workspace, *task.pair)
    return decision


def _require_known(asked: Sequence[str]) -> None:
    known = (*ALL, *SLOW)
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(f"--choose {unknown[0]}: there is no such choice", remedy=f"choose from {', '.join(known)}")


def _require_targets(targets: Mapping[str, float], plan: Plan) -> None:
    heads = plan.heads
    names = list(heads.regions) if heads.has_regions else list(heads.values)
    for name, target in targets.items():
        if name not in names:
            raise UsageError(f"--recall {name}: there is no such label", remedy=f"there are: {', '.join(names)}")
        if not 0 < target < 1:
            raise UsageError(f"--recall {name}={target:g} is not a share", remedy=f"write --recall {name}=0.95")


def _task(workspace: Workspace, plan: Plan, result: "CrossValidation", device: str) -> _Task:
    """The held-out cases of a cross-validation, in order."""
    from autoseg.evaluation.choose import HeldOutCases
    from autoseg.evaluation.expected_dice import groups_of

    dataset, _, _ = load_records(workspace, result.network)
    known = {case.id: case for case in dataset.cases}
    cases = {fold.fold: [known[score.case] for score in fold.cases] for fold in result.folds}
    flat = [(case.id, str(fold), case.patient) for fold, held_out in cases.items() for case in held_out]
    groups = groups_of(flat)
    held = HeldOutCases(
        tuple(case for case, _, _ in flat), np.array([groups[case] for case, _, _ in flat]),
        tuple(patient for _, _, patient in flat),
    )  # fmt: skip
    return _Task(workspace, plan, result, held, cases, device)


def _open(task: _Task, pair: tuple[str, str], fold: FoldName) -> "Model":
    from autoseg.models.model import open_model

    return open_model(task.workspace, *pair, folds=[fold], device=choose_device(task.device))


def _by_logits(
    task: _Task, asked: Sequence[str], targets: Mapping[str, float]
) -> "tuple[tuple[tuple[str, str], ...], dict[str, float], dict[str, dict[str, str]], list[Choice]]":
    """Choose models and offsets by the logits that the networks of each fold give its held-out cases."""
    from autoseg.evaluation.choose import Tried, try_out
    from autoseg.evaluation.thresholds import Scorer, choose_offsets

    pairs = [task.pair, *(_others(task) if "model" in asked else [])]
    ensembles: dict[str, tuple[int, ...]] = {"-".join(pair): (number,) for number, pair in enumerate(pairs)}
    for second in range(1, len(pairs)):
        for first in range(second):
            ensembles["+".join("-".join(pairs[number]) for number in (first, second))] = (first, second)
    tables, weights = _tables(task, pairs, ensembles)
    scorers = {
        name: Scorer([of_cases[case] for case in task.held.cases], task.plan.heads, task.plan.labels)
        for name, of_cases in tables.items()
    }
    choices, chosen = [], task.name
    if "model" in asked:
        names = [name for name in ensembles if name != task.name]
        scores = np.stack([scorers[name].dice({}) for name in names]) if names else np.empty((0, len(task.held.cases)))
        shown = tuple(name.replace("+", " with ") for name in names)
        choice, at = try_out(Tried("model", "", shown, scores, scorers[task.name].dice({})), task.held, 1)
        choices.append(choice if names else replace(choice, reason=f"{task.name} is the only model of these folds"))
        chosen = names[at] if at >= 0 else chosen
    offsets: dict[str, float] = {}
    if targets or "thresholds" in asked:
        free = [name for name in scorers[chosen].names if name] if "thresholds" in asked else []
        offsets, more = choose_offsets(scorers[chosen], task.held, targets, free)
        choices += more
    predicts = tuple(pairs[number] for number in ensembles[chosen])
    used = {"-".join(pair): weights["-".join(pair)] for pair in predicts}
    return predicts, offsets, used, choices


def _others(task: _Task) -> list[tuple[str, str]]:
    """Other models that hold out the same cases in the same folds, and fit together with this one."""
    from autoseg.models.model import COMMON

    found: list[tuple[str, str]] = []
    folds = set(task.cases)
    for pair in task.workspace.models():
        if pair == task.pair or len(found) + 1 >= MOST_MODELS:
            continue
        try:
            dataset, plan, splits = load_records(task.workspace, pair[1])
            scored, _ = folds_to_score(task.workspace, plan, pair[0], splits)
            same = all(of(plan) == of(task.plan) for of in COMMON.values())
            if not folds <= {split.fold for split in scored} or not same:
                LOG.info(f"note: {'-'.join(pair)} is not considered: it lacks folds, or has other labels or channels")
                continue
            prove_unseen(task.workspace, dataset, plan, pair[0], splits, [*folds])
        except StateError as error:
            LOG.warning(f"note: {'-'.join(pair)} is not considered: {error.what}")
            continue
        found.append(pair)
    return found


def _tables(
    task: _Task, pairs: Sequence[tuple[str, str]], ensembles: Mapping[str, tuple[int, ...]]
) -> "tuple[dict[str, dict[str, MarginTable]], dict[str, dict[str, str]]]":
    """Counted logits, ensemble -> case -> table, and the digests of the networks they are of."""
    from autoseg.evaluation.margin_runs import tables_of_cases
    from autoseg.models.identity import fold_digests

    found: dict[str, dict[str, MarginTable]] = {name: {} for name in ensembles}
    weights: dict[str, dict[str, str]] = {"-".join(pair): {} for pair in pairs}
    folder = task.workspace.model(*task.pair) / "margins"
    LOG.info(f"\nlogits of {counted(len(task.held.cases), 'held-out case')}, each by its own fold (kept in {folder})")
    with Progress(len(task.held.cases), "logits") as bar:
        for fold, cases in task.cases.items():
            models = [_open(task, pair, fold) for pair in pairs]
            for model in models:
                weights[model.name] |= fold_digests(model)
            for case, tables in tables_of_cases(models, cases, ensembles, folder):
                for name, table in tables.items():
                    found[name][case] = table
                bar.update()
    return found, weights


def _weights(task: _Task, predicts: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Model -> fold -> digest of its weights."""
    from autoseg.models.identity import fold_digests

    found: dict[str, dict[str, str]] = {"-".join(pair): {} for pair in predicts}
    for pair in predicts:
        for fold in task.cases:
            found["-".join(pair)] |= fold_digests(_open(task, pair, fold))
    return found


def _by_crf(task: _Task, predicts: tuple[tuple[str, str], ...], rule: Rule) -> "tuple[Rule, Choice]":
    """Choose how boundaries are refined, by what was chosen before."""
    from autoseg.evaluation.crf_runs import choose_crf

    models = {fold: [_open(task, pair, fold) for pair in predicts] for fold in task.cases}
    crf, choice = choose_crf(models, task.cases, task.held, rule.offsets)
    return replace(rule, crf=crf), choice


def _by_components(
    task: _Task,
    predicts: tuple[tuple[str, str], ...],
    decided: Rule,
    wanted: bool,
    workers: int | None,
) -> "tuple[dict[str, ComponentRule], list[Choice], float]":
    """Choose corrections on label maps that are decided by what was chosen before; and the mean Dice with everything.

    The maps are those of the folds' validation where nothing was chosen before; otherwise they are made again.
    """
    from autoseg.evaluation.choose import mean_dice
    from autoseg.evaluation.postprocessing import CorrectedJob, corrected_confusions

    folder = task.workspace.model(*task.pair)
    with tempfile.TemporaryDirectory(prefix=".decided-", dir=folder) as temporary:
        jobs = _jobs(task, predicts, decided, Path(temporary))
        rules, choices = choose_components(jobs, task, workers) if wanted else ({}, [])
        rule = Rule(components=rules)
        confusions = corrected_confusions([CorrectedJob(job, rule) for job in jobs], workers=workers)
    after = float(np.mean([mean_dice(confusion, task.plan.labels) for confusion in confusions]))
    return rules, choices, after


def choose_components(
    jobs: "Sequence[ScoreJob]", task: _Task, workers: int | None
) -> "tuple[dict[str, ComponentRule], list[Choice]]":
    """Try to remove islands and to fill holes, label by label."""
    from autoseg.evaluation.choose import Tried, mean_dice, try_out
    from autoseg.evaluation.postprocessing import candidates, combined, components_of_cases

    labels = task.plan.labels
    found = components_of_cases(jobs, workers=workers)
    baseline = np.array([mean_dice(case.confusion, labels) for case in found])
    accepted: dict[str, list[ComponentRule]] = {}
    choices = []
    separated = {*labels.things, *(f"{name} core" for name in labels.things)}  # many components are right there
    for name in (name for name in labels.scored if name not in separated):
        for rules in (candidates(found, name), [ComponentRule(fill_holes=True)]):
            scores = np.array(
                [[mean_dice(case.corrected(name, rule, labels), labels) for case in found] for rule in rules]
            ).reshape(len(rules), len(found))
            tried = Tried("components", name, tuple(map(str, rules)), scores, baseline)
            choice, at = try_out(tried, task.held, 2 * len(labels.scored))
            choices.append(choice)
            if at >= 0:
                accepted.setdefault(name, []).append(rules[at])
    return {name: combined(rules) for name, rules in accepted.items()}, choices


def _jobs(task: _Task, predicts: tuple[tuple[str, str], ...], decided: Rule, folder: Path) -> "list[ScoreJob]":
    """Held-out segmentations, as the chosen models and rule make them, with their references."""
    from autoseg.evaluation.crossval import validation_jobs

    labels = task.plan.labels
    again = not decided.is_plain or predicts != (task.pair,)
    if again:
        LOG.info(f"segmenting {counted(len(task.held.cases), 'held-out case')} again, by what was accepted so far")
    jobs = []
    for fold, cases in task.cases.items():
        own = task.workspace.fold(*task.pair, fold) / "validation"
        if again:
            own = folder / f"fold_{fold}"
            _segment(task, predicts, decided, fold, own)
        jobs += validation_jobs(own, cases, labels)
    return jobs


def _segment(task: _Task, predicts: tuple[tuple[str, str], ...], rule: Rule, fold: FoldName, out: Path) -> None:
    from autoseg.inference.ensemble import split
    from autoseg.inference.predict import predict_cases

    ensemble = split([_open(task, pair, fold) for pair in predicts], by="models")
    predict_cases(replace(ensemble, rule=rule), task.cases[fold], out, title=f"decided, fold {fold}")


def _dice_of(score: object, plan: Plan) -> float:
    from autoseg.evaluation.choose import dice_of_scores

    return dice_of_scores(score, plan.labels)  # type: ignore[arg-type]
