"""Label maps as DICOM: a DICOM-SEG or an RTSTRUCT that refers to the series it belongs to.

    WRITERS     name of a format -> how it is written
    write       label map on the grid of a series -> file, read back and compared before it gets its name

Both are written for the slices as they were stored: what was resampled to be segmented (a tilted gantry, a changing
slice distance) is brought back first. Patient and study are those of the series, as DICOM requires: such a file names
the patient where the series does.
"""

import colorsys
import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats.contours import trace
from autoseg.imaging.formats.dicom_files import STRUCTURE_SET, import_highdicom, import_pydicom, open_dataset
from autoseg.imaging.formats.dicom_frames import Frame
from autoseg.imaging.formats.dicom_labels import read
from autoseg.imaging.formats.dicom_series import Series, open_series
from autoseg.imaging.formats.readers import is_dicom

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
PROGRAM = "autoseg"
ORGANS = {  # names of labels -> keyword of their SNOMED code in pydicom; every other label is "tissue"
    **{name: name.capitalize() for name in ("liver", "spleen", "pancreas", "kidney", "lung", "heart", "brain")},
    **{name: name.capitalize() for name in ("prostate", "aorta", "stomach", "bone", "esophagus", "uterus", "breast")},
    **dict.fromkeys(("tumour", "tumor", "neoplasm", "cancer"), "Neoplasm"),
    **dict.fromkeys(("lesion",), "Lesion"),
    **dict.fromkeys(("bladder", "urinary bladder"), "UrinaryBladder"),
}
ALTERED = ("Neoplasm", "Lesion")  # of the category "morphologically altered structure"
_COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
)


class Structure(NamedTuple):
    """One label as it is written."""

    number: int  # in the file, from 1
    name: str
    value: int  # in the label map
    colour: Colour


