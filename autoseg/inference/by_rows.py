"""Images too large to be held: read, segmented and written a few rows at a time, where the plan allows it.

A 2-D network on a large TIFF, or any network on a volume whose voxels have the plan's size, needs rows of the image
alone: tiles are cut from the file, logits are held for a layer of tiles (`sliding_window`), labels go to a file.
Percentiles and the like are taken of a sample. The labels are those of the whole image, to rounding of its mean.

Not so where all of the image is needed: to resample it, to fill holes of a mask, to turn its axes, for several models
or a cascade. Such an image is refused before memory runs out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.datasets.checks.voxels import spoilt
from autoseg.datasets.dataset import Case
from autoseg.datasets.loading import REPLACE_NON_FINITE, non_finite
from autoseg.errors import DataError, OutOfMemory, StorageError
from autoseg.imaging.formats.readers import ending_of, read_geometry
from autoseg.imaging.formats.rows import RawLabels, StoredRows, open_rows, write_rows
from autoseg.imaging.geometry import Axes3, Geometry, Remark, Vector3, orientation_of
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.logit_rows import decide_row
from autoseg.imaging.normalize import by_parts
from autoseg.imaging.objects import BAND_VOXELS, ObjectRows, along, classes_of
from autoseg.imaging.placement import Placement, place
from autoseg.inference.member import EnsembleMember
from autoseg.planning.foreign_grids import require_like
from autoseg.planning.foreign_images import foreign_extent, foreign_intensities
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import target_spacing
from autoseg.processes import free_memory

FROM_VOXELS = 2**28  # of all channels, from which an image is read by rows: 1 GiB of float32
ARRAYS = 3  # float32 arrays of an image's size that it takes at least to segment it at once
MOST_VALUE = 2**32 - 1  # of an instance map whose objects are not counted yet
SAMPLED = 2**22  # voxels that percentiles and outliers are looked for in


@dataclass(frozen=True)
class Measured:
    """What all rows hold."""

    box: tuple[tuple[int, int], ...]  # (Z, Y, X) of what is not 0
    all_inside: bool  # no voxel of the box is 0 in every channel
    sample: np.ndarray  # (C, Z, Y, X) float32, every so many voxels


class LargeImage:
    """An image that is read by rows, in the plan's axis order.

    Args:
        rows: of its file.
        plan: of the model that segments it.
    """

    def __init__(self, rows: StoredRows, plan: Plan) -> None:
        self.rows, self.plan, self.geometry = rows, plan, rows.geometry
        self.flips, self.shape = _turn(rows.geometry, plan)[1], rows.shape
        self.axis = rows.axis

    def read(self, first: int, stop: int) -> np.ndarray:
        """Rows as intensities (C, Z, Y, X) float32, flipped as the network sees them."""
        size, along = self.shape[self.axis], self.axis - 1
        if self.flips[along]:
            first, stop = size - stop, size - first
        found = self.rows.image(first, stop)
        return found[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in self.flips))]

    def stored_place(self, place: Sequence[slice]) -> tuple[slice, slice, slice]:
        """A box (Z, Y, X) of the image as the network sees it, in stored order."""
        z, y, x = (
            slice(size - part.stop, size - part.start) if flip else part
            for part, flip, size in zip(place, self.flips, self.shape[1:], strict=True)
        )
        return z, y, x

    def measure(self) -> Measured:
        """Look at all rows once. Raises DataError for values that cannot be used."""
        every = max(1, math.ceil((math.prod(self.shape) / SAMPLED) ** (1 / (2 if self.shape[1] == 1 else 3))))
        occupied = [np.zeros(size, dtype=bool) for size in self.shape[1:]]
        inside, sample = 0, []
        for first, stop in self.rows.chunks():
            part = self.read(first, stop)
            if bad := non_finite(part):
                raise DataError(f"{self.rows.path}: {bad}", remedy=REPLACE_NON_FINITE)
            nonzero = (part != 0).any(axis=0)
            inside += int(nonzero.sum())
            for axis, seen in enumerate(occupied):
                along = nonzero.any(axis=tuple(other for other in range(3) if other != axis))
                if axis == self.axis - 1:
                    seen[first:stop] |= along
                else:
                    seen |= along
            chosen = (slice(None), *(slice(0, None, 1 if self.shape[1] == 1 and a == 0 else every) for a in range(3)))
            sample.append(part[chosen].copy())  # a view would hold all of the part
        together = np.concatenate(sample, axis=self.axis)
        if bad := spoilt(together):
            raise DataError(f"{self.rows.path}: {bad}", remedy=REPLACE_NON_FINITE)
        spans = [np.flatnonzero(seen) for seen in occupied]
        box = tuple(
            (int(s[0]), int(s[-1]) + 1) if len(s) else (0, n) for s, n in zip(spans, self.shape[1:], strict=True)
        )
        return Measured(box, inside == math.prod(stop - start for start, stop in box), together)


class PreparedRows:
    """What the sliding window reads of a large image: rows of its box, normalised; of a flat one without the Z axis."""

    def __init__(self, image: LargeImage, placement: Placement) -> None:
        self.image, self.box = image, placement.box
        self.dtype = np.dtype(np.float32)
        spatial = placement.shape_after_crop
        self.flat = image.axis == 2
        self.shape = (image.shape[0], *(spatial[1:] if self.flat else spatial))
        self._normalizers = []
        for number, planned in enumerate(image.plan.normalization):
            scheme = by_parts(planned.scheme, lambda number=number: self._parts(number), planned)  # type: ignore[misc]
            assert scheme is not None, "such an image is not read by rows"
            self._normalizers.append(scheme)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        channels, rows = index
        first, stop, _ = rows.indices(self.shape[1])
        part = self._cropped(first, stop)[channels]
        made = np.stack([make(of) for make, of in zip(self._normalizers[channels], part, strict=True)])
        return made[:, 0] if self.flat else made

    def _cropped(self, first: int, stop: int) -> np.ndarray:
        along = self.image.axis - 1
        start = self.box[along][0]
        part = self.image.read(first + start, stop + start)
        others = [slice(None) if axis == along else slice(*ends) for axis, ends in enumerate(self.box)]
        return part[(slice(None), *others)]

    def _parts(self, channel: int) -> Iterator[np.ndarray]:
        rows = self.shape[1]
        step = max(1, rows // max(1, len(list(self.image.rows.chunks()))))
        return (self._cropped(first, min(first + step, rows))[channel] for first in range(0, rows, step))


def is_large(case: Case) -> bool:
    """Whether an image has so many voxels, by its headers, that it is to be read by rows; DICOM series never."""
    files = [Path(file) for file in case.images if ending_of(file)]
    return sum(math.prod(read_geometry(file).shape) for file in files) >= FROM_VOXELS


def open_large(case: Case, members: Sequence[EnsembleMember], reason: str = "") -> LargeImage | None:
    """A large image, to be segmented by rows; None where it has to be held, and there is the memory for it.

    Args:
        reason: why it has to be held, whatever it is; "": nothing speaks against rows.

    Raises:
        OutOfMemory: it has to be held, and memory does not suffice.
    """
    path, plan = Path(case.images[0]), members[0].model.plan
    rows, geometry = None, read_geometry(path)
    reason = reason or _against(members) or ("its channels lie in several files" if len(case.images) > 1 else "")
    reason = reason or _against_grid(geometry, members[0])
    try:
        rows = None if reason else open_rows(path)
    except OSError as error:
        what = f"{path} cannot be decompressed into a temporary file: {error.strerror or error}"
        raise StorageError(what, remedy="free disk space there, or set TMPDIR to another folder") from error
    if rows is not None:
        if rows.shape[0] == len(plan.channels):
            return LargeImage(rows, plan)
        reason = f"it has {rows.shape[0]} channels, the model {len(plan.channels)}"
        rows.__exit__()
    reason = reason or "its format is not read by rows"
    needed, free = ARRAYS * 4 * len(plan.channels) * math.prod(geometry.shape), free_memory()
    if needed > free:
        raise OutOfMemory(
            f"{path} takes at least {needed / 1e9:.3g} GB to segment at once, and {free / 1e9:.3g} GB are free; it "
            f"cannot be segmented by rows: {reason}",
            remedy="use a machine with more memory, or cut it into parts",
        )
    return None


def segment_large(image: LargeImage, member: EnsembleMember, path: Path) -> list[Remark]:
    """Segment a large image and write its labels; what is odd about it is returned.

    Raises:
        DataError: it cannot be used, as `predict_cases`. StorageError: the labels cannot be written.
    """
    plan, rows = member.model.plan, image.rows
    with rows:
        measured = image.measure()
        remarks = _remarks(image, member, measured.sample)
        placement = _placed(image, member, measured)
        prepared = PreparedRows(image, placement)
        labels, things = RawLabels(image.shape[1:], max(plan.labels.values.values())), plan.labels.things
        spatial = placement.shape_after_crop
        z0, y0, x0 = (start for start, _ in placement.box)
        for block in member.stream(prepared):
            decided = _decided(block.logits.cpu().numpy(), plan.heads)
            found = decided if things else plan.labels.to_file_values(decided)
            if prepared.flat:
                whole = (slice(0, 1), _moved(block.rows, y0), slice(x0 + block.lines.start, x0 + block.lines.stop))
                found = found[None]
            else:
                whole = (_moved(block.rows, z0), _moved(block.lines, y0), slice(x0, x0 + spatial[2]))
            turned = found[tuple(slice(None, None, -1 if flip else 1) for flip in image.flips)]
            labels.put(image.stored_place(whole), turned)
    write_rows(path, _with_objects(labels, plan.labels, image.geometry.spacing) if things else labels, rows.path)
    return remarks


def _with_objects(indices: RawLabels, labels: LabelSet, spacing: Vector3) -> RawLabels:
    """Label values of class indices, a band of rows at a time: objects grow as their last rows are seen."""
    values = RawLabels(indices.shape, MOST_VALUE)
    stuff = np.array([0, *labels.values.values()])
    extent = indices.shape[indices.axis]
    band = max(1, BAND_VOXELS * extent // math.prod(indices.shape))
    growing = {
        name: ObjectRows(spacing, smallest=thing.smallest_mm3, axis=indices.axis)
        for name, thing in labels.things.items()
    }
    done = dict.fromkeys(growing, 0)
    for start in range(0, extent, band):
        stop = min(start + band, extent)
        found = stuff[indices.read(start, stop)]
        kept = np.where(np.isin(found, [v for t in labels.things.values() for v in (t.core, t.border)]), 0, found)
        values.put(along(indices.axis, start, stop), kept)
        for name, thing in labels.things.items():
            objects = growing[name].take(classes_of(found, thing.core, thing.border), last=stop == extent)
            labels.require_numbers(name, growing[name].count)
            rows = (done[name], done[name] + objects.shape[indices.axis])
            done[name] = rows[1]
            if rows[0] < rows[1]:
                there = values.read(*rows)
                values.put(along(indices.axis, *rows), np.where(objects > 0, labels.numbered(name, objects), there))
    return values


def _turn(geometry: Geometry, plan: Plan) -> tuple[Axes3, Axes3]:
    """Permutation and flips that bring a stored image to the order in which the plan sees it."""
    return orientation_of(geometry) if plan.orientation == "canonical" else ((0, 1, 2), (0, 0, 0))


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _decided(logits: np.ndarray, heads: LabelSet) -> np.ndarray:
    """Class indices of logits (K, rows, ...), row by row."""
    regions = heads.region_indices if heads.has_regions else None
    dtype = np.min_scalar_type(heads.num_labels)
    return np.stack([decide_row(logits[:, row], regions, dtype) for row in range(logits.shape[1])])


def _against(members: Sequence[EnsembleMember]) -> str:
    """Why models need all of an image; "" if they do not."""
    if len(members) > 1:
        return "several models are averaged"
    plan = members[0].model.plan
    if members[0].previous is not None:
        return "a cascade needs the labels of its previous stage"
    if any(one.scheme not in ("zscore", "rescale_to_0_1", "ct", "none", "rgb_to_0_1") for one in plan.normalization):
        return "a normalisation of the plan needs all of it"
    return ""


def _against_grid(geometry: Geometry, member: EnsembleMember) -> str:
    """Why an image on this grid has to be held; "" if it does not."""
    plan, configuration = member.model.plan, member.model.configuration
    spacing = geometry.spacing
    if _turn(geometry, plan)[0] != (0, 1, 2) or tuple(plan.axis_order) != (0, 1, 2):
        return "its axes have to be turned"
    if geometry.shape[0] == 1 and configuration.dims == 3:
        return "it is flat, and the network is for volumes"
    same = np.allclose(spacing, target_spacing(configuration, spacing), rtol=1e-3)
    return "" if same else "its voxels have another size than the plan's, so that it has to be resampled"


def _placed(image: LargeImage, member: EnsembleMember, measured: Measured) -> Placement:
    """Where the box lies. Raises OutOfMemory where its holes would have to be filled, or it would be resampled."""
    (z, y, x), spacing = image.shape[1:], image.geometry.spacing
    target = target_spacing(member.model.configuration, spacing)
    placement = place((z, y, x), measured.box, spacing, target, str(image.rows.path))  # type: ignore[arg-type]
    masked = any(planned.inside_mask for planned in image.plan.normalization)
    reason = ""
    if masked and not measured.all_inside:
        reason = "the plan normalises it within its body, whose holes have to be filled"
    if placement.shape != placement.shape_after_crop:
        reason = "its voxels have another size than the plan's, so that it has to be resampled"
    if reason:
        raise OutOfMemory(
            f"{image.rows.path} is too large to be held, and cannot be segmented by rows: {reason}",
            remedy="cut it into parts, or resample it to the plan's voxel size first",
        )
    return placement


def _remarks(image: LargeImage, member: EnsembleMember, sample: np.ndarray) -> list[Remark]:
    """What is odd about an image, by its header and a sample. Raises DataError where it is too unlike the training."""
    plan, geometry, alone = image.plan, image.geometry, member.model.configuration.dims == 2
    remarks = require_like(
        str(image.rows.path), geometry, geometry.spacing, plan.grids, plan.axis_order, slices_alone=alone
    )
    remarks += foreign_intensities(sample, plan.channels, plan.grids, plan.normalization)
    return remarks + foreign_extent(image.shape[1:], geometry.spacing, plan.grids, plan.axis_order, slices_alone=alone)
