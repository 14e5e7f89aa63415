"""A plan at a glance: what each configuration is, what it is predicted to need, and what would change the choice."""

from collections.abc import Sequence

from autoseg.plan import Configuration, Plan
from autoseg.planning.decisions import text

GIGA = 1e9


def summary(plan: Plan) -> str:
    """One row per configuration, and below it what would change the choice."""
    rows = [_row(plan, name, configuration) for name, configuration in plan.configurations.items()]
    lines = _align([_header(plan), *rows])
    changes = [f"- {d.step.split()[1]}: {d.value} {d.reason}" for d in plan.decisions if d.step.startswith("6.")]
    return "\n".join(
        [*lines, f"* {plan.recommended} is used unless -c names another", "what would change it:", *changes]
    )


def _header(plan: Plan) -> list[str]:
    memory = "GPU memory" if plan.device == "gpu" else "memory"
    return [
        "configuration", "spacing, mm", "patch", "batch", "network", "stages", "parameters", "receptive field",
        f"{memory}: train", "predict", "host", "steps/s", "hours", "disk",
    ]  # fmt: skip


def _row(plan: Plan, name: str, configuration: Configuration) -> list[str]:
    network, cost = configuration.network, configuration.cost
    known = [
        name + ("*" if name == plan.recommended else ""),
        text(configuration.spacing),
        text(configuration.patch_size),
        str(configuration.batch_size),
        network.name,
        str(len(network.strides)),
    ]
    seen = text(configuration.receptive_field)
    if cost is None:
        return [*known, "?", seen, *["?"] * 6]
    seconds = cost.seconds_per_step
    return [
        *known,
        f"{cost.parameters / 1e6:.3g} M",
        seen,
        gigabytes(cost.train_bytes),
        gigabytes(cost.predict_bytes),
        gigabytes(cost.host_bytes),
        "?" if seconds is None else f"{1 / seconds:.3g}",
        _hours(plan, seconds),
        "as " + configuration.data if configuration.data != name else gigabytes(cost.disk_bytes),
    ]


def gigabytes(count: float) -> str:
    """Bytes as GB, to three digits."""
    return f"{count / GIGA:.3g} GB"


def _hours(plan: Plan, seconds: float | None) -> str:
    """Hours of one fold: of the schedule's steps, or of the time budget."""
    training = plan.training
    if training.epochs is None:
        return f"{(training.time_budget_seconds or 0) / 3600:.3g}"
    return "?" if seconds is None else f"{training.epochs * training.iterations_per_epoch * seconds / 3600:.3g}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
