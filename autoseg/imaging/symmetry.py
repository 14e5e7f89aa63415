"""Left and right of a body: its mid-sagittal plane, and the image at the mirrored place of a label.

    mid_plane     the plane across the last axis whose two sides look most alike
    mirror_sides  labels on one side of it, and how much their mirrored places resemble them

Networks are trained on mirrored patches. For a structure that is labelled on one side while its twin on the other side
is background (one kidney of two, the affected hip), mirrored patches show the twin and call it the structure. Three
measurements identify such a label: it is on one side; the image around it correlates with the image around its mirrored
place; and its outline is visible there as in its own place. The last distinguishes a twin from an organ that is as
bright but has another shape (the spleen is mirrored into the liver, where no outline of a spleen is visible).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from autoseg.imaging.geometry import Vector3

PLANE_EDGES = (64, 64, 128)  # voxels (Z, Y, X) of the coarse copy in which the plane is sought
PLANE_RANGE = (0.3, 0.7)  # of the width: bodies are near the middle of their images
SYMMETRIC = 0.5  # correlation of the two sides below which there is no plane
CROSSING = 0.01  # share of a label's voxels that may be across the plane
CONTEXT = 0.25  # of a label's extent: margin of the patch that is compared
PATCH_EDGE = 16  # voxels across a label in the coarse copy of that patch
RANGE = 3.0  # standard deviations of a label's intensities about their mean: values beyond count as equal
SMALLEST_DEVIATION = 0.02  # of the image's range
MOST_LABELS = 12  # compared in one case
SHIFTS = (0.3, 0.15, 0.15)  # of a label's extent (Z, Y, X): twins are not exactly opposite, kidneys least of all

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class MirrorSide:
    """A label on one side of the mid-sagittal plane, compared with its mirrored place."""

    offset_mm: float  # of its centre from the plane, towards the end of the last axis (left, in canonical orientation)
    likeness: float  # correlation of the image around it with the image around its mirrored place, -1 to 1
    outline: float  # correlation of its own outline with the image in its own place
    mirrored_outline: float  # and of the same outline, mirrored, with the image there
    other_label: str | None = None  # the label that covers most of the mirrored place, if one covers half of it


class _Patch(NamedTuple):
    """The window around a label in voxels, the factors of its coarse copy, and its blocks a twin may shift by."""

    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    factors: tuple[int, int, int]
    reach: tuple[int, int, int]


def mirror_sides(
    image: np.ndarray, target: np.ndarray, boxes: Sequence[Slices], present: Mapping[str, int], spacing: Vector3
) -> dict[str, MirrorSide]:
    """Compare every label on one side of the mid-sagittal plane with its mirrored place.

    Of many such labels, only the MOST_LABELS with the largest boxes are compared.

    Args:
        image: (C, Z, Y, X) float32; the last axis goes from side to side.
        target: (Z, Y, X) class indices.
        boxes: of class 1, 2, ...: around its voxels.
        present: label name -> class index, of those in the target.
        spacing: mm.

    Returns:
        Label name -> comparison; labels that cross the plane are left out, and all are where there is no plane.
    """
    width = image.shape[-1]
    low, high = (share * width for share in PLANE_RANGE)  # the plane will be between them
    candidates = {
        name: i
        for name, i in present.items()
        if _beyond(target, i, boxes[i - 1], low) >= 1 - CROSSING or _beyond(target, i, boxes[i - 1], high) <= CROSSING
    }
    if not candidates:
        return {}
    standard = _standardised(image)
    plane = mid_plane(standard)
    if plane is None:
        return {}
    beyond = {name: _beyond(target, i, boxes[i - 1], plane) for name, i in candidates.items()}
    sides = {n: i for n, i in candidates.items() if not CROSSING < beyond[n] < 1 - CROSSING}
    largest = sorted(sides, key=lambda name: -math.prod(axis.stop - axis.start for axis in boxes[sides[name] - 1]))
    names = {i: name for name, i in present.items()}
    compared = {
        name: _compare(standard, target, sides[name], boxes[sides[name] - 1], plane, spacing[2], names)
        for name in largest[:MOST_LABELS]
    }
    return {name: side for name, side in compared.items() if side is not None}


def mid_plane(image: np.ndarray) -> float | None:
    """Find the plane of symmetry across the last axis.

    Args:
        image: (C, Z, Y, X) float32, channels of one range.

    Returns:
        Its position in voxels, a multiple of 0.5; None where the two sides correlate less than SYMMETRIC.
    """
    factors = [max(1, -(-extent // edge)) for extent, edge in zip(image.shape[1:], PLANE_EDGES, strict=True)]
    coarse = _coarse(image, factors)
    width = coarse.shape[-1]
    best, twice_at = SYMMETRIC, None
    for twice in range(int(2 * PLANE_RANGE[0] * width), int(2 * PLANE_RANGE[1] * width)):
        sides = coarse[..., max(0, twice - width + 1) : min(width - 1, twice) + 1]
        alike = _correlation(sides, sides[..., ::-1])
        if alike > best:
            best, twice_at = alike, twice
    if twice_at is None:
        return None
    return round(2 * ((twice_at / 2 + 0.5) * factors[2] - 0.5)) / 2


def _beyond(target: np.ndarray, label: int, box: Slices, place: float) -> float:
    """Share of a label's voxels beyond a place on the last axis."""
    profile = (target[box] == label).sum(axis=(0, 1))
    return float(profile[np.arange(box[2].start, box[2].stop) > place].sum() / profile.sum())


