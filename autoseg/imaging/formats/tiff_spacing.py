"""Pixel size of a TIFF image, which can be stated in five places.

    stated_size     an open file -> StatedSize: spacing in mm, or none, and contradictions
    tiff_geometry   shape and stated size -> Geometry
    written_size    Geometry -> metadata for a label map's file

In this order: a .json next to the file (`{"spacing": [z, y, x]}`, mm, as in nnU-Net), OME-XML (PhysicalSizeX/Y/Z), the
description that ImageJ writes (`unit`, `spacing`, with XResolution in pixels per unit), the description that `tifffile`
and autoseg write (`spacing`, mm), and the resolution tags alone. Of those tags, only pixels below 10 micrometres are
trusted: a coarser resolution (72 or 300 dots per inch) is the size of a printed picture. A stack whose slices have no
distance has no size, because the pixel size alone would make it arbitrarily flat or tall.
"""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from autoseg.errors import DataError
from autoseg.imaging.geometry import Axes3, Geometry, Remark, Vector3, geometry_from_steps

SIZE_TOLERANCE = 1e-2  # relative: tags hold rounded fractions
PRINTED_MM = 1e-2  # pixels at least this large, by the resolution tags alone, are dots on paper
MM_PER_UNIT = {
    **dict.fromkeys(("pm",), 1e-9), **dict.fromkeys(("\u00e5", "a", "angstrom"), 1e-7),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1e3), **dict.fromkeys(("in", "inch", "inches"), 25.4),
}  # fmt: skip
_RESOLUTION_UNITS = {2: 25.4, 3: 10.0}  # TIFF's codes of inch and centimetre, in mm


@dataclass(frozen=True)
class StatedSize:
    """The pixel size that a file states."""

    spacing: Vector3 | None  # mm (Z, Y, X); Z is 1 for a single slice. None: it states no usable size
    remarks: tuple[Remark, ...] = ()


def stated_size(file: tifffile.TiffFile, path: Path, *, paged: bool) -> StatedSize:
    """Find the voxel size of an open TIFF file.

    Args:
        paged: the image is a stack, whose slices need a distance.

    Raises:
        DataError: the .json next to it is damaged.
    """
    found: list[tuple[str, Vector3 | None]] = []  # (source, mm); None: the slices have no distance
    for source, sizes in (
        ("the .json file", _beside(path)),
        ("OME-XML", _ome(file)),
        ("ImageJ's description", _imagej(file)),
        ("its description", _described(file)),
        ("the resolution tags", _resolution(file)),
    ):
        if sizes is not None:
            depth, y, x = sizes
            depth = depth if paged else 1.0
            found.append((source, None if depth is None else (depth, y, x)))
    usable = [(source, spacing) for source, spacing in found if spacing is not None]
    if not usable:
        what = f"{found[0][0]} gives the pixel size, but no distance between slices: it is not used" if found else ""
        remedy = f'write both into {path.stem}.json next to it: {{"spacing": [z, y, x]}} in mm'
        return StatedSize(None, (Remark("no distance between slices", what, remedy),) if found else ())
    source, spacing = usable[0]
    for name, other in usable[1:]:
        if any(abs(a - b) > SIZE_TOLERANCE * a for a, b in zip(spacing, other, strict=True)):
            what = f"two voxel sizes: {_text(spacing)} by {source}, {_text(other)} by {name}; the first is used"
            remark = Remark("two voxel sizes", what, "find out which is correct, and correct the other")
            return StatedSize(spacing, (remark,))
    return StatedSize(spacing)


def tiff_geometry(shape: Axes3, stated: StatedSize, path: Path, *, paged: bool) -> Geometry:
    """The grid of a TIFF image (Z, Y, X): without a position, and of 1 mm where no size is stated. Raises DataError."""
    z, y, x = stated.spacing or (1.0, 1.0, 1.0)
    if paged:
        steps = np.diag((z, y, x))[:, ::-1]
        geometry = geometry_from_steps(shape, steps, np.zeros(3), flat=False, file=str(path))
    else:
        geometry = Geometry(shape=(1, shape[1], shape[2]), spacing=(1.0, y, x), flat=True)
    return replace(geometry, placed=False, sized=stated.spacing is not None, remarks=stated.remarks)


