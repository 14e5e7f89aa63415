"""The labels of a dataset: their values in the files, and what the network predicts for them.

A *label* is a named value in a label file. A *region* is a named union of labels with one output head of its own (whole
tumour = oedema + core). The *ignore label* marks voxels that are not annotated: neither training nor scores use them.

Files may hold any values, with gaps (0, 1, 4 or 0, 255). Inside, voxels hold *class indices*: 0 is background, then
1..n in ascending order of value; ignored voxels hold n + 1. `OUTSIDE` (-1) marks background voxels outside the imaged
body. With regions, the heads are sigmoid channels, one per region; without, they are softmax channels 0..n.

A *thing* is a kind of objects that are separated, such as nuclei; other labels are *stuff*. A thing is two labels, the
core and the border of its objects (`imaging.objects`). Label files then hold instance maps: a number per object where
there is one thing and no other label; otherwise `value x divisor + object`, with the plain value for stuff (the
convention of Cityscapes, whose divisor is 1000).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from autoseg.errors import DataError, UsageError
from autoseg.imaging.geometry import Vector3
from autoseg.imaging.objects import BORDER, classes_of, grow_in_bands, split_objects
from autoseg.imaging.regions import order_that_works
from autoseg.rules import Rule, anything, between

OUTSIDE = -1
Name = Annotated[str, anything("any text")]
FileValue = Annotated[int, between(-(2**31), 2**31 - 1)]  # what a label file may hold: int32
LabelValue = Annotated[int, between(1, 2**31 - 1)]
Colour = Annotated[str, Rule(lambda text: bool(re.fullmatch("#[0-9a-f]{6}", text)), 'a colour such as "#ff0000"')]


UNIT: Vector3 = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Thing:
    """A kind of objects that are separated: the labels of their cores and borders."""

    core: LabelValue  # in files with a divisor, the value of the thing
    border: LabelValue
    border_mm: Annotated[float, between(0, 1e6)] = 0.0  # width of the border
    smallest_mm3: Annotated[float, between(0, 1e18)] = 0.0  # smaller objects are not written


@dataclass(frozen=True)
class LabelSet:
    """Names and values of the foreground labels, in ascending order of value."""

    values: dict[Name, LabelValue]  # label name -> value in the files, without background and ignore
    regions: dict[Name, tuple[LabelValue, ...]] = field(default_factory=dict)  # region name -> values of its labels
    region_values: tuple[
        Annotated[int, between(0, 2**31 - 1)], ...
    ] = ()  # the value each region writes, in writing order (later overwrites)
    ignore: FileValue | None = None  # value in the files
    aliases: dict[FileValue, FileValue] = field(
        default_factory=dict
    )  # other values found in files -> the value they mean
    colours: dict[Colour, LabelValue] = field(default_factory=dict)  # in files -> the value it means; empty: by value
    things: dict[Name, Thing] = field(default_factory=dict)  # their cores and borders are among `values`
    divisor: Annotated[int, between(0, 10**6)] = 0  # of values in files; 0: every value is an object of the only thing

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.values.items(), key=lambda item: item[1]))
        object.__setattr__(self, "values", ordered)
        if not ordered:
            raise UsageError("there is no foreground label", remedy="name at least one: --labels liver=1")
        if 0 in ordered.values() or any(value < 0 for value in ordered.values()):
            raise UsageError(f"label values must be positive, found {ordered}", remedy="0 is always background")
        if any(value >= 2**31 for value in ordered.values()):
            raise UsageError(f"label values must be below {2**31}, found {ordered}", remedy="use smaller values")
        if len(set(ordered.values())) != len(ordered):
            raise UsageError(f"two labels share a value: {ordered}", remedy="give each label a value of its own")
        if self.ignore in ordered.values():
            raise UsageError(f"the ignore value {self.ignore} is also a label", remedy="choose another value")
        if self.ignore == 0:
            raise UsageError(
                "the ignore value is 0", remedy="0 is always background: mark ignored voxels with another value"
            )
        unknown = {v for union in self.regions.values() for v in union} - set(ordered.values())
        if unknown:
            raise UsageError(
                f"regions contain the values {sorted(unknown)}, which belong to no label", remedy=f"labels: {ordered}"
            )
        if empty := [name for name, union in self.regions.items() if not union]:
            raise UsageError(f"region {empty[0]!r} contains no labels", remedy=f"labels: {ordered}")
        if len(self.region_values) != len(self.regions):
            raise UsageError(
                f"{len(self.regions)} regions but {len(self.region_values)} values to write for them: "
                "regions_class_order lists the value that each region writes, later ones over earlier ones",
                remedy=order_that_works(self.regions) if self.regions else "remove regions_class_order",
            )
        if strange := sorted(set(self.region_values) - set(ordered.values()) - {0}):
            raise UsageError(
                f"regions_class_order writes the values {strange}, which belong to no label",
                remedy=f"labels: {ordered}",
            )
        own = {0, *ordered.values(), *(() if self.ignore is None else (self.ignore,))}
        for alias, value in self.aliases.items():
            if alias in own or value not in own:
                raise UsageError(
                    f"{alias} cannot stand for {value}: the values with a meaning are {sorted(own)}",
                    remedy="map a value without a meaning to one that has a meaning",
                )
        if self.things and self.regions:
            raise UsageError(
                f"{', '.join(self.things)} cannot be separated in regions: a region is a union of labels",
                remedy="give --instances or --regions, not both",
            )
        if lost := [name for name, t in self.things.items() if not {t.core, t.border} <= {*ordered.values()}]:
            raise UsageError(f"the core or the border of {lost[0]!r} is not among the labels", remedy=f"{ordered}")
        if self.divisor and self.divisor <= max(ordered.values()):
            raise UsageError(
                f"the divisor {self.divisor} does not exceed the label values {ordered}",
                remedy="choose a larger one: --divisor 1000",
            )
        if self.things and not self.divisor and (len(self.things) > 1 or len(ordered) > 2):
            raise UsageError("without a divisor, there is one thing and no other label", remedy="pass --divisor 1000")

    @property
    def has_regions(self) -> bool:
        return bool(self.regions)

    @property
    def num_labels(self) -> int:
        """Number of foreground labels, n."""
        return len(self.values)

    @property
    def num_heads(self) -> int:
        """Number of output channels K of the network: n + 1 softmax channels, or one sigmoid channel per region."""
        return len(self.regions) if self.has_regions else self.num_labels + 1

    @property
    def ignore_index(self) -> int | None:
        """Class index of ignored voxels, n + 1, or None."""
        return None if self.ignore is None else self.num_labels + 1

    @property
    def regions_as_indices(self) -> tuple[tuple[int, ...], ...]:
        """For each region the class indices it contains; empty without regions."""
        index = {value: i for i, value in enumerate(self.values.values(), start=1)}
        return tuple(tuple(index[v] for v in union) for union in self.regions.values())

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """What evaluation reports: name -> class indices; the regions if there are any, otherwise each label.

        Of a thing: its foreground, and the cores alone, which show whether objects are separated.
        """
        if self.has_regions:
            return dict(zip(self.regions, self.regions_as_indices, strict=True))
        index = {value: i for i, value in enumerate(self.values.values(), start=1)}
        borders = {thing.border for thing in self.things.values()}
        whole = {name: (index[thing.core], index[thing.border]) for name, thing in self.things.items()}
        return whole | {name: (index[value],) for name, value in self.values.items() if value not in borders}

    @property
    def stuff(self) -> dict[str, int]:
        """The labels without objects, name -> value, where others have some; empty where none has."""
        halves = {value for thing in self.things.values() for value in (thing.core, thing.border)}
        return {name: value for name, value in self.values.items() if value not in halves} if self.things else {}

    @property
    def core_indices(self) -> list[int]:
        """Class indices of the cores of things."""
        index = {value: i for i, value in enumerate(self.values.values(), start=1)}
        return [index[thing.core] for thing in self.things.values()]

    def as_regions(self) -> "LabelSet":
        """The same labels with one sigmoid head each: every label becomes a region of its own."""
        if self.has_regions:
            return self
        regions: dict[str, tuple[int, ...]] = {name: (value,) for name, value in self.values.items()}
        return replace(self, regions=regions, region_values=tuple(self.values.values()))

    def to_indices(self, file_values: np.ndarray, spacing: Vector3 = UNIT) -> np.ndarray:
        """Class indices (int16) of an integer label map read from a file; same shape.

        Args:
            file_values: (Z, Y, X) where there are things, of any shape otherwise.
            spacing: mm along (Z, Y, X): the borders of things have a width.

        Raises:
            ValueError: a value that is neither 0, a label, an alias nor the ignore value; see `unexpected`.
        """
        if unexpected := self.unexpected(file_values):
            raise ValueError(f"unexpected label values {unexpected}")
        table = self._table()
        keys = np.array(sorted(table))
        meant = np.array([table[k] for k in keys], dtype=np.int16)
        indices = meant[np.searchsorted(keys, self.without_objects(file_values))]
        for name, thing in self.things.items():
            classes = split_objects(self.objects(name, file_values), thing.border_mm, spacing)
            indices[classes == BORDER] = table[thing.border]
        return indices

    def unexpected(self, file_values: np.ndarray) -> dict[int, int]:
        """Undeclared values of an integer label map, with their voxel counts."""
        assert np.issubdtype(file_values.dtype, np.integer), file_values.dtype
        found, counts = np.unique(file_values, return_counts=True)
        table = self._table()
        for thing in self.things.values():  # is derived, and in no file
            table.pop(thing.border)
        meant = self.without_objects(found)
        return {int(v): int(c) for v, m, c in zip(found, meant, counts, strict=True) if int(m) not in table}

    def declared(self, file_values: Iterable[int]) -> set[int]:
        """The values of the labels that values of a file mean; of a thing, those of its core and border."""
        found = {int(v) for v in self.without_objects(np.array([*file_values], dtype=np.int64))}
        found = {self.aliases.get(value, value) for value in found} & {*self.values.values()}
        return found | {thing.border for thing in self.things.values() if thing.core in found}

    def objects(self, thing: str, file_values: np.ndarray) -> np.ndarray:
        """The instance map of a thing in a label map read from a file: numbers as in the file, 0 elsewhere."""
        return np.where(self.without_objects(file_values) == self.things[thing].core, file_values, 0)

    def without_objects(self, file_values: np.ndarray) -> np.ndarray:
        """The values of labels in a label map, without the numbers of objects."""
        if not self.things:
            return file_values
        if not self.divisor:
            (thing,) = self.things.values()
            named = file_values > 0 if self.ignore is None else (file_values > 0) & (file_values != self.ignore)
            return np.where(named, thing.core, file_values)
        return np.where(file_values >= self.divisor, file_values // self.divisor, file_values)

    def to_file_values(self, indices: np.ndarray, spacing: Vector3 = UNIT) -> np.ndarray:
        """Values to write for class indices 0..n; the smallest unsigned dtype that holds them.

        Objects of things are grown from their cores (`imaging.objects.grow_objects`), and numbered from 1 in each.

        Args:
            indices: (Z, Y, X) where there are things, of any shape otherwise.
            spacing: mm along (Z, Y, X).

        Raises:
            DataError: there are more objects of a thing than the divisor leaves numbers for.
        """
        assert not indices.size or indices.min() >= 0, "OUTSIDE cannot be written"  # as an index it would mean the last
        values = np.array([0, *self.values.values()])
        written = values.astype(np.min_scalar_type(int(values.max())))[indices]
        for name, thing in self.things.items():
            classes = classes_of(written, thing.core, thing.border)
            objects, count = grow_in_bands(classes, spacing, smallest=thing.smallest_mm3)
            self.require_numbers(name, count)
            numbers = self.numbered(name, objects)
            written = written.astype(np.promote_types(written.dtype, np.min_scalar_type(int(numbers.max(initial=0)))))
            written[classes > 0] = 0
            written += numbers.astype(written.dtype)
        return written

    def numbered(self, thing: str, objects: np.ndarray) -> np.ndarray:
        """What files hold for objects 1, 2, ... of a thing: int64, 0 elsewhere; no object has the ignore value."""
        numbers = objects.astype(np.int64)
        if self.divisor:
            numbers += self.things[thing].core * self.divisor
        elif self.ignore is not None and self.ignore > 0:
            numbers += numbers >= self.ignore
        return np.where(objects > 0, numbers, 0)

    def require_numbers(self, thing: str, count: int) -> None:
        """Refuse more objects of a thing than label files can number. Raises DataError."""
        if self.divisor and count >= self.divisor:
            raise DataError(
                f"{count} objects of {thing}, but the divisor {self.divisor} leaves numbers for {self.divisor - 1}",
                remedy=f"plan with a larger one: --divisor {10 ** len(str(count))}, in label files, too",
            )

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Class indices (uint8 or uint16) from probabilities (K, ...): argmax, or regions > 0.5 in writing order."""
        dtype = np.min_scalar_type(self.num_labels)
        if not self.has_regions:
            return probabilities.argmax(axis=0).astype(dtype)
        decided = np.zeros(probabilities.shape[1:], dtype=dtype)
        for probability, index in zip(probabilities, self.region_indices, strict=True):
            decided[probability > 0.5] = index
        return decided

    @property
    def region_indices(self) -> tuple[int, ...]:
        """The class index each region writes, in writing order."""
        index = {0: 0} | {value: i for i, value in enumerate(self.values.values(), start=1)}
        return tuple(index[value] for value in self.region_values)

    def _table(self) -> dict[int, int]:
        table = {0: 0} | {value: i for i, value in enumerate(self.values.values(), start=1)}
        if self.ignore is not None:
            table[self.ignore] = self.num_labels + 1
        return table | {alias: table[value] for alias, value in self.aliases.items()}
