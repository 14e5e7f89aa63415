"""What Dice a segmentation is expected to have without a reference, with an interval, learnt from the cross-validation.

A fold's own uncertainty on a case (`inference/agreement.py`) goes with the Dice it reaches. The cross-validation has
both for every case: the uncertainty of the one fold that did not train on it, and the Dice of its segmentation. Other
folds did train on the case; how well they agree on it is not how well they agree on a new image, so it is not used.
`predict` computes the same score of each fold, none of which has seen the new image, and takes the mean.

    regression  a line per label, and for the mean over labels, with a slope of at least 0
    interval    split-conformal, by cross-validation: the residuals of each group of cases from the line through the
                others, in units of 1 - Dice (a segmentation that is expected to be poor may be off by more), and their
                5th and 95th percentiles, corrected for their number (Lei et al. 2018; Barber et al. 2021)
    coverage    measured, not assumed: each group of cases in turn against intervals made of the others

Groups are the folds; where fewer than three are trained, the patients are dealt into five. The interval is for one
fold's segmentation of images like the training data. An ensemble is a little better than that; for images of another
kind nothing is promised, which is what the warnings about them are for. With fewer than 20 cases an interval of 90 %
would need residuals that were never seen: it is refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from autoseg.errors import StateError
from autoseg.inference.agreement import SCORES, Agreement
from autoseg.inference.statistics import ExpectedDice
from autoseg.messages import counted, ruled
from autoseg.rules import anything, at_least, between, exactly, one_of

VERSION = 1
COVERAGE = 0.9  # share of cases whose Dice the interval is made to hold
LEAST_CASES = 20  # (n + 1) (1 + COVERAGE) / 2 <= n: both ends of the interval are residuals that were seen
GROUPS = 5  # of patients, where fewer than LEAST_FOLDS folds are trained
LEAST_FOLDS = 3
NARROWEST = 0.01  # unit of residuals where the expected Dice is higher than 1 - this

Text = Annotated[str, anything("any text")]
Share = Annotated[float, between(0, 1)]
Number = Annotated[float, anything("any finite number")]
Score = Annotated[str, one_of(SCORES)]


@dataclass(frozen=True)
class ScoredCase:
    """One held-out case: how unsure its fold was, and how good its segmentation is."""

    case: Text
    group: Text  # cases of one group are never on both sides of a measurement
    fold: Text
    scores: dict[Score, dict[Text, Share]]  # score -> label -> value
    dice: dict[Text, Share]  # label -> Dice, where it is defined


@dataclass(frozen=True)
class Line:
    """Expected Dice of one label as a function of the score, and how far off it was."""

    intercept: Number
    slope: Annotated[float, at_least(0, 1e9)]
    low: Number  # residuals in units of 1 - expected Dice: the ends of the interval
    high: Number
    cases: Annotated[int, at_least(1, 10**9)]
    measured_coverage: Share  # out of group
    mean_width: Share  # of the intervals, out of group
    mean_error: Share  # |Dice - expected|, out of group
    correlation: Annotated[float, between(-1, 1)] | None  # of score and Dice (Pearson); None: one of them is constant

    def at(self, score: float) -> ExpectedDice:
        """Expected Dice with its interval."""
        expected = _clipped(self.intercept + self.slope * score)
        unit = max(1 - expected, NARROWEST)
        low, high = _clipped(expected + self.low * unit), _clipped(expected + self.high * unit)
        return ExpectedDice(expected, min(low, expected), max(high, expected), COVERAGE)


@dataclass(frozen=True)
class ExpectedDiceRecord:
    """`expected_dice.json` of a model: what `predict` needs to state the Dice it expects."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    configuration: Text
    network: Text
    score: Score  # the one with the smaller error out of group
    options: Text  # how the networks were run: `described`
    weights: dict[Text, Text]  # fold -> digest of its weights
    coverage: Share
    labels: dict[Text, Line]
    mean: Line | None  # of the mean over labels
    refused: dict[Text, Text]  # label -> why there is no line for it
    cases: tuple[ScoredCase, ...] = field(default=())

    def expected(self, agreement: Agreement) -> tuple[dict[str, ExpectedDice], ExpectedDice | None]:
        """Expected Dice of each label that was found, and of their mean."""
        scores = agreement.of(self.score)
        labels = {name: line.at(scores[name]) for name, line in self.labels.items() if name in scores}
        mean = self.mean.at(float(np.mean(list(scores.values())))) if self.mean and scores else None
        return labels, mean


