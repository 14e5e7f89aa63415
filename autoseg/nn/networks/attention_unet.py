"""The U-Net with attention gates: what comes from below decides where the skip is let through.

Source: Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas". Here every skip has a gate, the
finest too, so that a network of two stages has one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import CONVOLUTIONS, AveragePool, init_weights, resize_linearly
from autoseg.nn.networks.unet import conv_decoder, conv_encoder, decode, encode, heads, upsamplings


class AttentionGate(nn.Module):
    """Scale a skip by a map in (0, 1) that it agrees upon with the coarser decoder stage (additive attention).

    The map is sigmoid(psi(ReLU(skip's projection + below's projection))), worked out at the coarser resolution, where
    the skip is averaged to, and interpolated linearly: it costs little beside the convolutions.

    Maps skip (B, C, *s) and below (B, D, *ceil(s / stride)) to (B, C, *s). The attention itself is float32.
    """

    def __init__(self, dims: int, skip_features: int, below_features: int, stride: Sequence[int]) -> None:
        super().__init__()
        between = max(1, skip_features // 2)
        convolution = CONVOLUTIONS[dims]
        self.from_skip = nn.Sequential(AveragePool(stride), convolution(skip_features, between, 1, bias=False))
        self.from_below = convolution(below_features, between, 1)
        self.psi = convolution(between, 1, 1)

    def attention(self, skip: Tensor, below: Tensor) -> Tensor:
        """The map (B, 1, *s), float32."""
        coarse = self.psi(torch.relu(self.from_skip(skip) + self.from_below(below)))
        return resize_linearly(coarse.float().sigmoid(), skip.shape[2:])

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        return skip * self.attention(skip, below).to(skip.dtype)


class AttentionUNet(nn.Module):
    """Plain U-Net with an `AttentionGate` on every skip. Arguments and forward pass are those of `UNet`."""

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
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        self.deep_supervision = True
        self.encoder = conv_encoder(in_channels, features, strides, kernel_sizes, blocks)
        self.gates = nn.ModuleList(
            AttentionGate(dims, features[i], features[i + 1], strides[i + 1]) for i in range(len(features) - 1)
        )
        self.up = upsamplings(features, strides)
        self.decoder = conv_decoder(features, kernel_sizes, decoder_blocks)
        self.heads = heads(dims, features[:-1], out_channels)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = encode(self.encoder, image)
        return decode(x, skips, self.up, self.decoder, self.heads, every_stage=self.deep_supervision, gates=self.gates)
