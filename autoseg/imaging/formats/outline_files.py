"""JSON files of outlines as label maps: of one image (labelme, GeoJSON), or of many (COCO).

is_outlines    whether a label file is one, by its name
read           a file -> label map on the grid of its image
names_in       the labels that a file names -> numbers
marks_unknown  whether a file marks places that nobody annotated
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from autoseg.errors import DataError
from autoseg.imaging.formats.coco import open_coco
from autoseg.imaging.formats.json_files import read_json
from autoseg.imaging.formats.outlines import Meaning, draw, names_of
from autoseg.imaging.formats.polygon_files import Drawn, outlines_of
from autoseg.imaging.geometry import Geometry, Volume

ENDINGS = (".geojson", ".json")
FILES_REMEMBERED = 2**14  # of which the names are kept


def is_outlines(path: Path | str) -> bool:
    """Whether a file would hold outlines, by the end of its name."""
    name = Path(path).name.lower()
    return name.endswith(ENDINGS) and not name.startswith(".") and len(name) > len(".json")


def read(path: Path, meaning: Meaning, like: Path | None, grid: Geometry | None) -> Volume:
    """Read a label map (1, Y, X) int32.

    Args:
        meaning: the values that objects become; without values and things, the numbers of `names_in`.
        like: the image, whose name chooses among the images of a COCO file; needed where that describes several.
        grid: of the image; needed where the file does not state the size of its image, as GeoJSON.

    Raises:
        DataError: the file cannot be read, describes another image, or does not say enough.
    """
    drawn, where = _drawn(path, like)
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
    if not meaning.values and not meaning.things:
        meaning = replace(meaning, values=names_in(path))
    drawing = draw(drawn.outlines, shape, meaning, where)
    remarks = (*drawn.remarks, *drawing.remarks)
    labels = drawing.array[None]
    if grid is not None and grid.shape == labels.shape:
        return Volume(labels, replace(grid, remarks=remarks))
    flat = Geometry(shape=(1, *shape), spacing=(1.0, 1.0, 1.0), flat=True, placed=False, sized=False, remarks=remarks)
    return Volume(labels, flat)


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


def _drawn(path: Path, like: Path | None) -> tuple[Drawn, str]:
    """The outlines of the image that is meant, and its name for messages."""
    coco = open_coco(path)
    if coco is None:
        return outlines_of(read_json(path), path), str(path)
    if like is None and len(coco.images) != 1:
        raise DataError(
            f"{path} describes {len(coco.images)} images; which one is meant is not known", remedy="name the image"
        )
    image = coco.images[0] if like is None or len(coco.images) == 1 else coco.find(like)
    drawn = coco.drawn(image)
    return drawn, str(path) if len(coco.images) == 1 else f"{path}, image {image.name}"
