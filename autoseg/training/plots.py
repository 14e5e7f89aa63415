"""A fold's history as one picture: losses, Dice of training and validation patches per label, learning rate."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.training.history import Dice, EpochRow
from autoseg.workspace import write_atomically

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn
    from matplotlib.axes import Axes

DISTINCT_COLOURS = 10  # of the palette "tab10"; more labels take theirs from a rainbow
LEGEND_ROWS = 16
NAMED_LABELS = 48  # of more, neither do the names fit nor can the colours be distinguished
MARKED_EPOCHS = 30  # up to so many epochs are marked with dots, so that a single one can be seen


def draw_progress(path: Path, history: Sequence[EpochRow], label_names: Sequence[str], title: str) -> None:
    """Draw the history of a fold as a PNG, without any state of matplotlib's that others would share.

    Args:
        history: of all epochs; values that are None leave a gap.
        label_names: of the entries of `training_dice` and `pseudo_dice`.

    Raises:
        StorageError: the disk refuses.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10), layout="constrained")
    losses, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 4, 1.5))
    marker = "." if len(history) <= MARKED_EPOCHS else ""
    epochs = [row.epoch for row in history]
    figure.suptitle(title, parse_math=False)

    trained, validated = [row.loss for row in history], [row.validation_loss for row in history]
    for values, name in ((trained, "training"), (validated, "validation")):
        losses.plot(epochs, list(map(_number, values)), marker=marker, label=name)
    losses.set_ylabel("loss")
    losses.legend(loc="upper right")

    for i, colour in enumerate(_colours(len(label_names))):
        curves = ([row.training_dice for row in history], ":"), ([row.pseudo_dice for row in history], "-")
        for curve, style in curves:
            dice.plot(epochs, [_entry(each, i) for each in curve], style, color=colour, marker=marker, linewidth=1.2)
    dice.set_ylim(-0.02, 1.02)
    dice.set_ylabel("Dice on fixed patches\nof validation (full) and training (dotted)")
    if len(label_names) <= NAMED_LABELS:
        _name_labels(dice, label_names)

    rate.plot(epochs, [row.learning_rate for row in history], color="black", marker=marker)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    for panel in (losses, dice, rate):
        panel.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _colours(count: int) -> "list[Any]":
    from matplotlib import colormaps

    if count <= DISTINCT_COLOURS:
        return [colormaps["tab10"](i) for i in range(count)]
    return [colormaps["turbo"](i / (count - 1)) for i in range(count)]


def _name_labels(panel: "Axes", label_names: Sequence[str]) -> None:
    """Put a legend of the labels beside the panel, their names taken letter by letter."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour) for colour in _colours(len(label_names))]
    legend = panel.legend(
        handles,
        [str(i) for i in range(len(handles))],  # the names come below: as labels, "$" and "_" would mean something
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize="small",
        ncols=max(1, math.ceil(len(handles) / LEGEND_ROWS)),
    )
    for text, name in zip(legend.get_texts(), label_names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _entry(values: Dice | None, index: int) -> float:
    return _number(values[index]) if values is not None and index < len(values) else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value
