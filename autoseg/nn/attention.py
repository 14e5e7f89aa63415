"""The parts of transformers that three networks share: attention, feed-forward, the block and the stage of blocks.

Tokens are the voxels of a feature map with their channels last: (B, *spatial, C). A block never flattens its map, so
that convolutions and windows can work on it; attention flattens what it looks at. A stage takes and returns maps with
channels first, as convolutions do, and so stands wherever a convolutional stage may.

Softmax and normalisation are computed in float32 under any autocast: `scaled_dot_product_attention` does so itself,
layer normalisation says so. No layer draws random numbers; what is left out at random, a whole stage leaves out.
"""

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nn.blocks import Stage, init_weights
from autoseg.rules import between

HeadFeatures = Annotated[int, between(1, 4096)]  # channels per attention head
MlpRatio = Annotated[int, between(1, 64)]  # width of a hidden layer over that of its stage
MOST_SCORES = 2**24  # that `received` holds at once
INITIAL_STD = 0.02  # of linear weights and position biases, truncated at two standard deviations


class ChannelNorm(nn.Module):
    """Normalise the channels of each token, with a learnt scale and shift (layer normalisation, Ba et al. 2016).

    Maps (..., C) to (..., C) of the same dtype; arithmetic in float32.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            normal = F.layer_norm(tokens.float(), self.weight.shape, self.weight, self.bias, self.eps)
        return normal.to(tokens.dtype)


def head_count(channels: int, head_features: int) -> int:
    """Attention heads of a stage: about one per `head_features` channels, at least one, a divisor of `channels`.

    >>> head_count(320, 32), head_count(48, 32), head_count(112, 32)
    (10, 1, 2)
    """
    return next(heads for heads in range(max(1, channels // head_features), 0, -1) if channels % heads == 0)


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + bias) V in several heads of d channels each (Vaswani et al. 2017).

    Keys have no bias: it would shift all scores of a query alike, which softmax takes away again.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """Let `tokens` (B, N, C) look at `context` (B, M, C); return (B, N, C).

        `bias` is added to the scores: (B or 1, heads, N, M), -inf where a token must not look.
        """
        query, key, value = (
            self._split(self.query(tokens)),
            self._split(self.key(context)),
            self._split(self.value(context)),
        )
        if bias is not None:
            bias = bias.to(query.dtype)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.project(seen.transpose(1, 2).flatten(2))

    def received(self, weights: Tensor, tokens: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """How much attention tokens of some weight pay to each token of the context, on average over the heads.

        Args:
            weights: (B, N) float32, of `tokens`. What they add up to, the result adds up to.
            tokens, context, bias: as for `forward`.

        Returns:
            (B, M) float32: the sum over tokens of weight times attention.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            query = self._split(F.linear(tokens.float(), self.query.weight.float(), self.query.bias.float()))
            key = self._split(F.linear(context.float(), self.key.weight.float()))
            total = torch.zeros((len(tokens), context.shape[1]), device=tokens.device)
            few = max(1, MOST_SCORES // (len(tokens) * self.heads * context.shape[1]))  # queries at once
            for first in range(0, tokens.shape[1], few):
                some = slice(first, first + few)
                scores = query[:, :, some] @ key.transpose(2, 3) / math.sqrt(query.shape[3])
                if bias is not None:
                    scores = scores + bias[:, :, some].float()
                total += torch.einsum("bhnm,bn->bm", scores.softmax(dim=3), weights[:, some]) / self.heads
        return total

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, on each token alone; the hidden layer is `ratio` times as wide."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__(nn.Linear(channels, ratio * channels), nn.GELU(), nn.Linear(ratio * channels, channels))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); both map tokens (B, *s, C) to the same shape."""

    def __init__(self, channels: int, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = ChannelNorm(channels)
        self.attention = attention
        self.feed_forward_norm = ChannelNorm(channels)
        self.feed_forward = feed_forward

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class ChannelsLast(nn.Module):
    """Turn a map (B, C, *s) into tokens (B, *s, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class ChannelsFirst(nn.Module):
    """Turn tokens (B, *s, C) into a map (B, C, *s)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.movedim(-1, 1).contiguous()


def transformer_stage(entry: nn.Module, channels: int, parts: Iterable[tuple[nn.Module, nn.Module]]) -> Stage:
    """Build a stage: `entry` brings a map to its resolution and width, transformer blocks work on it, a norm ends it.

    `parts` are the attention and the feed-forward of each block. Maps (B, Cin, *s) to (B, channels, *s'), where s' is
    what `entry` makes of s.
    """
    blocks = (TransformerBlock(channels, attention, feed_forward) for attention, feed_forward in parts)
    return Stage(entry, ChannelsLast(), *blocks, ChannelNorm(channels), ChannelsFirst())


def truncated_normal_(weight: Tensor) -> None:
    """Fill with a normal distribution of INITIAL_STD, cut off at twice that, by its inverse distribution function.

    Reads no value back, as torch's own does, so that networks can be built without storage to trace their memory.
    """
    within = math.erf(math.sqrt(2))  # share of a normal distribution within two standard deviations
    with torch.no_grad():
        weight.uniform_(-within, within).erfinv_().mul_(math.sqrt(2) * INITIAL_STD)


def init_transformer(module: nn.Module) -> None:
    """Linear layers: truncated normal, biases zero; convolutions as everywhere (for `network.apply`)."""
    if isinstance(module, nn.Linear):
        truncated_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_weights(module)
