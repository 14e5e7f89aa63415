"""Read one case from its files into arrays in one axis order, and check them.

`load_case` is what preprocessing and prediction use; `problems.check` reads the same files itself, to report every
fault instead of the first, and shares the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.datasets.checks.grids import align
from autoseg.datasets.checks.voxels import spoilt, to_channels
from autoseg.datasets.pairing import Case
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import READERS, ending_of, files_of, read_image, read_labels_as
from autoseg.imaging.geometry import (
    Axes3,
    Geometry,
    Remark,
    Vector3,
    Volume,
    orientation_of,
    reorient,
    undo_reorient,
)  # fmt: skip
from autoseg.imaging.labels import UNIT, LabelSet

LIGHT_BYTES = 64 * 2**20  # files of a dataset below this are read faster by this process alone than by starting others
COUNTED_AT_ONCE = 2**16  # spans of label values up to this are counted in a table, not by sorting
REPLACE_NON_FINITE = "replace them (for example by the value of air), or leave the case out"


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory. `image`, `target` and `spacing` share one axis order; `geometry` is that of the files.

    The files have one order of axes, that of the first: what was stored in another at the same place was reordered.
    """

    id: str
    image: np.ndarray  # (C, Z, Y, X) float32
    target: np.ndarray | None  # (Z, Y, X) int16 class indices
    spacing: Vector3  # mm
    geometry: Geometry
    orientation: tuple[Axes3, Axes3]  # permutation and flips of geometry.orientation_of
    axis_order: Axes3  # permutation that followed
    file: str = ""  # the image whose grid it is: the first that has a place in space, or the first
    remarks: tuple[tuple[str, Remark], ...] = ()  # file, what is odd about it although it is used

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (..., Z, Y, X) in this case's axis order back to that of its files. Returns a view."""
        return undo_reorient(undo_reorient(array, self.axis_order, (0, 0, 0)), *self.orientation)

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (..., Z, Y, X) in the axis order of the files to that of this case. Returns a view."""
        return reorient(reorient(array, *self.orientation), self.axis_order, (0, 0, 0))

    def voxel_from_stored(self, voxel: Sequence[int]) -> Axes3:
        """A voxel (z, y, x) of the files, in the axis order of this case."""
        permutation, flips = self.orientation
        turned = [
            self.geometry.shape[axis] - 1 - voxel[axis] if flip else voxel[axis]
            for axis, flip in zip(permutation, flips, strict=True)
        ]
        z, y, x = (turned[axis] for axis in self.axis_order)
        return z, y, x


def load_case(
    case: Case,
    labels: LabelSet | None,
    *,
    channels: Sequence[str] = (),
    orientation: Literal["canonical", "as_stored"] = "canonical",
    axis_order: Axes3 = (0, 1, 2),
) -> LoadedCase:
    """Read one case: image (C, Z, Y, X) float32 and, with `labels`, target (Z, Y, X) int16 class indices.

    Args:
        channels: names of all channels, to which grey pictures and colours are brought (`voxels.to_channels`).
        orientation: "canonical" brings the axes to Z, Y, X growing towards S, P, L.
        axis_order: axis_order[i] is the axis that becomes axis i, after that.

    Raises:
        DataError: a file cannot be read, contains NaN, infinity, extreme outliers or unexpected label values, or is at
            another position than the first.
    """
    images = {file: read_image(Path(file)) for file in case.images}
    if channels:
        images = {file: to_channels(volume, file, channels, len(images)) for file, volume in images.items()}
    for file, volume in images.items():
        if bad := non_finite(volume.array) or spoilt(volume.array):
            raise DataError(f"{file}: {bad}", remedy=REPLACE_NON_FINITE)
    label_file = None
    if labels is not None and case.label is not None:
        label_file = (case.label, read_label(case, labels))
    aligned = align(case.id, images, label_file)
    if aligned.problems:
        file, remedy = aligned.problems[0].file, aligned.problems[0].remedy
        raise DataError(f"{file}: {'; '.join(p.what for p in aligned.problems if p.file == file)}", remedy=remedy)
    indices = None
    if labels is not None and case.label is not None:
        label = aligned.volumes[case.label]
        values = [*count_values(label.array)]
        if strange := labels.unexpected(np.array(values)):
            raise DataError(
                f"{case.label}: unexpected label values {sorted(strange)}", remedy=f"the labels are {labels.values}"
            )
        indices = class_indices(label.array, labels, values, label.geometry.spacing)
    volumes = [aligned.volumes[file] for file in case.images]
    loaded = assemble(case.id, volumes, indices, orientation=orientation, axis_order=axis_order)
    return replace(loaded, file=aligned.reference, remarks=tuple(aligned.remarks))


def read_label(case: Case, labels: LabelSet) -> Volume:
    """Read the label map of a case; names and outlines on the grid of its first image. Raises as `read_labels`."""
    assert case.label is not None
    like = case.images[0] if case.images else None
    return read_labels_as(labels, case.label, like)


def assemble(
    case_id: str,
    volumes: Sequence[Volume],
    indices: np.ndarray | None,
    *,
    orientation: Literal["canonical", "as_stored"] = "canonical",
    axis_order: Axes3 = (0, 1, 2),
) -> LoadedCase:
    """Assemble a LoadedCase from files that were read and checked, in stored axis order; see `load_case`."""
    geometry = volumes[0].geometry
    turn = orientation_of(geometry) if orientation == "canonical" else ((0, 1, 2), (0, 0, 0))

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(reorient(reorient(array, *turn), axis_order, (0, 0, 0)))

    spacing = [geometry.spacing[turn[0][axis]] for axis in axis_order]
    return LoadedCase(
        id=case_id,
        image=turned(volumes[0].array if len(volumes) == 1 else np.concatenate([v.array for v in volumes])),
        target=None if indices is None else turned(indices),
        spacing=(spacing[0], spacing[1], spacing[2]),
        geometry=geometry,
        orientation=turn,
        axis_order=axis_order,
    )


def workers_for(files: Sequence[str], workers: int | None) -> int | None:
    """Number of processes to read files with: 0 (this one alone) where that is faster than starting others."""
    sizes = (one.stat().st_size for file in files for one in files_of(file) if one.is_file())
    if workers is None and sum(sizes) < LIGHT_BYTES:
        return 0
    return workers


def is_picture(file: str) -> bool:
    """Whether a file's format (PNG, TIFF, JPEG, BMP) has no position in space."""
    ending = ending_of(file)
    return ending is not None and READERS[ending].family == "natural"


