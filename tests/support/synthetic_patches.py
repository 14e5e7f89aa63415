"""Patches, generators and tables made up for tests of augmentation on the host and on the device."""

import numpy as np
from scipy.ndimage import gaussian_filter

from autoseg.augmentation.presets import AUGMENTATIONS, Augmentation
from autoseg.imaging.labels import OUTSIDE

OFF = AUGMENTATIONS["none"]
EVERYTHING = Augmentation(
    rotation=0.5, scaling=0.5, elastic=0.5, noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, low_resolution=0.5,
    gamma_inverted=0.5, gamma=0.5, colour=0.5,
)  # fmt: skip


class High(np.random.Generator):
    """Draws the upper end of every range; whatever may happen happens."""

    def __init__(self):
        super().__init__(np.random.PCG64(5))

    def random(self, size=None):
        return 0.0 if size is None else np.zeros(size)

    def uniform(self, low, high, size=None):
        return high if size is None else np.full(size, float(high))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def an_image(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def ramp(shape: tuple[int, ...], *slopes: float) -> np.ndarray:
    """(1, *shape): a linear function of the coordinates relative to the centre. Linear interpolation is exact on it."""
    centred = [slope * (np.arange(n) - (n - 1) / 2) for slope, n in zip(slopes, shape, strict=True)]
    return sum(np.meshgrid(*centred, indexing="ij"))[None].astype(np.float32)


def blobs(*shape: int, seed: int = 3) -> np.ndarray:
    """Label map of OUTSIDE, 0, 1, 2 and 3 with smooth borders."""
    smooth = gaussian_filter(an_image(*shape, seed=seed), 1.5)
    return np.clip(np.round(smooth / smooth.std() + 1), OUTSIDE, 3).astype(np.int8)
