"""Label files that number objects: whether they do, how large and how close the objects are, and what a network learns.

    numbers_objects   whether files that name no labels hold one value per object
    measure_objects   sizes, gaps and contacts of all objects, and what a border of each width preserves
    undecided_labels  the labels of things and stuff, before the width of the border is known
    decided           a thing whose border has the width that suits its objects

**The width of the border** is decided by trying: label maps are split into cores and borders of 1, 2, 3 and 4 voxels
(of the finest axis) and grown back (`imaging.objects`). A wide border is easier to learn, and loses small and thin
objects. The widest is taken that loses at most LOSS of the average precision that the best one preserves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.datasets.pairing import Problem
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import names_labels, read_labels_as
from autoseg.imaging.geometry import Vector3
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.imaging.objects import along, grow_objects, split_objects
from autoseg.messages import counted
from autoseg.processes import map_in_processes

WIDTHS = (1, 2, 3, 4)  # voxels of the finest axis
LOSS = 0.02  # of average precision at an IoU of 0.5
TRIED_FILES = 40  # files at most that widths are tried on
SMALLEST = 1.0  # of the small objects' volume (1st percentile): what is smaller is not written, and no core of its own
FEW = 10  # values; that many labels or fewer are not taken for numbers of objects
TINY = 3  # voxels
NAMED = 3  # files that a warning names
DIVISOR = 1000  # as in Cityscapes


@dataclass(frozen=True)
class ObjectMeasurements:
    """The objects of one thing in a dataset."""

    images: int  # with an object
    count: int
    per_image: tuple[float, float, float]  # smallest, median, largest number among these images
    diameter_mm: tuple[float, float, float, float, float]  # of the disc or ball of equal volume: 1, 10, 50, 90, 99 %
    smallest_mm3: float  # the 1st percentile of volumes
    extent_mm: float  # the 99th percentile of the longest edge of an object's box
    touching: float  # share of the objects that share a face with another one
    gap_mm: float | None  # median distance of those that do not to the nearest other; None: there is none
    kept: dict[str, float]  # width in voxels -> average precision at an IoU of 0.5 that it preserves; "0": components
    voxel_mm: float  # the finest axis
    sized: bool = True  # whether images state the size of their voxels; otherwise lengths are in voxels
    broken: int = 0  # objects in several pieces, which are usually two objects with one number
    tiny: int = 0  # objects of a few voxels, which are usually slips of the pen
    examples: tuple[str, ...] = ()  # files with such objects


@dataclass(frozen=True)
class _Measured:
    """One label file."""

    volumes: np.ndarray  # mm3, of each object
    extents: np.ndarray  # mm, longest edge of its box
    flat: bool
    touching: int
    gaps: np.ndarray  # mm, of each object that touches none
    voxel: float  # mm, the finest axis
    sized: bool
    broken: int
    tiny: int
    matched: dict[int, tuple[int, int, int]]  # width -> tp, fp, fn


def numbers_objects(values: Sequence[Sequence[int]]) -> bool:
    """Whether the values of label files look like numbers of objects: 1, 2, 3, ... to a number that differs by file.

    Args:
        values: the different values above 0 in each file, ascending.
    """
    used = [found for found in values if len(found)]
    counts = {len(found) for found in used}
    counted = sum(found[-1] == len(found) for found in used)
    return len(used) > 1 and max(counts) > FEW and len(counts) > len(used) / 4 and counted >= 0.9 * len(used)


def measure_objects(
    files: Sequence[str],
    labels: LabelSet,
    thing: str,
    *,
    images: Sequence[str | None] = (),
    workers: int | None = None,
) -> ObjectMeasurements:
    """Measure the objects of one thing in all label files.

    Args:
        images: the image of each file, which outlines need; empty: no file needs one.

    Raises:
        DataError: no file that can be read holds an object.
    """
    tried = {*np.linspace(0, len(files) - 1, min(TRIED_FILES, len(files))).astype(int).tolist()}
    jobs = [(file, images[i] if images else None, i in tried) for i, file in enumerate(files)]
    measured = map_in_processes(
        partial(_measure_file, labels=labels, thing=thing), jobs, title=f"objects of {thing}", workers=workers
    )
    found = [one for one in measured if one is not None and one.volumes.size]
    if not found:
        raise DataError(
            f"no label file contains an object of {thing}", remedy="check --instances, --labels and --divisor"
        )
    volumes, gaps = (np.concatenate([getattr(one, name) for one in found]) for name in ("volumes", "gaps"))
    extents = np.concatenate([one.extents for one in found])
    flat, counts = all(one.flat for one in found), [one.volumes.size for one in found]
    diameters = 2 * np.sqrt(volumes / np.pi) if flat else 2 * np.cbrt(3 * volumes / (4 * np.pi))
    totals = {width: np.sum([one.matched[width] for one in found if one.matched], axis=0) for width in (0, *WIDTHS)}
    return ObjectMeasurements(
        images=len(found),
        count=int(volumes.size),
        per_image=(float(min(counts)), float(np.median(counts)), float(max(counts))),
        diameter_mm=tuple(_short(v) for v in np.percentile(diameters, (1, 10, 50, 90, 99))),  # type: ignore[arg-type]
        smallest_mm3=_short(np.percentile(volumes, 1)),
        extent_mm=_short(np.percentile(extents, 99)),
        touching=_short(sum(one.touching for one in found) / volumes.size),
        gap_mm=_short(np.median(gaps)) if gaps.size else None,
        kept={str(width): _short(tp / max(1, tp + fp + fn)) for width, (tp, fp, fn) in totals.items()},
        voxel_mm=_short(min(one.voxel for one in found)),
        sized=any(one.sized for one in found),
        broken=sum(one.broken for one in found),
        tiny=sum(one.tiny for one in found),
        examples=tuple(
            (image if image and names_labels(file) else file)
            for (file, image, _), one in zip(jobs, measured, strict=True)
            if one is not None and (one.broken or one.tiny)
        )[:NAMED],
    )


def border_width(found: ObjectMeasurements) -> int:
    """Voxels of the finest axis: the widest border that preserves almost as much as the best one."""
    best = max(found.kept[str(width)] for width in WIDTHS)
    return max(width for width in WIDTHS if found.kept[str(width)] >= best - LOSS)


def undecided_labels(
    things: Sequence[str], values: Mapping[str, int] | None, divisor: int | None, ignore: int | None
) -> LabelSet:
    """The labels of things and stuff before their objects are measured.

    Args:
        things: names, as given by `--instances`.
        values: label -> value, things among them; None: one thing, and every value is an object.
        divisor: None: DIVISOR, where `values` are given.

    Raises:
        UsageError: a thing is not among the labels, or several without labels.
    """
    if values is None:
        if len(things) > 1 or divisor is not None:
            what = "--divisor" if divisor is not None else f"--instances {','.join(things)}"
            raise UsageError(
                f"{what} needs to know what the values of the label files mean",
                remedy="name their labels: --labels cell=1,tissue=2 --instances cell, where files hold value x 1000 + "
                "number for each object",
            )
        (name,) = things
        return LabelSet({f"{name} core": 1, f"{name} border": 2}, things={name: Thing(1, 2)}, ignore=ignore, divisor=0)
    if unknown := [name for name in things if name not in values]:
        raise UsageError(
            f"--instances {','.join(things)}: {unknown[0]!r} is not among the labels {', '.join(values)}",
            remedy=f"add it: --labels {','.join(f'{n}={v}' for n, v in values.items())},{unknown[0]}="
            f"{max(values.values()) + 1}",
        )
    largest = max(values.values())
    borders = {name: largest + number for number, name in enumerate(things, start=1)}
    cores = {(f"{name} core" if name in borders else name): value for name, value in values.items() if value != 0}
    return LabelSet(
        cores | {f"{name} border": value for name, value in borders.items()},
        things={name: Thing(values[name], borders[name]) for name in things},
        ignore=ignore,
        divisor=DIVISOR if divisor is None else divisor,
    )


def decided(thing: Thing, found: ObjectMeasurements) -> Thing:
    """A thing whose border has the width that suits its objects."""
    return Thing(thing.core, thing.border, border_width(found) * found.voxel_mm, SMALLEST * found.smallest_mm3)


def describe_objects(thing: str, found: ObjectMeasurements) -> str:
    """In a line, what was measured and decided."""
    width, (_, median, most) = border_width(found), found.per_image
    small, large = found.diameter_mm[1], found.diameter_mm[3]
    unit = "mm" if found.sized else "voxels"
    gap = "" if found.gap_mm is None else f", the others are {found.gap_mm:.3g} {unit} apart (median)"
    border = "1 voxel" if width == 1 else f"{width} voxels"
    return (
        f"{thing}: {found.count} objects in {found.images} images ({median:.0f} per image, at most {most:.0f}), "
        f"diameter {small:.3g} to {large:.3g} {unit} (10 to 90 %); {found.touching:.0%} touch another{gap}; a border "
        f"of {border} preserves {found.kept[str(width)]:.3f} of them (average precision at an IoU of 0.5), components "
        f"alone {found.kept['0']:.3f}"
    )


def _measure_file(job: tuple[str, str | None, bool], labels: LabelSet, thing: str) -> _Measured | None:
    """Measure one file; None where it cannot be read, which `check` reports."""
    file, image, tried = job
    try:
        volume = read_labels_as(labels, file, image if names_labels(file) else None)
    except DataError:
        return None
    objects, geometry = labels.objects(thing, volume.array), volume.geometry
    return measure_map(objects, geometry.spacing, tried=tried, sized=geometry.sized)


def measure_map(objects: np.ndarray, spacing: Vector3, *, tried: bool, sized: bool = True) -> _Measured:
    """Measure an instance map (Z, Y, X), and try the widths of the border on it where it is one of those."""
    numbers, inverse = np.unique(objects, return_inverse=True)
    compact = (inverse.reshape(objects.shape) + (0 if numbers.size and numbers[0] == 0 else 1)).astype(np.int32)
    boxes = ndimage.find_objects(compact)
    steps = np.array(spacing)
    sizes = np.bincount(compact.ravel(), minlength=len(boxes) + 1)[1:]
    edges = [[s.stop - s.start for s in box] * steps for box in boxes]
    gaps = _gaps(compact, spacing, len(boxes))
    touching = gaps == 0
    voxel = float(min((step for step, extent in zip(spacing, objects.shape, strict=True) if extent > 1), default=1.0))
    matched = {}
    if tried and len(boxes):
        for width in (0, *WIDTHS):
            classes = split_objects(compact, width * voxel, spacing)
            matched[width] = _matched(compact, grow_objects(classes, spacing)[0])
    flat = objects.shape[0] == 1
    volumes = sizes * (np.prod(steps[1:]) if flat else np.prod(steps))
    return _Measured(
        volumes, np.array([max(edge) for edge in edges]), flat, int(touching.sum()),
        gaps[np.isfinite(gaps) & ~touching], voxel, sized, _broken(compact, boxes), int((sizes <= TINY).sum()),
        matched,
    )  # fmt: skip


def _broken(compact: np.ndarray, boxes: Sequence[tuple[slice, ...] | None]) -> int:
    """How many objects have several pieces; voxels that share a corner are together."""
    everywhere = np.ones((3, 3, 3), bool)
    return sum(
        ndimage.label(compact[box] == number, structure=everywhere)[1] > 1
        for number, box in enumerate(boxes, start=1)
        if box is not None
    )


def problems_of_objects(thing: str, found: ObjectMeasurements) -> list[Problem]:
    """Warnings about objects that look like mistakes of the annotation."""
    file = found.examples[0] if found.examples else ""
    problems = []
    if found.broken:
        what = (
            f"{counted(found.broken, 'object')} of {thing} (of {found.count}) in several pieces, for instance in "
            f"{', '.join(Path(one).name for one in found.examples)}"
        )
        remedy = "give each piece a number of its own where they are two objects; each core is learnt as an object"
        problems.append(Problem(None, file, what, remedy, "warning"))
    if found.tiny:
        what = f"{counted(found.tiny, 'object')} of {thing} (of {found.count}) of {TINY} voxels or fewer"
        remedy = "remove them if they are slips of the pen; objects below the 1st percentile of sizes are not written"
        problems.append(Problem(None, file, what, remedy, "warning"))
    return problems


def _gaps(compact: np.ndarray, spacing: Vector3, count: int) -> np.ndarray:
    """Of each object 1..n the distance (mm) to the nearest other one, about: 0 where faces are shared, inf if alone.

    Background belongs to the nearest object; where the parts of two objects meet, their distances add up.
    """
    gaps = np.full(count + 1, np.inf)
    if count < 2:
        return gaps[1:]
    away, nearest = ndimage.distance_transform_edt(compact == 0, sampling=spacing, return_indices=True)
    owner = compact[tuple(nearest)]
    for axis, extent in enumerate(compact.shape):
        low, high = along(axis, 0, extent - 1), along(axis, 1, extent)
        meet = owner[low] != owner[high]
        one, other = owner[low][meet], owner[high][meet]
        for side in (one, other):
            np.minimum.at(gaps, side, away[low][meet] + away[high][meet])
    return gaps[1:]


def _matched(reference: np.ndarray, grown: np.ndarray) -> tuple[int, int, int]:
    """Objects that match at an IoU above 0.5, surplus ones, and missed ones."""
    pairs, shared = np.unique(
        np.stack([reference.ravel(), grown.ravel()])[:, (reference > 0).ravel() & (grown > 0).ravel()],
        axis=1, return_counts=True,
    )  # fmt: skip
    sizes, others = np.bincount(reference.ravel()), np.bincount(grown.ravel())
    union = sizes[pairs[0]] + others[pairs[1]] - shared
    tp = int(np.count_nonzero(2 * shared > union))
    return tp, int(np.count_nonzero(others[1:])) - tp, int(np.count_nonzero(sizes[1:])) - tp


def _short(value: float) -> float:
    return float(f"{value:.4g}")
