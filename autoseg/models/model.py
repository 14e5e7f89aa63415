"""A trained model: the plan it was trained under and the weights of its folds, opened safely."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoseg.errors import StateError
from autoseg.messages import suggest
from autoseg.models.build import build_plan_network
from autoseg.models.checkpoint import NEWEST
from autoseg.models.same_training import what_is_seen
from autoseg.models.versions import Checkpoint, read_checkpoint
from autoseg.nn.precision import to_channels_last
from autoseg.planning.plan import Configuration, Plan
from autoseg.plugins import require_plugins
from autoseg.records import from_plain, to_plain
from autoseg.workspace import FULL, FoldName, Workspace, begun_folds

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
    folds: tuple[FoldName, ...]
    networks: tuple[nn.Module, ...]  # one per fold, in evaluation mode, on the device
    dtype: str  # of the convolutions, as chosen in training
    forward_seconds: float  # of one patch, as measured in training
    device: torch.device
    previous: "Model | None" = None  # whose segmentation is a further input, in a cascade
    unfinished: dict[FoldName, str] = field(default_factory=dict)  # folds not trained to the end: how far they are
    left_out: dict[FoldName, str] = field(default_factory=dict)  # such folds that are not taken: how far they are

    @property
    def configuration(self) -> Configuration:
        return self.plan.configurations[self.configuration_name]

    @property
    def name(self) -> str:
        """As its folder in the workspace is called."""
        return f"{self.configuration_name}-{self.configuration.network.name}"


def open_model(
    workspace: Workspace,
    configuration_name: str,
    network: str,
    *,
    folds: Sequence[FoldName] | None,
    device: torch.device,
    unfinished: bool = False,
) -> Model:
    """Load the trained folds of one configuration; of a cascade, the same folds of its previous stage, too.

    Args:
        folds: which folds. None: the partitions that are finished, or FULL where it alone is.
        unfinished: take folds that are not trained to the end, too, with the averaged weights of their newest
            checkpoint.

    Raises:
        StateError: no fold, or one of those asked for, is trained to the end; or folds come from different plans.
    """
    folder = workspace.model(configuration_name, network)
    states, left_out = _states(workspace, folder, folds, unfinished)
    train = suggest("train", workspace=workspace.root, configuration=configuration_name, network=network)
    missing = [fold for fold in folds or () if fold not in states]
    if missing or not states:
        which = f"fold {missing[0]} of {folder}" if missing else f"{folder}"
        raise StateError(f"{which} is not trained", remedy=f"train it: {train}")
    opened = {fold: _opened(state, fold, configuration_name, device) for fold, state in states.items()}
    plan = next(iter(opened.values())).plan
    return ensemble(
        opened,
        configuration_name,
        device,
        where=str(folder),
        remedy=f"retrain the folds of one plan: {train} --restart; or choose folds of one plan with -f",
        previous=_previous(workspace, plan, configuration_name, folds, device, unfinished),
        left_out=left_out,
    )


@dataclass(frozen=True)
class OpenedFold:
    """One fold, ready to predict."""

    plan: Plan
    network: nn.Module  # in evaluation mode, on the device
    dtype: str
    forward_seconds: float
    unfinished: str = ""  # how far it is, where it is not trained to the end


def ensemble(
    folds: Mapping[FoldName, OpenedFold],
    configuration_name: str,
    device: torch.device,
    *,
    where: str,
    remedy: str,
    previous: Model | None = None,
    left_out: dict[FoldName, str] | None = None,
) -> Model:
    """Folds as one model, which see images alike and predict the same.

    Args:
        where: what holds them, for errors.
        remedy: what to do where their plans differ.

    Raises:
        StateError: folds, or a model and its previous stage, were trained under plans that do not fit together.
    """
    first, *_ = folds
    plan = folds[first].plan
    for fold, other in folds.items():
        if not same_input_and_output(plan, other.plan, configuration_name):
            raise StateError(
                f"folds {first} and {fold} in {where} were trained under plans that read images differently",
                remedy=remedy,
            )
    dtypes = {fold.dtype for fold in folds.values()}
    model = Model(
        plan=plan,
        configuration_name=configuration_name,
        folds=tuple(folds),
        networks=tuple(fold.network for fold in folds.values()),
        dtype=dtypes.pop() if len(dtypes) == 1 else "float32",  # to which one of them had to go back
        forward_seconds=folds[first].forward_seconds,
        device=device,
        previous=previous,
        unfinished={name: fold.unfinished for name, fold in folds.items() if fold.unfinished},
        left_out=left_out or {},
    )
    if model.previous:
        require_common({model.name: plan, model.previous.name: model.previous.plan})
    return model


def _states(
    workspace: Workspace, folder: Path, folds: Sequence[FoldName] | None, unfinished: bool
) -> tuple[dict[FoldName, Checkpoint], dict[FoldName, str]]:
    """The checkpoints that are to predict, by fold; and how far those folds are that are not taken for it."""
    begun = begun_folds(folder)
    states: dict[FoldName, Checkpoint] = {}
    left_out: dict[FoldName, str] = {}
    for fold in (f for f in begun if folds is None or f in folds):
        if fold == FULL and folds is None and states:
            break  # the partitions vote; the model that saw all cases stands by itself
        state = read_checkpoint(begun[fold] / NEWEST)
        require_plugins(state.plugins, begun[fold])
        if state.finished or (unfinished and state.position.step > 0):
            states[fold] = state
        elif folds is not None:
            name, _, network = folder.name.rpartition("-")
            finish = suggest(
                "train", "-f", fold, "--finish", workspace=workspace.root, configuration=name, network=network
            )
            raise StateError(
                f"fold {fold} in {begun[fold]} is not trained to the end: {_standing(state)}",
                remedy=f"resume it with the options it was started with; or let it cool down and end: "
                f"{finish}; or predict with its current state: --unfinished",
            )
        else:
            left_out[fold] = _standing(state)
    return states, left_out


def _standing(state: Checkpoint) -> str:
    """How far a training has come: "epoch 12, step 3000"."""
    return f"epoch {state.position.epoch}, step {state.position.step}"


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
                    f"{first} and {name} cannot be combined: they have different {what}: {of(plan)} and {of(other)}",
                    remedy="train both under one plan, or use only one",
                )


def same_input_and_output(a: Plan, b: Plan, configuration_name: str) -> bool:
    """Whether two plans preprocess images alike and predict the same heads in the same configuration."""
    seen = [what_is_seen(to_plain(plan), configuration_name) | {"heads": plan.heads.has_regions} for plan in (a, b)]
    return seen[0] == seen[1]


def _previous(
    workspace: Workspace,
    plan: Plan,
    configuration_name: str,
    folds: Sequence[FoldName] | None,
    device: torch.device,
    unfinished: bool,
) -> Model | None:
    """The previous stage of a cascade: the same folds; for FULL all partitions, which segmented what it learnt from."""
    name = plan.configurations[configuration_name].cascade_from
    if name is None:
        return None
    if folds is not None:
        folds = [fold for fold in folds if fold != FULL] or None
    network = plan.configurations[name].network.name
    return open_model(workspace, name, network, folds=folds, device=device, unfinished=unfinished)


def _opened(state: Checkpoint, fold: FoldName, configuration_name: str, device: torch.device) -> OpenedFold:
    plan = from_plain(Plan, state.plan, f"fold {fold}: plan")
    network = build_plan_network(plan, plan.configurations[configuration_name]).to(device)
    network.load_state_dict(state.network)
    if state.average is not None:
        with torch.no_grad():
            for parameter, average in zip(network.parameters(), state.average, strict=True):
                parameter.copy_(average)
    unfinished = "" if state.finished else _standing(state)
    return OpenedFold(plan, ready(network), state.runtime.dtype, state.runtime.forward_seconds, unfinished)


def ready(network: nn.Module) -> nn.Module:
    """A network as it predicts: in evaluation mode, at full resolution alone, laid out as its device computes fastest.

    On a CPU channels lie last: without gradients, convolutions in float32 are 5 to 25 % faster then, and those in
    bfloat16 not slower (benchmarks/README.md, section 22).
    """
    network.deep_supervision = False  # type: ignore[assignment]
    if next(network.parameters()).device.type == "cpu":
        to_channels_last(network)
    return network.eval()
