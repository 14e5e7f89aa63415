"""The output of `autoseg plan` without --explain: at most LINES lines, of at most WIDTH columns where possible.

The dataset, the plan at a glance, the decisions to review, what would change them, where the plan is, and the next
command. `request.describe` and `table.summary` show the rest.
"""

import textwrap
from collections.abc import Sequence

from autoseg.messages import typed_duration
from autoseg.planning.pace import steps_in
from autoseg.planning.plan import Plan
from autoseg.planning.request import text
from autoseg.planning.table import glance

LINES = 25
WIDTH = 120
NOTE_LINES = 2  # of one note; `autoseg check` shows it whole
LAST_LINES = 2  # that follow: what is stored, the next command


def overview(plan: Plan, understood: Sequence[str], notes: Sequence[str], folds: str, last: Sequence[str]) -> str:
    """Format a plan.

    Args:
        understood: of the dataset: its name and counts, channels, labels.
        notes: about the dataset and its folds.
        folds: how the cases are split.
        last: lines to end with.
    """
    above, table, decisions = [short(line) for line in understood], glance(plan), key_decisions(plan, folds)
    changes = [short(f"{'to change it' if not i else '':14} {one}") for i, one in enumerate(changes_of(plan))]
    room = LINES - len(above) - len(table) - len(decisions) - len(last) - LAST_LINES - 2
    kept = _notes(notes, room - min(1, len(changes)))
    changes = changes[: room - len(kept)]
    return "\n".join([*above, *kept, "", *table, "", *decisions, *changes, *last])


def key_decisions(plan: Plan, folds: str) -> list[str]:
    """The decisions to review before training: one line each, of the recommended configuration."""
    chosen = plan.configurations[plan.recommended]
    network, training = chosen.network, plan.training
    normalization = dict.fromkeys(
        f"{one.scheme}{' inside the mask' if one.inside_mask else ''}" for one in plan.normalization
    )
    if len(normalization) == 1:
        schemes = f"{next(iter(normalization))} of {', '.join(plan.channels)}"
    else:
        schemes = ", ".join(f"{n} {one.scheme}" for n, one in zip(plan.channels, plan.normalization, strict=True))
    weights = "" if chosen.cost is None else f", {chosen.cost.parameters / 1e6:.3g} M weights"
    rows = {
        "spacing": f"{text(chosen.spacing)} mm: {_reason(plan, '1.1')}",
        "normalisation": schemes,
        "patch": f"{text(chosen.patch_size)} of a median image of {text(chosen.median_shape)}, "
        f"{chosen.batch_size} per step",
        "network": f"{network.name}, {len(network.strides)} stages, {network.features[0]} to {network.features[-1]} "
        f"features{weights}",
        "mirroring": f"{_axes(training.mirror_axes)}: {_reason(plan, '5.7') or 'nnU-Net mirrors all'}",
        "length": length(plan),
        "folds": folds,
    }
    return [short(f"{name:14} {row}") for name, row in rows.items()]


def length(plan: Plan) -> str:
    """Length of a fold of the recommended configuration, in steps and in time."""
    training, cost = plan.training, plan.configurations[plan.recommended].cost
    seconds = cost.seconds_per_step if cost else None
    if training.time_budget_seconds is not None:
        steps = "" if seconds is None else f": about {steps_in(training.time_budget_seconds, seconds)} steps"
        return f"{typed_duration(training.time_budget_seconds)} per fold{steps}"
    total = training.total_steps
    assert total is not None
    asked = f"{training.epochs} epochs of {training.iterations_per_epoch}" if training.epochs else f"{total} steps"
    if seconds is None:
        return f"{asked} per fold; the time is not known"
    took = f"{asked} per fold: about {typed_duration(total * seconds)} here"
    return f"{took}; a fold of 1h (train --time-budget 1h) makes about {steps_in(3600, seconds)} steps"


def changes_of(plan: Plan) -> list[str]:
    """What would lead to another plan: about the recommended configuration and the device first."""
    changes = [d for d in plan.decisions if d.step.startswith("6.")]
    names = [name for name in plan.configurations if name != plan.recommended]
    changes.sort(key=lambda d: d.step.split()[1] in names)  # stable
    return [f"{d.value}: {d.reason}" for d in changes]


def short(line: str, width: int = WIDTH) -> str:
    """A line, cut at a word where it is too long."""
    return line if len(line) <= width else line[: width - 4].rsplit(" ", 1)[0].rstrip(",;:") + " ..."


def _notes(notes: Sequence[str], room: int) -> list[str]:
    """Notes in at most `room` lines; the last line counts those that do not fit."""
    lines: list[str] = []
    for number, note in enumerate(notes):
        wrapped = textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="      ", break_on_hyphens=False)
        if len(wrapped) > NOTE_LINES:
            wrapped = [*wrapped[: NOTE_LINES - 1], short(wrapped[NOTE_LINES - 1] + " " * WIDTH)]
        later = len(notes) - number - 1
        if len(lines) + len(wrapped) + (later > 0) > room:
            return [*lines, f"note: {later + 1} more (--explain shows all)"]
        lines += wrapped
    return lines


def _reason(plan: Plan, step: str) -> str:
    return next((d.reason for d in plan.decisions if d.step.split()[0] == step), "")


def _axes(axes: Sequence[int]) -> str:
    return "axes " + ", ".join(map(str, axes)) if axes else "none"
