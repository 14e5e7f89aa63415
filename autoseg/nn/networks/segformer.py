"""SegFormer: a hierarchical transformer encoder whose attention looks at few keys, and a decoder of linear layers.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021; written
for 2-D and 3-D. What it takes from the plan, and where that leads away from the paper:

- The first embedding makes up for the first stages of the plan (`embedding_stage`): it reduces the image by 4 per axis,
  the paper's figure, in plans of five or more stages, by less in shallower ones. Each later stage is one of the plan's.
- Keys are means over blocks of tokens, of a size chosen so that `keys` bounds their number for any image. The paper's
  fixed reductions (8, 4, 2, 1) are learnt convolutions, tied to one image size.
- The decoder sums what it makes of the stages. The paper concatenates, and mixes with one more linear layer; without a
  non-linearity between, that would be the same sum, and here the non-linearity stands before it.
- The decoder normalises each sample, not a batch, which may hold two patches here.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from autoseg.nn.attention import (
    ChannelNorm,
    HeadFeatures,
    MlpRatio,
    MultiHeadAttention,
    head_count,
    init_transformer,
    transformer_stage,
)
from autoseg.nn.blocks import CONVOLUTIONS, NEGATIVE_SLOPE, AveragePool, InstanceNorm, resize_linearly, same_convolution
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import encode
from autoseg.rules import between

MAX_EMBEDDING_STRIDE = 4  # per axis


class SegFormer(nn.Module):
    """Transformer encoder at falling resolutions, all-MLP decoder.

    Args:
        in_channels: channels C of the image.
        out_channels: output channels K.
        features, strides, kernel_sizes, blocks: one entry per stage. Those of stages before `embedding_stage(strides)`
            are not used, except for their strides; blocks are transformer blocks.
        decoder_blocks: not used; the decoder has no stages.
        head_features: channels per attention head.
        mlp_ratio: width of the hidden layer of a feed-forward over its stage's width.
        keys: greatest number of keys that a token looks at.

    The forward pass maps (B, C, *patch) to a list of one map of logits (B, K, *patch), interpolated linearly from the
    resolution of the first embedding. There is no deep supervision.
    """

    layout = Layout(blocks=(2,), decoder_blocks=1, sees="patch", learning_rate=5e-4)

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
        head_features: HeadFeatures = 32,
        mlp_ratio: MlpRatio = 4,
        keys: Annotated[int, between(1, 2**16)] = 512,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        self.deep_supervision = True
        first = embedding_stage(strides)
        embedding = tuple(math.prod(along) for along in zip(*strides[: first + 1], strict=True))
        steps = [embedding, *strides[first + 1 :]]
        widths = list(features[first:])
        self.encoder = nn.ModuleList(
            transformer_stage(
                overlapping_embedding(dims, cin, cout, kernel, step),
                cout,
                [
                    (
                        ReducedAttention(dims, cout, head_count(cout, head_features), keys),
                        MixFeedForward(dims, cout, mlp_ratio, kernel),
                    )
                    for _ in range(count)
                ],
            )
            for cin, cout, kernel, step, count in zip(
                [in_channels, *widths[:-1]], widths, kernel_sizes[first:], steps, blocks[first:], strict=True
            )
        )
        self.project = nn.ModuleList(
            nn.Sequential(CONVOLUTIONS[dims](width, widths[-1], 1), nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
            for width in widths
        )
        self.mix = nn.Sequential(InstanceNorm(widths[-1]), nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
        self.head = CONVOLUTIONS[dims](widths[-1], out_channels, 1)
        self.apply(init_transformer)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = encode(self.encoder, image)
        total, *coarser = (project(x) for project, x in zip(self.project, maps, strict=True))
        for x in coarser:
            total = total + resize_linearly(x, total.shape[2:])
        return [resize_linearly(self.head(self.mix(total)), image.shape[2:])]


def embedding_stage(strides: Sequence[Sequence[int]]) -> int:
    """Stage of the plan at whose resolution the encoder begins.

    The deepest that is reduced by no more than 4 along any axis and by no more than half of the plan's steps down: the
    coarser half is left to the transformer, and small patches keep their detail.

    >>> embedding_stage([(1, 1)] + [(2, 2)] * 5), embedding_stage([(1, 1)] + [(2, 2)] * 3)
    (2, 1)
    """
    reduced = itertools.accumulate(strides, lambda done, step: [d * s for d, s in zip(done, step, strict=True)])
    allowed = sum(max(strides_so_far) <= MAX_EMBEDDING_STRIDE for strides_so_far in reduced) - 1
    return min(allowed, (len(strides) - 1) // 2)


def overlapping_embedding(
    dims: int, cin: int, cout: int, kernel_size: Sequence[int], stride: Sequence[int]
) -> nn.Module:
    """Convolution whose taps reach over neighbouring patches: 2 stride - 1 of them per axis, or the plan's if more."""
    taps = tuple(max(2 * s - 1, k) for s, k in zip(stride, kernel_size, strict=True))
    return same_convolution(dims, cin, cout, taps, stride)


