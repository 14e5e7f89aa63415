"""Begin a training with the weights of a trained model, even of another dataset: take what fits, and say what did.

Channels and labels are matched by name, whatever their order and their case. Decisions, with their reasons:

- A channel that the model did not have begins with weights of 0 in the first convolution. The network then does at
  first exactly what the model did, and learns what the channel adds. A mean of the known channels would be right only
  for a channel that looks like them: T2 beside T1 does not, and the segmentation that a cascade sees even less.
- Where no channel is known by name, each is the mean of all the model had: edges are edges in any image.
- A head that the model did not have begins as in any new network.
- The averaged weights are taken where the model has them: those it predicts with.
- 2-D weights are not stretched to 3-D, nor kernels to other sizes. What does not fit is new, and listed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.lines import LOG
from autoseg.models.archive import is_archive, open_archive
from autoseg.models.build import build_plan_network
from autoseg.models.checkpoint import NEWEST
from autoseg.models.opening import fold_weights
from autoseg.models.same_training import Contents
from autoseg.models.versions import Checkpoint, read_checkpoint
from autoseg.models.weight_transfer import Origins, Transfer, differing_axes, transfer
from autoseg.planning.plan import Configuration, Plan
from autoseg.plugins import require_plugins
from autoseg.records import from_plain, load
from autoseg.workspace import Workspace, begun_folds

MIN_SHARE = 0.1  # of the parameters that could fit
SPACING_TOLERANCE = 1.25  # voxels that differ by more than this factor along an axis are worth a note


@dataclass(frozen=True)
class Source:
    """A trained network to begin with."""

    path: Path  # of the checkpoint
    plan: Plan
    configuration_name: str
    weights: dict[str, Tensor]  # those it predicts with, by name
    trained_on: frozenset[str]  # case ids
    contents: Contents  # of its cases
    described: str  # what it is, for the log

    @property
    def configuration(self) -> Configuration:
        return self.plan.configurations[self.configuration_name]


def begin_from(
    path: Path,
    network: nn.Module,
    plan: Plan,
    configuration_name: str,
    *,
    held_out: Sequence[str] = (),
    own: Path | None = None,
    contents: Contents | None = None,
) -> Path:
    """Copy into a fresh network whatever fits of a trained one, and log what was kept and what is new.

    Args:
        path: a checkpoint, the folder of a fold, of a model (its first finished fold) or of a workspace (the model of
            its recommended configuration), or an exported model (the first fold it predicts with).
        network: as `build_plan_network` makes it of the plan and its configuration, on any device.
        held_out: cases that will be scored: a warning is printed if the model was trained on some of them.
        own: folder of the fold that begins: of its own model, a fold takes the weights it had itself, if it was
            finished.
        contents: of the held-out cases: by them, such cases are known again under any id.

    Returns:
        The checkpoint whose weights were taken.

    Raises:
        StateError: there is no such model, it is damaged, it has another number of dimensions, or almost nothing fits.
    """
    source = open_source(path, own)
    configuration = plan.configurations[configuration_name]
    _require_same_dims(source, plan, configuration_name)
    channel_axes, head_axes = _axes(network, plan, configuration)
    channels, heads = _channel_origins(source, plan, configuration), _head_origins(source, plan)
    done = transfer(
        source.weights, network, channel_axes=channel_axes, head_axes=head_axes, channels=channels, heads=heads
    )
    first_layer = all(name in source.weights for name in channel_axes)  # all that follows was learnt on top of it
    if done.share < MIN_SHARE or not first_layer:
        what = f"{done.share:.0%} of the parameters fit" + ("" if first_layer else ", the first layer does not")
        raise _too_different(source, configuration, configuration_name, what)
    LOG.info(f"initialised from {source.path} ({source.described})")
    there, here = _inputs(source.plan, source.configuration), _inputs(plan, configuration)
    LOG.info("  channels: " + _assignment(here, there, channels, "initial weights 0"))
    LOG.info("  output channels: " + _assignment(_heads(plan), _heads(source.plan), heads, "initialised at random"))
    warnings = _leakage(source, plan, held_out, contents or {})
    for line in (*_parameters(done), *_notes(source, plan, configuration)):
        LOG.info(f"  {line}")
    for line in warnings:
        LOG.warning(f"  {line}")
    return source.path


def open_source(path: Path, own: Path | None = None) -> Source:
    """Open the model that `path` means; `own`: the folder of a fold that is preferred (see `begin_from`).

    Raises:
        StateError: nothing is there that was trained, or it cannot be read.
    """
    if is_archive(path):
        return _source_in_archive(path)
    file = _as_checkpoint(path)
    if file is not None:
        return _source(file, read_checkpoint(file))
    folder = _model_folder(path)
    folds = [found / NEWEST for found in begun_folds(folder).values()]
    if own is not None:
        folds.sort(key=lambda file: file.parent.resolve() != own.resolve())
    for file in folds:
        state = read_checkpoint(file)
        if state.finished:
            return _source(file, state)
    what = f"no fold in {folder} is trained to the end" if folds else f"{folder} holds no trained fold"
    raise StateError(
        what, remedy="name a model with a finished fold, or the folder of a fold to use its current weights"
    )


def match(names: Sequence[str], there: Sequence[str]) -> list[int | None]:
    """Place of each name among those `there`, or None: equal ones first, then those equal but for case; none twice."""
    free = list(range(len(there)))
    places: list[int | None] = [None] * len(names)
    for as_compared in (str, str.casefold):
        for i, name in enumerate(names):
            equal = [place for place in free if as_compared(there[place]) == as_compared(name)]
            if places[i] is None and equal:
                places[i] = equal[0]
                free.remove(equal[0])
    return places


def _as_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path to one, or to the folder of a fold, means; None for other folders."""
    if not path.exists():
        raise StateError(
            f"{path} does not exist", remedy="name a checkpoint, or the folder of a fold, a model or a workspace"
        )
    if path.is_file():
        return path
    return path / NEWEST if (path / NEWEST).exists() else None


