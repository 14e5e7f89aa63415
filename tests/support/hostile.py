"""Files as they come in practice: damaged, mislabelled, or merely odd. Small, and the same on every call.

    damage          cut, flipped, patched, with_appended: a damaged copy of a file
    impostors       files that are not what their name says
    odd files       legal, and often read wrongly

Sound files are those of `files`. Headers are changed as bytes, not through the libraries under test.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from files import AFFINE, content, itk_image, nifti, png, stack, voxels, write

# Byte offsets in a little-endian NIfTI-1 header.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344

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
