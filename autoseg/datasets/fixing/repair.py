"""Repairs of one case, in files that may be written: those of a copy.

    mend_cases   cases -> what was changed; runs in a worker
    REPAIRS      one function per repair, in the order in which they are tried

A repair takes a case, changes its files where they have its kind of fault and the correction is unambiguous, and
returns what it did. Where two answers are possible (a label of the image's shape at another place: which of the two
headers is wrong?) nothing is done, and a `not repaired` record gives the reason. Geometry comes first, because values
are compared on one grid; the label before the channels, because it may have been drawn on one of them.

Each repair reads headers first and voxels only where it has something to do, one file at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autoseg.datasets.fixing.changes import NOT_MENDED, Change
from autoseg.datasets.loading import count_values
from autoseg.datasets.pairing import Case
from autoseg.errors import DataError, UsageError
from autoseg.imaging.alignment import in_mm
from autoseg.imaging.formats.readers import READERS, ending_of, names_labels, read_geometry, read_image, read_labels
from autoseg.imaging.formats.rewrite import family_of, has_place, replace_grid, replace_voxels
from autoseg.imaging.formats.signatures import StoredVoxels
from autoseg.imaging.geometry import Geometry, reorient
from autoseg.imaging.regrid import (
    SAME_SPACING,
    fit,
    resample_image_onto,
    resample_labels_onto,
    share_inside,
    smoothing,
)  # fmt: skip
from autoseg.messages import counted

UNITS = (1e6, 1e3, 25.4, 10.0)  # how much longer one unit of length is than another: nanometre, micrometre, inch, cm
LEAST_COVERED_CHANNEL = 0.5  # share of the first channel's grid that a resampled channel must show
LEAST_COVERED_LABEL = 0.75  # the same for a label map: what it does not show becomes background
LEAST_KEPT_LABEL = 0.99  # share of the labelled voxels that must lie within the first channel's grid


@dataclass(frozen=True)
class Wishes:
    """Repairs that are only made on request."""

    mapping: dict[int, int] = field(default_factory=dict)  # value in label files -> value to write
    non_finite_to: float | None = None  # what NaN and infinity become
    colours: dict[str, int] = field(default_factory=dict)  # `LabelSet.colours`: what colours mean in label pictures


@dataclass(frozen=True)
class Grids:
    """The files of a case with a position in space: volumes whose readable header states it."""

    case: Case
    first: str
    channels: dict[str, Geometry]  # of the other channels
    label: Geometry | None
    origin: Geometry  # of the first channel

    @property
    def others(self) -> dict[str, Geometry]:
        """Other channels and the label that are not on the first channel's grid."""
        label = {str(self.case.label): self.label} if self.label is not None else {}
        both = {**self.channels, **label}
        return {file: g for file, g in both.items() if (found := fit(g, self.origin)) is None or not found.same}


def mend_cases(cases: Sequence[Case], wishes: Wishes) -> list[Change]:
    """Try every repair on cases that share files, or on one; runs in a worker.

    Raises:
        StorageError: a file cannot be written. OutOfMemory: a case does not fit.
    """
    changes: list[Change] = []
    seen: set[str] = set()
    for case in cases:
        files = [file for file in (*case.images, case.label) if file]
        fresh = frozenset(files) - seen  # values of a file that several cases use are changed once
        for repair in REPAIRS.values():
            try:
                changes += repair(case, wishes, fresh)
            except DataError:
                continue  # a file that cannot be read: `check` reports it
            except UsageError as error:
                changes.append(Change(case.id, files[0], error.what, error.remedy, NOT_MENDED))
        seen.update(files)
    return changes


