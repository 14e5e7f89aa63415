"""The orientation tag of EXIF and TIFF: pictures as viewers show them.

A camera stores the rows as its sensor delivers them and records how to rotate the picture; scanners and phones do the
same. A mask is drawn on the rotated picture, so the rotated picture is what is read here. The tag is a number from 1
to 8; anything else is ignored, as in viewers.

    orientation_of_picture   tag of an opened PNG, JPEG or BMP
    upright                  array as stored -> as shown
    upright_extent           rows and columns as stored -> as shown
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from autoseg.errors import DataError

Extent = TypeVar("Extent", int, float)

TAG = 0x0112
# tag -> whether rows and columns change places, and then whether rows and columns run backwards
_TURNS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False),
    2: (False, False, True),  # mirrored left to right
    3: (False, True, True),  # rotated by 180 degrees
    4: (False, True, False),  # upside down, mirrored
    5: (True, False, False),  # transposed
    6: (True, False, True),  # rotated by 90 degrees clockwise
    7: (True, True, True),  # transposed along the other diagonal
    8: (True, True, False),  # rotated by 90 degrees counterclockwise
}


def known_orientation(value: Any) -> int:
    """The tag as a number from 1 to 8; 1 where the value means nothing."""
    return value if isinstance(value, int) and value in _TURNS else 1


def orientation_of_picture(image: Image.Image, path: Path) -> int:
    """Read the orientation tag of an opened picture, 1 to 8.

    Raises:
        DataError: the tag is only in XMP, which some viewers follow and others do not.
    """
    try:
        everything = image.getexif()
        loaded: dict[int, Any] = dict(everything)
        alone = Image.Exif()
        if "exif" in image.info:
            alone.load(image.info["exif"])
            in_exif = TAG in alone
        else:
            in_exif = "Raw profile type exif" in image.info
    except Exception:  # a broken EXIF block: viewers show such a picture as stored
        return 1
    tag = known_orientation(loaded.get(TAG))
    if tag != 1 and not in_exif:
        raise DataError(
            f"{path} is rotated by an XMP entry (tiff:Orientation {tag}) that only some viewers follow",
            remedy="save it rotated, without the entry, so that it looks the same in every program",
        )
    return tag


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror (..., Y, X) by its orientation tag. Returns a view."""
    swapped, rows, columns = _TURNS[orientation]
    turned = array.swapaxes(-1, -2) if swapped else array
    return turned[..., :: -1 if rows else 1, :: -1 if columns else 1]


def upright_extent(height: Extent, width: Extent, orientation: int) -> tuple[Extent, Extent]:
    """Rows and columns as stored -> as shown; likewise the edges of a pixel."""
    return (width, height) if _TURNS[orientation][0] else (height, width)
