"""Small image files as they should be, of every format: what tests of reading and of the intake start from.

    arrays      voxels
    affines     affine_of, affine_along, tilted
    files       nifti, itk_image, png, stack
    their bytes nifti_bytes; write and content, which pack and unpack

Headers are written as bytes and PNGs are put together by hand where the library under test would write them.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile

AFFINE = np.array([[2.0, 0, 0, -7], [0, 3, 0, 11], [0, 0, 4, 13], [0, 0, 0, 1]])  # RAS

# ---- arrays ---------------------------------------------------------------------------------------------------------


def voxels(shape: Sequence[int] = (4, 5, 6), high: int = 200, dtype: object = np.int16, seed: int = 0) -> np.ndarray:
    """Random integers in (Z, Y, X) order."""
    return np.random.default_rng(seed).integers(0, high, tuple(shape)).astype(dtype)


def affine_of(matrix: np.ndarray, spacing=(0.7, 1.5, 3.0), origin=(-31.0, 12.5, 100.25)) -> np.ndarray:
    """NIfTI affine (RAS) of axes given as the columns of an orthonormal matrix."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * spacing, origin
    return affine


def affine_along(axes: str, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    """NIfTI affine (RAS): x, y and z grow towards these letters; spacing (z, y, x), origin (x, y, z) in LPS."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, letter in enumerate(axes):
        row = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}[letter]
        affine[row, column] = spacing[2 - column] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = -origin[0], -origin[1], origin[2]
    return affine


def tilted(degrees: float) -> np.ndarray:
    """Rotation about x by an angle and about z by half of it."""
    a = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a / 2), -np.sin(a / 2), 0], [np.sin(a / 2), np.cos(a / 2), 0], [0, 0, 1]])
    return about_x @ about_z


# ---- files ----------------------------------------------------------------------------------------------------------


def nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE, **options: object) -> Path:
    """Write a NIfTI file, packed if the name says so; see `nifti_bytes`."""
    return write(path, nifti_bytes(array, affine, **options))  # type: ignore[arg-type]


def nifti_bytes(
    array: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    *,
    qform: int = 1,
    sform: int = 1,
    version: int = 1,
    endianness: str = "<",
) -> bytes:
    """Make a NIfTI file of a (Y, X), (Z, Y, X) or (C, Z, Y, X) array; a form whose code is 0 stays unset."""
    array = voxels() if array is None else array
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    image = kind(array.T, None, kind.header_class(endianness=endianness), dtype=array.dtype)
    image.header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * 4)[: array.ndim])
    if qform:
        image.set_qform(affine, code=qform)
    if sform:
        image.set_sform(affine, code=sform)
    return image.to_bytes()


def write(path: Path, content: bytes) -> Path:
    """Write bytes, packed if the name says so in any case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content)
    return path


def content(path: Path) -> bytes:
    """Bytes of a file, unpacked if it is packed."""
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def itk_image(path: Path, array: np.ndarray | None = None, *, vector=False, compressed=False) -> Path:
    """Write (Z, Y, X) or, with `vector`, (Z, Y, X, C) through SimpleITK on an oblique grid of odd spacing."""
    array = voxels() if array is None else array
    image = sitk.GetImageFromArray(array, isVector=vector)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    if image.GetDimension() == 3:
        image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))
        image.SetSpacing((0.7, 1 / 3, 2.5))
        image.SetOrigin((-1 / 3, 1234.5678901234, 1e-7))
    else:
        image.SetSpacing((0.7, 1 / 3))
        image.SetOrigin((5.0, -6.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def png(path: Path, samples: np.ndarray, *, bits: int = 8, colour_type: int = 0, palette: bytes = b"") -> Path:
    """Write a PNG of (Y, X[, samples]) by hand; colour types: 0 grey, 2 RGB, 3 palette, 4 grey+alpha, 6 RGBA."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def row(line: np.ndarray) -> bytes:
        if bits == 16:
            return line.astype(">u2").tobytes()
        if bits == 8:
            return line.astype(np.uint8).tobytes()
        as_bits = np.unpackbits(line.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
        return np.packbits(as_bits.ravel()).tobytes()

    height, width = samples.shape[:2]
    packed = zlib.compress(b"".join(b"\0" + row(line) for line in samples))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"") + chunk(b"IDAT", packed)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    return path


def stack(path: Path, array: np.ndarray, *, separate: bool = False, **options: object) -> Path:
    """Write a multi-page TIFF of (Z, Y, X); `separate` gives every page a header right beside its own voxels."""
    if not separate:
        tifffile.imwrite(path, array, photometric="minisblack", **options)
        return path
    with tifffile.TiffWriter(path) as writer:
        for page in array:
            writer.write(page, photometric="minisblack", contiguous=False, metadata=None, **options)
    return path
