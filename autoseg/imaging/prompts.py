"""Prompts: what a person says about a segmentation, the channels that a network sees of it, and a simulated person.

A prompt names a label (a class index; 0 is background) and where it is:

    Click      one voxel
    Scribble   a line from point to point
    InBox      somewhere in a box, to whose faces it reaches

A network that takes prompts sees, after the channels of the image (`prompt_channels`):

    for background and for every label   1 in a ball about each click and along each scribble, HINT inside a box
    for every label                      1 where the present mask has it

Balls have a radius in mm, so that a click is as large on thick slices as on thin ones. The last prompt counts where
balls of several labels meet. Without any prompt all of these channels are 0, and so is the mask: this is how such a
network is asked for an automatic segmentation.

`next_prompt` is the simulated person that networks are trained and measured with: it clicks on the deepest voxel of the
largest error, as in RITM (Sofiiuk et al., ICIP 2022) and nnInteractive (Isensee et al., CVPR 2025 Workshops).

Arrays have any number of spatial axes, in the order of the array; spacings and places have as many entries.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy import ndimage

Place = tuple[int, ...]
Kind = Literal["click", "scribble", "box"]

HINT = 0.5  # inside a box: its label is there, but not in every voxel
DEPTH = 0.7  # of the depth of the deepest voxel: a person who is not exact clicks no shallower
JITTER = 0.1  # of a box's edge, by which its faces are off
TOLERANCE = 1e-6  # of a radius, so that a voxel at exactly this distance belongs to the ball


@dataclass(frozen=True)
class Click:
    """This voxel has this label."""

    kind: ClassVar[Kind] = "click"
    at: Place
    index: int  # class index

    @property
    def points(self) -> tuple[Place, ...]:
        return (self.at,)


@dataclass(frozen=True)
class Scribble:
    """The voxels on straight lines from point to point have this label."""

    kind: ClassVar[Kind] = "scribble"
    points: tuple[Place, ...]
    index: int


@dataclass(frozen=True)
class InBox:
    """An object of this label lies in this box and reaches to its faces."""

    kind: ClassVar[Kind] = "box"
    lower: Place
    upper: Place  # the first voxel beyond, on every axis
    index: int

    @property
    def points(self) -> tuple[Place, ...]:
        return (self.lower, tuple(stop - 1 for stop in self.upper))


Prompt = Click | Scribble | InBox


def prompt_of(kind: Kind, points: Sequence[Place], index: int) -> Prompt:
    """A prompt by its kind: a click has one voxel, a box two opposite ones, which belong to it."""
    if kind == "click":
        return Click(points[0], index)
    if kind == "scribble":
        return Scribble(tuple(points), index)
    lower, upper = (tuple(of(pair) for pair in zip(*points, strict=True)) for of in (min, max))
    return InBox(lower, tuple(last + 1 for last in upper), index)


def prompt_channels(num_labels: int) -> int:
    """How many channels a network sees beside those of the image."""
    return 2 * num_labels + 1


def channels_of(
    prompts: Sequence[Prompt],
    mask: np.ndarray,
    spacing: Sequence[float],
    *,
    radius_mm: float,
    num_labels: int,
    lower: Place | None = None,
) -> np.ndarray:
    """Draw prompts and the present mask: float32 (prompt_channels, *s).

    Args:
        prompts: in the order in which they were given.
        mask: (*s) class indices.
        spacing: mm along each axis.
        lower: where `mask` begins in the array that the prompts name voxels of; None: at its first voxel.
    """
    drawn = draw(
        prompts, mask.shape, spacing, radius_mm=radius_mm, num_labels=num_labels, lower=lower or (0,) * mask.ndim
    )
    return np.concatenate([drawn, *((mask == label)[None].astype(np.float32) for label in range(1, num_labels + 1))])


def draw(
    prompts: Sequence[Prompt],
    shape: Sequence[int],
    spacing: Sequence[float],
    *,
    radius_mm: float,
    num_labels: int,
    lower: Place,
) -> np.ndarray:
    """Draw prompts into a window that begins at `lower`: float32 (num_labels + 1, *shape)."""
    channels = np.zeros((num_labels + 1, *shape), np.float32)
    for prompt in prompts:
        if isinstance(prompt, InBox):
            inside = tuple(
                slice(max(a - first, 0), max(b - first, 0))
                for a, b, first in zip(prompt.lower, prompt.upper, lower, strict=True)
            )
            part = channels[prompt.index][inside]
            np.maximum(part, HINT, out=part)
    for prompt in prompts:
        if not isinstance(prompt, InBox):
            for point in line_through(prompt.points):
                _draw_ball(channels, prompt.index, [p - first for p, first in zip(point, lower, strict=True)], spacing,
                           radius_mm)  # fmt: skip
    return channels


def reach_of(radius_mm: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """How many voxels a ball extends from its centre along each axis."""
    return tuple(int(radius_mm * (1 + TOLERANCE) / step) for step in spacing)


def line_through(points: Sequence[Place]) -> list[Place]:
    """The voxels on straight lines from point to point, each once, in order.

    >>> line_through([(0, 0), (2, 4)])
    [(0, 0), (0, 1), (1, 2), (2, 3), (2, 4)]
    """
    found = [tuple(points[0])]
    for start, stop in itertools.pairwise(points):
        steps = max(abs(b - a) for a, b in zip(start, stop, strict=True))
        for n in range(1, steps + 1):
            found.append(tuple(a + _rounded((b - a) * n, steps) for a, b in zip(start, stop, strict=True)))
    return list(dict.fromkeys(found))


def next_prompt(
    reference: np.ndarray,
    mask: np.ndarray,
    spacing: Sequence[float],
    *,
    ignored: int | None = None,
    kind: Kind = "click",
    rng: np.random.Generator | None = None,
) -> Prompt | None:
    """What a person would say next: where the largest connected error is, and what is there.

    An error is connected where voxels of one label in the reference, which have another one in the mask, share a face.

    Args:
        reference, mask: (*s) class indices.
        spacing: mm along each axis.
        ignored: index in the reference that never counts as an error.
        kind: "scribble": a line inside the error; "box": around the object of the reference that the error belongs to,
            or a click where that is background.
        rng: a person who is not exact: anywhere in the error no shallower than DEPTH of its deepest voxel, and boxes
            JITTER off. None: the deepest voxel, the first of several.

    Returns:
        None: nothing is wrong.
    """
    found = _largest_error(reference, mask, ignored)
    if found is None:
        return None
    index, box, error = found
    padded = np.pad(error, 1)  # an error ends at the edge of the image
    depth = ndimage.distance_transform_edt(padded, sampling=spacing)[(slice(1, -1),) * error.ndim]
    at = _in(box, _deep(depth, rng))
    if kind == "scribble":
        return Scribble((at, _in(box, _visible_from(error, depth, at, box, rng))), index)
    if kind == "box" and index:
        return _box_around(reference, index, at, rng)
    return Click(at, index)


def _largest_error(
    reference: np.ndarray, mask: np.ndarray, ignored: int | None
) -> tuple[int, tuple[slice, ...], np.ndarray] | None:
    """Label in the reference, box, and mask within it of the largest connected error; the first of several."""
    wrong = reference != mask
    if ignored is not None:
        wrong &= reference != ignored
    best: tuple[int, tuple[slice, ...], np.ndarray] | None = None
    size = 0
    for index in np.unique(reference[wrong]):
        labelled, _ = ndimage.label(wrong & (reference == index))
        sizes = np.bincount(labelled.ravel())
        sizes[0] = 0
        largest = int(sizes.argmax())
        if sizes[largest] > size:
            size = int(sizes[largest])
            (box,) = ndimage.find_objects((labelled == largest).view(np.uint8))
            best = int(index), box, labelled[box] == largest
    return best


def _deep(depth: np.ndarray, rng: np.random.Generator | None) -> Place:
    """A voxel of the deepest ones."""
    places = np.flatnonzero(depth >= (1.0 if rng is None else DEPTH) * depth.max())
    chosen = places[0] if rng is None else rng.choice(places)
    return tuple(int(i) for i in np.unravel_index(chosen, depth.shape))


def _visible_from(
    error: np.ndarray, depth: np.ndarray, at: Place, box: tuple[slice, ...], rng: np.random.Generator | None
) -> Place:
    """The end of a line that begins at a voxel and stays in the error: the furthest of some voxels tried."""
    start = tuple(i - s.start for i, s in zip(at, box, strict=True))
    places = np.flatnonzero(depth >= 0.5 * depth.max())
    tried = places[:: max(1, len(places) // 16)] if rng is None else rng.choice(places, min(16, len(places)))
    ends = [tuple(int(i) for i in np.unravel_index(place, error.shape)) for place in tried]
    ends.sort(key=lambda end: -math.dist(end, start))
    return next((end for end in ends if all(error[point] for point in line_through([start, end]))), start)


def _box_around(reference: np.ndarray, index: int, at: Place, rng: np.random.Generator | None) -> InBox:
    """The box of the component that a voxel belongs to, off by JITTER where a person is not exact."""
    labelled, _ = ndimage.label(reference == index)
    (box,) = ndimage.find_objects((labelled == labelled[at]).view(np.uint8))
    lower, upper = [s.start for s in box], [s.stop for s in box]
    if rng is not None:
        off = [round(JITTER * (b - a)) for a, b in zip(lower, upper, strict=True)]
        lower = [max(0, a + int(rng.integers(-n, n + 1))) for a, n in zip(lower, off, strict=True)]
        upper = [
            max(a + 1, min(size, b + int(rng.integers(-n, n + 1))))
            for a, b, n, size in zip(lower, upper, off, reference.shape, strict=True)
        ]
    return InBox(tuple(lower), tuple(upper), index)


def _in(box: tuple[slice, ...], place: Place) -> Place:
    return tuple(i + s.start for i, s in zip(place, box, strict=True))


def _rounded(numerator: int, denominator: int) -> int:
    """A quotient to the nearest whole number, halves to the even one."""
    return round(numerator / denominator)


def _draw_ball(
    channels: np.ndarray, index: int, centre: Sequence[int], spacing: Sequence[float], radius_mm: float
) -> None:
    """Set a ball to 1 in one channel and to 0 in the others, as far as it lies in the array."""
    reach = reach_of(radius_mm, spacing)
    box = [(max(c - r, 0), min(c + r + 1, size)) for c, r, size in zip(centre, reach, channels.shape[1:], strict=True)]
    if any(stop <= start for start, stop in box):
        return
    squares = [
        ((np.arange(start, stop) - c) * step) ** 2 for (start, stop), c, step in zip(box, centre, spacing, strict=True)
    ]
    ball = sum(np.ix_(*squares)) <= (radius_mm * (1 + TOLERANCE)) ** 2
    part = channels[(slice(None), *(slice(*edges) for edges in box))]
    part[:, ball] = 0
    part[index][ball] = 1
