"""Segmentations of 3D Slicer (.seg.nrrd): a NRRD label map whose header names the segments.

    load_labels     label values; layers that Slicer made for segments that once overlapped become one map
    write           a label map with the names and colours of its segments
    named_segments  what the header of such a file lists

Slicer puts segments that overlap into layers, each a label map of its own. A label map gives a voxel one value, so a
file is refused where two segments share voxels, by their names.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats import itk
from autoseg.imaging.formats.segments import Segment, colour_of, seg_nrrd_fields
from autoseg.imaging.formats.signatures import StoredVoxels
from autoseg.imaging.geometry import Geometry
from autoseg.messages import some

_HEADER_BYTES = 1 << 20


class NamedSegment(NamedTuple):
    """One segment as a header lists it."""

    name: str
    value: int
    layer: int


def named_segments(path: Path) -> tuple[NamedSegment, ...]:
    """The segments that a file's header lists, in its order."""
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0].decode("utf-8", "replace")
    fields: dict[int, dict[str, str]] = {}
    for number, key, value in re.findall(r"^Segment(\d+)_(\w+):=(.*?)\r?$", header, re.MULTILINE):
        fields.setdefault(int(number), {})[key] = value
    found = []
    for number, segment in sorted(fields.items()):
        name = segment.get("Name") or segment.get("ID") or f"segment {number}"
        found.append(NamedSegment(name, _whole(segment.get("LabelValue"), 1), _whole(segment.get("Layer"), 0)))
    return tuple(found)


def load_labels(path: Path) -> StoredVoxels:
    """Read label values (1, Z, Y, X); several layers become one map.

    Raises:
        DataError: as `itk.load`; segments share voxels, or two of them a value.
    """
    stored = itk.load(path)
    if len(stored.values) == 1:
        return stored
    segments = named_segments(path)
    values = [segment.value for segment in segments]
    if twice := {segment.name for segment in segments if values.count(segment.value) > 1}:
        raise DataError(
            f"{path}: the segments {some(sorted(twice))} have the same label value in different layers",
            remedy="in 3D Slicer, export the segmentation as a labelmap (Segmentations > Export) and use that file",
        )
    merged = stored.values[0].copy()
    for layer in stored.values[1:]:
        both = (merged != 0) & (layer != 0)
        if both.any():
            raise DataError(
                f"{path}: segments overlap: {_pair(segments, merged[both], layer[both])} share "
                f"{int(np.count_nonzero(both))} voxels",
                remedy="let one of them win: in 3D Slicer, erase the overlap, or export the segmentation as a labelmap",
            )
        np.maximum(merged, layer, out=merged)
    return StoredVoxels(merged[None], stored.geometry)


def write(
    path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None, segments: Sequence[Segment] = ()
) -> None:
    """Write labels (Z, Y, X), any integer dtype, for 3D Slicer.

    Args:
        segments: names and colours; where there are none, each value found is called `label_<value>`.

    Raises:
        StorageError: ITK could not write.
    """
    if not segments:
        found = [int(value) for value in np.unique(labels) if value]
        segments = [Segment(value, f"label_{value}", *colour_of(n)) for n, value in enumerate(found)]
    itk.write(path, labels, geometry, like, seg_nrrd_fields(segments, labels))


def _pair(segments: Sequence[NamedSegment], below: np.ndarray, above: np.ndarray) -> str:
    """Names of the first two segments that share a voxel."""
    names = {segment.value: segment.name for segment in segments}
    return " and ".join(names.get(int(value), f"label {int(value)}") for value in (below[0], above[0]))


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,9}", text.strip()) else default
