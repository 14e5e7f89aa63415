"""Voxels that are not what they seem: outliers that swamp an image, grey stored as colours.

    spoilt            values so extreme that the normalised image is constant; `check` and `predict` refuse it
    padding           a value that fills the outside and is far from the rest; worth a warning
    to_channels       grey pictures among coloured ones, and grey stored as red, green, blue
    picture_channels  the channels of a set of pictures
    look_at_picture   orientation of one picture, and how its channels were read
    compare_pictures  warnings that follow for the dataset

Intensities are judged by what z-scores do to them: every value is divided by the standard deviation of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import DataError
from autoseg.imaging.formats import raster
from autoseg.imaging.formats.readers import READERS, ending_of, read_image
from autoseg.imaging.formats.upright import upright_extent
from autoseg.imaging.geometry import Geometry, Volume
from autoseg.imaging.normalize import scheme_for
from autoseg.messages import counted

SAMPLE = 100_000  # voxels sampled first
GAP = 1000.0  # between neighbouring magnitudes: no scale of intensities has a gap of this size
SQUEEZED = 1e-3  # standard deviation of the rest, as a share of that of all: the rest becomes a constant
FEW = 1e-4  # share of voxels beyond the gap that can only be faults
FEW_VALUES = 3  # distinct values beyond the gap that can only be placeholders
MANY_SAMPLED = 100  # distinct values beyond the gap in the sample: more than FEW of its voxels
BEYOND_ALL = 1e12  # no scanner's unit reaches this
SMALLEST_RANGE = 1e-7  # of intensities; z-scores divide by at least 1e-8
LEVELS = 8  # steps of single precision that an image has to span

PADDED = 0.01  # share of the voxels that one value fills
FAR = 3.0  # distance of that value from the rest, in units of the rest's range
PLACEHOLDERS = (9999.0, 99999.0, 999999.0, 32767.0)  # large values that mark "no data"

RGB = ("R", "G", "B")


@dataclass(frozen=True)
class PictureFacts:
    """Facts about the pixels of one picture; small and picklable."""

    orientation: int = 1  # tag, 1: upright
    grey_as_colour: bool = False  # read as red, green, blue because the others have colours


# ---- intensities ----------------------------------------------------------------------------------------------------


def spoilt(array: np.ndarray) -> str:
    """Describe the values that make the normalised image constant; empty if none does.

    Args:
        array: (C, Z, Y, X) float32, finite.
    """
    for channel in array:
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            continue
        if high - low < SMALLEST_RANGE:
            return f"its values differ by at most {high - low:.3g}: the normalised image would be constant"
        step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
        if high - low < LEVELS * step:
            return (
                f"its values, {low:.9g} to {high:.9g}, are too far from 0 for single precision, which has steps of "
                f"{step:.3g} there"
            )
        if found := _far_out(channel.reshape(-1), low, high):
            return found
    return ""


def padding(channel: np.ndarray) -> str:
    """Describe the value that fills the outside of an image (Z, Y, X), far from the rest; empty if there is none."""
    flat = channel.reshape(-1)
    sample = flat[:: -(-flat.size // SAMPLE)].astype(np.float64)
    low, high = float(channel.min()), float(channel.max())
    for value in (low, high):
        filled = sample == value
        if (value >= 0 and value not in PLACEHOLDERS) or not PADDED <= filled.mean() < 1:
            continue
        first, last = np.percentile(sample[~filled], (0.5, 99.5))
        distance = first - value if value == low else value - last
        if last > first and distance >= FAR * (last - first):
            return (
                f"{value:g} fills {filled.mean():.0%} of the image, far from the rest ({first:g} to "
                f"{last:g}): little contrast remains after normalisation"
            )
    return ""


def _far_out(flat: np.ndarray, low: float, high: float) -> str:
    """Find voxels beyond a gap of magnitudes that would reduce all others to a constant."""
    sample = np.abs(np.append(flat[:: -(-flat.size // SAMPLE)], (low, high)).astype(np.float64))
    magnitudes = np.unique(sample[sample > 0])
    everything = 0.0
    for i in np.flatnonzero(magnitudes[1:] >= GAP * magnitudes[:-1]):
        limit = np.sqrt(magnitudes[i] * magnitudes[i + 1])
        if len(magnitudes) - i - 1 > MANY_SAMPLED and magnitudes[i + 1] < BEYOND_ALL:
            continue  # too many values beyond the gap to be faults: no need to search the whole image
        beyond = np.abs(flat) > limit
        outside, rest = flat[beyond], flat[~beyond]
        if np.abs(outside).min() < GAP * np.abs(rest).max():
            continue  # the sample missed values between
        values = np.unique(outside)
        if len(outside) > FEW * len(flat) and len(values) > FEW_VALUES and np.abs(values).min() < BEYOND_ALL:
            continue
        everything = everything or float(flat.std(dtype=np.float64))
        if not 0 < rest.std(dtype=np.float64) < SQUEEZED * everything:
            continue
        number, share = len(outside), len(outside) / len(flat)
        shown = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
        return (
            f"{counted(number, 'voxel')} of {shown} ({share:.2g} of all), while the rest lies between "
            f"{rest.min():g} and {rest.max():g}: after normalisation the rest would be constant"
        )
    return ""


# ---- grey and colours -----------------------------------------------------------------------------------------------


def to_channels(volume: Volume, file: str, names: Sequence[str], files: int) -> Volume:
    """Convert a picture to the channels of its dataset where that neither loses nor invents a value.

    Colours that are grey everywhere become one channel where one is expected; a grey picture becomes red, green, blue
    where three are. Anything else is returned unchanged.

    Args:
        names: of all channels of a case.
        files: that a case has.
    """
    expected, found = len(names) // max(1, files), len(volume.array)
    if not _is_picture(file) or found == expected:
        return volume
    if found == 3 and expected == 1 and (volume.array == volume.array[:1]).all():
        return replace(volume, array=volume.array[:1])
    if found == 1 and expected == 3 and all(scheme_for(name) == "rgb_to_0_1" for name in names):
        return replace(volume, array=np.repeat(volume.array, 3, axis=0))
    return volume


def picture_channels(files: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Names of the channels of a set of pictures, one per case: colours if one of them has any; and a note, or "".

    Pictures are read until one with colours is found; unreadable files are skipped (`check` reports them).
    """
    grey = 0
    for file in files:
        try:
            if not raster.may_have_colours(Path(file)):
                continue
            array = read_image(file).array
        except DataError:
            continue
        if len(array) == 3 and (array != array[:1]).any():
            return RGB, ""
        grey += len(array) == 3
    if not grey:
        return ("image",), ""
    note = f"{grey} of {len(files)} images store grey as colours (red = green = blue): they are read as one channel"
    return ("image",), note


