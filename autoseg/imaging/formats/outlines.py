"""Objects that are drawn as outlines, as label maps: what COCO, labelme and GeoJSON files have in common.

    Outline         one object: the name of its label, and the parts that it consists of
    Meaning         which values objects become
    draw            outlines -> a label map
    fill            one object -> the box that it lies in, and its pixels there

The pixel [row, column] is the square from (column, row) to (column + 1, row + 1), as in COCO, labelme and QuPath. It
belongs to a polygon if its centre does, by the even-odd rule; a centre exactly on a left or upper edge does, on a right
or lower edge it does not. The parts of an object are united. Where nobody annotated single objects (`iscrowd`, the
label "ignore"), pixels get the ignore value, unless an object is drawn there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.contours import Polygon, inside
from autoseg.imaging.formats.dicom_labels import same_name
from autoseg.imaging.formats.run_lengths import decode
from autoseg.imaging.geometry import Remark
from autoseg.messages import counted, some

NOT_ANNOTATED = -1  # pixels that nobody annotated, while an image is drawn
IGNORE_NAMES = ("ignore", "ignore*", "__ignore__")  # names that mean so, in any case; the last two of QuPath, labelme
BACKGROUND_NAMES = ("background", "_background_", "__background__")
FARTHEST = 1e7  # pixels: a coordinate beyond is damaged
EXPORT = "correct it, or export the labels again"
SLACK = 1.5  # pixels that an outline may reach beyond its image without a remark: hands draw to the edge and over it
KEPT = 2**28  # pixels of boxes of one image that are kept in memory; beyond, objects are filled a second time
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


@dataclass(frozen=True)
class Meaning:
    """Which values objects become.

    With things, each of their objects has a number of its own: 1, 2, ... in the order of the file, or, with a divisor,
    the value of its label times the divisor plus the number, which then begins with 1 for each label. Later objects
    lie over earlier ones. Without, objects become the value of their label, and smaller ones lie over larger ones.
    """

    values: Mapping[str, int]  # label name -> value; objects of other names are left out
    ignore: int | None = None  # the value of what nobody annotated; None: it is background
    things: Mapping[str, int] = field(default_factory=dict)  # name of objects that are numbered -> value of its label
    divisor: int = 0

    def value(self, name: str) -> int | None:
        """The value of a label, 0 of the background; None where it is left out."""
        if is_background(name):
            return 0
        if self.things and not self.divisor:  # values are numbers of objects
            return None
        return next((value for other, value in self.values.items() if same_name(name, other)), None)

    def is_thing(self, name: str) -> bool:
        return any(same_name(name, other) for other in self.things)

    def numbers(self, names: Sequence[str], where: str) -> list[int]:
        """Values of objects with these names. Raises DataError where there are more than numbers."""
        most = self.divisor or (2**31 if self.ignore is None else self.ignore)
        kinds = {name: next(v for other, v in self.things.items() if same_name(name, other)) for name in set(names)}
        counts = dict.fromkeys(kinds.values() if self.divisor else (0,), 0)
        found = []
        for name in names:
            kind = kinds[name] if self.divisor else 0
            counts[kind] += 1
            found.append(kind * self.divisor + counts[kind])
        if found and max(counts.values()) >= most:
            option = "--divisor" if self.divisor else "--ignore"
            raise DataError(
                f"{where}: {max(counts.values())} objects, expected fewer than {most}",
                remedy=f"choose a larger {option}",
            )
        return found


@dataclass(frozen=True, eq=False)
class Drawing:
    """Outlines as pixels."""

    array: np.ndarray  # (rows, columns) int32
    remarks: tuple[Remark, ...]
    objects: tuple[Outline, ...] = ()  # those with numbers of their own that have pixels
    values: tuple[int, ...] = ()  # of these objects


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


def draw(outlines: Sequence[Outline], shape: Shape2, meaning: Meaning, where: str) -> Drawing:
    """Draw the outlines of one image.

    Objects that no pixel is left of have no number: numbers have no gaps.

    Args:
        where: file and image, for messages.

    Raises:
        DataError: all objects lie outside the image, or there are more than can be numbered.
    """
    array = np.zeros(shape, dtype=np.int32)
    value_of = {name: meaning.value(name) for name in {outline.name for outline in outlines}}
    things = {name for name in value_of if meaning.is_thing(name)}
    wanted = [one for one in outlines if one.not_annotated or one.name in things or value_of[one.name] is not None]
    found, remarks = _found(wanted, shape, where)
    plain = [one for one in found if one.outline.not_annotated or one.outline.name not in things]
    plain.sort(key=lambda one: (not one.outline.not_annotated, -one.pixels))
    objects = [one for one in found if not one.outline.not_annotated and one.outline.name in things]
    written = sorted({value for value in value_of.values() if value})
    code_of = {value: code for code, value in enumerate((0, *written))}
    overlapping = 0
    for one in plain:
        value = value_of[one.outline.name]
        code = NOT_ANNOTATED if one.outline.not_annotated else code_of[value or 0]
        common = one.write(array, code)
        overlapping += common if code > 0 else 0
    first = len(code_of)
    overlapping += sum(one.write(array, code, over=first) for code, one in enumerate(objects, start=first))
    left = np.unique(array[array >= first]) - first
    seen = [objects[place].outline for place in left.tolist()]
    numbers = meaning.numbers([outline.name for outline in seen], where)
    table = np.concatenate([np.array([0, *written], dtype=np.int64), np.zeros(len(objects), dtype=np.int64)])
    table[left + first] = numbers
    labelled = int(np.count_nonzero(array > 0))
    rule = "the later object is kept" if objects else "the label of the smaller object is kept"
    remarks += _overlaps(overlapping, labelled, len(objects) - len(left), rule)
    unknown = array == NOT_ANNOTATED
    array = np.where(unknown, 0, table[array]).astype(np.int32)
    if (pixels := int(np.count_nonzero(unknown))) and meaning.ignore is None:
        what = f"{counted(pixels, 'pixel')} that nobody annotated (crowds) count as background"
        remarks.append(Remark("crowds", what, "name a value for them: --ignore 255"))
    elif pixels:
        array[unknown] = meaning.ignore
    return Drawing(array, tuple(remarks), tuple(seen), tuple(numbers))


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


@dataclass(eq=False)
class _Found:
    """An object that has pixels."""

    outline: Outline
    shape: Shape2
    pixels: int
    filled: Filled | None  # None: too much to be kept

    def write(self, array: np.ndarray, value: int, over: int = 1) -> int:
        """Write a value into its pixels; returns how many had another value of `over` or more."""
        row, column, mask = self.filled or fill(self.outline, self.shape) or (0, 0, array[:0, :0] > 0)
        window = array[row : row + mask.shape[0], column : column + mask.shape[1]]
        others = mask & (window >= over) & (window != value)
        window[mask] = value
        return int(np.count_nonzero(others))


def _found(outlines: Sequence[Outline], shape: Shape2, where: str) -> tuple[list[_Found], list[Remark]]:
    """The objects that have pixels, and what is odd about where the others lie."""
    found: list[_Found] = []
    reaching, outside, tiny, kept = 0, [], [], 0
    for outline in outlines:
        try:
            one = fill(outline, shape)
        except ValueError as error:
            raise DataError(f"{where}: the object {outline.name!r} cannot be drawn: {error}", remedy=EXPORT) from None
        beyond = _beyond(outline, shape)
        if one is None:
            (outside if beyond == "all" else tiny).append(outline)
            continue
        reaching += beyond != ""
        kept += one[2].size
        found.append(_Found(outline, shape, int(np.count_nonzero(one[2])), one if kept <= KEPT else None))
    return found, _about_places(outlines, shape, where, (outside, tiny), reaching)


def _about_places(
    outlines: Sequence[Outline],
    shape: Shape2,
    where: str,
    lost: tuple[Sequence[Outline], Sequence[Outline]],
    reaching: int,
) -> list[Remark]:
    """Remarks on objects outside the image, smaller than a pixel, or beyond the edge.

    Raises:
        DataError: there are no others.
    """
    outside, tiny = lost
    if outside and len(outside) == len(outlines):
        raise DataError(f"{where}: {_all_outside(outside, shape)}", remedy="pair them with their own image")
    if len(tiny) == len(outlines) > 1 and _unit_square(outlines):
        raise DataError(
            f"{where}: all coordinates lie between 0 and 1, expected pixels", remedy="export coordinates in pixels"
        )
    size, total = f"{shape[1]} x {shape[0]}", len(outlines)
    remarks = []
    if outside:
        what = f"{counted(len(outside), 'object')} of {total} outside the image ({size}): not used"
        remarks.append(Remark("outlines outside", what, "check that they were drawn on this image"))
    if reaching:
        what = f"{counted(reaching, 'object')} of {total} beyond the edge of the image ({size}): cut off"
        remarks.append(Remark("outlines cut", what, "check that they were drawn on an image of this size"))
    if tiny:
        names = some(dict.fromkeys(outline.name for outline in tiny))
        what = f"{counted(len(tiny), 'object')} of {total} without the centre of any pixel ({names}): not used"
        remarks.append(Remark("empty outlines", what, "remove them, or draw them again"))
    return remarks


def _overlaps(pixels: int, labelled: int, covered: int, rule: str) -> list[Remark]:
    if not pixels:
        return []
    share = f"{pixels / max(labelled, 1):.2g}"
    what = f"{counted(pixels, 'pixel')} of {labelled} labelled ones ({share}) in several objects"
    if covered:
        what += f", {counted(covered, 'object')} covered by others entirely (drawn twice?)"
    return [Remark("overlap", f"{what}: {rule}", "check some of them in the program that drew them")]


def _beyond(outline: Outline, shape: Shape2) -> str:
    """Whether an object lies beyond its image: "all", "in part" or "" (not, or by less than `SLACK` pixels)."""
    if not outline.parts:
        return ""
    x0, y0, x1, y1 = np.array([part.extent() for part in outline.parts]).T
    if x0.min() >= shape[1] or y0.min() >= shape[0] or x1.max() <= 0 or y1.max() <= 0:
        return "all"
    low, right, bottom = min(x0.min(), y0.min()), x1.max() - shape[1], y1.max() - shape[0]
    return "in part" if max(-low, right, bottom) > SLACK else ""


def _all_outside(outlines: Sequence[Outline], shape: Shape2) -> str:
    extents = np.array([part.extent() for outline in outlines for part in outline.parts])
    (x0, y0), (x1, y1) = extents[:, :2].min(axis=0), extents[:, 2:].max(axis=0)
    return (
        f"all {counted(len(outlines), 'object')} lie outside the image of {shape[1]} x {shape[0]} pixels: from x "
        f"{x0:g} to {x1:g}, y {y0:g} to {y1:g}"
    )


def _unit_square(outlines: Sequence[Outline]) -> bool:
    extents = [part.extent() for outline in outlines for part in outline.parts]
    return bool(extents) and min(min(e) for e in extents) >= 0 and max(max(e) for e in extents) <= 1


def _box(extent: tuple[float, float, float, float], shape: Shape2) -> tuple[int, int, int, int]:
    """First row, first column, rows and columns of what an extent has in an image."""
    x0, y0, x1, y1 = extent
    row, column = min(max(math.floor(y0), 0), shape[0]), min(max(math.floor(x0), 0), shape[1])
    bottom, right = min(max(math.ceil(y1), row), shape[0]), min(max(math.ceil(x1), column), shape[1])
    return row, column, bottom - row, right - column
