"""Mathematics of augmentation that both of its chains (arrays on the host, tensors on the device) are built on."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=16)
def spline_basis(length: int, distance: float) -> np.ndarray:
    """Cubic B-splines at `length` voxels, one per control point in reach: (length, points), rows of unit norm.

    With rows of unit norm, the displacement has the same standard deviation everywhere.
    """
    places = (np.arange(length) - (length - 1) / 2) / distance
    knots = np.arange(np.floor(places[0]) - 1, np.floor(places[-1]) + 3)
    t = np.abs(places[:, None] - knots)
    basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def colour_matrix(angle: float, saturation: float) -> np.ndarray:
    """3 x 3: rotate by `angle` about the grey axis (1, 1, 1), red towards green, and stretch away from it."""
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return grey + saturation * (np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross)
