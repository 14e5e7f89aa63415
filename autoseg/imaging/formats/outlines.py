"""Objects that are drawn as outlines: what COCO, labelme and GeoJSON files have in common.

    Outline   one object: the name of its label, and the parts that it consists of
    polygon   numbers of a file -> a polygon
    fill      one object -> the box that it lies in, and its pixels there

The pixel [row, column] is the square from (column, row) to (column + 1, row + 1), as in COCO, labelme and QuPath. It
belongs to a polygon if its centre does, by the even-odd rule; a centre exactly on a left or upper edge does, on a right
or lower edge it does not. The parts of an object are united.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.formats.contours import Polygon, inside
from autoseg.imaging.formats.run_lengths import decode

IGNORE_NAMES = ("ignore", "ignore*", "__ignore__")  # names that mean so, in any case; the last two of QuPath, labelme
BACKGROUND_NAMES = ("background", "_background_", "__background__")
FARTHEST = 1e7  # pixels: a coordinate beyond is damaged
Shape2 = tuple[int, int]
Filled = tuple[int, int, np.ndarray]  # first row and column of a box, and the pixels in it


@dataclass(frozen=True, eq=False)
class Rings:
    """A polygon: its outer line, and the lines around its holes."""

    lines: tuple[Polygon, ...]

    def extent(self) -> tuple[float, float, float, float]:
        points = np.concatenate(self.lines)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def fill(self, shape: Shape2) -> Filled:
        box = _box(self.extent(), shape)
        mask = np.zeros(box[2:], dtype=bool)
        for line in self.lines:
            mask ^= inside(line - (box[1] + 0.5, box[0] + 0.5), box[2:])
        return box[0], box[1], mask


@dataclass(frozen=True)
class Disc:
    """A circle."""

    x: float
    y: float
    radius: float

    def extent(self) -> tuple[float, float, float, float]:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius

    def fill(self, shape: Shape2) -> Filled:
        box = _box(self.extent(), shape)
        rows = np.arange(box[2])[:, None] + box[0] + 0.5 - self.y
        columns = np.arange(box[3]) + box[1] + 0.5 - self.x
        return box[0], box[1], rows**2 + columns**2 <= self.radius**2


@dataclass(frozen=True, eq=False)
class Patch:
    """Pixels of a box."""

    row: int
    column: int
    mask: np.ndarray  # (rows, columns) bool

    def extent(self) -> tuple[float, float, float, float]:
        rows, columns = self.mask.shape
        return self.column, self.row, self.column + columns, self.row + rows

    def fill(self, shape: Shape2) -> Filled:
        row, column, rows, columns = _box(self.extent(), shape)
        y, x = row - self.row, column - self.column
        return row, column, self.mask[max(y, 0) : y + rows, max(x, 0) : x + columns]


@dataclass(frozen=True, eq=False)
class Runs:
    """Run lengths of a whole image."""

    counts: tuple[int, ...]
    shape: Shape2

    def extent(self) -> tuple[float, float, float, float]:
        return 0.0, 0.0, float(self.shape[1]), float(self.shape[0])

    def fill(self, shape: Shape2) -> Filled:
        mask = decode(self.counts, shape)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return 0, 0, mask[:0, :0]
        return int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()


Part = Rings | Disc | Patch | Runs


@dataclass(frozen=True, eq=False)
class Outline:
    """One object. Without parts it is known to exist, but not where."""

    name: str
    parts: tuple[Part, ...]
    not_annotated: bool = False  # a place where nobody drew single objects
    number: int | None = None  # of the object that it is a slice of, in a volume


def polygon(numbers: Sequence[float]) -> Polygon:
    """Make a polygon of x, y, x, y, ...

    Raises:
        ValueError: they are not pairs of numbers; the message says what they are.
    """
    if len(numbers) % 2:
        raise ValueError(f"a polygon has an odd number of coordinates ({len(numbers)})")
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        strange = next(n for n in numbers if not isinstance(n, (int, float)) or isinstance(n, bool))
        raise ValueError(f"a coordinate is not a number: {str(strange)[:40]!r}")
    for number in numbers:
        if not abs(number) <= FARTHEST:
            raise ValueError(f"a coordinate is {str(number)[:20]}")
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def fill(outline: Outline, shape: Shape2) -> Filled | None:
    """The pixels of an object in its box; None where it has none.

    Raises:
        ValueError: run lengths that are not of this shape.
    """
    filled = [part.fill(shape) for part in outline.parts]
    filled = [one for one in filled if one[2].any()]
    if len(filled) < 2:
        return filled[0] if filled else None
    row, column = min(one[0] for one in filled), min(one[1] for one in filled)
    bottom, right = max(r + m.shape[0] for r, _, m in filled), max(c + m.shape[1] for _, c, m in filled)
    mask = np.zeros((bottom - row, right - column), dtype=bool)
    for r, c, one in filled:
        mask[r - row : r - row + one.shape[0], c - column : c - column + one.shape[1]] |= one
    return row, column, mask


def names_of(outlines: Sequence[Outline]) -> dict[str, int]:
    """Names of the labels -> 1, 2, ... in order of appearance; without background and what nobody annotated."""
    names = dict.fromkeys(outline.name for outline in outlines if not outline.not_annotated)
    return {name: i for i, name in enumerate((name for name in names if not is_background(name)), start=1)}


def is_ignored(name: str) -> bool:
    """Whether a label's name means that nobody annotated there."""
    return name.strip().lower() in IGNORE_NAMES


def is_background(name: str) -> bool:
    """Whether a label's name is that of the background."""
    return name.strip().lower() in BACKGROUND_NAMES


def _box(extent: tuple[float, float, float, float], shape: Shape2) -> tuple[int, int, int, int]:
    """First row, first column, rows and columns of what an extent has in an image."""
    x0, y0, x1, y1 = extent
    row, column = min(max(math.floor(y0), 0), shape[0]), min(max(math.floor(x0), 0), shape[1])
    bottom, right = min(max(math.ceil(y1), row), shape[0]), min(max(math.ceil(x1), column), shape[1])
    return row, column, bottom - row, right - column
