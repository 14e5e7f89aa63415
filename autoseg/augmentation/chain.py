"""The device chain: augmentation of a batch in torch, on the device that trains.

Same numbers (`presets`), same order and same meaning as the chain on the host (`host_chain`), but other random draws.
It works in two halves:

    draw = chain.draw(rng)                            # numpy, in whatever process reads the patch
    image, target = cut(patch grown by draw.margin on both sides of every axis)
    images, targets = chain([image, ...], [target, ...], [draw, ...], device)

A `Draw` holds all that was drawn for one sample: a few numbers, and the seed of its noise. So a sample follows from its
generator alone (seed and index), whatever else is in its batch; only mixing, which is off by default, looks at the
neighbour in the batch. Noise is drawn on the device: it repeats exactly on the same kind of device, not across kinds.

What costs time is touched as little as possible: a transform visits only the channels for which it was drawn; samples
that do not move are copied once; mirroring is part of that copy or of the sampling pass (every later step treats both
directions of an axis alike); blur and low resolution are each one small matrix per axis. Nothing waits for the device.

Source of the transforms: nnU-Net v2; see `presets`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation import deform
from autoseg.augmentation.deform import Deformation, draw_control, place
from autoseg.augmentation.formulas import colour_matrix
from autoseg.augmentation.mixing import Mixing, draw_mixing, mix
from autoseg.augmentation.presets import ANISOTROPIC, OBLONG, Augmentation

BLUR_REACH = 4.0  # standard deviations after which a blur's kernel ends

Step = Callable[..., None]  # changes channels (n, *patch) in place, by parameters of n rows


@dataclass(frozen=True)
class Draw:
    """What was drawn for one sample. Where a transform was not drawn, its parameter is the one that changes nothing."""

    deformation: Deformation | None
    margin: tuple[int, ...]  # voxels beyond the patch that are reached, on either side of each axis
    noise_seed: int
    noise_std: float  # or 0
    blur_sigma: np.ndarray  # (C, axes) voxels, or 0
    brightness: np.ndarray  # (C) factor, or 1
    contrast: np.ndarray  # (C) factor, or 1
    low_resolution: np.ndarray  # (C, axes) voxels per axis; or as many as the patch has
    gamma_inverted: np.ndarray  # (C) exponent, or 1
    gamma: np.ndarray  # (C) exponent, or 1
    colour: np.ndarray | None  # (3, 3)
    flips: tuple[int, ...]  # spatial axes
    mixing: Mixing


class DeviceChain:
    """The augmentation of batches of patches of one size. Holds no state between batches.

    Args:
        augmentation: probabilities and ranges.
        channels: of the image.
        patch_size: (Z, Y, X) or (Y, X), as the network sees it.
        mirror_axes: spatial axes of the patch that may be flipped.
        anisotropic: rotate, scale, deform and coarsen within slices only (the last two axes). None: if the patch is
            more than 3 times as long as it has slices, nnU-Net v2's rule.
        masked_channels: those set to 0 again wherever the target is OUTSIDE.
        rgb: the three channels are red, green and blue: colours may be jittered.
        border: what stands outside the image.
        ignore_index: class index of voxels that nobody annotated, or None.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        channels: int,
        patch_size: Sequence[int],
        mirror_axes: Sequence[int],
        anisotropic: bool | None = None,
        masked_channels: Sequence[int] = (),
        rgb: bool = False,
        border: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.channels = channels
        self.patch_size = tuple(int(length) for length in patch_size)
        self.mirror_axes = tuple(mirror_axes)
        self.masked_channels = tuple(masked_channels)
        self.border = border
        self.ignore_index = ignore_index
        self.colour = augmentation.colour if rgb else 0.0
        self.blur_reach = int(BLUR_REACH * augmentation.blur_sigma[1] + 0.5)
        assert len(self.patch_size) in (2, 3)
        assert all(0 <= axis < len(self.patch_size) for axis in mirror_axes)
        assert channels == 3 or not rgb, f"colours of {channels} channels"
        if anisotropic is None:
            anisotropic = max(self.patch_size) / self.patch_size[0] > ANISOTROPIC
        in_plane = anisotropic and len(self.patch_size) == 3
        self.plane = self.patch_size[1:] if in_plane else self.patch_size
        self.coarsened = np.array(  # the axes along which the resolution may be lowered
            [
                not (in_plane and axis == 0) and length * augmentation.low_resolution_zoom[0] >= 1
                for axis, length in enumerate(self.patch_size)
            ]
        )

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draw all of one sample. Takes well under a millisecond, a few with elastic deformation."""
        a, channels, axes = self.augmentation, self.channels, len(self.patch_size)
        deformation, margin = self._draw_deformation(rng)

        def factors(probability: float, limits: tuple[float, float]) -> np.ndarray:
            return two_sided(rng, limits, channels) if rng.random() < probability else np.ones(channels)

        noise_std = rng.uniform(*a.noise_std) if rng.random() < a.noise else 0.0
        sigma = np.zeros((channels, axes))
        if rng.random() < a.blur:
            blurred = rng.random((channels, 1)) < a.blur_per_channel
            sigma = np.where(blurred, rng.uniform(*a.blur_sigma, size=sigma.shape), 0.0)
        brightness, contrast = factors(a.brightness, a.brightness_range), factors(a.contrast, a.contrast_range)
        lengths = np.tile(np.array(self.patch_size), (channels, 1))
        if rng.random() < a.low_resolution:
            coarser = rng.random((channels, 1)) < a.low_resolution_per_channel
            zoomed = np.round(lengths * rng.uniform(*a.low_resolution_zoom, size=(channels, 1))).astype(int)
            lengths = np.where(coarser & self.coarsened, zoomed, lengths)
        gamma_inverted, gamma = factors(a.gamma_inverted, a.gamma_range), factors(a.gamma, a.gamma_range)
        colour = None
        if rng.random() < self.colour:
            angle = 2 * np.pi * rng.uniform(-a.colour_hue, a.colour_hue)
            colour = colour_matrix(angle, rng.uniform(*a.colour_saturation))
        flips = tuple(axis for axis in self.mirror_axes if rng.random() < a.mirroring)
        return Draw(
            deformation, margin, int(rng.integers(2**62)), noise_std, sigma, brightness, contrast, lengths,
            gamma_inverted, gamma, colour, flips, draw_mixing(a, self.patch_size, rng),
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Tensor], targets: Sequence[Tensor], draws: Sequence[Draw], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: of each sample (C, *size) float16 or float32, on any device: the patch, with as many voxels more
                before as after it on each axis. Sizes may differ; samples that do not move need no margin.
            targets: of each sample (*size) integer class indices, OUTSIDE = -1; or several label maps (n, *size), which
                are moved alike, the target first.
            draws: of each sample. Where the margin is too small for it, the image is padded.
            device: where it happens.

        Returns:
            Images (B, C, *patch_size) float32 and targets (B, *patch_size) or (B, n, *patch_size), of the dtype that
            came, OUTSIDE turned into 0; on `device`.
        """
        axes, batch = len(self.patch_size), len(draws)
        maps = targets[0].shape[:-axes]  # none, or how many
        out = torch.empty((batch, self.channels, *self.patch_size), device=device)
        labels = torch.empty((batch, *(maps or (1,)), *self.patch_size), dtype=targets[0].dtype, device=device)
        for image, target, draw, image_out, labels_out in zip(images, targets, draws, out, labels, strict=True):
            target = target.view(*labels_out.shape[:1], *target.shape[-axes:])
            place(image, target, draw.deformation, draw.margin, draw.flips, self.border, image_out, labels_out)
        self._change_intensities(out, draws)
        if self.masked_channels:
            inside = labels[:, 0] >= 0
            for channel in self.masked_channels:
                out[:, channel] *= inside
        labels.clamp_(min=0)
        mix(out, labels, [draw.mixing for draw in draws], self.ignore_index)
        return out, labels.view(batch, *maps, *self.patch_size)

    def _change_intensities(self, images: Tensor, draws: Sequence[Draw]) -> None:
        """Noise, blur, brightness, contrast, low resolution, both gammas and colour of (B, C, *patch), in place."""
        channels = images.view(-1, *self.patch_size)

        def of_channels(field: str) -> np.ndarray:
            return np.concatenate([getattr(draw, field) for draw in draws])

        for image, draw in zip(images, draws, strict=True):
            if draw.noise_std:
                generator = torch.Generator(images.device).manual_seed(draw.noise_seed)
                noise = torch.empty_like(image).normal_(generator=generator)
                image.add_(noise, alpha=draw.noise_std)
        sigma = of_channels("blur_sigma")
        _change(channels, (sigma > 0).any(axis=1), partial(blur, reach=self.blur_reach), sigma)
        brightness, contrast = of_channels("brightness"), of_channels("contrast")
        _change(channels, brightness != 1, brighten, brightness)
        _change(channels, contrast != 1, stretch, contrast)
        lengths = of_channels("low_resolution")
        _change(channels, (lengths != self.patch_size).any(axis=1), coarsen, lengths)
        for field, sign in (("gamma_inverted", -1.0), ("gamma", 1.0)):
            gamma = of_channels(field)
            _change(channels, gamma != 1, bend, gamma, np.full_like(gamma, sign))
        for image, draw in zip(images, draws, strict=True):
            if draw.colour is not None:
                matrix = deform.moved(torch.from_numpy(draw.colour.astype(np.float32)), image.device)
                image.copy_((matrix @ image.flatten(1)).view_as(image))

    def _draw_deformation(self, rng: np.random.Generator) -> tuple[Deformation | None, tuple[int, ...]]:
        a, dims = self.augmentation, len(self.plane)
        elastic, rotation, scaling = rng.random(3) < (a.elastic, a.rotation, a.scaling)
        if not (elastic or rotation or scaling):
            return None, (0,) * len(self.patch_size)
        matrix = np.eye(dims)
        if rotation:
            angle = np.deg2rad(self._largest_angle())
            for axes in ((0, 1),) if dims == 2 else ((1, 2), (2, 0), (0, 1)):
                matrix = _turn(dims, axes, -rng.uniform(-angle, angle)) @ matrix
        if scaling:
            matrix = matrix * rng.uniform(*a.scaling_range)
        control = draw_control(self.plane, rng.uniform(*a.elastic_magnitude), rng) if elastic else None
        deformation = Deformation(matrix, control)
        beyond = deformation.reach(self.plane) - (np.array(self.plane) - 1) / 2
        margin = np.maximum(np.ceil(beyond - 1e-4), 0).astype(int)  # 1e-4 voxels beyond the last are the last
        slices = (0,) * (len(self.patch_size) - dims)
        return deformation, (*slices, *margin.tolist())

    def _largest_angle(self) -> float:
        """Degrees."""
        if len(self.plane) == 3:
            return self.augmentation.rotation_degrees_3d
        oblong = len(self.patch_size) == 2 and max(self.plane) / min(self.plane) > OBLONG
        return self.augmentation.rotation_degrees_2d_oblong if oblong else self.augmentation.rotation_degrees_2d


# Steps: each changes channels (n, *patch) in place ------------------------------------------------


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

    The line goes on beyond its ends as its own mirror image (d c b a | a b c d | d c b a), with a period of twice its
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


def _change(channels: Tensor, drawn: Any, step: Step, *parameters: np.ndarray) -> None:
    """Apply a step to some of the channels (n, *patch), as `drawn` (n) says, with the parameters (n, ...) of these.

    A GPU takes them together. A CPU takes one at a time, in place: that saves gathering and scattering them.
    """
    numbers = np.flatnonzero(drawn)
    values = [deform.moved(torch.from_numpy(p[numbers].astype(np.float32)), channels.device) for p in parameters]
    if deform.in_pieces(channels.device):
        for k, number in enumerate(numbers):
            step(channels[number : number + 1], *(value[k : k + 1] for value in values))
    elif len(numbers):
        index = deform.moved(torch.from_numpy(numbers), channels.device)
        chosen = channels[index]
        step(chosen, *values)
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


def _turn(dims: int, axes: tuple[int, int], angle: float) -> np.ndarray:
    """Rotation matrix (dims, dims) within the plane of two axes, the first towards the second. Radians."""
    first, second = axes
    matrix = np.eye(dims)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix
