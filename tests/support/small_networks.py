"""Small networks of any architecture: `from small_networks import laid_out, small_network`.

laid_out       what a network is built from, as keywords
small_network  one of the table, by its name
"""

from collections.abc import Sequence

from torch import nn

from autoseg.nn.networks import build_network


def laid_out(features: Sequence[int], dims: int = 2, *, depth: int = 2, **changes: object) -> dict:
    """Isotropic halving, kernels 3 wide, `depth` blocks in each stage, one channel and two heads, unless changed."""
    stages = len(features)
    usual = {
        "in_channels": 1,
        "out_channels": 2,
        "features": features,
        "strides": [(1,) * dims] + [(2,) * dims] * (stages - 1),
        "kernel_sizes": [(3,) * dims] * stages,
        "blocks": [depth] * stages,
        "decoder_blocks": [depth] * (stages - 1),
    }
    return usual | changes


def small_network(name: str, dims: int, features: Sequence[int] = (4, 8, 8), **changes) -> nn.Module:
    """A network of the table; changes are those of `laid_out`."""
    return build_network(name, **laid_out(features, dims, **changes))
