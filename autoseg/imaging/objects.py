"""Objects that touch: an instance map to two classes that a network can learn, and these back to an instance map.

An *instance map* holds a whole number per voxel: 0 where no object is, and its own number for each object. The voxels
of an object near its surface are its *border*, the others its *core* (`split_objects`). Objects that touch share a
surface, but their cores stay apart. On the way back every connected piece of core becomes an object and grows over the
border around it by a watershed (`grow_objects`), so that outlines are those of the classes, not of the cores.

What becomes of a connected piece of foreground (core and border) depends on that piece alone. Hence `ObjectRows`, which
sees an image a few rows at a time and finishes a piece once it has all of it, gives the same objects with the same
numbers as the whole image at once, and needs memory for the pieces that are not complete.

The classes are those of Caicedo et al. (Nature Methods 2019, the 2018 Data Science Bowl) and Isensee and Maier-Hein
(nnU-Net in the Cell Tracking Challenge, 2021); here, the border of an object smaller than it is wide is half its depth.
"""

import math

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from autoseg.imaging.geometry import Vector3

CORE, BORDER = 1, 2
MOST_OF_DEPTH = 0.5  # of an object's greatest depth that is border at most: every object has a core
BAND_VOXELS = 2**24  # an image is grown in bands of about so many voxels
_FACES = ndimage.generate_binary_structure(3, 1)