def _compare(
    standard: np.ndarray,
    target: np.ndarray,
    label: int,
    box: Slices,
    plane: float,
    step_mm: float,
    names: Mapping[int, str],
) -> MirrorSide | None:
    """Compare one label with its mirrored place; None where that is outside the image."""
    mask = target[box] == label
    patch = _patch(box, target.shape)
    lows, highs = _range_of(standard[(slice(None), *box)], mask)
    window = tuple(slice(*edges) for edges in patch.window)
    own = _coarse(standard[(slice(None), *window)].clip(lows, highs), patch.factors)
    found = _best_shift(standard, own, patch, plane, (lows, highs))
    if found is None:
        return None
    likeness, mirrored, shift = found
    outline = _coarse((target[window] == label).astype(np.float32)[None], patch.factors)[0]
    shown = [_correlation(outline, channel) for channel in own]
    best = int(np.argmax(np.abs(shown)))  # the channel that shows the outline best
    sign = math.copysign(1.0, shown[best])
    values, counts = np.unique(_mirrored_values(target, mask, box, plane, shift), return_counts=True)
    most = int(values[counts.argmax()]) if len(values) else 0
    covered = len(values) > 0 and counts.max() >= mask.sum() / 2
    places, profile = np.arange(box[2].start, box[2].stop), mask.sum(axis=(0, 1))
    return MirrorSide(
        offset_mm=_short((float(np.average(places, weights=profile)) - plane) * step_mm),
        likeness=_short(likeness),
        outline=_short(sign * shown[best]),
        mirrored_outline=_short(sign * _correlation(outline, mirrored[best])),
        other_label=names.get(most) if covered and most != label else None,
    )


def _patch(box: Slices, shape: tuple[int, ...]) -> _Patch:
    extents = [axis.stop - axis.start for axis in box]
    pads = [0 if whole == 1 else max(3, int(CONTEXT * n)) for n, whole in zip(extents, shape, strict=True)]
    window = [
        (max(0, axis.start - pad), min(whole, axis.stop + pad))
        for axis, pad, whole in zip(box, pads, shape, strict=True)
    ]
    factors = [max(1, round(extent / PATCH_EDGE)) for extent in extents]
    reach = [
        0 if whole == 1 else int(share * n) // f
        for whole, share, n, f in zip(shape, SHIFTS, extents, factors, strict=True)
    ]
    return _Patch(_three(window), _three(factors), _three(reach))


