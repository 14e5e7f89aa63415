"""Colours in label maps: palettes, and label values by colour.

A palette gives the colour of each index. Programs number the colours arbitrarily, often by their frequency in that one
picture, so an index identifies a class only where the palettes of all files agree. Where they do not, or where a mask
is stored in red, green and blue, the colour itself identifies the class: `{"#ff0000": 1}`.

A colour is written `#rrggbb`. Black is background where it is not listed.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoseg.errors import DataError
from autoseg.messages import counted, some

NAMED = 8  # colours named in a message
MOST_COLOURS = 64  # with more, a picture is not a label map
BLACK = "#000000"


def colour_name(red: int, green: int, blue: int) -> str:
    """Write a colour as #rrggbb."""
    return f"#{red:02x}{green:02x}{blue:02x}"


def count_colours(channels: np.ndarray) -> dict[str, int]:
    """Count the voxels of each colour in (3, Z, Y, X) uint8, the most frequent first."""
    packed, counts = np.unique(_packed(channels), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {_unpacked(int(packed[i])): int(counts[i]) for i in order}


def values_of_colours(channels: np.ndarray, colours: Mapping[str, int], path: Path) -> np.ndarray:
    """Label values (1, Z, Y, X) int32 of colours (3, Z, Y, X) uint8.

    Raises:
        DataError: a colour that is not listed.
    """
    known = {BLACK: 0, **colours}
    packed = _packed(channels)
    keys = np.array(sorted(int(name[1:], 16) for name in known), dtype=np.int64)
    places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    if (strange := keys[places] != packed).any():
        found, counts = np.unique(packed[strange], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shown = described({_unpacked(int(found[i])): int(counts[i]) for i in order})
        listed = ", ".join(f"{name} is {value}" for name, value in known.items())
        raise DataError(
            f"{path}: colours that belong to no label: {shown}",
            remedy=f"correct the file, or list them; listed: {listed}",
        )
    values = np.array([known[_unpacked(int(key))] for key in keys], dtype=np.int32)
    return values[places][None]


def refuse_colours(channels: np.ndarray, path: Path) -> None:
    """Raise a DataError that lists the colours a label map (3, Z, Y, X) is stored in, and explains how to name them."""
    if channels.dtype != np.uint8:
        raise DataError(
            f"{path}: a label map has one value per voxel, this file has 3 channels of {channels.dtype}",
            remedy="save one integer label map per case (not colours, not one channel per label)",
        )
    found = count_colours(channels)
    what = f"{path}: a label map has one value per voxel, this file has 3: it is stored in {len(found)} colours"
    if len(found) > MOST_COLOURS:
        raise DataError(
            f"{what}, too many for labels: {described(found)}",
            remedy="export the mask without smoothed edges and without the image below it",
        )
    labels = ",".join(f"label_{i}={name}" for i, name in enumerate((c for c in found if c != BLACK), start=1))
    raise DataError(
        f"{what}: {described(found)}",
        remedy=f"name the label of each colour: --labels {labels} (black is background), or save values 0, 1, 2, ...",
    )


def described(found: Mapping[str, int]) -> str:
    """Name colours with their voxels, the first NAMED of them."""
    return some((f"{name} ({counted(count, 'voxel')})" for name, count in found.items()), NAMED)


def _packed(channels: np.ndarray) -> np.ndarray:
    red, green, blue = channels.astype(np.int64)
    return red << 16 | green << 8 | blue


def _unpacked(value: int) -> str:
    return f"#{value:06x}"
