"""Properties of a dataset, measured once per case while its arrays are in memory.

    measure_case   in a worker process: one loaded case -> CaseMeasurement (its record and a sample of intensities)
    summarise      in the parent: the measurements -> Fingerprint

Spatial tuples are (Z, Y, X) of the loaded arrays (canonical orientation, before any axis order of a plan).

*Foreground* is every voxel of a label; background and ignored voxels are not. A *component* is a connected set of
voxels of one label. Memory is bounded for any dataset: at most `POOLED_SAMPLES` intensities per channel are
pooled over all cases, the same number from each, and each label keeps an evenly spaced selection of components.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np
from scipy import ndimage

from autoseg.datasets.objects import ObjectMeasurements
from autoseg.imaging.components import as_slices, bounding_box, components, nonzero_mask
from autoseg.imaging.geometry import Vector3, axes3
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.normalize import ForegroundStatistics
from autoseg.imaging.symmetry import MirrorSide, mirror_sides
from autoseg.messages import some
from autoseg.records import to_plain
from autoseg.rules import anything, at_least, between, entries, exactly, file_name

VERSION = 1
Count = Annotated[int, at_least(0, 2.0**63)]
Extent = Annotated[float, between(0, 1e30)]  # mm or mm3
Edge = Annotated[int, at_least(1, 2**31)]  # voxels
Spacing = Annotated[float, between(1e-9, 1e6)]  # mm
Position = Annotated[float, between(-1e12, 1e12)]  # mm
Text = Annotated[str, anything("any text")]
Number = Annotated[float, anything("any finite number")]
POOLED_SAMPLES = 10_000_000  # intensities per channel over the whole dataset: 40 MB as float32
CASE_SAMPLES = 200_000  # at most, per case: the 0.5th percentile is then within 0.02 percentage points
IMAGE_SAMPLES = 50_000  # per image, for the percentiles of all its voxels
COMPONENTS_KEPT = 64  # per label and case
COMPONENTS_KEPT_PER_CASE = 1024  # over all labels, so that the record stays small with a hundred labels
SEED = 1234

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ComponentSizes:
    """Connected components of one label in one case: all counted, an even selection by size described."""

    count: Count
    volumes_mm3: tuple[Extent, ...]  # of the selection, descending
    extents_mm: tuple[tuple[Extent, Extent, Extent], ...]  # edges of their bounding boxes


@dataclass(frozen=True)
class ImageIntensities:
    """Intensities of one channel in a whole image, whatever is annotated: percentiles."""

    p00_5: Number
    median: Number
    p99_5: Number


@dataclass(frozen=True)
class CaseFingerprint:
    """One case: geometry, labels and their components."""

    id: Annotated[str, file_name()]
    shape: tuple[Edge, Edge, Edge]
    shape_after_crop: tuple[Edge, Edge, Edge]  # the box of the nonzero voxels
    spacing: tuple[Spacing, Spacing, Spacing]
    class_voxels: dict[Text, Count]  # label name -> voxels in the whole case
    components: dict[Text, ComponentSizes]  # only labels that are present
    ignored_voxels: Count
    foreground_outside_crop: Count  # labelled voxels where every channel is 0: lost by cropping
    digest: Text  # of the arrays: equal digests are equal cases
    # of each label present, from the first voxel
    centroids_mm: dict[Text, tuple[Position, Position, Position]] = field(default_factory=dict)
    mirror_sides: dict[Text, MirrorSide] = field(default_factory=dict)  # of labels on one side of the body's mid-plane
    intensities: tuple[ImageIntensities, ...] = ()  # one per channel; empty: not measured

    @property
    def relative_size_after_crop(self) -> float:
        return math.prod(self.shape_after_crop) / math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics(ForegroundStatistics):
    """Intensities of one channel in the foreground of all cases."""

    median: Number
    min: Number
    max: Number


@dataclass(frozen=True)
class Fingerprint:
    """A dataset as the planner sees it."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of fingerprints that this autoseg reads")]
    channels: Annotated[tuple[Text, ...], entries(1)]
    labels: tuple[Text, ...]  # names, without background and ignore
    cases: tuple[CaseFingerprint, ...]  # sorted by id
    statistics: tuple[ChannelStatistics, ...]  # one per channel
    notes: tuple[Text, ...]
    objects: dict[Text, ObjectMeasurements] = field(default_factory=dict)  # of every thing

    @property
    def hash(self) -> str:
        """Digest of all measurements; it changes when a voxel of any case does."""
        plain = to_plain(self)
        for case in plain["cases"]:
            del case["mirror_sides"], case["intensities"]  # both follow from the voxels, older fingerprints lack them
        if not plain["objects"]:
            del plain["objects"]
        return hashlib.blake2b(json.dumps(plain, sort_keys=True, allow_nan=False).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class CaseMeasurement:
    """What a worker process returns: small and picklable."""

    case: CaseFingerprint
    intensities: np.ndarray  # (C, samples) float32
    from_foreground: bool  # False: the case has no foreground, they come from the whole crop


class Loaded(Protocol):
    """The part of a loaded case that is measured, so that planning need not import readers of images."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> np.ndarray: ...  # (C, Z, Y, X) float32
    @property
    def target(self) -> np.ndarray | None: ...  # (Z, Y, X) class indices
    @property
    def spacing(self) -> Vector3: ...  # mm


def samples_per_case(num_cases: int) -> int:
    """Intensities to draw per case and channel, so that the pool does not exceed POOLED_SAMPLES."""
    return max(1, min(CASE_SAMPLES, POOLED_SAMPLES // max(1, num_cases)))


def measure_case(loaded: Loaded, labels: LabelSet, samples: int) -> CaseMeasurement:
    """Measure one case; deterministic.

    Args:
        loaded: image (C, Z, Y, X), target (Z, Y, X) of class indices 0..n with n + 1 for ignored voxels, spacing in mm.
        labels: names of the classes 1..n.
        samples: intensities to draw per channel, with replacement (`samples_per_case`).
    """
    assert loaded.target is not None, "only annotated cases have a fingerprint"
    image, target = loaded.image, loaded.target
    inside = as_slices(bounding_box(nonzero_mask(image)))
    # plane by plane: bincount widens its input to 64 bits
    counts = sum(np.bincount(plane.ravel().clip(min=0), minlength=labels.num_labels + 2) for plane in target)
    assert isinstance(counts, np.ndarray)
    cropped = target[inside]
    foreground = (cropped > 0) & (cropped <= labels.num_labels)
    present = {name: i for i, name in enumerate(labels.values, start=1) if counts[i] > 0}
    boxes = ndimage.find_objects(target)
    case = CaseFingerprint(
        id=loaded.id,
        shape=axes3(target.shape),
        shape_after_crop=axes3(cropped.shape),
        spacing=(float(loaded.spacing[0]), float(loaded.spacing[1]), float(loaded.spacing[2])),
        class_voxels={name: int(counts[i]) for i, name in enumerate(labels.values, start=1)},
        components=_all_components(target, boxes, present, loaded.spacing),
        ignored_voxels=int(counts[labels.num_labels + 1]) if labels.ignore is not None else 0,
        foreground_outside_crop=int(counts[1 : labels.num_labels + 1].sum()) - int(np.count_nonzero(foreground)),
        digest=_digest(image, target),
        centroids_mm=_centroids(target, boxes, present, loaded.spacing),
        mirror_sides=mirror_sides(image, target, boxes, present, loaded.spacing),
        intensities=image_intensities(image),
    )
    has_foreground = bool(foreground.any())
    drawn = _draw(image[(slice(None), *inside)], foreground if has_foreground else None, samples)
    return CaseMeasurement(case, drawn, has_foreground)


def summarise(measurements: Mapping[str, CaseMeasurement], *, channels: Sequence[str], labels: LabelSet) -> Fingerprint:
    """Pool the measurements (case id -> measurement) of a dataset into its fingerprint.

    Raises:
        ValueError: there is no case.
    """
    if not measurements:
        raise ValueError("a fingerprint needs at least one case")
    notes = []
    ordered = [measurements[case_id] for case_id in sorted(measurements)]
    cases = [measurement.case for measurement in ordered]
    pooled = [m.intensities for m in ordered if m.from_foreground]
    if not pooled:
        pooled = [m.intensities for m in ordered]
        notes.append("no case has any foreground: intensity statistics are those of whole images")
    elif len(pooled) < len(ordered):
        notes.append(f"{len(ordered) - len(pooled)} of {len(ordered)} cases have no foreground")
    lost = [case.id for case in cases if case.foreground_outside_crop]
    if lost:
        notes.append(f"labelled voxels where the image is zero are cropped away in: {some(lost)}")
    notes += [f"cases with equal image and label: {some(ids)}" for ids in _equal(cases)]
    intensities = np.concatenate(pooled, axis=1)
    return Fingerprint(
        version=VERSION,
        channels=tuple(channels),
        labels=tuple(labels.values),
        cases=tuple(cases),
        statistics=tuple(_statistics(channel) for channel in intensities),
        notes=tuple(notes),
    )


def image_intensities(image: np.ndarray) -> tuple[ImageIntensities, ...]:
    """Percentiles of each channel of an image (C, Z, Y, X), from IMAGE_SAMPLES voxels of it at most; deterministic."""
    drawn = _draw(image, None, min(IMAGE_SAMPLES, math.prod(image.shape[1:])))
    found = []
    for channel in drawn:
        values = channel[np.isfinite(channel)]
        low, median, high = np.percentile(values, (0.5, 50, 99.5)) if values.size else (0.0, 0.0, 0.0)
        found.append(ImageIntensities(_short(low), _short(median), _short(high)))
    return tuple(found)


def _all_components(
    target: np.ndarray, boxes: Sequence[Slices], present: Mapping[str, int], spacing: Vector3
) -> dict[str, ComponentSizes]:
    """Components of each present label, each searched for inside the label's own box."""
    kept = max(4, min(COMPONENTS_KEPT, COMPONENTS_KEPT_PER_CASE // max(1, len(present))))
    return {name: _components(target[boxes[i - 1]] == i, spacing, kept) for name, i in present.items()}


def _centroids(
    target: np.ndarray, boxes: Sequence[Slices], present: Mapping[str, int], spacing: Vector3
) -> dict[str, Vector3]:
    """Centre of mass of each present label in mm along (Z, Y, X), from the first voxel."""
    centroids = {}
    for name, i in present.items():
        mask = target[boxes[i - 1]] == i
        starts = [axis.start for axis in boxes[i - 1]]
        profiles = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
        z, y, x = (
            _short((start + np.average(np.arange(len(profile)), weights=profile)) * step)
            for start, profile, step in zip(starts, profiles, spacing, strict=True)
        )
        centroids[name] = (z, y, x)
    return centroids


def _components(mask: np.ndarray, spacing: Vector3, kept: int) -> ComponentSizes:
    """Describe at most `kept` components: evenly spaced quantiles, largest and smallest among them."""
    found = components(mask)
    total = len(found.sizes)
    chosen = np.linspace(0, total - 1, min(kept, total)).round().astype(int)  # sorted, largest first
    volumes = found.sizes[chosen] * math.prod(spacing)
    extents = found.extents[chosen] * np.asarray(spacing)
    return ComponentSizes(
        count=total,
        volumes_mm3=tuple(_short(v) for v in volumes),
        extents_mm=tuple((_short(z), _short(y), _short(x)) for z, y, x in extents),
    )


def _draw(image: np.ndarray, mask: np.ndarray | None, samples: int) -> np.ndarray:
    """Draw voxels with replacement from a mask (or everywhere): (C, samples) float32, the same voxels in all channels.

    Works plane by plane, so that no list of all voxels is ever held.
    """
    planes = image.shape[1]
    everywhere = np.full(planes, math.prod(image.shape[2:]))
    per_plane = everywhere if mask is None else np.count_nonzero(mask, axis=(1, 2))
    ends = np.cumsum(per_plane)
    ranks = np.sort(np.random.default_rng(SEED).integers(0, ends[-1], samples))
    splits = np.searchsorted(ranks, ends)
    drawn = np.empty((len(image), samples), dtype=np.float32)
    for z in range(planes):
        first, last = (splits[z - 1] if z else 0), splits[z]
        if first == last:
            continue
        voxels = ranks[first:last] - (ends[z] - per_plane[z])  # rank within the plane
        if mask is not None:
            voxels = np.flatnonzero(mask[z])[voxels]
        drawn[:, first:last] = image[:, z].reshape(len(image), -1)[:, voxels]
    return drawn


def _statistics(intensities: np.ndarray) -> ChannelStatistics:
    """Statistics of a pooled channel; non-finite values are left out."""
    values = intensities[np.isfinite(intensities)].astype(np.float64)
    if values.size == 0:
        values = np.zeros(1)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return ChannelStatistics(
        mean=float(values.mean()),
        median=float(median),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        p00_5=float(low),
        p99_5=float(high),
    )


def _digest(image: np.ndarray, target: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (image, target):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _equal(cases: Sequence[CaseFingerprint]) -> list[list[str]]:
    by_digest: dict[str, list[str]] = {}
    for case in cases:
        by_digest.setdefault(case.digest, []).append(case.id)
    return [ids for ids in by_digest.values() if len(ids) > 1]


def _short(value: float) -> float:
    """Six significant digits: enough for a decision, and readable in a file."""
    return float(f"{value:.6g}")
