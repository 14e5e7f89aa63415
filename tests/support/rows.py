"""Dense logits handed to consumers as prediction does: `from rows import feed`."""

from collections.abc import Sequence

from torch import Tensor


def feed(consumers: Sequence, logits: Sequence[Tensor], step: int = 3) -> None:
    """Cut logits (K, Z, Y, X), one tensor per member, into rows along Z, unequal ones at the end."""
    length = logits[0].shape[1]
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        for consumer in consumers:
            consumer.take(rows, [part[:, rows] for part in logits])
