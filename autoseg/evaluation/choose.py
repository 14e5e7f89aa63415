"""Choices on held-out cases, each accepted only where it improves them beyond chance, out of fold.

    nested      the candidate is chosen on all folds but one and scored on that one, for each fold in turn
    paired      the change of every case's mean Dice, or of a label's recall
    interval    of the mean change, by a bootstrap over patients; the 95 % are shared by all that is tried alike
                (Bonferroni), so that many labels do not make a chance acceptance likely
    accepted    where the interval is above 0; what is then used is the candidate that is best on all cases

Dice of a label that is in neither map counts as 1 here, so that a rule that removes a false finding from a case
without the label is credited with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.intervals import LEVEL, interval_of_mean
from autoseg.imaging.labels import LabelSet
from autoseg.messages import ruled
from autoseg.models.decision import Choice, Decision

Scores = np.ndarray  # (cases,) or (candidates, cases) float64; NaN where a metric is not defined
Kind = Literal["model", "threshold", "recall", "components", "crf"]


@dataclass(frozen=True)
class HeldOutCases:
    """The cases that choices are made on, in order."""

    cases: tuple[str, ...]
    groups: np.ndarray  # (cases,) of str: cases of one group are never on both sides of a choice: folds, or patients
    patients: tuple[str, ...]

    def others(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each group the cases it holds, and the others, as masks (cases,)."""
        masks = [self.groups == name for name in np.unique(self.groups)]
        return [(mask, ~mask) for mask in masks]


@dataclass(frozen=True)
class Tried:
    """Candidates, their scores on every case, and what they are compared with.

    Args:
        names: of the candidates, in words, the mildest first.
        scores: (candidates, cases).
        baseline: (cases,): nothing is changed.
    """

    what: Kind
    label: str
    names: tuple[str, ...]
    scores: Scores
    baseline: Scores


def mean_dice(confusion: np.ndarray, labels: LabelSet) -> float:
    """Mean Dice of one case over labels or regions; one that is in neither map counts as 1.

    Args:
        confusion: (C, C) [reference, segmentation].
    """
    return float(np.mean([_dice(confusion, indices) for indices in labels.scored.values()]))


def recall(confusion: np.ndarray, labels: LabelSet, name: str) -> float:
    """Recall of a label or region in one case; NaN where the reference lacks it."""
    indices = list(labels.scored[name])
    size = confusion[indices].sum()
    return float(confusion[np.ix_(indices, indices)].sum() / size) if size else float("nan")


def best(tried: Tried, where: np.ndarray) -> int:
    """The candidate with the highest mean over some cases; -1 where none is better than the baseline."""
    means = tried.scores[:, where].mean(axis=1)
    at = int(np.argmax(means))
    return at if means[at] > tried.baseline[where].mean() else -1


def out_of_fold(tried: Tried, held: HeldOutCases) -> Scores:
    """Scores (cases,) of candidates that were chosen without the group of the case."""
    after = tried.baseline.copy()
    for inside, others in held.others():
        if others.any() and (chosen := best(tried, others)) >= 0:
            after[inside] = tried.scores[chosen][inside]
    return after


def try_out(tried: Tried, held: HeldOutCases, tests: int) -> tuple[Choice, int]:
    """Accept the best candidate, or refuse all.

    Args:
        tests: how many choices of this kind are made.

    Returns:
        The choice with its figures, and the number of the candidate; -1 where none is accepted.
    """
    chosen = best(tried, np.ones(len(held.cases), dtype=bool)) if len(tried.names) else -1
    if chosen < 0:
        before = float(tried.baseline.mean())
        name = ", ".join(tried.names[:1]) + (" and others" if len(tried.names) > 1 else "")
        reason = "no candidate is better on the held-out cases" if tried.names else "there is nothing to change"
        return Choice(tried.what, tried.label, name or "-", False, reason, before=before, cases=len(held.cases)), -1
    after = out_of_fold(tried, held)
    choice = judged(tried, after, held, tests, tried.names[chosen])
    return choice, chosen if choice.accepted else -1


def judged(tried: Tried, after: Scores, held: HeldOutCases, tests: int, candidate: str, metric: str = "Dice") -> Choice:
    """Whether scores out of fold are better than the baseline beyond chance, as a choice with its reason."""
    known = np.isfinite(after) & np.isfinite(tried.baseline)
    change = (after - tried.baseline)[known]
    patients = [patient for patient, use in zip(held.patients, known, strict=True) if use]
    level = 1 - (1 - LEVEL) / max(tests, 1)
    interval = interval_of_mean(change.tolist(), patients, level=level) if len(change) else None
    figures = {
        "before": float(tried.baseline[known].mean()) if known.any() else None,
        "after": float(after[known].mean()) if known.any() else None,
        "change": float(change.mean()) if known.any() else None,
    }
    if interval is None:
        reason = "fewer than two patients: nothing can be shown"
        return Choice(
            tried.what, tried.label, candidate, False, reason, metric, **figures, level=level, cases=len(change)
        )
    accepted = interval[0] > 0
    reason = "better beyond chance" if accepted else "worse beyond chance" if interval[1] < 0 else "within chance"
    return Choice(
        tried.what, tried.label, candidate, accepted, reason, metric, **figures, low=interval[0], high=interval[1],
        level=level, cases=len(change),
    )  # fmt: skip


def dice_of_scores(score: CaseScore, labels: LabelSet) -> float:
    """`mean_dice` of a scored case."""
    return mean_dice(np.array(score.confusion), labels)


def describe(decision: Decision) -> str:
    """The decision: what applies, and a table of all that was tried."""
    rows = [["choice", "candidate", "metric", "before", "out of fold", "change", "interval", "verdict"]]
    for choice in decision.choices:
        label = f"{choice.what} {choice.label}".strip()
        interval = f"{choice.low:+.4f} to {choice.high:+.4f}" if choice.low is not None else "-"
        cost = f", Dice {choice.cost:+.4f}" if choice.cost is not None else ""
        rows.append([
            label, choice.candidate, choice.metric, _figure(choice.before), _figure(choice.after),
            f"{choice.change:+.4f}" if choice.change is not None else "-", interval,
            f"{'accepted' if choice.accepted else 'refused'}: {choice.reason}{cost}",
        ])  # fmt: skip
    lines = [ruled(rows)] if decision.choices else []
    applied = decision.lines()
    lines.append("decision: " + ("; ".join(applied) if applied else "the largest logit decides, nothing is corrected"))
    if decision.dice_before is not None and decision.dice_after is not None and applied:
        lines.append(f"mean Dice of the held-out cases: {decision.dice_before:.4f}, then {decision.dice_after:.4f}")
    return "\n\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _dice(confusion: np.ndarray, indices: Sequence[int]) -> float:
    own = list(indices)
    both = confusion[own].sum() + confusion[:, own].sum()
    return 2.0 * float(confusion[np.ix_(own, own)].sum()) / float(both) if both else 1.0
