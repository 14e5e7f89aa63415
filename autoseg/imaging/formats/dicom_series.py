"""A DICOM series, a folder of slices or one file of many frames, as a volume.

    open_series    folder or file -> Series: its frames in order, their grid, what is odd about them
    read_geometry  the grid alone, from the headers
    load           voxels on that grid
    patient_of     a hash of the PatientID, never the id itself

Slices are sorted by position along the normal of their planes, never by name or number. What is not a volume is refused
with the numbers that show it: several series in a folder, slices of several sizes or directions, missing slices,
several images at one position. Localizers and objects that are not images are left out, with a remark.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.dicom_files import dicom_files, open_dataset
from autoseg.imaging.formats.dicom_frames import TELLING, Frame, frames_of, values_of
from autoseg.imaging.formats.dicom_grid import REMOVE_LOOSE, SAME_PLACE_MM, Grid, Stack, grid_of, stack_of
from autoseg.imaging.formats.signatures import StoredVoxels
from autoseg.imaging.geometry import Geometry, Remark
from autoseg.messages import counted, some

PARALLEL = 1e-3  # how far the axes of two slices of a volume may differ, as components of unit vectors
ONE_EACH = "give each series a folder of its own"


@dataclass(frozen=True)
class Series:
    """The slices of one volume, sorted along the normal of their planes, and their grid."""

    path: Path
    frames: tuple[Frame, ...]
    stack: Stack | None  # None: one image without a position in space, such as a radiograph
    grid: Grid | None
    geometry: Geometry

    def labels_to_slices(self, labels: np.ndarray) -> np.ndarray:
        """Labels (Z, Y, X) on the grid of the volume -> (slices, rows, columns) on the slices as they were stored."""
        return labels if self.grid is None else self.grid.labels_to_slices(labels)

    def labels_from_slices(self, labels: np.ndarray) -> np.ndarray:
        """The reverse: labels on the slices (slices, rows, columns) -> (Z, Y, X) on the grid of the volume."""
        return labels if self.grid is None else self.grid.labels_from_slices(labels)


def open_series(path: Path) -> Series:
    """Read the headers of a series and find its grid.

    Args:
        path: a folder of slices, or a file: one slice, or a volume of many frames.

    Raises:
        UsageError: pydicom is not installed. DataError: what the files hold is not one volume.
    """
    remarks: list[Remark] = []
    frames = [frame for file in _image_files(path, remarks) for frame in frames_of(file)]
    frames = _without_localizers(frames, path, remarks)
    _require_one_series(frames, path)
    first = frames[0]
    if len(frames) == 1 and (first.position is None or first.axes is None):
        geometry = _picture(first, remarks)
        return Series(path, (first,), None, None, geometry)
    _require_one_kind(frames, path)
    frames = _each_once(frames, path, remarks)
    positions = [frame.position for frame in frames if frame.position is not None]
    axes = np.mean([frame.axes for frame in frames if frame.axes is not None], axis=0)
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    assert first.spacing is not None
    stack, order = stack_of(
        positions, axes, first.extent, first.spacing, first.thickness or 1.0, [frame.name for frame in frames]
    )
    frames = [frames[i] for i in order]
    found = [frame.number for frame in frames]
    numbers = [number for number in found if number is not None]
    same_file = first.frames > 1
    grid = grid_of(stack, str(path), None if len(numbers) < len(found) or same_file else numbers)
    geometry = replace(grid.geometry, remarks=(*remarks, *grid.geometry.remarks))
    return Series(path, tuple(frames), stack, grid, geometry)


def read_geometry(path: Path) -> Geometry:
    """Read the grid of a series from its headers. Raises DataError, UsageError."""
    return open_series(path).geometry


def load(path: Path) -> StoredVoxels:
    """Read a series: voxels (1, Z, Y, X) float32 in the unit of the modality, each slice with its own scaling.

    Raises:
        UsageError: pydicom is not installed. DataError: as `open_series`; pixels that cannot be decoded.
    """
    series = open_series(path)
    slices = np.empty((len(series.frames), *series.frames[0].extent), dtype=np.float32)
    opened: dict[Path, np.ndarray] = {}
    for plane, frame in zip(slices, series.frames, strict=True):
        plane[...] = values_of(frame, opened)
    volume = slices if series.grid is None else series.grid.from_slices(slices)
    return StoredVoxels(volume[None], series.geometry)


def patient_of(path: Path) -> str:
    """A hash of the PatientID of a series; empty where it has none. The id itself is never shown or stored.

    The same id gives the same hash, so that a patient's cases stay together; the hash is not a protection of ids that
    can be guessed.
    """
    found = dicom_files(path) if path.is_dir() else {"slice": [path], "frames": []}
    file = next(iter((*found["slice"], *found["frames"])), None)
    header = None if file is None else open_dataset(file, ("SOPClassUID", "PatientID"))
    text = str(header.get("PatientID") or "").strip() if header is not None else ""
    return f"dicom-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}" if text else ""


def _image_files(path: Path, remarks: list[Remark]) -> list[Path]:
    """The files of a series. Raises DataError where there is none."""
    if not path.is_dir():
        return [path]
    found = dicom_files(path)
    images = [*found["slice"], *found["frames"]]
    if not images:
        kind = "only objects without an image" if found["other"] or found["labels"] else "no DICOM image"
        raise DataError(f"{path} contains {kind}", remedy="give the folder that holds the slices of the series")
    if beside := [*found["labels"], *found["other"]]:
        what = (
            f"{counted(len(beside), 'DICOM object')} in the folder that is not a slice: {some(p.name for p in beside)}"
        )
        remedy = "nothing; labels belong into the folder of labels"
        remarks.append(Remark("beside a series", f"{what}: not used", remedy))
    return images


def _without_localizers(frames: list[Frame], path: Path, remarks: list[Remark]) -> list[Frame]:
    localizers = [frame for frame in frames if frame.localizer]
    if not localizers or len(localizers) == len(frames):
        return frames
    what = f"{counted(len(localizers), 'localizer image')} in the folder: {some(frame.name for frame in localizers)}"
    remarks.append(Remark("localizer", f"{what}: left out", "nothing, or move them away"))
    return [frame for frame in frames if not frame.localizer]


def _require_one_series(frames: Sequence[Frame], path: Path) -> None:
    """Refuse a folder of several series. Raises DataError."""
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.series, []).append(frame)
    if len(groups) > 1:
        largest = sorted(groups.values(), key=len, reverse=True)
        shown = some(
            f"{group[0].description or group[0].modality or 'unnamed'} ({counted(len(group), 'image')}, "
            f"such as {group[0].file.name})"
            for group in largest
        )
        raise DataError(f"{path} contains {len(groups)} series: {shown}", remedy=ONE_EACH)
    if frames[0].frames > 1 and len({frame.file for frame in frames}) > 1:
        files = sorted({frame.file.name for frame in frames})
        raise DataError(f"{path} contains {len(files)} volumes of many frames: {some(files)}", remedy=ONE_EACH)


def _require_one_kind(frames: Sequence[Frame], path: Path) -> None:
    """Refuse slices without a position, and those that differ in size, voxel size or direction. Raises DataError."""
    for frame in frames:
        lacks = [
            name
            for name, value in (
                ("position (ImagePositionPatient)", frame.position),
                ("orientation (ImageOrientationPatient)", frame.axes),
                ("pixel size (PixelSpacing)", frame.spacing),
            )
            if value is None
        ]
        if lacks:
            without = sum(other.position is None or other.axes is None or other.spacing is None for other in frames)
            what = f"{frame.file} has no {' and no '.join(lacks)}, like {without} of {len(frames)} images of {path}"
            raise DataError(what, remedy=f"export the series again as CT, MR or PET images; or {REMOVE_LOOSE}")
    for name, differs in (
        ("sizes", lambda a, b: a.extent != b.extent),
        ("pixel sizes", lambda a, b: not np.allclose(a.spacing, b.spacing, rtol=1e-3)),
        ("directions", lambda a, b: np.abs(a.axes - b.axes).max() > PARALLEL),
    ):
        groups: list[list[Frame]] = []
        for frame in frames:
            group = next((group for group in groups if not differs(frame, group[0])), None)
            if group is None:
                groups.append([frame])
            else:
                group.append(frame)
        if len(groups) > 1:
            groups.sort(key=len, reverse=True)
            shown = some(f"{len(group)} of {_shown(name, group[0])} ({group[0].name})" for group in groups)
            what = f"{path} contains slices of {len(groups)} {name}: {shown}"
            raise DataError(what, remedy=f"{ONE_EACH}, or {REMOVE_LOOSE}")


def _shown(name: str, frame: Frame) -> str:
    """One kind of slices in a message."""
    if name == "sizes":
        return f"{frame.extent[0]} x {frame.extent[1]} pixels"
    if name == "pixel sizes":
        assert frame.spacing is not None
        return f"{frame.spacing[0]:.4g} x {frame.spacing[1]:.4g} mm"
    assert frame.axes is not None
    normal = np.cross(frame.axes[1], frame.axes[0])
    return f"normal ({', '.join(f'{value + 0.0:.3g}' for value in normal)})"


def _each_once(frames: list[Frame], path: Path, remarks: list[Remark]) -> list[Frame]:
    """Leave out copies of a slice. Raises DataError where different images are at one position."""
    axes = frames[0].axes
    assert axes is not None
    normal = np.cross(axes[1], axes[0])
    positions = np.array([frame.position for frame in frames])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and heights[i] - heights[groups[-1][0]] <= SAME_PLACE_MM:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    several = [group for group in groups if len(group) > 1]
    if not several:
        return frames
    opened: dict[Path, np.ndarray] = {}
    copies: set[int] = set()
    for group in several:
        first = values_of(frames[group[0]], opened)
        moved = [i for i in group[1:] if np.abs(positions[i] - positions[group[0]]).max() > SAME_PLACE_MM]
        if moved or any(not np.array_equal(first, values_of(frames[i], opened)) for i in group[1:]):
            raise _several_images(frames, several, len(groups), path)
        copies |= set(group[1:])
    names = some(frames[i].name for i in sorted(copies))
    what = f"{counted(len(copies), 'slice')} twice in the folder, with equal pixels ({names}): used once"
    remarks.append(Remark("duplicate slices", what, "nothing, or remove the copies"))
    return [frame for i, frame in enumerate(frames) if i not in copies]


def _several_images(frames: Sequence[Frame], several: Sequence[Sequence[int]], places: int, path: Path) -> DataError:
    """The error about different images at one position, with what distinguishes them."""
    group = several[0]
    most = max(len(one) for one in several)
    differing = []
    for keyword in (*TELLING, "StackID"):
        values = {frames[i].telling.get(keyword, "") for i in group}
        if len(values) > 1:
            differing.append(f"{keyword} {some(sorted(values))}")
    because = f", which differ in {differing[0]}" if differing else ""
    if len(several) == places:
        what = f"{path} contains {most} different images at each of {places} positions{because}"
        remedy = "time points, echoes or b-values: give each a folder of its own"
        return DataError(what, remedy=remedy)
    names = some(frames[i].name for i in group)
    what = f"different images at one position ({len(several)} of {places} positions, such as {names}){because}"
    return DataError(f"{path} contains {what}", remedy=f"{ONE_EACH}, or remove those that do not belong to it")


def _picture(frame: Frame, remarks: Sequence[Remark]) -> Geometry:
    """The grid of one image without a position: flat, with the size of its pixels where that is stated."""
    rows, columns = frame.spacing or (1.0, 1.0)
    return Geometry(
        shape=(1, *frame.extent), spacing=(1.0, rows, columns), flat=True, placed=False,
        sized=frame.spacing is not None, remarks=tuple(remarks),
    )  # fmt: skip
