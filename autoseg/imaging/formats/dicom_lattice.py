"""Where the frames of a DICOM-SEG lie on the grid of an image, and labels painted there one after the other.

    SegmentFrame   one frame of a DICOM-SEG: its place and its segment
    Lattice        the voxels that are painted: slices of a series, or a regular grid
    Layers         the labels so far, and where structures overlap

A frame must coincide with a plane of the image's voxels, in any order and direction of the axes; nothing is
interpolated here.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.dicom_grid import SAME_PLACE_MM, Stack, grid_of, stack_of
from autoseg.imaging.formats.dicom_series import Series
from autoseg.imaging.geometry import Geometry, Remark, Volume
from autoseg.messages import some

OFF_GRID = 0.1  # voxels: how far a frame may lie beside the grid of the image
EXPORT = "export it again for this image"


class SegmentFrame:
    """Where one frame of a DICOM-SEG lies, and the segment it shows."""

    def __init__(self, data: Any, index: int, path: Path) -> None:
        try:
            own = data.PerFrameFunctionalGroupsSequence[index]
            shared = data.SharedFunctionalGroupsSequence[0]

            def get(group: str) -> Any:
                return (own.get(group) or shared.get(group))[0]

            self.position = np.array([float(v) for v in get("PlanePositionSequence").ImagePositionPatient])
            axes = np.array([float(v) for v in get("PlaneOrientationSequence").ImageOrientationPatient])
            self.axes = axes.reshape(2, 3)[::-1]  # along a column, along a row
            measures = get("PixelMeasuresSequence")
            self.spacing = (float(measures.PixelSpacing[0]), float(measures.PixelSpacing[1]))
            self.thickness = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)
            named = own.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
            self.segment = int(named[0].ReferencedSegmentNumber) if named else 0
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            what = f"{path}: frame {index + 1} does not state where it lies, or which segment it shows ({error})"
            raise DataError(what, remedy="export it again") from error
        self.extent = (int(data.Rows), int(data.Columns))
        self.name = f"frame {index + 1}"


class Layers:
    """Labels painted one after the other; voxels that several claim go to the greatest value, and are counted."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.labels = np.zeros(shape, dtype=np.int32)
        self.names: dict[int, str] = {}
        self.shared: dict[tuple[int, int], int] = {}  # (smaller, greater) value -> voxels

    def add(self, label: tuple[int, str], place: Any, mask: np.ndarray) -> None:
        value, self.names[label[0]] = label
        region = self.labels[place]
        for other in np.unique(region[mask & (region > 0) & (region != value)]).tolist():
            pair = (min(other, value), max(other, value))
            self.shared[pair] = self.shared.get(pair, 0) + int(np.count_nonzero(mask & (region == other)))
        region[mask & (region < value)] = value

    def remarks(self) -> list[Remark]:
        if not self.shared:
            return []
        pairs = [f"{n} voxels of {self.names[a]} and {self.names[b]}" for (a, b), n in self.shared.items()]
        what = f"its structures overlap: {some(pairs)}; the label with the greater value is kept"
        return [
            Remark("overlap", what, "nothing, if the inner structure has the greater value; otherwise see --labels")
        ]


