"""Charts of a cross-validation: Dice by label and by fold, against size, agreement, confusion, reliability."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.evaluate import total_confusion
from autoseg.messages import counted
from autoseg.report.data_figures import MOST_LABELS, ROW, WIDE, Figure, boxes, name_rows, shortened
from autoseg.report.numbers import Sizes, bland_altman, case_means
from autoseg.report.svg import INK, MUTED, ON_FIRST, chart, colour, inline, logarithmic, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 1500  # of one scatter chart; of more cases an even selection is drawn
MOST_AGREEMENTS = 6  # labels with a Bland-Altman chart of their own
MOST_CLASSES = 12  # rows of the confusion matrix that are drawn
MOST_LEGEND = 7


def score_figures(scores: CrossValidation, sizes: Sequence[Sizes], unit: str, names: Sequence[str]) -> list[Figure]:
    """The charts of a cross-validation.

    Args:
        sizes: of each label in each case; empty where spacings are not known.
        unit: of the sizes.
        names: of the rows of the confusion matrix, background first.
    """
    found = [_by_label(scores)]
    if len(scores.folds) > 1:
        found.append(_by_fold(scores))
    if sizes:
        found += [_against_size(sizes, unit), *agreements(sizes, unit)]
    return [*found, confusion(total_confusion(scores.cases), names)]


def _by_label(scores: CrossValidation) -> Figure:
    labels = list(scores.summary)
    values = {name: _dice_of(scores, name) for name in labels}
    known = sorted((name for name in labels if values[name]), key=lambda name: np.median(values[name]))
    drawn = sorted(known[:MOST_LABELS], key=labels.index, reverse=True)
    with chart(height=max(1.5, 0.9 + 1.4 * ROW * len(drawn))) as (figure, axes):
        boxes(axes, [values[name] for name in drawn], [labels.index(name) for name in drawn])
        name_rows(axes, drawn)
        axes.set_xlabel("Dice of a case")
        axes.set_xlim(right=1.005)
        few = "" if len(known) == len(drawn) else f" The {len(drawn)} of {len(known)} labels with the lowest median."
        caption = f"{counted(len(scores.cases), 'case')}, each segmented by the fold that held it out.{few}"
        return Figure("Dice by label", caption, inline(figure, "bylabel", "Dice of each label"))


def _by_fold(scores: CrossValidation) -> Figure:
    folds = scores.folds[::-1]
    with chart(height=0.9 + 1.4 * ROW * len(folds)) as (figure, axes):
        labels = list(scores.summary)
        if len(labels) <= 3:
            rows = [
                (f"fold {fold.fold}, {name}", i, [v for c in fold.cases if (v := c.scores[name]["dice"]) is not None])
                for fold in folds
                for i, name in reversed(list(enumerate(labels)))
            ]
            figure.set_size_inches(figure.get_figwidth(), 0.9 + 1.1 * ROW * len(rows))
        else:
            rows = [(f"fold {fold.fold}", 0, list(case_means(fold.cases).values())) for fold in folds]
        rows = [row for row in rows if row[2]]
        boxes(axes, [values for *_, values in rows], [index for _, index, _ in rows])
        name_rows(axes, [shortened(name, 28) for name, *_ in rows])
        axes.set_xlabel("Dice of a case" if len(labels) <= 3 else "mean Dice of a case over labels")
        axes.set_xlim(right=1.005)
        caption = "A fold that stands apart has other patients, or was trained worse."
        return Figure("Dice by fold", caption, inline(figure, "byfold", "Dice of each fold"))


def _dice_of(scores: CrossValidation, label: str) -> list[float]:
    return [value for case in scores.cases if (value := case.scores[label]["dice"]) is not None]


def _against_size(sizes: Sequence[Sizes], unit: str) -> Figure:
    labels = list(dict.fromkeys(one.label for one in sizes))
    known = [one for one in sizes if one.dice is not None and one.reference > 0]
    with chart() as (figure, axes):
        for i, label in enumerate(labels):
            chosen = thinned([one for one in known if one.label == label], MOST_POINTS // len(labels) + 1)
            dice = [one.dice for one in chosen if one.dice is not None]
            _scatter(axes, [one.reference for one in chosen], dice, i, label if len(labels) <= MOST_LEGEND else None)
        _scale(axes, [one.reference for one in known])
        axes.set_xlabel(f"size in the reference, {unit}" + _log_note(axes))
        axes.set_ylabel("Dice")
        axes.set_ylim(top=1.005)
        if 1 < len(labels) <= MOST_LEGEND:
            axes.legend(labelcolor=INK, loc="lower right", markerscale=1.6)
        caption = "A point per case and label. Small objects lose more Dice to the same error at their edge."
        return Figure("Dice against size", caption, inline(figure, "againstsize", "Dice against the label's size"))


def agreements(sizes: Sequence[Sizes], unit: str) -> list[Figure]:
    """One Bland-Altman chart per label, of those with the widest limits relative to their size first."""
    labels = list(dict.fromkeys(one.label for one in sizes))
    found = []
    for i, label in enumerate(labels):
        chosen = [one for one in sizes if one.label == label and one.reference + one.segmented > 0]
        agreement = bland_altman([one.reference for one in chosen], [one.segmented for one in chosen])
        if agreement is None:
            continue
        typical = max(float(np.median([one.reference for one in chosen])), 1e-9)
        found.append(((agreement.high - agreement.low) / typical, i, label, chosen, agreement))
    widest = sorted(found, key=lambda one: -one[0])[:MOST_AGREEMENTS]
    figures = []
    for _, i, label, chosen, agreement in sorted(widest, key=lambda one: one[1]):
        with chart() as (figure, axes):
            few = thinned(chosen, MOST_POINTS)
            middle = [(one.reference + one.segmented) / 2 for one in few]
            _scatter(axes, middle, [one.segmented - one.reference for one in few], i, None)
            for value, name in ((agreement.bias, "bias"), (agreement.low, "−1.96 SD"), (agreement.high, "+1.96 SD")):
                axes.axhline(value, color=INK, linewidth=1, linestyle="-" if name == "bias" else (0, (4, 3)))
                axes.annotate(f"{name} {signed(value)}", (1, value), xycoords=("axes fraction", "data"), ha="right",
                              va="bottom", fontsize=7.5, color=INK)  # fmt: skip
            _scale(axes, middle)
            axes.set_xlabel(f"mean of reference and segmentation, {unit}" + _log_note(axes))
            axes.set_ylabel(f"segmentation − reference, {unit}")
            caption = (
                f"Bland-Altman, {counted(agreement.cases, 'case')}: bias {signed(agreement.bias)} {unit}, 95 % limits "
                f"{signed(agreement.low)} to {signed(agreement.high)} {unit}."
            )
            figures.append(Figure(f"Size of {label}", caption, inline(figure, f"agree{i}", f"Bland-Altman of {label}")))
    return figures


def confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Shares of each reference class, as a heat map; of many classes, those with the lowest share on the diagonal."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(np.diag(shares)[1:])[: MOST_CLASSES - 1] + 1
    chosen = [0, *sorted(order.tolist())]
    cells = shares[np.ix_(chosen, chosen)]
    size = len(chosen)
    with chart(height=min(4.4, 1.1 + 0.42 * size)) as (figure, axes):
        axes.grid(visible=False)
        for row in range(size):
            for column in range(size):
                share = float(cells[row, column])
                axes.fill_between([column - 0.48, column + 0.48], row - 0.47, row + 0.47, color=colour(0),
                                  alpha=0.06 + 0.94 * share, linewidth=0)  # fmt: skip
                axes.text(column, row, percent(share), ha="center", va="center", fontsize=8 if size < 9 else 6.5,
                          color=ON_FIRST if share > 0.5 else INK)  # fmt: skip
        shown = [shortened(names[i], 14) for i in chosen]
        axes.set_xticks(range(size), shown, rotation=0 if size <= 4 else 40, ha="center" if size <= 4 else "right")
        axes.set_yticks(range(size), shown)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xlabel("segmented as")
        axes.set_ylabel("reference")
        for spine in axes.spines.values():
            spine.set_visible(False)
        few = "" if len(names) == size else f" The {size - 1} labels that are missed most, of {len(names) - 1}."
        caption = f"Share of the voxels of each row, all cases together, in %.{few}"
        return Figure("Confusion of labels", caption, inline(figure, "confusion", "Confusion of labels"))


def reliability(bins: Sequence[dict[str, float]], error: float, cases: int) -> Figure:
    """How often a label is right where the network is so sure.

    Args:
        bins: each with the mean `confidence`, the `accuracy` and the `share` of voxels.
        error: expected calibration error.
    """
    with chart() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        confidence, accuracy = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        axes.plot(confidence, accuracy, "o-", color=colour(0), markersize=4, label="held-out voxels")
        axes.set_xlabel("probability of the chosen class")
        axes.set_ylabel("share that is right")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(labelcolor=INK, loc="upper left")
        caption = (
            f"Voxels near an object, {counted(cases, 'case')}; expected calibration error {error:.3f}. Below the line "
            "the network is too sure."
        )
        return Figure("Reliability", caption, inline(figure, "reliability", "Reliability diagram"))


def expected_dice(points: Sequence[tuple[float, float]], error: float) -> Figure:
    """Dice that the network expects of its own segmentation against the Dice it reached, a point per case."""
    with chart() as (figure, axes):
        low = min(0.95, *(min(pair) for pair in points))
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        _scatter(axes, [x for x, _ in points], [y for _, y in points], 2, None)
        axes.set_xlabel("Dice expected from the network's uncertainty")
        axes.set_ylabel("Dice reached")
        caption = f"{counted(len(points), 'case')}; mean distance from the line {error:.3f}."
        return Figure("Expected and reached Dice", caption, inline(figure, "expected", "Expected and reached Dice"))


def percent(share: float) -> str:
    """A share in percent that never reads 0 or 100 where it is not."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}"
    return "<0.1" if share < 0.001 else ">99.9" if share > 0.999 else f"{100 * share:.1f}"


def signed(value: float) -> str:
    """A number of two digits or three with its sign."""
    return ("+" if value >= 0 else "−") + plain(float(f"{abs(value):.2g}"))


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """An even selection of many items."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _scatter(axes: "Axes", x: Sequence[float], y: Sequence[float], index: int, name: str | None) -> None:
    axes.plot(x, y, ".", color=colour(index), markersize=6, alpha=0.7, markeredgewidth=0, label=name)


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) >= WIDE:
        axes.set_xscale("log")
        logarithmic(axes.xaxis)


def _log_note(axes: "Axes") -> str:
    return " (logarithmic)" if axes.get_xscale() == "log" else ""