def written_size(geometry: Geometry) -> dict[str, object] | None:
    """Metadata for `tifffile.imwrite`, from which `stated_size` finds the spacing again; None where there is none."""
    if geometry.flat:
        return {"axes": "YX", "spacing": list(geometry.spacing)} if geometry.sized and not geometry.placed else None
    return {"axes": "ZYX", "spacing": list(geometry.spacing)} if geometry.sized else {"axes": "ZYX"}


Sizes = tuple[float | None, float, float]  # mm (Z, Y, X)


def _beside(path: Path) -> Sizes | None:
    for name in (f"{path.stem}.json", re.sub(r"_\d{4}$", "", path.stem) + ".json"):
        try:
            noted = json.loads(path.with_name(name).read_text(encoding="utf-8"))["spacing"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # missing, or a file for another purpose
        if (spacing := _three_numbers(noted)) is None:
            raise DataError(
                f"{path.with_name(name)}: the voxel size must be three numbers (z, y, x) above 0, found {noted!r}",
                remedy='write "spacing": [z, y, x]',
            )
        return spacing
    return None


def _ome(file: tifffile.TiffFile) -> Sizes | None:
    if not file.is_ome or not file.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return None
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    z, y, x = (
        _scaled(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")) for axis in "ZYX"
    )
    return None if y is None or x is None else (z, y, x)


def _imagej(file: tifffile.TiffFile) -> Sizes | None:
    """ImageJ leaves out `spacing` where it is 1; without a unit, only the ratio to the pixels is known, taken as mm."""
    metadata = file.imagej_metadata if file.is_imagej else None
    if not metadata:
        return None
    scale = _mm_per(str(metadata.get("unit", "")))
    depth = metadata.get("spacing")
    if scale is None and depth is None:
        return None
    edges = [1.0, 1.0] if scale is None else _edges(file)
    if edges is None or not _positive(depth if depth is not None else 1.0):
        return None
    scale = 1.0 if scale is None else scale
    return float(1.0 if depth is None else depth) * scale, edges[0] * scale, edges[1] * scale


def _described(file: tifffile.TiffFile) -> Sizes | None:
    return _three_numbers((file.shaped_metadata or ({},))[0].get("spacing"))


def _resolution(file: tifffile.TiffFile) -> Sizes | None:
    """Pixels by the resolution tags, where they are too small to be dots on paper."""
    if file.is_imagej:
        return None  # in a unit of its own
    tag = file.pages.first.tags.get("ResolutionUnit")
    scale = _RESOLUTION_UNITS.get(int(tag.value)) if tag is not None else None
    edges = _edges(file)
    if scale is None or edges is None or max(edges) * scale >= PRINTED_MM:
        return None
    return None, edges[0] * scale, edges[1] * scale


def _edges(file: tifffile.TiffFile) -> list[float] | None:
    """Edges of a pixel (Y, X) in the unit of the resolution tags."""
    edges = []
    for name in ("YResolution", "XResolution"):
        tag = file.pages.first.tags.get(name)
        if tag is None:
            return None
        dots, units = tag.value
        if not (dots > 0 and units > 0):
            return None
        edges.append(units / dots)
    return edges


def _scaled(text: str | None, unit: str) -> float | None:
    scale = _mm_per(unit)
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value * scale if scale is not None and _positive(value) else None


def _mm_per(unit: str) -> float | None:
    """Millimetres in a unit of length by its name; None for pixels and for what is not a length."""
    return MM_PER_UNIT.get(unit.replace("\\u00B5", "\u00b5").strip().lower())


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _three_numbers(value: object) -> Vector3 | None:
    if not isinstance(value, list) or len(value) != 3 or not all(_positive(v) for v in value):
        return None
    z, y, x = value
    return float(z), float(y), float(x)


def _text(spacing: Vector3) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm (z, y, x)"