# ---- what pictures say about themselves -----------------------------------------------------------------------------


def look_at_picture(file: str, read: Volume, used: Volume) -> PictureFacts | None:
    """Facts that `compare_pictures` needs; None for other formats, and where there are none."""
    if not _is_picture(file):
        return None
    facts = PictureFacts(raster.orientation(Path(file)), len(used.array) > len(read.array))
    return None if facts == PictureFacts() else facts


def drawn_on_stored(orientation: int, image: Geometry, label: Geometry) -> str:
    """Describe a label that fits the image before its orientation tag rotates it; empty where it does not."""
    stored = (image.shape[0], *upright_extent(*image.shape[1:], orientation))
    if image.shape == label.shape or stored != label.shape:
        return ""
    return f"the label fits the picture as stored, before its orientation tag ({orientation}) rotates it"


def compare_pictures(pictures: Sequence[tuple[Case, str, PictureFacts]], total: int) -> list[Problem]:
    """Warn once about pictures with an orientation tag, and once about grey ones among colours.

    Args:
        pictures: case, file, facts, of the files that have any.
        total: pictures that were read.
    """
    problems = []
    if turned := [(file, facts) for _, file, facts in pictures if facts.orientation != 1]:
        what = (
            f"{len(turned)} of {total} pictures have an orientation tag and are rotated accordingly, as in viewers: "
            f"{Path(turned[0][0]).name} ({turned[0][1].orientation}){', ...' if len(turned) > 1 else ''}"
        )
        remedy = "nothing, if the labels were drawn on the picture as viewers show it; otherwise remove the tags"
        problems.append(Problem(None, turned[0][0], what, remedy, "warning"))
    if grey := [file for _, file, facts in pictures if facts.grey_as_colour]:
        what = f"{len(grey)} pictures are grey, the others have colours: {Path(grey[0]).name}"
        what += ", ..." if len(grey) > 1 else ""
        remedy = "nothing, if they belong together: grey is read as red = green = blue"
        problems.append(Problem(None, grey[0], what, remedy, "warning"))
    return problems


def _is_picture(file: str) -> bool:
    ending = ending_of(file)
    return ending is not None and READERS[ending].family == "natural"
