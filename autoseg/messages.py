"""What messages are made of: commands that work as typed, and how many things, names and durations are put.

suggest         a command of autoseg, complete, and quoted for the shell
complete        the workspace and the dataset put into suggestions that did not know them
some            the first few of many names
counted         "1 case", "2 cases"
duration        to read: "45 s", "3m13s", "2h05m"
typed_duration  as options take it: "45s", "3m", "2h5m"
aligned         rows as the lines of a table
ruled           names to the left, numbers to the right, a line below the header

Whoever suggests a command and knows the workspace passes it. Whoever does not writes `-w WORKSPACE`, which `complete`
replaces in one place, `cli.main`, for the command that is running; so it does with `DATASET`, where the workspace
remembers which it was. A suggestion names the plugins of the command that is running.
"""

import json
import shlex
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

from autoseg.plugins import plugin_options

DEFAULT_WORKSPACE = Path("autoseg_workspace")
ANY_WORKSPACE = Path("WORKSPACE")
ANY_DATASET = Path("DATASET")
WITH_PLUGINS = (  # commands that take --plugin
    *("check", "plan", "train", "evaluate", "compare", "learning-curve", "report", "predict", "rank", "export"),
    *("status", "floor", "serve"),
)
NAMED = 5  # names in a message about many


def suggest(
    command: str,
    *arguments: object,
    workspace: Path | None = ANY_WORKSPACE,
    configuration: str | None = None,
    network: str | None = None,
) -> str:
    """A command line of autoseg, quoted for the shell.

    Args:
        arguments: options and values in order, such as `"-f", "0,2"`.
        workspace: that of `-w`, left out where it is the default; ANY_WORKSPACE where it is not known here; None for
            commands that take none.
        configuration, network: those of `-c` and `--network`, left out where they are None.
    """
    words = ["autoseg", command, *map(spelled, arguments)]
    words += ["-c", configuration] if configuration else []
    words += ["--network", network] if network else []
    if workspace is not None and workspace != DEFAULT_WORKSPACE:
        words += ["-w", spelled(workspace)]
    words += plugin_options() if command in WITH_PLUGINS else []
    return shlex.join(words)


def complete(text: str, workspace: Path | None) -> str:
    """Put the workspace, and the dataset it was planned from, into suggestions whose raiser did not know them."""
    if workspace is None:
        return text
    named = "" if workspace == DEFAULT_WORKSPACE else f" -w {shlex.quote(spelled(workspace))}"
    text = text.replace(f" -w {ANY_WORKSPACE}", named)
    for command in ("plan", "check"):
        text = text.replace(
            f"autoseg {command} {ANY_DATASET}", f"autoseg {command} {shlex.quote(spelled(dataset_of(workspace)))}"
        )
    return text


def spelled(argument: object) -> str:
    """An argument as text; a path that begins with a dash must not be read as an option."""
    return f"./{argument}" if isinstance(argument, Path) and str(argument).startswith("-") else str(argument)


def dataset_of(workspace: Path) -> Path:
    """The folder that a workspace was planned from, or `DATASET` where it does not say."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        root = json.loads((workspace / "dataset.json").read_text(encoding="utf-8")).get("root")
        if isinstance(root, str) and root:
            return Path(root)
    return ANY_DATASET


LESS_MEMORY = f"plan for less memory, such as {suggest('plan', ANY_DATASET, '--vram', 8)}"


def some(names: Iterable[object], most: int = NAMED) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(map(str, names))
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def counted(number: int, thing: str, things: str = "") -> str:
    """A number of things; `things` where more than one are not called with an s."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """A duration to read, not to type: see `typed_duration`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def typed_duration(seconds: float) -> str:
    """A duration as `--time-budget` takes it: 90s, 10m, 1h, 1h30m; to three digits."""
    if seconds < 120:
        return f"{seconds:.3g}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes}m" if hours and minutes else f"{hours}h" if hours else f"{minutes}m"


def aligned(rows: Sequence[Sequence[str]], *, right: Container[int] = (), least: Sequence[int] = ()) -> list[str]:
    """Lines of a table with aligned columns, two blanks between them.

    Args:
        rows: each has as many cells as the first.
        right: columns, counted from 0, that end below each other; the others begin so.
        least: characters that the first columns are wide at least.
    """
    floors = chain(least, repeat(0))
    widths = [max(floor, *map(len, column)) for column, floor in zip(zip(*rows, strict=True), floors, strict=False)]
    signs = [">" if column in right else "<" for column in range(len(widths))]
    return [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)).rstrip()
        for row in rows
    ]


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """A table with a line below its header: the first column to the left, numbers to the right."""
    header, *others = aligned(rows, right=range(1, len(rows[0])))
    return "\n".join([header, "-" * len(header), *others])
