"""Files as they come in practice: damaged, mislabelled, or merely odd. Small, and the same on every call.

    sound files     nifti, itk_image, png_bytes, stack: what a test starts from
    damage          cut, flipped, patched, with_appended: a damaged copy of a file
    impostors       files that are not what their name says
    odd files       legal, and often read wrongly

Headers are changed as bytes and PNGs are put together by hand, not through the libraries under test.
"""

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

# Byte offsets in a little-endian NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344
AFFINE = np.array([[2.0, 0, 0, -7], [0, 3, 0, 11], [0, 0, 4, 13], [0, 0, 0, 1]])  # RAS

# ---- sound files ----------------------------------------------------------------------------------------------------


def voxels(shape: Sequence[int] = (4, 5, 6), high: int = 200, dtype: object = np.int16, seed: int = 0) -> np.ndarray:
    """Random integers in (Z, Y, X) order."""
    return np.random.default_rng(seed).integers(0, high, tuple(shape)).astype(dtype)


def affine_of(matrix: np.ndarray, spacing=(0.7, 1.5, 3.0), origin=(-31.0, 12.5, 100.25)) -> np.ndarray:
    """NIfTI affine (RAS) of axes given as the columns of an orthonormal matrix."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * spacing, origin
    return affine


def tilted(degrees: float) -> np.ndarray:
    """Rotation about x by an angle and about z by half of it."""
    a = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a / 2), -np.sin(a / 2), 0], [np.sin(a / 2), np.cos(a / 2), 0], [0, 0, 1]])
    return about_x @ about_z


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


# ---- damage ---------------------------------------------------------------------------------------------------------


def _beside(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}-{path.name}")


def cut(path: Path, size: int) -> Path:
    """Keep the first `size` bytes, of the packed file if it is packed."""
    target = _beside(path, "cut")
    target.write_bytes(path.read_bytes()[:size])
    return target


def flipped(path: Path, byte: int, mask: int = 4) -> Path:
    """Flip bits of one byte, of the packed file if it is packed."""
    raw, target = bytearray(path.read_bytes()), _beside(path, "flipped")
    raw[byte] ^= mask
    target.write_bytes(raw)
    return target


def with_appended(path: Path, tail: bytes) -> Path:
    """Add bytes after the end, of the packed file if it is packed."""
    target = _beside(path, "longer")
    target.write_bytes(path.read_bytes() + tail)
    return target


def patched(path: Path, **fields: tuple[int, str, object]) -> Path:
    """Overwrite header bytes of a NIfTI file: name=(offset, struct format, value); packed again if it was packed."""
    raw, target = bytearray(content(path)), _beside(path, "patched")
    for offset, layout, value in fields.values():
        struct.pack_into(layout, raw, offset, *(value if isinstance(value, tuple) else (value,)))
    return write(target, bytes(raw))


# ---- impostors ------------------------------------------------------------------------------------------------------

_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please log in</body></html>"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
IMPOSTORS: dict[str, bytes] = {  # what the message must name -> contents
    "empty": b"",
    "Git LFS": _POINTER,
    "git-annex": b"/annex/objects/SHA256E-s12345--4d7a4d7a.nii.gz\n",
    "HTML": b"\n " + _PAGE,
    "JSON": b'{"message": "Not Found"}',
    "ZIP": b"PK\x03\x04" + bytes(60),
    "PDF": b"%PDF-1.7\n" + bytes(60),
    "DICOM": bytes(128) + b"DICM" + bytes(200),
    "macOS": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(60),
}


def impostor(folder: Path, name: str, ending: str = ".nii.gz") -> Path:
    """Write one of IMPOSTORS under the ending of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"impostor{ending}"
    path.write_bytes(IMPOSTORS[name])
    return path


def header_bomb(folder: Path, side: int = 3000) -> Path:
    """Write a .nii.gz of some hundred bytes that claims side**3 voxels of 8 bytes."""
    sound = nifti(folder / "sound.nii.gz")
    return patched(sound, dim=(DIM, "<4h", (3, side, side, side)), datatype=(DATATYPE, "<2h", (64, 64)))


# ---- odd files ------------------------------------------------------------------------------------------------------


def not_finite(folder: Path, ending: str = ".nii.gz") -> Path:
    """Write a float image with NaN at (0, 0, 0), +Inf at (0, 0, 1) and -Inf at (0, 0, 2); elsewhere 1."""
    array = np.ones((3, 4, 5), np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    return (itk_image if ending in (".mha", ".nrrd") else nifti)(folder / f"notfinite{ending}", array)


def sheared(folder: Path, cosine: float) -> Path:
    """Write a NIfTI file whose x and y axes enclose an angle of the given cosine; 1 mm voxels."""
    affine = np.eye(4)
    affine[:2, 1] = cosine, np.sqrt(1 - cosine**2)
    return nifti(folder / "sheared.nii.gz", voxels(), affine, qform=0)


def noisy_float_labels(folder: Path) -> tuple[Path, np.ndarray]:
    """Write labels 0..3 as scaled int16, so that 1 reads back as 0.99999999...; returns the labels too."""
    labels = voxels((4, 5, 6), 4)
    image = nib.Nifti1Image(labels.T.astype(np.float64), AFFINE)
    image.set_data_dtype(np.int16)
    return write(folder / "noisy.nii.gz", image.to_bytes()), labels


def palette_png(folder: Path) -> tuple[Path, np.ndarray]:
    """Write indices 0..3 over the colours black, red, green, blue; returns the (Y, X) indices too."""
    indices = voxels((1, 7, 9), 4)[0]
    return png(
        folder / "palette.png", indices, colour_type=3, palette=bytes((0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255))
    ), indices


def jpeg_mask(folder: Path) -> Path:
    """Write a mask of 0 and 255 as JPEG, which puts other values along its edges."""
    path = folder / "mask.jpg"
    Image.fromarray((voxels((1, 16, 16), 2)[0] * 255).astype(np.uint8)).save(path)
    return path


DAMAGED: dict[str, Callable[[Path], Path]] = {  # each makes one unreadable image in a folder
    "truncated .nii.gz": lambda folder: cut(nifti(folder / "a.nii.gz"), 150),
    "truncated .nii": lambda folder: cut(nifti(folder / "a.nii"), 500),
    "no gzip trailer": lambda folder: cut(path := nifti(folder / "a.nii.gz"), path.stat().st_size - 8),
    "wrong checksum": lambda folder: flipped(nifti(folder / "a.nii.gz"), -6),
    "truncated .mha": lambda folder: cut(path := itk_image(folder / "a.mha"), path.stat().st_size - 9),
    "truncated .nrrd": lambda folder: cut(path := itk_image(folder / "a.nrrd"), path.stat().st_size - 9),
    "truncated .tif": lambda folder: cut(stack(folder / "a.tif", voxels(), separate=True), 900),
    "truncated .png": lambda folder: cut(png(folder / "a.png", voxels()[0]), 70),
    "header bomb": header_bomb,
    "sheared": lambda folder: sheared(folder, 0.1),
    **{name: lambda folder, name=name: impostor(folder, name) for name in IMPOSTORS},  # type: ignore[misc]
}