def _model_folder(path: Path) -> Path:
    """The folder of the model that is recommended in a workspace; any other folder as it is."""
    workspace = Workspace(path)
    if not workspace.plan.exists():
        return path
    name, configuration = load(Plan, workspace.plan).configuration(None)
    folder = workspace.model(name, configuration.network.name)
    models = [workspace.model(*model) for model in workspace.models()]
    if models and folder not in models:
        raise StateError(
            f"{folder.name}, which the plan in {path} recommends, is not trained",
            remedy="name one that is: " + ", ".join(map(str, models)),
        )
    return folder


def _source(path: Path, state: Checkpoint) -> Source:
    require_plugins(state.plugins, path)
    plan, name = from_plain(Plan, state.plan, f"{path}: plan"), state.configuration
    weights = dict(state.network)
    if state.average is not None:
        parameters = dict(_without_storage(plan, plan.configurations[name]).named_parameters())
        weights |= dict(zip(parameters, state.average, strict=True))
    if broken := [key for key, tensor in weights.items() if not tensor.isfinite().all()]:
        raise StateError(
            f"{path} holds weights that are not finite, the first in {broken[0]}", remedy="use another model"
        )
    network = plan.configurations[name].network.name
    described = f"{name}-{network}, fold {state.fold}, {state.position.step} steps"
    described += ", averaged" if state.average is not None else ""
    described += "" if state.finished else ", not trained to the end"
    return Source(path, plan, name, weights, frozenset(state.train), state.contents, described)


def _source_in_archive(path: Path) -> Source:
    archive = open_archive(path)
    name = archive.manifest.predicts[0]
    model = archive.manifest.models[name]
    fold = model.folds[0]
    plan, _, weights = fold_weights(archive, model, fold)
    described = f"{name}, fold {fold.fold}, {fold.steps} steps, exported"
    return Source(path, plan, model.configuration, weights, frozenset(), {}, described)


