"""The host chain: augmentation of one patch at a time, in numpy, for training without an accelerator.

The order is nnU-Net v2's, the numbers are those of `presets`. What changes intensities is listed in `host_intensities`.
The mesh of coordinates and its rotations are those of batchgenerators. Resampling is ours: linear, with the same
corners and weights for image and labels. Where nothing moves it costs nothing, and the part of the image that a
deformation reaches is known before it is read:

    deformation = chain.draw(rng)                      # often nothing moves: margin 0
    image, target = cut(patch grown by deformation.margin on both sides of every axis)
    image, target = chain(image, target, rng, deformation)

So nothing inside the image is ever replaced by padding (nnU-Net v2 reads a fixed larger patch, and pads what a strong
zoom-out misses). All draws come from `rng`: same generator, same result, in whatever process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from batchgenerators.augmentations.utils import (
    create_matrix_rotation_2d,
    create_matrix_rotation_x_3d,
    create_matrix_rotation_y_3d,
    create_matrix_rotation_z_3d,
    create_zero_centered_coordinate_mesh,
)

from autoseg.augmentation.formulas import spline_basis
from autoseg.augmentation.host_intensities import COLOUR_STEPS, STEPS, Step
from autoseg.augmentation.presets import ANISOTROPIC, ELASTIC_INTERVALS, OBLONG, Augmentation
from autoseg.imaging.labels import OUTSIDE

ROTATIONS_3D = (create_matrix_rotation_x_3d, create_matrix_rotation_y_3d, create_matrix_rotation_z_3d)
POINTS_AT_ONCE = 2**15  # resampled together, so that corners and weights stay in the cache


@dataclass(frozen=True)
class Deformation:
    """Where the voxels of a patch come from."""

    coordinates: (
        np.ndarray | None
    )  # (d, *last d axes of the patch) float32, relative to the patch's centre; None: nothing moves
    margin: tuple[int, ...]  # voxels beyond the patch that are reached, on either side of each axis


class HostChain:
    """The augmentation of patches of one size. Made by `build_chain`; holds no state between samples."""

    def __init__(
        self,
        augmentation: Augmentation,
        patch_size: tuple[int, ...],
        mirror_axes: tuple[int, ...],
        in_plane: bool,
        masked_channels: tuple[int, ...],
        border: float,
        steps: Sequence[tuple[float, Step]],
    ) -> None:
        self.augmentation = augmentation
        self.patch_size = patch_size
        self.mirror_axes = mirror_axes
        self.in_plane = in_plane
        self.masked_channels = masked_channels
        self.border = border
        self.steps = tuple((probability, step) for probability, step in steps if probability > 0)
        self.plane = patch_size[1:] if in_plane and len(patch_size) == 3 else patch_size

    def draw(self, rng: np.random.Generator) -> Deformation:
        """Draw rotation, scaling and elastic deformation of one sample."""
        table, dims = self.augmentation, len(self.plane)
        elastic, rotation, scaling = rng.random(3) < (table.elastic, table.rotation, table.scaling)
        if not (elastic or rotation or scaling):
            return Deformation(None, (0,) * len(self.patch_size))
        matrix = np.eye(dims)
        if rotation:
            angle = np.deg2rad(self._largest_angle())
            for about in (create_matrix_rotation_2d,) if dims == 2 else ROTATIONS_3D:
                matrix = about(rng.uniform(-angle, angle), matrix)
        if scaling:
            matrix = matrix * rng.uniform(*table.scaling_range)
        coordinates = _mesh(self.plane)
        if elastic:
            coordinates = coordinates + elastic_field(self.plane, rng.uniform(*table.elastic_magnitude), rng)
        coordinates = np.einsum("ji,j...->i...", matrix.astype(np.float32), coordinates.astype(np.float32))
        flat = coordinates.reshape(dims, -1)
        reach = np.maximum(flat.max(axis=1), -flat.min(axis=1)) - (np.array(self.plane) - 1) / 2
        margin = np.maximum(np.ceil(reach - 1e-4), 0).astype(int)  # 1e-4 voxels beyond the last are the last
        slices = (0,) * (len(self.patch_size) - dims)
        return Deformation(coordinates, (*slices, *margin.tolist()))

    def __call__(
        self, image: np.ndarray, target: np.ndarray, rng: np.random.Generator, deformation: Deformation | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample.

        Args:
            image: (C, *size) float16 or float32: the patch, with as many voxels more before as after it on each axis.
            target: (*size) integer class indices, OUTSIDE = -1; or several label maps (n, *size), which are moved
                alike, the target first.
            rng: source of all draws.
            deformation: from `draw`; drawn here if None. Where the margin is too small for it, the image is padded.

        Returns:
            Image (C, *patch_size) float32 and target (*patch_size) or (n, *patch_size), of the dtype that came, OUTSIDE
            turned into 0.
        """
        deformation = self.draw(rng) if deformation is None else deformation
        image, target = fit(image, target, self.patch_size, deformation.margin, self.border)
        if deformation.coordinates is None:
            image, target = np.array(image, dtype=np.float32), np.array(target)
        else:
            image, target = resample(image.astype(np.float32), target, deformation.coordinates)
        for probability, step in self.steps:
            if rng.random() < probability:
                step(image, rng)
        flips = [axis for axis in self.mirror_axes if rng.random() < self.augmentation.mirroring]
        if flips:
            axes = tuple(axis - len(self.patch_size) for axis in flips)
            image, target = (np.ascontiguousarray(np.flip(array, axes)) for array in (image, target))
        if self.masked_channels:
            image[np.ix_(self.masked_channels)] *= target.reshape(-1, *self.patch_size)[0] >= 0
        return image, np.maximum(target, 0)

    def _largest_angle(self) -> float:
        """Degrees."""
        if len(self.plane) == 3:
            return self.augmentation.rotation_degrees_3d
        oblong = len(self.patch_size) == 2 and max(self.plane) / min(self.plane) > OBLONG
        return self.augmentation.rotation_degrees_2d_oblong if oblong else self.augmentation.rotation_degrees_2d


