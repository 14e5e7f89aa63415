"""NRRD and MetaImage files (.nrrd, .mha, .mhd), through SimpleITK.

    read_geometry   header -> Geometry
    load            header and voxels
    write           a label map on the grid of another such file

ITK uses (x, y, z) order; names in that order end in `_xyz` and stay in this file. The format's reader is chosen
explicitly, so that `SCAN.MHA` opens like `scan.mha`. ITK refuses truncated files, but only prints a warning when
compressed data cannot be decompressed, and it ignores NRRD's checksum; so compressed data are verified here first.
"""

import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from autoseg.errors import DataError, StorageError
from autoseg.imaging.formats.itk_header import UNITS_WRITTEN, read_stated, with_unit
from autoseg.imaging.formats.signatures import COPY_AGAIN, StoredVoxels, decoding
from autoseg.imaging.formats.tiff_spacing import MM_PER_UNIT
from autoseg.imaging.geometry import Geometry, geometry_from_steps

_IMAGE_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
_DEFLATE_LIMIT = 1032  # no deflate stream expands further
_CHUNK = 1 << 20


def read_geometry(path: Path) -> Geometry:
    """Read the grid from the header alone. Raises DataError."""
    return _geometry(_header(path), path)


def load(path: Path) -> StoredVoxels:
    """Read voxels (C, Z, Y, X) as stored; components of a voxel, or a fourth axis, become C.

    Raises:
        DataError: data missing or damaged, complex voxels, more than four axes, a bad grid.
    """
    reader = _header(path)
    geometry = _geometry(reader, path)
    components = reader.GetNumberOfComponents()
    if reader.GetDimension() == 4 and components > 1:
        raise DataError(
            f"{path}: expected one kind of channels at most, found a fourth axis and {components} components per voxel",
            remedy="save the image as (x, y, z) with channels as components",
        )
    _verify_content(path, math.prod(reader.GetSize()) * components)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:  # ITK reports "no such file or directory" for a truncated file
        raise DataError(f"{path} is truncated or damaged: voxels are missing", remedy=COPY_AGAIN) from error
    if reader.GetDimension() == 4:
        return StoredVoxels(array, geometry)
    return StoredVoxels(np.moveaxis(array.reshape(*geometry.shape, components), -1, 0), geometry)


def write(
    path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None, fields: Mapping[str, str] | None = None
) -> None:
    """Write labels (Z, Y, X), any integer dtype, compressed, into one file.

    The grid is taken from the NRRD or MetaImage file `like`, or from `geometry` where there is none; nothing else is.

    Args:
        fields: key -> value, added to the header of a NRRD file.

    Raises:
        StorageError: ITK could not write.
    """
    image = sitk.GetImageFromArray(labels[0] if geometry.flat else labels)
    axes = image.GetDimension()
    unit = 1.0
    if like is not None:
        header = _header(like)
        unit = read_stated(like, axes).mm_per_unit
        matrix = np.reshape(header.GetDirection(), (header.GetDimension(), -1))[:axes, :axes]
        spacing_xyz, origin_xyz = header.GetSpacing()[:axes], header.GetOrigin()[:axes]
        if unit not in {MM_PER_UNIT[name] for name in UNITS_WRITTEN}:
            spacing_xyz, origin_xyz = [s * unit for s in spacing_xyz], [o * unit for o in origin_xyz]
            unit = 1.0
    else:
        matrix = np.array(geometry.direction)[::-1].T[:axes, :axes]
        spacing_xyz, origin_xyz = geometry.spacing[::-1][:axes], geometry.origin[:axes]
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin_xyz)
    image.SetDirection(matrix.ravel().tolist())
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    # ITK splits .mhd into two files, of which the second would be written in place; the text format allows one file.
    single = path.with_suffix(".mha") if path.suffix == ".mhd" else path
    try:
        sitk.WriteImage(image, str(single), useCompression=True, imageIO=_IMAGE_IO[path.suffix])
        if unit != 1.0:
            with_unit(single, unit, axes)
    except RuntimeError as error:
        single.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {_reason(error)}", remedy="check the free disk space") from error
    single.replace(path)


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[path.suffix.lower()])
    reader.SetFileName(str(path))
    with decoding(path):
        reader.ReadImageInformation()
    return reader