class ReducedAttention(nn.Module):
    """Every token looks at means over blocks of tokens, at most `keys` of them.

    No axis of the grid of keys is longer than the root of `keys` (8 per axis for 512 in 3-D, 22 in 2-D); a block's edge
    is the least that achieves this, so that small maps are not reduced at all. Maps (B, *s, C) to the same shape.

    Sources: SegFormer, efficient self-attention; Wang et al., "PVT v2", 2022, linear spatial reduction (means instead
    of a convolution, which fits any size).
    """

    def __init__(self, dims: int, channels: int, heads: int, keys: int) -> None:
        super().__init__()
        self.longest = next(edge for edge in itertools.count(1) if (edge + 1) ** dims > keys)
        self.reduce = nn.Linear(channels, channels)
        self.norm = ChannelNorm(channels)
        self.attention = MultiHeadAttention(channels, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.norm(self.reduce(self.averaged(tokens)))
        return self.attention(tokens.flatten(1, -2), context.flatten(1, -2)).view(tokens.shape)

    def received(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """What tokens of these weights (B, *s) look at: (B, *s), of the same sum; evenly over the block of a key."""
        tokens = tokens.float()
        with torch.autocast(tokens.device.type, enabled=False):
            context = self.norm(self.reduce(self.averaged(tokens)))
        got = self.attention.received(weights.flatten(1), tokens.flatten(1, -2), context.flatten(1, -2))
        with torch.enable_grad():  # the transpose of taking means is their gradient
            below = torch.zeros_like(weights, requires_grad=True)
            means = self.averaged(below[..., None])
            (spread,) = torch.autograd.grad(means, below, got.view(means.shape))
        return spread

    def averaged(self, tokens: Tensor) -> Tensor:
        """Means of (B, *s, C) over blocks; the last block of an axis may be cut short."""
        block = [math.ceil(edge / self.longest) for edge in tokens.shape[1:-1]]
        if max(block) == 1:
            return tokens
        return AveragePool(block)(tokens.movedim(-1, 1)).movedim(1, -1)


class MixFeedForward(nn.Module):
    """Feed-forward with a depth-wise convolution before its GELU, whose zero padding tells tokens where they are."""

    def __init__(self, dims: int, channels: int, ratio: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        hidden = ratio * channels
        padding = tuple(k // 2 for k in kernel_size)
        self.expand = nn.Linear(channels, hidden)
        self.mix = CONVOLUTIONS[dims](hidden, hidden, tuple(kernel_size), padding=padding, groups=hidden)
        self.activate = nn.GELU()
        self.project = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mix(self.expand(tokens).movedim(-1, 1)).movedim(1, -1)
        return self.project(self.activate(mixed))
