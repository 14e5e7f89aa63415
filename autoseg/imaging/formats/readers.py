"""Files to volumes and label maps to files: one table of formats, one behaviour.

    ending_of, stem_of   extension and stem of a file name
    read_image           any accepted file -> Volume, (C, Z, Y, X) float32
    read_labels          any accepted file -> Volume, (Z, Y, X) int32
    read_labels_as       the same, with the meaning that a LabelSet gives to colours and names
    label_names          the labels that a file names
    read_geometry        the grid alone, from the header
    write_labels         a label map on the grid of a given image; complete and verified, or not written at all
    files_of             the files that hold an image: itself, or the slices of a DICOM series

Everything is in stored order; `geometry.to_canonical` changes it. A file that is detectably damaged is refused by name,
never read in part. To add a format, write a module like `raster.py` and one line per extension in `READERS`. DICOM is
known by its content, not by an extension: a folder is a series, and an image or label map like any file.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import DataError, OutOfMemory, StorageError, UsageError
from autoseg.imaging.formats import dicom_files, dicom_labels, dicom_series, itk, nifti, outline_files, raster, seg_nrrd
from autoseg.imaging.formats.outline_maps import Meaning
from autoseg.imaging.formats.segments import Segment
from autoseg.imaging.formats.signatures import StoredVoxels, refuse_other_content
from autoseg.imaging.geometry import Geometry, Volume, corner_distance_voxels
from autoseg.imaging.labels import LabelSet


@dataclass(frozen=True)
class Reader:
    """How files with one extension are read and written."""

    family: str  # formats of one family share their geometry header; labels copy it from such a file
    geometry: Callable[[Path], Geometry]
    image: Callable[[Path], StoredVoxels]
    labels: Callable[[Path], StoredVoxels] | None  # None: the format alters values
    write: Callable[..., None] | None  # (path, labels, geometry, like)
    names: bool = False  # True: `write` takes segments as a last argument, and stores their names and colours
    any_content: bool = False  # True: files that begin like another format (a ZIP archive) are accepted


_NIFTI = Reader("nifti", nifti.read_geometry, nifti.load, nifti.load, nifti.write, names=True)
_ITK = Reader("itk", itk.read_geometry, itk.load, itk.load, itk.write)
_SEGMENTS = Reader("itk", itk.read_geometry, itk.load, seg_nrrd.load_labels, seg_nrrd.write, names=True)
_NATURAL = Reader("natural", raster.read_geometry, raster.load, raster.load_labels, raster.write)
_JPEG = Reader("natural", raster.read_geometry, raster.load, None, None)

DICOM = Reader("dicom", dicom_series.read_geometry, dicom_series.load, None, None, any_content=True)

READERS: dict[str, Reader] = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".seg.nrrd": _SEGMENTS,  # before .nrrd: the first that fits is chosen
    ".nrrd": _ITK,
    ".mha": _ITK,
    ".mhd": _ITK,
    ".png": _NATURAL,
    ".tif": _NATURAL,
    ".tiff": _NATURAL,
    ".bmp": _NATURAL,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}


def ending_of(path: Path | str) -> str | None:
    """Return the known extension of a file name in lower case (".nii.gz" is one), or None."""
    name = Path(path).name.lower()
    return next((ending for ending in READERS if name.endswith(ending) and len(name) > len(ending)), None)


def stem_of(path: Path | str) -> str:
    """Return the file name without its known extension, or DICOM's; the whole name if it has none."""
    name = Path(path).name
    if outline_files.is_outlines(path):  # a.json, and a.png.json
        inner = name[: name.rindex(".")]
        return stem_of(inner) if ending_of(inner) else inner
    if ending_of(path) is None and name.lower().endswith(dicom_files.ENDINGS) and not Path(path).is_dir():
        return name[: name.rindex(".")] or name
    return name[: len(name) - len(ending_of(path) or "")]