def build_chain(
    augmentation: Augmentation,
    *,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    anisotropic: bool | None = None,
    masked_channels: Sequence[int] = (),
    rgb: bool = False,
    border: float = 0.0,
) -> HostChain:
    """Make the chain of nnU-Net v2 for patches of one size.

    Args:
        augmentation: probabilities and ranges.
        patch_size: (Z, Y, X) or (Y, X), as the network sees it.
        mirror_axes: spatial axes of the patch that may be flipped.
        anisotropic: rotate, scale, deform and coarsen within slices only (the last two axes). None: if the patch is
            more than 3 times as long as it has slices, nnU-Net v2's rule.
        masked_channels: those set to 0 again wherever the target is OUTSIDE.
        rgb: the three channels are red, green and blue: colours may be jittered.
        border: what stands outside the image.
    """
    patch = tuple(int(length) for length in patch_size)
    assert len(patch) in (2, 3)
    assert all(0 <= axis < len(patch) for axis in mirror_axes)
    if anisotropic is None:
        anisotropic = max(patch) / patch[0] > ANISOTROPIC
    in_plane = anisotropic and len(patch) == 3
    zoomed_out = augmentation.low_resolution_zoom[0]
    fixed = [axis for axis, n in enumerate(patch) if (in_plane and axis == 0) or n * zoomed_out < 1]
    steps = [
        (getattr(augmentation, name), make(augmentation, fixed))
        for name, make in STEPS.items()
        if rgb or name not in COLOUR_STEPS
    ]
    return HostChain(augmentation, patch, tuple(mirror_axes), in_plane, tuple(masked_channels), border, steps)


