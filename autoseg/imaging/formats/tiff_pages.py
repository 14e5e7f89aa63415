"""Tags of TIFF pages, followed or refused: kinds of colour, orientation, parts in other files.

refuse_other_kinds     colour spaces that are not grey, red-green-blue or a palette
black_is_zero          values of a file in which 0 is white
orientation_of_pages   the orientation tag that all pages share
refuse_missing_parts   stacks with slices in other files that are missing
"""

import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from autoseg.errors import DataError
from autoseg.imaging.formats.upright import TAG, known_orientation

LOSSY = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.JPEG_LOSSY)
_PHOTOMETRIC_TAG = 262
_KINDS = {  # photometric interpretation -> in words; grey, red-green-blue and palettes are read
    4: "a transparency mask",
    5: "printing inks (CMYK)",
    6: "luminance and colour differences (YCbCr)",
    8: "CIE L*a*b* colours",
    9: "ICC L*a*b* colours",
    10: "ITU L*a*b* colours",
    32803: "raw samples of a camera's colour filters",
    34892: "raw samples of a camera (linear raw)",
    32844: "logarithmic luminance (LogL)",
    32845: "logarithmic colours (LogLuv)",
}
_YCBCR = 6
_SHOWN = 3  # files named in a message
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its warnings are checked here instead


def refuse_other_kinds(page: tifffile.TiffPage, path: Path) -> int | None:
    """Refuse colours that would be read as if they were intensities.

    Returns:
        The stored value that is black, where 0 is white (photometric interpretation 0); otherwise None.

    Raises:
        DataError: another colour space, or white that is 0 in numbers without a largest value.
    """
    if _PHOTOMETRIC_TAG not in page.tags:
        return None
    kind = int(page.photometric)
    if kind in _KINDS and not (kind == _YCBCR and page.compression in LOSSY):  # JPEG decoders return red, green, blue
        raise DataError(f"{path} has {_KINDS[kind]}, expected grey or red, green, blue", remedy="convert it to RGB")
    if kind != 0:
        return None
    dtype = page.dtype
    if dtype is None or dtype.kind not in "ub":
        raise DataError(
            f"{path}: its tag declares 0 as white (MinIsWhite), which is undefined for voxels of type {dtype}",
            remedy="save it with photometric interpretation MinIsBlack",
        )
    return 2**page.bitspersample - 1


def black_is_zero(channels: np.ndarray, white: int, path: Path, *, labels: bool) -> np.ndarray:
    """Invert the values of a file in which 0 is white, so that they match what viewers show; same shape and dtype.

    Args:
        white: the largest value, stored where the picture is black.
        labels: a label map, which is inverted only if it is black and white: other values are labels or shades, and
            the file does not show which.

    Raises:
        DataError: a label map of more than two values.
    """
    if labels and not np.isin(channels, (0, white)).all():
        raise DataError(
            f"{path}: its tag declares 0 as white (MinIsWhite), so label values would count down from {white}",
            remedy="save it with photometric interpretation MinIsBlack",
        )
    return channels.dtype.type(white) - channels


def orientation_of_pages(file: tifffile.TiffFile, path: Path) -> int:
    """Read the orientation tag of a TIFF, 1 (upright) to 8. Raises DataError where pages differ."""
    found = set()
    for page in file.series[0].pages:
        tag = getattr(page, "tags", {}).get(TAG)  # pages of one kind after the first carry no tags of their own
        if tag is not None or getattr(page, "tags", None):
            found.add(known_orientation(tag.value if tag is not None else 1))
    if len(found) > 1:
        raise DataError(
            f"{path}: its pages have different orientations (tags {', '.join(map(str, sorted(found)))})",
            remedy="save the stack with all pages upright",
        )
    return found.pop() if found else 1


def refuse_missing_parts(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse a stack with slices in other files that are missing: they would be read as zeros.

    Raises:
        DataError: files that the OME description names are missing, or slices that it declares are in no file.
    """
    missing = _files_not_there(file, path)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise DataError(
            f"{path} is part of a stack in several files, and {shown} {'are' if len(missing) > 1 else 'is'} missing "
            f"next to it",
            remedy="put all files of the stack into one folder with their original names, or save it as one file",
        )
    for series in file.series:
        if absent := sum(page is None for page in series.pages):
            raise _promised(path, absent, len(series.pages))
    promised = (file.imagej_metadata or {}).get("images")
    there = len(file.pages)
    if there == 1:  # then all slices follow the one page
        there = sum(series.size // max(1, series.keyframe.size) for series in file.series)
    if isinstance(promised, int) and promised > there:
        raise _promised(path, promised - there, promised)


def _promised(path: Path, absent: int, promised: int) -> DataError:
    return DataError(
        f"{path}: {absent} of {promised} slices or channels that its description declares are in no file",
        remedy="export the stack again as one file, or correct the sizes in its description",
    )


def _files_not_there(file: tifffile.TiffFile, path: Path) -> list[str]:
    """Names in the OME description of files that do not exist; a single file may have been renamed since."""
    description = file.ome_metadata
    if not description:
        return []
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return []  # then none of it is used, either
    own = root.get("UUID")
    named: dict[str, bool] = {}  # file name -> whether it is this file by its identifier
    for element in root.iter():
        name = element.get("FileName") or element.get("MetadataFile")
        if name:
            same = own is not None and element.text is not None and element.text.strip() == own
            named[name] = named.get(name, False) or same
    if len(named) == 1 and "BinaryOnly" not in description:
        return []
    return [name for name, same in named.items() if not same and not (path.parent / name).is_file()]
