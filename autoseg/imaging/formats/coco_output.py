"""Maps of objects to COCO JSON: boxes and outlines that give the same objects when they are read.

    ImageObjects   the objects of one image
    annotations    a map of objects -> boxes, outlines, areas
    annotations_as the same of a label map with the meaning of a LabelSet
    write_coco     images and their objects -> one file
    folder_to_coco a folder of label files -> one file

Outlines run along the edges of pixels: filled by the rule of `outlines`, or by COCO's own program, they are the object,
pixel by pixel, and their area is its number of pixels. A list of polygons has no holes: an object with a hole is
written as run lengths.

Of a volume every slice is an image, with `slice`, its number from 0, and every object has an annotation per slice, with
`object`, its number in the map. A further list, `objects`, has its box in space: `box_3d` is x, y, z of its first voxel
and its width, height and depth, in voxels as they are stored.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy import ndimage

from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.contours import edges
from autoseg.imaging.formats.readers import ending_of, read_labels, stem_of
from autoseg.imaging.formats.run_lengths import to_text
from autoseg.imaging.labels import LabelSet
from autoseg.workspace import write_atomically

COUNTED = 2**24  # numbers below are counted in a table
OBJECT = "object"  # the label of objects that have no other


@dataclass(frozen=True, eq=False)
class ImageObjects:
    """The objects of one image."""

    file_name: str  # of the image
    shape: tuple[int, ...]  # (rows, columns), or (slices, rows, columns)
    annotations: tuple[dict[str, Any], ...]  # as `annotations` makes them


@dataclass
class _Ids:
    """What is numbered while a file is written."""

    categories: dict[str, int]
    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    annotations: int = 0


def annotations(
    numbers: np.ndarray, names: Mapping[int, str] | str = OBJECT, scores: Mapping[int, float] | None = None
) -> tuple[dict[str, Any], ...]:
    """Describe the objects of a map.

    Args:
        numbers: (rows, columns) or (slices, rows, columns) of whole numbers; 0 is background, every other value one
            object.
        names: number -> label, or one label for all.
        scores: number -> how sure it is, where that is known.

    Returns:
        For every object, in order of the numbers, and of every slice it is in: `object`, `category`, `bbox` (x, y,
        width, height), `area` and `segmentation`; `score` where it is known; of a volume also `slice`, and of its first
        annotation `box_3d` and `voxels`.

    Raises:
        ValueError: the map holds other numbers, or has other axes.
    """
    if numbers.dtype.kind not in "ui" or numbers.ndim not in (2, 3) or (numbers.size and numbers.min() < 0):
        raise ValueError(f"expected a map of objects of 2 or 3 axes, found {numbers.dtype} {numbers.shape}")
    objects, compact = _without_gaps(numbers)
    found: list[dict[str, Any]] = []
    for place, (number, box) in enumerate(zip(objects, ndimage.find_objects(compact), strict=True), start=1):
        known: dict[str, Any] = {"object": number, "category": names if isinstance(names, str) else names[number]}
        if scores is not None and number in scores:
            known["score"] = round(float(scores[number]), 6)
        mask = compact[box] == place
        if numbers.ndim == 2:
            found.append(known | _in_plane(mask, (box[0].start, box[1].start), numbers.shape))
            continue
        (z, y, x), (depth, height, width) = (side.start for side in box), mask.shape
        in_space: dict[str, Any] = {"box_3d": [x, y, z, width, height, depth], "voxels": int(np.count_nonzero(mask))}
        for step in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
            plane = _in_plane(mask[step], (y, x), numbers.shape[1:])
            found.append({**known, "slice": z + step, **plane, **in_space})
            in_space = {}
    return tuple(found)


def annotations_as(
    labels: LabelSet, values: np.ndarray, scores: Mapping[int, float] | None = None
) -> tuple[dict[str, Any], ...]:
    """Describe the objects in a label map, as files of `labels` hold them; see `annotations`.

    Args:
        labels: with things; what is not a thing is left out.
        values: (rows, columns) or (slices, rows, columns) of whole numbers, as read from a file.
        scores: value -> how sure its object is.
    """
    numbers = np.zeros_like(values)
    names: dict[int, str] = {}
    for thing in labels.things:
        objects = labels.objects(thing, values)
        numbers = np.where(objects > 0, objects, numbers)
        names |= dict.fromkeys(_without_gaps(objects)[0], thing)
    return annotations(numbers, names, scores)


def write_coco(path: Path, images: Iterable[ImageObjects], categories: Iterable[str] = ()) -> int:
    """Write images and their objects to one file, image by image; `images` is consumed as the file grows.

    Args:
        categories: labels in the order of their ids, 1, 2, ...; others follow as they appear.

    Returns:
        The number of objects.

    Raises:
        StorageError: the file cannot be written; what was there before is unchanged.
    """
    ids = _Ids({name: i for i, name in enumerate(dict.fromkeys(categories), start=1)})

    def write(file: IO[bytes]) -> None:
        file.write(b'{"info": {"description": "objects found by autoseg"},\n"annotations": [')
        for image in images:
            for entry in _numbered(image, ids):
                file.write(b",\n" if ids.annotations > 1 else b"\n")
                file.write(json.dumps(entry, allow_nan=False).encode())
        rest: dict[str, Any] = {
            "images": ids.images,
            "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in ids.categories.items()],
        }
        if ids.objects:
            rest["objects"] = ids.objects
        for name, entries in rest.items():
            lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
            file.write(f'],\n"{name}": [\n{lines}\n'.encode())
        file.write(b"]}\n")

    write_atomically(path, write)
    return ids.annotations if not ids.objects else len(ids.objects)


def folder_to_coco(
    folder: Path,
    out: Path,
    *,
    name: str = OBJECT,
    names: Mapping[int, str] | None = None,
    divisor: int = 0,
    images: Mapping[str, str] | None = None,
) -> int:
    """Write the objects of all label files of a folder to one COCO file.

    Args:
        folder: label files of any format: every value but 0 is one object.
        name: their label.
        names: with a divisor, the label of each value: files then hold value times divisor plus the number of the
            object, and values below the divisor, which are not single objects, are left out.
        images: case -> the name of its image, for `file_name`; that of the label file where it is not in it.

    Returns:
        The number of objects.

    Raises:
        UsageError: there is no such folder, or no label file in it. DataError: a file cannot be read, or has values
            without a label. StorageError: `out` cannot be written.
    """
    folder = Path(folder).expanduser()
    files = [path for path in sorted(folder.iterdir()) if _is_label_file(path)] if folder.is_dir() else []
    if not files:
        why = "contains no label file" if folder.is_dir() else "is not a folder"
        raise UsageError(f"{folder} {why}", remedy="name a folder of label maps whose values are numbers of objects")

    def read() -> Iterator[ImageObjects]:
        for path in files:
            volume = read_labels(path)
            numbers = volume.array[0] if volume.geometry.flat else volume.array
            labels: Mapping[int, str] | str = name
            if divisor:
                numbers = np.where(numbers >= divisor, numbers, 0)
                labels = _labels_of(numbers, names or {}, divisor, path)
            file_name = (images or {}).get(stem_of(path), path.name)
            yield ImageObjects(file_name, numbers.shape, annotations(numbers, labels))

    return write_coco(out, read(), [*(names or {}).values()] if divisor else [name])


def _without_gaps(numbers: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The numbers in a map, ascending, and the map with 1, 2, ... in their place."""
    high = int(numbers.max(initial=0))
    if high < COUNTED:  # without sorting the map
        counts = np.bincount(numbers.ravel(), minlength=high + 1)
        counts[0] = 0
        values = np.flatnonzero(counts)
        table = np.zeros(high + 1, dtype=np.int32)
        table[values] = np.arange(1, len(values) + 1)
        return values.tolist(), table[numbers]
    values, compact = np.unique(numbers, return_inverse=True)
    shift = 0 if values[0] == 0 else 1
    return values[values > 0].tolist(), compact.reshape(numbers.shape).astype(np.int32) + np.int32(shift)


