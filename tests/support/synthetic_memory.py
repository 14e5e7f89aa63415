"""A memory model made up for tests of the planning rules: bytes that follow from elements by a formula, at once."""

from collections.abc import Sequence

from autoseg.nn.networks import layout_of
from autoseg.planning.cost import Figures, Step
from autoseg.planning.topology import Topology, feature_map_elements

CONTEXT = 1.0e9
BYTES_PER_ELEMENT = 5.89  # two samples of 560e6 elements, nnU-Net's reference, fit into 95 % of 8 GB


class ElementMemory:
    """A step takes CONTEXT, and BYTES_PER_ELEMENT for every element; a third of those with checkpointing."""

    source = "made up"
    measured = False

    def train(self, step: Step) -> Figures:
        network = step.network
        topology = Topology(step.patch_size, network.strides, network.kernel_sizes, ())
        elements = feature_map_elements(
            topology, network.features, 3, network.blocks, network.decoder_blocks, layout_of(network.name).residual
        )
        share = 1 / 3 if step.checkpointing else 1.0
        used = CONTEXT + BYTES_PER_ELEMENT * elements * step.batch_size * share
        return Figures(int(used), parameters=1, flops=elements, seconds=None)

    def predict_bytes(self, step: Step, tile_batch: int, shape: Sequence[int]) -> int:
        return int(CONTEXT + tile_batch * 1e9)