def _without_storage(plan: Plan, configuration: Configuration) -> nn.Module:
    """The network of a configuration, to look at its names and shapes."""
    with torch.device("meta"):
        return build_plan_network(plan, configuration)


def _axes(network: nn.Module, plan: Plan, configuration: Configuration) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor -> axis of the input channels, and of the heads, as one channel more and one head more show them."""
    one_more = replace(plan, channels=(*plan.channels, "one more"))
    channels = differing_axes(network, _without_storage(one_more, configuration))
    regions, number = plan.heads.has_regions, plan.heads.num_heads
    labels = LabelSet({str(i): i for i in range(1, number + 1 + regions)})  # softmax has the background besides
    loss = "dice_bce" if regions else plan.training.loss
    one_more = replace(plan, labels=labels, training=replace(plan.training, loss=loss))
    # where a cascade sees one channel per label, its first layer differs here, too: that goes by the channels
    return channels, differing_axes(network, _without_storage(one_more, configuration))


def _inputs(plan: Plan, configuration: Configuration) -> list[str]:
    """Names of what a network sees: channels of images, labels of the stage before a cascade, prompts."""
    return [
        *plan.channels,
        *(f"segmentation of {label}" for label in _previous(plan, configuration)),
        *_prompts(plan, configuration),
    ]


def _prompts(plan: Plan, configuration: Configuration) -> list[str]:
    labels = list(plan.labels.values)
    if configuration.prompts is None:
        return []
    return [*(f"prompts of {label}" for label in ("background", *labels)), *(f"mask of {label}" for label in labels)]


def _previous(plan: Plan, configuration: Configuration) -> list[str]:
    return list(plan.labels.values) if configuration.cascade_from else []


def _heads(plan: Plan) -> list[str]:
    return list(plan.heads.regions) if plan.heads.has_regions else ["background", *plan.heads.values]


def _channel_origins(source: Source, plan: Plan, configuration: Configuration) -> Origins:
    there = source.plan.channels
    places = match(plan.channels, there)
    if all(place is None for place in places):
        images: Origins = [tuple(range(len(there)))] * len(places)
    else:
        images = _single(places)
    before = _previous(source.plan, source.configuration)
    stage = _single(match(_previous(plan, configuration), before), offset=len(there))
    prompts = _prompts(source.plan, source.configuration)
    return [
        *images, *stage, *_single(match(_prompts(plan, configuration), prompts), offset=len(there) + len(before))
    ]  # fmt: skip


def _head_origins(source: Source, plan: Plan) -> Origins:
    return _single(match(_heads(plan), _heads(source.plan)))


def _single(places: Iterable[int | None], offset: int = 0) -> Origins:
    return [() if place is None else (place + offset,) for place in places]


def _assignment(here: Sequence[str], there: Sequence[str], origins: Origins, otherwise: str) -> str:
    """Say where channels or heads come from: "FLAIR kept; T2 new (weights of 0); T1 left behind"."""
    kept, others, new = [], {}, []
    for name, origin in zip(here, origins, strict=True):
        if not origin:
            new.append(name)
        elif len(origin) == 1 and there[origin[0]].casefold() == name.casefold():
            kept.append(name)
        else:
            others[name] = ", ".join(there[i] for i in origin)
    used = {i for origin in origins for i in origin}
    left = [name for i, name in enumerate(there) if i not in used]
    parts = [f"{', '.join(kept)} kept"] if kept else []
    parts += [f"{name} new (as the mean of {names})" for name, names in others.items()]
    parts += [f"{', '.join(new)} new ({otherwise})"] if new else []
    parts += [f"{', '.join(left)} not used"] if left else []
    return "; ".join(parts)


def _parameters(done: Transfer) -> list[str]:
    """Lines that count what was kept, adapted and new, and name the parts that are new."""
    counts = {"kept": done.kept, "adapted": done.adapted, "new": done.new}
    lines = ["parameters: " + ", ".join(f"{sum(part.values()):,} {how}" for how, part in counts.items() if part)]
    if missing := _parts(name for name in done.new if name not in done.misfits):
        lines.append(f"new, absent from the model: {', '.join(missing)}")
    if done.misfits:
        name, (there, here) = next(iter(done.misfits.items()))
        example = f"{name} is {there} there, {here} here"
        lines.append(f"new, of a different shape in the model: {', '.join(_parts(done.misfits))} ({example})")
    return lines


def _parts(names: Iterable[str]) -> list[str]:
    """Stages that tensors belong to: encoder.4 of encoder.4.0.0.weight, head of head.weight."""
    return list(dict.fromkeys(".".join(name.split(".")[:-1][:2]) for name in names))


def _notes(source: Source, plan: Plan, configuration: Configuration) -> list[str]:
    """What the weights were not trained for: other voxels, other intensities, heads of another kind."""
    there, here = source.configuration.spacing, configuration.spacing
    notes = []
    if any(max(a / b, b / a) > SPACING_TOLERANCE for a, b in zip(there, here, strict=True)):
        mm = (" x ".join(f"{edge:.3g}" for edge in spacing) for spacing in (there, here))
        notes.append("note: the model was trained on voxels of {} mm, here they have {} mm".format(*mm))
    for name, normalized, place in zip(
        plan.channels, plan.normalization, match(plan.channels, source.plan.channels), strict=True
    ):
        if place is not None and (scheme := source.plan.normalization[place].scheme) != normalized.scheme:
            notes.append(f"note: the model was trained with {name} normalised by {scheme}, here by {normalized.scheme}")
    before, now = (("exclude each other", "may overlap")[p.heads.has_regions] for p in (source.plan, plan))
    if before != now:
        notes.append(f"note: the model's labels {before}, here they {now}")
    return notes


def _leakage(source: Source, plan: Plan, held_out: Sequence[str], contents: Contents) -> list[str]:
    """A warning where scores of held-out cases would be too good.

    Cases are the same where their images are, whatever they and the dataset are called. Where that is not known, equal
    ids mean something in a dataset of the same name alone.
    """
    learnt = {parts[0] for case, parts in source.contents.items() if case in source.trained_on and parts and parts[0]}
    if learnt and all(case in contents and contents[case][0] for case in held_out):
        seen = sorted(case for case in held_out if contents[case][0] in learnt)
    else:
        seen = sorted(source.trained_on.intersection(held_out)) if source.plan.dataset == plan.dataset else []
    if not seen:
        return []
    cases = f"{len(seen)} of this fold's {len(held_out)} held-out cases (for instance {seen[0]})"
    return [f"WARNING: the model was trained on {cases}: their scores will be too high"]


def _require_same_dims(source: Source, plan: Plan, configuration_name: str) -> None:
    there, here = source.configuration.dims, plan.configurations[configuration_name].dims
    if there == here:
        return
    fitting = [name for name, configuration in plan.configurations.items() if configuration.dims == there]
    raise StateError(
        f"{source.path} is a {there}-D network ({source.configuration_name}), {configuration_name} is {here}-D: "
        "their kernels are incompatible",
        remedy=f"name a model of a {here}-D configuration" + (f", or train -c {fitting[0]}" if fitting else ""),
    )


def _too_different(source: Source, configuration: Configuration, configuration_name: str, what: str) -> StateError:
    there, here = vars(source.configuration.network), vars(configuration.network)
    differing = [f"{key} ({there[key]} there, {here[key]} here)" for key in here if there[key] != here[key]]
    return StateError(
        f"{source.path} is too different to initialise from: {what}. Its {', '.join(differing)} "
        f"{'differs' if len(differing) == 1 else 'differ'}",
        remedy="name a model of the same network, or train its network here: --network "
        f"{there['name']}, --set configurations.{configuration_name}.network.features=...",
    )