def _is_label_file(path: Path) -> bool:
    return ending_of(path) is not None and path.is_file() and not path.name.startswith(".")


def _labels_of(numbers: np.ndarray, names: Mapping[int, str], divisor: int, path: Path) -> dict[int, str]:
    found = np.unique(numbers[numbers > 0]).tolist()
    if strange := [number for number in found if number // divisor not in names]:
        raise DataError(
            f"{path}: {strange[0]} is an object of the value {strange[0] // divisor}, which has no label",
            remedy=f"name it; the labels are {dict(names)}",
        )
    return {number: names[number // divisor] for number in found}


def _numbered(image: ImageObjects, ids: _Ids) -> Iterator[dict[str, Any]]:
    """The annotations of one image with their ids; its images, categories and objects are noted in `ids`."""
    first, shape = len(ids.images) + 1, image.shape
    slices = [{"slice": z} for z in range(shape[0])] if len(shape) == 3 else [{}]
    for extra in slices:
        entry = {"id": len(ids.images) + 1, "file_name": image.file_name, "width": shape[-1], "height": shape[-2]}
        ids.images.append(entry | extra)
    for annotation in image.annotations:
        ids.annotations += 1
        known = dict(annotation)
        category = ids.categories.setdefault(known.pop("category"), len(ids.categories) + 1)
        if "box_3d" in known:
            entry = {"id": len(ids.objects) + 1, "file_name": image.file_name, "category_id": category}
            keys = ("object", "score", "box_3d", "voxels")
            ids.objects.append(entry | {key: known[key] for key in keys if key in known})
            del known["box_3d"], known["voxels"]
        image_id = first + known.pop("slice", 0)
        yield {"id": ids.annotations, "image_id": image_id, "category_id": category, "iscrowd": 0, **known}


def _in_plane(mask: np.ndarray, start: tuple[int, int], shape: tuple[int, ...]) -> dict[str, Any]:
    """Box, area and outline of an object in one plane of an image.

    Args:
        mask: (rows, columns), a part of the plane.
        start: the row and column of the plane where that begins.
        shape: of the plane.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    row, column = start[0] + int(rows[0]), start[1] + int(columns[0])
    outer, holes = edges(mask)
    segmentation: Any = [np.add(line, [column, row]).astype(int).ravel().tolist() for line in outer]
    if holes:
        size = [int(shape[0]), int(shape[1])]
        segmentation = {"counts": to_text(_runs(mask, (row, column), size)), "size": size}
    return {
        "bbox": [column, row, mask.shape[1], mask.shape[0]],
        "area": int(np.count_nonzero(mask)),
        "segmentation": segmentation,
    }


def _runs(mask: np.ndarray, start: tuple[int, int], size: list[int]) -> list[int]:
    """Run lengths of a whole plane, as `run_lengths.encode` counts them, from the part that holds the object."""
    columns, rows = np.nonzero(mask.T)  # column by column
    places = (columns + start[1]) * size[0] + rows + start[0]
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.concatenate([[0], breaks + 1])]
    stops = places[np.concatenate([breaks, [len(places) - 1]])] + 1
    ends = np.stack([starts, stops], axis=1).ravel()
    ends = ends if stops[-1] == size[0] * size[1] else np.append(ends, size[0] * size[1])
    return np.diff(ends, prepend=0).tolist()
