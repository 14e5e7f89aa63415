"""The first lines of a report: the result in one sentence, and what needs a look."""

from collections import Counter
from typing import Any

import numpy as np

from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.messages import counted
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import OutlierGroup, case_means
from autoseg.report.sections import Section

MOST_GROUPS = 3  # of outliers that are named; section 1 has all


def verdict(of: Gathered, training: Section, data: Section) -> dict[str, Any]:
    """The first lines of the page: the result in one sentence, and what to look at."""
    flags = []
    scores = of.scores
    if scores is not None and scores.cases:
        mean, ends = headline(of, scores)
        patients = len({of.patients.get(case.case, case.case) for case in scores.cases})
        interval = f" (95 % {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        people = f" of {counted(patients, 'patient')}" if of.dataset and of.dataset.patients_known else ""
        title = f"Mean Dice {mean:.2f}{interval}"
        folds = f"{counted(len(scores.folds), 'fold')}" + (
            f" of {scores.planned_folds}" if len(scores.folds) < scores.planned_folds else ""
        )
        line = (
            f"{counted(len(scores.cases), 'case')}{people}, {folds}; each case segmented by a network that never saw it"
        )
        band: str = scores.bands.of(mean)
        flags += _flags(scores)
    elif of.folds:
        known = [fold for fold in of.folds if fold.history]
        done = sum(fold.finished for fold in of.folds)
        dice = [last for fold in known if (last := fold.history[-1].mean_dice) is not None]
        title = f"Training: {done} of {of.planned_folds or len(of.folds)} folds done"
        seen = f"; Dice of validation patches {min(dice):.2f} to {max(dice):.2f}" if dice else ""
        line, band = f"{of.configuration}, {of.network}{seen}", "live" if of.live else "open"
    else:
        title, band = "Planned, not trained", "open"
        line = f"{of.configuration}, {of.network}: {of.plan.dataset}"
    flags += [f"training, {note}" for note in training.notes]
    flags += [_unlike(group) for group in data.more.get("outliers", [])[:MOST_GROUPS]]
    flags += list(of.problems)
    return {"title": title, "line": line, "band": band, "flags": flags}


def _unlike(group: OutlierGroup) -> str:
    """One group of outliers in a sentence."""
    side = "above" if group.above else "below"
    return f"{group.what}: {counted(len(group.cases), 'case')} far {side} the others (section 1)"


def headline(of: Gathered, scores: CrossValidation) -> tuple[float, tuple[float, float] | None]:
    """Mean over labels of the mean Dice over cases, and its 95 % interval over patients.

    Each case contributes its Dice of every label, weighed so that the mean of the contributions is that mean.
    """
    counts = Counter(
        label for case in scores.cases for label, one in case.scores.items() if one.get("dice") is not None
    )
    contributions = [
        sum((one["dice"] or 0.0) / counts[label] for label, one in case.scores.items() if counts[label])
        * len(scores.cases) / max(1, len(counts))
        for case in scores.cases
    ]  # fmt: skip
    groups = [of.patients.get(case.case, case.case) for case in scores.cases]
    return float(np.mean(contributions)), interval_of_mean(contributions, groups)


def _flags(scores: CrossValidation) -> list[str]:
    """Labels, folds and cases that failed."""
    found = [flag.what for flag in scores.flags]
    poor = [case for case, mean in case_means(scores.cases).items() if mean < scores.bands.poor]
    if poor:
        found.append(f"{counted(len(poor), 'case')} below {scores.bands.poor:g}: section 5 shows the worst")
    missed = sum(_missed(case.scores) for case in scores.cases)
    if missed:
        found.append(f"a label was missed entirely {counted(missed, 'time')}")
    if len(scores.folds) < scores.planned_folds:
        found.append(
            f"{scores.planned_folds - len(scores.folds)} of {scores.planned_folds} folds are not in the scores"
        )
    return found


def _missed(scores: dict[str, dict[str, float | None]]) -> int:
    """Labels of a case that the reference has and the segmentation lacks."""
    return sum(one.get("dice") == 0 and one.get("precision") is None for one in scores.values())
