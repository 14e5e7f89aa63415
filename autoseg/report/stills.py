"""Pictures of one case: three planes through its largest error, with contours of reference and segmentation.

A picture is an SVG: the grey slice as a small image, contours as lines that stay sharp at any size. Coordinates are mm,
so that voxels that are not cubes look as they are.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from markupsafe import Markup
from scipy import ndimage

from autoseg.imaging.components import as_slices, bounding_box
from autoseg.imaging.geometry import Axes3, Vector3

MARGIN = 0.18  # around the labels, as a share of their extent,
MARGIN_MM = 8.0  # and at least this
MOST_SEARCHED = 30_000_000  # voxels in which the largest error is looked for: some 600 MB
MOST_PIXELS = 384  # along one edge of a picture
SMALL = 128  # pixels along an edge up to which a slice is stored without loss
WINDOW = (0.5, 99.5)  # percentiles that are black and white
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class CaseArrays:
    """One case in canonical order: axes grow towards S, P, L (or as stored)."""

    id: str
    image: np.ndarray  # (Z, Y, X) float32: one channel
    reference: np.ndarray  # (Z, Y, X) class indices; ignored voxels are 0 in both maps
    segmentation: np.ndarray  # (Z, Y, X) class indices
    spacing: Vector3  # mm
    canonical: bool = True
    objects: tuple[np.ndarray, np.ndarray] | None = None  # numbers of objects in the two maps, whose outlines are drawn

    @property
    def errors(self) -> np.ndarray:
        """Voxels where segmentation and reference differ, bool (Z, Y, X)."""
        return self.reference != self.segmentation

    @property
    def foreground(self) -> np.ndarray:
        return (self.reference > 0) | (self.segmentation > 0)

    @cached_property
    def at(self) -> Axes3:
        """Voxel in the middle of the largest error (`largest_error`), which takes a while to find."""
        return largest_error(self)


@dataclass(frozen=True)
class Still:
    """One plane of a case."""

    plane: str
    position: str  # where it is, in words
    svg: Markup


def around(case: CaseArrays) -> tuple[slice, slice, slice]:
    """The labels with a margin; the whole image where it has none."""
    found = case.foreground
    if not found.any():
        return as_slices(tuple((0, extent) for extent in found.shape))  # type: ignore[arg-type]
    box = []
    for (low, high), extent, step in zip(bounding_box(found), found.shape, case.spacing, strict=True):
        margin = int(np.ceil(max(MARGIN * (high - low), MARGIN_MM / step)))
        box.append((max(0, low - margin), min(extent, high + margin)))
    return as_slices((box[0], box[1], box[2]))


def largest_error(case: CaseArrays) -> Axes3:
    """The voxel in the middle of the thickest error, (Z, Y, X); without any, in the middle of the labels.

    Errors are thin shells nearly everywhere, so the largest connected one says little: it is the voxel that is farthest
    from any correct one, in mm.
    """
    errors = case.errors
    wanted = errors if errors.any() else case.foreground
    if not wanted.any():
        return (wanted.shape[0] // 2, wanted.shape[1] // 2, wanted.shape[2] // 2)
    box = as_slices(bounding_box(wanted))
    every = max(1, math.ceil((wanted[box].size / MOST_SEARCHED) ** (1 / 3)))  # voxel that is looked at, of large images
    searched = wanted[box][::every, ::every, ::every]
    if not searched.any():
        searched, every = wanted[box], 1
    padded = np.pad(searched, 1)  # beyond the image nothing is wrong
    flat = [extent == 1 for extent in wanted.shape]
    spacing = [step * (1e6 if thin else 1) for step, thin in zip(case.spacing, flat, strict=True)]
    depth = ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]
    at = np.unravel_index(int(depth.argmax()), depth.shape)
    z, y, x = (every * int(index) + axis.start for index, axis in zip(at, box, strict=True))
    return (z, y, x)


def stills(case: CaseArrays) -> list[Still]:
    """Three planes through the largest error; one, of a flat image."""
    box, at = around(case), case.at
    grey = grey_levels(case.image[box])
    maps = tuple(array[box] for array in case.objects or (case.reference, case.segmentation))
    inside = [index - axis.start for index, axis in zip(at, box, strict=True)]
    planes = [axis for axis in range(3) if not (case.image.shape[0] == 1 and axis > 0)]
    names = PLANES if case.canonical else ("plane 1", "plane 2", "plane 3")
    found = []
    for axis in planes:
        rows, columns = (other for other in range(3) if other != axis)
        index = inside[axis]
        flip = case.canonical and axis > 0  # superior above
        slices = [array.take(index, axis)[:: -1 if flip else 1] for array in (grey, *maps)]
        cross = (inside[rows], inside[columns])
        if flip:
            cross = (slices[0].shape[0] - 1 - cross[0], cross[1])
        name = f"{names[axis]} plane of {case.id}"
        svg = _picture(slices, (case.spacing[rows], case.spacing[columns]), cross, name)
        found.append(Still(names[axis], f"{'zyx'[axis]} = {at[axis]}", svg))
    return found


def grey_levels(image: np.ndarray) -> np.ndarray:
    """An image as uint8, from black to white between two percentiles."""
    low, high = np.percentile(image, WINDOW)
    scaled = (image.astype(np.float32) - low) * (255 / max(float(high - low), 1e-6))
    return scaled.clip(0, 255).astype(np.uint8)


def _picture(slices: Sequence[np.ndarray], spacing: tuple[float, float], cross: tuple[int, int], name: str) -> Markup:
    """One slice as SVG.

    Args:
        slices: grey levels, reference and segmentation, each (rows, columns).
        spacing: of rows and columns, mm.
        cross: row and column of the largest error.
    """
    grey, reference, segmentation = slices
    height, width = grey.shape[0] * spacing[0], grey.shape[1] * spacing[1]
    x, y = (cross[1] + 0.5) * spacing[1], (cross[0] + 0.5) * spacing[0]
    tick = 0.045 * max(height, width)
    marks = (
        f"M{x:.1f} 0v{tick:.1f}M{x:.1f} {height:.1f}v-{tick:.1f}M0 {y:.1f}h{tick:.1f}M{width:.1f} {y:.1f}h-{tick:.1f}"
    )
    parts = [
        Markup('<svg class="still" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            f"{width:.2f}", f"{height:.2f}", name
        ),
        Markup('<image href="{}" width="{}" height="{}" preserveAspectRatio="none"/>').format(
            _encoded(grey), f"{width:.2f}", f"{height:.2f}"
        ),
        Markup('<path class="mark" d="{}"/>').format(marks),
        Markup('<path class="reference" d="{}"/>').format(outline(reference, spacing)),
        Markup('<path class="segmentation" d="{}"/>').format(outline(segmentation, spacing)),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def outline(classes: np.ndarray, spacing: tuple[float, float]) -> str:
    """Contours of every class, or object, of a slice, as the data of an SVG path; "" where there is none."""
    from contourpy import contour_generator

    numbers, compact = np.unique(classes, return_inverse=True)
    compact = compact.reshape(classes.shape) + (0 if numbers[0] == 0 else 1)
    parts = []
    for number, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        mask = np.pad((compact[box] == number).astype(np.float32), 1)
        rows, columns = (
            (np.arange(span.start - 1, span.stop + 1) + 0.5) * step for span, step in zip(box, spacing, strict=True)
        )
        for line in contour_generator(columns, rows, mask).lines(0.5):
            points = " ".join(f"{x:.4g},{y:.4g}" for x, y in _corners(np.asarray(line)))
            parts.append(f"M{points}Z")
    return "".join(parts)


def _corners(line: np.ndarray) -> np.ndarray:
    """The points of a closed line at which it turns."""
    before, after = np.diff(line[:-1], axis=0, prepend=line[-2:-1]), np.diff(line, axis=0)
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-6
    return line[:-1][turns]


def _encoded(grey: np.ndarray) -> str:
    """A slice as an image inside the page: PNG where it is small, otherwise JPEG."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(grey))
    if (largest := max(picture.size)) > MOST_PIXELS:
        edges = [max(1, round(edge * MOST_PIXELS / largest)) for edge in picture.size]
        picture = picture.resize((edges[0], edges[1]), Image.Resampling.LANCZOS)
    kind = "png" if max(picture.size) <= SMALL else "jpeg"
    file = io.BytesIO()
    picture.save(file, format=kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
