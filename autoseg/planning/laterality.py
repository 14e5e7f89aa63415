"""What mirroring would undo: left and right by name, and an order of the labels that never changes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from autoseg.imaging.geometry import Vector3

MIN_PAIRED_CASES = 5  # that show two labels, before their order counts as known
SAME_ORDER = 0.95  # share of these cases in which one label lies before the other
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


def fixed_order(centroids: Sequence[Mapping[str, Vector3]], axis: int) -> tuple[str, str] | None:
    """Find two labels of which one always lies before the other along an axis, or None.

    Args:
        centroids: per case, label name -> centre in mm along (Z, Y, X).
        axis: of the centres.

    Returns:
        (before, after), in at least SAME_ORDER of at least MIN_PAIRED_CASES cases that have both.
    """
    names = dict.fromkeys(name for case in centroids for name in case)
    for one, other in combinations(names, 2):
        steps = [case[other][axis] - case[one][axis] for case in centroids if one in case and other in case]
        if len(steps) < MIN_PAIRED_CASES:
            continue
        if sum(step > 0 for step in steps) >= SAME_ORDER * len(steps):
            return one, other
        if sum(step < 0 for step in steps) >= SAME_ORDER * len(steps):
            return other, one
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
