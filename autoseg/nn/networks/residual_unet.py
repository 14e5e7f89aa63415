"""The U-Net of nnU-Net with a residual encoder ("ResEnc"): a deep encoder, a light decoder.

The encoder's blocks add to what they are given, so that many of them train; `blocks` of (1, 3, 4, 6, 6, 6) puts most of
the work where maps are small. The decoder is the plain one, with a single convolution per stage.

Source: Isensee et al. 2024, "nnU-Net Revisited".
"""

from collections.abc import Sequence

from torch import Tensor, nn

from autoseg.nn.blocks import conv_stage, init_weights, residual_stage
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.unet import conv_decoder, decode, encode, heads, upsamplings


class ResidualUNet(nn.Module):
    """U-Net whose encoder has a stem (one convolution) and stages of residual blocks.

    Args:
        blocks: residual blocks, of two convolutions each, per encoder stage.

    The other arguments and the forward pass are those of `UNet`.
    """

    layout = Layout(blocks=(1, 3, 4, 6), decoder_blocks=1, residual=True)  # nnU-Net v2's ResEnc presets

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
        self.stem = conv_stage(dims, in_channels, features[0], kernel_sizes[0], (1,) * dims, 1)
        incoming = [features[0], *features[:-1]]
        self.encoder = nn.ModuleList(
            residual_stage(dims, cin, cout, kernel, stride, n)
            for cin, cout, kernel, stride, n in zip(incoming, features, kernel_sizes, strides, blocks, strict=True)
        )
        self.up = upsamplings(features, strides)
        self.decoder = conv_decoder(features, kernel_sizes, decoder_blocks)
        self.heads = heads(dims, features[:-1], out_channels)
        self.apply(init_weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        *skips, x = encode(self.encoder, self.stem(image))
        return decode(x, skips, self.up, self.decoder, self.heads, every_stage=self.deep_supervision)
