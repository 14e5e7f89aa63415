"""Which two voxels of an axis each voxel of a resampled axis lies between, and how near to each.

The convention of `resample`: voxels are cells, the edges of the outermost cells stay where they are, and beyond them
the outermost voxel continues. Logits are resampled linearly, or by the nearest voxel along a separate axis, so that two
numbers and a share say everything. Needs numpy alone.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Taps:
    """Output i is (1 - share[i]) * input[low[i]] + share[i] * input[high[i]]; low and high ascend."""

    low: np.ndarray  # (n_out,) int64
    high: np.ndarray  # low, or low + 1
    share: np.ndarray  # float32; 0 where high is low
    size: int  # n_in

    def __len__(self) -> int:
        return len(self.low)

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        return len(self) == self.size and not self.share.any() and bool((self.low == np.arange(self.size)).all())

    def outputs(self, inputs: slice) -> slice:
        """The outputs whose higher input is among these: what can be made when they have come, and not before."""
        return slice(int(np.searchsorted(self.high, inputs.start)), int(np.searchsorted(self.high, inputs.stop)))

    def part(self, outputs: slice, first: int, size: int) -> "Taps":
        """Some outputs, of `size` inputs from `first` on."""
        return Taps(self.low[outputs] - first, self.high[outputs] - first, self.share[outputs], size)

    def matrix(self) -> np.ndarray:
        """The same as a matrix (n_out, n_in) float32."""
        weights = np.zeros((len(self), self.size), dtype=np.float32)
        rows = np.arange(len(self))
        weights[rows, self.low] = 1 - self.share
        weights[rows, self.high] += self.share
        return weights


def taps(size: int, new_size: int, *, nearest: bool = False) -> Taps:
    """Taps that bring an axis of `size` voxels to `new_size`, linearly or by the voxel that holds the new centre."""
    if nearest:
        low = (2 * np.arange(new_size) + 1) * size // (2 * new_size)
        return Taps(low, low, np.zeros(new_size, dtype=np.float32), size)
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    cell = np.floor(position).astype(np.int64)
    low, high = np.clip(cell, 0, size - 1), np.clip(cell + 1, 0, size - 1)
    share = np.where(low == high, 0, position - cell).astype(np.float32)
    return Taps(low, np.where(share > 0, high, low), share, size)
