"""What the planner knows of each network: how many blocks a stage gets, and what it sees. Numbers only, no torch.

The names are those of `autoseg.nn.networks.NETWORKS`; a test holds the two tables together.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from autoseg.planning.topology import Spatial, Topology, receptive_field
from autoseg.rules import between, entries

HEAD_FEATURES = Annotated[int, between(1, 4096)]
MLP_RATIO = Annotated[int, between(1, 64)]


@dataclass(frozen=True)
class Architecture:
    """How a plan lays out one network. A tuple's last entry stands for all further stages."""

    blocks: tuple[int, ...] = (2,)  # per encoder stage
    decoder_blocks: int = 2  # per decoder stage
    residual: bool = False  # blocks are residual: two convolutions each, after a stem
    sees: Literal["convolutions", "patch"] = "convolutions"  # what one output voxel sees
    learning_rate: float | None = None  # of AdamW, for networks that SGD does not suit
    options: dict[str, Any] = field(default_factory=dict)  # what a plan says of `accepts`
    accepts: dict[str, Any] = field(default_factory=dict)  # the network's own keywords -> annotation, with its rule

    def encoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks of each of so many encoder stages."""
        return tuple(self.blocks[min(i, len(self.blocks) - 1)] for i in range(stages))

    def receptive_field(self, chosen: Topology) -> Spatial:
        """Voxels of the image that one output voxel sees: those its convolutions reach, or the patch."""
        if self.sees == "patch":
            return chosen.patch_size
        blocks = self.encoder_blocks(chosen.stages)
        if self.residual:
            blocks = tuple(2 * count + (stage == 0) for stage, count in enumerate(blocks))
        return receptive_field(
            chosen.strides, chosen.kernel_sizes, blocks, (self.decoder_blocks,) * (chosen.stages - 1)
        )


ARCHITECTURES: dict[str, Architecture] = {
    "unet": Architecture(),
    "residual_unet": Architecture(blocks=(1, 3, 4, 6), decoder_blocks=1, residual=True),  # nnU-Net v2's ResEnc presets
    "attention_unet": Architecture(),
    "unet_plusplus": Architecture(),
    "deeplab": Architecture(
        blocks=(1, 2), decoder_blocks=2, sees="patch",
        accepts={
            "output_stride": Annotated[int, between(1, 2**14)],
            "rates": Annotated[tuple[Annotated[int, between(1, 64)], ...], entries(1, 16)],
        },
    ),
    "segformer": Architecture(
        blocks=(2,), decoder_blocks=1, sees="patch", learning_rate=5e-4,
        accepts={
            "head_features": HEAD_FEATURES, "mlp_ratio": MLP_RATIO, "keys": Annotated[int, between(1, 2**16)]
        },
    ),
    "swin_unet": Architecture(
        blocks=(2,), decoder_blocks=2, sees="patch", learning_rate=5e-4,
        accepts={
            "head_features": HEAD_FEATURES, "mlp_ratio": MLP_RATIO, "window_tokens": Annotated[int, between(1, 4096)]
        },
    ),
    "transunet": Architecture(
        sees="patch",
        accepts={"layers": Annotated[int, between(1, 64)], "head_features": HEAD_FEATURES, "mlp_ratio": MLP_RATIO},
    ),
    "fcn": Architecture(decoder_blocks=1, accepts={"scored_stages": Annotated[int, between(1, 16)]}),
}  # fmt: skip
