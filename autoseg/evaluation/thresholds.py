"""Offsets of logits, chosen on held-out cases: for the best Dice, or for a recall that a label must reach.

A label's offset is a threshold in another form: with an offset of o, it needs a logit that is o lower to win. Each
label is tried by itself, the others as they are; those that are accepted are adjusted together, and tested together
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoseg.evaluation.choose import HeldOutCases, Tried, judged, mean_dice, recall, try_out
from autoseg.evaluation.margins import STEP, MarginTable
from autoseg.imaging.labels import LabelSet
from autoseg.models.decision import Choice

OFFSETS = tuple(float(step) * STEP for step in (*range(-16, 0), *range(1, 25)))  # -4 to +6: shares of 1.8 % to 99.8 %
NEAR = (-2, -1, 0, 1, 2)  # steps around an offset that are tried when labels are adjusted together


class Scorer:
    """Scores rules on the tables of all cases.

    Args:
        tables: of the cases, in order.
        heads: what the logits are of.
        labels: what is scored.
    """

    def __init__(self, tables: Sequence[MarginTable], heads: LabelSet, labels: LabelSet) -> None:
        self.tables, self.heads, self.labels = tuple(tables), heads, labels
        self.names = list(heads.regions) if heads.has_regions else ["", *heads.values]
        self._dice: dict[tuple[float, ...], np.ndarray] = {}

    def dice(self, offsets: Mapping[str, float]) -> np.ndarray:
        """Mean Dice over labels (cases,) of one rule; computed once."""
        vector = self._vector(offsets)
        key = tuple(vector.tolist())
        if key not in self._dice:
            self._dice[key] = np.array(
                [mean_dice(table.confusion(vector, self.heads), self.labels) for table in self.tables]
            )
        return self._dice[key]

    def along(self, name: str, offsets: Sequence[float], fixed: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean Dice and the label's recall, both (offsets, cases), of rules that differ in one label's offset.

        Voxels where the label is out of reach are decided once.

        Args:
            fixed: offsets of the other labels.
        """
        vectors = [self._vector({**fixed, name: offset}) for offset in offsets]
        column = self.names.index(name)
        dice, found = np.empty((2, len(offsets), len(self.tables)))
        for case, table in enumerate(self.tables):
            near, far = table.divided(column)
            decided = far.confusion(vectors[0], self.heads)
            for n, vector in enumerate(vectors):
                confusion = decided + near.confusion(vector, self.heads)
                dice[n, case] = mean_dice(confusion, self.labels)
                found[n, case] = recall(confusion, self.labels, name)
        return dice, found

    def _vector(self, offsets: Mapping[str, float]) -> np.ndarray:
        return np.array([offsets.get(name, 0.0) for name in self.names], np.float32)


def choose_offsets(
    scorer: Scorer, held: HeldOutCases, targets: Mapping[str, float], names: Sequence[str]
) -> tuple[dict[str, float], list[Choice]]:
    """Offsets that improve Dice, and those by which labels reach their recall.

    Args:
        targets: label -> recall that it must reach; its offset follows from that alone.
        names: labels whose offset may be chosen for the best Dice.

    Returns:
        Label -> offset, of those that are accepted; and all choices.
    """
    fixed: dict[str, float] = {}
    choices: list[Choice] = []
    for name, target in targets.items():
        offset, choice = offset_for_recall(scorer, held, name, target, len(targets))
        choices.append(choice)
        if offset:
            fixed[name] = offset
    free = [name for name in names if name not in targets]
    baseline = scorer.dice(fixed)
    accepted = {}
    for name in free:
        scores, _ = scorer.along(name, OFFSETS, fixed)
        order = np.argsort(np.abs(OFFSETS), kind="stable")  # the mildest first: of equals it is chosen
        tried = Tried("threshold", name, tuple(f"logit {OFFSETS[i]:+g}" for i in order), scores[order], baseline)
        choice, chosen = try_out(tried, held, len(free))
        choices.append(choice)
        if chosen >= 0:
            accepted[name] = OFFSETS[order[chosen]]
    if len(accepted) < 2:
        return fixed | accepted, choices
    together, choice = _together(scorer, held, fixed, accepted)
    choices.append(choice)
    if choice.accepted:
        return fixed | together, choices
    name = next(iter(accepted))
    return fixed | {name: accepted[name]}, choices


def offset_for_recall(scorer: Scorer, held: HeldOutCases, name: str, target: float, tests: int) -> tuple[float, Choice]:
    """The smallest offset by which a label reaches a recall; 0 where none is needed, or none is enough.

    The recall that is reported is that of cases whose fold had no part in the choice.
    """
    offsets = [0.0, *(offset for offset in OFFSETS if offset > 0)]
    dice_of, scores = scorer.along(name, offsets, {})
    known = np.isfinite(scores[0])
    wish = f"recall {target:g}"
    if not known.any():
        return 0.0, Choice("recall", name, wish, False, "no reference contains it", "recall")
    means = scores[:, known].mean(axis=1)
    if means[0] >= target:
        reason = "it is reached without an offset"
        found = float(means[0])
        return 0.0, Choice("recall", name, wish, False, reason, "recall", found, found, cases=int(known.sum()))
    chosen = _smallest(means, target)
    after, dice_after = scores[0].copy(), dice_of[0].copy()
    for inside, others in held.others():
        use = others & known
        at = _smallest(scores[:, use].mean(axis=1), target) if use.any() else 0
        after[inside] = scores[at][inside]
        dice_after[inside] = dice_of[at][inside]
    tried = Tried("recall", name, (), scores, scores[0])
    candidate = f"{wish}: logit {offsets[chosen]:+g}"
    choice = judged(tried, after, held, tests, candidate, "recall")
    cost = float((dice_after - dice_of[0]).mean())
    if means[chosen] < target:
        reason = f"not reached: {means[chosen]:.3f} with the largest offset"
        choice = replace(choice, accepted=False, reason=reason)
    choice = replace(choice, cost=cost)
    return (offsets[chosen] if choice.accepted else 0.0), choice


def _smallest(means: np.ndarray, target: float) -> int:
    """The first mean that reaches the target; the last one where none does."""
    reached = np.flatnonzero(means >= target)
    return int(reached[0]) if len(reached) else len(means) - 1


def _together(
    scorer: Scorer, held: HeldOutCases, fixed: Mapping[str, float], accepted: Mapping[str, float]
) -> tuple[dict[str, float], Choice]:
    """Adjust the offsets of several labels to each other, on the other folds, and test them together."""
    baseline = scorer.dice(fixed)
    after = baseline.copy()
    for inside, others in held.others():
        if others.any():
            offsets = _adjusted(scorer, fixed, accepted, others)
            after[inside] = scorer.dice({**fixed, **offsets})[inside]
    everything = np.ones(len(held.cases), dtype=bool)
    offsets = _adjusted(scorer, fixed, accepted, everything)
    words = ", ".join(f"{name} {offset:+g}" for name, offset in offsets.items())
    tried = Tried("threshold", "", (), baseline[None], baseline)
    return offsets, judged(tried, after, held, 1, f"together: {words}")


def _adjusted(
    scorer: Scorer, fixed: Mapping[str, float], start: Mapping[str, float], where: np.ndarray
) -> dict[str, float]:
    """Offsets after each label in turn was moved by a few steps, as far as that is better on some cases."""
    offsets = dict(start)
    for name in start:
        near = [offsets[name] + step * STEP for step in NEAR]
        means = [float(scorer.dice({**fixed, **offsets, name: offset})[where].mean()) for offset in near]
        offsets[name] = near[int(np.argmax(means))]
    return offsets
