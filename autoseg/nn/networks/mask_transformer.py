"""Mask classification: queries that each predict one mask and its class, on the U-Net of the plan.

The encoder is the plan's, the decoder that of the U-Net, with fewer convolutions; its finest map embeds every voxel.
Queries look at its coarse maps, the coarsest first, each only where its mask was after the layer before (masked
attention), then at each other. After every layer a query predicts its class, which may be "no object", and an embedding
whose product with a voxel's is the logit of its mask there.

    logits = log(sum over queries of P(class) x P(mask))

so that to the rest of autoseg this is a network of exclusive labels like any other. Its loss, `mask_classification`,
reads the queries themselves (`autoseg.nn.queries`). What differs from the paper:

- Embeddings lie at full resolution, not at a quarter: borders of two voxels are structures here.
- The mask that restricts attention on a coarse map is the product with the embeddings interpolated to it, which equals
  interpolating the mask, and never holds one at full resolution.
- Transformer blocks normalise first, and one learnt vector is both a query's content and its place.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022 (Mask2Former); semantic
inference from Cheng et al., "Per-Pixel Classification is Not All You Need", 2021; written for 2-D and 3-D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoseg.nn.attention import (
    ChannelNorm,
    FeedForward,
    HeadFeatures,
    MlpRatio,
    MultiHeadAttention,
    TransformerBlock,
    head_count,
    init_transformer,
)
from autoseg.nn.blocks import CONVOLUTIONS, Stage, resize_linearly
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.transunet import GlobalAttention
from autoseg.nn.networks.unet import conv_decoder, conv_encoder, decode, encode, upsamplings
from autoseg.nn.queries import Queries, QueryLogits
from autoseg.rules import between

LEVELS = 3  # coarse maps that queries look at in turn, at most
WIDEST = 256  # channels of a query, at most; otherwise those of the bottleneck
PERIODS = (0.5, 8.0)  # of the slowest and the fastest wave of a position, over the length of an axis
LEAST_PROBABILITY = 1e-6  # added before the logarithm


class MaskTransformer(nn.Module):
    """U-Net whose finest map embeds voxels, transformer decoder whose queries predict masks and classes.

    Args:
        out_channels: output channels K.
        features, strides, stages: as of `UNet`; `decoder_blocks` may be fewer.
        queries: learnt queries Q; never fewer than output channels, each of which may need one.
        layers: of the transformer decoder; layer i looks at map i modulo LEVELS, the coarsest first.
        head_features: channels per attention head.
        mlp_ratio: width of the hidden layer of a feed-forward over a query's.

    The forward pass maps (B, C, *patch) to `QueryLogits`: one map of logits (B, K, *patch), and the queries of every
    layer while `deep_supervision` is on, otherwise those of the last.
    """

    layout = Layout(
        decoder_blocks=1, sees="patch", learning_rate=5e-4, predicts="labels", loss="mask_classification", queries=True
    )

    def __init__(
        self,
        *,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        queries: Annotated[int, between(1, 4096)] = 32,
        layers: Annotated[int, between(1, 64)] = 3,
        head_features: HeadFeatures = 32,
        mlp_ratio: MlpRatio = 4,
        **stages: Any,
    ) -> None:
        super().__init__()
        dims, width = len(strides[0]), min(features[-1], WIDEST)
        self.deep_supervision = True
        kernel_sizes = stages["kernel_sizes"]
        self.encoder = conv_encoder(stages["in_channels"], features, strides, kernel_sizes, stages["blocks"])
        self.up = upsamplings(features, strides)
        self.decoder = conv_decoder(features, kernel_sizes, stages["decoder_blocks"])
        self.as_they_are = nn.ModuleList(nn.Identity() for _ in self.decoder)  # maps in the place of logits
        self.embed = CONVOLUTIONS[dims](features[0], features[0], 1)
        self.levels = nn.ModuleList(Level(dims, maps, width) for maps in features[: -1 - LEVELS : -1])
        if len(self.levels) == len(features):  # the finest map is for the masks alone
            del self.levels[-1]
        self.queries = nn.Parameter(torch.empty(1, max(queries, out_channels), width))
        self.heads_of_attention = head_count(width, head_features)
        self.layers = nn.ModuleList(QueryLayer(width, self.heads_of_attention, mlp_ratio) for _ in range(layers))
        self.norm = ChannelNorm(width)
        self.classes = nn.Linear(width, out_channels)
        self.no_object = nn.Linear(width, 1)  # apart, so that classes are the output channels
        self.masks = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, features[0]))
        self.apply(init_transformer)
        for layer in (self.masks[0], self.masks[2]):  # masks that differ from each other from the start
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        nn.init.normal_(self.queries)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, voxels = self._maps(image)
        contexts = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        coarse = [resize_linearly(voxels.detach(), x.shape[2:]).flatten(2) for x in maps]
        queries = self.queries.expand(image.shape[0], -1, -1)
        said = [self._predict(queries)]
        for i, layer in enumerate(self.layers):
            level = i % len(contexts)
            outside = self._outside(said[-1][1], coarse[level])
            queries = layer(queries, contexts[level], outside)
            said.append(self._predict(queries))
        classes, embeddings = said[-1]
        logits = [_without_masks_kept(classes, embeddings, voxels)]
        if torch.compiler.is_exporting():  # a graph has tensors and plain lists
            return logits
        supervised = said if self.deep_supervision else said[-1:]
        of_classes, of_masks = (torch.stack(each) for each in zip(*supervised, strict=True))
        return QueryLogits(logits, Queries(of_classes, of_masks, voxels))

    def explain(self, image: Tensor) -> "Explanation":
        """Segment images (B, C, *s) and return what each query did; without gradients."""
        attention: list[Tensor] = []

        def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, CrossAttention)
            attention.append(layer.weights(*given))

        hooks = [layer[0].register_forward_pre_hook(look) for layer in self.layers]  # type: ignore[index]
        try:
            with torch.no_grad():
                said = self(image).queries
                shapes = [x.shape[2:] for x in self._maps(image)[0]]
        finally:
            for hook in hooks:
                hook.remove()
        masks = torch.einsum("bqc,bc...->bq...", said.embeddings[-1].float(), said.voxels.float()).sigmoid()
        maps = (weights.unflatten(2, shapes[i % len(shapes)]) for i, weights in enumerate(attention))
        return Explanation(said.classes[-1].float().softmax(-1), masks, tuple(maps))

    def _maps(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps that queries look at, the coarsest first, and the embedding of every voxel (B, C, *s)."""
        *skips, bottleneck = encode(self.encoder, image)
        decoded = decode(bottleneck, skips, self.up, self.decoder, self.as_they_are, every_stage=True)
        return [bottleneck, *decoded[::-1]][: len(self.levels)], self.embed(decoded[0])

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, K + 1) of classes, and embeddings (B, Q, C) of masks whose logits have a spread of about 1."""
        normal = self.norm(queries)
        embeddings = self.masks(normal)
        return torch.cat((self.classes(normal), self.no_object(normal)), -1), embeddings / embeddings.shape[-1] ** 0.5

    def _outside(self, embeddings: Tensor, voxels: Tensor) -> Tensor:
        """Bias (B, heads, Q, M): -inf where a query's mask is not; 0 everywhere for a query whose mask is nowhere."""
        outside = torch.bmm(embeddings.detach(), voxels) < 0
        outside = outside & ~outside.all(-1, keepdim=True)
        bias = torch.zeros_like(outside, dtype=torch.float32).masked_fill(outside, -math.inf)
        return bias[:, None].expand(-1, self.heads_of_attention, -1, -1)


@dataclass(frozen=True)
class Explanation:
    """What the queries of a `MaskTransformer` did with a batch of images."""

    classes: Tensor  # (B, Q, K + 1) probabilities; the last is "no object"
    masks: Tensor  # (B, Q, *s) probabilities
    attention: tuple[Tensor, ...]  # per layer (B, Q, *s of its map): where it looked, sums to 1, mean over heads


class Level(nn.Module):
    """A map (B, Cin, *s) as tokens (B, M, C) that queries look at: with a place each, and the mark of its level."""

    def __init__(self, dims: int, cin: int, cout: int) -> None:
        super().__init__()
        self.project = CONVOLUTIONS[dims](cin, cout, 1)
        self.mark = nn.Parameter(torch.zeros(cout))
        self.norm = ChannelNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2)
        return self.norm(tokens + self.mark + positions(x.shape[2:], len(self.mark), x.device).to(tokens.dtype))


class CrossAttention(nn.Module):
    """queries + attention(norm(queries), context): (B, Q, C) that look at (B, M, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.attention = MultiHeadAttention(width, heads)

    def forward(self, queries: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        return queries + self.attention(self.norm(queries), context, bias)

    def weights(self, queries: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """How much each query looks at each token, (B, Q, M) float32, the mean over heads."""
        inner = self.attention
        query, key = (
            each.unflatten(2, (inner.heads, -1)).transpose(1, 2).float()
            for each in (inner.query(self.norm(queries)), inner.key(context))
        )
        return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias).softmax(-1).mean(1)


class QueryLayer(Stage):
    """Queries (B, Q, C) look at a context (B, M, C) where a bias (B, heads, Q, M) lets them, then at each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        among = TransformerBlock(width, GlobalAttention(width, heads), FeedForward(width, mlp_ratio))
        super().__init__(CrossAttention(width, heads), among)

    def run(self, x: Tensor, *beside: Tensor) -> Tensor:
        cross, among = self
        return among(cross(x, *beside))


def positions(shape: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Places of the voxels of a map as sines and cosines, (M, channels) float32: the slowest waves of each axis first.

    An axis has the length 1, whatever its voxels.
    """
    count = math.ceil(channels / (2 * len(shape)))
    slowest, fastest = PERIODS
    waves = 2 * math.pi * slowest * (fastest / slowest) ** (torch.arange(count, device=device) / max(1, count - 1))
    axes = torch.meshgrid(*[(torch.arange(n, device=device) + 0.5) / n for n in shape], indexing="ij")
    angles = waves[:, None] * torch.stack(axes, -1).flatten(0, -2)[:, None]  # (M, waves, axes)
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)[:, :channels]


def semantic_logits(classes: Tensor, embeddings: Tensor, voxels: Tensor) -> Tensor:
    """Logarithm of what queries say together of each class at each voxel.

    Args:
        classes: (B, Q, K + 1) logits, of which the last class is "no object".
        embeddings: (B, Q, C).
        voxels: (B, C, *s).

    Returns:
        (B, K, *s) float32: log of the sum over queries of P(class) x P(mask). Its softmax is their share of each class.
    """
    masks = torch.bmm(embeddings, voxels.flatten(2))
    with torch.autocast(voxels.device.type, enabled=False):
        weights = classes.float().softmax(-1)[..., :-1].transpose(1, 2)
        return (torch.bmm(weights, masks.float().sigmoid()) + LEAST_PROBABILITY).log().unflatten(2, voxels.shape[2:])


def _without_masks_kept(*given: Tensor) -> Tensor:
    """`semantic_logits`, computed a second time in the backward pass: Q masks at full resolution are large."""
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return checkpoint(semantic_logits, *given, use_reentrant=False)
    return semantic_logits(*given)