def files_of(path: Path | str) -> list[Path]:
    """The files whose content is an image or a label map: the path itself, or all DICOM files of a folder, sorted."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    return sorted(file for files in dicom_files.dicom_files(path).values() for file in files)


def is_dicom(path: Path | str) -> bool:
    """Whether a path is read as DICOM: a folder, or a DICOM file without the extension of another format."""
    path = Path(path)
    return ending_of(path) is None and (path.is_dir() or (path.is_file() and dicom_files.is_dicom(path)))


def read_image(path: Path | str) -> Volume:
    """Read an image.

    Returns:
        Volume of float32, (C, Z, Y, X) in stored order, with the scaling of the header applied. Colours, and the fourth
        axis of NIfTI, are channels. Values that are not finite are kept as they are.

    Raises:
        DataError: missing, damaged or unsupported file, or an invalid grid. OutOfMemory: it does not fit.
        StorageError: the disk failed.
    """
    path = Path(path)
    reader = _reader_for(path)
    with _resources(path):
        stored = reader.image(path)
        return Volume(stored.to_float32(path), stored.geometry)


def read_labels(
    path: Path | str,
    colours: Mapping[str, int] = {},
    *,
    like: Path | str | None = None,
    names: Mapping[str, int] = {},
    ignore: int | None = None,
    things: Mapping[str, int] = {},
    divisor: int = 0,
) -> Volume:
    """Read a label map.

    Args:
        colours: `LabelSet.colours`, for pictures that show labels by colour.
        like: the image it belongs to: DICOM-SEG and RTSTRUCT are put on its grid, and of a COCO file of many images
            the one of its name is read.
        names: label name -> value, for these and for outlines; without, the numbers in the file are the values.
        ignore: of outlines, the value of what nobody annotated.
        things, divisor: of outlines, the labels whose objects have numbers, see `outline_maps.Meaning`.

    Returns:
        Volume of int32, (Z, Y, X) in stored order. Files of floating-point numbers within 1e-3 of integers are rounded.

    Raises:
        DataError: as `read_image`; several channels; values that are not integers; a lossy format (JPEG).
    """
    path = Path(path)
    if outline_files.is_outlines(path):
        with _resources(path):
            grid = None if like is None else read_geometry(like)
            meaning = Meaning(names, ignore, things, divisor)
            return outline_files.read(path, meaning, None if like is None else Path(like), grid)
    reader = _reader_for(path)
    if reader.family == "dicom":
        with _resources(path):
            return _read_dicom_labels(path, None if like is None else Path(like), names)
    if reader.labels is None:
        raise DataError(
            f"{path}: labels cannot be stored as {ending_of(path)}: lossy compression alters their values",
            remedy="export them as .png from the program that drew them; converting the JPEG does not restore them",
        )
    with _resources(path):
        by_colour = colours and reader.family == "natural"
        stored = raster.load_labels(path, colours) if by_colour else reader.labels(path)
        return Volume(stored.to_labels(path), stored.geometry)


def read_labels_as(labels: LabelSet, path: Path | str, like: Path | str | None) -> Volume:
    """Read a label map whose values are those of `labels`, on the grid of `like`. Raises as `read_labels`."""
    things = {name: thing.core for name, thing in labels.things.items()}
    return read_labels(
        path, labels.colours, like=like, names=labels.values, ignore=labels.ignore, things=things,
        divisor=labels.divisor if things else 0,
    )  # fmt: skip


def label_names(path: Path | str) -> dict[str, int] | None:
    """The names of the labels in a file -> their numbers in it; None where files of its format hold values alone.

    Raises:
        DataError: it cannot be read. UsageError: it is DICOM, and pydicom is not installed.
    """
    path = Path(path)
    with _resources(path):
        if outline_files.is_outlines(path):
            return outline_files.names_in(path)
        return dicom_labels.names_in(path) if is_dicom(path) else None


def marks_unknown(path: Path | str) -> bool:
    """Whether a file of outlines marks places that nobody annotated. Raises DataError: it cannot be read."""
    with _resources(Path(path)):
        return outline_files.is_outlines(path) and outline_files.marks_unknown(Path(path))


def names_labels(path: Path | str) -> bool:
    """Whether files of a label map's format name its labels: DICOM, and outlines."""
    return outline_files.is_outlines(path) or is_dicom(path)


def read_geometry(path: Path | str) -> Geometry:
    """Read the grid of an image or label map from its header, without its voxels.

    Raises:
        DataError: as `read_image`, as far as the header shows it.
    """
    path = Path(path)
    reader = _reader_for(path)
    with _resources(path):
        return reader.geometry(path)


