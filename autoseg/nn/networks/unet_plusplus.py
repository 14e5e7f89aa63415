"""U-Net++: every skip becomes a row of nested nodes that bring the encoder's features closer to the decoder's.

Node (i, j) works at stage i and sees all nodes to its left, (i, 0) .. (i, j - 1), and node (i + 1, j - 1) from below.
Column 0 is the encoder, and the last node of each row takes the decoder's place:

    (0, 0)   (0, 1)   (0, 2)   (0, 3)
       (1, 0)   (1, 1)   (1, 2)
          (2, 0)   (2, 1)
             (3, 0)

Memory: n stages have n (n - 1) / 2 nodes instead of n - 1, and n - 1 of them work at full resolution, over up to n + 1
maps side by side. With six stages, four times the activations of the plain U-Net are kept for the backward pass: plan
smaller patches, or switch activation checkpointing on.

Source: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture". There, deep supervision is of the whole finest row, at
full resolution; here of the last node of every row, as in the other U-Nets: the same loss, and far less memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import TRANSPOSED_CONVOLUTIONS, conv_stage, fit_to, init_weights
from autoseg.nn.networks.unet import conv_encoder, encode, heads


class UNetPlusPlus(nn.Module):
    """U-Net with nested, dense skips.

    Args:
        decoder_blocks: convolutions of each node of stage i.

    The other arguments and the forward pass are those of `UNet`.
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
        dims = len(strides[0])
        self.deep_supervision = True
        self.encoder = conv_encoder(in_channels, features, strides, kernel_sizes, blocks)
        self.up = nn.ModuleDict()
        self.nodes = nn.ModuleDict()
        for column in range(1, len(features)):
            for i in range(len(features) - column):
                step = tuple(strides[i + 1])
                wide = (column + 1) * features[i]  # the nodes to the left, and the one below
                node = conv_stage(dims, wide, features[i], kernel_sizes[i], (1,) * dims, decoder_blocks[i])
                self.up[f"{i}_{column}"] = TRANSPOSED_CONVOLUTIONS[dims](features[i + 1], features[i], step, step)
                self.nodes[f"{i}_{column}"] = node
        self.heads = heads(dims, features[:-1], out_channels)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        rows = [[x] for x in encode(self.encoder, image)]  # rows[i]: the results of stage i from left to right
        for column in range(1, len(rows)):
            for i in range(len(rows) - column):
                below = fit_to(self.up[f"{i}_{column}"](rows[i + 1][-1]), rows[i][0])
                rows[i].append(self.nodes[f"{i}_{column}"](torch.cat((*rows[i], below), dim=1)))
        supervised = len(self.heads) if self.deep_supervision else 1
        return [self.heads[i](rows[i][-1]) for i in range(supervised)]
