"""DeepLabv3+: a residual encoder that stops shrinking early, parallel dilated convolutions, a light decoder.

Everything follows from the plan's stages:

- Strides beyond `output_stride` become dilation, per axis, so that the coarsest map still tells places apart.
- The pyramid's rates are multiples of that dilation. A planned bottleneck has edges of 4 to 7 voxels; at dilation d the
  map has d times as many, and kernels at rates 1d, 2d, 3d span about half of it, all of it and more, as those at rates
  6, 12, 18 span the 33 x 33 map of the paper.
- The decoder joins at stage 2 (stride 4), or at the next to last stage of a shallower plan.

The paper's image pooling is a constant map beside the others, normalised over the batch. Instance normalisation takes a
constant away, so here the pooled features are projected on their own and added after it.

Source: Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation".
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import (
    CONVOLUTIONS,
    NEGATIVE_SLOPE,
    ConvBlock,
    InstanceNorm,
    Stage,
    conv_stage,
    init_weights,
    residual_stage,
    resize_linearly,
)
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import encode
from autoseg.rules import between, entries

DECODER_STAGE = 2  # the paper's low-level features: stride 4


class DeepLab(nn.Module):
    """DeepLabv3+ with a residual encoder; logits of full resolution alone.

    Args:
        blocks: residual blocks, of two convolutions each, per encoder stage.
        decoder_blocks: convolutions of the decoder; only the entry of the stage it joins counts.
        output_stride: the most an axis shrinks; further strides become dilation.
        rates: dilations of the pyramid's branches, in units of the last stage's own dilation.

    The other arguments are those of `UNet`. Maps (B, C, *s) to a list of one map of logits (B, K, *s).
    """

    layout = Layout(blocks=(1, 2), decoder_blocks=2, sees="patch")

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
        output_stride: Annotated[int, between(1, 2**14)] = 16,
        rates: Annotated[tuple[Annotated[int, between(1, 64)], ...], entries(1, 16)] = (1, 2, 3),
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        ones = (1,) * dims
        self.deep_supervision = True  # the interface's; there is one map of logits either way
        self.stem = conv_stage(dims, in_channels, features[0], kernel_sizes[0], ones, 1)
        kept, dilations = limit_strides(strides, output_stride)
        incoming = [features[0], *features[:-1]]
        self.encoder = nn.ModuleList(
            residual_stage(dims, *stage)
            for stage in zip(incoming, features, kernel_sizes, kept, blocks, dilations, strict=True)
        )
        self.joins = min(DECODER_STAGE, len(features) - 2)
        width = features[self.joins]
        low_level = max(1, width // 4)  # few, lest they outweigh the pyramid
        branches = [tuple(rate * d for d in dilations[-1]) for rate in rates]
        self.pyramid = Pyramid(dims, features[-1], width, kernel_sizes[-1], branches)
        self.low_level = conv_stage(dims, width, low_level, ones, ones, 1)
        self.decoder = conv_stage(
            dims, width + low_level, width, kernel_sizes[self.joins], ones, decoder_blocks[self.joins]
        )
        self.head = CONVOLUTIONS[dims](width, out_channels, 1)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        stages = encode(self.encoder, self.stem(image))
        fine = self.low_level(stages[self.joins])
        coarse = resize_linearly(self.pyramid(stages[-1]), fine.shape[2:])
        logits = self.head(self.decoder(torch.cat((coarse, fine), dim=1)))
        return [resize_linearly(logits, image.shape[2:])]


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: one map seen at several rates, and as a whole.

    A 1x1 convolution and one convolution per rate stand side by side and are projected together; the projected mean of
    the map is added. Maps (B, Cin, *s) to (B, Cout, *s); a single voxel keeps its signal through the mean.
    """

    def __init__(
        self, dims: int, cin: int, cout: int, kernel_size: Sequence[int], rates: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        ones = (1,) * dims
        self.branches = nn.ModuleList([Stage(ConvBlock(dims, cin, cout, ones, ones))])
        self.branches.extend(Stage(ConvBlock(dims, cin, cout, kernel_size, ones, rate)) for rate in rates)
        self.project = nn.Sequential(CONVOLUTIONS[dims](len(self.branches) * cout, cout, 1), InstanceNorm(cout))
        self.pooled = CONVOLUTIONS[dims](cin, cout, 1)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True, dtype=torch.float32)
        places = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return self.activation(places + self.pooled(mean))


def limit_strides(
    strides: Sequence[Sequence[int]], output_stride: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Strides whose product stays within `output_stride` on every axis, and the dilations that stand in for the rest.

    >>> limit_strides([(1, 1), (1, 2), (2, 2), (2, 2)], 4)
    ([(1, 1), (1, 2), (2, 2), (2, 1)], [(1, 1), (1, 1), (1, 1), (1, 2)])
    """
    reached = [1] * len(strides[0])
    dilation = [1] * len(strides[0])
    kept, dilations = [], []
    for stride in strides:
        step = [s if r * s <= output_stride else 1 for s, r in zip(stride, reached, strict=True)]
        reached = [r * s for r, s in zip(reached, step, strict=True)]
        dilation = [d * s // k for d, s, k in zip(dilation, stride, step, strict=True)]
        kept.append(tuple(step))
        dilations.append(tuple(dilation))
    return kept, dilations