def split_objects(objects: np.ndarray, width: float, spacing: Vector3 = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Split every object into core and border.

    A voxel's depth is its distance from the nearest voxel of another object or of the background; the edge of the image
    is neither. Along an axis whose spacing exceeds the width, a step counts as the width: the outermost voxels of an
    object are border along every axis.

    Args:
        objects: (Z, Y, X) whole numbers, 0 is background.
        width: depth in mm to which voxels are border; 0 leaves none.
        spacing: mm along (Z, Y, X).

    Returns:
        (Z, Y, X) uint8: 0, CORE or BORDER.
    """
    numbers, compact = np.unique(objects, return_inverse=True)
    compact = compact.reshape(objects.shape) + (0 if numbers.size and numbers[0] == 0 else 1)
    classes = np.where(objects != 0, np.uint8(BORDER), np.uint8(0))
    steps = [min(step, width) if width else step for step in spacing]
    for number, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        around = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, objects.shape, strict=True))
        mask = compact[around] == number
        if mask.all():  # it fills the image
            classes[around] = CORE
            continue
        depth = ndimage.distance_transform_edt(mask, sampling=steps)
        classes[around][depth > min(width, MOST_OF_DEPTH * depth.max())] = CORE
    return classes


def grow_objects(
    classes: np.ndarray, spacing: Vector3 = (1.0, 1.0, 1.0), *, smallest: float = 0.0, first: int = 1, axis: int = 0
) -> tuple[np.ndarray, int]:
    """Grow every piece of core over the border around it.

    Pieces are connected through faces. Where a piece of foreground has several cores, a watershed floods it by the
    distance from them, so that objects meet half-way. Of several cores, those smaller than `smallest` make no object. A
    piece without any core is an object, too.

    Args:
        classes: (Z, Y, X) of 0, CORE and BORDER.
        spacing: mm along (Z, Y, X).
        smallest: mm³; smaller pieces of foreground become background.
        first: number of the first object.
        axis: objects are numbered by the last row along this axis of their piece of foreground, then in raster order.

    Returns:
        (Z, Y, X) int32, and the number after the last object's.
    """
    pieces, _ = ndimage.label(classes != 0, structure=_FACES)
    boxes = ndimage.find_objects(pieces)
    least = smallest / math.prod(spacing)  # voxels
    sizes = np.bincount(pieces.ravel(), minlength=len(boxes) + 1)
    seeds, cores = ndimage.label(classes == CORE, structure=_FACES)
    core_sizes = np.bincount(seeds.ravel(), minlength=cores + 1)
    owner = np.zeros(cores + 1, dtype=np.int64)  # the piece of each core
    owner[seeds[seeds != 0]] = pieces[seeds != 0]
    big = np.flatnonzero(core_sizes[1:] >= max(least, 1)) + 1
    several = np.bincount(owner[big], minlength=len(boxes) + 1) > 1
    number_of = np.zeros(len(boxes) + 1, dtype=np.int32)  # of each piece that is one object
    grown: list[tuple[tuple[slice, ...], np.ndarray, np.ndarray]] = []
    for piece in sorted(range(1, len(boxes) + 1), key=lambda piece: (boxes[piece - 1][axis].stop, piece)):
        if sizes[piece] < least:
            continue
        if not several[piece]:
            number_of[piece] = first
            first += 1
            continue
        around = boxes[piece - 1]
        inside = pieces[around] == piece
        chosen = np.where(inside & np.isin(seeds[around], big), seeds[around], 0)
        flooded, objects = _flooded(inside, chosen, spacing)
        grown.append((around, inside, flooded + (first - 1)))
        first += objects
    result = number_of[pieces]
    for around, inside, numbers in grown:
        result[around][inside] = numbers[inside]
    return result, first


def _flooded(piece: np.ndarray, seeds: np.ndarray, spacing: Vector3) -> tuple[np.ndarray, int]:
    """Divide a piece (bool) among its seeds: numbers 1 to n in the order of the seeds, and n."""
    numbers, markers = np.unique(seeds, return_inverse=True)
    markers = markers.reshape(seeds.shape)
    distance = ndimage.distance_transform_edt(markers == 0, sampling=spacing)
    return watershed(distance, markers, mask=piece), len(numbers) - 1


def grow_in_bands(
    classes: np.ndarray, spacing: Vector3 = (1.0, 1.0, 1.0), *, smallest: float = 0.0
) -> tuple[np.ndarray, int]:
    """The same objects as those of `grow_objects`, in the memory of a band of rows; and how many there are.

    Args:
        classes: (Z, Y, X) of 0, CORE and BORDER.
    """
    axis = 1 if len(classes) == 1 else 0
    rows = ObjectRows(spacing, smallest=smallest, axis=axis)
    objects = np.zeros(classes.shape, dtype=np.int32)
    extent, done = classes.shape[axis], 0
    band = max(1, BAND_VOXELS * extent // max(1, classes.size))
    for start in range(0, extent, band):
        stop = min(start + band, extent)
        found = rows.take(classes[along(axis, start, stop)], last=stop == extent)
        objects[along(axis, done, done + found.shape[axis])] = found
        done += found.shape[axis]
    return objects, rows.count


def along(axis: int, start: int, stop: int) -> tuple[slice, slice, slice]:
    """The index of some rows along an axis of a (Z, Y, X) array."""
    z, y, x = (slice(start, stop) if axis == i else slice(None) for i in range(3))
    return z, y, x


def classes_of(values: np.ndarray, core: int, border: int) -> np.ndarray:
    """CORE where an array has one value, BORDER where it has the other, 0 elsewhere; uint8."""
    return (values == core) * np.uint8(CORE) + (values == border) * np.uint8(BORDER)


class ObjectRows:
    """Grows the objects of an image of which a few rows are seen at a time; see `grow_objects`.

    Args:
        axis: along which rows follow each other: 0, or 1 for a picture whose only plane comes line by line.
    """

    def __init__(self, spacing: Vector3 = (1.0, 1.0, 1.0), *, smallest: float = 0.0, axis: int = 0) -> None:
        self._spacing, self._smallest, self._axis = spacing, smallest, axis
        self._classes: np.ndarray | None = None  # rows that are not handed back, without the pieces that are grown
        self._objects: np.ndarray | None = None  # int32 of the same rows: the objects that are grown
        self._next = 1

    @property
    def count(self) -> int:
        """Objects so far."""
        return self._next - 1

    def take(self, classes: np.ndarray, *, last: bool = False) -> np.ndarray:
        """Use the next rows, and return those that are finished: (rows, Y, X) int32, in order, possibly none.

        Args:
            classes: (rows, Y, X) of 0, CORE and BORDER (rows along `axis`).
            last: whether the image ends here; all rows are then returned.
        """
        pending, objects = self._joined(classes)
        unfinished = np.zeros(pending.shape, dtype=bool)
        if not last:
            pieces, _ = ndimage.label(pending != 0, structure=_FACES)
            frontier = np.unique(pieces.take([-1], axis=self._axis))
            unfinished = np.isin(pieces, frontier[frontier != 0])
        grown, self._next = grow_objects(
            np.where(unfinished, 0, pending), self._spacing, smallest=self._smallest, first=self._next, axis=self._axis
        )
        objects += grown
        rows = np.flatnonzero(unfinished.any(axis=tuple(a for a in range(3) if a != self._axis)))
        done = int(rows[0]) if rows.size else pending.shape[self._axis]
        finished, self._objects = np.split(objects, [done], axis=self._axis)
        self._classes = np.split(np.where(unfinished, pending, 0), [done], axis=self._axis)[1]
        return finished

    def _joined(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is pending with further rows, and the objects in it."""
        classes, objects = classes.astype(np.uint8), np.zeros(classes.shape, dtype=np.int32)
        if self._classes is None or self._objects is None:
            return classes, objects
        return (
            np.concatenate([self._classes, classes], axis=self._axis),
            np.concatenate([self._objects, objects], axis=self._axis),
        )
