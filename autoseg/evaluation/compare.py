"""Two sets of segmentations of the same cases: is one better, by how much, how sure, and where.

    compare   scores of A and of B -> Comparison
    rows_of   a row per case, label and metric: what `--csv` writes

What it says in words is in `comparison_text`.

Every metric is compared case by case: the mean of B - A, its 95 % interval (bootstrap over patients), and the p-value
of a paired sign-flip test over patients. The mean over labels is one test. The labels' p-values are corrected by Holm
within a metric; their intervals are of one label alone. Metrics are several views of one difference: across them,
nothing is corrected, and the one that decides is named before (`metric`).

A distance is not defined where a label is missed or spurious. It then counts the image's diagonal, where that is known,
so that a model does not gain by missing an object; otherwise the case is left out of that metric, and counted. Dice of
a case that holds a label on neither side is not defined: `Presence` counts where one side alone is right about that.

The interval and the test are about patients: how the difference would vary with others. How it would vary if both
models were trained again, they cannot know.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from autoseg.evaluation.evaluate import presence
from autoseg.evaluation.label_scores import DISTANCES
from autoseg.evaluation.paired import Paired, detectable, holm, interval_of_difference, sign_flips

Metrics = Mapping[str, float | None]
BEST: dict[str, Literal["high", "low", "zero"]] = {  # which values are better
    **dict.fromkeys(("dice", "iou", "recall", "precision", "specificity", "f2", "nsd", "boundary_f1"), "high"),
    **dict.fromkeys(("boundary_iou", "centreline_dice", "lesion_sensitivity", "lesion_precision"), "high"),
    **dict.fromkeys(("lesion_f1", "lesion_tp", "pq", "rq", "sq"), "high"),
    **dict.fromkeys((*DISTANCES, "lesion_fp", "lesion_fn"), "low"),
    **dict.fromkeys(("volume_error", "volume_error_ml"), "zero"),
}
LARGEST = 10
TIE = 1e-9
HIDDEN = ("presence", "diagonal_mm")  # columns of a table of scores that are not metrics


@dataclass(frozen=True)
class Scored:
    """One side: what it is called, and its scores."""

    name: str
    what: str
    cases: dict[str, dict[str, dict[str, float | None]]]  # case -> label or region -> metric -> value
    diagonals: dict[str, float] = field(default_factory=dict)  # case -> mm
    others: tuple[str, ...] = ()  # further cases, which were not scored because the other side lacks them


@dataclass(frozen=True)
class Presence:
    """Whether a label was found, over the cases that both sides have."""

    with_label: int  # cases whose reference holds it
    missed_a: int
    missed_b: int
    without_label: int
    spurious_a: int  # cases without it, in which A segments some
    spurious_b: int


@dataclass(frozen=True)
class CaseDifference:
    """One label of one case."""

    case: str
    label: str
    a: float
    b: float
    difference: float  # b - a
    better: Literal["A", "B", "neither"]


@dataclass(frozen=True)
class Comparison:
    """B against A on the cases that both have."""

    a: str
    b: str
    what_a: str
    what_b: str
    metric: str  # the one that decides
    better: Literal["A", "B"] | None  # None: no difference shown in the mean over labels
    cases: tuple[str, ...]
    only_a: tuple[str, ...]  # cases that B lacks
    only_b: tuple[str, ...]
    labels_only_a: tuple[str, ...]
    labels_only_b: tuple[str, ...]
    patients: int
    patients_known: bool  # False: each case counts as a patient of its own
    labels: dict[str, dict[str, Paired]]  # label -> metric -> difference, for metrics that a case has on both sides
    mean: dict[str, Paired]  # metric -> difference of the mean over labels
    presence: dict[str, Presence]
    largest: tuple[CaseDifference, ...]  # of the deciding metric, at most LARGEST
    notes: tuple[str, ...] = ()

    @property
    def decisive(self) -> Paired | None:
        """The difference that decides: that of the mean over labels; None where no case has the metric."""
        return self.mean.get(self.metric)


def compare(
    a: Scored, b: Scored, patients: Mapping[str, str] | None = None, *, metric: str = "dice", notes: Sequence[str] = ()
) -> Comparison:
    """Compare the scores of the cases and labels that both sides have.

    Args:
        patients: case -> patient; a case that is not in it is a patient of its own. None: nobody knows them.
        metric: the one that decides.

    Raises:
        ValueError: no case, no label or no metric in common; the caller names what there is.
    """
    cases = tuple(sorted(set(a.cases) & set(b.cases)))
    there = [_labels_of(side) for side in (a, b)]
    labels = [label for label in there[0] if label in there[1]]
    metrics = [name for name in _metrics_of(a) if name in _metrics_of(b)]
    if not cases or not labels or metric not in metrics:
        raise ValueError(f"nothing to compare: {len(cases)} cases, labels {labels}, metrics {metrics}")
    patient = {case: (patients or {}).get(case, case) for case in cases}
    values = {  # label -> metric -> case -> both values
        label: {name: _pairs(a, b, cases, label, name) for name in metrics} for label in labels
    }
    over_labels = {name: _over_labels([values[label][name] for label in labels]) for name in metrics}
    mean = _paired_metrics(over_labels, patient, tests=1)
    found = {label: _paired_metrics(of_label, patient, tests=len(labels)) for label, of_label in values.items()}
    for name in metrics:
        tested = [label for label in labels if name in found[label]]
        for label, p in zip(tested, holm([found[label][name].p for label in tested]), strict=True):
            found[label][name] = replace(found[label][name], p_corrected=p)
    return Comparison(
        a.name, b.name, a.what, b.what, metric, better_of(mean.get(metric), metric), cases,
        _only(a, b), _only(b, a),
        tuple(label for label in there[0] if label not in there[1]),
        tuple(label for label in there[1] if label not in there[0]),
        len(set(patient.values())), patients is not None, found, mean,
        {label: _presence(a, b, cases, label) for label in labels},
        _largest({label: values[label][metric] for label in labels}, metric), tuple(notes),
    )  # fmt: skip


def rows_of(a: Scored, b: Scored, patients: Mapping[str, str] | None, comparison: Comparison) -> Iterator[list]:
    """A header, then a row per case, label and metric: case, patient, label, metric, a, b, b - a, who is better."""
    yield ["case", "patient", "label", "metric", "a", "b", "difference", "better"]
    metrics = [name for name in _metrics_of(a) if name in _metrics_of(b)]
    for case in comparison.cases:
        for label in comparison.labels:
            for name in metrics:
                one, other = _pairs(a, b, [case], label, name)[case]
                row = [case, (patients or {}).get(case, case), label, name, _cell(one), _cell(other)]
                if one is None or other is None:
                    yield [*row, "", ""]
                else:
                    yield [*row, other - one, _winner(one, other, name) or ""]


def _only(one: Scored, other: Scored) -> tuple[str, ...]:
    """The cases that the other side lacks."""
    return tuple(sorted({*one.cases, *one.others} - set(other.cases)))


def _labels_of(side: Scored) -> list[str]:
    return list(dict.fromkeys(label for labels in side.cases.values() for label in labels))


def _metrics_of(side: Scored) -> list[str]:
    first = next(iter(side.cases.values()), {})
    return [name for name in next(iter(first.values()), {}) if name not in HIDDEN]


def _pairs(
    a: Scored, b: Scored, cases: Sequence[str], label: str, metric: str
) -> dict[str, tuple[float | None, float | None]]:
    """Case -> the value of A and of B; volumes' errors without their sign."""
    found = {}
    for case in cases:
        diagonal = a.diagonals.get(case, b.diagonals.get(case))
        one, other = (_value(side.cases[case].get(label, {}), metric, diagonal) for side in (a, b))
        found[case] = (one, other)
    return found


