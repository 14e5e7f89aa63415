"""The steps of the host chain that change intensities: one literal table, beside that of the device (`intensities`).

A new step is one entry in STEPS with the function that makes it; its probability and its numbers are in `presets`,
under the name of the step. Noise, blur, contrast, low resolution and gamma are transforms of batchgenerators.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from batchgenerators.transforms.abstract_transforms import AbstractTransform
from batchgenerators.transforms.color_transforms import ContrastAugmentationTransform, GammaTransform
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

from autoseg.augmentation.formulas import colour_matrix
from autoseg.augmentation.presets import Augmentation

Step = Callable[[np.ndarray, np.random.Generator], None]  # changes an image (C, *patch) float32 in place


@dataclass(frozen=True)
class Foreign:
    """A transform of batchgenerators as a step. It draws from two global generators, which are lent to it."""

    transform: AbstractTransform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        with _lent_generators(rng):
            self.transform(data=image[None])  # writes into the view


@dataclass(frozen=True)
class Brightness:
    """Multiply each channel by a factor: below 1 and above 1 with equal probability, where the range has both sides.

    batchgenerators has this transform with one uniform range only.
    """

    limits: tuple[float, float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        low, high = self.limits
        for channel in image:
            below = low < 1 and (high <= 1 or rng.random() < 0.5)
            channel *= rng.uniform(low, min(high, 1)) if below else rng.uniform(max(low, 1), high)


@dataclass(frozen=True)
class ColourJitter:
    """Turn the hue and stretch the saturation of red, green and blue, leaving their mean (the grey value) as it is.

    Both are linear in the colour: a rotation about the grey axis, and a factor on the distance from it. So no range of
    values is needed, and the result is defined where brightness or noise went beyond it.
    """

    hue: float  # +- share of the colour circle
    saturation: tuple[float, float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        assert len(image) == 3, f"colour jitter of {len(image)} channels"
        angle = 2 * np.pi * rng.uniform(-self.hue, self.hue)
        matrix = colour_matrix(angle, rng.uniform(*self.saturation))
        image[...] = np.einsum("ij,j...->i...", matrix.astype(np.float32), image)


@contextmanager
def _lent_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of numpy and Python from `rng` while the body runs, and restore them."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002 (batchgenerators draws from it)
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


def noise(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Foreign(GaussianNoiseTransform(a.noise_std))


def blur(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Foreign(GaussianBlurTransform(a.blur_sigma, different_sigma_per_axis=True, p_per_channel=a.blur_per_channel))


def brightness(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Brightness(a.brightness_range)


def contrast(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Foreign(ContrastAugmentationTransform(a.contrast_range, preserve_range=True, per_channel=True))


def low_resolution(a: Augmentation, fixed: Sequence[int]) -> Step:
    transform = SimulateLowResolutionTransform(
        a.low_resolution_zoom, per_channel=True, p_per_channel=a.low_resolution_per_channel,
        order_downsample=0, order_upsample=1, ignore_axes=fixed,
    )  # fmt: skip
    return Foreign(transform)


def gamma_inverted(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Foreign(GammaTransform(a.gamma_range, invert_image=True, retain_stats=True, per_channel=True))


def gamma(a: Augmentation, fixed: Sequence[int]) -> Step:
    return Foreign(GammaTransform(a.gamma_range, invert_image=False, retain_stats=True, per_channel=True))


def colour(a: Augmentation, fixed: Sequence[int]) -> Step:
    return ColourJitter(a.colour_hue, a.colour_saturation)


# Field of `Augmentation` with the probability of a step -> what makes it, of the numbers there and the axes that keep
# their resolution. Steps follow each other in this order.
STEPS: dict[str, Callable[[Augmentation, Sequence[int]], Step]] = {
    "noise": noise,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "low_resolution": low_resolution,
    "gamma_inverted": gamma_inverted,
    "gamma": gamma,
    "colour": colour,
}
COLOUR_STEPS = ("colour",)  # for red, green and blue alone
