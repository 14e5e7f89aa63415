"""Images as another scanner, protocol or patient might have made them: pure functions of arrays, seeded.

    noise        Gaussian, of `strength` times the channel's standard deviation
    blur         Gaussian, of `strength` times the finest spacing, as wide in mm along every axis
    bias_field   a smooth factor between exp(-strength) and exp(strength), as coils make it
    contrast     a power of the intensities, strength or 1 / strength: darker or brighter tissue, equal ends
    resolution   voxels `strength` times as wide, and back: along all axes but those that are coarse already

Each takes an image (C, Z, Y, X) float32, its spacing in mm, a strength and a generator, and returns a new image of the
same shape; at strength 0 (1 of contrast and resolution) it is the image itself. Where all channels are 0, around a
body that was cut out, they stay 0. A generator in the same state gives the same pattern at each strength, so that a
stronger shift is more of the same.

Sources: Hendrycks and Dietterich 2019 (kinds of shifts at graded strengths); TorchIO for those of MR.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.imaging.geometry import Axes3, Vector3
from autoseg.imaging.low_pass import LowPass
from autoseg.imaging.resample import resample_image, resampled_shape

SEED = 1234
ORDER = 3  # of the polynomial of a bias field
COARSE = 3.0  # an axis more than this many times coarser than the finest is not made coarser still
Corruption = Callable[[np.ndarray, Vector3, float, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, spacing: Vector3, strength: float, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of `strength` times the standard deviation of each channel within the body."""
    body = (image != 0).any(axis=0)
    drawn = random.standard_normal(image.shape, dtype=np.float32)
    scale = np.array([channel[body].std() if body.any() else 0.0 for channel in image], np.float32)
    return np.where(body, image + strength * scale[:, None, None, None] * drawn, image).astype(np.float32)


def blur(image: np.ndarray, spacing: Vector3, strength: float, random: np.random.Generator) -> np.ndarray:
    """Smooth by a Gaussian whose standard deviation is `strength` times the finest spacing; voxels of 0 stay 0."""
    finest = _finest(image.shape[1:], spacing)
    sigma = [0.0 if n == 1 else strength * finest / s for n, s in zip(image.shape[1:], spacing, strict=True)]
    body = (image != 0).any(axis=0)
    smooth = np.stack([ndimage.gaussian_filter(channel, sigma, mode="nearest") for channel in image])
    return np.where(body, smooth, image).astype(np.float32)


def bias_field(image: np.ndarray, spacing: Vector3, strength: float, random: np.random.Generator) -> np.ndarray:
    """Multiply intensities, counted from the channel's minimum, by a smooth field of exp(-strength) to exp(strength).

    The exponent is a random polynomial of the third degree in z, y and x, scaled so that its largest magnitude is
    `strength`.
    """
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in image.shape[1:]]
    field = np.zeros(image.shape[1:])
    for i in range(ORDER + 1):
        for j in range(ORDER + 1 - i):
            for k in range(ORDER + 1 - i - j):
                weight = random.uniform(-1, 1)
                if i + j + k:  # a constant factor would not be a bias
                    field += weight * axes[0][:, None, None] ** i * axes[1][None, :, None] ** j * axes[2] ** k
    if largest := np.abs(field).max():
        field *= strength / largest
    low = image.min(axis=(1, 2, 3), keepdims=True)
    return (low + (image - low) * np.exp(field)).astype(np.float32)


def contrast(image: np.ndarray, spacing: Vector3, strength: float, random: np.random.Generator) -> np.ndarray:
    """Raise intensities, from 0 to 1 over the range of each channel, to the power `strength` or 1 / `strength`."""
    power = strength if random.uniform() < 0.5 else 1 / strength
    body = (image != 0).any(axis=0)
    low, high = image.min(axis=(1, 2, 3), keepdims=True), image.max(axis=(1, 2, 3), keepdims=True)
    share = (image - low) / np.where(high > low, high - low, 1)
    return np.where(body, low + (high - low) * share**power, image).astype(np.float32)


def resolution(image: np.ndarray, spacing: Vector3, strength: float, random: np.random.Generator) -> np.ndarray:
    """Resample to voxels `strength` times as wide and back, linearly; axes that are coarse already stay."""
    finest = _finest(image.shape[1:], spacing)
    z, y, x = (
        s if n == 1 or s > COARSE * finest else s * strength for n, s in zip(image.shape[1:], spacing, strict=True)
    )
    coarse = resampled_shape(image.shape[1:], spacing, (z, y, x))
    depth, height, width = image.shape[1:]
    again = _linear(_linear(image, spacing, (z, y, x), coarse), (z, y, x), spacing, (depth, height, width))
    body = (image != 0).any(axis=0)
    return np.where(body, again, image).astype(np.float32)


def _linear(image: np.ndarray, spacing: Vector3, target: Vector3, shape: Axes3) -> np.ndarray:
    """Resample linearly; axes that shrink go through the Gaussian first."""
    return resample_image(
        image, spacing, target, shape, order=1, coarse_axis_order=1, anisotropy_threshold=np.inf,
        low_pass=LowPass("gaussian", 1.0),
    )  # fmt: skip


@dataclass(frozen=True)
class Shift:
    """One kind of corruption and the strengths at which it is measured, mild to severe."""

    corrupt: Corruption
    strengths: tuple[float, float, float]
    unit: str  # of a strength, in words


SHIFTS: dict[str, Shift] = {
    "noise": Shift(noise, (0.1, 0.25, 0.5), "of the image's standard deviation"),
    "blur": Shift(blur, (0.5, 1.0, 2.0), "voxels, the standard deviation"),
    "bias_field": Shift(bias_field, (0.2, 0.4, 0.8), "exponent at most"),
    "contrast": Shift(contrast, (1.25, 1.6, 2.0), "or its inverse, the power"),
    "resolution": Shift(resolution, (1.5, 2.0, 3.0), "times as wide voxels"),
}


def corrupted(image: np.ndarray, spacing: Vector3, name: str, strength: float, case: str) -> np.ndarray:
    """One image (C, Z, Y, X) under one shift, the same for the same case; of float32.

    Args:
        spacing: mm (Z, Y, X).
        name: a key of SHIFTS.
        case: the id, which seeds the pattern.
    """
    random = np.random.default_rng([SEED, zlib.crc32(name.encode()), zlib.crc32(case.encode())])
    return SHIFTS[name].corrupt(image, spacing, strength, random)


def _finest(shape: tuple[int, ...], spacing: Vector3) -> float:
    """The smallest spacing of an axis with more than one voxel."""
    return min([s for n, s in zip(shape, spacing, strict=True) if n > 1], default=min(spacing))
