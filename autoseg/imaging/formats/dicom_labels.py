"""DICOM-SEG and RTSTRUCT files as label maps on the grid of the image they were drawn on.

    names_in     the structures of a file: name -> number
    same_name    whether two names mean one structure
    read         a file -> label map (Z, Y, X) on the grid of another image

Both name their structures; a value for each is given by name (`--labels liver=1`), or is the number in the file. What
has no value is left out. Where structures overlap, the label with the greater value is kept, with a remark that counts
the voxels. A DICOM-SEG needs no other image to be read: without one, its frames are their own grid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.contours import rasterise
from autoseg.imaging.formats.dicom_files import SEGMENTATIONS, STRUCTURE_SET, class_of, import_pydicom, open_dataset
from autoseg.imaging.formats.dicom_grid import SAME_PLACE_MM, Stack
from autoseg.imaging.formats.dicom_lattice import EXPORT, Lattice, Layers, SegmentFrame
from autoseg.imaging.formats.dicom_series import Series, open_series
from autoseg.imaging.geometry import Geometry, Remark, Volume
from autoseg.messages import counted

OFF_PLANE = 0.25  # of the slice distance: how far the points of a contour may lie from one plane
HALF = 0.5  # fractional segments are filled where at least this


def names_in(path: Path) -> dict[str, int]:
    """Names of the structures in a file, in order of their numbers.

    Raises:
        UsageError: pydicom is not installed. DataError: the file is neither DICOM-SEG nor RTSTRUCT, or names repeat.
    """
    data = open_dataset(path, ("SOPClassUID", "SegmentSequence", "StructureSetROISequence"))
    found = [(int(number), name) for number, name in _named(data, path)]
    names = [name for _, name in found]
    if len({_key(name) for name in names}) < len(names):
        twice = next(name for name in names if [_key(one) for one in names].count(_key(name)) > 1)
        raise DataError(f"{path} has two structures named {twice!r}", remedy="rename one of them, and export it again")
    return {name: number for number, name in sorted(found)}


def read(
    path: Path, like: Path | None = None, names: Mapping[str, int] | None = None, on: Geometry | None = None
) -> Volume:
    """Read a label map.

    Args:
        like: the image on whose grid it is wanted: a DICOM series.
        names: label name -> value; None or empty: all structures, by their numbers.
        on: the grid, where the image is not DICOM.

    Returns:
        Volume of int32 (Z, Y, X); its geometry carries remarks.

    Raises:
        UsageError: pydicom is not installed. DataError: damaged, of another image, or no image for an RTSTRUCT.
    """
    kind = class_of(path) or str(open_dataset(path, ("SOPClassUID",)).SOPClassUID)
    series = open_series(like) if like is not None else None
    values = _values(path, names or {})
    if kind == STRUCTURE_SET:
        if series is None and on is None:
            raise DataError(
                f"{path} is an RTSTRUCT, whose contours need the image that they were drawn on",
                remedy="name the image, or convert the contours to a label map",
            )
        return _from_contours(path, values, series, on)
    return _from_segments(path, values, series, on)


# ---- names ----------------------------------------------------------------------------------------------------------


def _named(data: Any, path: Path) -> Iterator[tuple[int, str]]:
    """Number and name of each structure."""
    if data.SOPClassUID in SEGMENTATIONS:
        for item in data.get("SegmentSequence") or ():
            yield item.SegmentNumber, str(item.get("SegmentLabel") or f"segment {item.SegmentNumber}").strip()
    elif data.SOPClassUID == STRUCTURE_SET:
        for item in data.get("StructureSetROISequence") or ():
            yield item.ROINumber, str(item.get("ROIName") or f"ROI {item.ROINumber}").strip()
    else:
        raise DataError(
            f"{path} is DICOM, but neither DICOM-SEG nor RTSTRUCT: it holds no labels",
            remedy="give the labels as NIfTI, NRRD, DICOM-SEG or RTSTRUCT",
        )


def _values(path: Path, names: Mapping[str, int]) -> dict[int, tuple[int, str]]:
    """Number in the file -> (value, name) of the structures that are wanted."""
    found = names_in(path)
    if not names:
        if bad := [name for name, number in found.items() if number < 1]:
            raise DataError(f"{path}: {bad[0]!r} has the number {found[bad[0]]}", remedy="name the labels: --labels")
        return {number: (number, name) for name, number in found.items()}
    wanted = {_key(name): (value, name) for name, value in names.items()}
    return {number: wanted[_key(name)] for name, number in found.items() if _key(name) in wanted}


def same_name(a: str, b: str) -> bool:
    """Whether two names mean one structure: without regard to case, blanks, hyphens and underscores."""
    return _key(a) == _key(b)


def _key(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


# ---- DICOM-SEG ------------------------------------------------------------------------------------------------------


def _from_segments(
    path: Path, values: Mapping[int, tuple[int, str]], series: Series | None, on: Geometry | None
) -> Volume:
    import_pydicom()
    from pydicom.pixels import pixel_array

    data = open_dataset(path, pixels=True)
    try:
        pixels = pixel_array(data)
    except Exception as error:
        raise DataError(f"{path}: its pixels are missing, damaged or compressed ({error})", remedy=EXPORT) from error
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    fractional = str(data.get("SegmentationType") or "") == "FRACTIONAL"
    if fractional:
        pixels = pixels >= HALF * float(data.get("MaximumFractionalValue") or 255)
    by_value = str(data.get("SegmentationType") or "") == "LABELMAP"
    frames = [SegmentFrame(data, i, path) for i in range(len(pixels))]
    lattice = Lattice.of(series, on, frames, path)
    layers = Layers(lattice.shape)
    for frame, plane in zip(frames, pixels, strict=True):
        place = lattice.place(frame)
        for number in np.unique(plane[plane > 0]).tolist() if by_value else [frame.segment]:
            if number in values:
                mask = plane == number if by_value else plane > 0
                layers.add(values[number], place, lattice.turned(frame, mask))
    remarks = [*layers.remarks(), *_of_another(data, data.get("FrameOfReferenceUID"), series)]
    if fractional:
        what = f"its segments are fractional: filled where they reach {HALF:g}"
        remarks.append(Remark("fractional", what, "nothing, or export it as a binary segmentation"))
    return lattice.volume(layers.labels, remarks)


# ---- RTSTRUCT -------------------------------------------------------------------------------------------------------


def _from_contours(
    path: Path, values: Mapping[int, tuple[int, str]], series: Series | None, on: Geometry | None
) -> Volume:
    stack = _stack_of_grid(on) if series is None else series.stack
    if stack is None:
        raise DataError(f"{path}: the image has no position in space that contours could refer to", remedy=EXPORT)
    data = open_dataset(path)
    layers = Layers(stack.shape)
    beside = 0
    for item in data.get("ROIContourSequence") or ():
        label = values.get(int(item.ReferencedROINumber))
        if label is None:
            continue
        by_slice: dict[int, list[np.ndarray]] = {}
        for contour in item.get("ContourSequence") or ():
            points = np.array([float(v) for v in contour.get("ContourData") or ()]).reshape(-1, 3)
            if len(points) < 3 or "PLANAR" not in str(contour.get("ContourGeometricType")):
                continue
            k = _slice_of(points, stack, label[1], path)
            if k is None:
                beside += 1
                continue
            flat = (points - stack.positions[k]) @ stack.axes[1:].T / np.array(stack.spacing)
            by_slice.setdefault(k, []).append(flat[:, ::-1])
        for k, polygons in sorted(by_slice.items()):
            layers.add(label, k, rasterise(polygons, (stack.shape[1], stack.shape[2])))
    references = [one.get("FrameOfReferenceUID") for one in data.get("ReferencedFrameOfReferenceSequence") or ()]
    remarks = [*layers.remarks(), *_of_another(data, next(iter(references), None), series)]
    if beside and not layers.labels.any():
        what = f"{path}: all {counted(beside, 'contour')} lie outside the image, between {_span(stack)}"
        raise DataError(what, remedy="pair it with the image that it was drawn on")
    if beside:
        what = f"{counted(beside, 'contour')} outside the slices of the image: not used"
        remarks.append(Remark("contours outside", what, "check that it was drawn on this series"))
    labels = layers.labels if series is None else series.labels_from_slices(layers.labels)
    geometry = on if series is None else series.geometry
    assert geometry is not None
    return Volume(labels, replace(geometry, remarks=tuple(remarks)))


def _of_another(data: Any, reference: Any, series: Series | None) -> list[Remark]:
    """A remark where labels state another frame of reference, and no slice, of the image: may be not comparable."""
    if series is None or not reference or str(reference) == series.frames[0].reference:
        return []
    instances = {frame.instance for frame in series.frames}
    if any(one.keyword == "ReferencedSOPInstanceUID" and str(one.value) in instances for one in data.iterall()):
        return []
    what = "its frame of reference is not that of the image, and it refers to no slice of it: drawn on another scan?"
    return [Remark("frame of reference", what, "check one case in a viewer; anonymisation may have replaced the UIDs")]


def _slice_of(points: np.ndarray, stack: Stack, name: str, path: Path) -> int | None:
    """The slice that a contour was drawn on; None where it is above or below all slices.

    Raises:
        DataError: the contour is not parallel to the slices.
    """
    heights = stack.heights
    distance = float(np.diff(heights).min()) if len(heights) > 1 else stack.thickness
    own = points @ stack.axes[0]
    if float(np.ptp(own)) > 2 * OFF_PLANE * distance:
        raise DataError(
            f"{path}: a contour of {name} is not parallel to the slices of the image: its points span "
            f"{float(np.ptp(own)):.3g} mm across them",
            remedy="export the structures for the slices of this series",
        )
    height = float(own.mean())
    k = int(np.abs(heights - height).argmin())
    return k if abs(heights[k] - height) <= distance / 2 + SAME_PLACE_MM else None


def _stack_of_grid(geometry: Geometry | None) -> Stack | None:
    """The planes of a regular grid along its first axis, as a stack."""
    if geometry is None or not geometry.placed:
        return None
    z, y, x = geometry.spacing
    axes = np.array(geometry.direction)
    steps = np.arange(geometry.shape[0])[:, None] * z * axes[0]
    return Stack(np.array(geometry.origin) + steps, axes, geometry.shape, (y, x), z, ())


def _span(stack: Stack) -> str:
    return f"{stack.heights[0]:.4g} and {stack.heights[-1]:.4g} mm along its normal"