def non_finite(array: np.ndarray) -> str:
    """Describe how many voxels are NaN or infinite; empty if none is."""
    if array.size == 0 or (np.isfinite(array.min()) and np.isfinite(array.max())):
        return ""  # minimum and maximum propagate NaN: two passes that allocate nothing
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    parts = [f"{count} {word}" for count, word in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} voxels ({(nan + infinite) / array.size:.2g} of all)"


def count_values(array: np.ndarray) -> dict[int, int]:
    """Count the voxels of each value of an integer array, ascending by value."""
    low, high = int(array.min()), int(array.max())
    if high - low >= COUNTED_AT_ONCE:
        values, counts = np.unique(array, return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    total = np.zeros(high - low + 1, dtype=np.int64)
    for plane in array:  # plane by plane: bincount widens its input to 64 bits
        total += np.bincount(plane.ravel() - low, minlength=len(total))
    return {int(index) + low: int(total[index]) for index in np.flatnonzero(total)}


def class_indices(array: np.ndarray, labels: LabelSet, values: Sequence[int], spacing: Vector3 = UNIT) -> np.ndarray:
    """Class indices (int16) of a label map that holds the given values: `LabelSet.to_indices` by a table."""
    low, high = min(values), max(values)
    if labels.things or high - low >= COUNTED_AT_ONCE:
        return labels.to_indices(array, spacing)
    table = np.zeros(high - low + 1, dtype=np.int16)
    table[np.array(values) - low] = labels.to_indices(np.array(values))
    return table[array - low if low else array]
