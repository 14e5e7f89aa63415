"""The fully convolutional network of 2015: scores at several stages, added up, and interpolated to full resolution.

The baseline of everything that came after: no decoder, no features from fine stages, only their scores. The encoder is
the plain one, in place of VGG; interpolation is linear and fixed, where the paper begins with it and lets it learn.

Source: Long, Shelhamer and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation".
"""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from autoseg.nn.blocks import init_weights, resize_linearly
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import conv_encoder, encode, heads
from autoseg.rules import between


class FCN(nn.Module):
    """Encoder with scores at its coarsest stages; logits of full resolution alone.

    Args:
        decoder_blocks: not used; there is no decoder.
        scored_stages: how many stages have scores, counted from the coarsest (FCN-8s: 3); at most all.

    The other arguments are those of `UNet`. Maps (B, C, *s) to a list of one map of logits (B, K, *s).
    """

    layout = Layout(decoder_blocks=1)

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        scored_stages: Annotated[int, between(1, 16)] = 3,
    ) -> None:
        super().__init__()
        self.deep_supervision = True  # the interface's; there is one map of logits either way
        self.encoder = conv_encoder(in_channels, features, strides, kernel_sizes, blocks)
        self.scores = heads(len(strides[0]), features[-scored_stages:], out_channels)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        stages = encode(self.encoder, image)[-len(self.scores) :]
        logits = self.scores[-1](stages[-1])
        for i in reversed(range(len(stages) - 1)):
            logits = self.scores[i](stages[i]) + resize_linearly(logits, stages[i].shape[2:])
        return [resize_linearly(logits, image.shape[2:])]
