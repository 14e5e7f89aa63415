"""The table of networks: name -> class. A new network is one file and one line here.

Every network takes the same keyword arguments, those of GIVEN (see `UNet`), and maps (B, C, *patch) of any size to a
list of logits, finest first. Further keywords of its `__init__` are its options: a plan may set them, within what their
annotations say. What the planner must know of it is its class attribute `layout`; without one it is laid out as the
plain U-Net.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from autoseg.nn.networks.attention_unet import AttentionUNet
from autoseg.nn.networks.deeplab import DeepLab
from autoseg.nn.networks.fcn import FCN
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.mask_transformer import MaskTransformer
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
    "mask_transformer": MaskTransformer,
}
GIVEN = ("in_channels", "out_channels", "features", "strides", "kernel_sizes", "blocks", "decoder_blocks")


def layout_of(name: str) -> Layout:
    """What the planner must know of the network called `name`."""
    return getattr(NETWORKS[name], "layout", Layout())


def build_network(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
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
        out_channels=out_channels,
        features=features,
        strides=strides,
        kernel_sizes=kernel_sizes,
        blocks=blocks,
        decoder_blocks=decoder_blocks,
        **(options or {}),
    )
