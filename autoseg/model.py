"""A trained model: the plan it was trained under and the weights of its folds, opened safely."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoseg.errors import StateError
from autoseg.fold_state import upgrade_checkpoint
from autoseg.from_plan import build_plan_network
from autoseg.nn.checkpoint import load_checkpoint
from autoseg.plan import Configuration, Plan
from autoseg.records import from_plain
from autoseg.suggestions import suggest
from autoseg.workspace import Workspace

# What models that work together must have in common.
COMMON: dict[str, Callable[[Plan], Any]] = {
    "channels": lambda plan: plan.channels,
    "labels": lambda plan: plan.labels,
    "heads": lambda plan: "sigmoid" if plan.heads.has_regions else "softmax",
    "orientation": lambda plan: plan.orientation,
    "axis order": lambda plan: plan.axis_order,
}


@dataclass(frozen=True)
class Model:
    """An ensemble ready to predict.

    `plan` is the one the folds were trained under, read from their checkpoints: a later edit of plan.json cannot make
    the prediction preprocess images differently from the training.
    """

    plan: Plan
    configuration_name: str
    folds: tuple[int, ...]
    networks: tuple[nn.Module, ...]  # one per fold, in evaluation mode, on the device
    dtype: str  # of the convolutions, as chosen in training
    forward_seconds: float  # of one patch, as measured in training
    device: torch.device
    previous: "Model | None" = None  # whose segmentation is a further input, in a cascade

    @property
    def configuration(self) -> Configuration:
        return self.plan.configurations[self.configuration_name]

    @property
    def name(self) -> str:
        """As its folder in the workspace is called."""
        return f"{self.configuration_name}-{self.configuration.network.name}"


def open_model(
    workspace: Workspace, configuration_name: str, network: str, *, folds: Sequence[int] | None, device: torch.device
) -> Model:
    """Load the trained folds of one configuration; of a cascade, the same folds of its previous stage, too.

    Args:
        folds: which folds, or None for all that are finished.

    Raises:
        StateError: no fold, or one of those asked for, is trained to the end; or folds come from different plans.
    """
    folder = workspace.model(configuration_name, network)
    states = {}
    for path in sorted(folder.glob("fold_*/last.pt")):
        fold = int(path.parent.name.removeprefix("fold_")) if path.parent.name[5:].isdigit() else None
        if fold is None or (folds is not None and fold not in folds):
            continue
        state = upgrade_checkpoint(load_checkpoint(path))
        if state["finished"]:
            states[fold] = state
        elif folds is not None:
            raise StateError(
                f"fold {fold} in {path.parent} has not been trained to the end",
                remedy="resume it with: "
                + suggest(
                    "train", "-f", fold, workspace=workspace.root, configuration=configuration_name, network=network
                ),
            )
    missing = sorted(set(folds or ()) - set(states))
    if missing or not states:
        which = f"fold {missing[0]} of {folder}" if missing else f"{folder}"
        raise StateError(
            f"{which} is not trained",
            remedy="train it: "
            + suggest("train", workspace=workspace.root, configuration=configuration_name, network=network),
        )
    plans = {fold: from_plain(Plan, state["plan"], f"fold {fold}: plan") for fold, state in states.items()}
    first = min(states)
    plan = plans[first]
    for fold, other in plans.items():
        if not same_input_and_output(plan, other, configuration_name):
            raise StateError(
                f"folds {first} and {fold} in {folder} were trained under plans that read images differently",
                remedy="train all folds anew under one plan (--restart), or name the folds to use (-f)",
            )
    dtypes = {state["choices"]["dtype"] for state in states.values()}
    model = Model(
        plan=plan,
        configuration_name=configuration_name,
        folds=tuple(sorted(states)),
        networks=tuple(_network(states[fold], plans[fold], configuration_name, device) for fold in sorted(states)),
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",  # to which one of them had to go back
        forward_seconds=states[first]["choices"]["forward_seconds"],
        device=device,
        previous=_previous(workspace, plan, configuration_name, folds, device),
    )
    if model.previous:
        require_common({model.name: plan, model.previous.name: model.previous.plan})
    return model


def require_common(plans: dict[str, Plan]) -> None:
    """Refuse models, given by name with their plans, that do not see the same images and predict the same labels.

    Raises:
        StateError: says which two, and what differs.
    """
    (first, plan), *others = plans.items()
    for name, other in others:
        for what, of in COMMON.items():
            if of(plan) != of(other):
                raise StateError(
                    f"{first} and {name} cannot work together: they have different {what}: {of(plan)} and {of(other)}",
                    remedy="train both under one plan, or leave one out",
                )


def same_input_and_output(a: Plan, b: Plan, configuration_name: str) -> bool:
    """Whether two plans preprocess images alike and predict the same heads in the same configuration."""
    return _seen(a, configuration_name) == _seen(b, configuration_name)


def _seen(plan: Plan, configuration_name: str) -> tuple:
    configuration = plan.configurations[configuration_name]
    rules = (plan.channels, plan.heads, plan.orientation, plan.axis_order, plan.normalization, plan.resampling)
    return (*rules, configuration.spacing, configuration.patch_size, configuration.cascade_from)


def _previous(
    workspace: Workspace, plan: Plan, configuration_name: str, folds: Sequence[int] | None, device: torch.device
) -> Model | None:
    name = plan.configurations[configuration_name].cascade_from
    if name is None:
        return None
    return open_model(workspace, name, plan.configurations[name].network.name, folds=folds, device=device)


def _network(state: dict, plan: Plan, configuration_name: str, device: torch.device) -> nn.Module:
    network = build_plan_network(plan, plan.configurations[configuration_name]).to(device)
    network.load_state_dict(state["network"])
    if state["average"] is not None:
        with torch.no_grad():
            for parameter, average in zip(network.parameters(), state["average"], strict=True):
                parameter.copy_(average)
    network.deep_supervision = False  # type: ignore[assignment]
    return network.eval()
