"""Which files are DICOM, and what each of them is, from its first bytes; pydicom, where it is installed.

    is_dicom        by extension, name or first bytes
    kind_of         slice, frames (a whole volume in one file), labels (DICOM-SEG, RTSTRUCT), or another object
    dicom_files     the DICOM files of a folder, by kind
    open_dataset    a header by pydicom, with or without its pixels

The first 2 kB of a file are read here; pydicom is imported by `open_dataset` alone. It is the extra `dicom`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.signatures import COPY_AGAIN

ENDINGS = (".dcm", ".dicom", ".dic", ".ima")
Kind = Literal["slice", "frames", "labels", "other"]

_CLASSES = "1.2.840.10008.5.1.4.1.1."
SEGMENTATIONS = (f"{_CLASSES}66.4", f"{_CLASSES}66.7")  # binary or fractional; label map
STRUCTURE_SET = f"{_CLASSES}481.3"
_FRAMES = tuple(
    _CLASSES + number
    for number in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130", "13.1.3", "13.1.4", "13.1.5", "3.1", "6.2")
)  # enhanced and legacy converted CT, MR, PET; breast tomosynthesis; ultrasound of several frames and volumes
_OTHER = (
    *("1.2.840.10008.1.3.10", f"{_CLASSES}88.", f"{_CLASSES}11.", f"{_CLASSES}104.", f"{_CLASSES}9."),
    *(f"{_CLASSES}66", f"{_CLASSES}66.", f"{_CLASSES}481.", f"{_CLASSES}67", f"{_CLASSES}68."),
)  # directory, reports, presentation states, PDF, waveforms, raw data and registrations, radiotherapy, surfaces
_INSTALL = "pip install 'autoseg-med[dicom]', or pip install pydicom highdicom"


def is_dicom(path: Path) -> bool:
    """By its extension, its name, or the magic word after the first 128 bytes of a file without a clear extension."""
    name = path.name.lower()
    if name == "dicomdir" or name.endswith(ENDINGS):
        return True
    telling = re.search(r"\.[a-z][a-z0-9]{0,7}$", name)
    return not telling and _beginning(path, 132)[128:] == b"DICM"


def kind_of(path: Path) -> Kind:
    """What a DICOM file is, by the class that its first bytes state; without them it counts as a slice."""
    if path.name.lower() == "dicomdir":
        return "other"
    uid = class_of(path)
    if uid in SEGMENTATIONS or uid == STRUCTURE_SET:
        return "labels"
    if uid in _FRAMES:
        return "frames"
    begins = tuple(one for one in _OTHER if one.endswith("."))
    return "other" if uid in _OTHER or uid.startswith(begins) else "slice"


def class_of(path: Path) -> str:
    """The SOP class in a file's meta header; empty where there is none."""
    head = _beginning(path, 2048)
    if head[128:132] != b"DICM":
        return ""
    found = re.search(rb"\x02\x00\x02\x00UI(..)", head[132:], re.DOTALL)
    if not found:
        return ""
    start, length = 132 + found.end(), int.from_bytes(found[1], "little")
    return head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")


def dicom_files(folder: Path) -> dict[Kind, list[Path]]:
    """The DICOM files directly in a folder, sorted by name, by their kind; hidden files are skipped.

    Raises:
        DataError: the folder cannot be listed.
    """
    found: dict[Kind, list[Path]] = {"slice": [], "frames": [], "labels": [], "other": []}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", remedy="check its permissions") from error
    for path in entries:
        if not path.name.startswith(".") and path.is_file() and is_dicom(path):
            found[kind_of(path)].append(path)
    return found


def open_dataset(path: Path, tags: Sequence[str] | None = None, *, pixels: bool = False) -> Any:
    """Read a file by pydicom.

    Args:
        tags: keywords of the elements to read; None: all.
        pixels: with the voxels.

    Returns:
        pydicom.Dataset.

    Raises:
        UsageError: pydicom is not installed. DataError: the file is missing, damaged or not DICOM.
    """
    pydicom = import_pydicom()
    try:
        found = pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=tags and [*tags], force=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", remedy="check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy=COPY_AGAIN) from error
    except Exception as error:  # whatever a damaged file makes pydicom raise
        raise DataError(f"{path} is damaged or not a DICOM file ({error})", remedy=COPY_AGAIN) from error
    meta = getattr(found, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:  # written before such headers were required
        found.file_meta = meta if meta is not None else pydicom.dataset.FileMetaDataset()
        found.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if found.original_encoding[0] else pydicom.uid.ExplicitVRLittleEndian
        )
    if "SOPClassUID" not in found:
        raise DataError(f"{path} is damaged or not a DICOM file: it does not state what it is", remedy=COPY_AGAIN)
    return found


def import_pydicom() -> Any:
    """pydicom. Raises UsageError where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise UsageError("DICOM files need pydicom, which is not installed", remedy=_INSTALL) from None
    return pydicom


def import_highdicom() -> Any:
    """highdicom. Raises UsageError where it is not installed."""
    try:
        import highdicom
    except ImportError:
        raise UsageError("writing DICOM needs highdicom, which is not installed", remedy=_INSTALL) from None
    return highdicom


def _beginning(path: Path, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""
