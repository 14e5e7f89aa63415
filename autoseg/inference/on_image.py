"""Rows as they are computed, and where they are in the file of the image.

Prediction hands rows over in the plan's axis order, inside the box that the image was cropped to. Files are in stored
order and hold the whole image.
"""

from dataclasses import dataclass

import numpy as np

from autoseg.datasets.dataset import LoadedCase
from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Axes3, Box, Geometry, reorient


@dataclass(frozen=True)
class OnImage:
    """How the rows of a case lie in its image."""

    geometry: Geometry  # as stored
    orientation: tuple[Axes3, Axes3]  # permutation and flips from stored order
    axis_order: Axes3  # permutation that follows
    box: Box  # of the crop, in the plan's axis order

    @classmethod
    def of(cls, loaded: LoadedCase, box: Box) -> "OnImage":
        return cls(loaded.geometry, loaded.orientation, loaded.axis_order, box)

    def inside(self, stored: np.ndarray) -> np.ndarray:
        """The box of an array (..., Z, Y, X) in stored order, in the plan's axis order: a view."""
        planned = reorient(reorient(stored, *self.orientation), self.axis_order, (0, 0, 0))
        return planned[(..., *as_slices(self.box))]
