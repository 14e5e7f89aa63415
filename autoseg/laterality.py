"""Which labels are the left and the right of one thing: those must not be mirrored into each other."""

import re
from collections.abc import Iterable

SIDES = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"}


def left_right_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two names that differ in their side alone, such as kidney_left and kidney_right, or None.

    Understood are words set off by anything but letters and digits, or by capitals (`LeftLung`): left and right, L and
    R, lh and rh, lt and rt; and `left` or `right` glued to either end of a word (`leftlung`). Case does not matter.
    """
    by_words = {_words(name): name for name in names}
    for words, name in by_words.items():
        for i, word in enumerate(words):
            if word in SIDES:
                partner = (*words[:i], SIDES[word], *words[i + 1 :])
                if partner in by_words:
                    return name, by_words[partner]
    return None


def _words(name: str) -> tuple[str, ...]:
    """Lower-case words of a name; `left` and `right` are cut off where they are glued to another word."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words: list[str] = []
    for word in re.findall(r"[^\W_]+", parted.lower()):
        glued = re.fullmatch(r"(left|right)?(.*?)(left|right)?", word)
        assert glued is not None
        words += [part for part in glued.groups() if part]
    return tuple(words)
