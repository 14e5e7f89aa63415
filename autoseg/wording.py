"""How messages put what there is much of: some of many names, numbers of things, durations, aligned columns.

some      the first few of many names
counted   "1 case", "2 cases"
duration  "45 s", "3m13s", "2h05m"
aligned   rows as lines whose columns begin below each other
"""

from collections.abc import Iterable, Sequence

NAMED = 5  # names in a message about many


def some(names: Iterable[object], most: int = NAMED) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(map(str, names))
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def counted(number: int, thing: str, things: str = "") -> str:
    """A number of things; `things` where more than one are not called with an s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """A duration to read, not to type: `planning.pace` writes those that `--time-budget` takes."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; each row has as many cells as the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
