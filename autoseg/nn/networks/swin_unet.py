"""Swin U-Net: a U-Net whose stages are shifted-window transformers, with convolutions at full resolution.

Sources: Liu et al., "Swin Transformer", 2021; Cao et al., "Swin-Unet", 2021; Hatamizadeh et al., "Swin UNETR", 2022
(convolutions at full resolution). Written for 2-D and 3-D, for any size of map:

- A window holds about `window_tokens` tokens: 4 x 4 x 4 in 3-D, 8 x 8 in 2-D, 1 x 8 x 8 where the plan convolves no
  slices together. Powers of two divide the maps of plans that halve; the papers' 7 would pad them.
- A map that a window does not divide is cut into as many equal windows as it would need, which pads it by less than one
  voxel per window. One that fits into a window is one window.
- Odd blocks shift their windows by half, along axes of more than one window. Attention is masked between voxels that
  lie side by side only because the map was rolled or padded.

From the image to the first embedding and back: stage 0 is a convolutional stage at full resolution; its map is embedded
by the plan's first stride, and joins the last decoder stage as its skip.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nn.attention import (
    FeedForward,
    HeadFeatures,
    MlpRatio,
    MultiHeadAttention,
    head_count,
    init_transformer,
    transformer_stage,
    truncated_normal_,
)
from autoseg.nn.blocks import CONVOLUTIONS, Stage, conv_stage
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import decode, encode, heads, upsamplings
from autoseg.rules import between


class SwinUNet(nn.Module):
    """Encoder and decoder of shifted-window transformer stages, skip connections, heads on every decoder stage.

    Args:
        in_channels: channels C of the image.
        out_channels: output channels K.
        features, strides, kernel_sizes, blocks: one entry per stage. Blocks of stage 0 are convolutions, of all others
            transformer blocks, which look along the axes that the plan would convolve.
        decoder_blocks: blocks per decoder stage, one entry fewer; convolutions at stage 0.
        head_features: channels per attention head.
        mlp_ratio: width of the hidden layer of a feed-forward over its stage's width.
        window_tokens: greatest number of tokens per window.

    The forward pass maps (B, C, *patch) to a list of logits (B, K, *patch_i), finest first and at full resolution: one
    per decoder stage while `deep_supervision` is on, otherwise only the finest.
    """

    layout = Layout(blocks=(2,), decoder_blocks=2, sees="patch", learning_rate=5e-4)

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
        window_tokens: Annotated[int, between(1, 4096)] = 64,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        ones = (1,) * dims
        self.deep_supervision = True

        def swin_stage(stage: int, entry: nn.Module, count: int) -> Stage:
            width, window = features[stage], window_extent(kernel_sizes[stage], window_tokens)
            parts = (
                (
                    WindowAttention(width, head_count(width, head_features), window, shifted=i % 2 == 1),
                    FeedForward(width, mlp_ratio),
                )
                for i in range(count)
            )
            return transformer_stage(entry, width, parts)

        self.encoder = nn.ModuleList([conv_stage(dims, in_channels, features[0], kernel_sizes[0], ones, blocks[0])])
        for i in range(1, len(features)):
            self.encoder.append(swin_stage(i, PatchMerging(features[i - 1], features[i], strides[i]), blocks[i]))
        self.up = upsamplings(features, strides)
        finest = conv_stage(dims, 2 * features[0], features[0], kernel_sizes[0], ones, decoder_blocks[0])
        self.decoder = nn.ModuleList([finest])
        for i in range(1, len(decoder_blocks)):
            joined = CONVOLUTIONS[dims](2 * features[i], features[i], 1)  # what comes from below, and the skip
            self.decoder.append(swin_stage(i, joined, decoder_blocks[i]))
        self.heads = heads(dims, features[:-1], out_channels)
        self.apply(init_transformer)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = encode(self.encoder, image)
        return decode(x, skips, self.up, self.decoder, self.heads, every_stage=self.deep_supervision)


class PatchMerging(nn.Module):
    """Join the voxels of each patch of `stride` into one, linearly: (B, Cin, *s) to (B, Cout, *ceil(s / stride)).

    The map is padded with zeros at its ends up to whole patches.
    """

    def __init__(self, cin: int, cout: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.join = CONVOLUTIONS[len(stride)](cin, cout, self.stride, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-edge % step for edge, step in zip(x.shape[2:], self.stride, strict=True)]
        return self.join(F.pad(x, _at_ends(missing)) if any(missing) else x)


def window_extent(kernel_size: Sequence[int], window_tokens: int) -> tuple[int, ...]:
    """Window of at most `window_tokens` tokens, equal along the axes whose kernel is wider than 1, and 1 elsewhere.

    >>> window_extent((3, 3, 3), 64), window_extent((1, 3, 3), 64), window_extent((3, 3), 49)
    ((4, 4, 4), (1, 8, 8), (7, 7))
    """
    axes = max(1, sum(kernel > 1 for kernel in kernel_size))
    edge = next(edge for edge in itertools.count(1) if (edge + 1) ** axes > window_tokens)
    return tuple(edge if kernel > 1 else 1 for kernel in kernel_size)


class WindowAttention(nn.Module):
    """Tokens look at those of their own window; a learnt bias depends on how far apart the two are.

    Maps (B, *s, C) to the same shape, whatever s. With `shifted` the windows begin half a window later.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, ...], shifted: bool) -> None:
        super().__init__()
        self.window = window  # the largest; a map's own may be smaller
        self.shifted = shifted
        self.attention = MultiHeadAttention(channels, heads)
        self.offset_bias = nn.Parameter(torch.empty(heads, math.prod(2 * edge - 1 for edge in window)))
        truncated_normal_(self.offset_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        cut = Cut.of(tokens.shape[1:-1], self.window, shifted=self.shifted)
        inside = cut.apart(tokens)
        return cut.together(self.attention(inside, inside, self._bias(tokens, cut)), tokens.shape[0])

    def received(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """What tokens of these weights (B, *s) look at: (B, *s), of the same sum."""
        cut = Cut.of(tokens.shape[1:-1], self.window, shifted=self.shifted)
        inside = cut.apart(tokens)
        got = self.attention.received(
            cut.apart(weights[..., None])[..., 0], inside, inside, self._bias(tokens, cut)
        )  # fmt: skip
        return cut.together(got[..., None], tokens.shape[0])[..., 0]

    def _bias(self, tokens: Tensor, cut: "Cut") -> Tensor:
        """What is added to the scores: (1 or B * windows, heads, N, N)."""
        bias = self.offset_bias[:, offset_index(cut.window, self.window, tokens.device)][None]
        if any(cut.shift) or any(cut.missing):
            apart = ~same_region(cut.shape, cut.window, cut.missing, cut.shift, tokens.device)
            bias = bias.to(tokens.dtype).masked_fill(apart[:, None], -torch.inf).repeat(tokens.shape[0], 1, 1, 1)
        return bias


@dataclass(frozen=True)
class Cut:
    """How a map is cut into windows. One entry per axis."""

    shape: tuple[int, ...]  # of the map
    window: tuple[int, ...]
    missing: tuple[int, ...]  # voxels that are padded at the end
    shift: tuple[int, ...]  # voxels by which the windows begin later

    @classmethod
    def of(cls, shape: Sequence[int], widest: Sequence[int], *, shifted: bool) -> "Cut":
        """Into as few equal windows as none may be wider than `widest`; shifted by half a window where several are."""
        counts = [math.ceil(edge / most) for edge, most in zip(shape, widest, strict=True)]
        window = tuple(math.ceil(edge / count) for edge, count in zip(shape, counts, strict=True))
        missing = tuple(count * edge - size for count, edge, size in zip(counts, window, shape, strict=True))
        shift = tuple(edge // 2 if shifted and count > 1 else 0 for edge, count in zip(window, counts, strict=True))
        return cls(tuple(shape), window, missing, shift)

    def apart(self, tokens: Tensor) -> Tensor:
        """Tokens (B, *s, C) to windows (B * windows, voxels of a window, C)."""
        padded = F.pad(tokens, (0, 0, *_at_ends(self.missing))) if any(self.missing) else tokens
        return to_windows(_roll(padded, [-s for s in self.shift]), self.window)

    def together(self, windows: Tensor, batch: int) -> Tensor:
        """The inverse of `apart`."""
        padded = [size + pad for size, pad in zip(self.shape, self.missing, strict=True)]
        whole = from_windows(windows, (batch, *padded, windows.shape[2]), self.window)
        return _roll(whole, self.shift)[(slice(None), *(slice(edge) for edge in self.shape))]


def to_windows(tokens: Tensor, window: Sequence[int]) -> Tensor:
    """Cut (B, *s, C) into windows that divide s: (B * windows, voxels of a window, C), row by row."""
    batch, *shape, channels = tokens.shape
    dims = len(window)
    split = [n for size, edge in zip(shape, window, strict=True) for n in (size // edge, edge)]
    order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return tokens.reshape(batch, *split, channels).permute(order).reshape(-1, math.prod(window), channels)


def from_windows(windows: Tensor, shape: Sequence[int], window: Sequence[int]) -> Tensor:
    """Put windows back together: the inverse of `to_windows` for tokens of that `shape` (B, *s, C)."""
    batch, *edges, channels = shape
    dims = len(window)
    counts = [size // edge for size, edge in zip(edges, window, strict=True)]
    order = (0, *(axis for d in range(1, dims + 1) for axis in (d, d + dims)), 2 * dims + 1)
    return windows.reshape(batch, *counts, *window, channels).permute(order).reshape(tuple(shape))


def offset_index(window: Sequence[int], widest: Sequence[int], device: torch.device) -> Tensor:
    """Column of the table of biases for each pair of voxels of a window: (N, N) of integers.

    The table has one column per offset (query minus key) that occurs in the `widest` window, the last axis fastest.
    """
    axes = torch.meshgrid(*(torch.arange(edge, device=device) for edge in window), indexing="ij")
    index = torch.zeros((), dtype=torch.long, device=device)
    for axis, edge in zip(axes, widest, strict=True):
        place = axis.flatten()
        index = index * (2 * edge - 1) + (place[:, None] - place[None, :] + edge - 1)
    return index


def same_region(
    shape: Sequence[int], window: Sequence[int], missing: Sequence[int], shift: Sequence[int], device: torch.device
) -> Tensor:
    """Mask of the voxels of each window that may attend to each other: booleans (windows, N, N).

    Rolling a map by -`shift` brings its first voxels behind its last ones, and padding puts `missing` voxels between:
    per axis three regions, which share windows but are not neighbours.
    """
    region = torch.zeros((), dtype=torch.long, device=device)
    for size, pad, moved in zip(shape, missing, shift, strict=True):
        place = torch.arange(size + pad, device=device)
        along = (place < moved).long() + 2 * (place >= size)
        region = 3 * region[..., None] + along
    inside = to_windows(_roll(region[None, ..., None], [-s for s in shift]), window)[..., 0]
    return inside[:, :, None] == inside[:, None, :]


def _roll(tokens: Tensor, shift: Sequence[int]) -> Tensor:
    """Roll the spatial axes of (B, *s, C)."""
    return tokens.roll(tuple(shift), tuple(range(1, len(shift) + 1))) if any(shift) else tokens


def _at_ends(missing: Sequence[int]) -> list[int]:
    """Padding of the last axes' ends, in the order of `F.pad`."""
    return [n for pad in reversed(missing) for n in (0, pad)]
