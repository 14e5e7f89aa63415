"""Labels that mirroring would confuse: left and right by name, one side of two by measurement, a constant order.

    left_right_pair   two labels that are the left and the right one of a pair, by their names
    one_sided         a label on only one side whose twin on the other side is background, or another label
    fixed_order       two labels that never change their order along an axis

`one_sided` requires more than a label on one side. Liver, spleen and heart are on one side, and mirroring them is
harmless: their mirrored place looks different, so a mirrored liver is one more training example. Mirroring is harmful
where the mirrored place shows a twin: then the same picture is the structure in one patch and background in the next
(one of two equal balls in ten synthetic bodies, 150 steps: Dice 0.64 with mirroring left to right, 0.84 without).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from autoseg.imaging.geometry import Vector3
from autoseg.imaging.symmetry import MirrorSide

MIN_PAIRED_CASES = 5  # that show two labels, before their order counts as known
SAME_ORDER = 0.95  # share of these cases in which one label is before the other
MIN_SIDED_CASES = 4  # that show a label: by chance, one of eight labels is on the same side in all of four cases
SAME_SIDE = 0.95  # share of these cases in which it is only on that side
ALIKE = 0.5  # median correlation of the image around it with that around its mirrored place
VISIBLE = 0.2  # median correlation of its outline with the image: a label that cannot be seen has no visible twin
OUTLINED = 0.6  # of that: how visible the outline must be at the mirrored place
SIDES = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"}


def left_right_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two names that differ only in their side, such as kidney_left and kidney_right, or None.

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


@dataclass(frozen=True)
class OneSided:
    """A label on only one side whose mirrored place looks like it."""

    label: str
    sided: int  # cases in which it is only on that side
    cases: int  # cases that show it
    likeness: float  # median correlation with the mirrored place
    other: str | None  # the label there; None: background


def one_sided(cases: Sequence[Mapping[str, MirrorSide]], shown: Mapping[str, int]) -> OneSided | None:
    """Find the label that mirroring from side to side would confuse most with what is at its mirrored place, or None.

    Args:
        cases: per case, label name -> comparison, of the labels on one side (`imaging.symmetry.mirror_sides`).
        shown: label name -> number of cases that show it.
    """
    usual: dict[str, float] = {}  # label -> the side on which it nearly always is, as a sign
    for name, number in shown.items():
        signs = [float(np.sign(case[name].offset_mm)) for case in cases if name in case]
        for sign in (1.0, -1.0):
            if number >= MIN_SIDED_CASES and signs.count(sign) >= SAME_SIDE * number:
                usual[name] = sign
    found = []
    for name, sign in usual.items():
        sides = [case[name] for case in cases if name in case and np.sign(case[name].offset_mm) == sign]
        likeness, outline, mirrored = (
            float(np.median([getattr(side, key) for side in sides]))
            for key in ("likeness", "outline", "mirrored_outline")
        )
        others = [side.other_label for side in sides]
        other = max(set(others), key=others.count)
        twin = other is None or usual.get(other) == -sign  # and not a part of what spans both sides
        if twin and likeness >= ALIKE and outline >= VISIBLE and mirrored >= OUTLINED * outline:
            found.append(OneSided(name, len(sides), shown[name], likeness, other))
    return max(found, key=lambda label: label.likeness, default=None)


def fixed_order(centroids: Sequence[Mapping[str, Vector3]], axis: int) -> tuple[str, str] | None:
    """Find two labels of which one is always before the other along an axis, or None.

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
