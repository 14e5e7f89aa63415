"""The steps of the device chain that change intensities: one literal list of what is drawn and what is done with it.

A new step is one entry in STEPS with its two functions, and its numbers in `presets`:

    draw    numbers for one sample, from the sample's own generator; steps draw in the order of the list
    apply   changes the images of a batch (B, C, *patch) in place, by what was drawn for each of them

Most steps change some channels of some samples, by parameters of their own: see `_change`. The chain on the host has
steps of its own (`host_intensities`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation import deform
from autoseg.augmentation.formulas import colour_matrix
from autoseg.augmentation.presets import Augmentation

BLUR_REACH = 4.0  # standard deviations after which a blur's kernel ends

Change = Callable[..., None]  # changes channels (n, *patch) in place, by parameters of n rows


@dataclass(frozen=True)
class Patches:
    """What the steps know of the patches of a chain."""

    augmentation: Augmentation
    channels: int
    size: tuple[int, ...]  # (Z, Y, X) or (Y, X)
    coarsened: np.ndarray  # (axes) bool: along which the resolution may be lowered
    rgb: bool


class Step(NamedTuple):
    """One change of intensities."""

    name: str
    draw: Callable[[Patches, np.random.Generator], Any]  # for one sample; what changes nothing where it is not drawn
    # (patches, images (B, C, *patch), what was drawn for each, a seed for each of what is drawn on the device)
    apply: Callable[[Patches, Tensor, Sequence[Any], Sequence[int]], None]


# Noise: the standard deviation, or 0


def draw_noise(patches: Patches, rng: np.random.Generator) -> float:
    a = patches.augmentation
    return rng.uniform(*a.noise_std) if rng.random() < a.noise else 0.0


def add_noise(patches: Patches, images: Tensor, drawn: Sequence[float], seeds: Sequence[int]) -> None:
    for image, std, seed in zip(images, drawn, seeds, strict=True):
        if std:
            generator = torch.Generator(images.device).manual_seed(seed)
            image.add_(torch.empty_like(image).normal_(generator=generator), alpha=std)


# Blur: standard deviations (C, axes) in voxels, or 0


def draw_blur(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    a, sigma = patches.augmentation, np.zeros((patches.channels, len(patches.size)))
    if rng.random() < a.blur:
        blurred = rng.random((patches.channels, 1)) < a.blur_per_channel
        sigma = np.where(blurred, rng.uniform(*a.blur_sigma, size=sigma.shape), 0.0)
    return sigma


def apply_blur(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    sigma, reach = np.concatenate(drawn), int(BLUR_REACH * patches.augmentation.blur_sigma[1] + 0.5)
    _change(images, (sigma > 0).any(axis=1), partial(blur, reach=reach), sigma)


# Brightness, contrast, both gammas: a factor or an exponent for each channel (C), or 1


def draw_brightness(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    return _factors(patches, rng, patches.augmentation.brightness, patches.augmentation.brightness_range)


def draw_contrast(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    return _factors(patches, rng, patches.augmentation.contrast, patches.augmentation.contrast_range)


def draw_gamma_inverted(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    return _factors(patches, rng, patches.augmentation.gamma_inverted, patches.augmentation.gamma_range)


def draw_gamma(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    return _factors(patches, rng, patches.augmentation.gamma, patches.augmentation.gamma_range)


def apply_brightness(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    factor = np.concatenate(drawn)
    _change(images, factor != 1, brighten, factor)


def apply_contrast(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    factor = np.concatenate(drawn)
    _change(images, factor != 1, stretch, factor)


def apply_gamma_inverted(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    gamma = np.concatenate(drawn)
    _change(images, gamma != 1, bend, gamma, np.full_like(gamma, -1.0))


def apply_gamma(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    gamma = np.concatenate(drawn)
    _change(images, gamma != 1, bend, gamma, np.full_like(gamma, 1.0))


# Low resolution: voxels (C, axes), or as many as the patch has


def draw_low_resolution(patches: Patches, rng: np.random.Generator) -> np.ndarray:
    a, channels = patches.augmentation, patches.channels
    lengths = np.tile(np.array(patches.size), (channels, 1))
    if rng.random() < a.low_resolution:
        coarser = rng.random((channels, 1)) < a.low_resolution_per_channel
        zoomed = np.round(lengths * rng.uniform(*a.low_resolution_zoom, size=(channels, 1))).astype(int)
        lengths = np.where(coarser & patches.coarsened, zoomed, lengths)
    return lengths


def apply_low_resolution(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray], seeds: Sequence[int]) -> None:
    lengths = np.concatenate(drawn)
    _change(images, (lengths != patches.size).any(axis=1), coarsen, lengths)


# Colour: a matrix (3, 3), or None


def draw_colour(patches: Patches, rng: np.random.Generator) -> np.ndarray | None:
    a = patches.augmentation
    if rng.random() >= (a.colour if patches.rgb else 0.0):
        return None
    angle = 2 * np.pi * rng.uniform(-a.colour_hue, a.colour_hue)
    return colour_matrix(angle, rng.uniform(*a.colour_saturation))


def apply_colour(patches: Patches, images: Tensor, drawn: Sequence[np.ndarray | None], seeds: Sequence[int]) -> None:
    for image, colour in zip(images, drawn, strict=True):
        if colour is not None:
            matrix = deform.moved(torch.from_numpy(colour.astype(np.float32)), image.device)
            image.copy_((matrix @ image.flatten(1)).view_as(image))


STEPS: tuple[Step, ...] = (
    Step("noise", draw_noise, add_noise),
    Step("blur", draw_blur, apply_blur),
    Step("brightness", draw_brightness, apply_brightness),
    Step("contrast", draw_contrast, apply_contrast),
    Step("low_resolution", draw_low_resolution, apply_low_resolution),
    Step("gamma_inverted", draw_gamma_inverted, apply_gamma_inverted),
    Step("gamma", draw_gamma, apply_gamma),
    Step("colour", draw_colour, apply_colour),
)


# What they do to channels (n, *patch), in place


def brighten(channels: Tensor, factor: Tensor) -> None:
    """Multiply each channel by a factor (n)."""
    channels.mul_(_over(channels, factor))


def stretch(channels: Tensor, factor: Tensor) -> None:
    """Multiply each channel's distance from its mean by a factor (n); what leaves the old range is cut off."""
    flat = channels.flatten(1)
    factor = factor[:, None]
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    flat.mul_(factor).add_(mean * (1 - factor)).clamp_(low, high)


