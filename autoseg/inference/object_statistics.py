"""What every object of an instance map measures: OUT/statistics/CASE.objects.csv, and all of them in OUT/objects.csv.

One row per object: its number in the segmentation, its kind, its size, place, box and intensities; see `statistics`
for coordinates and units.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.imaging.geometry import Geometry
from autoseg.imaging.labels import LabelSet
from autoseg.inference.statistics import FOLDER, border_of, unit_of, world
from autoseg.workspace import write_text

TOGETHER, ENDING = "objects.csv", ".objects.csv"
PLACE = ("centroid_z", "centroid_y", "centroid_x", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
BOX = ("box_z0", "box_z1", "box_y0", "box_y1", "box_x0", "box_x1")


def object_rows(
    values: np.ndarray, image: np.ndarray, geometry: Geometry, labels: LabelSet, channels: Sequence[str]
) -> list[dict[str, object]]:
    """Measure every object of a segmentation, in the order of their numbers, a kind after the other.

    Args:
        values: as label files hold them, (Z, Y, X), in stored order.
        image: (C, Z, Y, X), in stored order.
        geometry: of the file.
    """
    unit, size = unit_of(geometry)
    placed = geometry.placed and geometry.sized
    rows = []
    for name in labels.things:
        objects = labels.objects(name, values)
        numbers, compact = np.unique(objects, return_inverse=True)
        compact = compact.reshape(objects.shape) + (0 if numbers.size and numbers[0] == 0 else 1)
        numbers = numbers[numbers != 0]
        inside = compact > 0
        counts = np.bincount(compact[inside], minlength=len(numbers) + 1)[1:]
        sums = [np.bincount(compact[inside], axis[inside], len(numbers) + 1)[1:] for axis in _axes(compact.shape)]
        moments = [_moments(compact[inside], channel[inside].astype(np.float64), len(numbers)) for channel in image]
        for i, box in enumerate(ndimage.find_objects(compact)):
            z, y, x = (float(total[i] / counts[i]) for total in sums)
            spans = tuple((axis.start, axis.stop) for axis in box)
            row: dict[str, object] = {"object": int(numbers[i]), "kind": name, "voxels": int(counts[i])}
            row |= {
                "size": counts[i] * size,
                "unit": unit,
                "border": " ".join(border_of((spans[0], spans[1], spans[2]), geometry)),
            }
            row |= dict(zip(PLACE, (z, y, x, *(world(geometry, (z, y, x)) if placed else ("",) * 3)), strict=True))
            row |= dict(zip(BOX, (end for span in spans for end in span), strict=True))
            for channel, (mean, std) in zip(channels, moments, strict=True):
                row |= {f"{channel}_mean": mean[i], f"{channel}_std": std[i]}
            rows.append(row)
    return rows


def write_objects(out: Path, case: str, rows: Sequence[dict[str, object]], channels: Sequence[str]) -> None:
    """Write the objects of one case below the folder of segmentations; also where it has none."""
    intensities = [f"{channel}_{what}" for channel in channels for what in ("mean", "std")]
    header = ["case", "object", "kind", "voxels", "size", "unit", "border", *PLACE, *BOX, *intensities]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shown = {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}
        writer.writerow({"case": case, **shown})
    write_text(out / FOLDER / f"{case}{ENDING}", text.getvalue())


def collect_objects(out: Path) -> None:
    """Put the objects of all cases of a folder together, also those of earlier predictions."""
    header, lines = "", []
    for path in sorted((out / FOLDER).glob(f"*{ENDING}")):
        first, *others = path.read_text(encoding="utf-8").splitlines()
        header = header or first
        lines += others if first == header else []
    if header:
        write_text(out / TOGETHER, "\n".join([header, *lines]) + "\n")


def _axes(shape: Sequence[int]) -> list[np.ndarray]:
    """The index of every voxel along each axis."""
    return [np.broadcast_to(axis, shape) for axis in np.ogrid[tuple(slice(extent) for extent in shape)]]


def _moments(numbers: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the values of each object 1..n."""
    counts = np.bincount(numbers, minlength=count + 1)[1:]
    mean = np.bincount(numbers, values, count + 1)[1:] / counts
    square = np.bincount(numbers, (values - mean[numbers - 1]) ** 2, count + 1)[1:] / counts
    return mean, np.sqrt(square)
