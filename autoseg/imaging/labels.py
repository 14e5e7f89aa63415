"""The labels of a dataset: their values in the files, and what the network predicts for them.

A *label* is a named value in a label file. A *region* is a named union of labels with one output head of its own (whole
tumour = oedema + core). The *ignore label* marks voxels that are not annotated: neither training nor scores use them.

Files may hold any values, with gaps (0, 1, 4 or 0, 255). Inside, voxels hold *class indices*: 0 is background, then
1..n in ascending order of value; ignored voxels hold n + 1. `OUTSIDE` (-1) marks background voxels outside the imaged
body. With regions, the heads are sigmoid channels, one per region; without, they are softmax channels 0..n.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np

from autoseg.errors import UsageError
from autoseg.imaging.regions import order_that_works
from autoseg.rules import Rule, anything, between

OUTSIDE = -1
Name = Annotated[str, anything("any text")]
FileValue = Annotated[int, between(-(2**31), 2**31 - 1)]  # what a label file may hold: int32
LabelValue = Annotated[int, between(1, 2**31 - 1)]
Colour = Annotated[str, Rule(lambda text: bool(re.fullmatch("#[0-9a-f]{6}", text)), 'a colour such as "#ff0000"')]


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
        """What evaluation reports: name -> class indices; the regions if there are any, otherwise each label."""
        if self.has_regions:
            return dict(zip(self.regions, self.regions_as_indices, strict=True))
        return {name: (i,) for i, name in enumerate(self.values, start=1)}

    def as_regions(self) -> "LabelSet":
        """The same labels with one sigmoid head each: every label becomes a region of its own."""
        if self.has_regions:
            return self
        regions: dict[str, tuple[int, ...]] = {name: (value,) for name, value in self.values.items()}
        return replace(self, regions=regions, region_values=tuple(self.values.values()))

    def to_indices(self, file_values: np.ndarray) -> np.ndarray:
        """Class indices (int16) of an integer label map read from a file; same shape.

        Raises:
            ValueError: a value that is neither 0, a label, an alias nor the ignore value; see `unexpected`.
        """
        if unexpected := self.unexpected(file_values):
            raise ValueError(f"unexpected label values {unexpected}")
        table = self._table()
        keys = np.array(sorted(table))
        return np.array([table[k] for k in keys], dtype=np.int16)[np.searchsorted(keys, file_values)]

    def unexpected(self, file_values: np.ndarray) -> dict[int, int]:
        """Undeclared values of an integer label map, with their voxel counts."""
        assert np.issubdtype(file_values.dtype, np.integer), file_values.dtype
        found, counts = np.unique(file_values, return_counts=True)
        table = self._table()
        return {int(v): int(c) for v, c in zip(found, counts, strict=True) if int(v) not in table}

    def to_file_values(self, indices: np.ndarray) -> np.ndarray:
        """Values to write for class indices 0..n; the smallest unsigned dtype that holds them."""
        assert not indices.size or indices.min() >= 0, "OUTSIDE cannot be written"  # as an index it would mean the last
        values = np.array([0, *self.values.values()])
        return values.astype(np.min_scalar_type(int(values.max())))[indices]

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

    def _table(self) -> Mapping[int, int]:
        table = {0: 0} | {value: i for i, value in enumerate(self.values.values(), start=1)}
        if self.ignore is not None:
            table[self.ignore] = self.num_labels + 1
        return table | {alias: table[value] for alias, value in self.aliases.items()}
