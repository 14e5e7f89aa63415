"""A learning curve in words and a table."""

from autoseg.evaluation.learning_curve import Curve, Expected, LearningCurve
from autoseg.messages import counted, ruled


def describe(found: LearningCurve) -> str:
    """The table of shares, the curves, what twice the patients would bring, and what the fit cannot tell."""
    folds = sorted({result.fold for result in found.results})
    cases = {case for result in found.results for case in result.dice}
    head = (
        f"{found.configuration}, {found.network}: each share trained for {found.length}; the same "
        f"{counted(len(cases), 'held-out case')} of fold {', '.join(map(str, folds))} for all"
    )
    if found.mean is None:
        return f"{head}\nno held-out case holds a label: there is no Dice"
    return "\n\n".join([head, _table(found), "\n".join(_words(found))])


def _table(found: LearningCurve) -> str:
    assert found.mean is not None
    labels = list(found.labels) if len(found.labels) > 1 else []
    rows = [["share", "patients", "cases", "steps", "mean Dice", "95 % interval", *labels]]
    for i, point in enumerate(found.mean.points):
        of_share = [result for result in found.results if result.share == point.share]
        rows.append(
            [
                f"{point.share:g} %", f"{point.patients:.3g}", _range([r.cases for r in of_share]),
                _range([r.steps for r in of_share]), f"{point.dice.value:.4f}", _interval(point.dice),
                *(f"{found.labels[label].points[i].dice.value:.4f}" for label in labels),
            ]
        )  # fmt: skip
    return ruled(rows)


def _words(found: LearningCurve) -> list[str]:
    assert found.mean is not None
    lines = _of_curve("mean Dice", found.mean)
    if len(found.labels) > 1:
        for label, curve in found.labels.items():
            doubt = " (unclear)" if curve.unclear else ""
            lines.append(f"{label}: twice the patients: {_signed(curve.gain)}{doubt}")
    if not found.patients_known:
        lines.append("no patients are given: each case counts as a patient of its own")
    return lines


def _of_curve(what: str, curve: Curve) -> list[str]:
    lines = [f"{what} = {curve.a:.4f} - {curve.b:.3g} x patients^-{curve.c:.2f}"]
    if held := curve.held_back:
        lines.append(
            f"check: from the smaller shares, the curve expects {held.expected:.4f} at {held.share:g} %; measured: "
            f"{held.measured:.4f}; off by {_signed(held.difference)}"
        )
    lines.append(
        f"twice the patients ({curve.doubled_patients:.0f}): {what} {curve.doubled.value:.4f} "
        f"({_interval(curve.doubled)}), a gain of {_signed(curve.gain)}"
    )
    return lines + [f"WARNING: {reason}" for reason in curve.unclear]


def _signed(expected: Expected) -> str:
    return f"{expected.value:+.4f} (95 % interval {_interval(expected, '+')})"


def _interval(expected: Expected, sign: str = "") -> str:
    return f"{expected.low:{sign}.4f} to {expected.high:{sign}.4f}"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
