"""Outlines as label maps: which values objects become, and which object is kept where several are.

    Meaning   which values objects become
    draw      outlines of one image -> a label map

Where nobody annotated single objects (`iscrowd`, the label "ignore"), pixels get the ignore value, unless an object is
drawn there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.dicom_labels import same_name
from autoseg.imaging.formats.outlines import Filled, Outline, Shape2, fill, is_background
from autoseg.imaging.geometry import Remark
from autoseg.messages import counted, some

NOT_ANNOTATED, BACKGROUND = -1, -2  # codes of pixels while an image is drawn; 0: no object is there
EXPORT = "correct it, or export the labels again"
SLACK = 1.5  # pixels that an outline may reach beyond its image without a remark: hands draw to the edge and over it
KEPT = 2**28  # pixels of boxes of one image that are kept in memory; beyond, objects are filled a second time


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


def draw(outlines: Sequence[Outline], shape: Shape2, meaning: Meaning, where: str) -> Drawing:
    """Draw the outlines of one image.

    Objects that no pixel is left of have no number: numbers have no gaps.

    Args:
        where: file and image, for messages.

    Raises:
        DataError: all objects lie outside the image, or there are more than can be numbered.
    """
    value_of = {name: meaning.value(name) for name in {outline.name for outline in outlines}}
    things = {name for name in value_of if meaning.is_thing(name)}
    wanted = [one for one in outlines if one.not_annotated or one.name in things or value_of[one.name] is not None]
    found, remarks = _found(wanted, shape, where)
    plain = [one for one in found if one.outline.not_annotated or one.outline.name not in things]
    plain.sort(key=lambda one: (not one.outline.not_annotated, -one.pixels))
    objects = [one for one in found if not one.outline.not_annotated and one.outline.name in things]
    written = sorted({value for value in value_of.values() if value})
    code_of = {0: BACKGROUND} | {value: code for code, value in enumerate(written, start=1)}
    first = 1 + len(written)
    layer, overlapping = _Layer(shape, with_sizes=bool(objects)), 0
    for one in plain:
        code = NOT_ANNOTATED if one.outline.not_annotated else code_of[value_of[one.outline.name] or 0]
        common = one.write(layer, code)
        overlapping += common if code > 0 else 0
    if objects:
        above = _Layer(shape, with_sizes=True)
        overlapping += sum(one.write(above, code) for code, one in enumerate(objects, start=first))
        layer = above.over(layer)
    array = layer.codes
    left = np.unique(array[array >= first]) - first
    seen = [objects[place].outline for place in left.tolist()]
    numbers = meaning.numbers([outline.name for outline in seen], where)
    table = np.concatenate([np.array([0, *written], dtype=np.int64), np.zeros(len(objects), dtype=np.int64)])
    table[left + first] = numbers
    labelled = int(np.count_nonzero(array > 0))
    rule = "the later object is kept" if objects else "the label of the smaller object is kept"
    remarks += _overlaps(overlapping, labelled, len(objects) - len(left), rule)
    unknown = array == NOT_ANNOTATED
    array = table[np.maximum(array, 0)].astype(np.int32)
    pixels = int(np.count_nonzero(unknown))
    if pixels and meaning.ignore is None:
        what = f"{counted(pixels, 'pixel')} that nobody annotated (crowds) count as background"
        remarks.append(Remark("crowds", what, "name a value for them: --ignore 255"))
    elif meaning.ignore is not None:
        array[unknown] = meaning.ignore
    return Drawing(array, tuple(remarks), tuple(seen), tuple(numbers))


class _Layer:
    """An image while it is drawn: codes, and how large the object is that each pixel belongs to."""

    def __init__(self, shape: Shape2, *, with_sizes: bool) -> None:
        self.codes = np.zeros(shape, dtype=np.int32)
        self.sizes = np.zeros(shape, dtype=np.int64) if with_sizes else None

    def over(self, other: "_Layer") -> "_Layer":
        """This layer with the objects of another one below it, but above where they are smaller."""
        assert self.sizes is not None
        assert other.sizes is not None
        smaller = (other.codes != 0) & (other.codes != NOT_ANNOTATED) & (other.sizes < self.sizes)
        self.codes = np.where((self.codes == 0) | smaller, other.codes, self.codes)
        return self


@dataclass(eq=False)
class _Found:
    """An object that has pixels."""

    outline: Outline
    shape: Shape2
    pixels: int
    filled: Filled | None  # None: too much to be kept

    def write(self, layer: "_Layer", code: int) -> int:
        """Write a code into its pixels; returns how many had another one above 0."""
        row, column, mask = self.filled or fill(self.outline, self.shape) or (0, 0, np.zeros((0, 0), dtype=bool))
        window = slice(row, row + mask.shape[0]), slice(column, column + mask.shape[1])
        codes = layer.codes[window]
        others = mask & (codes > 0) & (codes != code)
        codes[mask] = code
        if layer.sizes is not None:
            layer.sizes[window][mask] = self.pixels
        return int(np.count_nonzero(others))


def _found(outlines: Sequence[Outline], shape: Shape2, where: str) -> tuple[list[_Found], list[Remark]]:
    """The objects that have pixels, and what is odd about where the others lie."""
    found: list[_Found] = []
    outside: list[Outline] = []
    tiny: list[Outline] = []
    reaching, kept = 0, 0
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