def _geometry(reader: sitk.ImageFileReader, path: Path) -> Geometry:
    axes = reader.GetDimension()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if "complex" in kind:
        raise DataError(
            f"{path}: expected real numbers, the voxels are {kind}",
            remedy="save real and imaginary part as two channels",
        )
    if not 2 <= axes <= 4:
        raise DataError(f"{path}: expected a 2-D, 3-D or 4-D image, it has {axes} axes", remedy="save it as (x, y, z)")
    used = min(axes, 3)
    shape_xyz, matrix, steps_xyz = [1, 1, 1], np.eye(3), np.zeros((3, 3))
    shape_xyz[:used] = reader.GetSize()[:used]
    matrix[:used, :used] = np.reshape(reader.GetDirection(), (axes, axes))[:used, :used]
    steps_xyz[:used] = matrix.T[:used] * np.array(reader.GetSpacing()[:used])[:, None]
    stated = read_stated(path, used)
    steps_xyz *= stated.mm_per_unit
    origin = np.array([*reader.GetOrigin(), 0.0])[:3] * stated.mm_per_unit
    shape = (shape_xyz[2], shape_xyz[1], shape_xyz[0])
    geometry = geometry_from_steps(shape, steps_xyz[::-1], origin, flat=axes == 2, file=str(path))
    return replace(
        geometry, placed=stated.placed, sized=stated.sized, stated_origin=stated.origin, remarks=stated.remarks
    )


# ---- verifying what ITK does not ------------------------------------------------------------------------------------


class _Content(NamedTuple):
    """Where the voxels of a file are."""

    file: Path
    offset: int
    compressed: bool


def _verify_content(path: Path, values: int) -> None:
    """Refuse a header that claims more than its file can hold, and compressed data that cannot be decompressed."""
    content = _content_of_nrrd(path) if path.suffix.lower() == ".nrrd" else _content_of_meta_image(path)
    if content is None or not content.file.is_file():
        return  # an unusual header, or a list of files; ITK judges it alone
    size = content.file.stat().st_size
    if values > size * (_DEFLATE_LIMIT if content.compressed else 1):
        raise DataError(
            f"{path} is truncated or its header is wrong: it declares {values} values, but "
            f"{content.file.name} has {size} bytes",
            remedy=COPY_AGAIN,
        )
    if content.compressed:
        _verify_compressed(content.file, content.offset)


def _content_of_nrrd(path: Path) -> _Content | None:
    with open(path, "rb") as file:
        start = file.read(_CHUNK)
    end = re.search(rb"\r?\n\r?\n|\Z", start)
    assert end is not None
    fields = dict(re.findall(rb"^([a-z ]+): *([^\r\n]*)", start[: end.start()], re.MULTILINE))
    if b"line skip" in fields or b"byte skip" in fields or b"byteskip" in fields or b"lineskip" in fields:
        return None
    encoding = fields.get(b"encoding", b"").lower()
    compressed = encoding in (b"gz", b"gzip")
    detached = fields.get(b"data file") or fields.get(b"datafile")
    if detached:
        return _Content(path.parent / os.fsdecode(detached.strip()), 0, compressed)
    return _Content(path, end.end(), compressed)


def _content_of_meta_image(path: Path) -> _Content | None:
    with open(path, "rb") as file:
        start = file.read(_CHUNK)
    end = re.search(rb"^ElementDataFile\s*=\s*([^\r\n]*)\r?\n?", start, re.MULTILINE)
    if end is None:
        return None
    compressed = bool(re.search(rb"^CompressedData\s*=\s*[Tt1]", start[: end.start()], re.MULTILINE))
    name = end[1].strip()
    if name.upper() == b"LOCAL":
        return _Content(path, end.end(), compressed)
    return _Content(path.parent / os.fsdecode(name), 0, compressed)


def _verify_compressed(path: Path, offset: int) -> None:
    unpack = zlib.decompressobj(wbits=47)  # zlib's or gzip's framing, both end in a checksum
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            packed = file.read(_CHUNK)
            while packed and not unpack.eof:
                unpack.decompress(packed, 4 * _CHUNK)
                packed = unpack.unconsumed_tail or file.read(_CHUNK)
            while not unpack.eof and unpack.decompress(b"", 4 * _CHUNK):
                pass
    except zlib.error as error:
        raise DataError(f"{path} is damaged and cannot be decompressed ({error})", remedy=COPY_AGAIN) from error
    if not unpack.eof:
        raise DataError(f"{path} is truncated: the end of its compressed data is missing", remedy=COPY_AGAIN)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
