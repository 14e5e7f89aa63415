"""The frames of DICOM files: where each one lies, and its pixels as modality values.

    Frame       one plane: a file of a series, or a frame of a file that holds a whole volume
    frames_of   a file -> its frames, from the header alone
    values_of   a frame -> (rows, columns) float32, with its own slope and intercept

Enhanced (multi-frame) files state place, size and scaling per frame or for all together; a classic file is one frame.
Positions are world (x, y, z) in mm (LPS), as DICOM has them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import AutosegError, DataError, OutOfMemory
from autoseg.imaging.formats.dicom_files import import_pydicom, open_dataset

_HEADER = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "StudyInstanceUID", "Modality"),
    *("InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsStored"),
    *("PhotometricInterpretation", "PixelRepresentation", "BitsAllocated", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "FrameOfReferenceUID", "EchoTime", "TemporalPositionIdentifier"),
    *("DiffusionBValue", "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "RepetitionTime", "InversionTime"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
TELLING = (  # what may differ between images at one position
    *("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "InversionTime", "RepetitionTime"),
    *("AcquisitionNumber", "AcquisitionTime"),
)
PHYSICAL = ("CT", "PT", "NM")  # values have a unit: they are not inverted for display
_DECODERS = (
    "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress the series: gdcmconv --raw IN OUT, "
    "dcmdjpeg IN OUT"
)


@dataclass(frozen=True)
class Frame:
    """One plane of an image."""

    file: Path
    index: int  # among the frames of its file
    frames: int  # of its file
    extent: tuple[int, int]  # rows, columns
    position: np.ndarray | None  # (3,) world (x, y, z) of its first pixel, mm
    axes: np.ndarray | None  # (2, 3) unit vectors: along a column (rows grow), along a row
    spacing: tuple[float, float] | None  # mm between rows and between columns
    thickness: float  # mm; 0: not stated
    slope: float
    intercept: float
    number: int | None  # InstanceNumber, or that of the frame
    series: str
    reference: str  # UID of the frame of reference; empty: not stated
    instance: str  # SOPInstanceUID of its file
    description: str
    modality: str
    localizer: bool
    inverted: bool  # MONOCHROME1 without a unit: low values are bright
    telling: dict[str, str] = field(default_factory=dict)  # keyword -> value, of what may differ at one position

    @property
    def name(self) -> str:
        """For messages."""
        return self.file.name if self.frames == 1 else f"frame {self.index + 1} of {self.file.name}"


def frames_of(path: Path) -> list[Frame]:
    """Read the frames of one file from its header.

    Raises:
        UsageError: pydicom is not installed. DataError: the file is damaged, in colours, or not an image.
    """
    header = open_dataset(path, _HEADER)
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        raise DataError(f"{path} is DICOM, but not an image", remedy="move it out of the folder of the series")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        colours = header.get("PhotometricInterpretation", "colours")
        raise DataError(
            f"{path} is an image in colours ({colours}), expected grey values",
            remedy="leave it out if it is a screenshot or a report; otherwise export it as .png",
        )
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    count = int(header.get("NumberOfFrames") or 1)
    try:
        if per_frame:
            shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
            return [_enhanced(path, header, i, _Groups(shared, own)) for i, own in enumerate(per_frame)]
        if count > 1:
            raise DataError(
                f"{path} has {count} frames without a position in space each",
                remedy="autoseg reads enhanced CT, MR and PET; export this one as NIfTI or as single slices",
            )
        return [_classic(path, header)]
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: its header cannot be understood ({error})", remedy="export the series again"
        ) from error


def values_of(frame: Frame, opened: dict[Path, np.ndarray]) -> np.ndarray:
    """Read the pixels of a frame, (rows, columns) float32 in the unit of the modality (Hounsfield units for CT).

    Args:
        opened: holds the pixels of the last file with several frames, so that it is decoded once; start with {}.

    Raises:
        DataError: the pixels are missing, damaged, or compressed in a way that nothing here decodes.
    """
    stored, scaled = _decoded(frame, opened)
    if stored.shape != frame.extent:
        raise DataError(
            f"{frame.file}: its pixels have the shape {stored.shape}, its header states {frame.extent}",
            remedy="export the series again",
        )
    if scaled or (frame.slope == 1.0 and frame.intercept == 0.0):
        return stored.astype(np.float32)
    return (stored * np.float64(frame.slope) + np.float64(frame.intercept)).astype(np.float32)


def syntax_of(path: Path) -> str:
    """The transfer syntax of a file in words, for messages."""
    pydicom = import_pydicom()
    try:
        uid = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    except Exception:
        return "an unknown transfer syntax"
    return f"{uid.name} ({uid})"


def _decoded(frame: Frame, opened: dict[Path, np.ndarray]) -> tuple[np.ndarray, bool]:
    """Stored values, and whether they are scaled already: by pydicom, otherwise by SimpleITK's decoders."""
    if frame.file in opened:
        return _cleaned(opened[frame.file][frame.index], frame), False
    import_pydicom()
    from pydicom.pixels import pixel_array

    try:
        stored = pixel_array(open_dataset(frame.file, pixels=True))
    except MemoryError as error:
        raise OutOfMemory(f"{frame.file} does not fit into memory", remedy="use a machine with more memory") from error
    except AutosegError:
        raise
    except Exception as error:  # of any decoder
        if (found := _by_itk(frame)) is not None:
            return found, True
        raise _undecodable(frame, error) from error
    if frame.frames > 1:
        opened.clear()
        opened[frame.file] = stored = stored.reshape(frame.frames, *stored.shape[-2:])
        stored = stored[frame.index]
    return _cleaned(stored, frame), False


