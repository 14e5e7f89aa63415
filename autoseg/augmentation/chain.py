"""The device chain: augmentation of a batch in torch, on the device that trains.

Same numbers (`presets`), same order and same meaning as the chain on the host (`host_chain`), but other random draws.
It works in two halves:

    draw = chain.draw(rng)                            # numpy, in whatever process reads the patch
    image, target = cut(patch grown by draw.margin on both sides of every axis)
    images, targets = chain([image, ...], [target, ...], [draw, ...], device)

A `Draw` holds all that was drawn for one sample: how it moves, what each step of `intensities` does to it, a seed. So a
sample follows from its generator alone (seed and index), whatever else is in its batch; only mixing, which is off by
default, looks at the neighbour in the batch. Noise is drawn on the device: it repeats exactly on the same kind of
device, not across kinds.

What costs time is touched as little as possible: a transform visits only the channels for which it was drawn; samples
that do not move are copied once; mirroring is part of that copy or of the sampling pass (every later step treats both
directions of an axis alike); blur and low resolution are each one small matrix per axis. Nothing waits for the device.

Source of the transforms: nnU-Net v2; see `presets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation.deform import Deformation, draw_control, place
from autoseg.augmentation.intensities import STEPS, Patches
from autoseg.augmentation.mixing import Mixing, draw_mixing, mix
from autoseg.augmentation.presets import ANISOTROPIC, OBLONG, Augmentation


@dataclass(frozen=True)
class Draw:
    """What was drawn for one sample."""

    deformation: Deformation | None
    margin: tuple[int, ...]  # voxels beyond the patch that are reached, on either side of each axis
    flips: tuple[int, ...]  # spatial axes
    steps: dict[str, Any]  # name of each step of `intensities.STEPS` -> what it drew
    seed: int  # of what steps draw on the device
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
        assert len(self.patch_size) in (2, 3)
        assert all(0 <= axis < len(self.patch_size) for axis in mirror_axes)
        assert channels == 3 or not rgb, f"colours of {channels} channels"
        if anisotropic is None:
            anisotropic = max(self.patch_size) / self.patch_size[0] > ANISOTROPIC
        in_plane = anisotropic and len(self.patch_size) == 3
        self.plane = self.patch_size[1:] if in_plane else self.patch_size
        coarsened = [
            not (in_plane and axis == 0) and length * augmentation.low_resolution_zoom[0] >= 1
            for axis, length in enumerate(self.patch_size)
        ]
        self.patches = Patches(augmentation, channels, self.patch_size, np.array(coarsened), rgb)

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draw all of one sample. Takes well under a millisecond, a few with elastic deformation."""
        deformation, margin = self._draw_deformation(rng)
        steps = {step.name: step.draw(self.patches, rng) for step in STEPS}
        flips = tuple(axis for axis in self.mirror_axes if rng.random() < self.augmentation.mirroring)
        seed = int(rng.integers(2**62))
        return Draw(deformation, margin, flips, steps, seed, draw_mixing(self.augmentation, self.patch_size, rng))

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
        for step in STEPS:
            step.apply(self.patches, out, [draw.steps[step.name] for draw in draws], [draw.seed for draw in draws])
        if self.masked_channels:
            inside = labels[:, 0] >= 0
            for channel in self.masked_channels:
                out[:, channel] *= inside
        labels.clamp_(min=0)
        mix(out, labels, [draw.mixing for draw in draws], self.ignore_index)
        return out, labels.view(batch, *maps, *self.patch_size)

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


def _turn(dims: int, axes: tuple[int, int], angle: float) -> np.ndarray:
    """Rotation matrix (dims, dims) within the plane of two axes, the first towards the second. Radians."""
    first, second = axes
    matrix = np.eye(dims)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix
