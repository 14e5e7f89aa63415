"""TransUNet: the plain U-Net with a transformer at its bottleneck, where every voxel looks at every other.

Source: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", 2021; written for
2-D and 3-D. Positions come from a depth-wise convolution (Chu et al., "Conditional Positional Encodings", 2021), whose
zero padding marks the edges of a map of any size: learnt positions would belong to one patch size alone.
"""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from autoseg.nn.attention import (
    FeedForward,
    HeadFeatures,
    MlpRatio,
    MultiHeadAttention,
    head_count,
    init_transformer,
    transformer_stage,
)
from autoseg.nn.blocks import CONVOLUTIONS
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import conv_decoder, conv_encoder, decode, encode, heads, upsamplings
from autoseg.rules import between


class TransUNet(nn.Module):
    """Convolutional encoder, transformer on its coarsest map, convolutional decoder with skip connections.

    Args:
        in_channels: channels C of the image.
        out_channels: output channels K.
        features, strides, kernel_sizes, blocks: one entry per stage; blocks are convolutions.
        decoder_blocks: convolutions per decoder stage, one entry fewer.
        layers: transformer blocks at the bottleneck. The paper has 12, pretrained on natural images.
        head_features: channels per attention head.
        mlp_ratio: width of the hidden layer of a feed-forward over the bottleneck's width.

    The forward pass maps (B, C, *patch) to a list of logits (B, K, *patch_i), finest first: one per decoder stage while
    `deep_supervision` is on, otherwise only the finest.
    """

    layout = Layout(sees="patch")
    deepest = "transformer"  # the part whose result is the coarsest map, for `nn.saliency`

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
        layers: Annotated[int, between(1, 64)] = 4,
        head_features: HeadFeatures = 32,
        mlp_ratio: MlpRatio = 4,
    ) -> None:
        super().__init__()
        dims, width = len(strides[0]), features[-1]
        self.deep_supervision = True
        self.encoder = conv_encoder(in_channels, features, strides, kernel_sizes, blocks)
        parts = (
            (GlobalAttention(width, head_count(width, head_features)), FeedForward(width, mlp_ratio))
            for _ in range(layers)
        )
        self.transformer = transformer_stage(PositionEncoding(dims, width), width, parts)
        self.up = upsamplings(features, strides)
        self.decoder = conv_decoder(features, kernel_sizes, decoder_blocks)
        self.heads = heads(dims, features[:-1], out_channels)
        self.apply(init_transformer)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = encode(self.encoder, image)
        x = self.transformer(x)
        return decode(x, skips, self.up, self.decoder, self.heads, every_stage=self.deep_supervision)


class PositionEncoding(nn.Module):
    """Add to a map (B, C, *s) its depth-wise convolution, which differs at the edges: position for any size."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.convolution = CONVOLUTIONS[dims](channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(x)


class GlobalAttention(nn.Module):
    """Every token looks at every token; maps (B, *s, C) to the same shape."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(channels, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(1, -2)
        return self.attention(flat, flat).view(tokens.shape)

    def received(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """What tokens of these weights (B, *s) look at: (B, *s), of the same sum."""
        flat = tokens.flatten(1, -2)
        return self.attention.received(weights.flatten(1), flat, flat).view(weights.shape)
