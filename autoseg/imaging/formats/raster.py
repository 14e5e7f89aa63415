"""Images without a position in space: PNG, BMP and JPEG through Pillow, TIFF through tifffile.

    read_geometry        header -> Geometry, of 1 mm where no size is stated; several TIFF pages are slices
    load, load_labels    voxels: colours become channels in images, palette indices are values in label maps
    write                a label map, lossless

Values never change. So 16-bit colour PNGs are read by SimpleITK (Pillow keeps 8 bits), values of 1, 2 and 4-bit files
are not stretched to 0..255, an alpha channel is dropped only if it is constant, and a chain of TIFF pages that points
outside the file is an error and not the end of the stack.

Tags about pixels are followed as in viewers: the orientation tag (`upright.py`), TIFFs in which 0 is white, CMYK JPEGs
converted to red, green, blue. Gamma and colour profiles are ignored: they change how a screen shows a value, not the
value. Unsupported kinds are refused by name: several frames, a stack whose parts in other files are missing, printing
inks and other kinds of colour in TIFF (`tiff_pages.py`).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.colours import BLACK, colour_name, refuse_colours, values_of_colours
from autoseg.imaging.formats.signatures import COPY_AGAIN, StoredVoxels, decoding
from autoseg.imaging.formats.tiff_pages import (
    LOSSY,
    black_is_zero,
    orientation_of_pages,
    refuse_missing_parts,
    refuse_other_kinds,
)
from autoseg.imaging.formats.tiff_spacing import StatedSize, stated_size, tiff_geometry, written_size
from autoseg.imaging.formats.upright import orientation_of_picture, upright, upright_extent
from autoseg.imaging.geometry import Geometry

__all__ = ["BLACK", "load", "load_labels", "may_have_colours", "orientation", "palette", "read_geometry", "write"]

_TIFF = (".tif", ".tiff")
Purpose = Literal["image", "indices", "colours"]  # what a palette is resolved to: colours, or for labels its indices
_EXPANSION_LIMIT = 4096  # above what deflate and LZW can reach


def read_geometry(path: Path) -> Geometry:
    """Read the grid from the header alone. Raises DataError."""
    if path.suffix.lower() in _TIFF:
        return _tiff_geometry(_inspect_tiff(path), path)
    with decoding(path), Image.open(path) as image:
        return _flat_geometry(*upright_extent(image.height, image.width, orientation_of_picture(image, path)))


def load(path: Path) -> StoredVoxels:
    """Read an image, (C, Z, Y, X) upright; palettes are resolved to red, green, blue. Raises DataError."""
    return _load(path, "image")


def load_labels(path: Path, colours: Mapping[str, int] = {}) -> StoredVoxels:
    """Read a label map, (1, Z, Y, X) upright; palettes give indices, equal colours one value.

    Args:
        colours: `#rrggbb` -> value. With any, palettes and colours are read by it; grey values stay unchanged.

    Raises:
        DataError: the file cannot be read, or contains colours that are not listed.
    """
    stored = _load(path, "colours" if colours else "indices")
    channels = stored.values
    if len(channels) != 3:
        return stored
    if colours and channels.dtype == np.uint8:
        return StoredVoxels(values_of_colours(channels, colours, path), stored.geometry)
    if (channels != channels[:1]).any():
        refuse_colours(channels, path)
    return StoredVoxels(channels[:1], stored.geometry)


def orientation(path: Path) -> int:
    """Read the orientation tag, 1 (upright) to 8, which `load` and `load_labels` follow. Raises DataError."""
    if path.suffix.lower() in _TIFF:
        return _inspect_tiff(path).orientation
    with decoding(path), Image.open(path) as image:
        return orientation_of_picture(image, path)


def may_have_colours(path: Path) -> bool:
    """Whether a file's header allows for red, green and blue that differ. Raises DataError."""
    if path.suffix.lower() in _TIFF:
        tiff = _inspect_tiff(path)
        return tiff.shape[0] >= 3 or tiff.palette is not None
    with decoding(path), Image.open(path) as image:
        return len(image.getbands()) >= 3 or image.mode in ("P", "PA")


