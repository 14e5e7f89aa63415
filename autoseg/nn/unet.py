"""The plain U-Net of nnU-Net: strided convolutions down, transposed convolutions up, heads on every decoder stage.

Stage 0 works at full resolution, the last stage is the bottleneck. `strides[i]` leads from stage i - 1 to stage i.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, conv_stage, init_weights


class UNet(nn.Module):
    """Encoder-decoder with skip connections.

    Args:
        in_channels: channels C of the image.
        num_heads: output channels K.
        features, strides, kernel_sizes, blocks: one entry per stage.
        decoder_blocks: convolutions per decoder stage, one entry fewer.

    The forward pass maps (B, C, *patch) to a list of logits (B, K, *patch_i), finest first: one per decoder stage while
    `deep_supervision` is on, otherwise only the finest. Each patch edge must be divisible by its strides' product.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_heads: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        blocks: Sequence[int],
        decoder_blocks: Sequence[int],
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        self.deep_supervision = True
        incoming = [in_channels, *features[:-1]]
        self.encoder = nn.ModuleList(
            conv_stage(dims, cin, cout, kernel, stride, n)
            for cin, cout, kernel, stride, n in zip(incoming, features, kernel_sizes, strides, blocks, strict=True)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.heads = nn.ModuleList()
        ones = (1,) * dims
        for i, n in enumerate(decoder_blocks):  # finest first, as everywhere; the forward pass walks it backwards
            step = tuple(strides[i + 1])
            self.up.append(TRANSPOSED_CONVOLUTIONS[dims](features[i + 1], features[i], step, step))
            self.decoder.append(conv_stage(dims, 2 * features[i], features[i], kernel_sizes[i], ones, n))
            self.heads.append(CONVOLUTIONS[dims](features[i], num_heads, 1))
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        skips = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        logits = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat((self.up[i](x), skips[i]), dim=1))
            if i == 0 or self.deep_supervision:
                logits.append(cast(nn.Module, self.heads[i])(x))
        return logits[::-1]