def _best_shift(
    standard: np.ndarray, own: np.ndarray, patch: _Patch, plane: float, limits: tuple[np.ndarray, np.ndarray]
) -> tuple[float, np.ndarray, tuple[int, int, int]] | None:
    """The shift, in voxels, at which the mirrored place resembles a label's own most: likeness, patch there, shift."""
    z, y, x = patch.window
    across = (round(2 * plane) - x[1] + 1, round(2 * plane) - x[0] + 1)  # the mirrored window
    wide = [
        (start - n * f, stop + n * f)
        for (start, stop), n, f in zip((z, y, across), patch.reach, patch.factors, strict=True)
    ]
    there = _coarse(_window(standard, wide)[..., ::-1].clip(*limits), patch.factors)
    best = None
    for steps in product(*(range(2 * n + 1) for n in patch.reach)):
        corner = [slice(step, step + extent) for step, extent in zip(steps, own.shape[1:], strict=True)]
        alike = _correlation(own, there[(slice(None), *corner)])
        if best is None or alike > best[0]:  # not where the window leaves the image: NaN
            best = (alike, corner, steps) if alike == alike else best
    if best is None:
        return None
    dz, dy, dx = ((step - n) * f for step, n, f in zip(best[2], patch.reach, patch.factors, strict=True))
    return best[0], there[(slice(None), *best[1])], (dz, dy, -dx)


def _range_of(window: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest intensity (C, 1, 1, 1) that count around a label: RANGE deviations about its mean.

    Otherwise the air around the body would dominate the comparison.
    """
    inside = window[:, mask]
    mean, deviation = inside.mean(axis=1, dtype=np.float64), inside.std(axis=1, dtype=np.float64)
    reach = (RANGE * np.maximum(deviation, SMALLEST_DEVIATION))[:, None, None, None].astype(np.float32)
    middle = mean[:, None, None, None].astype(np.float32)
    return middle - reach, middle + reach


def _window(array: np.ndarray, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """A window (C, Z, Y, X) that may reach beyond the array, NaN there."""
    window = np.full((len(array), *(stop - start for start, stop in edges)), np.nan, array.dtype)
    inside = [(max(0, start), min(n, stop)) for (start, stop), n in zip(edges, array.shape[1:], strict=True)]
    if all(low < high for low, high in inside):
        at = [slice(low - start, high - start) for (start, _), (low, high) in zip(edges, inside, strict=True)]
        window[(slice(None), *at)] = array[(slice(None), *(slice(*edge) for edge in inside))]
    return window


def _mirrored_values(
    target: np.ndarray, mask: np.ndarray, box: Slices, plane: float, shift: tuple[int, int, int]
) -> np.ndarray:
    """Class indices at the mirrored places of a label's voxels, where these are inside the image."""
    z, y, x = (places + axis.start for places, axis in zip(np.nonzero(mask), box, strict=True))
    there = (z + shift[0], y + shift[1], round(2 * plane) - x + shift[2])
    inside = np.all([(p >= 0) & (p < n) for p, n in zip(there, target.shape, strict=True)], axis=0)
    return target[tuple(places[inside] for places in there)].clip(min=0)


def _standardised(image: np.ndarray) -> np.ndarray:
    """Clip each channel to its 1st and 99th percentile and scale all to the same range; (C, Z, Y, X) float32."""
    out = np.empty(image.shape, np.float32)
    for target, channel in zip(out, image, strict=True):
        flat = channel.reshape(-1)
        low, high = np.percentile(flat[:: -(-flat.size // 100_000)], (1, 99))
        np.clip(channel, low, high, out=target)
        target -= low
        target /= max(float(high - low), 1e-8)
    return out


def _coarse(array: np.ndarray, factors: "list[int] | tuple[int, int, int]") -> np.ndarray:
    """Mean over blocks of the last three axes; incomplete blocks are left out."""
    z, y, x = (max(1, extent // factor) for extent, factor in zip(array.shape[1:], factors, strict=True))
    a, b, c = (min(factor, extent) for factor, extent in zip(factors, array.shape[1:], strict=True))
    blocks = array[:, : z * a, : y * b, : x * c].reshape(len(array), z, a, y, b, x, c)
    return blocks.mean(axis=(2, 4, 6), dtype=np.float32)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two arrays of one shape; 0 where one is constant, NaN where one holds NaN."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return 0.0 if size == 0 else float((a * b).sum()) / size


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    a, b, c = values
    return a, b, c


def _short(value: float) -> float:
    return float(f"{value:.4g}")