def palette(path: Path) -> dict[int, str]:
    """Colours (`#rrggbb`) of the indices in use in a file with a palette; empty for other files. Raises DataError."""
    if path.suffix.lower() in _TIFF:
        table = _inspect_tiff(path).palette
        if table is None:
            return {}
        used = np.unique(_load(path, "indices").values)
        return {int(i): colour_name(*(int(part) >> 8 for part in table[:, i])) for i in used}
    with decoding(path), Image.open(path) as image:
        if image.mode not in ("P", "PA"):
            return {}
        indices = np.asarray(image)
        used = np.unique(indices if indices.ndim == 2 else indices[..., 0])
        parts = np.frombuffer(bytes(image.getpalette("RGB") or b""), dtype=np.uint8).reshape(-1, 3)
    return {int(i): colour_name(*map(int, parts[i])) for i in used if i < len(parts)}


def write(path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None) -> None:
    """Write labels (Z, Y, X), any integer dtype: a stack of pages as TIFF, one slice as any of the formats.

    Raises:
        UsageError: the format cannot hold several slices, or these values.
    """
    if path.suffix in _TIFF:
        tifffile.imwrite(
            path,
            labels[0] if geometry.flat else labels,
            photometric="minisblack",
            compression="zlib",
            software=False,
            metadata=written_size(geometry),
        )
        return
    if len(labels) != 1:
        raise UsageError(f"{path.name}: a {path.suffix} file cannot hold {len(labels)} slices", remedy="write .nii.gz")
    largest = 255 if path.suffix == ".bmp" else 65535
    if labels.min() < 0 or labels.max() > largest:
        raise UsageError(
            f"{path.name}: {path.suffix} holds values 0..{largest}, the labels span {labels.min()}..{labels.max()}",
            remedy="write .tif or .nii.gz",
        )
    plane = labels[0].astype(np.uint8 if labels.max() <= 255 else np.uint16)
    Image.fromarray(plane).save(path, format="BMP" if path.suffix == ".bmp" else "PNG")


def _load(path: Path, purpose: Purpose) -> StoredVoxels:
    if path.suffix.lower() in _TIFF:
        return _load_tiff(path, purpose)
    planes, turn = _read_planes(path, purpose)  # (Y, X) or (Y, X, samples)
    if planes.ndim == 2:
        planes = planes[:, :, None]
    channels = upright(_without_alpha(np.moveaxis(planes, -1, 0), path), turn)
    return StoredVoxels(channels[:, None], _flat_geometry(*channels.shape[1:]))


def _without_alpha(channels: np.ndarray, path: Path) -> np.ndarray:
    """Drop the last of 2 or 4 channels, opacity, if it is the same everywhere."""
    if len(channels) not in (2, 4):
        return channels
    if (channels[-1] != channels[-1].flat[0]).any():
        raise DataError(
            f"{path} has a transparency channel that varies, expected grey or red, green, blue",
            remedy="flatten the image onto a background, or save the channels as separate files",
        )
    return channels[:-1]


def _flat_geometry(height: int, width: int) -> Geometry:
    return Geometry(shape=(1, height, width), spacing=(1.0, 1.0, 1.0), flat=True, placed=False, sized=False)


# ---- PNG, BMP, JPEG -------------------------------------------------------------------------------------------------


def _read_planes(path: Path, purpose: Purpose) -> tuple[np.ndarray, int]:
    """Samples (Y, X) or (Y, X, samples) as stored, and the orientation tag."""
    bits, colour_type = _png_bits(path)
    with decoding(path):
        if bits is not None:
            with Image.open(path) as image:
                image.verify()  # the checksum of every chunk, which decoding ignores
        with Image.open(path) as image:
            _refuse_frames(image, path)
            turn = orientation_of_picture(image, path)
        if bits == 16 and colour_type != 0:
            return _read_deep_colour(path), turn
        with Image.open(path) as image:
            target = None
            if image.mode in ("P", "PA") and purpose != "indices":
                seen = "transparency" in image.info or image.mode == "PA"
                target = "RGBA" if seen and purpose == "image" else "RGB"
            elif image.mode in ("CMYK", "YCbCr"):
                target = "RGB"
            planes = np.asarray(image.convert(target) if target else image)
    if bits in (2, 4) and colour_type == 0:
        planes = planes // (255 // (2**bits - 1))  # Pillow stretches few-bit greys to 0..255
    return (planes.astype(np.uint8) if planes.dtype == bool else planes), turn