def _value(metrics: Metrics, metric: str, diagonal: float | None) -> float | None:
    value = metrics.get(metric)
    if value is None and metric in DISTANCES and presence(metrics) in ("missed", "spurious"):
        return diagonal
    return abs(value) if value is not None and BEST.get(metric) == "zero" else value


def _over_labels(
    by_label: Sequence[Mapping[str, tuple[float | None, float | None]]],
) -> dict[str, tuple[float | None, float | None]]:
    """Case -> both means over the labels that have both values there."""
    means: dict[str, tuple[float | None, float | None]] = {}
    for case in by_label[0]:
        pairs = [pairs[case] for pairs in by_label if None not in pairs[case]]
        means[case] = tuple(float(np.mean(side)) for side in zip(*pairs, strict=True)) if pairs else (None, None)  # type: ignore[assignment]
    return means


def _paired_metrics(
    values: Mapping[str, Mapping[str, tuple[float | None, float | None]]], patient: Mapping[str, str], *, tests: int
) -> dict[str, Paired]:
    """Metric -> difference; metrics that no case has on both sides are left out."""
    return {
        name: _paired(pairs, patient, name, tests=tests)
        for name, pairs in values.items()
        if any(None not in pair for pair in pairs.values())
    }


def _paired(
    pairs: Mapping[str, tuple[float | None, float | None]], patient: Mapping[str, str], metric: str, *, tests: int
) -> Paired:
    """The difference over the cases that have both values; there is one at least."""
    both = {case: (a, b) for case, (a, b) in pairs.items() if a is not None and b is not None}
    groups = [patient[case] for case in both]
    values = [b - a for a, b in both.values()]
    p, exact = sign_flips(values, groups)
    low, high = interval_of_difference(values, groups) or (None, None)
    winners = [_winner(a, b, metric) for a, b in both.values()]
    mean_a, mean_b = (float(np.mean([pair[side] for pair in both.values()])) for side in (0, 1))
    known = metric in BEST
    return Paired(
        len(both), len(set(groups)), mean_a, mean_b,
        float(np.mean(values)), low, high, p, p, exact,
        detectable(values, groups, alpha=0.05 / tests),
        winners.count("A") if known else None, winners.count("B") if known else None,
        sum(abs(value) <= TIE for value in values), sum((a is None) != (b is None) for a, b in pairs.values()),
    )  # fmt: skip