def write_labels(
    path: Path | str, indices_or_values: np.ndarray, like: Path | str, segments: Sequence[Segment] = ()
) -> None:
    """Write a label map on the grid of an image, so that it overlays that image in any program.

    From NIfTI to NIfTI the fields of the grid are copied bit for bit (and no others: descriptions may name a patient).
    The file is written next to its destination, flushed, read back, compared and only then renamed.

    Args:
        path: destination; its extension decides the format.
        indices_or_values: (Z, Y, X), integer or bool, in the stored order of `like`; its dtype is kept where the
            format can.
        like: the image.
        segments: names and colours of the labels, for formats that have a place for them.

    Raises:
        UsageError: the format cannot hold these labels. DataError: `like` cannot be read.
        StorageError: writing failed, or the file reads back differently; `path` is then unchanged.
    """
    path, like = Path(path), Path(like)
    labels = indices_or_values.astype(np.uint8) if indices_or_values.dtype == bool else indices_or_values
    if labels.dtype.kind not in "ui":
        raise ValueError(f"labels must be integers, found {labels.dtype}")
    ending = ending_of(path)
    writer = READERS[ending].write if ending else None
    if ending is None or writer is None:
        known = ", ".join(name for name, reader in READERS.items() if reader.write)
        raise UsageError(f"{path.name}: labels cannot be written in this format", remedy=f"choose one of {known}")
    geometry = read_geometry(like)
    if labels.shape != geometry.shape:
        raise ValueError(f"labels have the shape {labels.shape}, {like} has {geometry.shape}")
    same_family = READERS[ending].family == _reader_for(like).family
    staging = path.with_name(f".{stem_of(path)}.{os.getpid()}.part{ending}")
    try:
        with _storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            named = (segments,) if segments and READERS[ending].names else ()
            writer(staging, labels, geometry, like if same_family else None, *named)
            with open(staging, "rb+") as file:
                os.fsync(file.fileno())
        _verify(staging, path, labels, None if READERS[ending].family == "natural" else geometry)
        with _storage(path):
            staging.replace(path)
    finally:
        with suppress(OSError):  # such as: the folder is a file, which was reported above
            staging.unlink(missing_ok=True)


def _verify(staging: Path, path: Path, labels: np.ndarray, geometry: Geometry | None) -> None:
    try:
        volume = read_labels(staging)
        same = np.array_equal(volume.array, labels)
        distance = corner_distance_voxels(volume.geometry, geometry) if geometry else 0.0
        found = f"its voxels are {'equal' if same else 'different'}, its corners moved by {distance:.3g} voxels"
    except DataError as error:
        same, distance, found = False, 0.0, error.what
    if not same or not distance < 1e-3:
        raise StorageError(
            f"{path} was written but reads back differently ({found})",
            remedy="check whether the disk is full or failing, then run the command again",
        )


def _read_dicom_labels(path: Path, like: Path | None, names: Mapping[str, int]) -> Volume:
    """DICOM-SEG or RTSTRUCT on the grid of an image in any format; a folder may hold one such file."""
    if path.is_dir():
        found = dicom_files.dicom_files(path)["labels"]
        if len(found) != 1:
            raise DataError(
                f"{path} is a folder with {len(found)} DICOM-SEG or RTSTRUCT files, expected one",
                remedy="name the file that holds the labels",
            )
        path = found[0]
    if like is None or is_dicom(like):
        return dicom_labels.read(path, like, names)
    return dicom_labels.read(path, None, names, on=read_geometry(like))


def _reader_for(path: Path) -> Reader:
    ending = ending_of(path)
    if ending is None and is_dicom(path):
        return DICOM
    if ending is None:
        raise DataError(
            f"{path}: its file extension is not that of a known image format",
            remedy=f"known: {', '.join(READERS)}; convert it, or rename it if it is one of these",
        )
    if not READERS[ending].any_content:
        refuse_other_content(path, ending)
    return READERS[ending]


@contextmanager
def _resources(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"{path} does not fit into memory", remedy="use a machine with more memory") from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}",
            remedy="check the disk or the network, then run the command again",
        ) from error


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            remedy="free some disk space, or choose another folder with -w or -o",
        ) from error