def _refuse_frames(image: Image.Image, path: Path) -> None:
    """Refuse an animation. (A JPEG with a second picture behind it, as phones write them, counts as the first.)"""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"{path} is an animation of {frames} frames, expected one picture",
            remedy="save each frame as a file of its own, or all frames as slices of a TIFF",
        )


def _png_bits(path: Path) -> tuple[int | None, int]:
    """Bits per sample and colour type (0 is grey) of a PNG file; (None, 0) for other formats."""
    with open(path, "rb") as file:
        head = file.read(26)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26:
        return None, 0
    return head[24], head[25]


def _read_deep_colour(path: Path) -> np.ndarray:
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    except RuntimeError as error:
        raise DataError(
            f"{path}: 16-bit PNG of this kind (grey with transparency) cannot be read",
            remedy="save it without the transparency channel",
        ) from error


# ---- TIFF -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tiff:
    """Content of one TIFF file, with the axes sorted by meaning."""

    shape: tuple[int, int, int, int]  # (C, Z, Y, X), C before palette and alpha are handled
    order: tuple[int, ...]  # of the file's axes, to sort them so
    paged: bool  # a stack, even if of one slice
    alpha: bool  # the last channel is opacity
    palette: np.ndarray | None  # (3, colours) uint16
    size: StatedSize  # of its voxels, as stored
    orientation: int = 1  # of all pages
    white: int | None = None  # the stored value that is black where 0 is white


@dataclass(frozen=True)
class PlainTiff:
    """A TIFF whose voxels are intensities as they are stored."""

    geometry: Geometry
    shape: tuple[int, int, int, int]  # (C, Z, Y, X)
    order: tuple[int, ...]  # of the file's axes, to sort them so


def plain_tiff(path: Path) -> PlainTiff | None:
    """A TIFF as its header describes it; None where it is turned, inverted, transparent or has a palette."""
    tiff = _inspect_tiff(path)
    if tiff.orientation != 1 or tiff.palette is not None or tiff.alpha or tiff.white is not None:
        return None
    return PlainTiff(_tiff_geometry(tiff, path), tiff.shape, tiff.order)


def decodes_by_parts(series: Any) -> bool:
    """Whether strips or tiles can be decoded here one by one (LZW and JPEG need another package)."""
    plain = (tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)
    return all(page is not None and page.keyframe.compression in plain for page in series.pages)


def _load_tiff(path: Path, purpose: Purpose) -> StoredVoxels:
    tiff = _inspect_tiff(path)
    if purpose != "image" and _is_lossy(path):
        raise DataError(f"{path} is compressed with JPEG, which alters label values", remedy="save labels lossless")
    decoded = _decode_tiff(path)
    if decoded.size != math.prod(tiff.shape):
        raise DataError(f"{path}: {decoded.size} voxels instead of {math.prod(tiff.shape)}", remedy=COPY_AGAIN)
    channels = decoded.transpose(tiff.order).reshape(tiff.shape)
    if channels.dtype == bool:
        channels = channels.astype(np.uint8)
    if channels.dtype.kind not in "uif":
        raise DataError(f"{path}: expected real numbers, found {channels.dtype}", remedy="convert the image")
    if purpose != "indices" and tiff.palette is not None:
        channels = (tiff.palette[:, channels[0]] >> 8).astype(np.uint8)
    if tiff.alpha:
        channels = _without_alpha(channels, path)
    if tiff.white is not None:
        channels = black_is_zero(channels, tiff.white, path, labels=purpose != "image")
    return StoredVoxels(upright(channels, tiff.orientation), _tiff_geometry(tiff, path))


