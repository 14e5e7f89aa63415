"""NIfTI files, through nibabel's headers and one strict read of the bytes.

    read_geometry   header -> Geometry
    load            header and voxels; no declared byte may be missing, and the checksum of .nii.gz must match
    write           a label map under the geometry fields of another NIfTI file, bit for bit

Header values are trusted only after a check: a header may claim any size. nifti_affine.py chooses among its affines,
and reports contradictions between them. NIfTI's world (x to the Right, y to the Anterior) becomes LPS, and its units
become millimetres. Bytes are read here and not by nibabel because nibabel stops at the last voxel and never sees the
checksum that follows.
"""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import nibabel as nib
import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.nifti_affine import nifti_geometry
from autoseg.imaging.formats.segments import EXTENSIONS, Segment, caret_labels
from autoseg.imaging.formats.signatures import COPY_AGAIN, StoredVoxels, decoding
from autoseg.imaging.geometry import Geometry

Header = nib.Nifti1Header  # Nifti2Header derives from it

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by the size given in the first four bytes
_DEFLATE_LIMIT = 1032  # no deflate stream expands further
_CHUNK = 1 << 20
# The fields copied to a written label map, bit for bit. Nothing else: descriptions and extensions may name patients.
GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def read_geometry(path: Path) -> Geometry:
    """Read the grid from the header alone. Raises DataError."""
    with _opened(path) as stream:
        return _geometry(_read_header(stream, path), path)


def load(path: Path) -> StoredVoxels:
    """Read voxels (C, Z, Y, X) as stored; a fourth NIfTI axis becomes C.

    Raises:
        DataError: bytes missing, checksum wrong, more than four axes, complex or colour voxels, a bad affine.
    """
    with _opened(path) as stream:
        header = _read_header(stream, path)
        geometry, dtype = _geometry(header, path), _dtype(header, path)
        slope, intercept = _scaling(header, path)
        shape = _shape(header, path)
        channels = shape[3] if len(shape) == 4 else 1
        expected = math.prod(shape) * dtype.itemsize
        offset = _voxel_offset(header, path)
        if offset + expected > stream.largest_content:
            raise _truncated(path, offset + expected, f"at most {stream.largest_content}")
        buffer = np.empty(expected, dtype=np.uint8)
        stream.skip(offset - stream.position)
        if stream.position < offset or stream.readinto(buffer.data) < expected:
            raise _truncated(path, offset + expected, str(stream.position))
        stream.finish()
    return StoredVoxels(buffer.view(dtype).reshape(channels, *geometry.shape), geometry, slope, intercept)


@dataclass(frozen=True)
class RawVoxels:
    """Where the voxels of a file lie, and what they mean."""

    geometry: Geometry
    shape: tuple[int, int, int, int]  # (C, Z, Y, X), as stored
    dtype: np.dtype
    offset: int  # of the first byte, once decompressed
    slope: float
    intercept: float

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def raw_voxels(path: Path) -> RawVoxels:
    """The voxels as the header describes them. Raises DataError as `load`, as far as the header shows it."""
    with _opened(path) as stream:
        header = _read_header(stream, path)
        geometry, shape = _geometry(header, path), _shape(header, path)
        slope, intercept = _scaling(header, path)
        channels = shape[3] if len(shape) == 4 else 1
        dtype = _dtype(header, path)
        found = RawVoxels(
            geometry, (channels, *geometry.shape), dtype, _voxel_offset(header, path), slope, intercept
        )  # fmt: skip
        if found.offset + found.nbytes > stream.largest_content:
            raise _truncated(path, found.offset + found.nbytes, f"at most {stream.largest_content}")
    return found


def unpack(path: Path, voxels: RawVoxels, target: IO[bytes]) -> None:
    """Write the voxels of a file, decompressed, a piece at a time. Raises DataError as `load`."""
    with _opened(path) as stream:
        stream.skip(voxels.offset)
        buffer = memoryview(bytearray(_CHUNK))
        left = voxels.nbytes
        while left:
            part = buffer[: min(left, _CHUNK)]
            if stream.readinto(part) < len(part):
                raise _truncated(path, voxels.offset + voxels.nbytes, str(stream.position))
            target.write(part)
            left -= len(part)
        stream.finish()
    target.flush()


