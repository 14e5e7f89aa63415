"""Masks as run lengths, as COCO stores them: a list of counts, or the same counts as a string.

    encode      mask -> counts
    decode      counts -> mask of a given shape
    to_text     counts -> string
    from_text   string -> counts

Pixels are counted column by column, each from top to bottom, beginning with those outside the mask: the counts of
outside and inside alternate, and the first may be 0. In a string, every count from the fourth on is stored as its
difference to the one two places before; a number is written in groups of five bits, lowest first, one character each
from "0" (48) on, with 32 added where another group follows (the format of COCO's mask interface, maskApi.c).
"""

from collections.abc import Sequence

import numpy as np

LONGEST = 13  # characters of one number: 65 bits


def encode(mask: np.ndarray) -> list[int]:
    """Count the runs of a mask (rows, columns) bool. Returns counts that add up to the number of its pixels."""
    pixels = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    ends = np.append(changes[changes < mask.size], mask.size)
    return np.diff(ends, prepend=0).tolist()


def decode(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Fill a mask from its run lengths.

    Args:
        counts: of outside, inside, outside, ...
        shape: (rows, columns): the mask cannot become larger than that, whatever the counts are.

    Returns:
        (rows, columns) bool.

    Raises:
        ValueError: a count is negative, or they do not add up to the number of pixels; the message says which.
    """
    pixels, total = shape[0] * shape[1], 0
    for count in counts:
        if count < 0:
            raise ValueError(f"it has a run of {count} pixels")
        total += int(count)
    if total != pixels:
        raise ValueError(f"its runs add up to {total} pixels, the image has {shape[1]} x {shape[0]} = {pixels}")
    runs = np.array(counts, dtype=np.int64)
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(shape, order="F")


def to_text(counts: Sequence[int]) -> str:
    """Write run lengths as a string."""
    characters = []
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        while True:
            group = number & 31
            number >>= 5
            more = number != (-1 if group & 16 else 0)
            characters.append(chr(group + 32 * more + 48))
            if not more:
                break
    return "".join(characters)


def from_text(text: str) -> list[int]:
    """Read run lengths from a string.

    Raises:
        ValueError: it is not such a string; the message says why.
    """
    counts: list[int] = []
    number, groups = 0, 0
    for place, character in enumerate(text):
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"its run lengths contain {character!r} (character {place + 1})")
        number |= (code & 31) << (5 * groups)
        groups += 1
        if groups > LONGEST:
            raise ValueError(f"its run lengths contain a number without an end (character {place + 1})")
        if code & 32:
            continue
        if code & 16:
            number -= 1 << (5 * groups)
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, groups = 0, 0
    if groups:
        raise ValueError("its run lengths end within a number")
    return counts
