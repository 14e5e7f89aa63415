"""What the planner must know of a network: the attribute `layout` of its class."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """How a plan lays out one network. A tuple's last entry stands for all further stages."""

    blocks: tuple[int, ...] = (2,)  # per encoder stage
    decoder_blocks: int = 2  # per decoder stage
    residual: bool = False  # blocks are residual: two convolutions each, after a stem
    # What one output voxel sees. "patch": all of the patch, by attention or by pooling over the whole map; such a
    # network is tied to the size it was trained on, and predicts in tiles that are never larger.
    sees: Literal["convolutions", "patch"] = "convolutions"
    learning_rate: float | None = None  # of AdamW, for networks that SGD does not suit
    predicts: Literal["labels", "either"] = "either"  # "labels": one label per voxel, no regions
    loss: str | None = None  # that it is trained with, if it is not the usual one
    queries: bool = False  # it gives queries, which a loss may read, beside logits (`autoseg.nn.queries`)

    def encoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks of each of `stages` encoder stages."""
        return tuple(self.blocks[min(i, len(self.blocks) - 1)] for i in range(stages))
