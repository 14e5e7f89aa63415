"""Where a case is in its image: the crop, the spacings before and after resampling, and the inverse.

One record describes it everywhere: preprocessing creates it, the store keeps it with the arrays, a cascade uses it to
bring its previous stage's segmentation to the grid, and prediction uses it to bring probabilities back. It is here, and
not in preprocessing, because the store keeps it and may not import preprocessing, and because it depends only on
geometry.

    the whole image  --crop-->  the box  --to the target spacing-->  the grid that the network sees
    (shape_before_crop)         (shape_after_crop)                   (shape)
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Axes3, Box, Vector3
from autoseg.imaging.resample import require_possible, resample_labels, resample_probabilities, separate_axis
from autoseg.imaging.taps import Taps, taps


class ResamplingRules(Protocol):
    """The fields of a plan's `Resampling` that labels and probabilities are resampled by."""

    @property
    def coarse_axis_order(self) -> int: ...  # spline order along an axis that is resampled separately
    @property
    def anisotropy_threshold(self) -> float: ...  # an axis this many times coarser than another is resampled separately


@dataclass(frozen=True)
class Placement:
    """Where a case is in its image, and the grid it was resampled to. Spatial tuples in the order of its arrays."""

    spacing: Vector3  # mm, of the image
    target_spacing: Vector3  # mm, of the grid
    box: Box  # of the crop, in the image
    shape_before_crop: Axes3  # of the image
    shape_after_crop: Axes3  # of the box
    shape: Axes3  # of the grid

    def crop(self, array: np.ndarray) -> np.ndarray:
        """The box of an array (..., Z, Y, X) on the image's grid: a view."""
        return array[(..., *as_slices(self.box))]

    def labels_to_grid(self, indices: np.ndarray, rules: ResamplingRules) -> np.ndarray:
        """Resample class indices (Z, Y, X) of the box to the grid; same dtype, OUTSIDE is a class like any other."""
        return resample_labels(
            indices, self.spacing, self.target_spacing, self.shape,
            coarse_axis_order=rules.coarse_axis_order, anisotropy_threshold=rules.anisotropy_threshold,
        )  # fmt: skip

    def to_grid(self, indices: np.ndarray, rules: ResamplingRules) -> np.ndarray:
        """Bring a segmentation of the whole image to the grid: the same crop and resampling as for a target.

        A segmentation has no OUTSIDE: beyond the body it is background, as for a new image.

        Args:
            indices: (Z, Y, X) class indices 0..n on the image's grid.

        Returns:
            int16 (Z, Y, X) on the grid.
        """
        return self.labels_to_grid(self.crop(indices).astype(np.int16), rules)

    def back(self, probabilities: np.ndarray, rules: ResamplingRules) -> np.ndarray:
        """Bring probabilities (K, Z, Y, X) on the grid back to the spacing of the image: float32, those of the box."""
        return resample_probabilities(
            probabilities, self.target_spacing, self.spacing, self.shape_after_crop,
            anisotropy_threshold=rules.anisotropy_threshold,
        )  # fmt: skip

    def axes_back(self, rules: ResamplingRules) -> tuple[Taps, Taps, Taps]:
        """How each axis of the grid becomes that of the box, where logits are brought back row by row (see `back`)."""
        coarse = separate_axis(self.target_spacing, self.spacing, rules.anisotropy_threshold)
        z, y, x = (
            taps(size, new_size, nearest=axis == coarse)
            for axis, (size, new_size) in enumerate(zip(self.shape, self.shape_after_crop, strict=True))
        )
        return z, y, x

    def uncrop(self, indices: np.ndarray) -> np.ndarray:
        """Class indices (Z, Y, X) of the box as those of the whole image, which is background beyond it; same dtype."""
        whole = np.zeros(self.shape_before_crop, dtype=indices.dtype)
        whole[as_slices(self.box)] = indices
        return whole


def place(shape: Axes3, box: Box, spacing: Vector3, target_spacing: Vector3, name: str) -> Placement:
    """Place the box of an image of `shape` on the grid of a spacing. Spacings in mm (Z, Y, X).

    Args:
        name: of the image's file, for messages.

    Raises:
        DataError: an axis would vanish, or the result would be absurdly large (`require_possible`).
    """
    (z0, z1), (y0, y1), (x0, x1) = box
    cropped = (z1 - z0, y1 - y0, x1 - x0)
    return Placement(
        spacing=spacing,
        target_spacing=target_spacing,
        box=box,
        shape_before_crop=shape,
        shape_after_crop=cropped,
        shape=require_possible(cropped, spacing, target_spacing, name),
    )
