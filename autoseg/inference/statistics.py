"""What a segmentation measures: size, place, parts and intensities of every label of a case.

    measure          decided labels and the image -> LabelStatistics, per label and per region of several labels
    CaseStatistics   one case: OUT/statistics/CASE.json, complete as soon as the case is
    collect          all cases of a folder -> OUT/statistics.json and OUT/statistics.csv, a row per case and label

Positions are those of the file. Voxel indices are (z, y, x), counted from 0; millimetres are (x, y, z) in LPS: x grows
to the Left, y to the Posterior, z to the Superior. The volume of a voxel is the determinant of its axes. Flat images
have areas in mm2; without a voxel size, voxels (or pixels) are counted. Standard deviations are those of a population.
A label that touches the border of the image continues beyond it, perhaps: its volume is a lower bound.

A series lists the sizes of each label in all scans of a patient, in their order.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from scipy import ndimage

from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Box, Geometry, orientation_code
from autoseg.imaging.labels import LabelSet
from autoseg.inference.uncertainty import CaseUncertainty
from autoseg.records import load, save
from autoseg.rules import anything, at_least, between, exactly, file_name
from autoseg.workspace import write_text

VERSION = 1
FOLDER, TOGETHER, TABLE = "statistics", "statistics.json", "statistics.csv"
COORDINATES = "voxel indices (z, y, x) of the file, from 0; mm (x, y, z) in LPS"
SIDES = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}

Text = Annotated[str, anything("any text")]
Number = Annotated[float, anything("any finite number")]
Count = Annotated[int, at_least(0, 2.0**63)]
Size = Annotated[float, at_least(0, 1e30)]
Unit = Literal["ml", "mm2", "voxels", "pixels"]
Span = tuple[Count, Count]  # half-open
Share = Annotated[float, between(0, 1)]


@dataclass(frozen=True)
class Intensity:
    """Values of one channel inside a label."""

    mean: Number
    std: Annotated[float, at_least(0, 1e39)]
    min: Number
    max: Number


@dataclass(frozen=True)
class ExpectedDice:
    """What Dice a segmentation is expected to have, by its own uncertainty; see `evaluation/expected_dice.py`."""

    dice: Share
    low: Share
    high: Share
    coverage: Share  # share of cases whose Dice the interval is made to hold


@dataclass(frozen=True)
class LabelStatistics:
    """One label, or one region of several, in one case; None where it is empty, or the file does not state it."""

    name: Text
    values: tuple[int, ...]  # in the segmentation
    voxels: Count
    size: Size  # in the unit of the case
    components: Count  # sets of voxels that share a face, an edge or a corner
    centroid_voxels: tuple[Number, Number, Number] | None  # (z, y, x)
    centroid_mm: tuple[Number, Number, Number] | None  # (x, y, z), LPS
    box: tuple[Span, Span, Span] | None  # (z, y, x)
    border: tuple[Text, ...]  # sides of the image that it touches
    intensities: dict[Text, Intensity]  # by channel
    entropy: Share | None = None  # mean over its voxels
    disagreement: Share | None = None
    expected_dice: ExpectedDice | None = None


@dataclass(frozen=True)
class CaseStatistics:
    """All labels of one case."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    case: Annotated[str, file_name()]
    segmentation: Annotated[str, file_name()]  # the file
    shape: tuple[Count, Count, Count]  # voxels (z, y, x)
    spacing: tuple[Number, Number, Number] | None  # mm (z, y, x); None: the image states none
    unit: Unit  # of sizes
    labels: tuple[LabelStatistics, ...]
    patient: Text | None = None
    place_in_series: Count = 0  # of the patient's scans, by number
    entropy: Share | None = None  # mean over all that was found
    disagreement: Share | None = None
    expected_dice: ExpectedDice | None = None  # of the mean over labels
    warnings: tuple[Text, ...] = ()
    coordinates: Text = COORDINATES


@dataclass(frozen=True)
class Series:
    """One patient with several scans."""

    patient: Text
    unit: Unit
    cases: tuple[Text, ...]  # in order
    sizes: dict[Text, tuple[Size, ...]]  # label -> one per case