def copy_place(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Headers without a position (form codes 0): copy it from a file of equal shape and voxel size."""
    grids = {file: g for file in (*case.images, case.label) if file and (g := _grid(file)) is not None}
    placed = [file for file in grids if has_place(Path(file))]
    changes = []
    for file in [file for file in grids if file not in placed]:
        donor = next((other for other in placed if _equal_cells(grids[file], grids[other])), None)
        if donor is not None:
            replace_grid(Path(file), Path(donor))
            was = "the header has no position (both form codes are 0)"
            name, origin = f"{Path(donor).parent.name}/{Path(donor).name}", in_mm(grids[donor].origin)
            now = f"position of {name}: origin (x, y, z) {origin} mm"
            changes.append(Change(case.id, file, was, now, "header copied"))
    return changes


def reorder(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Voxels in another axis order at the same position: reorder them, every value bit for bit."""
    if (grids := _grids(case)) is None:
        return []
    changes = []
    for file, geometry in grids.others.items():
        found = fit(geometry, grids.origin)
        if found is None or found.in_order or not found.near:
            continue
        stored = _stored(file, file == case.label)
        values = np.ascontiguousarray(reorient(stored.values, found.permutation, found.flips))
        replace_voxels(Path(file), replace(stored, values=values, geometry=grids.origin), Path(grids.first))
        turned = [f"axis {axis}{' reversed' * flip}" for axis, flip in zip(found.permutation, found.flips, strict=True)]
        was = f"shape (z, y, x) {geometry.shape}, axes in another order than those of {Path(grids.first).name}"
        now = f"shape {grids.origin.shape}: (z, y, x) are its {', '.join(turned)}; values unchanged"
        changes.append(Change(case.id, file, was, now, "axes reordered"))
    return changes


def snap(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Differences of origin, spacing or direction below a tenth of a voxel: copy the header of the first channel.

    Also where only the signs of x and y differ (RAS was written where LPS is read, or the reverse), or only the unit of
    length (spacing and origin differ by one factor). Then the voxels correspond.
    """
    if (grids := _grids(case)) is None:
        return []
    changes = []
    for file, geometry in grids.others.items():
        found, mirrored = fit(geometry, grids.origin), fit(_x_and_y_reversed(geometry), grids.origin)
        now, was = f"position of {Path(grids.first).name}", _compared(geometry, grids.origin)
        if found is not None and found.in_order and found.near:
            now += f": at most {found.distance_voxels:.2g} voxel away; voxels unchanged"
        elif not geometry.flat and mirrored is not None and mirrored.in_order and mirrored.near:
            was += ": x and y with the opposite sign (RAS for LPS)"
            now += "; voxels unchanged"
        elif _in_another_unit(geometry, grids.origin):
            was += ": another unit of length"
            now += "; voxels unchanged"
        else:
            continue
        replace_grid(Path(file), Path(grids.first))
        changes.append(Change(case.id, file, was, now, "header snapped"))
    return changes


def move_label(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """A label map on another grid: resample it (nearest neighbour) if it covers what the first channel shows."""
    grids, file = _grids(case), case.label
    if grids is None or grids.label is None or file is None or file not in grids.others:
        return []
    was = _compared(grids.label, grids.origin)
    drawn_on = [c for c, g in grids.channels.items() if (f := fit(grids.label, g)) and f.near]
    if not drawn_on and sorted(grids.label.shape) == sorted(grids.origin.shape):
        why = "it has the extent of the image at another position: one header is wrong, and it is unknown which"
        return [Change(case.id, file, was, why, NOT_MENDED)]
    read_image(grids.first)  # a damaged header may claim any extent: nothing is computed on it
    stored = _stored(file, True)
    if len(stored.values) != 1:
        return []  # `check` reports it
    labels = stored.to_labels(Path(file))
    source = _smallest(labels) if stored.scaled else stored.values[0]
    labelled = labels != 0
    covered, kept = share_inside(grids.origin, grids.label), share_inside(grids.label, grids.origin, labelled)
    if covered < LEAST_COVERED_LABEL or kept < LEAST_KEPT_LABEL:
        why = f"they hardly overlap: {covered:.0%} of the image is inside it, {kept:.0%} of its labels in the image"
        return [Change(case.id, file, was, why, NOT_MENDED)]
    before = _volumes(labels, grids.label)
    moved = StoredVoxels(resample_labels_onto(source, grids.label, grids.origin)[None], grids.origin)
    after = _volumes(moved.to_labels(Path(file)), grids.origin)
    if gone := sorted(before.keys() - after.keys()):
        why = f"label {gone[0]} would vanish: it is smaller than the voxels of the image"
        return [Change(case.id, file, was, why, NOT_MENDED)]
    replace_voxels(Path(file), moved, Path(grids.first))
    volumes = ", ".join(f"{v}: {before[v]:.4g} -> {after[v]:.4g} ml ({after[v] / before[v] - 1:+.1%})" for v in before)
    drawn = f"drawn on {Path(drawn_on[0]).name}; " if drawn_on else ""
    outside = f"; {1 - covered:.1%} of the image was outside it and became background" if covered < 1 else ""
    now = f"{drawn}on the first channel's grid; volume of label {volumes or 'none'}{outside}"
    return [Change(case.id, file, was, now, "label resampled (nearest)")]


def move_channels(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Channels on another grid than the first one: resample them linearly, smoothed where they shrink."""
    if (grids := _grids(case)) is None:
        return []
    changes: list[Change] = []
    moved = [(file, g) for file, g in grids.others.items() if file in grids.channels]
    if moved:
        read_image(grids.first)  # a damaged header may claim any extent: nothing is computed on it
    for file, geometry in moved:
        image, was = read_image(file), _compared(geometry, grids.origin)
        covered = share_inside(grids.origin, geometry)
        if covered < LEAST_COVERED_CHANNEL:
            why = f"they hardly overlap: it covers {covered:.0%} of the first channel"
            changes.append(Change(case.id, file, was, why, NOT_MENDED))
            continue
        array, outside = resample_image_onto(image.array, geometry, grids.origin)
        replace_voxels(Path(file), array, Path(grids.first))
        widths = ", ".join(f"{sigma:.2g}" for sigma in smoothing(geometry, grids.origin))
        smoothed = f", smoothed by ({widths}) of its voxels" if any(smoothing(geometry, grids.origin)) else ""
        values = ", ".join(f"{value:.6g}" for value in outside)
        filled = f"; {1 - covered:.1%} of the grid was outside it: {values}, its minimum" if covered < 1 else ""
        now = f"on the first channel's grid, float32{smoothed}{filled}"
        changes.append(Change(case.id, file, was, now, "channel resampled (linear)"))
    return changes


def replace_non_finite(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """NaN and infinity in images: replace them by the requested value."""
    changes: list[Change] = []
    for file in dict.fromkeys(case.images) if wishes.non_finite_to is not None else ():
        if file not in fresh or ending_of(file) is None:
            continue
        stored = _stored(file, False)
        if stored.values.dtype.kind != "f" and not stored.scaled:
            continue
        image = read_image(file).array
        bad = ~np.isfinite(image)
        if not bad.any():
            continue
        values = image.copy() if stored.scaled else stored.values.copy()
        values[bad] = wishes.non_finite_to
        replace_voxels(Path(file), values)
        was = f"{int(np.isnan(image).sum())} NaN and {int(np.isinf(image).sum())} infinite voxels"
        changes.append(Change(case.id, file, was, f"{wishes.non_finite_to:g} there", "value replaced on request"))
    return changes


def round_label(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Labels such as 0.9999, within 1e-3 of integers: round them."""
    file = case.label
    if file is None or file not in fresh:
        return []
    stored = _stored(file, True)
    if stored.values.dtype.kind != "f" and not stored.scaled:
        return []
    real = stored.values * np.float64(stored.slope) + np.float64(stored.intercept)
    labels = stored.to_labels(Path(file))  # refuses values farther away
    farthest = float(np.abs(real[0] - labels).max())
    if farthest == 0:
        return []
    values = _smallest(labels)
    replace_voxels(Path(file), values[None])
    was = f"label values up to {farthest:.2g} away from integers, as {stored.values.dtype}"
    return [Change(case.id, file, was, f"integers, as {values.dtype}", "label values rounded")]


def map_values(case: Case, wishes: Wishes, fresh: frozenset[str]) -> list[Change]:
    """Map label values on request, all together: 1=2,2=1 swaps them.

    Where pictures show labels by colour and number the colours in several ways, all of them are written as values: the
    meaning of a colour is agreed between files, and must not change with one of them.
    """
    file = case.label
    if file is None or file not in fresh or not (wishes.mapping or wishes.colours):
        return []
    if names_labels(file):
        return []  # its structures have names, which are mapped by --labels
    coloured = bool(wishes.colours) and family_of(Path(file)) == "natural"
    labels = read_labels(file, wishes.colours).array
    counts = count_values(labels)
    asked = {old: new for old, new in wishes.mapping.items() if old in counts and old != new}
    if not asked and not coloured:
        return []
    mapped = labels.copy()
    for old, new in asked.items():
        mapped[labels == old] = new
    replace_voxels(Path(file), _smallest(mapped)[None])
    was = ", ".join(f"value {old} in {counted(counts[old], 'voxel')}" for old in asked)
    now = ", ".join(f"{old} is {new}" for old, new in asked.items())
    if coloured:
        meant = ", ".join(f"{colour} is {value}" for colour, value in wishes.colours.items())
        was = "; ".join(filter(None, ("labels by colour, which the files number differently", was)))
        now = "; ".join(filter(None, (f"values instead of colours ({meant})", now)))
        return [Change(case.id, file, was, now, "colours to values")]
    return [Change(case.id, file, was, now, "values mapped on request")]


Repair = Callable[[Case, Wishes, frozenset[str]], list[Change]]
REPAIRS: dict[str, Repair] = {
    "copy_place": copy_place,
    "reorder": reorder,
    "snap": snap,
    "move_label": move_label,
    "move_channels": move_channels,
    "replace_non_finite": replace_non_finite,
    "round_label": round_label,
    "map_values": map_values,
}


def _grid(file: str) -> Geometry | None:
    """The grid of a file; None for pictures, and for files that cannot be read."""
    if family_of(Path(file)) not in ("nifti", "itk"):
        return None
    try:
        return read_geometry(file)
    except DataError:
        return None


def _grids(case: Case) -> Grids | None:
    """The grids of files that have one; None where the first channel has none to compare with."""

    def place(file: str) -> Geometry | None:
        grid = _grid(file)
        return grid if grid is not None and has_place(Path(file)) else None

    if not case.images or (origin := place(case.images[0])) is None:
        return None
    channels = {file: g for file in case.images[1:] if (g := place(file)) is not None}
    label = place(case.label) if case.label else None
    return Grids(case, case.images[0], channels, label, origin)


def _stored(file: str, label: bool) -> StoredVoxels:
    if names_labels(file):
        raise DataError(f"{file} is DICOM or holds outlines: it is copied, never rewritten", remedy="export it again")
    reader = READERS[str(ending_of(file))]
    if label and reader.labels is None:
        raise DataError(f"{file}: this format cannot store labels", remedy="export them in another format")
    return reader.labels(Path(file)) if label and reader.labels else reader.image(Path(file))


def _equal_cells(a: Geometry, b: Geometry) -> bool:
    close = all(abs(x - y) <= SAME_SPACING * y for x, y in zip(a.spacing, b.spacing, strict=True))
    return a.shape == b.shape and a.flat == b.flat and close


def _volumes(labels: np.ndarray, geometry: Geometry) -> dict[int, float]:
    """Volume of every label in millilitres."""
    voxel_ml = float(np.prod(geometry.spacing)) / 1000
    return {value: count * voxel_ml for value, count in count_values(labels).items() if value != 0}


def _smallest(labels: np.ndarray) -> np.ndarray:
    low, high = int(labels.min()), int(labels.max())
    dtype = np.int32 if low < 0 or high > 65535 else np.uint8 if high <= 255 else np.uint16
    return labels.astype(dtype)


def _x_and_y_reversed(geometry: Geometry) -> Geometry:
    x, y, z = geometry.origin
    rows = [(-row[0], -row[1], row[2]) for row in geometry.direction]
    return replace(geometry, origin=(-x, -y, z), direction=(rows[0], rows[1], rows[2]))


def _in_another_unit(geometry: Geometry, other: Geometry) -> bool:
    """Whether spacing and origin are those of the other grid in another unit of length."""
    for factor in (*UNITS, *(1 / unit for unit in UNITS)):
        (z, y, x), (ox, oy, oz) = geometry.spacing, geometry.origin
        spacing, origin = (z * factor, y * factor, x * factor), (ox * factor, oy * factor, oz * factor)
        found = fit(replace(geometry, spacing=spacing, origin=origin), other)
        if not geometry.flat and found is not None and found.in_order and found.near:
            return True
    return False


def _compared(geometry: Geometry, other: Geometry) -> str:
    """Extent and voxel size (z, y, x) of a grid and of the first channel's; the origins too, where these are equal."""

    def words(grid: Geometry) -> str:
        origin = f" from (x, y, z) {in_mm(grid.origin)}" if geometry.shape == other.shape else ""
        return f"{grid.shape} voxels of {in_mm(grid.spacing)} mm{origin}"

    return f"{words(geometry)}; the first channel: {words(other)}"
