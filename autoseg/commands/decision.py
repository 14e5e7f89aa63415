"""Decisions of models, found and held against the weights that are about to predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.errors import StateError
from autoseg.lines import LOG
from autoseg.messages import suggest
from autoseg.models.archive import measured_with
from autoseg.models.decision import PLAIN, Decision, Rule
from autoseg.planning.plan import Plan
from autoseg.records import load
from autoseg.workspace import Workspace

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.commands.predict import PredictOptions
    from autoseg.models.model import Model

NAME = "decision.json"
IGNORE = "--no-decision ignores it"


def decided_models(workspace: Workspace, pair: tuple[str, str]) -> list[tuple[str, str]]:
    """Configuration and network of the models that predict where this one is asked for, by its decision.

    Raises:
        StateError: the decision cannot be read.
    """
    path = workspace.decision(*pair)
    if not path.exists():
        return [pair]
    known = {f"{configuration}-{network}": (configuration, network) for configuration, network in workspace.models()}
    names = _read(path).predicts
    return [known[name] for name in names] if set(names) <= set(known) else [pair]


def rule_for(workspace: Workspace, models: "Sequence[Model]", exported: Sequence[Path] = ()) -> tuple[Rule, str]:
    """The rule that was chosen for an ensemble, and why there is none although something was chosen.

    Args:
        exported: the files that hold the models; none: they are of the workspace.

    Raises:
        StateError: a decision cannot be read.
    """
    from autoseg.models.identity import fold_digests

    names = {model.name for model in models}
    found = [decision for model in models if (decision := _of(workspace, model, exported))]
    fitting = [decision for decision in found if set(decision.predicts) == names]
    if not fitting:
        others = [decision for decision in found if not decision.rule.is_plain or len(decision.predicts) > 1]
        if not others:
            return PLAIN, ""
        return PLAIN, f"the decision of {models[0].name} is for {' and '.join(others[0].predicts)}: it is not applied"
    digests = {model.name: fold_digests(model) for model in models}
    if other := fitting[0].other_weights(digests):
        again = suggest("evaluate", "--choose", workspace=workspace.root)
        again = "" if exported else f"; to choose again: {again}"
        return PLAIN, f"the decision was made without {other} as it is now: it is not applied{again}"
    return fitting[0].rule, ""


def apply_decision(
    workspace: Workspace, models: "Sequence[Model]", exported: Sequence[Path] = (), *, optional: bool = True
) -> Rule:
    """The rule that was chosen for an ensemble; what a user should know of it is shown.

    Args:
        optional: whether the command that is running has `--no-decision`.
    """
    rule, why = rule_for(workspace, models, exported)
    if why:
        LOG.info(f"note: {why}")
    elif not rule.is_plain:
        ignore = f" ({IGNORE})" if optional else ""
        LOG.info(f"by the decision of evaluate --choose: {'; '.join(rule.lines())}{ignore}")
    return rule


def open_with_rule(
    workspace: Workspace, plan: Plan, opened: "Sequence[Model]", options: "PredictOptions", *, optional: bool = True
) -> "tuple[Sequence[Model], Rule]":
    """The models that predict, and the rule by which they decide.

    Where no model is named, the decision of the recommended one says whether another predicts with it.

    Args:
        opened: of exported files, which predict instead of those of the workspace.
        optional: as for `apply_decision`.
    """
    from autoseg.commands.predict import exported_files, models_asked_for, open_models_for

    if opened:
        files = exported_files(workspace, options)
        return opened, apply_decision(workspace, opened, files, optional=optional) if options.decision else PLAIN
    pairs = models_asked_for(workspace, plan, options)
    named = bool(options.models or options.configuration or options.network)
    decided = pairs if named or not options.decision else decided_models(workspace, pairs[0])
    models = open_models_for(workspace, plan, decided, options)
    if not options.decision:
        return models, PLAIN
    if decided != pairs and (why := rule_for(workspace, models)[1]):
        LOG.info(f"note: {why}")
        return open_models_for(workspace, plan, pairs, options), PLAIN
    return models, apply_decision(workspace, models, optional=optional)


def decision_of(workspace: Workspace, configuration: str, network: str) -> Decision | None:
    """What was chosen for a model of a workspace; None where nothing was. Raises StateError."""
    path = workspace.decision(configuration, network)
    return _read(path) if path.exists() else None


def _of(workspace: Workspace, model: "Model", exported: Sequence[Path]) -> Decision | None:
    if not exported:
        return decision_of(workspace, model.configuration_name, model.configuration.network.name)
    for file in exported:
        if (found := measured_with(Decision, file, model.name, NAME)) is not None:
            return found
    return None


def _read(path: Path) -> Decision:
    again = suggest("evaluate", "--choose")
    try:
        return load(Decision, path)
    except StateError as error:
        remedy = f"choose again: {again}; or predict without it: --no-decision"
        raise StateError(error.what, remedy=remedy) from None
