"""Small DICOM series, made of arrays: CT slices, or one enhanced file; pydicom is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.imaging.geometry import Geometry

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ROOT = "1.2.826.0.1.3680043.10.1234"


def uid(*parts: int) -> str:
    return ".".join([ROOT, *map(str, parts)])


def slices(
    folder: Path,
    array: np.ndarray,
    geometry: Geometry,
    *,
    positions: np.ndarray | None = None,
    patient: str = "P1",
    series: int = 1,
    change: Callable[[Any, int], None] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write one file per slice of an integer array (Z, Y, X), named in a shuffled order.

    Args:
        positions: (n, 3) mm, of each slice's first pixel; None: as the geometry has it.
        change: called with each dataset and its index before it is written.
        names: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(array)).permutation(len(array))
    if positions is None:
        steps = np.arange(len(array))[:, None] * geometry.spacing[0] * np.array(geometry.direction[0])
        positions = np.array(geometry.origin) + steps
    for i, plane in enumerate(array):
        data = header(CT, patient, series)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(series, 7, i + 1)
        data.InstanceNumber = i + 1
        data.ImagePositionPatient = [f"{v:.8f}"[:16] for v in positions[i]]
        data.ImageOrientationPatient = [f"{v:.12f}"[:16] for v in (*geometry.direction[2], *geometry.direction[1])]
        data.PixelSpacing = [geometry.spacing[1], geometry.spacing[2]]
        data.SliceThickness = geometry.spacing[0]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        voxels(data, plane)
        if change:
            change(data, i)
        name = names[i] if names else f"IM{order[i]:04d}.dcm"
        data.save_as(folder / name, enforce_file_format=True)
    return folder


def enhanced(path: Path, array: np.ndarray, geometry: Geometry, order: Sequence[int] | None = None) -> Path:
    """Write one enhanced CT file; `order`: in which order the slices are stored as frames."""
    import pydicom

    path.parent.mkdir(parents=True, exist_ok=True)
    order = range(len(array)) if order is None else order
    data = header(ENHANCED_CT, "P1", 1)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(1, 8, 1)
    data.InstanceNumber, data.NumberOfFrames = 1, len(array)
    shared, orientation, measures, values = (pydicom.Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = [*geometry.direction[2], *geometry.direction[1]]
    measures.PixelSpacing = [geometry.spacing[1], geometry.spacing[2]]
    measures.SliceThickness = geometry.spacing[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], []
    for i in order:
        own, position, values, content = (pydicom.Dataset() for _ in range(4))
        step = i * geometry.spacing[0] * np.array(geometry.direction[0])
        position.ImagePositionPatient = [float(v) for v in np.array(geometry.origin) + step]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -10 * i, "US"
        content.FrameAcquisitionNumber = 1
        own.PlanePositionSequence, own.PixelValueTransformationSequence = [position], [values]
        own.FrameContentSequence = [content]
        data.PerFrameFunctionalGroupsSequence.append(own)
    voxels(data, array[list(order)])
    data.save_as(path, enforce_file_format=True)
    return path


def header(sop_class: str, patient: str, series: int) -> Any:
    """What every image states: patient, study, series."""
    import pydicom

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = patient, "Secret^Name", "", ""
    data.StudyInstanceUID, data.SeriesInstanceUID = uid(0, 1), uid(series)
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = uid(0, 2), ""
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "120000", "1", ""
    data.ReferringPhysicianName, data.Modality, data.SeriesNumber = "", "CT", series
    data.SeriesDescription, data.ImageType = f"series {series}", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Manufacturer, data.Laterality = "phantom", ""
    return data


def voxels(data: Any, plane: np.ndarray, bits: int | None = None) -> None:
    """Set the pixels of a dataset, little endian."""
    data.Rows, data.Columns = plane.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * plane.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(plane.dtype.kind == "i")
    content = np.ascontiguousarray(plane).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)


def phantom(shape: tuple[int, int, int] = (7, 12, 10)) -> np.ndarray:
    """An image (Z, Y, X) int16 without any symmetry: a ramp along each axis, with two blocks, one of them hollow."""
    z, y, x = np.indices(shape)
    image = (z * 3 + y * 2 + x - 100).astype(np.int16)
    image[1:5, 1:8, 1:7] = 300
    image[2:4, 3:6, 3:5] = -20  # a hole
    image[4:6, 8:11, 6:9] = 600
    image[5, 10, 2] = 600  # a single voxel
    return image