def write(
    path: Path,
    kind: str,
    labels: np.ndarray,
    like: Path,
    names: Mapping[str, int],
    colours: Mapping[int, Colour] = {},
) -> None:
    """Write a label map as DICOM, verified: it is read back, compared with the labels, and only then named.

    Args:
        path: the file, `.dcm`.
        kind: a key of `WRITERS`.
        labels: (Z, Y, X) integer, values in the stored order of the series' grid.
        like: the DICOM series that was segmented.
        names: label name -> value; every value of `labels` but 0 has a name.
        colours: value -> red, green, blue, 0 to 255; others get distinct hues.

    Raises:
        UsageError: pydicom or highdicom is not installed, the image is not DICOM, or has no position in space.
        DataError: the series cannot be read. StorageError: writing failed, or the file reads back differently.
    """
    if not is_dicom(like):
        what = f"{like} is not DICOM, and a {kind} file has to refer to a DICOM series"
        raise UsageError(what, remedy="omit --format, or give the folders of the series as images")
    series = open_series(like)
    if series.stack is None:
        raise UsageError(
            f"{like} has no position in space that a {kind} file could refer to", remedy="write .nii.gz or .png"
        )
    if labels.shape != series.geometry.shape:
        raise ValueError(f"labels have the shape {labels.shape}, {like} has {series.geometry.shape}")
    slices = series.labels_to_slices(labels)
    staging = path.with_name(f".{path.stem}.{os.getpid()}.part.dcm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[kind](staging, slices, series, _structures(names, colours))
        with open(staging, "rb+") as file:
            os.fsync(file.fileno())
        _verify(staging, path, slices, series, names)
        staging.replace(path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise StorageError(what, remedy="free some disk space, or choose another folder with -o") from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def _structures(names: Mapping[str, int], colours: Mapping[int, Colour]) -> list[Structure]:
    """The labels in order of their values, numbered from 1, each with a colour."""
    ordered = sorted(names.items(), key=lambda item: item[1])
    return [
        Structure(number, name, value, colours.get(value) or _colour(number))
        for number, (name, value) in enumerate(ordered, start=1)
    ]


def _colour(index: int) -> Colour:
    """A colour for the label with this index, 1, 2, ...: distinct hues."""
    hue = (0.05 + (index - 1) * 0.6180339887) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _verify(staging: Path, path: Path, slices: np.ndarray, series: Series, names: Mapping[str, int]) -> None:
    """Compare what was written with what it should hold, voxel by voxel. Raises StorageError."""
    wanted = series.labels_from_slices(slices)
    try:
        found = read(staging, series.path, names).array
        differing = int(np.count_nonzero(found != wanted))
    except DataError as error:
        raise StorageError(
            f"{path} was written but cannot be read back ({error.what})", remedy="check the free disk space"
        ) from error
    if differing:
        mirrored = [axis for axis in range(3) if np.array_equal(np.flip(found, axis), wanted)]
        how = f"mirrored along {'zyx'[mirrored[0]]}" if mirrored else f"{differing} voxels differ"
        raise StorageError(
            f"{path} was written but reads back differently ({how})",
            remedy="write NIfTI instead (without --format), and report this",
        )


def _datasets(series: Series) -> tuple[list[Any], np.ndarray]:
    """The files of a series with pixels' headers, in order of its slices; and where slice i is among their frames."""
    files = list(dict.fromkeys(frame.file for frame in series.frames))
    data = [open_dataset(file, pixels=True) for file in files]
    if len(files) == 1 and series.frames[0].frames > 1:
        return data, np.argsort([frame.index for frame in series.frames])
    return data, np.arange(len(series.frames))


# ---- DICOM-SEG ------------------------------------------------------------------------------------------------------


def _write_seg(path: Path, slices: np.ndarray, series: Series, structures: Sequence[Structure]) -> None:
    highdicom = import_highdicom()
    from highdicom.seg import Segmentation, SegmentationTypeValues

    data, order = _datasets(series)
    numbers = np.zeros(max(one.value for one in structures) + 1, dtype=np.uint8 if len(structures) < 256 else np.uint16)
    for one in structures:
        numbers[one.value] = one.number
    written = Segmentation(
        source_images=data,
        pixel_array=numbers[slices][order],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(one) for one in structures],
        series_instance_uid=highdicom.UID(),
        series_number=_series_number(data[0]),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=PROGRAM,
        manufacturer_model_name=PROGRAM,
        software_versions=_version(),
        device_serial_number="0",
        series_description="autoseg segmentation",
    )
    for one, item in zip(structures, written.SegmentSequence, strict=True):
        item.RecommendedDisplayCIELabValue = _cielab(one.colour)
    written.save_as(path)


def _described(structure: Structure) -> Any:
    """The description of a segment; its code is that of a known organ, otherwise "tissue"."""
    highdicom = import_highdicom()
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    keyword = ORGANS.get(structure.name.casefold().replace("_", " "), "Tissue")
    code = getattr(codes.SCT, keyword, codes.SCT.Tissue)
    if keyword in ALTERED:
        category = codes.SCT.MorphologicallyAlteredStructure
    else:
        category = codes.SCT.Tissue if code == codes.SCT.Tissue else codes.SCT.AnatomicalStructure
    return SegmentDescription(
        segment_number=structure.number,
        segment_label=structure.name[:64],
        segmented_property_category=category,
        segmented_property_type=code,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=PROGRAM, version=_version(), family=codes.cid7162.ArtificialIntelligence
        ),
    )


