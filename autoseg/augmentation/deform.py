"""The sampling pass: rotation, scaling, elastic deformation and mirroring of a patch, image and labels together.

Where a voxel comes from is separable: a sum of one line per axis (affine), and a product of one spline basis per axis
(elastic). So the coordinates are never stored: they are made for a few planes at a time, in the cache of a CPU, and in
one piece on a GPU. Image and labels share their corners: the image is interpolated linearly, the label with the largest
sum of corner weights wins, which is what interpolating every class' indicator gives, at a cost that does not grow with
the number of classes. (On a CPU, `affine_grid` and `grid_sample` take as long for the image alone, and five times as
long again for the indicators of four classes.)

What numpy does here runs before the patch is read, in any process: it says how far beyond the patch a deformation
reaches. What torch does runs on the device of the training and never waits for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.augmentation.formulas import spline_basis
from autoseg.augmentation.presets import ELASTIC_INTERVALS

OUTSIDE = -1  # the label of background voxels outside the imaged body
POINTS_AT_ONCE = 2**16  # sampled together on a CPU, so that corners and weights stay in its cache


@dataclass(frozen=True)
class Deformation:
    """Where the voxels of a patch come from: matrix @ (voxel + spline(voxel)), relative to the patch's centre."""

    matrix: np.ndarray  # (d, d); d = 2 for a patch of 3 axes treats every slice alike
    control: np.ndarray | None  # (d, *points) displacement of the control points, in voxels

    def reach(self, plane: tuple[int, ...]) -> np.ndarray:
        """How far from the centre the farthest coordinate lies on each axis, (d) voxels, for a patch of this shape.

        A deformation that does not fold takes its extremes on the faces of the patch, so only those are looked at.
        """
        half = (np.array(plane) - 1) / 2
        if self.control is None:
            return np.abs(self.matrix) @ half
        lines = [np.linspace(-h, h, length) for h, length in zip(half, plane, strict=True)]
        bases = [spline_basis(length, max(plane) / ELASTIC_INTERVALS) for length in plane]
        farthest = np.zeros(len(plane))
        for axis in range(len(plane)):
            ends = [slice(None, None, max(n - 1, 1)) if axis == k else slice(None) for k, n in enumerate(plane)]
            field = self.control
            for basis, end in zip(bases, ends, strict=True):  # each takes the first grid axis away, appends voxels
                field = np.tensordot(field, basis[end], axes=([1], [1]))
            mesh = np.stack(np.meshgrid(*(line[end] for line, end in zip(lines, ends, strict=True)), indexing="ij"))
            coordinates = np.tensordot(self.matrix, mesh + field, axes=1)
            farthest = np.maximum(farthest, np.abs(coordinates).reshape(len(plane), -1).max(axis=1))
        return farthest


