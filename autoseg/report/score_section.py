"""The section of the cross-validation: tables with intervals, charts, and what other records add."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from autoseg.errors import AutosegError
from autoseg.evaluation.click_curves import HEADER, ClickTable, rows_of
from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.evaluate import mean_over_labels
from autoseg.evaluation.expected_dice import ExpectedDiceRecord
from autoseg.messages import counted
from autoseg.planning.prompted import prompted_of
from autoseg.records import load
from autoseg.report.data_figures import Figure
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import case_means, interval_text, quartiles, size_unit, sizes_of
from autoseg.report.reliability import measured, recorded
from autoseg.report.score_figures import expected_dice, reliability, score_figures
from autoseg.report.sections import Gap, Section, Table

FEW = 10  # cases of the table of the worst ones
MILLIMETRES = ("hd", "hd95", "assd", "masd")  # metrics in mm


def score_section(of: Gathered) -> Section:
    """Scores of the held-out cases; where there are none, the command that makes them."""
    scores = of.scores
    if scores is None or not scores.cases:
        ready = any(fold.finished and fold.segmented for fold in of.folds)
        command = of.command("evaluate") if ready else of.command("train")
        what = "not evaluated yet" if ready else "no fold is trained: nothing to evaluate"
        return Section(gaps=(Gap(what, command),))
    unit = size_unit(of.fingerprint.cases)[0] if of.fingerprint else "voxels"
    sizes = sizes_of(scores, of.fingerprint, of.plan.labels)
    figures = score_figures(scores, sizes, unit, ["background", *of.plan.labels.values])
    extra, gaps = _sureness(of)
    tables = [_by_label(of, scores), _by_fold(scores), _worst(scores)]
    if scores.objects:
        tables.insert(0, _objects(scores))
    if of.others:
        tables.append(_models(of, scores))
    if clicks := _clicks(of):
        tables.append(clicks)
    return Section(
        tables=tuple(tables),
        figures=(*figures, *extra),
        sentences=tuple(_sentences(scores)),
        gaps=tuple(gaps),
        folded=(("All metrics, means over cases", _every_metric(scores)), *_records(of)),
    )


def _by_label(of: Gathered, scores: CrossValidation) -> Table:
    rows = []
    for label in scores.summary:
        known = [(case.case, value) for case in scores.cases if (value := case.scores[label]["dice"]) is not None]
        values = [value for _, value in known]
        if not values:
            rows.append((label, "-", "-", "-", "-", "-", "0", ""))
            continue
        groups = [of.patients.get(case, case) for case, _ in known]
        low, median, high = quartiles(values)
        mean = float(np.mean(values))
        rows.append((
            label, f"{mean:.3f} ± {np.std(values):.3f}", interval_text(values, groups),
            f"{median:.3f} ({low:.3f} to {high:.3f})", f"{min(values):.3f}", _distance(scores, label), str(len(values)),
            scores.bands.of(mean),
        ))  # fmt: skip
    header = (
        *("label", "Dice: mean ± SD", "95 % interval of the mean", "median (quartiles)"),
        *("worst", "HD95, mm", "cases", "verdict"),
    )
    return Table(header, tuple(rows), "Dice of each label")


def _distance(scores: CrossValidation, label: str) -> str:
    """Mean HD95 over found cases, and how many were missed; with the image's diagonal for those, where it is known."""
    summary = scores.summary[label].get("hd95")
    if summary is None or summary.mean is None:
        return "-"
    penalised = getattr(summary, "mean_penalised", None)
    lost = sum(
        case.scores[label].get("hd95") is None and case.scores[label]["dice"] is not None for case in scores.cases
    )
    if not lost:
        return f"{summary.mean:.2f}"
    with_penalty = "" if penalised is None else f"; {penalised:.2f} with the image's diagonal for those"
    return f"{summary.mean:.2f} ({lost} without{with_penalty})"


def _objects(scores: CrossValidation) -> Table:
    """Objects that were found, split and merged, of every kind."""
    rows = []
    for name, one in scores.objects.items():
        first, span = one.average_precision["0.5"], one.interval
        shown = "-" if first is None else f"{first:.3f}"
        shown += f" ({span[0]:.3f} to {span[1]:.3f})" if span else ""
        rest = [one.average_precision["0.75"], one.mean_average_precision, one.pq, one.rq, one.sq]
        rows.append((
            name, shown, *("-" if value is None else f"{value:.3f}" for value in rest), str(one.splits),
            str(one.merges), str(one.reference), str(one.segmentation),
        ))  # fmt: skip
    header = (
        *("objects", "AP at IoU 0.5 (95 % interval)", "AP 0.75", "AP 0.5-0.95", "PQ", "RQ", "SQ", "split", "merged"),
        *("in the references", "found"),
    )
    return Table(header, tuple(rows), "Objects of all held-out images")


def _by_fold(scores: CrossValidation) -> Table:
    labels = list(scores.summary)
    shown = labels[:8]
    rows = []
    for fold in scores.folds:
        means = list(case_means(fold.cases).values())
        row = [f"fold {fold.fold}", str(len(fold.cases)), f"{np.mean(means):.3f}" if means else "-"]
        for label in shown:
            values = [value for case in fold.cases if (value := case.scores[label]["dice"]) is not None]
            row.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "-")
        rows.append(tuple(row))
    few = "" if len(shown) == len(labels) else f" (the first {len(shown)} of {len(labels)} labels)"
    return Table(("fold", "cases", "mean", *shown), tuple(rows), f"Dice of each fold, mean ± SD over cases{few}")