def _cielab(colour: Colour) -> list[int]:
    """sRGB as DICOM's CIELab: three 16-bit numbers. Source: PS3.3 C.10.7.1.1, IEC 61966-2-1, white point D65."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (matrix @ np.array(linear)) / np.array([0.9505, 1.0, 1.089])
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    lightness, a, b = 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
    parts = (lightness * 65535 / 100, (a + 128) * 65535 / 255, (b + 128) * 65535 / 255)
    return [min(max(round(part), 0), 65535) for part in parts]


# ---- RTSTRUCT -------------------------------------------------------------------------------------------------------


def _write_rtstruct(path: Path, slices: np.ndarray, series: Series, structures: Sequence[Structure]) -> None:
    pydicom = import_pydicom()
    headers = {file: open_dataset(file) for file in dict.fromkeys(frame.file for frame in series.frames)}
    first = headers[series.frames[0].file]
    data = _structure_set(first)
    reference = pydicom.Dataset()
    reference.FrameOfReferenceUID = first.get("FrameOfReferenceUID") or pydicom.uid.generate_uid()
    reference.RTReferencedStudySequence = [_referenced_study(headers, first)]
    data.ReferencedFrameOfReferenceSequence = [reference]
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    for number, name, value, colour in structures:
        roi = pydicom.Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name[:64], "AUTOMATIC"
        roi.ReferencedFrameOfReferenceUID = reference.FrameOfReferenceUID
        data.StructureSetROISequence.append(roi)
        contours = pydicom.Dataset()
        contours.ReferencedROINumber, contours.ROIDisplayColor = number, list(colour)
        contours.ContourSequence = [
            contour
            for k in np.flatnonzero((slices == value).any(axis=(1, 2))).tolist()
            for contour in _contours(slices[k] == value, k, series, headers)
        ]
        data.ROIContourSequence.append(contours)
        observation = pydicom.Dataset()
        observation.ObservationNumber, observation.ReferencedROINumber = number, number
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        data.RTROIObservationsSequence.append(observation)
    data.save_as(path, enforce_file_format=True)


def _structure_set(first: Any) -> Any:
    """An RTSTRUCT without structures, for the patient and study of a series."""
    pydicom = import_pydicom()
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = STRUCTURE_SET
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    for keyword in _COPIED:
        setattr(data, keyword, first.get(keyword) or "")
    if charset := first.get("SpecificCharacterSet"):
        data.SpecificCharacterSet = charset
    now = datetime.datetime.now()
    data.InstanceCreationDate = data.StructureSetDate = data.SeriesDate = now.strftime("%Y%m%d")
    data.InstanceCreationTime = data.StructureSetTime = data.SeriesTime = now.strftime("%H%M%S")
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", pydicom.uid.generate_uid()
    data.SeriesNumber, data.InstanceNumber = _series_number(first), 1
    data.SeriesDescription, data.StructureSetLabel = "autoseg segmentation", PROGRAM
    data.Manufacturer = data.ManufacturerModelName = PROGRAM
    data.SoftwareVersions, data.OperatorsName = _version(), ""
    data.ApprovalStatus = "UNAPPROVED"
    return data


def _referenced_study(headers: Mapping[Path, Any], first: Any) -> Any:
    pydicom = import_pydicom()
    images = []
    for header in headers.values():
        image = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        images.append(image)
    series = pydicom.Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = first.SeriesInstanceUID, images
    study = pydicom.Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # detached study management, retired, still expected
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = first.StudyInstanceUID, [series]
    return study


def _contours(mask: np.ndarray, k: int, series: Series, headers: Mapping[Path, Any]) -> list[Any]:
    """The contours of a mask in one slice, in mm."""
    pydicom = import_pydicom()
    assert series.stack is not None
    frame: Frame = series.frames[k]
    header = headers[frame.file]
    found = []
    for polygon in trace(mask):
        flat = polygon[:, ::-1] * np.array(series.stack.spacing)
        points = series.stack.positions[k] + flat @ series.stack.axes[1:]
        image = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if frame.frames > 1:
            image.ReferencedFrameNumber = frame.index + 1
        contour = pydicom.Dataset()
        contour.ContourImageSequence = [image]
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
        contour.ContourData = [f"{value + 0.0:.5f}" for value in points.ravel().tolist()]
        found.append(contour)
    return found


def _series_number(header: Any) -> int:
    """A number for a new series of the study: that of the image and a thousand."""
    return 1000 + int(header.get("SeriesNumber") or 0) % 100000


def _version() -> str:
    from autoseg import __version__

    return __version__


WRITERS: dict[str, Callable[[Path, np.ndarray, Series, Sequence[Structure]], None]] = {
    "dicom-seg": _write_seg,
    "rtstruct": _write_rtstruct,
}