def _winner(a: float, b: float, metric: str) -> Literal["A", "B", "neither"] | None:
    """Which value is better; None where nobody knows which values are."""
    if metric not in BEST:
        return None
    if abs(b - a) <= TIE:
        return "neither"
    return "B" if (b > a) == (BEST[metric] == "high") else "A"


def better_of(found: Paired | None, metric: str) -> Literal["A", "B"] | None:
    """Which side is better; None where that was not shown, or nobody knows which values are better."""
    if found is None or not found.shown:
        return None
    winner = _winner(0.0, found.difference, metric)
    return None if winner == "neither" else winner


def _presence(a: Scored, b: Scored, cases: Sequence[str], label: str) -> Presence:
    states = [[presence(side.cases[case].get(label, {})) for side in (a, b)] for case in cases]
    with_label = sum(bool({"found", "missed"} & set(pair)) for pair in states)
    (missed_a, missed_b), (spurious_a, spurious_b) = (
        [sum(pair[side] == state for pair in states) for side in (0, 1)] for state in ("missed", "spurious")
    )
    return Presence(with_label, missed_a, missed_b, len(cases) - with_label, spurious_a, spurious_b)


def _largest(
    by_label: Mapping[str, Mapping[str, tuple[float | None, float | None]]], metric: str
) -> tuple[CaseDifference, ...]:
    found = [
        CaseDifference(case, label, a, b, b - a, _winner(a, b, metric) or "neither")
        for label, pairs in by_label.items()
        for case, (a, b) in pairs.items()
        if a is not None and b is not None and abs(b - a) > TIE
    ]
    return tuple(sorted(found, key=lambda d: (-abs(d.difference), d.case, d.label))[:LARGEST])


def _cell(value: float | None) -> float | str:
    return "" if value is None else value
