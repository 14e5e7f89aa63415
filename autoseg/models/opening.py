"""Models to predict with, wherever they are: in a workspace, or in a file that was exported.

Of a file, the networks are built that its plan describes, and only these: a tensor too many or too few, of another
shape or dtype, or with a value that is not finite is refused. Weights are read in place; nothing is unpacked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autoseg.errors import StateError, UsageError
from autoseg.messages import suggest
from autoseg.models import safetensors
from autoseg.models.archive import AGAIN, Archive, is_archive, models_named, open_archive
from autoseg.models.build import build_plan_network
from autoseg.models.container import Container
from autoseg.models.manifest import ArchivedFold, ArchivedModel
from autoseg.models.model import Model, OpenedFold, ensemble, open_model, ready
from autoseg.planning.plan import Configuration, Plan
from autoseg.records import load
from autoseg.workspace import FULL, FoldName, Workspace


def open_models(
    path: Path,
    *,
    names: Sequence[str] = (),
    configuration: str | None = None,
    network: str | None = None,
    folds: Sequence[FoldName] | None = None,
    device: torch.device,
    unfinished: bool = False,
) -> list[Model]:
    """The models of a workspace or of an archive that are to predict together.

    Args:
        path: folder of a workspace, or a file that `autoseg export` has written.
        names: of models, as their folders are called: "3d_fullres-unet".
        configuration, network: or of one model; None: the recommended one of a workspace, all that an archive was
            exported to predict with.
        folds: of each model; None: all that are trained, or FULL where it alone is.
        unfinished: also take folds of a workspace that are not trained to the end.

    Raises:
        StateError: there is no such model, it is not trained, or the archive is refused.
        UsageError: `names` as well as `configuration` or `network` are given.
    """
    if names and (configuration or network):
        raise UsageError("models are named both whole and by configuration or network", remedy="name them in one way")
    if is_archive(path):
        archive = open_archive(path)
        return models_in(archive, names or models_named(archive, configuration, network), folds=folds, device=device)
    workspace = Workspace(path)
    pairs = _named(workspace, names) if names else [_in_workspace(workspace, configuration, network)]
    return [open_model(workspace, *pair, folds=folds, device=device, unfinished=unfinished) for pair in pairs]


def _in_workspace(workspace: Workspace, configuration: str | None, network: str | None) -> tuple[str, str]:
    """Configuration and network of the model that is asked for."""
    if not workspace.plan.exists():
        what = f"{workspace.root} is neither a workspace nor a model that autoseg exported"
        raise StateError(what, remedy="name the folder of a workspace, or a file called .zip")
    name, chosen = load(Plan, workspace.plan).configuration(configuration)
    return name, network or chosen.network.name


def _named(workspace: Workspace, names: Sequence[str]) -> list[tuple[str, str]]:
    """Configuration and network of each named model, each once."""
    known = {f"{configuration}-{network}": (configuration, network) for configuration, network in workspace.models()}
    if missing := [name for name in names if name not in known]:
        train = "train first: " + suggest("train", workspace=workspace.root)
        remedy = f"there are: {', '.join(known)}" if known else train
        raise StateError(f"{workspace.root} holds no model {missing[0]!r}", remedy=remedy)
    return [known[name] for name in dict.fromkeys(names)]


# ---- networks of an exported file


def models_in(
    archive: Archive, names: Sequence[str], *, folds: Sequence[FoldName] | None, device: torch.device
) -> list[Model]:
    """The named models of an archive, ready to predict.

    Args:
        folds: which folds. None: all partitions, or FULL where it alone is there.

    Raises:
        StateError: there is no such model or fold, it needs a plugin, or its weights do not fit its plan.
    """
    known = archive.manifest.models
    if unknown := [name for name in names if name not in known]:
        raise StateError(f"{archive.path} holds no model {unknown[0]!r}", remedy=f"it holds: {', '.join(known)}")
    return [_model(archive, name, folds, device) for name in names]


def _model(archive: Archive, name: str, folds: Sequence[FoldName] | None, device: torch.device) -> Model:
    model = archive.manifest.models[name]
    chosen = _chosen(archive, name, folds)
    opened = {fold.fold: _opened(archive, model, fold, device) for fold in chosen}
    plan = opened[chosen[0].fold].plan
    configuration = plan.configurations[model.configuration]
    stage = None if model.previous is None else archive.manifest.models[model.previous]
    if configuration.cascade_from != (stage.configuration if stage else None):
        what = f"{name} continues {configuration.cascade_from}, the manifest says {model.previous}"
        raise StateError(f"{archive.path}: {what}", remedy=AGAIN)
    previous = None
    if model.previous is not None:
        partitions = [fold for fold in folds or () if fold != FULL] or None
        previous = _model(archive, model.previous, partitions, device)
    return ensemble(
        opened, model.configuration, device, where=f"{name} of {archive.path}", remedy=AGAIN, previous=previous
    )


def _chosen(archive: Archive, name: str, folds: Sequence[FoldName] | None) -> list[ArchivedFold]:
    """The folds of a model that are to predict."""
    there = {fold.fold: fold for fold in archive.manifest.models[name].folds}
    if folds is not None:
        if missing := [fold for fold in folds if fold not in there]:
            raise StateError(
                f"{archive.path} holds no fold {missing[0]} of {name}", remedy=f"it holds: {', '.join(map(str, there))}"
            )
        return [there[fold] for fold in dict.fromkeys(folds)]
    return [fold for fold in there.values() if fold.fold != FULL] or list(there.values())


def _opened(archive: Archive, model: ArchivedModel, fold: ArchivedFold, device: torch.device) -> OpenedFold:
    plan, _, weights = fold_weights(archive, model, fold)
    network = build_plan_network(plan, plan.configurations[model.configuration]).to(device)
    network.load_state_dict(weights)
    return OpenedFold(plan, ready(network), fold.dtype, fold.forward_seconds)


def fold_weights(
    archive: Archive, model: ArchivedModel, fold: ArchivedFold
) -> tuple[Plan, Configuration, dict[str, Tensor]]:
    """Plan, configuration and weights of a fold; the tensors are read in place, and are those of the plan's network.

    Raises:
        StateError: see `models_in`.
    """
    plan = archive.plan(fold)
    configuration = plan.configurations.get(model.configuration)
    if configuration is None or configuration.network.name != model.network:
        what = f"has no {model.configuration} with the network {model.network}, as the manifest says"
        raise archive.container.refused(fold.plan, what)
    weights = safetensors.read(archive.container.view(fold.weights), f"{archive.path}: {fold.weights}")
    with torch.device("meta"):  # what a plan describes may be larger than any memory: it is not built before it fits
        wanted = build_plan_network(plan, configuration).state_dict()
    _require_fit(archive.container, fold.weights, weights, wanted)
    return plan, configuration, weights


def _require_fit(container: Container, name: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise StateError where tensors are not those of the plan's network, or not finite."""
    for what, keys in (("lacks", wanted.keys() - found.keys()), ("has an unknown", found.keys() - wanted.keys())):
        if keys:
            raise container.refused(name, f"{what} tensor {min(keys)!r}: it does not fit the network of the plan")
    for key, tensor in found.items():
        kinds = [f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (tensor, wanted[key])]
        if kinds[0] != kinds[1]:
            raise container.refused(name, f"has the tensor {key!r} of {kinds[0]}, the network of the plan {kinds[1]}")
        if not tensor.isfinite().all():
            raise container.refused(name, f"has values that are not finite in the tensor {key!r}")