def bend(channels: Tensor, gamma: Tensor, sign: Tensor) -> None:
    """Raise each channel's share of its range to the power gamma (n), and restore its mean and standard deviation.

    With sign (n) -1 instead of 1, the inverted image is bent.
    """
    flat = channels.flatten(1)
    sign = sign[:, None]
    mean, std = flat.mean(1, keepdim=True), flat.std(1, correction=0, keepdim=True)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scale = sign / (high - low + 1e-7)
    flat.sub_(torch.where(sign > 0, low, high)).mul_(scale)
    flat.log_().mul_(gamma[:, None]).exp_()  # three passes, a third of the time of one with pow_ on a CPU
    scale = sign * std / (flat.std(1, correction=0, keepdim=True) + 1e-8)
    flat.sub_(flat.mean(1, keepdim=True)).mul_(scale).add_(mean)


def blur(channels: Tensor, sigma: Tensor, reach: int) -> None:
    """Convolve each channel with a Gaussian of standard deviation sigma (n, axes); it is mirrored at the border.

    No kernel is longer than `reach` voxels to each side.
    """
    for axis, length in enumerate(channels.shape[1:]):
        _along(channels, axis, blur_matrix(length, sigma[:, axis], reach))


def coarsen(channels: Tensor, lengths: Tensor) -> None:
    """Resample each channel to a smaller shape (n, axes) by nearest neighbours, and back by linear interpolation."""
    for axis, length in enumerate(channels.shape[1:]):
        _along(channels, axis, coarse_matrix(length, lengths[:, axis]))