def groups_of(cases: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Which group each case is in: its fold, or its patient's where few folds are trained.

    Args:
        cases: (case, fold, patient).
    """
    if len({fold for _, fold, _ in cases}) >= LEAST_FOLDS:
        return {case: f"fold {fold}" for case, fold, _ in cases}
    dealt = {patient: n % GROUPS for n, patient in enumerate(sorted({patient for *_, patient in cases}))}
    return {case: f"group {dealt[patient]}" for case, _, patient in cases}


def calibrate(
    configuration: str,
    network: str,
    cases: Sequence[ScoredCase],
    *,
    options: str,
    weights: Mapping[str, str],
) -> ExpectedDiceRecord:
    """Learn from held-out cases what Dice goes with a score.

    Args:
        options: how the networks were run.
        weights: fold -> digest.

    Raises:
        StateError: there are too few held-out cases, or none has a score.
    """
    require_enough(len(cases))
    candidates = {score: _lines(cases, score) for score in SCORES}
    errors = {score: mean.mean_error for score, (_, mean, _) in candidates.items() if mean is not None}
    if not errors:
        raise StateError(
            f"fewer than {LEAST_CASES} of {len(cases)} held-out cases have both a score and a Dice",
            remedy="train more folds: each adds its held-out cases",
        )
    best = min(errors, key=lambda score: errors[score])
    labels, mean, refused = candidates[best]
    return ExpectedDiceRecord(
        VERSION, configuration, network, best, options, dict(weights), COVERAGE, labels, mean, refused, tuple(cases)
    )


def require_enough(cases: int) -> None:
    """Refuse fewer held-out cases than an interval needs. Raises StateError."""
    if cases < LEAST_CASES:
        raise StateError(
            f"{counted(cases, 'held-out case')}: an interval that holds {COVERAGE:.0%} of them needs "
            f"{LEAST_CASES} or more",
            remedy="train more folds: each adds its held-out cases",
        )


def fit(scores: np.ndarray, dice: np.ndarray, groups: Sequence[str]) -> Line:
    """Fit one line with its interval.

    Args:
        scores, dice: (n,) float64.
        groups: of each case.
    """
    names = np.array(groups)
    intercept, slope = _line(scores, dice)
    low, high = _ends(_residuals(scores, dice, names))
    held, widths, errors = [], [], []
    for name in dict.fromkeys(groups):
        inside = names == name
        if inside.all():
            break
        others = ~inside
        a, b = _line(scores[others], dice[others])
        ends = _ends(_residuals(scores[others], dice[others], names[others]))
        for score, true in zip(scores[inside], dice[inside], strict=True):
            made = Line(a, b, *ends, 1, 0, 0, 0, None).at(float(score))
            held.append(made.low - 1e-12 <= true <= made.high + 1e-12)
            widths.append(made.high - made.low)
            errors.append(abs(made.dice - true))
    constant = np.ptp(scores) == 0 or np.ptp(dice) == 0
    return Line(
        intercept=intercept, slope=slope, low=low, high=high, cases=len(scores),
        measured_coverage=float(np.mean(held)) if held else 0.0,
        mean_width=float(np.mean(widths)) if widths else 1.0,
        mean_error=float(np.mean(errors)) if errors else 1.0,
        correlation=None if constant else float(np.clip(np.corrcoef(scores, dice)[0, 1], -1, 1)),
    )  # fmt: skip


def described(step: float, mirror_axes: Sequence[int], tile: float | None, *, even_flips: bool = False) -> str:
    """How networks were run over images, in words: two scores are comparable only where these are equal."""
    mirrored = f"mirrored along {', '.join(map(str, mirror_axes))}" if mirror_axes else "not mirrored"
    mirrored += ", an even number at a time" if even_flips and mirror_axes else ""
    return f"step {step:g}, {mirrored}" + (f", tiles up to {tile:g} patches" if tile else "")


def digest_of(weights: Mapping[str, "np.ndarray"]) -> str:
    """Digest of a network's weights, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(weights.items()):
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def describe(record: ExpectedDiceRecord) -> str:
    """The measured quality of the estimates, as a table."""
    rows = [["expected Dice", "cases", "correlation", "error", "width", f"holds (aim {record.coverage:.0%})"]]
    lines = [*record.labels.items(), *([("mean", record.mean)] if record.mean else [])]
    for name, line in lines:
        correlation = "-" if line.correlation is None else f"{line.correlation:.3f}"
        held = f"{line.measured_coverage:.1%}"
        rows.append([name, str(line.cases), correlation, f"{line.mean_error:.4f}", f"{line.mean_width:.4f}", held])
    notes = [f"note: {name}: {why}" for name, why in record.refused.items()]
    return "\n".join([f"by {record.score}, {record.options}", ruled(rows), *notes])


def _lines(cases: Sequence[ScoredCase], score: str) -> tuple[dict[str, Line], Line | None, dict[str, str]]:
    """A line for each label with enough cases, one for the mean over labels, and why others have none."""
    lines: dict[str, Line] = {}
    refused = {}
    for name in dict.fromkeys(label for case in cases for label in case.dice):
        known = [c for c in cases if name in c.dice and name in c.scores.get(score, {})]
        if len(known) < LEAST_CASES:
            refused[name] = f"{len(known)} of {len(cases)} cases have a Dice and a score, {LEAST_CASES} are needed"
            continue
        values = [(c.scores[score][name], c.dice[name], c.group) for c in known]
        lines[name] = _fitted(values)
    means = [
        (float(np.mean(list(found.values()))), float(np.mean(list(case.dice.values()))), case.group)
        for case in cases
        if (found := case.scores.get(score)) and case.dice
    ]
    return lines, _fitted(means) if len(means) >= LEAST_CASES else None, refused


def _fitted(values: Sequence[tuple[float, float, str]]) -> Line:
    scores, dice, groups = zip(*values, strict=True)
    return fit(np.array(scores), np.array(dice), groups)


def _line(scores: np.ndarray, dice: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least-squares line; the mean where it would fall, or the score is constant."""
    spread = scores - scores.mean()
    total = float((spread**2).sum())
    slope = float((spread * dice).sum()) / total if total > 1e-12 else 0.0
    if slope <= 0:
        return float(dice.mean()), 0.0
    return float(dice.mean() - slope * scores.mean()), slope


def _residuals(scores: np.ndarray, dice: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Residuals (n,) of each group from the line through the others, in units of 1 - expected Dice."""
    found = np.empty(len(scores))
    for name in np.unique(groups):
        inside = groups == name
        others = inside if inside.all() else ~inside
        a, b = _line(scores[others], dice[others])
        expected = np.clip(a + b * scores[inside], 0, 1)
        found[inside] = (dice[inside] - expected) / np.maximum(1 - expected, NARROWEST)
    return found


def _ends(residuals: np.ndarray) -> tuple[float, float]:
    """The residuals that bound the interval: numbers (n + 1) x 5 % and 95 %, from 1, between neighbours by a line."""
    ordered = np.sort(residuals)
    count, tail = len(ordered), (1 - COVERAGE) / 2
    ranks = [(count + 1) * tail, (count + 1) * (1 - tail)]
    low, high = np.interp(ranks, np.arange(1, count + 1), ordered)
    return float(low), float(high)


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)
