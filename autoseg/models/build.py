"""What a plan asks for, built: the network and the loss.

`nn` takes flat arguments and never sees a plan; this is the one place where a plan is unpacked for it. The batches of a
training are built in `autoseg.training.batches`.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from autoseg.errors import UsageError
from autoseg.nn.blocks import accept_fewer_channels, set_checkpointing, set_dropout
from autoseg.nn.networks import layout_of
from autoseg.nn.sliding_window import tile_edge
from autoseg.planning.build import build_loss, build_network
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.tables import loss_traits

BYTES_PER_ELEMENT = 4  # of a feature map in float32
TILE_BYTES = 2 * 2**30  # that the feature maps of a tile that is larger than the patch may take
TILE_GROWTH = {"cpu": 1.0}  # longest edges of tiles by device, as a multiple of the patch's; elsewhere 1


def build_plan_network(plan: Plan, configuration: Configuration) -> nn.Module:
    """The network a configuration describes, with fresh weights."""
    channels = plan.input_channels(configuration)
    network = build_network(configuration.network, in_channels=channels, out_channels=plan.heads.num_heads)
    set_checkpointing(network, configuration.checkpointing)
    set_dropout(network, plan.training.dropout)
    if configuration.prompts:
        accept_fewer_channels(network, channels)
    return network


def build_plan_loss(plan: Plan, configuration: Configuration) -> nn.Module:
    """The loss the plan names, summed over the stages under deep supervision.

    Raises:
        UsageError: there are more or fewer class weights than heads, regions under a loss or a network of
            exclusive labels, or a loss of queries for a network without them.
    """
    heads, weights, name = plan.heads, plan.training.class_weights, plan.training.loss
    if plan.training.component_weight and not loss_traits(name).cross_entropy:
        raise UsageError(
            f"training.component_weight weights the cross-entropy, which {name} does not have",
            remedy="--set training.component_weight=0, or another loss",
        )
    if heads.has_regions and loss_traits(name).predicts == "labels":
        raise UsageError(
            f"training.loss={name} predicts one label per voxel, but the labels form overlapping regions",
            remedy="set training.loss=dice_bce, or plan without regions",
        )
    _check_queries(plan, configuration)
    if weights is not None and len(weights) != heads.num_heads:
        raise UsageError(
            f"training.class_weights holds {len(weights)} weights, the network has {heads.num_heads} output channels",
            remedy="give one weight per output channel: background and labels, or regions; or null for none",
        )
    return build_loss(plan.training, heads, batch_dice=configuration.batch_dice, class_weights=weights)


def _check_queries(plan: Plan, configuration: Configuration) -> None:
    """Raise UsageError for a loss that does not fit what the network gives, or for things that are not labels."""
    name, network = plan.training.loss, configuration.network.name
    if plan.heads.has_regions and layout_of(network).predicts == "labels":
        raise UsageError(
            f"training.loss={name} predicts regions, but {network} predicts one label per voxel",
            remedy="--set training.loss=mask_classification, or train another network, such as unet",
        )
    if not loss_traits(name).queries:
        return
    if not layout_of(network).queries:
        raise UsageError(
            f"training.loss={name} reads the queries of a network, and {network} has none",
            remedy="--set training.loss=dice_ce, or plan with --network mask_transformer",
        )
    labels = plan.labels.num_labels
    if unknown := [index for index in plan.training.loss_options.get("things", ()) if index > labels]:
        raise UsageError(
            f"training.loss_options.things holds {', '.join(map(str, unknown))}; labels are numbered 1 to {labels}, "
            "in the order of the plan",
            remedy="give the numbers of labels of which each component is a segment of its own",
        )


def tile_size(configuration: Configuration, shape: Sequence[int], *, growth: float, step: float) -> tuple[int, ...]:
    """Tile to segment an image with: the patch, or larger where that leaves fewer voxels to compute.

    Args:
        shape: (Z, Y, X) of the image, as the network sees it.
        growth: tile edges are at most so many times those of the patch. Networks that know their patch size keep it,
            and so does one whose feature maps would take more than TILE_BYTES.
        step: distance of neighbouring tiles as a share of the tile.
    """
    patch, spec = configuration.patch_size, configuration.network
    bytes_of_patch = BYTES_PER_ELEMENT * configuration.elements
    if layout_of(spec.name).sees == "patch" or bytes_of_patch <= 0:
        return patch
    multiples = [math.prod(stage[axis] for stage in spec.strides) for axis in range(len(patch))]
    tile = tuple(
        tile_edge(size, edge, growth=growth, multiple=multiple, step=step)
        for size, edge, multiple in zip(shape[-len(patch) :], patch, multiples, strict=True)
    )
    fits = bytes_of_patch * math.prod(tile) / math.prod(patch) <= TILE_BYTES
    return tile if fits else patch


def tile_growth(device_type: str) -> float:
    """How many times as long as the patch tiles may be on such a device, where nobody says it."""
    return TILE_GROWTH.get(device_type, 1.0)


def configuration_mirror_axes(
    plan: Plan, configuration: Configuration, only: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Mirror axes as spatial axes of the patch: the plan counts (Z, Y, X), a 2-D patch has only (Y, X).

    Args:
        only: the ones to keep, counted as the plan does; None: all.
    """
    skipped = 3 - configuration.dims
    kept = [axis for axis in plan.training.mirror_axes if only is None or axis in only]
    return tuple(axis - skipped for axis in kept if axis >= skipped)


def head_probabilities(logits: Tensor, has_regions: bool) -> Tensor:
    """Probabilities of logits (B, K, *s): softmax over labels, or a sigmoid per region."""
    return logits.sigmoid() if has_regions else logits.softmax(dim=1)