def blur_matrix(length: int, sigma: Tensor, reach: int) -> Tensor:
    """What a Gaussian blur (n) of a line does, as matrices (n, length, length).

    The line continues beyond its ends as its own mirror image (d c b a | a b c d | d c b a), with a period of twice its
    length. So each voxel is seen directly and in its images.
    """
    index = torch.arange(length, device=sigma.device)
    most = 1 + reach // (2 * length)
    periods = 2 * length * torch.arange(-most, most + 1, device=sigma.device)[:, None, None]
    direct, mirrored = index[:, None] - index, index[:, None] + index + 1
    distance = torch.cat([direct + periods, mirrored + periods]).abs().clamp_(max=reach + 1)  # (images, length, length)
    steps, sigma = torch.arange(reach + 2, device=sigma.device), sigma.view(-1, 1)
    inside = (steps <= torch.floor(BLUR_REACH * sigma + 0.5)) & (steps <= reach)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2) * inside
    matrix = kernel[:, distance].sum(dim=1)
    return matrix / matrix.sum(dim=2, keepdim=True)


def coarse_matrix(length: int, coarse: Tensor) -> Tensor:
    """What resampling a line to `coarse` (n) voxels and back does, as matrices (n, length, length)."""
    coarse = coarse.view(-1, 1)
    index = torch.arange(length, dtype=torch.float32, device=coarse.device)
    back = ((index + 0.5) * coarse / length - 0.5).clamp_min(0).minimum(coarse - 1)  # (n, length): place in the coarse
    low = back.floor()
    high = (low + 1).minimum(coarse - 1)
    share = (back - low)[..., None]
    from_low, from_high = (((voxel + 0.5) * length / coarse).floor()[..., None] == index for voxel in (low, high))
    return (1 - share) * from_low + share * from_high


def two_sided(rng: np.random.Generator, limits: tuple[float, float], count: int) -> np.ndarray:
    """Draw factors (count): below 1 and above 1 with equal probability, where the range has both sides."""
    low, high = limits
    below = (low < 1) & ((high <= 1) | (rng.random(count) < 0.5))
    return np.where(below, rng.uniform(min(low, 1), min(high, 1), count), rng.uniform(max(low, 1), max(high, 1), count))


def _factors(patches: Patches, rng: np.random.Generator, probability: float, limits: tuple[float, float]) -> np.ndarray:
    return two_sided(rng, limits, patches.channels) if rng.random() < probability else np.ones(patches.channels)


def _change(images: Tensor, drawn: Any, change: Change, *parameters: np.ndarray) -> None:
    """Change some of the channels of images (B, C, *patch), as `drawn` (B * C) says, by parameters (B * C, ...).

    A GPU takes them together. A CPU takes one at a time, in place: that saves gathering and scattering them.
    """
    channels = images.view(-1, *images.shape[2:])
    numbers = np.flatnonzero(drawn)
    values = [deform.moved(torch.from_numpy(p[numbers].astype(np.float32)), channels.device) for p in parameters]
    if deform.in_pieces(channels.device):
        for k, number in enumerate(numbers):
            change(channels[number : number + 1], *(value[k : k + 1] for value in values))
    elif len(numbers):
        index = deform.moved(torch.from_numpy(numbers), channels.device)
        chosen = channels[index]
        change(chosen, *values)
        channels[index] = chosen


def _along(channels: Tensor, axis: int, matrices: Tensor) -> None:
    """Multiply the lines along one axis of channels (n, *patch) by matrices (n, length, length), in place."""
    count, length = len(channels), channels.shape[axis + 1]
    lines = channels.reshape(count, -1, length, int(np.prod(channels.shape[axis + 2 :])))
    if lines.shape[3] == 1:  # the last axis
        result = lines[..., 0] @ matrices.mT
    elif count == 1:
        result = matrices[0] @ lines
    else:
        result = matrices[:, None] @ lines
    channels.copy_(result.view_as(channels))


def _over(channels: Tensor, values: Tensor) -> Tensor:
    """Values (n) shaped so that each stands over all voxels of its channel."""
    return values.view(-1, *[1] * (channels.ndim - 1))
