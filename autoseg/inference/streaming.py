"""The logits of all members of an ensemble on the image's own grid, a few rows at a time, and what is made of them.

Members may see the image on different grids. Each computes its tiles as far as the next rows of the image need them, so
that all move forward together and none ever holds the logits of a whole image.
"""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autoseg.imaging.geometry import Axes3
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.logit_rows import decide_row
from autoseg.inference.ensemble import ensemble_logits, probabilities

CHUNK_BYTES = 2**26  # of logits handed over at once, at least a row
LOWEST = 60000.0  # below the largest score, that float16 holds
MAPPED_BYTES = 2**32  # labels of a larger image are in a file


class Consumer(Protocol):
    """Something that wants the logits of an image: to write probabilities, to measure uncertainty."""

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Use the next rows.

        Args:
            rows: of the cropped box, along the first axis of the plan's order; they follow those of the call before.
            logits: one (K, rows, Y, X) float32 per member, on the CPU, on the image's grid in the cropped box. To be
                read only, and valid during the call.
        """


class LabelConsumer:
    """Decides labels by the mean of the models' probabilities, into an array (Z, Y, X) of the cropped box.

    Args:
        model_of: of each member, the model it is a part of: the logits of one model are averaged.
        offsets: (K,) float32, added to the logits before they decide; None: nothing.
    """

    def __init__(
        self, heads: LabelSet, labels: np.ndarray, model_of: Sequence[int], offsets: np.ndarray | None = None
    ) -> None:
        self.heads, self.labels, self.model_of, self.offsets = heads, labels, tuple(model_of), offsets

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Decide some rows; a single model's by its logits, which order classes as probabilities do."""
        if self.offsets is None and len(set(self.model_of)) > 1:
            mean = probabilities(logits, self.model_of, self.heads.has_regions)
            self.labels[rows] = self.heads.decide(mean.numpy())
            return
        regions = self.heads.region_indices if self.heads.has_regions else None
        scores = ensemble_logits(logits, self.model_of, self.heads.has_regions)
        if self.offsets is not None:
            scores = scores.add_(torch.from_numpy(self.offsets).reshape(-1, 1, 1, 1))
        self.labels[rows] = decide_row(scores.numpy(), regions, self.labels.dtype)


class Scores:
    """Keeps what decides, in place of logits, for all of the cropped box: in a temporary file, float16.

    Attributes:
        values: (K, Z, Y, X) float16, 0 for the class that wins and less for the others.
    """

    def __init__(
        self, heads: LabelSet, shape: Axes3, model_of: Sequence[int], offsets: np.ndarray | None = None
    ) -> None:
        self.heads, self.model_of, self.offsets = heads, tuple(model_of), offsets
        with tempfile.TemporaryFile() as file:  # it is gone with the last array that is mapped from it
            self.values = np.memmap(file, dtype=np.float16, mode="w+", shape=(heads.num_heads, *shape))

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Keep some rows."""
        scores = ensemble_logits(logits, self.model_of, self.heads.has_regions)
        if self.offsets is not None:
            scores = scores.add_(torch.from_numpy(self.offsets).reshape(-1, 1, 1, 1))
        self.values[:, rows] = (scores - scores.amax(dim=0)).clamp_(min=-LOWEST).numpy()


def empty_labels(shape: Axes3, heads: LabelSet) -> np.ndarray:
    """Background (Z, Y, X), of the smallest unsigned dtype; in a temporary file where the image is very large."""
    dtype = np.min_scalar_type(heads.num_labels)
    if np.prod(shape, dtype=np.int64) * dtype.itemsize <= MAPPED_BYTES:
        return np.zeros(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:  # it is gone with the last array that is mapped from it
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def hand_over(members: Sequence[Iterator[Tensor]], consumers: Sequence[Consumer], shape: Axes3) -> None:
    """Give all rows of an image to all consumers, a few at a time.

    Args:
        members: of each the rows (K, Y, X) in order.
        shape: (Z, Y, X) of the cropped box.
    """
    start = 0
    while start < shape[0]:
        first = [next(rows) for rows in members]
        count = min(max(1, CHUNK_BYTES // (4 * first[0].numel() * len(members))), shape[0] - start)
        logits = []
        for row, others in zip(first, members, strict=True):
            chunk = row[:, None]
            if count > 1:
                chunk = torch.empty((len(row), count, *row.shape[1:]))
                chunk[:, 0] = row
                for n in range(1, count):
                    chunk[:, n] = next(others)
            logits.append(chunk)
        for consumer in consumers:
            consumer.take(slice(start, start + count), logits)
        start += count
