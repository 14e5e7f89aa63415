"""What a network of queries gives beside its logits: classes and masks, which a loss may read.

Every other part of autoseg sees the logits alone, a list as of any network. So a network of queries trains with any
loss of exclusive labels, and a loss that reads queries (`Traits.queries`) finds them in the same object.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Queries(NamedTuple):
    """The predictions of Q queries after each of L layers, the last one last.

    A mask's logit at a voxel is the product of the query's embedding and the voxel's. To keep the two apart is what
    makes masks cheap: a loss computes them at the voxels it looks at.
    """

    classes: Tensor  # (L, B, Q, K + 1) logits; the last class is "no object"
    embeddings: Tensor  # (L, B, Q, C)
    voxels: Tensor  # (B, C, *s)


class QueryLogits(list[Tensor]):
    """Logits (B, K, *s) as every network returns them, finest first, with the `queries` they were made of."""

    def __init__(self, logits: Iterable[Tensor], queries: Queries) -> None:
        super().__init__(logits)
        self.queries = queries
