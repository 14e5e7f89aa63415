"""Images whose intensities or field of view differ from all training images: a warning, never a refusal.

    intensity_ranges    fingerprint -> IntensityRange, one per channel, stored in the plan
    foreign_intensities an image -> warnings, with its numbers and those of the training images
    foreign_extent      a grid -> warning about a field of view that is far smaller than in training

Intensities are compared by percentiles of whole images (0.5, 50, 99.5), because what is foreground in a new image is
not known yet. Each may leave the range of the training images by a quarter of the widest of them, from its 0.5th to its
99.5th percentile: an MR image has no air at -1000, whatever else it holds, and that is far from every CT; while a
dataset of scanners that differ a thousandfold gives a wide range, and no warnings. Plans that were made before these
percentiles were measured hold the foreground's alone: then the image is compared with those, where the scheme of
normalisation depends on them.
"""

from collections.abc import Sequence

import numpy as np

from autoseg.imaging.geometry import Axes3, Remark, Vector3
from autoseg.planning.fingerprint import Fingerprint, ImageIntensities, image_intensities
from autoseg.planning.plan import ChannelNormalization, IntensityRange, TrainingGrids

TOLERANCE = 0.25  # of the widest training image, by which a percentile may leave the range
SMALLEST_EXTENT = 0.5  # of the smallest field of view in training, along one axis
LEAST_IN_CT = -20.0  # HU: the 0.5th percentile of any CT of a body is lower, because fat is -100 and air -1000
PERCENTILES = (("p00_5", "0.5th percentile"), ("median", "median"), ("p99_5", "99.5th percentile"))
KIND = "intensities unlike training"


def intensity_ranges(fingerprint: Fingerprint) -> tuple[IntensityRange, ...]:
    """The range of each channel over the images of a fingerprint; empty where they were not measured."""
    measured = [case.intensities for case in fingerprint.cases]
    if not all(len(channels) == len(fingerprint.channels) for channels in measured):
        return ()
    ranges = []
    for channel in zip(*measured, strict=True):
        low, middle, high = ([getattr(image, name) for image in channel] for name, _ in PERCENTILES)
        widest = max(top - bottom for bottom, top in zip(low, high, strict=True))
        ranges.append(
            IntensityRange((min(low), max(low)), (min(middle), max(middle)), (min(high), max(high)), widest)
        )  # fmt: skip
    return tuple(ranges)


def foreign_intensities(
    image: np.ndarray,
    channels: Sequence[str],
    seen: TrainingGrids | None,
    normalization: Sequence[ChannelNormalization] = (),
) -> list[Remark]:
    """Warn about channels of an image (C, Z, Y, X) whose intensities are unlike those of all training images.

    Args:
        channels: names of the C channels.
        seen: of the training images; None: nothing is known.
        normalization: of the plan, one per channel, for plans without ranges.
    """
    found = image_intensities(image)
    ranges = seen.intensities if seen else ()
    remarks = []
    for number, (name, own) in enumerate(zip(channels, found, strict=True)):
        if number < len(ranges):
            what = _outside(own, ranges[number])
        elif number < len(normalization):
            what = _beside_foreground(own, normalization[number])
        else:
            what = ""
        if what:
            whose = f"the channel {name}" if len(channels) > 1 else "the image"
            remedy = f"check that it is {name} in the unit of the training data, and the result"
            remarks.append(Remark(KIND, f"{whose} is unlike the training data: {what}", remedy))
    return remarks


def foreign_extent(
    shape: Sequence[int], spacing: Vector3, seen: TrainingGrids | None, axis_order: Axes3, *, slices_alone: bool
) -> list[Remark]:
    """Warn about a field of view that is less than half of the smallest in training, along any axis.

    Args:
        shape: (Z, Y, X) of the image, in the plan's axis order; spacing: mm, likewise.
        seen: of the training images; None: nothing is known.
        slices_alone: only 2-D configurations are used: the number of slices does not matter.
    """
    if seen is None:
        return []
    for axis, stored in enumerate(axis_order):
        if (axis == 0 and slices_alone) or seen.shape_max[stored] == 1:
            continue
        extent, smallest = shape[axis] * spacing[axis], seen.shape_min[stored] * seen.spacing_min[stored]
        if extent < SMALLEST_EXTENT * smallest:
            what = (
                f"its field of view is {extent:.4g} mm along {'zyx'[stored]}, at least {smallest:.4g} mm in the "
                "training data; what is cut off may be missed"
            )
            return [Remark("field of view unlike training", what, "give the whole scan, or check the result")]
    return []


def _outside(own: ImageIntensities, seen: IntensityRange) -> str:
    """What is outside the range of the training images; empty if nothing is."""
    slack = TOLERANCE * seen.widest
    for name, words in PERCENTILES:
        value, (low, high) = getattr(own, name), getattr(seen, name)
        if not low - slack <= value <= high + slack:
            return f"its {words} is {value:.5g}, between {low:.5g} and {high:.5g} in training"
    return ""


def _beside_foreground(own: ImageIntensities, seen: ChannelNormalization) -> str:
    """What contradicts the foreground of the training images; empty if nothing does."""
    if seen.scheme != "ct" or seen.p00_5 >= seen.p99_5:
        return ""
    held = f"the training foreground spans {seen.p00_5:.5g} to {seen.p99_5:.5g}"
    if own.p99_5 < seen.p00_5 or own.p00_5 > seen.p99_5:
        return f"its values span {own.p00_5:.5g} to {own.p99_5:.5g}, {held}"
    if own.p00_5 > LEAST_IN_CT:
        return f"its 0.5th percentile is {own.p00_5:.5g}: a CT holds air or fat, below {LEAST_IN_CT:g}; {held}"
    return ""