def _worst(scores: CrossValidation) -> Table:
    means = case_means(scores.cases)
    folds = {case.case: fold.fold for fold in scores.folds for case in fold.cases}
    by_id = {case.case: case for case in scores.cases}
    rows = []
    for case in sorted(means, key=lambda name: means[name])[:FEW]:
        known = {label: one["dice"] for label, one in by_id[case].scores.items() if one["dice"] is not None}
        label = min(known, key=lambda name: known[name] or 0.0)
        rows.append((case, f"fold {folds[case]}", f"{means[case]:.3f}", f"{label} {known[label]:.3f}"))
    return Table(("case", "fold", "mean Dice", "lowest label"), tuple(rows), "The worst cases")


def _models(of: Gathered, scores: CrossValidation) -> Table:
    """All evaluated models of the workspace."""
    rows = []
    for name, one in {f"{of.configuration}, {of.network}": scores, **of.others}.items():
        dice = mean_over_labels(one.summary)
        shown = "-" if dice is None else f"{dice:.4f}"
        rows.append((name, shown, str(len(one.cases)), f"{len(one.folds)} of {one.planned_folds}"))
    return Table(("model", "mean Dice", "cases", "folds"), tuple(rows), "Models of this workspace")


def _every_metric(scores: CrossValidation) -> Table:
    metrics = list(dict.fromkeys(metric for one in scores.summary.values() for metric in one))
    rows = []
    for label, summary in scores.summary.items():
        row = [label]
        for metric in metrics:
            one = summary.get(metric)
            digits = 3 if one is None or one.mean is None or abs(one.mean) < 10 else 2
            row.append("-" if one is None or one.mean is None else f"{one.mean:.{digits}f} ({one.defined})")
        rows.append(tuple(row))
    header = ("label", *(f"{metric}, mm" if metric in MILLIMETRES else metric for metric in metrics))
    return Table(header, tuple(rows), "In brackets: cases where the metric is defined")


def _sentences(scores: CrossValidation) -> list[str]:
    found = [
        "Every case is scored once, by the network of the fold that held it out. Intervals are percentiles of a "
        "bootstrap over patients, whose cases are not independent of each other."
    ]
    if len(scores.folds) < scores.planned_folds:
        found.append(
            f"{counted(len(scores.folds), 'fold')} of {scores.planned_folds}: cases of the others are not in the "
            "tables, so intervals are wider than they will be."
        )
    return found


def _sureness(of: Gathered) -> tuple[list[Figure], list[Gap]]:
    """Reliability of probabilities, and of the expected Dice, where they exist."""
    figures, gaps = [], []
    found = recorded(of) or measured(of)
    if found is not None:
        figures.append(reliability(found.bins, found.error, found.cases))
    else:
        gaps.append(Gap("whether probabilities mean what they say", of.command("evaluate", "--calibration")))
    path = of.workspace.expected_dice(of.configuration, of.network)
    record = None
    with suppress(AutosegError):  # of another version, or damaged
        record = load(ExpectedDiceRecord, path) if path.exists() else None
    if record is not None and record.mean is not None:
        points = [
            (record.mean.at(float(np.mean(list(known.values())))).dice, float(np.mean(list(case.dice.values()))))
            for case in record.cases
            if (known := case.scores.get(record.score)) and case.dice
        ]
        if points:
            figures.append(expected_dice(points, record.mean.mean_error))
    else:
        gaps.append(Gap("how well the network knows its own errors", of.command("evaluate", "--expected-dice")))
    return figures, gaps


def _clicks(of: Gathered) -> Table | None:
    """What clicks bring to the model, where `evaluate --clicks` measured it."""
    name = prompted_of(of.plan, of.configuration) if of.configuration in of.plan.configurations else None
    path = of.workspace.clicks(name or of.configuration, of.network)
    found = None
    with suppress(AutosegError):  # of another version, or damaged
        found = load(ClickTable, path) if path.exists() else None
    if found is None or not found.cases:
        return None
    return Table(
        HEADER, tuple(rows_of(found)),
        f"Dice of {counted(len(found.cases), 'held-out case')} after clicks of a simulated person on the "
        f"largest error, by {found.configuration}; the gain is over no click",
    )  # fmt: skip


def _records(of: Gathered) -> list[tuple[str, Table]]:
    """Records of other commands, as they are: leakage, decision, learning curve."""
    titles = {
        "leakage.json": "Leakage between folds",
        "decision.json": "Decision rule and post-processing",
        "learning_curve.json": "Learning curve",
    }
    return [
        (title, Table(("key", "value"), tuple(flat(of.extras[file]))))
        for file, title in titles.items()
        if file in of.extras
    ]


def flat(plain: Any, prefix: str = "", most: int = 200) -> list[tuple[str, str]]:
    """Plain data as rows of key and value, nested keys joined by dots; the first of many."""
    if isinstance(plain, dict):
        rows = [row for key, value in plain.items() for row in flat(value, f"{prefix}.{key}".lstrip("."))]
    elif isinstance(plain, list) and any(isinstance(one, (dict, list)) for one in plain):
        rows = [row for i, value in enumerate(plain) for row in flat(value, f"{prefix}[{i}]")]
    else:
        rows = [(prefix, _value(plain))]
    return rows[:most]


def _value(plain: Any) -> str:
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return ", ".join(map(_value, plain)) or "none"
    return f"{plain:.6g}" if isinstance(plain, float) else "-" if plain is None else str(plain)
