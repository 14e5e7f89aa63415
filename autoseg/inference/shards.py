"""A part of the cases, for one of several processes or jobs: the same for everybody who asks with the same cases."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from autoseg.errors import UsageError

Item = TypeVar("Item")
MOST = 100_000  # parts


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1: every count-th case of the sorted ones, from the number-th on."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST:
            raise UsageError(
                f"--shard {self} is not a part: there are {self.count} parts, counted from 1",
                remedy="write a number and how many there are, such as 2/8",
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this part; all parts together hold each item once."""
        return list(items[self.number - 1 :: self.count])

    def part(self, number: int, count: int) -> "Shard":
        """Part `number` of `count` of this part."""
        return Shard(self.number + self.count * (number - 1), self.count * count)


def parse_shard(text: str) -> Shard:
    """Read "2/8". Raises UsageError."""
    if match := re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip()):
        return Shard(int(match[1]), int(match[2]))
    raise UsageError(f"--shard {text!r} is not a part", remedy="write a number and how many there are, such as 2/8")