def _tiff_geometry(tiff: _Tiff, path: Path) -> Geometry:
    """The grid of a TIFF image as shown: rotated, with the edges of its pixels."""
    height, width = upright_extent(*tiff.shape[2:], tiff.orientation)
    size = tiff.size
    if size.spacing is not None:
        z, y, x = size.spacing
        size = replace(size, spacing=(z, *upright_extent(y, x, tiff.orientation)))
    return tiff_geometry((tiff.shape[1], height, width), size, path, paged=tiff.paged)


def _inspect_tiff(path: Path) -> _Tiff:
    with decoding(path), tifffile.TiffFile(path) as file:
        _refuse_broken_chain(file, path)
        refuse_missing_parts(file, path)
        if len(file.series) != 1 or len(file.pages) > len(file.series[0].pages):
            raise DataError(
                f"{path} contains images of different sizes or kinds, expected one image or a stack of equal pages",
                remedy="save only the image (remove thumbnails and labels of slide scanners)",
            )
        axes, extents, page = file.series[0].axes, file.series[0].shape, file.pages.first
        white = refuse_other_kinds(page, path)
        turn = orientation_of_pages(file, path)
        extra = page.extrasamples or ()
        alpha = bool(extra) and int(extra[-1]) in (1, 2)  # 0 is "unspecified": a channel as good as the others
        size = stated_size(file, path, paged=bool(set(axes) - set("CSYX")))
        colormap = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    groups: dict[str, list[int]] = {"C": [], "Z": [], "Y": [], "X": []}
    for i, letter in enumerate(axes):
        groups["C" if letter in "SC" else letter if letter in "YX" else "Z"].append(i)
    order = tuple(i for group in groups.values() for i in group)
    c, z, y, x = (math.prod(extents[i] for i in group) for group in groups.values())
    if any(sum(extents[i] > 1 for i in group) > 1 for group in groups.values()) or min(c, z, y, x) < 1:
        raise DataError(
            f"{path}: expected slices and channels at most, found axes {axes} of extent {extents}",
            remedy="save one time point, or one image, per file",
        )
    return _Tiff((c, z, y, x), order, bool(groups["Z"]), alpha, colormap, size, turn, white)


def _decode_tiff(path: Path) -> np.ndarray:
    with decoding(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.nbytes > path.stat().st_size * _EXPANSION_LIMIT:
            raise DataError(f"{path} claims {series.nbytes} bytes of voxels, far beyond its size", remedy=COPY_AGAIN)
        try:
            return series.asarray()
        except ValueError as error:
            page = file.pages.first
            inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE  # Pillow would swap black and white
            if "imagecodecs" not in str(error) or page.bitspersample < 8 or inverted:
                raise
            pages, shape, dtype = len(file.pages), series.shape, series.dtype
            turn = orientation_of_pages(file, path)
        with Image.open(path) as image:  # LZW and JPEG; tifffile needs another package for them
            frames = []
            for i in range(pages):
                image.seek(i)
                shown = np.moveaxis(np.asarray(image), (0, 1), (-2, -1))  # Pillow turns TIFFs as it reads them
                frames.append(np.moveaxis(upright(shown, {6: 8, 8: 6}.get(turn, turn)), (-2, -1), (0, 1)))
        array = np.stack(frames)
        if array.dtype != dtype or array.size != math.prod(shape):
            raise DataError(f"{path}: this compression is not supported", remedy="save it uncompressed or with deflate")
        return array.reshape(shape)


def _refuse_broken_chain(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse a file whose last readable page points to a further one: its end is missing, and slices with it."""
    form, last = file.tiff, file.pages[-1]
    file.filehandle.seek(last.offset)
    entries = struct.unpack(form.tagnoformat, file.filehandle.read(form.tagnosize))[0]
    file.filehandle.seek(last.offset + form.tagnosize + entries * form.tagsize)
    following = struct.unpack(form.offsetformat, file.filehandle.read(form.offsetsize))[0]
    if following != 0:
        raise DataError(f"{path} is truncated: pages after the first {len(file.pages)} are missing", remedy=COPY_AGAIN)


def _is_lossy(path: Path) -> bool:
    with decoding(path), tifffile.TiffFile(path) as file:
        return file.pages.first.compression in LOSSY
