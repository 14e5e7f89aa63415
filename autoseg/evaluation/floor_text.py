"""The floor of a dataset in words and tables, and trained models beside it."""

from collections.abc import Sequence
from dataclasses import replace

from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.floor import CHOSEN, Beside, Floor
from autoseg.evaluation.object_scores import SHOWN
from autoseg.messages import counted, ruled


def describe(floor: Floor) -> str:
    """A table for every thing, or one for the labels; then a line per trained model."""
    parts = [
        f"{floor.dataset}: {counted(floor.cases, 'held-out case')}, without a network; numbers tuned on at most "
        f"{counted(floor.tried, 'training case')}"
    ]
    for thing, methods in floor.objects.items():
        rows = [
            [thing, *(f"AP {t:g}" for t in SHOWN), "AP 0.5-0.95", "95 % of AP 0.5", "PQ", "split", "merged", "found"]
        ]
        for method, found in methods.items():
            one = found.scores
            average = [*(one.average_precision[f"{t:g}"] for t in SHOWN), one.mean_average_precision]
            rows.append([
                _named(method, [recipe.method for recipe in found.recipes.values()]), *map(_number, average),
                _range(one.interval), _number(one.pq), f"{one.splits}", f"{one.merges}",
                f"{one.segmentation} of {one.reference}",
            ])  # fmt: skip
        parts.append(ruled(rows))
    if floor.labels:
        names = [*next(iter(floor.labels.values())).dice]
        rows = [["Dice", *names, "95 % of the mean"]]
        for method, labelled in floor.labels.items():
            called = _named(method, [recipe.method for recipe in labelled.recipes.values()])
            means = [_number(labelled.dice[name].mean) for name in names]
            rows.append([called, *means, _range(labelled.dice["mean"].interval)])
        parts.append(ruled(rows))
    parts.append("\n".join([_meaning(floor), *(one.verdict for one in floor.networks)]))
    return "\n\n".join(parts)


def compare_networks(floor: Floor, models: Sequence[CrossValidation]) -> Floor:
    """The same floor with trained models beside it that scored the same held-out cases.

    A model is better than the floor if its interval is above the floor's score.
    """
    beside = []
    for model in models:
        name = f"{model.configuration}-{model.network}"
        if len(model.cases) != floor.cases:
            continue  # not all folds are trained: other cases
        for thing, methods in floor.objects.items():
            if thing in model.objects:
                found, scores = methods[CHOSEN].scores, model.objects[thing]
                pair = scores.average_precision["0.5"], found.average_precision["0.5"]
                beside += _beside(name, f"average precision of {thing} at an IoU of 0.5", pair, scores.interval)
        if floor.labels and model.mean_dice is not None:
            dice = floor.labels[CHOSEN].dice
            named = {**{label: metrics["dice"] for label, metrics in model.summary.items()}, "mean": model.mean_dice}
            for label, network in named.items():
                if label in dice:
                    what = "mean Dice" if label == "mean" else f"Dice of {label}"
                    beside += _beside(name, what, (network.mean, dice[label].mean), network.interval)
    return replace(floor, networks=tuple(beside))


def _beside(
    model: str, what: str, scores: tuple[float | None, float | None], interval: tuple[float, float] | None
) -> list[Beside]:
    network, floor = scores
    if network is None or floor is None:
        return []
    shown = f"{model}: {what} {network:.4f}" + (f" ({_range(interval)})" if interval else "")
    if interval is None:
        verdict = f"{shown}, without a network {floor:.4f}; too few patients for an interval"
    elif floor > interval[1]:
        verdict = f"WARNING: {shown} is below {floor:.4f}, which needs no network"
    elif floor >= interval[0]:
        verdict = f"WARNING: {shown}; {floor:.4f} without a network is within its interval: no gain is shown"
    else:
        verdict = f"{shown} is above {floor:.4f} without a network, beyond chance"
    return [Beside(model, what, network, interval, floor, verdict)]


def _meaning(floor: Floor) -> str:
    if floor.objects:
        value, what = max(
            (methods[CHOSEN].scores.average_precision["0.5"] or 0.0, thing) for thing, methods in floor.objects.items()
        )
        return f"{CHOSEN}: the method that training cases prefer; {what} reach {value:.4f} (AP 0.5) without a network"
    value = floor.labels[CHOSEN].dice["mean"].mean or 0.0
    return f"{CHOSEN}: the method that training cases prefer; it reaches a mean Dice of {value:.4f} without a network"


def _named(method: str, methods: Sequence[str]) -> str:
    if method != CHOSEN:
        return method
    return f"{CHOSEN}: {', '.join(sorted(set(methods)))}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _range(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
