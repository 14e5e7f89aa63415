"""Rewrite a file of a dataset under its own name: new voxels, or a new position, and nothing else changed.

    replace_grid    copy the position of another file into the header; every voxel stays bit for bit
    replace_voxels  other voxels, on the file's own grid or on that of another file
    convert         a file whose format does not match its name -> the format of its name
    has_place       whether a header states a position in space

Headers of NIfTI keep their other fields (description, intent, display range); those of NRRD and MetaImage their keys.
A file is written next to its destination, read back, compared and only then renamed: the name always refers to the old
file or the new one, never to half of each.
"""

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import SimpleITK as sitk
import tifffile

from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats import nifti
from autoseg.imaging.formats.itk import _IMAGE_IO, _content_of_meta_image
from autoseg.imaging.formats.readers import READERS, ending_of, read_geometry, read_image, stem_of, write_labels
from autoseg.imaging.formats.signatures import StoredVoxels, decoding
from autoseg.imaging.geometry import Geometry

LEVEL = 4  # of gzip: the level of readers.write_labels
_CHUNK = 1 << 20
_SPATIAL_UNITS = 7  # the bits of xyzt_units for the unit of length
_PLACE_FIELDS = tuple(field for field in nifti.GEOMETRY_FIELDS if field not in ("pixdim", "xyzt_units"))


def has_place(path: Path) -> bool:
    """Whether the header states a position in space: false for NIfTI with both form codes 0, and for pictures.

    Raises:
        DataError: the header cannot be read.
    """
    family = family_of(path)
    if family != "nifti":
        return family == "itk"
    header = nifti.read_header(path)
    return bool(header["qform_code"]) or bool(header["sform_code"])


def family_of(path: Path) -> str:
    """The family of formats of a file's name: nifti, itk or natural; empty if it is unknown."""
    ending = ending_of(path)
    return READERS[ending].family if ending else ""


def replace_grid(path: Path, like: Path) -> None:
    """Copy the position of another file of the same shape. From NIfTI to NIfTI the fields are copied bit for bit.

    Raises:
        DataError: one of the two cannot be read. UsageError: the format cannot store a position (pictures).
        StorageError: writing failed.
    """
    if family_of(path) == "nifti":
        header = nifti.read_header(path)
        _take_place(header, like)
        with _replacing(path) as staging:
            with _unpacked(path) as source, _packed(path, staging) as target:
                source.seek(header.sizeof_hdr)
                target.write(header.binaryblock)
                shutil.copyfileobj(source, target, _CHUNK)
            _compare(staging, path, READERS[str(ending_of(path))].image(path))
    elif family_of(path) == "itk":
        stored = READERS[str(ending_of(path))].image(path)
        _write_itk(path, stored.values, read_geometry(like), keys_of=path)
    else:
        raise UsageError(f"{path.name} cannot store a position in space", remedy="convert it to .nii.gz")


def replace_voxels(path: Path, voxels: StoredVoxels | np.ndarray, like: Path | None = None) -> None:
    """Write other voxels into a file.

    Args:
        voxels: (C, Z, Y, X), integer or float, the new content of the file, in the shape of its grid. StoredVoxels are
            written with their scaling, an array without one.
        like: the file with the grid to use; None keeps the grid of `path`.

    Raises:
        DataError: `path` or `like` cannot be read. UsageError: the format cannot hold these values.
        StorageError: writing failed.
    """
    geometry = read_geometry(like or path)
    stored = voxels if isinstance(voxels, StoredVoxels) else StoredVoxels(voxels, geometry)
    values = stored.values
    assert values.shape[1:] == geometry.shape, (values.shape, geometry.shape)
    if family_of(path) == "nifti":
        header = nifti.read_header(path)
        if like is not None:
            _take_place(header, like)
        _write_nifti(path, replace(stored, geometry=geometry), header)
    elif family_of(path) == "itk":
        assert not stored.scaled, "these formats have no scaling"
        _write_itk(path, values, geometry, keys_of=path)
    elif values.dtype.kind in "ui" and len(values) == 1:
        write_labels(path, values[0], path)
    elif ending_of(path) in (".tif", ".tiff") and len(values) == 1:
        metadata = None if geometry.flat else {"axes": "ZYX", "spacing": list(geometry.spacing)}
        with _replacing(path) as staging:
            tifffile.imwrite(
                staging, values[0, 0] if geometry.flat else values[0], photometric="minisblack", compression="zlib",
                software=False, metadata=metadata,
            )  # fmt: skip
    else:
        what = f"{path.name}: {len(values)} channels of {values.dtype} cannot be written as {ending_of(path)}"
        raise UsageError(what, remedy="convert it to .nii.gz")


def convert(path: Path, ending: str) -> None:
    """Write a volume whose content is of another format (`ending`) in the format of its name; values exact.

    Raises:
        DataError: the content cannot be read. StorageError: writing failed.
    """
    renamed = path.with_name(f".{stem_of(path)}.{os.getpid()}.true{ending}")
    try:
        renamed.hardlink_to(path) if not path.is_symlink() else shutil.copyfile(path, renamed)
        stored = READERS[ending].image(renamed)
        if stored.scaled and family_of(path) != "nifti":  # other formats have no scaling
            stored = StoredVoxels(read_image(renamed).array, stored.geometry)
    finally:
        renamed.unlink(missing_ok=True)
    if family_of(path) == "nifti":
        _write_nifti(path, stored, nifti._header_from(stored.geometry))
    else:
        _write_itk(path, stored.values, stored.geometry, keys_of=None)


