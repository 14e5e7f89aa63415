"""Held-out scores by group: how a model does at each site, on each scanner, for each sex.

    compare       scores and groups of cases -> GroupTable: per label and group a mean with its interval; largest gaps
    describe      GroupTable -> lines

The interval of a mean is that of `intervals`, over patients. The largest gap is the difference between the best and the
worst group. It is large by chance alone where groups are small or many, so it is compared with what it would be if the
groups meant nothing: patients are dealt to groups of the same numbers of patients at random, 5000 times, and p is the
share of deals whose largest gap is as large or larger. That counts all pairs of groups at once. Below 0.05 it is called
beyond chance.

Source of the test: Pitman 1937; Phipson and Smyth 2010 for the one that is added to both counts.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.messages import counted, ruled, some
from autoseg.rules import anything, exactly

VERSION = 1
DEALS = 5000
SEED = 1234
CHANCE = 0.05
METRIC = "dice"
MEAN = "mean over labels"
Text = Annotated[str, anything("any text")]


@dataclass(frozen=True)
class GroupMean:
    """One label in one group of cases."""

    group: Text
    cases: int  # with a Dice
    patients: int
    mean: float | None  # None: no case has a Dice
    interval: tuple[float, float] | None  # 95 %, over patients; None for fewer than two


@dataclass(frozen=True)
class Gap:
    """The largest difference between two groups, and the share of random deals with one that large."""

    best: Text
    worst: Text
    difference: float
    p: float | None  # None: not known, where no group has two patients

    @property
    def beyond_chance(self) -> bool:
        return self.p is not None and self.p < CHANCE


@dataclass(frozen=True)
class GroupTable:
    """The groups of one column."""

    column: Text
    labels: dict[Text, tuple[GroupMean, ...]]  # label, and MEAN -> one entry per group
    gaps: dict[Text, Gap | None]  # None: fewer than two groups have a Dice
    without: tuple[Text, ...]  # cases without a value


@dataclass(frozen=True)
class GroupScores:
    """All columns that were asked for; groups.json in the model's folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of group scores that this autoseg reads")]
    configuration: Text
    network: Text
    metric: Text
    tables: tuple[GroupTable, ...]


def compare(
    scores: Sequence[CaseScore], groups: Mapping[str, Sequence[str]], patients: Mapping[str, Hashable], column: str
) -> GroupTable:
    """Compare groups of scored cases, label by label and in the mean over labels.

    Args:
        groups: value of the column -> case ids; cases that were not scored are left out.
        patients: case id -> patient.
        column: its name.
    """
    home = {case: value for value, cases in groups.items() for case in cases}
    inside = [score for score in scores if score.case in home]
    labels = dict.fromkeys(label for score in scores for label in score.scores)
    values: dict[str, dict[str, float]] = {MEAN: {}}
    for label in labels:
        found = {score.case: score.scores[label][METRIC] for score in inside if label in score.scores}
        values[label] = {case: dice for case, dice in found.items() if dice is not None}
    for score in inside:
        defined = [dice for metrics in score.scores.values() if (dice := metrics[METRIC]) is not None]
        if defined:
            values[MEAN][score.case] = float(np.mean(defined))
    tables: dict[str, tuple[GroupMean, ...]] = {}
    gaps: dict[str, Gap | None] = {}
    for label in (*labels, MEAN) if len(labels) > 1 else labels:
        known = values[label]
        tables[label] = tuple(_mean_of(value, groups[value], known, patients) for value in groups)
        gaps[label] = largest_gap([*known.values()], [home[case] for case in known], [patients[case] for case in known])
    return GroupTable(column, tables, gaps, tuple(score.case for score in scores if score.case not in home))


def _mean_of(
    value: str, cases: Sequence[str], dice: Mapping[str, float], patients: Mapping[str, Hashable]
) -> GroupMean:
    known = [case for case in cases if case in dice]
    owners = [patients[case] for case in known]
    scores = [dice[case] for case in known]
    mean = float(np.mean(scores)) if scores else None
    return GroupMean(value, len(known), len(set(owners)), mean, interval_of_mean(scores, owners) if scores else None)


def largest_gap(values: Sequence[float], groups: Sequence[str], patients: Sequence[Hashable]) -> Gap | None:
    """The difference between the best and the worst group, and how often a random deal of patients has one as large.

    Args:
        values: one per case.
        groups: the group of each.
        patients: the patient of each; the cases of a patient within a group are dealt together.

    Returns:
        None for fewer than two groups.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return None
    units = list(dict.fromkeys(zip(groups, patients, strict=True)))
    place = {unit: i for i, unit in enumerate(units)}
    index = [place[unit] for unit in zip(groups, patients, strict=True)]
    sums = np.bincount(index, weights=np.asarray(values, float), minlength=len(units))
    counts = np.bincount(index, minlength=len(units)).astype(float)
    home = np.array([names.index(group) for group, _ in units])
    means = _means(home[None], sums, counts, len(names))[0]
    best, worst = int(means.argmax()), int(means.argmin())
    difference = float(means[best] - means[worst])
    if np.bincount(home).max() < 2:
        return Gap(names[best], names[worst], difference, None)
    random = np.random.default_rng(SEED)
    deals = random.permuted(np.broadcast_to(home, (DEALS, len(home))), axis=1)
    dealt = _means(deals, sums, counts, len(names))
    as_large = np.count_nonzero(np.ptp(dealt, axis=1) >= difference - 1e-12)
    return Gap(names[best], names[worst], difference, float((as_large + 1) / (DEALS + 1)))


def _means(homes: np.ndarray, sums: np.ndarray, counts: np.ndarray, groups: int) -> np.ndarray:
    """Mean over the cases of each group, for each deal (deals, units) of group numbers; (deals, groups)."""
    inside = [(homes == group).astype(float) for group in range(groups)]
    return np.stack([(mask @ sums) / (mask @ counts) for mask in inside], axis=1)


def describe(table: GroupTable) -> str:
    """A table per column: a line for each label and group, then the largest gap of each label in words."""
    rows = [[table.column, "label", "Dice", "95 % interval", "cases", "patients"]]
    for label, means in table.labels.items():
        for one in means:
            low, high = one.interval or (None, None)
            rows.append([
                one.group, label, "-" if one.mean is None else f"{one.mean:.4f}",
                "-" if low is None or high is None else f"{low:.4f} to {high:.4f}", str(one.cases), str(one.patients),
            ])  # fmt: skip
    lines = [ruled(rows), ""]
    lines += [f"{label}: {_in_words(gap)}" for label, gap in table.gaps.items()]
    if table.without:
        lines.append(
            f"note: {counted(len(table.without), 'case')} without a value of {table.column}: {some(table.without)}"
        )
    return "\n".join(lines)


def _in_words(gap: Gap | None) -> str:
    if gap is None:
        return "fewer than two groups have a Dice"
    line = f"the largest gap is {gap.difference:.4f}, from {gap.best} down to {gap.worst}"
    if gap.p is None:
        return f"{line}; with one patient per group, nobody knows whether that is chance"
    if gap.beyond_chance:
        return f"{line}: beyond chance (p {_p(gap.p)})"
    return f"{line}: no more than chance gives (p {_p(gap.p)})"


def _p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.095 else f"{p:.3f}" if p >= 0.001 else "below 0.001"
