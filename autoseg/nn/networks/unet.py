"""The plain U-Net of nnU-Net: strided convolutions down, transposed convolutions up, heads on every decoder stage.

Stage 0 works at full resolution, the last stage is the bottleneck. `strides[i]` leads from stage i - 1 to stage i. The
halves stand apart as functions, because other U-Nets share one of them: the residual one the decoder, the one with
attention gates both.

Source: Ronneberger et al. 2015; Isensee et al. 2021 (nnU-Net).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, conv_stage, fit_to, init_weights


class UNet(nn.Module):
    """Encoder-decoder with skip connections.

    Args:
        in_channels: channels C of the image.
        out_channels: output channels K.
        features, strides, kernel_sizes: one entry per stage.
        blocks: convolutions per encoder stage.
        decoder_blocks: convolutions per decoder stage, one entry fewer.

    The forward pass maps (B, C, *patch) to a list of logits (B, K, *patch_i), finest first: one per decoder stage while
    `deep_supervision` is on, otherwise only the finest. Stage i has the edges ceil(edge / product of strides up to i).
    """

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
        self.deep_supervision = True
        self.encoder = conv_encoder(in_channels, features, strides, kernel_sizes, blocks)
        self.up = upsamplings(features, strides)
        self.decoder = conv_decoder(features, kernel_sizes, decoder_blocks)
        self.heads = heads(len(strides[0]), features[:-1], out_channels)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = encode(self.encoder, image)
        return decode(x, skips, self.up, self.decoder, self.heads, every_stage=self.deep_supervision)


def conv_encoder(
    in_channels: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    blocks: Sequence[int],
) -> nn.ModuleList:
    """Stages of plain convolutions, from the image to the bottleneck."""
    dims = len(strides[0])
    incoming = [in_channels, *features[:-1]]
    return nn.ModuleList(
        conv_stage(dims, cin, cout, kernel, stride, n)
        for cin, cout, kernel, stride, n in zip(incoming, features, kernel_sizes, strides, blocks, strict=True)
    )


def upsamplings(features: Sequence[int], strides: Sequence[Sequence[int]]) -> nn.ModuleList:
    """Transposed convolutions that lead from stage i + 1 to stage i, finest first."""
    transposed = TRANSPOSED_CONVOLUTIONS[len(strides[0])]
    return nn.ModuleList(
        transposed(features[i + 1], features[i], tuple(strides[i + 1]), tuple(strides[i + 1]))
        for i in range(len(features) - 1)
    )


def conv_decoder(
    features: Sequence[int], kernel_sizes: Sequence[Sequence[int]], decoder_blocks: Sequence[int]
) -> nn.ModuleList:
    """Stages of convolutions, each over what comes from below beside the skip; finest first."""
    dims = len(kernel_sizes[0])
    return nn.ModuleList(
        conv_stage(dims, 2 * maps, maps, kernel, (1,) * dims, n)
        for maps, kernel, n in zip(features[:-1], kernel_sizes[:-1], decoder_blocks, strict=True)
    )


def heads(dims: int, features: Sequence[int], out_channels: int) -> nn.ModuleList:
    """One 1x1 convolution per stage, from its features to logits."""
    return nn.ModuleList(CONVOLUTIONS[dims](maps, out_channels, 1) for maps in features)


def encode(encoder: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """The result of every stage, finest first."""
    results = []
    for stage in encoder:
        x = stage(x)
        results.append(x)
    return results


def decode(
    x: Tensor,
    skips: Sequence[Tensor],
    up: nn.ModuleList,
    decoder: nn.ModuleList,
    heads: nn.ModuleList,
    *,
    every_stage: bool,
    gates: nn.ModuleList | None = None,
) -> list[Tensor]:
    """Lead the bottleneck `x` up along the skips (finest first) to logits, finest first.

    Args:
        every_stage: logits of every decoder stage, not of the finest alone.
        gates: what each skip passes through, given the map from the stage below.
    """
    logits = []
    for i in reversed(range(len(decoder))):
        skip = skips[i] if gates is None else gates[i](skips[i], x)
        x = decoder[i](torch.cat((fit_to(up[i](x), skip), skip), dim=1))
        if i == 0 or every_stage:
            logits.append(heads[i](x))
    return logits[::-1]
