"""Stored voxels before they become an image or a label map, and files whose content does not match their name.

Each format module (`nifti`, `itk`, `raster`) returns `StoredVoxels`: the numbers as stored, with the scaling of the
header. Conversion happens here once for all formats, slice by slice, so that a scaled scan is never held in memory as a
whole in double precision.
"""

import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.geometry import Geometry
from autoseg.messages import ANY_DATASET, suggest

LABEL_TOLERANCE = 1e-3  # label maps stored as float carry rounding noise of their scaling: 0.99999999 means 1

COPY_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class StoredVoxels:
    """Voxels in stored order; what they mean is `values * slope + intercept`."""

    values: np.ndarray  # (C, Z, Y, X), integer or float, in the dtype and byte order of the file
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def scaled(self) -> bool:
        return self.slope != 1.0 or self.intercept != 0.0

    def to_float32(self, path: Path) -> np.ndarray:
        """Return the image, (C, Z, Y, X) float32; values that are not finite stay so.

        Raises:
            DataError: the scaling maps all values to one.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.scaled:
                return np.require(self.values, dtype=np.float32, requirements=["C", "A", "W"])
            image = np.empty(self.values.shape, dtype=np.float32)
            for channel, stored in zip(image, self.values, strict=True):
                for target, plane in zip(channel, stored, strict=True):
                    target[...] = plane * np.float64(self.slope) + np.float64(self.intercept)
                self._refuse_lost_contrast(channel, stored, path)
            return image

    def _refuse_lost_contrast(self, scaled: np.ndarray, stored: np.ndarray, path: Path) -> None:
        """Refuse a scaling that maps several values to one by rounding."""
        low, high = scaled.min(), scaled.max()
        if low == high and stored.min() < stored.max():
            raise DataError(
                f"{path}: the header's scaling (slope {self.slope:g}, intercept {self.intercept:g}) makes every voxel "
                f"{float(low):g}, although the stored values span {stored.min():g} to {stored.max():g}",
                remedy="correct the scaling in the header (scl_slope and scl_inter; usually 1 and 0)",
            )

    @property
    def _scaling(self) -> str:
        """The scaling in words for messages about values; empty without one."""
        return f" (with the header's slope {self.slope:g} and intercept {self.intercept:g})" if self.scaled else ""

    def to_labels(self, path: Path) -> np.ndarray:
        """Return the label map, (Z, Y, X) int32.

        Raises:
            DataError: more than one channel, values that are not integers within 1e-3, or that exceed 32 bits.
        """
        if len(self.values) != 1:
            raise DataError(
                f"{path}: a label map has one value per voxel, this file has {len(self.values)}",
                remedy="save one integer label map per case (not colours, not one channel per label)",
            )
        labels = np.empty(self.values.shape[1:], dtype=np.int32)
        for target, plane in zip(labels, self.values[0], strict=True):
            if self.scaled or plane.dtype.kind == "f":
                plane = _rounded(plane * np.float64(self.slope) + np.float64(self.intercept), path, self._scaling)
            if int(plane.min()) < -(2**31) or int(plane.max()) >= 2**31:
                raise DataError(f"{path}: label values do not fit into 32 bits", remedy="use small integers as labels")
            target[...] = plane
        if self.scaled:
            self._refuse_lost_contrast(labels, self.values[0], path)
        return labels


def _rounded(plane: np.ndarray, path: Path, scaling: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        whole = np.rint(plane)
        off = ~(np.abs(plane - whole) <= LABEL_TOLERANCE)  # true for NaN and infinity too
    if off.any():
        raise DataError(
            f"{path}: label values must be integers (within {LABEL_TOLERANCE:g}), found "
            f"{float(plane[off][0]):.6g}{scaling}",
            remedy="save the labels as integers; if they were resampled, use nearest-neighbour interpolation",
        )
    return whole


class _Kind(NamedTuple):
    beginning: bytes
    name: str
    endings: tuple[str, ...]  # the extensions that may contain it
    remedy: str


_KINDS = (
    _Kind(b"version https://git-lfs", "a Git LFS pointer, not the image itself", (), "fetch it with `git lfs pull`"),
    _Kind(b"/annex/objects/", "a git-annex pointer, not the image itself", (), "fetch it with `datalad get`"),
    _Kind(
        b"\x00\x05\x16\x07", "macOS metadata, not an image", (), "delete it; the image has no leading ._ in its name"
    ),
    _Kind(b"\x1f\x8b", "gzip-compressed", (".nii.gz",), "rename it to .nii.gz if it is NIfTI; otherwise decompress it"),
    _Kind(b"\x5c\x01\x00\x00", "an uncompressed NIfTI image", (".nii",), "rename it to .nii"),
    _Kind(b"\x00\x00\x01\x5c", "an uncompressed NIfTI image", (".nii",), "rename it to .nii"),
    _Kind(b"\x1c\x02\x00\x00", "an uncompressed NIfTI-2 image", (".nii",), "rename it to .nii"),
    _Kind(b"\x00\x00\x02\x1c", "an uncompressed NIfTI-2 image", (".nii",), "rename it to .nii"),
    _Kind(b"\x89PNG\r\n\x1a\n", "a PNG image", (".png",), "rename it to .png"),
    _Kind(b"\xff\xd8\xff", "a JPEG image", (".jpg", ".jpeg"), "rename it to .jpg"),
    _Kind(b"II*\x00", "a TIFF image", (".tif", ".tiff"), "rename it to .tif"),
    _Kind(b"MM\x00*", "a TIFF image", (".tif", ".tiff"), "rename it to .tif"),
    _Kind(b"II+\x00", "a BigTIFF image", (".tif", ".tiff"), "rename it to .tif"),
    _Kind(b"MM\x00+", "a BigTIFF image", (".tif", ".tiff"), "rename it to .tif"),
    _Kind(b"NRRD000", "an NRRD image", (".nrrd", ".seg.nrrd"), "rename it to .nrrd"),
    _Kind(b"BM", "a BMP image", (".bmp",), "rename it to .bmp"),
    _Kind(b"PK\x03\x04", "a ZIP archive", (), "unpack it"),
    _Kind(b"%PDF", "a PDF document", (), "convert it to an image"),
)
_PAGE = _Kind(b"", "an HTML or XML page", (), "download it again; a log-in or error page was saved in its place")
_MESSAGE = _Kind(b"", "a JSON text", (), "download it again; an error message was saved in its place")
_DICOM = _Kind(b"", "a DICOM file", (), "convert the series to .nii.gz first (dcm2niix, 3D Slicer)")
_SIGNED = {ending for kind in _KINDS for ending in kind.endings}  # extensions whose files all begin as listed


def refuse_other_content(path: Path, ending: str) -> None:
    """Refuse a file that is missing, empty, or clearly does not match its extension, and report what it is.

    Raises:
        DataError: as above; a file with unknown first bytes passes where its format has no signature (.mha, .mhd).
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a {ending} file", remedy="name the files in it")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist", remedy="check the path: the file may have been moved or deleted"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}", remedy="check its permissions") from error
    if not head:
        raise DataError(f"{path} is empty (0 bytes)", remedy=COPY_AGAIN)
    kind = _identify(head)
    if kind is None and ending in _SIGNED:
        raise DataError(
            f"{path} does not begin like a {ending} file; it is damaged or of another format", remedy=COPY_AGAIN
        )
    if ending == ".nii.gz" and kind is not None and kind.endings == (".nii.gz",):
        _refuse_packed_content(path, head)
    if kind is not None and ending not in kind.endings:
        raise DataError(f"{path} is {kind.name}; its extension is {ending}", remedy=kind.remedy)