def draw_control(plane: tuple[int, ...], magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the control points (d, *points) of a smooth random displacement: a cubic B-spline with normal coefficients.

    `magnitude` is the standard deviation of the displacement along each axis, as a share of the points' distance.
    """
    distance = max(plane) / ELASTIC_INTERVALS
    grid = [spline_basis(length, distance).shape[1] for length in plane]
    return rng.standard_normal((len(plane), *grid)) * (magnitude * distance)


def place(
    image: Tensor, labels: Tensor, deformation: Deformation | None, margin: Sequence[int], flips: Sequence[int],
    border: float, image_out: Tensor, labels_out: Tensor,
) -> None:  # fmt: skip
    """Crop or deform one sample, mirror it, and write it where it belongs in a batch.

    Args:
        image, labels: (C, *size) floating and (n, *size) integer, on any device: the patch, with as many voxels more
            before as after it on each axis. Where the margin is missing they are padded, by `border` and OUTSIDE.
        flips: spatial axes.
        image_out, labels_out: (C, *patch) float32 and (n, *patch), views into the batch.
    """
    patch = image_out.shape[1:]
    image, labels = (
        fit(moved(array, image_out.device), patch, margin, value)
        for array, value in ((image, border), (labels, OUTSIDE))
    )
    dims = len(patch) if deformation is None else len(deformation.matrix)
    beside = flips if deformation is None else [axis for axis in flips if axis < len(patch) - dims]
    if beside:
        axes = [axis - len(patch) for axis in beside]
        image, labels = image.flip(axes), labels.flip(axes)
    if deformation is None:
        image_out.copy_(image)
        labels_out.copy_(labels)
        return
    inside = {axis - (len(patch) - dims) for axis in flips}
    source = Source(deformation, tuple(patch[-dims:]), tuple(image.shape[-dims:]), inside, image.device)
    resample(image.float(), labels, source, image_out, labels_out)


def fit(array: Tensor, patch_size: Sequence[int], margin: Sequence[int], value: float) -> Tensor:
    """Crop or pad the last axes of an array about their centre to the patch, `margin` on both sides."""
    padding: list[int] = []
    for length, patch, m in zip(array.shape[1:], patch_size, margin, strict=True):
        assert (length - patch) % 2 == 0, f"{tuple(array.shape[1:])} and {tuple(patch_size)} have no common centre"
        padding = [(patch - length) // 2 + m] * 2 + padding  # torch names the last axis first
    return F.pad(array, padding, value=value) if any(padding) else array


class Source:
    """Coordinates in an array, for the voxels of a deformed patch: those of some of its planes at a time."""

    def __init__(
        self, deformation: Deformation, shape: tuple[int, ...], size: tuple[int, ...], flips: set[int],
        device: torch.device,
    ) -> None:  # fmt: skip
        self.shape = shape  # of the patch, or of its slices
        self.size = size  # of the array, along the same axes
        matrix = deformation.matrix
        steps = [-1 if axis in flips else 1 for axis in range(len(shape))]
        lines = [np.linspace(-(n - 1) / 2, (n - 1) / 2, n)[::step] for n, step in zip(shape, steps, strict=True)]
        self.along = [_tensor(row[0] * lines[0], device).view(-1, *[1] * (len(shape) - 1)) for row in matrix]
        self.across = []  # what the other axes add, and the centre of the array
        for row, length in zip(matrix, size, strict=True):
            total = torch.full((1,) * (len(shape) - 1), (length - 1) / 2, device=device)
            for axis in range(1, len(shape)):
                total = total + _tensor(row[axis] * lines[axis], device).view(-1, *[1] * (len(shape) - 1 - axis))
            self.across.append(total)
        self.basis: Tensor | None = None
        if deformation.control is not None:
            distance = max(shape) / ELASTIC_INTERVALS
            bases = [_tensor(spline_basis(n, distance)[::step], device) for n, step in zip(shape, steps, strict=True)]
            # the matrix is applied to the few control points instead of to every voxel
            self.field = _tensor(np.tensordot(matrix, deformation.control, axes=1), device)  # (d, *points)
            for basis in bases[1:]:
                self.field = torch.tensordot(self.field, basis, dims=([2], [1]))  # at last (d, points, *shape[1:])
            self.basis = bases[0]

    def coordinates(self, axis: int, planes: slice) -> Tensor:
        """Where along one axis of the array some planes of the patch come from: (planes, *shape[1:]), in voxels."""
        result = self.along[axis][planes] + self.across[axis]
        if self.basis is not None:
            result += torch.tensordot(self.basis[planes], self.field[axis], dims=1)
        return result


def resample(image: Tensor, labels: Tensor, source: Source, image_out: Tensor, labels_out: Tensor) -> None:
    """Interpolate image (C, ..., *size) linearly and labels (n, ..., *size) by a vote of their corners.

    Coordinates outside the array take the value at its border. The results have the patch's shape in place of `size`.
    """
    volume = math.prod(source.size)
    values, marks = image.reshape(-1), labels.reshape(-1)
    value_starts, mark_starts = (
        torch.arange(0, len(flat), volume, dtype=torch.int32, device=flat.device)[:, None] for flat in (values, marks)
    )
    values_out, marks_out = (
        out.view(len(starts), -1) for out, starts in ((image_out, value_starts), (labels_out, mark_starts))
    )
    # what is decided without a vote need not be voted on; but finding out which would make a GPU wait
    borders = _label_borders(labels, len(source.size)).view(-1) if in_pieces(image.device) else None
    undecided: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # flat index in the result; lowest corner; shares
    done = 0  # voxels of each channel
    for planes in _parts(source, len(value_starts), image.device):
        first, offsets, shares = _corners(source, planes)
        points = slice(done, done := done + len(first))
        where = (value_starts + first).view(-1)
        corners = [values[offset:].index_select(0, where).view(-1, len(first)) for offset in offsets]
        for share in shares:  # halves them, axis by axis
            corners = [torch.lerp(low, high, share) for low, high in zip(corners[::2], corners[1::2], strict=True)]
        values_out[:, points] = corners[0]

        where = (mark_starts + first).view(-1)
        if borders is None:
            found = _vote(marks, where, offsets, [share.repeat(len(mark_starts)) for share in shares])
        else:
            found = marks.index_select(0, where)
            some = borders.index_select(0, where).nonzero()[:, 0]
            row, point = some // len(first), some % len(first)
            place = row.mul_(marks_out.shape[1]).add_(point).add_(points.start)
            undecided.append((place, where.index_select(0, some), [share.index_select(0, point) for share in shares]))
        marks_out[:, points] = found.view(-1, len(first))
    if undecided:  # together: they are few
        places, wheres, parts = zip(*undecided, strict=True)
        winners = _vote(marks, torch.cat(wheres), offsets, [torch.cat(share) for share in zip(*parts, strict=True)])
        marks_out.view(-1).index_copy_(0, torch.cat(places), winners)


def in_pieces(device: torch.device) -> bool:
    """Is it better to do little at a time and nothing in vain? On a CPU; a GPU is to be filled, not waited for."""
    return device.type == "cpu"


def _parts(source: Source, rows: int, device: torch.device) -> list[slice]:
    """The planes of a patch in pieces."""
    count = source.shape[0]
    step = count
    if in_pieces(device):
        step = max(POINTS_AT_ONCE // (rows * math.prod(source.shape[1:])), 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _corners(source: Source, planes: slice) -> tuple[Tensor, list[int], list[Tensor]]:
    """The voxels around the sources of some planes, n in all.

    Returns:
        Flat index (n) int32 of the lowest corner; what to add to it for each of the 2^d corners, those that differ
        along the last axis beside each other; and the share of the upper corner (n) along each axis, the last first.
    """
    first: Tensor | None = None
    offsets, shares, stride = [0], [], 1
    for axis in reversed(range(len(source.size))):
        length = source.size[axis]
        place = source.coordinates(axis, planes).view(-1).clamp_(0, length - 1)
        floor = place.floor().clamp_(max=max(length - 2, 0))
        shares.append(place.sub_(floor))
        index = floor.int()
        first = index if first is None else first.add_(index, alpha=stride)
        step = stride if length > 1 else 0
        offsets = offsets + [offset + step for offset in offsets]
        stride *= length
    assert first is not None
    return first, offsets, shares


def _vote(marks: Tensor, first: Tensor, offsets: Sequence[int], shares: Sequence[Tensor]) -> Tensor:
    """The label with the largest sum of weights among the corners of each point (n); the lowest corner's in a tie."""
    weights = torch.ones_like(shares[0])[None]
    for share in shares:
        weights = torch.cat([weights * (1 - share), weights * share])
    labels = torch.stack([marks[offset:].index_select(0, first) for offset in offsets])
    winner, best = labels[0], torch.full_like(weights[0], -1)
    for candidate in labels:
        score = (labels == candidate).float().mul_(weights).sum(dim=0)
        winner = torch.where(score > best, candidate, winner)
        best = torch.maximum(best, score)
    return winner


def _label_borders(labels: Tensor, dims: int) -> Tensor:
    """Where the 2^d voxels from here upwards are not all of one label. Same shape, bool."""
    low = high = labels
    inside: tuple[Any, ...] = (...,)
    for axis in range(labels.ndim - dims, labels.ndim):
        length = max(labels.shape[axis] - 1, 1)
        above = labels.shape[axis] - length  # an axis of one voxel has no neighbours
        low = torch.minimum(low.narrow(axis, 0, length), low.narrow(axis, above, length))
        high = torch.maximum(high.narrow(axis, 0, length), high.narrow(axis, above, length))
        inside = (*inside, slice(length))
    borders = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    borders[inside] = low != high
    return borders


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array as float32 on the device, without waiting for it."""
    return moved(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. Only CUDA copies what may be freed before the copy is done."""
    return tensor.to(device, non_blocking=device.type == "cuda")
