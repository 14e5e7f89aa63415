"""JSON files of outlines as label maps: of one image (labelme, GeoJSON), or of many (COCO).

is_outlines    whether a label file is one, by its name
read           a file -> label map on the grid of its image
names_in       the labels that a file names -> numbers
marks_unknown  whether a file marks places that nobody annotated
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.coco import open_coco
from autoseg.imaging.formats.json_files import read_json
from autoseg.imaging.formats.outline_maps import Meaning, draw
from autoseg.imaging.formats.outlines import Outline, names_of
from autoseg.imaging.formats.polygon_files import Drawn, outlines_of
from autoseg.imaging.geometry import Geometry, Remark, Volume, axes3
from autoseg.messages import some

LARGEST_DEPTH = 2**16  # slices of a volume
ENDINGS = (".geojson", ".json")
FILES_REMEMBERED = 2**14  # of which the names are kept


def is_outlines(path: Path | str) -> bool:
    """Whether a file would hold outlines, by the end of its name."""
    name = Path(path).name.lower()
    return name.endswith(ENDINGS) and not name.startswith(".") and len(name) > len(".json")


def read(path: Path, meaning: Meaning, like: Path | None, grid: Geometry | None) -> Volume:
    """Read a label map, (1, Y, X) int32, or (Z, Y, X) where a COCO file describes the slices of a volume.

    Args:
        meaning: the values that objects become; without values and things, the numbers of `names_in`.
        like: the image, whose name chooses among the images of a COCO file; needed where that describes several.
        grid: of the image; needed where the file does not state the size of its image, as GeoJSON.

    Raises:
        DataError: the file cannot be read, describes another image, or does not say enough.
    """
    planes, where = _drawn(path, like)
    if not meaning.values and not meaning.things:
        meaning = replace(meaning, values=names_in(path))
    if None not in planes:
        return _volume(planes, meaning, grid, where)
    drawn = planes[None]
    if grid is not None and grid.shape[0] != 1:
        raise DataError(
            f"{path} holds outlines, which belong to a flat image, but {like} has {grid.shape[0]} slices",
            remedy="export the labels as a label map: .nii.gz or .tif",
        )
    shape = drawn.shape or (None if grid is None else (grid.shape[1], grid.shape[2]))
    if shape is None:
        raise DataError(
            f"{where} does not state the size of its image, which outlines need",
            remedy="name the image, or convert the outlines to a label map",
        )
    drawing = draw(drawn.outlines, shape, meaning, where)
    return _on_grid(drawing.array[None], grid, (*drawn.remarks, *drawing.remarks), flat=True)


def _volume(planes: Mapping[int | None, Drawn], meaning: Meaning, grid: Geometry | None, where: str) -> Volume:
    """Slices of a volume, as `coco_output` writes them: outlines with one `object` are one object.

    Raises:
        DataError: their sizes differ, or are not stated; there are more slices than the image has.
    """
    shapes = {drawn.shape for drawn in planes.values()}
    depth = max(k for k in planes if k is not None) + 1
    most = depth if grid is None else grid.shape[0]
    (shape, *others) = shapes
    if shape is None or others or depth > most or depth > LARGEST_DEPTH:
        what = f"{where}: {depth} slices of {some(shapes)} (rows, columns), expected at most {most} of one size"
        raise DataError(what, remedy="pair it with the volume that it was made of")
    drawings = {k: draw(drawn.outlines, shape, meaning, where) for k, drawn in planes.items() if k is not None}
    named: dict[int, str] = {}  # the objects of all slices -> their labels
    for k, drawing in drawings.items():
        named |= {_number(outline, k, i): outline.name for i, outline in enumerate(drawing.objects)}
    order = sorted(named)
    values = dict(zip(order, meaning.numbers([named[number] for number in order], where), strict=True))
    labels = np.zeros((most, *shape), dtype=np.int32)
    for k, drawing in drawings.items():
        found, at = np.unique(drawing.array, return_inverse=True)
        final = found.copy()
        for i, (outline, value) in enumerate(zip(drawing.objects, drawing.values, strict=True)):
            final[found == value] = values[_number(outline, k, i)]
        labels[k] = final[at].reshape(shape)
    remarks = [remark for drawing in drawings.values() for remark in drawing.remarks]
    return _on_grid(labels, grid, tuple(remarks), flat=False)


def _number(outline: Outline, plane: int, place: int) -> int:
    """What identifies an object of a volume; one without a number is an object of its slice alone, after the others."""
    return outline.number if outline.number is not None else ((plane + 1) << 40) + place


def _on_grid(labels: np.ndarray, grid: Geometry | None, remarks: tuple[Remark, ...], *, flat: bool) -> Volume:
    if grid is not None and grid.shape == labels.shape:
        return Volume(labels, replace(grid, remarks=remarks))
    own = Geometry(
        shape=axes3(labels.shape), spacing=(1.0, 1.0, 1.0), flat=flat, placed=False, sized=False, remarks=remarks
    )
    return Volume(labels, own)


def names_in(path: Path) -> dict[str, int]:
    """The labels that a file names -> 1, 2, ...: of COCO in order of the ids, otherwise of appearance.

    Raises:
        DataError: it cannot be read.
    """
    return dict(_looked_at(path)[0])


def marks_unknown(path: Path) -> bool:
    """Whether a file marks places that nobody annotated: crowds, or objects called "ignore". Raises DataError."""
    return _looked_at(path)[1]


def _looked_at(path: Path) -> tuple[dict[str, int], bool]:
    """The names in a file, and whether it marks places that nobody annotated."""
    status = path.stat()
    return _names_and_crowds(str(path.absolute()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=FILES_REMEMBERED)
def _names_and_crowds(text: str, size: int, mtime_ns: int) -> tuple[dict[str, int], bool]:
    """`_looked_at`, once for a file as long as its size and time stay."""
    path = Path(text)
    if (coco := open_coco(path)) is not None:
        return coco.names(), coco.crowds
    outlines = outlines_of(read_json(path), path).outlines
    return names_of(outlines), any(outline.not_annotated for outline in outlines)


def _drawn(path: Path, like: Path | None) -> tuple[dict[int | None, Drawn], str]:
    """The outlines of the image that is meant, by slice (None: it is flat), and its name for messages."""
    coco = open_coco(path)
    if coco is None:
        return {None: outlines_of(read_json(path), path)}, str(path)
    alone = len(coco.images) == 1 or (bool(coco.images) and coco.is_volume(coco.images))
    if like is None and not alone:
        raise DataError(
            f"{path} describes {len(coco.images)} images; which one is meant is not known", remedy="name the image"
        )
    images = coco.images if like is None or alone else coco.find(like)
    planes = {image.slice: coco.drawn(image) for image in images}
    return planes, str(path) if alone else f"{path}, image {images[0].name}"