def elastic_field(shape: tuple[int, ...], magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth random displacement: a cubic B-spline with normal coefficients on a grid of control points.

    Args:
        shape: of the patch (or plane), d axes.
        magnitude: standard deviation of the displacement along each axis, as a share of the control points' distance.

    Returns:
        (d, *shape) displacement in voxels. Its standard deviation is the same everywhere.
    """
    distance = max(shape) / ELASTIC_INTERVALS
    bases = [spline_basis(length, distance) for length in shape]
    field = rng.standard_normal((len(shape), *(basis.shape[1] for basis in bases)))
    for basis in bases:  # each takes the first grid axis away and appends a voxel axis
        field = np.tensordot(field, basis, axes=([1], [1]))
    return field * (magnitude * distance)


def fit(
    image: np.ndarray, target: np.ndarray, patch_size: Sequence[int], margin: Sequence[int], border: float
) -> tuple[np.ndarray, np.ndarray]:
    """Crop or pad image (C, *size) and target (..., *size) about their centre to the patch, `margin` on both sides."""
    missing = []
    for length, patch, m in zip(image.shape[1:], patch_size, margin, strict=True):
        assert (length - patch) % 2 == 0, f"{image.shape[1:]} and {tuple(patch_size)} have no common centre"
        missing.append((patch - length) // 2 + m)
    if any(missing):
        inside: tuple[Any, ...] = (..., *(slice(-m, m) if m < 0 else slice(None) for m in missing))
        image, target = image[inside], target[inside]
        pads = [(max(m, 0), max(m, 0)) for m in missing]
        if any(before for before, _ in pads):
            image = np.pad(image, [(0, 0), *pads], constant_values=border)
            target = np.pad(target, [(0, 0)] * (target.ndim - len(pads)) + pads, constant_values=OUTSIDE)
    return image, target


def resample(image: np.ndarray, target: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate image and labels linearly at coordinates relative to the centre of the array.

    Labels: each class' indicator is interpolated and the largest wins, which is a vote of the corners by their weights.
    Where all corners agree there is nothing to decide: the cost does not grow with the number of classes.

    Args:
        image: (C, *size) float32.
        target: (*size) integer, or several label maps (n, *size).
        coordinates: (d, *shape) float32, d = 2 or 3. With d = 2 and three spatial axes, every slice is treated alike.
            Coordinates outside take the value at the border of the array.

    Returns:
        Image (C, *shape) and target (*shape) or (n, *shape), with the slice axis before `shape` where there is one.
    """
    dims, shape = len(coordinates), coordinates.shape[1:]
    size = target.shape[-dims:]
    rows = np.ascontiguousarray(image).reshape(-1, math.prod(size))
    label_rows = np.ascontiguousarray(target).reshape(-1, math.prod(size))
    border_rows = _label_borders(target, dims).reshape(label_rows.shape)
    points = coordinates.reshape(dims, -1)
    image_out = np.empty((len(rows), points.shape[1]), dtype=np.float32)
    target_out = np.empty((len(label_rows), points.shape[1]), dtype=target.dtype)
    for start in range(0, points.shape[1], POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        first, offsets, weights = _corners(points[:, part], size)
        for row, out in zip(rows, image_out, strict=True):
            out[part] = row.take(first) * weights[0]
            for offset, weight in zip(offsets[1:], weights[1:], strict=True):
                out[part] += row[offset:].take(first) * weight
        for row, borders, out in zip(label_rows, border_rows, target_out, strict=True):
            labels = row.take(first)
            if len(open_points := np.flatnonzero(borders.take(first))):
                labels[open_points] = _vote(row, first[open_points], offsets, weights[:, open_points])
            out[part] = labels
    return image_out.reshape(*image.shape[:-dims], *shape), target_out.reshape(*target.shape[:-dims], *shape)


def _corners(points: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The voxels around points (d, n) given relative to the centre of an array.

    Returns:
        Flat index (n) of the lowest corner, what to add to it for each of the 2^d corners, and their weights (2^d, n).
    """
    first = np.zeros(points.shape[1], dtype=np.intp)
    offsets, weights = [0], np.ones((1, points.shape[1]), dtype=np.float32)
    stride = 1
    for axis in reversed(range(len(size))):
        place = np.clip(points[axis] + np.float32((size[axis] - 1) / 2), 0, size[axis] - 1)
        floor = np.minimum(np.floor(place), max(size[axis] - 2, 0))
        first += floor.astype(np.intp) * stride
        place -= floor
        step = stride if size[axis] > 1 else 0
        offsets = [*offsets, *(offset + step for offset in offsets)]
        weights = np.concatenate([weights * (1 - place), weights * place])
        stride *= size[axis]
    return first, offsets, weights


def _label_borders(target: np.ndarray, dims: int) -> np.ndarray:
    """Where the 2^d voxels from here upwards are not all of one label. Same shape as the target."""
    low, high = target.copy(), target.copy()
    for axis in range(target.ndim - dims, target.ndim):
        here = (slice(None),) * axis + (slice(None, -1),)
        above = (slice(None),) * axis + (slice(1, None),)
        np.minimum(low[here], low[above], out=low[here])
        np.maximum(high[here], high[above], out=high[here])
    return low != high


def _vote(row: np.ndarray, first: np.ndarray, offsets: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """The label with the largest sum of weights among the corners of each point; the lowest corner's in a tie."""
    labels = np.stack([row[offset:].take(first) for offset in offsets])
    winner, best = labels[0].copy(), np.full(len(first), -1, dtype=np.float32)
    for candidate in labels:
        score = (weights * (labels == candidate)).sum(axis=0)
        better = score > best
        winner[better], best[better] = candidate[better], score[better]
    return winner


@lru_cache(maxsize=4)
def _mesh(shape: tuple[int, ...]) -> np.ndarray:
    """Coordinates (d, *shape) float32 of the voxels of a patch, relative to its centre."""
    mesh = create_zero_centered_coordinate_mesh(shape).astype(np.float32)
    mesh.setflags(write=False)
    return mesh