def write(
    path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None, segments: Sequence[Segment] = ()
) -> None:
    """Write labels (Z, Y, X), any integer dtype, as NIfTI, compressed where the name ends in .gz.

    The grid comes bit for bit from the NIfTI file `like`, or from `geometry` where there is none. Names and colours of
    segments are put into an extension of the header. Equal input gives equal bytes (no time stamp).
    """
    header = new_header(geometry, like, labels.dtype)
    for code in EXTENSIONS if segments else ():
        header.extensions.append(nib.nifti1.Nifti1Extension(code, caret_labels(segments).encode()))
    with open(path, "wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                _write_to(packed, header, labels)
        else:
            _write_to(file, header, labels)


def read_header(path: Path) -> Header:
    """Read and check the header. Raises DataError."""
    with _opened(path) as stream:
        return _read_header(stream, path)


def header_like(header: Header) -> Header:
    """Return a fresh header that has the geometry fields of another, bit for bit, and its byte order; no texts."""
    fresh = type(header)(endianness=header.endianness)
    for field in GEOMETRY_FIELDS:
        fresh.structarr[field] = header.structarr[field]
    return fresh


def new_header(geometry: Geometry, like: Path | None, dtype: np.dtype) -> Header:
    """Return the header of a file with one value per voxel: the grid of the NIfTI file `like`, or `geometry`."""
    header = header_like(read_header(like)) if like is not None else _header_from(geometry)
    header.set_data_dtype(dtype)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(geometry.shape[:0:-1] if geometry.flat else geometry.shape[::-1])
    header["pixdim"] = pixdim  # set_data_shape resets those of absent axes
    return header


def _write_to(file: "IO[bytes] | gzip.GzipFile", header: Header, labels: np.ndarray) -> None:
    header["scl_slope"], header["scl_inter"] = 0, 0  # NIfTI's word for "not scaled"
    header.write_to(file)
    for plane in labels:
        file.write(np.ascontiguousarray(plane, dtype=header.get_data_dtype()).data)


def _header_from(geometry: Geometry) -> Header:
    steps = np.array(geometry.direction) * np.array(geometry.spacing)[:, None]
    affine = np.eye(4)
    affine[:3, :3] = steps[::-1].T
    affine[:3, 3] = geometry.origin
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = nib.Nifti1Header() if max(geometry.shape) < 2**15 else nib.Nifti2Header()
    header.set_data_shape(geometry.shape[::-1])
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    return header


# ---- what the header says -------------------------------------------------------------------------------------------


def _read_header(stream: "_Stream", path: Path) -> Header:
    start = bytearray(348)
    if stream.readinto(memoryview(start)) < len(start):
        raise _truncated(path, len(start), str(stream.position))
    sizes = {"<": int.from_bytes(start[:4], "little"), ">": int.from_bytes(start[:4], "big")}
    endianness = next((order for order, size in sizes.items() if size in _HEADERS), None)
    if endianness is None:
        raise DataError(f"{path} contains no NIfTI header", remedy=COPY_AGAIN)
    size = sizes[endianness]
    rest = bytearray(size - len(start))
    if stream.readinto(memoryview(rest)) < len(rest):
        raise _truncated(path, size, str(stream.position))
    header = _HEADERS[size](bytes(start + rest), endianness=endianness, check=False)
    magic = bytes(header["magic"].item())[:3]
    if magic not in (b"n+1", b"n+2"):
        kind = "one half of a .hdr/.img pair" if magic[:2] == b"ni" else "not NIfTI (perhaps an Analyze header)"
        raise DataError(f"{path} is {kind}: its magic is {magic!r}", remedy="convert it to a single .nii.gz file")
    return header


def _shape(header: Header, path: Path) -> tuple[int, ...]:
    """Shape in NIfTI's order (x, y[, z[, c]])."""
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise DataError(f"{path}: the header claims {axes} axes, expected 2 to 4", remedy=COPY_AGAIN)
    shape = [int(extent) for extent in header["dim"][1 : axes + 1]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4:
        raise DataError(
            f"{path}: expected a 2-D or 3-D image, or a 4-D one with channels last; this has the shape {tuple(shape)}",
            remedy="save the image as (x, y, z), or as (x, y, z, channel)",
        )
    if min(shape) < 1:
        raise DataError(f"{path}: the image is empty, its shape is {tuple(shape)}", remedy="export the file again")
    return tuple(shape)


def _dtype(header: Header, path: Path) -> np.dtype:
    with decoding(path):
        dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        name = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise DataError(
            f"{path}: expected one integer or real number per voxel, found voxels of type {name}",
            remedy="save each component (real part, colour) as a channel of its own",
        )
    return dtype


def _scaling(header: Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN is NIfTI's word for "not scaled"."""
    written = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(written[0]) or (math.isfinite(written[0]) and written[0] and not math.isfinite(written[1])):
        raise DataError(
            f"{path}: the header's scaling is not finite (scl_slope {written[0]:g}, scl_inter {written[1]:g})",
            remedy="write scl_slope 1 and scl_inter 0 if the stored voxels need no scaling",
        )
    with decoding(path):
        slope, intercept = header.get_slope_inter()
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _voxel_offset(header: Header, path: Path) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset.is_integer() and header.sizeof_hdr <= offset < 2**62):
        raise DataError(f"{path}: the header claims that voxels begin at byte {offset:g}", remedy=COPY_AGAIN)
    return int(offset)


def _geometry(header: Header, path: Path) -> Geometry:
    shape = _shape(header, path)
    flat = len(shape) == 2
    with decoding(path), np.errstate(all="ignore"):
        return nifti_geometry(header, (1 if flat else shape[2], shape[1], shape[0]), flat=flat, file=str(path))


def _truncated(path: Path, expected: int, got: str) -> DataError:
    return DataError(
        f"{path} is truncated or its header is wrong: it declares {expected} bytes, but has {got}", remedy=COPY_AGAIN
    )


# ---- bytes ----------------------------------------------------------------------------------------------------------


class _Stream(Protocol):
    """Decompressed bytes in reading order; used as a context that closes the file."""

    position: int  # bytes delivered or skipped so far
    largest_content: int  # more bytes than this cannot come

    def __enter__(self) -> "_Stream": ...

    def __exit__(self, *_: object) -> None: ...

    def readinto(self, target: memoryview) -> int:
        """Fill the target; return how many bytes were read, fewer than requested only at the end of the file."""
        ...

    def skip(self, count: int) -> None: ...

    def finish(self) -> None:
        """Read the rest and verify the container's length and checksum. Raises DataError."""
        ...


def _opened(path: Path) -> _Stream:
    return _GzipStream(path) if path.name.lower().endswith(".gz") else _PlainStream(path)


class _PlainStream:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        self.position = 0
        self.largest_content = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> "_PlainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def readinto(self, target: memoryview) -> int:
        filled = 0
        while filled < len(target) and (got := self._file.readinto(target[filled:])):
            filled += got
        self.position += filled
        return filled

    def skip(self, count: int) -> None:
        self.position = min(self._file.seek(count, os.SEEK_CUR), self.largest_content)

    def finish(self) -> None:
        """Bytes after the voxels (padding) do no harm, and the format has no checksum."""


class _GzipStream:
    """Decompresses once, straight into the target. zlib itself checks the length and CRC at the end of each member."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        self._member = zlib.decompressobj(wbits=31)
        self._packed = b""  # read from the file, not yet decompressed
        self.position = 0
        self.largest_content = os.fstat(self._file.fileno()).st_size * _DEFLATE_LIMIT

    def __enter__(self) -> "_GzipStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def readinto(self, target: memoryview) -> int:
        filled = 0
        while filled < len(target) and (piece := self._next(len(target) - filled)):
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
        self.position += filled
        return filled

    def skip(self, count: int) -> None:
        while count and (piece := self._next(count)):
            self.position += len(piece)
            count -= len(piece)

    def finish(self) -> None:
        while self._next(_CHUNK):
            pass
        if not self._member.eof:
            raise DataError(f"{self._path} is truncated: the end of its gzip data is missing", remedy=COPY_AGAIN)

    def _next(self, limit: int) -> bytes:
        """Decompress at most `limit` bytes; none at the end of the data, or where the file is truncated."""
        while True:
            if self._member.eof and not self._next_member():
                return b""
            self._packed = self._packed or self._file.read(_CHUNK)
            broken_off = not self._packed
            try:
                piece = self._member.decompress(self._packed, min(limit, 4 * _CHUNK))
            except zlib.error as error:
                what = f"{self._path} is damaged and cannot be decompressed ({error})"
                raise DataError(what, remedy=COPY_AGAIN) from error
            self._packed = self._member.unconsumed_tail
            if piece or broken_off:
                return piece

    def _next_member(self) -> bool:
        """Continue with the next gzip member, if one follows; other bytes after the end (padding) do no harm."""
        following = self._member.unused_data
        if len(following) < 3:
            following += self._file.read(_CHUNK)
        if not following.startswith(b"\x1f\x8b\x08"):
            return False
        self._member, self._packed = zlib.decompressobj(wbits=31), following
        return True
