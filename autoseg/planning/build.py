"""Build the network and the loss that a plan describes: the one place that unpacks them for `nn`.

Training and prediction build them to run them (by `models.build`), the planner to trace the cost of a step (`cost`). So
this module is below both, and imports torch only when something is built, because other commands also read plans. `nn`
takes flat arguments and never sees a plan.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.imaging.labels import LabelSet
from autoseg.planning.plan import NetworkSpec, Training

if TYPE_CHECKING:
    from torch import nn


def build_network(spec: NetworkSpec, *, in_channels: int, out_channels: int) -> "nn.Module":
    """The network of a plan, with fresh weights: from images of C channels to K logits per voxel."""
    from autoseg.nn import networks

    return networks.build_network(
        spec.name,
        in_channels=in_channels,
        out_channels=out_channels,
        features=spec.features,
        strides=spec.strides,
        kernel_sizes=spec.kernel_sizes,
        blocks=spec.blocks,
        decoder_blocks=spec.decoder_blocks,
        options=spec.options,
    )


def build_loss(
    training: Training, heads: LabelSet, *, batch_dice: bool, class_weights: Sequence[float] | None
) -> "nn.Module":
    """The loss of a plan, summed over the stages under deep supervision.

    Args:
        heads: the labels as the network predicts them (`Training.heads`).
        class_weights: of each head in the cross-entropy; None for none, which costs as much per step.
    """
    from autoseg.nn import losses

    loss = losses.build_loss(
        training.loss,
        regions=heads.regions_as_indices,
        ignore_index=heads.ignore_index,
        class_weights=class_weights,
        batch_dice=batch_dice,
        options=training.loss_options,
    )
    return losses.DeepSupervision(loss)
