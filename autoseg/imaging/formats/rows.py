"""Voxels of a large TIFF or NIfTI file a few rows at a time, and label maps written so: nothing of its size is held.

    open_rows    a file -> StoredRows; None where it cannot be read that way
    RawLabels    a label map in a temporary file, filled block by block
    write_rows   that label map on the grid of an image, complete and verified

Rows run along Y of a flat image, along Z (slices) of a volume. Voxels that lie in the file as they are are read there;
compressed ones are decompressed into a temporary file once, strip by strip or byte by byte.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile

from autoseg.errors import DataError, StorageError
from autoseg.imaging.formats import nifti, raster
from autoseg.imaging.formats.readers import ending_of, read_geometry, stem_of
from autoseg.imaging.formats.signatures import decoding
from autoseg.imaging.formats.tiff_spacing import written_size
from autoseg.imaging.geometry import Axes3, Geometry

CHUNK_BYTES = 2**26  # of the rows that are handled at once
TILE = 256  # edge of the tiles of a written TIFF
NIFTI, TIFF = (".nii", ".nii.gz"), (".tif", ".tiff")


@dataclass(frozen=True)
class StoredRows:
    """The voxels of one file; a context that closes it."""

    path: Path
    geometry: Geometry
    shape: tuple[int, int, int, int]  # (C, Z, Y, X)
    file: IO[bytes]  # that holds them, from `offset`
    offset: int
    dtype: np.dtype
    stored: tuple[int, ...]  # the shape they are stored in
    order: tuple[int, ...]  # of its axes, so that those of C come first, then Z, Y, X
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def axis(self) -> int:
        """The axis of the rows: 1 (Z), or 2 (Y) of a flat image."""
        return 2 if self.shape[1] == 1 else 1

    def read(self, first: int, stop: int) -> np.ndarray:
        """Rows of all channels as they are stored, (C, Z, Y, X) in the dtype of the file; a copy."""
        mapped = np.memmap(self.file, self.dtype, "r", self.offset, self.stored)  # unmapped with the last view of it
        voxels = mapped.transpose(self.order).reshape(self.shape)
        return np.array(voxels[(slice(None),) * self.axis + (slice(first, stop),)])

    def image(self, first: int, stop: int) -> np.ndarray:
        """Rows as intensities, (C, Z, Y, X) float32, the scaling of the header applied."""
        rows = self.read(first, stop)
        if self.slope == 1.0 and self.intercept == 0.0:
            return rows.astype(np.float32)
        return (rows * np.float64(self.slope) + np.float64(self.intercept)).astype(np.float32)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last rows of pieces that are read at once."""
        rows = self.shape[self.axis]
        step = max(1, CHUNK_BYTES * rows // (4 * math.prod(self.shape)))
        return ((first, min(first + step, rows)) for first in range(0, rows, step))

    def __enter__(self) -> "StoredRows":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def open_rows(path: Path) -> StoredRows | None:
    """Open a file to read it by rows; None for other formats, turned, coloured by a palette or 0-is-white pictures.

    Raises:
        DataError: the file is damaged. OSError: there is no room to decompress it.
    """
    ending = ending_of(path)
    if ending in NIFTI:
        return _open_nifti(path)
    return _open_tiff(path) if ending in TIFF else None


def _open_nifti(path: Path) -> StoredRows:
    raw = nifti.raw_voxels(path)
    if path.name.lower().endswith(".gz"):
        file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed with the rows
        nifti.unpack(path, raw, file)
        offset = 0
    else:
        file, offset = open(path, "rb"), raw.offset  # noqa: SIM115 likewise
    return StoredRows(
        path, raw.geometry, raw.shape, file, offset, raw.dtype, raw.shape, (0, 1, 2, 3), raw.slope, raw.intercept
    )


def _open_tiff(path: Path) -> StoredRows | None:
    facts = raster.plain_tiff(path)
    if facts is None:
        return None
    with decoding(path), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        if series.dataoffset is not None and dtype.kind in "uif":
            if series.dataoffset + series.nbytes > path.stat().st_size:
                raise DataError(f"{path} is truncated: voxels are missing", remedy="copy or download the file again")
            file: IO[bytes] = open(path, "rb")  # noqa: SIM115 closed with the rows
            return StoredRows(
                path, facts.geometry, facts.shape, file, series.dataoffset, dtype, series.shape, facts.order
            )
        if dtype.kind not in "uif" or series.keyframe.bitspersample % 8 or not raster.decodes_by_parts(series):
            return None
        file = tempfile.TemporaryFile()  # noqa: SIM115 likewise
        _decode(series, file)
    native = np.dtype(series.dtype)
    return StoredRows(path, facts.geometry, facts.shape, file, 0, native, series.shape, facts.order)


def _decode(series: Any, file: IO[bytes]) -> None:
    """Decode the pages of a TIFF into a file, strip by strip or tile by tile."""
    page_shape = series.keyframe.shaped
    size = math.prod(page_shape) * np.dtype(series.dtype).itemsize
    file.truncate(size * len(series.pages))
    for number, page in enumerate(series.pages):
        mapped, row = None, -1
        for segment, (s, d, h, w, _), _ in page.segments(maxworkers=1, sort=True):
            if segment is None:  # it is not in the file, and 0
                continue
            if mapped is None or h != row:  # what was written so far need not stay in memory
                mapped, row = np.memmap(file, series.dtype, "r+", number * size, page_shape), h
            inside = segment[: page_shape[1] - d, : page_shape[2] - h, : page_shape[3] - w]  # tiles are filled up
            depth, height, width = inside.shape[:3]
            mapped[s, d : d + depth, h : h + height, w : w + width] = inside


class RawLabels:
    """Labels (Z, Y, X) of the smallest unsigned dtype in a temporary file; 0 where nothing was put."""

    def __init__(self, shape: Axes3, largest: int) -> None:
        self.shape, self.dtype = shape, np.min_scalar_type(largest)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 it lasts as long as this object
        self._file.truncate(math.prod(shape) * self.dtype.itemsize)

    @property
    def axis(self) -> int:
        """The axis of the rows: 0 (Z), or 1 (Y) of a flat map."""
        return 1 if self.shape[0] == 1 else 0

    def put(self, place: tuple[slice, slice, slice], values: np.ndarray) -> None:
        """Write the labels of a box."""
        np.memmap(self._file, self.dtype, "r+", 0, self.shape)[place] = values

    def read(self, first: int, stop: int) -> np.ndarray:
        """Some rows; a copy."""
        mapped = np.memmap(self._file, self.dtype, "r", 0, self.shape)
        return np.array(mapped[(slice(None),) * self.axis + (slice(first, stop),)])

    def __iter__(self) -> Iterator[np.ndarray]:
        """The slices, one after the other."""
        return (np.array(np.memmap(self._file, self.dtype, "r", 0, self.shape)[z]) for z in range(self.shape[0]))


def write_rows(path: Path, labels: RawLabels, like: Path) -> None:
    """Write labels, in the stored order of an image, on its grid and in its format; verified, or not written at all.

    Args:
        path: destination, of the extension of `like`: TIFF or NIfTI.

    Raises:
        StorageError: writing failed, or the file reads back differently.
    """
    ending, geometry = ending_of(path), read_geometry(like)
    staging = path.with_name(f".{stem_of(path)}.{os.getpid()}.part{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending in NIFTI:
            nifti.write(staging, labels, geometry, like)  # type: ignore[arg-type]
        else:
            _write_tiff(staging, labels, geometry)
        with open(staging, "rb+") as file:
            os.fsync(file.fileno())
        _verify(staging, path, labels)
        staging.replace(path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise StorageError(what, remedy="free some disk space, or choose another folder with -o") from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def _write_tiff(path: Path, labels: RawLabels, geometry: Geometry) -> None:
    shape = labels.shape[1:] if geometry.flat else labels.shape
    tifffile.imwrite(
        path, data=_tiles(labels), shape=shape, dtype=labels.dtype, tile=(TILE, TILE), photometric="minisblack",
        compression="zlib", software=False, metadata=written_size(geometry),
    )  # fmt: skip


def _tiles(labels: RawLabels) -> Iterator[np.ndarray]:
    """The tiles of all slices in the order of a TIFF, filled up with 0 at the ends."""
    slices, lines, columns = labels.shape
    for z in range(slices):
        for y in range(0, lines, TILE):
            rows = labels.read(y, y + TILE)[0] if labels.axis == 1 else labels.read(z, z + 1)[0, y : y + TILE]
            for x in range(0, columns, TILE):
                part = rows[:, x : x + TILE]
                yield np.pad(part, ((0, TILE - part.shape[0]), (0, TILE - part.shape[1])))


def _verify(staging: Path, path: Path, labels: RawLabels) -> None:
    found = open_rows(staging)
    same = found is not None and found.shape == (1, *labels.shape)
    if same and found is not None:
        with found:
            same = all(np.array_equal(found.read(*rows)[0], labels.read(*rows)) for rows in found.chunks())
    if not same:
        raise StorageError(
            f"{path} was written but reads back differently",
            remedy="check whether the disk is full or failing, then run the command again",
        )
