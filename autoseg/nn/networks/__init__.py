"""The table of networks: name -> class. A new network is one file and one line here.

Every network takes the same keyword arguments (see `UNet`) and options of its own, and maps (B, C, *patch) of any
size to a list of logits, finest first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from autoseg.nn.networks.attention_unet import AttentionUNet
from autoseg.nn.networks.deeplab import DeepLab
from autoseg.nn.networks.fcn import FCN
from autoseg.nn.networks.residual_unet import ResidualUNet
from autoseg.nn.networks.segformer import SegFormer
from autoseg.nn.networks.swin_unet import SwinUNet
from autoseg.nn.networks.transunet import TransUNet
from autoseg.nn.networks.unet import UNet
from autoseg.nn.networks.unet_plusplus import UNetPlusPlus

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "residual_unet": ResidualUNet,
    "attention_unet": AttentionUNet,
    "unet_plusplus": UNetPlusPlus,
    "deeplab": DeepLab,
    "fcn": FCN,
    "segformer": SegFormer,
    "swin_unet": SwinUNet,
    "transunet": TransUNet,
}
# Attention, or pooling over the whole map, ties these to the size they were trained on: tiles are never larger.
FIXED_TILES = {"deeplab", "segformer", "swin_unet", "transunet"}


def build_network(
    name: str,
    *,
    in_channels: int,
    num_heads: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network called `name`. Raises KeyError listing the names that exist."""
    if name not in NETWORKS:
        raise KeyError(f"no network {name!r}; there are: {', '.join(NETWORKS)}")
    return NETWORKS[name](
        in_channels=in_channels,
        num_heads=num_heads,
        features=features,
        strides=strides,
        kernel_sizes=kernel_sizes,
        blocks=blocks,
        decoder_blocks=decoder_blocks,
        **(options or {}),
    )