class Lattice:
    """The voxels that labels are painted on: slices of a series, or a regular grid."""

    def __init__(self, stack: Stack | None, geometry: Geometry, series: Series | None, path: Path) -> None:
        self.stack, self.geometry, self.series, self.path = stack, geometry, series, path
        self.shape = geometry.shape if stack is None else stack.shape

    @classmethod
    def of(cls, series: Series | None, on: Geometry | None, frames: list[SegmentFrame], path: Path) -> "Lattice":
        """That of the series; of the given grid; or the one that the frames span."""
        if series is not None:
            if series.grid is not None and series.grid.resampled:
                return cls(series.stack, series.geometry, series, path)
            return cls(None, series.geometry, series, path)
        if on is not None:
            return cls(None, on, None, path)
        first = frames[0]
        stack, _ = stack_of(
            _apart([frame.position for frame in frames], first.axes), first.axes, first.extent, first.spacing,
            first.thickness, [frame.name for frame in frames],
        )  # fmt: skip
        return cls(None, _spanned(stack, path), None, path)

    def place(self, frame: SegmentFrame) -> Any:
        """The index of the plane that a frame covers. Raises DataError where it is beside the grid."""
        if self.stack is not None:
            return self._slice_at(frame.position, frame)
        corner, steps = self._in_voxels(frame)
        axis = int(np.argmax(np.abs(np.cross(steps[0], steps[1]))))
        level = round(float(corner[axis]))
        opposite = corner + steps[0] * (frame.extent[0] - 1) + steps[1] * (frame.extent[1] - 1)
        low, high = np.minimum(corner, opposite), np.maximum(corner, opposite)
        index = []
        for i, (a, b, n) in enumerate(zip(low, high, self.shape, strict=True)):
            start, stop = (level, level) if i == axis else (round(float(a)), round(float(b)))
            if start < 0 or stop >= n:
                raise self._elsewhere(frame, f"covers voxels {start} to {stop} of axis {'zyx'[i]}, which has {n}")
            index.append(level if i == axis else slice(start, stop + 1))
        return tuple(index)

    def turned(self, frame: SegmentFrame, mask: np.ndarray) -> np.ndarray:
        """A frame's plane in the order of the grid's axes."""
        if self.stack is not None:
            return mask
        _, steps = self._in_voxels(frame)
        along = [int(np.argmax(np.abs(step))) for step in steps]
        flips = tuple(axis for axis, (step, way) in enumerate(zip(steps, along, strict=True)) if step[way] < 0)
        mask = np.flip(mask, flips)
        return mask if along[0] < along[1] else mask.T

    def volume(self, labels: np.ndarray, remarks: list[Remark]) -> Volume:
        if self.stack is not None:
            assert self.series is not None
            labels = self.series.labels_from_slices(labels)
        return Volume(labels, replace(self.geometry, remarks=tuple(remarks)))

    def _in_voxels(self, frame: SegmentFrame) -> tuple[np.ndarray, np.ndarray]:
        """First pixel and steps to the next row and column, in voxels (Z, Y, X) of the grid."""
        scale = np.array(self.geometry.spacing)
        direction = np.array(self.geometry.direction)
        corner = (direction @ (frame.position - np.array(self.geometry.origin))) / scale
        steps = np.array(
            [direction @ axis * size / scale for axis, size in zip(frame.axes, frame.spacing, strict=True)]
        )
        whole = np.rint(steps)
        drift = np.abs(steps - whole) * (np.array(frame.extent)[:, None] - 1)
        off = max(float(drift.max()), float(np.abs(corner - np.rint(corner)).max()))
        if off > OFF_GRID or np.abs(whole).sum() != 2 or (np.abs(whole).sum(axis=1) != 1).any():
            raise self._elsewhere(frame, f"lies {off:.3g} voxels beside it, or has pixels of another size or direction")
        return corner, whole

    def _slice_at(self, position: np.ndarray, frame: SegmentFrame) -> int:
        assert self.stack is not None
        apart = np.linalg.norm(self.stack.positions - position, axis=1)
        k = int(apart.argmin())
        same = np.abs(frame.axes - self.stack.axes[1:]).max() < 1e-3 and frame.extent == self.stack.shape[1:]
        if apart[k] > OFF_GRID * min(self.stack.spacing) or not same:
            raise self._elsewhere(frame, f"lies {apart[k]:.3g} mm beside the nearest slice, or has another size")
        return k

    def _elsewhere(self, frame: SegmentFrame, how: str) -> DataError:
        return DataError(f"{self.path} is not on the grid of the image: its {frame.name} {how}", remedy=EXPORT)


def _apart(positions: list[np.ndarray], axes: np.ndarray) -> list[np.ndarray]:
    """One position for each height among those of frames."""
    normal = np.cross(axes[1], axes[0])
    kept: list[np.ndarray] = []
    for position in sorted(positions, key=lambda one: float(one @ normal)):
        if not kept or (position - kept[-1]) @ normal > SAME_PLACE_MM:
            kept.append(position)
    return kept


def _spanned(stack: Stack, path: Path) -> Geometry:
    """The regular grid from the first to the last frame of a DICOM-SEG, whose empty slices may be left out."""
    steps = np.diff(stack.heights)
    distance = float(steps.min()) if len(steps) else stack.thickness
    count = 1 + round(float(steps.sum()) / distance)
    if len(steps) and np.abs(steps / distance - np.rint(steps / distance)).max() > OFF_GRID:
        return grid_of(replace(stack, names=tuple(map(str, range(len(stack.positions))))), str(path)).geometry
    whole = np.linspace(stack.positions[0], stack.positions[-1], count)
    filled = replace(stack, positions=whole, shape=(count, *stack.shape[1:]), names=tuple(map(str, range(count))))
    return grid_of(filled, str(path)).geometry
