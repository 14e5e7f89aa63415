"""A comparison of two sets of segmentations, in words and tables."""

from collections.abc import Mapping

from autoseg.evaluation.compare import BEST, DISTANCES, Comparison, better_of
from autoseg.evaluation.paired import Paired, least_p
from autoseg.messages import counted, ruled, some

NAMED = 10  # cases in a line about many
NAMES = {"dice": "Dice", "iou": "IoU"}
SIGNIFICANT = 0.05
IN_FILES_ALONE = (  # metrics that the table leaves out, so that it is short
    *("specificity", "f2", "volume_error", "volume_error_ml", "hd", "assd", "boundary_f1", "boundary_iou"),
    *("centreline_dice", "lesion_sensitivity", "lesion_precision", "lesion_f1", "lesion_tp", "lesion_fp", "lesion_fn"),
    *("pq", "rq", "sq"),
)


def describe(comparison: Comparison) -> str:
    """The verdict, the tables, and what was left out."""
    one = comparison
    among = f"of {counted(one.patients, 'patient')}" if one.patients_known else "each taken for a patient of its own"
    head = [
        f"A: {one.a}: {one.what_a}",
        f"B: {one.b}: {one.what_b}",
        f"{counted(len(one.cases), 'case')} on both sides, {among}",
        *_left_out(one),
        *(f"note: {note}" for note in one.notes),
    ]
    parts = ["\n".join(head), *([table] if (table := _table(one)) else []), _presence(one), _largest(one)]
    words = [*verdicts(one), "intervals and p-values are over patients; training both again would vary the result, too"]
    return "\n\n".join([*filter(None, parts), "\n".join(words)])


def verdicts(comparison: Comparison) -> list[str]:
    """What was shown, in words: of the mean over labels, then of the labels."""
    metric, decisive = comparison.metric, comparison.decisive
    if decisive is None:
        return [f"nothing to compare: no case has a value of {metric} on both sides"]
    over = "mean over labels" if len(comparison.labels) > 1 else next(iter(comparison.labels))
    lines = [_verdict(over, decisive, metric)]
    if least_p(decisive.patients) > SIGNIFICANT:
        lines.append(
            f"{counted(decisive.patients, 'patient')} can never show a difference: p is at least "
            f"{min(1.0, least_p(decisive.patients)):.3g} whatever the values; at least 6 patients are needed"
        )
    labels = {label: found[metric] for label, found in comparison.labels.items() if metric in found}
    if len(labels) < 2:
        return lines
    corrected = f"p corrected by Holm for {len(labels)} labels"
    shown = [_verdict(label, found, metric, corrected) for label, found in labels.items() if found.shown]
    return lines + (shown or [f"no difference shown in any of {len(labels)} labels ({corrected})"])


def _verdict(what: str, found: Paired, metric: str, corrected: str = "") -> str:
    name = NAMES.get(metric, metric)
    interval = "" if found.low is None else f"95 % interval {_signed(found.low)} to {_signed(found.high)}, "
    p = _p(found.p_corrected if corrected else found.p)
    sure = f"({interval}p = {p}{', ' + corrected if corrected else ''})"
    winner = better_of(found, metric)
    unit = " mm" if metric in DISTANCES else ""
    if winner:
        return f"{what}: {winner} is better by {_plain(abs(found.difference))}{unit} in {name}; B - A is " + (
            f"{_signed(found.difference)} {sure}"
        )
    if found.shown:
        return (
            f"{what}: B - A is {_signed(found.difference)}{unit} in {name} {sure}; which values are better is unknown"
        )
    if found.tied == found.cases:
        return f"{what}: both sides have the same {name} in every case"
    could = (
        ""
        if found.detectable is None
        else f"; {counted(found.patients, 'patient')} with this spread show a difference of "
        f"{_plain(found.detectable)}{unit} in 4 of 5 repetitions, and a smaller one less often"
    )
    return f"{what}: no difference shown in {name}; B - A is {_signed(found.difference)}{unit} {sure}{could}"


def _table(comparison: Comparison) -> str:
    """The deciding metric by label; of the others, the mean over labels. Files hold all metrics by label."""
    header = ["", "A", "B", "B - A", "95 % interval", "p", "A better", "B better", "tied", "detectable", "cases"]
    rows = [header]
    labels: Mapping[str, dict[str, Paired]] = comparison.labels
    if len(labels) > 1:
        rows += [
            _row(f"{comparison.metric} {label}", found[comparison.metric])
            for label, found in labels.items()
            if comparison.metric in found
        ]
    named = "mean" if len(labels) > 1 else next(iter(labels))
    others = [name for name in comparison.mean if name != comparison.metric and name not in IN_FILES_ALONE]
    rows += [
        _row(f"{name} {named}", comparison.mean[name])
        for name in (comparison.metric, *others)
        if name in comparison.mean
    ]
    return ruled(rows) if len(rows) > 1 else ""


def _row(name: str, found: Paired) -> list[str]:
    better = [str(found.won_a), str(found.won_b)] if found.won_a is not None else ["?", "?"]
    interval = "-" if found.low is None else f"{_signed(found.low)} to {_signed(found.high)}"
    left_out = f" (+{found.unpaired} on one side)" if found.unpaired else ""
    return [
        name, _plain(found.mean_a), _plain(found.mean_b), _signed(found.difference), interval, _p(found.p_corrected),
        *better, str(found.tied), "-" if found.detectable is None else _plain(found.detectable),
        f"{found.cases}{left_out}",
    ]  # fmt: skip


def _presence(comparison: Comparison) -> str:
    """A line for each label that a side misses, or segments where there is none."""
    lines = []
    for label, found in comparison.presence.items():
        if found.missed_a or found.missed_b:
            lines.append(
                f"{label}: of {counted(found.with_label, 'case')} with it, A misses {found.missed_a} and B "
                f"{found.missed_b}"
            )
        if found.spurious_a or found.spurious_b:
            lines.append(
                f"{label}: of {counted(found.without_label, 'case')} without it, A segments some in "
                f"{found.spurious_a} and B in {found.spurious_b}"
            )
    return "\n".join(lines)


def _largest(comparison: Comparison) -> str:
    if not comparison.largest:
        return ""
    name = NAMES.get(comparison.metric, comparison.metric)
    known = comparison.metric in BEST
    rows = [[f"largest differences in {name}", "label", "A", "B", "B - A", *(["better"] if known else [])]]
    rows += [
        [d.case, d.label, _plain(d.a), _plain(d.b), _signed(d.difference), *([d.better] if known else [])]
        for d in comparison.largest
    ]
    return ruled(rows)


def _left_out(comparison: Comparison) -> list[str]:
    lines = []
    for side, cases, labels in (
        ("A", comparison.only_a, comparison.labels_only_a),
        ("B", comparison.only_b, comparison.labels_only_b),
    ):
        if cases:
            lines.append(f"not compared, only in {side}: {counted(len(cases), 'case')}: {some(cases, NAMED)}")
        if labels:
            lines.append(f"not compared, only in {side}: {counted(len(labels), 'label')}: {some(labels, NAMED)}")
    return lines


def _plain(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}" if abs(value) < 10 else f"{value:+.2f}"


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