def _refuse_packed_content(path: Path, head: bytes) -> None:
    """Refuse a .nii.gz whose decompressed content is a known format other than NIfTI."""
    try:
        inside = zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return  # the reader reports what is wrong with it
    kind = _identify(inside)
    if kind is None or ".nii" in kind.endings:
        return
    if kind.endings == (".nii.gz",):
        raise DataError(
            f"{path} is compressed twice: its gzip content is gzip-compressed again",
            remedy=f"decompress it once: gunzip < {shlex.quote(path.name)} > unpacked.nii.gz; or, in a copy, "
            f"{suggest('check', ANY_DATASET, '--fix', 'OUT', workspace=None)}",
        )
    raise DataError(f"{path} is {kind.name}, gzip-compressed; its extension is .nii.gz", remedy=kind.remedy)


def _identify(head: bytes) -> _Kind | None:
    for kind in _KINDS:
        if head.startswith(kind.beginning):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return _PAGE
    if text.startswith(b"{"):
        return _MESSAGE
    return _DICOM if head[128:132] == b"DICM" else None


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Convert the exceptions of a decoding library for a damaged file to DataError. Wrap only calls of the library."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # libraries raise SyntaxError, struct.error, IndexError ... over damaged files
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DataError(
            f"{path} cannot be read: it is damaged or of an unsupported kind ({reason[0]})",
            remedy=f"{COPY_AGAIN}, or convert it with the program that wrote it",
        ) from error


def endings_of_content(head: bytes) -> tuple[str, ...]:
    """The extensions that match these first bytes (up to 512); () where no image format is recognised."""
    kind = _identify(head)
    if kind is None and (b"ObjectType" in head[:200] or b"NDims" in head[:200]):  # MetaImage has no signature
        return (".mha", ".mhd")
    return () if kind is None else kind.endings