@dataclass(frozen=True)
class FolderStatistics:
    """`statistics.json`: all cases of a folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    cases: tuple[CaseStatistics, ...]  # sorted by id
    series: tuple[Series, ...] = ()


def unit_of(geometry: Geometry) -> tuple[Unit, float]:
    """The unit of sizes in an image, and the size of one voxel in it."""
    if not geometry.sized:
        return ("pixels" if geometry.flat else "voxels"), 1.0
    steps = np.array(geometry.direction) * np.array(geometry.spacing)[:, None]
    if geometry.flat:
        return "mm2", float(np.linalg.norm(np.cross(steps[1], steps[2])))
    return "ml", float(abs(np.linalg.det(steps))) / 1000


def measure(
    indices: np.ndarray, image: np.ndarray, geometry: Geometry, labels: LabelSet, channels: Sequence[str]
) -> tuple[LabelStatistics, ...]:
    """Measure every label of a segmentation, and every region of several labels.

    Args:
        indices: class indices (Z, Y, X), in stored order.
        image: (C, Z, Y, X), in stored order.
        geometry: of the file.
        channels: names of the C channels.
    """
    boxes = ndimage.find_objects(indices, max_label=labels.num_labels)
    wanted: dict[str, tuple[int, ...]] = {name: (i,) for i, name in enumerate(labels.values, start=1)}
    wanted |= {name: own for name, own in labels.scored.items() if len(own) > 1}
    values = (0, *labels.values.values())
    found = []
    for name, own in wanted.items():
        present = [boxes[i - 1] for i in own if boxes[i - 1] is not None]
        of_files = tuple(values[i] for i in own)
        if not present:
            found.append(LabelStatistics(name, of_files, 0, 0.0, 0, None, None, None, (), {}))
            continue
        spans = [(min(b[axis].start for b in present), max(b[axis].stop for b in present)) for axis in range(3)]
        box = (spans[0], spans[1], spans[2])
        inside = as_slices(box)
        mask = np.isin(indices[inside], own)
        found.append(_measured(name, of_files, mask, box, image[(slice(None), *inside)], geometry, channels))
    return tuple(found)


def _measured(
    name: str,
    values: tuple[int, ...],
    mask: np.ndarray,
    box: Box,
    image: np.ndarray,
    geometry: Geometry,
    channels: Sequence[str],
) -> LabelStatistics:
    """One label that is present: its mask (Z, Y, X) in its box, and the image (C, Z, Y, X) there."""
    voxels = int(np.count_nonzero(mask))
    profiles = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    centroid = [
        start + float(np.average(np.arange(len(profile)), weights=profile))
        for (start, _), profile in zip(box, profiles, strict=True)
    ]
    _, components = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    placed = geometry.placed and geometry.sized
    return LabelStatistics(
        name=name,
        values=values,
        voxels=voxels,
        size=voxels * unit_of(geometry)[1],
        components=int(components),
        centroid_voxels=(centroid[0], centroid[1], centroid[2]),
        centroid_mm=world(geometry, centroid) if placed else None,
        box=box,
        border=border_of(box, geometry),
        intensities={
            channel: _intensity(plane[mask]) for channel, plane in zip(channels, image, strict=True)
        },
    )  # fmt: skip


def border_of(box: Box, geometry: Geometry) -> tuple[str, ...]:
    """Sides of the image that a box (in stored order) touches: anatomical where the file has a place in space.

    An axis of one voxel has no sides.
    """
    touched = []
    letters = orientation_code(geometry)[::-1]  # of z, y, x
    for axis, ((start, stop), extent) in enumerate(zip(box, geometry.shape, strict=True)):
        if extent == 1:
            continue
        if geometry.flat:
            low, high = (("top", "bottom"), ("left", "right"))[axis - 1]
        elif geometry.placed:
            low, high = SIDES[OPPOSITE[letters[axis]]], SIDES[letters[axis]]
        else:
            low, high = f"first {'zyx'[axis]}", f"last {'zyx'[axis]}"
        touched += [low] * (start == 0) + [high] * (stop == extent)
    return tuple(touched)


def with_uncertainty(case: CaseStatistics, uncertainty: CaseUncertainty) -> CaseStatistics:
    """The statistics with the uncertainty of each label and of the whole foreground."""
    labels = []
    for label in case.labels:
        own = uncertainty.labels.get(label.name)
        labels.append(replace(label, entropy=own.entropy, disagreement=own.disagreement) if own else label)
    whole = uncertainty.foreground
    if whole is None:
        return replace(case, labels=tuple(labels))
    return replace(case, labels=tuple(labels), entropy=whole.entropy, disagreement=whole.disagreement)


def with_expected_dice(
    case: CaseStatistics, of_labels: Mapping[str, ExpectedDice], of_mean: ExpectedDice | None
) -> CaseStatistics:
    """The statistics with the expected Dice of each label, and of the mean over labels."""
    labels = tuple(replace(label, expected_dice=of_labels.get(label.name)) for label in case.labels)
    return replace(case, labels=labels, expected_dice=of_mean)


def write_case(out: Path, case: CaseStatistics) -> Path:
    """Write the statistics of one case below the folder of segmentations."""
    path = out / FOLDER / f"{case.case}.json"
    save(path, case)
    return path


def collect(out: Path) -> FolderStatistics | None:
    """Put the cases of a folder together, also those of earlier predictions; None where there is none.

    Cases whose segmentation does not exist, because it was deleted or another process has not written it yet, are left
    out.

    Raises:
        StateError: a file is not a record of statistics.
    """
    remedy = f"delete {out / FOLDER} and predict again"
    found = [load(CaseStatistics, path, remedy) for path in sorted((out / FOLDER).glob("*.json"))]
    cases = tuple(case for case in found if (out / case.segmentation).is_file())
    if not cases:
        return None
    together = FolderStatistics(VERSION, cases, series_of(cases))
    save(out / TOGETHER, together)
    write_text(out / TABLE, table(together))
    return together


def series_of(cases: Sequence[CaseStatistics]) -> tuple[Series, ...]:
    """The patients with several scans whose sizes have one unit."""
    patients: dict[str, list[CaseStatistics]] = {}
    for case in cases:
        if case.patient is not None:
            patients.setdefault(case.patient, []).append(case)
    series = []
    for patient, scans in sorted(patients.items()):
        ordered = sorted(scans, key=lambda scan: (scan.place_in_series, scan.case))
        if len(ordered) < 2 or len({scan.unit for scan in ordered}) > 1:
            continue
        names = [label.name for label in ordered[0].labels]
        found = [{label.name: label.size for label in scan.labels} for scan in ordered]
        sizes = {name: tuple(sizes[name] for sizes in found) for name in names if all(name in s for s in found)}
        series.append(Series(patient, ordered[0].unit, tuple(scan.case for scan in ordered), sizes))
    return tuple(series)


def table(statistics: FolderStatistics) -> str:
    """One row per case and label; what is not known is an empty cell."""
    channels = list(dict.fromkeys(c for case in statistics.cases for lab in case.labels for c in lab.intensities))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        *("case", "patient", "label", "voxels", "size", "unit", "components", "border"),
        *("centroid_z", "centroid_y", "centroid_x", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm"),
        *("box_z0", "box_z1", "box_y0", "box_y1", "box_x0", "box_x1"),
        *(f"{channel}_{what}" for channel in channels for what in ("mean", "std", "min", "max")),
        *("entropy", "disagreement", "expected_dice", "expected_dice_low", "expected_dice_high"),
    ])  # fmt: skip
    for case in statistics.cases:
        for label in case.labels:
            writer.writerow(_row(case, label, channels))
    return text.getvalue()


def _row(case: CaseStatistics, label: LabelStatistics, channels: Sequence[str]) -> list[object]:
    intensities: list[object] = []
    for channel in channels:
        found = label.intensities.get(channel)
        intensities += [found.mean, found.std, found.min, found.max] if found else [""] * 4
    expected = label.expected_dice
    row = [
        *(case.case, case.patient, label.name, label.voxels, label.size, case.unit, label.components),
        " ".join(label.border),
        *(label.centroid_voxels or [None] * 3),
        *(label.centroid_mm or [None] * 3),
        *([end for span in label.box for end in span] if label.box else [None] * 6),
        *intensities,
        *(label.entropy, label.disagreement),
        *((expected.dice, expected.low, expected.high) if expected else [None] * 3),
    ]
    return ["" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in row]


def _intensity(values: np.ndarray) -> Intensity:
    """Mean, standard deviation and range of values, in double precision."""
    wide = values.astype(np.float64)
    return Intensity(float(wide.mean()), float(wide.std()), float(wide.min()), float(wide.max()))


def world(geometry: Geometry, index: Sequence[float]) -> tuple[float, float, float]:
    """World (x, y, z), mm in LPS, of a voxel index (z, y, x)."""
    steps = np.array(geometry.direction) * np.array(geometry.spacing)[:, None]
    x, y, z = (np.array(geometry.origin) + np.array(index) @ steps).tolist()
    return x, y, z
