"""What voxels say where they are not what they seem: values that drown an image, grey stored as colours.

    spoilt            values so far out that normalising makes a constant of the image; `check` and `predict` refuse it
    padding           a value that fills the outside and lies far from the rest; worth a warning
    to_channels       grey pictures among coloured ones, and grey stored as red, green, blue
    picture_channels  the channels of a set of pictures
    look_at_picture   orientation of one picture, and what became of its channels
    compare_pictures  what these mean for a data set

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

SAMPLE = 100_000  # voxels that are looked at first
GAP = 1000.0  # between neighbouring magnitudes: no scale of intensities has a hole of this size
SQUEEZED = 1e-3  # standard deviation of the rest, as a share of that of all: the rest becomes a constant
FEW = 1e-4  # share of voxels beyond the gap that can only be faults
FEW_VALUES = 3  # distinct values beyond the gap that can only be placeholders
MANY_SAMPLED = 100  # distinct values beyond the gap in the sample: more than FEW of its voxels
BEYOND_ALL = 1e12  # no scanner's unit reaches this
SMALLEST_RANGE = 1e-7  # of intensities; z-scores divide by at least 1e-8
LEVELS = 8  # steps of single precision that an image has to span

PADDED = 0.01  # share of the voxels that one value fills
FAR = 3.0  # distance of that value from the rest, in units of the rest's range
PLACEHOLDERS = (9999.0, 99999.0, 999999.0, 32767.0)  # large values that stand for "nothing here"

RGB = ("R", "G", "B")


@dataclass(frozen=True)
class PictureFacts:
    """What one picture says about its pixels; small and picklable."""

    orientation: int = 1  # tag, 1: upright
    grey_as_colour: bool = False  # read as red, green, blue because the others have colours


# ---- intensities ----------------------------------------------------------------------------------------------------


def spoilt(array: np.ndarray) -> str:
    """Say which values make a constant of an image when it is normalised; empty if none does.

    Args:
        array: (C, Z, Y, X) float32, finite.
    """
    for channel in array:
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            continue
        if high - low < SMALLEST_RANGE:
            return f"its values differ by {high - low:.3g} at most: normalised, the image would be constant"
        step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
        if high - low < LEVELS * step:
            return (
                f"its values, {low:.9g} to {high:.9g}, lie too far from 0 for single precision, which has steps of "
                f"{step:.3g} there"
            )
        if found := _far_out(channel.reshape(-1), low, high):
            return found
    return ""


def padding(channel: np.ndarray) -> str:
    """Say which value fills the outside of an image (Z, Y, X) and lies far from the rest; empty if none does."""
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
                f"{value:g} fills {filled.mean():.0%} of the image and lies far outside the rest ({first:g} to "
                f"{last:g}): normalised, little contrast is left"
            )
    return ""


def _far_out(flat: np.ndarray, low: float, high: float) -> str:
    """Find voxels behind a gap of magnitudes that squeeze all others into a constant."""
    sample = np.abs(np.append(flat[:: -(-flat.size // SAMPLE)], (low, high)).astype(np.float64))
    magnitudes = np.unique(sample[sample > 0])
    everything = 0.0
    for i in np.flatnonzero(magnitudes[1:] >= GAP * magnitudes[:-1]):
        limit = np.sqrt(magnitudes[i] * magnitudes[i + 1])
        if len(magnitudes) - i - 1 > MANY_SAMPLED and magnitudes[i + 1] < BEYOND_ALL:
            continue  # too many values beyond for faults: the whole image need not be looked at
        beyond = np.abs(flat) > limit
        outside, rest = flat[beyond], flat[~beyond]
        if np.abs(outside).min() < GAP * np.abs(rest).max():
            continue  # the sample missed what lies between
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
            f"{rest.min():g} and {rest.max():g}: normalised, the rest would be constant"
        )
    return ""


# ---- grey and colours -----------------------------------------------------------------------------------------------


def to_channels(volume: Volume, file: str, names: Sequence[str], files: int) -> Volume:
    """Bring a picture to the channels of its data set where no value is lost or invented by it.

    Colours that are grey everywhere become one channel where one is expected; a grey picture becomes red, green, blue
    where these are. Anything else comes back as it is.

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

    Pictures are read until one with colours is found; files that cannot be read are passed over (`check` names them).
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
    note = (
        f"{grey} of {len(files)} images are grey stored as colours (red = green = blue): they are read as one channel"
    )
    return ("image",), note


# ---- what pictures say about themselves -----------------------------------------------------------------------------


def look_at_picture(file: str, read: Volume, used: Volume) -> PictureFacts | None:
    """Note what `compare_pictures` needs; None for other formats, and where there is nothing to note."""
    if not _is_picture(file):
        return None
    facts = PictureFacts(raster.orientation(Path(file)), len(used.array) > len(read.array))
    return None if facts == PictureFacts() else facts


def drawn_on_stored(orientation: int, image: Geometry, label: Geometry) -> str:
    """Say that a label fits an image before that was turned by its orientation tag; empty where it does not."""
    stored = (image.shape[0], *upright_extent(*image.shape[1:], orientation))
    if image.shape == label.shape or stored != label.shape:
        return ""
    return f"the label fits the picture as it is stored, before its orientation tag ({orientation}) turns it"


def compare_pictures(pictures: Sequence[tuple[Case, str, PictureFacts]], total: int) -> list[Problem]:
    """Warn once of pictures that are turned, and once of grey ones among colours.

    Args:
        pictures: case, file, facts, of the files that have any.
        total: pictures that were read.
    """
    problems = []
    if turned := [(file, facts) for _, file, facts in pictures if facts.orientation != 1]:
        what = (
            f"{len(turned)} of {total} pictures carry an orientation tag and are turned by it, as viewers do: "
            f"{Path(turned[0][0]).name} ({turned[0][1].orientation}){', ...' if len(turned) > 1 else ''}"
        )
        remedy = "nothing, if the labels were drawn on what a viewer shows; otherwise remove the tags"
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