def _take_place(header: nifti.Header, like: Path) -> None:
    """Copy the position of another file into a NIfTI header: forms, voxel sizes and their unit; time is unchanged."""
    other = nifti.read_header(like) if family_of(like) == "nifti" else nifti._header_from(read_geometry(like))
    for field in _PLACE_FIELDS:
        header.structarr[field] = other.structarr[field]
    sizes = header.structarr["pixdim"].copy()
    sizes[:4] = other.structarr["pixdim"][:4]
    header.structarr["pixdim"] = sizes
    units = int(header.structarr["xyzt_units"]) & ~_SPATIAL_UNITS
    header.structarr["xyzt_units"] = units | int(other.structarr["xyzt_units"]) & _SPATIAL_UNITS


def _write_nifti(path: Path, stored: StoredVoxels, header: nifti.Header) -> None:
    values, flat = stored.values, stored.geometry.flat
    sizes = header.structarr["pixdim"].copy()
    shape = values.shape[:1:-1] if flat else values.shape[:0:-1]
    header.set_data_dtype(values.dtype.newbyteorder("="))
    header.set_data_shape(shape if len(values) == 1 else (*shape, *(1,) * flat, len(values)))
    header.structarr["pixdim"] = sizes  # set_data_shape resets those of absent axes
    header.structarr["vox_offset"] = 0  # nibabel sets what follows the header
    header.structarr["scl_slope"] = stored.slope if stored.scaled else 0  # NIfTI's word for "not scaled"
    header.structarr["scl_inter"] = stored.intercept if stored.scaled else 0
    with _replacing(path) as staging:
        with _packed(path, staging) as target:
            header.write_to(target)
            for channel in values:
                for plane in channel:
                    target.write(np.ascontiguousarray(plane, dtype=header.get_data_dtype()).tobytes())
        _compare(staging, path, stored)


def _write_itk(path: Path, values: np.ndarray, geometry: Geometry, keys_of: Path | None) -> None:
    native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    several = len(native) > 1
    array = np.moveaxis(native, 0, -1) if several else native[0]
    image = sitk.GetImageFromArray(array[0] if geometry.flat else array, isVector=several)
    axes = image.GetDimension()
    image.SetSpacing(geometry.spacing[::-1][:axes])
    image.SetOrigin(geometry.origin[:axes])
    image.SetDirection(np.array(geometry.direction)[::-1].T[:axes, :axes].ravel().tolist())
    suffix = path.suffix.lower()
    if keys_of is not None:
        for key, text in _keys(keys_of, suffix).items():
            image.SetMetaData(key, text)
    detached = _content_of_meta_image(path) if suffix == ".mhd" and path.is_file() else None
    with _replacing(path, ".mha" if suffix == ".mhd" else suffix) as staging:  # .mhd would become two files
        try:
            sitk.WriteImage(image, str(staging), useCompression=True, imageIO=_IMAGE_IO[suffix])
        except RuntimeError as error:
            raise StorageError(f"{path} cannot be written: {error}", remedy="check the free disk space") from error
        _compare(staging, path, StoredVoxels(values, geometry))
    if detached is not None and detached.file != path:
        detached.file.unlink(missing_ok=True)  # the voxels now follow the header


def _keys(path: Path, suffix: str) -> dict[str, str]:
    """Keys of an NRRD or MetaImage header other than its grid (such as names of segments)."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[suffix])
    reader.SetFileName(str(path))
    with decoding(path):
        reader.ReadImageInformation()
    keys = [key for key in reader.GetMetaDataKeys() if not key.startswith(("NRRD_", "ITK_"))]
    return {key: reader.GetMetaData(key) for key in keys}


def _compare(staging: Path, path: Path, wanted: StoredVoxels) -> None:
    """Refuse a file that reads back differently from what was written, bit for bit."""
    found = READERS[str(ending_of(staging))].image(staging)
    same = found.values.shape == wanted.values.shape and np.array_equal(found.values, wanted.values, equal_nan=True)
    if not same or (found.slope, found.intercept) != (wanted.slope, wanted.intercept):
        what = f"{path} was written but reads back differently"
        raise StorageError(what, remedy="check whether the disk is full or failing, then run the command again")


@contextmanager
def _replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary file next to `path` to write into, which replaces it on success."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.part{suffix or ending_of(path) or path.suffix}")
    try:
        yield staging
        staging.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="free some disk space, or choose another folder",
        ) from error
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if its name ends in .gz; its checksum is verified at the end."""
    opened: IO[bytes] = gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115
    try:
        yield opened
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged and cannot be decompressed ({error})", remedy="copy it again") from error
    finally:
        opened.close()


@contextmanager
def _packed(path: Path, staging: Path) -> Iterator[IO[bytes]]:
    """A file to write into, compressed if `path` ends in .gz; equal content gives equal bytes."""
    with open(staging, "wb") as file:
        if not path.name.lower().endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]