def _by_itk(frame: Frame) -> np.ndarray | None:
    """The pixels of a file of one frame through SimpleITK, which scales them; None where it cannot decode them."""
    import SimpleITK as sitk

    if frame.frames > 1 or frame.inverted:
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(frame.file))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        return None
    return array[0] if array.ndim == 3 and len(array) == 1 else array if array.ndim == 2 else None


def _undecodable(frame: Frame, error: Exception) -> DataError:
    syntax = syntax_of(frame.file)
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    compressed = any(word in syntax for word in ("JPEG", "RLE", "High-Throughput", "Deflated"))
    if not compressed or "bytes" in reason[0].lower():
        what = f"{frame.file}: its pixels are missing or damaged ({reason[0]})"
        return DataError(what, remedy="copy or export the file again")
    what = f"{frame.file}: its pixels cannot be decoded; they are stored as {syntax}"
    return DataError(what, remedy=f"install a decoder: {_DECODERS}; if that does not help, the file is damaged")


def _cleaned(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """Stored values without the bits above those in use, and inverted where low values are bright."""
    if stored.dtype.kind not in "ui":
        return stored
    bits = int(frame.telling.get("BitsStored") or 8 * stored.itemsize)
    unused = 8 * stored.itemsize - bits
    if unused > 0:  # old overlays, or a sign that was not extended
        stored = np.right_shift(np.left_shift(stored, unused), unused)
    if not frame.inverted:
        return stored
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    return np.int64(low + high) - stored.astype(np.int64)


class _Groups:
    """Functional groups of one frame of an enhanced file: its own, otherwise those that all frames share."""

    def __init__(self, shared: Any, own: Any) -> None:
        self._places = [place for place in (own, shared) if place is not None]

    def get(self, group: str, keyword: str) -> Any:
        for place in self._places:
            items = place.get(group)
            if items and items[0].get(keyword) is not None:
                return items[0].get(keyword)
        return None


def _enhanced(path: Path, header: Any, index: int, groups: _Groups) -> Frame:
    position = groups.get("PlanePositionSequence", "ImagePositionPatient")
    orientation = groups.get("PlaneOrientationSequence", "ImageOrientationPatient")
    slope = groups.get("PixelValueTransformationSequence", "RescaleSlope")
    intercept = groups.get("PixelValueTransformationSequence", "RescaleIntercept")
    telling = {
        "EchoTime": groups.get("MREchoSequence", "EffectiveEchoTime"),
        "DiffusionBValue": groups.get("MRDiffusionSequence", "DiffusionBValue"),
        "TemporalPositionIdentifier": groups.get("FrameContentSequence", "TemporalPositionIndex"),
        "StackID": groups.get("FrameContentSequence", "StackID"),
    }
    return Frame(
        **_common(path, header, telling), index=index, position=_vector(position), axes=_axes(orientation),
        spacing=_spacing(groups.get("PixelMeasuresSequence", "PixelSpacing")),
        thickness=_number(
            groups.get("PixelMeasuresSequence", "SpacingBetweenSlices")
            or groups.get("PixelMeasuresSequence", "SliceThickness"), 0.0
        ),
        slope=_number(slope, 1.0), intercept=_number(intercept, 0.0), number=index + 1,
    )  # fmt: skip


def _classic(path: Path, header: Any) -> Frame:
    telling = {keyword: header.get(keyword) for keyword in TELLING}
    number = header.get("InstanceNumber")
    return Frame(
        **_common(path, header, telling), index=0, position=_vector(header.get("ImagePositionPatient")),
        axes=_axes(header.get("ImageOrientationPatient")),
        spacing=_spacing(header.get("PixelSpacing") or header.get("ImagerPixelSpacing")),
        thickness=_number(header.get("SpacingBetweenSlices") or header.get("SliceThickness"), 0.0),
        slope=_number(header.get("RescaleSlope"), 1.0), intercept=_number(header.get("RescaleIntercept"), 0.0),
        number=None if number is None or number == "" else int(number),
    )  # fmt: skip


def _common(path: Path, header: Any, telling: dict[str, Any]) -> dict[str, Any]:
    """What a file states once for all of its frames."""
    modality = str(header.get("Modality") or "")
    telling["BitsStored"] = header.get("BitsStored")
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1" and modality not in PHYSICAL
    return {
        "file": path,
        "frames": int(header.get("NumberOfFrames") or 1),
        "extent": (int(header.Rows), int(header.Columns)),
        "series": str(header.get("SeriesInstanceUID") or ""),
        "description": str(header.get("SeriesDescription") or "").strip(),
        "modality": modality,
        "localizer": "LOCALIZER" in str(header.get("ImageType") or "").upper(),
        "reference": str(header.get("FrameOfReferenceUID") or ""),
        "instance": str(header.get("SOPInstanceUID") or ""),
        "inverted": inverted,
        "telling": {keyword: str(value) for keyword, value in telling.items() if value not in (None, "")},
    }


def _number(value: Any, otherwise: float) -> float:
    number = otherwise if value is None or value == "" else float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _vector(value: Any) -> np.ndarray | None:
    if value is None or len(value) != 3:
        return None
    found = np.array([float(one) for one in value])
    return found if np.isfinite(found).all() else None


def _axes(value: Any) -> np.ndarray | None:
    """(2, 3): the direction in which rows grow (down a column), then that in which columns grow (along a row)."""
    if value is None or len(value) != 6:
        return None
    found = np.array([float(one) for one in value]).reshape(2, 3)[::-1]
    lengths = np.linalg.norm(found, axis=1)
    if not np.isfinite(found).all() or np.abs(lengths - 1).max() > 0.01 or abs(found[0] @ found[1]) > 0.01:
        raise ValueError(f"the orientation {[float(one) for one in value]} is not two perpendicular unit vectors")
    return found / lengths[:, None]


def _spacing(value: Any) -> tuple[float, float] | None:
    if value is None or len(value) != 2:
        return None
    rows, columns = float(value[0]), float(value[1])
    return (rows, columns) if min(rows, columns) > 0 and np.isfinite([rows, columns]).all() else None
