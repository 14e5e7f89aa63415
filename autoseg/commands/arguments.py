"""What is typed, as numbers within their range, as names or as folds. No heavy import."""

import argparse
import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from autoseg.errors import UsageError
from autoseg.rules import MAX_SECONDS, MAX_STEPS

if TYPE_CHECKING:
    from autoseg.workspace import FoldName

MAX_FOLD = 9999


def duration(text: str) -> float:
    """Seconds of "90s", "10m", "2h", "1h30m", "2d" or a plain number of seconds."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip())
    parts = [float(part or 0) for part in match.groups()] if match else [0.0]
    total = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a duration; write 90s, 10m, 2h, 1h30m or 2d")
    if total > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is longer than ten years")
    return total


def nbytes(text: str) -> int:
    """Bytes of "500MB", "2GB", "1.5GB" or a plain number of bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*(kB|KB|MB|GB|TB|B)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a size; write 500MB or 2GB")
    return round(float(match[1]) * {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get((match[2] or "B")[0], 1))


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option: a whole number from `low` to `high`."""

    def number(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{shortened(text)} is not a whole number, {low} to {high}")
        return int(text)

    return number


def above(low: float, high: float) -> Callable[[str], float]:
    """The type of an option: a number above `low`, at most `high`."""

    def number(text: str) -> float:
        with suppress(ValueError):
            if low < (value := float(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number above {low:g}, at most {high:g}")

    return number


def shortened(text: str) -> str:
    return repr(text if len(text) < 40 else text[:37] + "...")


def name(text: str) -> str:
    """The type of an option that names a configuration or a network: not empty, and not a path."""
    if not text.strip() or "/" in text:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a name")
    return text


def fraction(text: str) -> float:
    """The type of an option: a number from 0 to 1, both included."""
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number from 0 to 1")


def label_share(text: str) -> tuple[str, float]:
    """The type of an option: a label and a share below 1, as "lesion=0.95"."""
    label, _, number = text.rpartition("=")
    value = share(number) if label.strip() else 1.0
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a label with a share below 1: write lesion=0.95")
    return label.strip(), value


positive = whole(1, MAX_STEPS)
share = above(0, 1)


def shares(text: str) -> tuple[float, ...]:
    """The type of an option: percentages, such as 12,25,50,100."""
    try:
        found = tuple(float(part.strip().removesuffix("%")) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or any(not 0 < one <= 100 for one in found):
        raise argparse.ArgumentTypeError(f"{shortened(text)} are not percentages such as 12,25,50,100")
    return found


def percentage(text: str) -> float:
    """The type of an option: a share above 0, at most 1, which may be typed as a percentage: 0.2, 20%."""
    number = text.removesuffix("%")
    if number == text:
        return share(text)
    return above(0, 100)(number) / 100


def cpu_rate(text: str) -> str | float:
    """ "measured", "reference", or a number above 0."""
    if text in ("measured", "reference"):
        return text
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not measured, reference or a number above 0")
    return rate


def finite(text: str) -> float:
    """A number that is neither NaN nor infinite, in single precision."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < 3.4e38:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a finite number; write one such as 0 or -1024")
    return number


def mapping(text: str) -> dict[int, int]:
    """Values of "255=1,7=0", each within 32 bits."""
    pairs = [re.fullmatch(r"\s*(-?[0-9]{1,10})\s*=\s*(-?[0-9]{1,10})\s*", pair) for pair in text.split(",")]
    found = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if not all(pairs) or len(found) < len(pairs) or any(abs(v) >= 2**31 for pair in found.items() for v in pair):
        raise argparse.ArgumentTypeError(f"{shortened(text)} does not map each value once; write 255=1,7=0")
    return found


def tolerances(text: str) -> dict[str, float]:
    """Lengths in mm of "2" (for all labels) or "liver=2,vessel=0.5"."""
    found: dict[str, float] = {}
    for part in text.split(","):
        label, equals, number = part.rpartition("=")
        label = label.strip() if equals else "all"
        if not label or label in found:
            raise argparse.ArgumentTypeError(
                f"{shortened(text)} does not name each label once; write liver=2,vessel=0.5"
            )
        found[label] = above(0, 1e6)(number)
    return found


def parse_folds(text: str) -> "tuple[FoldName, ...] | None":
    """Folds of "0", "0,2", "0 2", "0..4", "full"; None for "all"."""
    if text.strip() == "all":
        return None
    folds: list[FoldName] = []
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"([0-9]{1,20})\.\.([0-9]{1,20})", part)
        if match and int(match[1]) <= int(match[2]):
            folds.extend(range(int(match[1]), min(int(match[2]), MAX_FOLD + 1) + 1))
        elif re.fullmatch("[0-9]{1,20}", part):
            folds.append(int(part))
        elif part == "full":
            folds.append("full")
        else:
            raise UsageError(f"-f {text!r} names no folds", remedy="write 0, 0,2, 0..4, all or full")
    return tuple(dict.fromkeys(folds))
