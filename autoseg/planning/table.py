"""A plan at a glance: each configuration, its predicted cost, and what would change the choice."""

from autoseg.messages import aligned
from autoseg.planning.pace import steps_in
from autoseg.planning.plan import Configuration, Plan
from autoseg.planning.request import text

GIGA = 1e9
LEFT_OUT = ("stages", "receptive field", "predict", "host", "disk")  # of a plan at a glance


def summary(plan: Plan) -> str:
    """One row per configuration, and below it what would change the choice."""
    rows = [_row(plan, name, configuration) for name, configuration in plan.configurations.items()]
    lines = aligned([_header(plan), *rows])
    changes = [f"- {d.step.split()[1]}: {d.value} {d.reason}" for d in plan.decisions if d.step.startswith("6.")]
    return "\n".join(
        [*lines, f"* {plan.recommended} is the default; choose another with -c", "what would change it:", *changes]
    )


def glance(plan: Plan) -> list[str]:
    """The most important columns of `summary`, in lines of about 120 columns, and the meaning of its marks."""
    header, rows = _header(plan), [_row(plan, name, one) for name, one in plan.configurations.items()]
    columns = [header.index(name) for name in header if name not in LEFT_OUT]
    header = [name.removesuffix(": train") for name in header]
    lines = aligned([[row[column] for column in columns] for row in (header, *rows)])
    if any("?" in row for row in rows):
        lines.append("?: unknown until this machine is measured (autoseg calibrate)")
    return lines


def _header(plan: Plan) -> list[str]:
    memory = "GPU memory" if plan.device == "gpu" else "memory"
    return [
        "configuration", "spacing, mm", "patch", "batch", "network", "stages", "parameters", "receptive field",
        f"{memory}: train", "predict", "host", "steps", "steps/s", "hours", "disk",
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
        return [*known, "?", seen, "?", "?", "?", _steps(plan, None), "?", _hours(plan, None), "?"]
    seconds = cost.seconds_per_step
    return [
        *known,
        f"{cost.parameters / 1e6:.3g} M",
        seen,
        gigabytes(cost.train_bytes),
        gigabytes(cost.predict_bytes),
        gigabytes(cost.host_bytes),
        _steps(plan, seconds),
        "?" if seconds is None else f"{1 / seconds:.3g}",
        _hours(plan, seconds),
        "as " + configuration.data if configuration.data != name else gigabytes(cost.disk_bytes),
    ]


def gigabytes(count: float) -> str:
    """Bytes as GB, to three digits."""
    return f"{count / GIGA:.3g} GB"


def _steps(plan: Plan, seconds: float | None) -> str:
    """Steps of one fold: of the schedule, or as many as fit the time budget."""
    training = plan.training
    if training.time_budget_seconds is None:
        return str(training.total_steps)
    return "?" if seconds is None else f"about {steps_in(training.time_budget_seconds, seconds)}"


def _hours(plan: Plan, seconds: float | None) -> str:
    """Hours of one fold: of the schedule's steps, or of the time budget."""
    training = plan.training
    if training.time_budget_seconds is not None:
        return f"{training.time_budget_seconds / 3600:.3g}"
    steps = training.total_steps
    return "?" if seconds is None or steps is None else f"{steps * seconds / 3600:.3g}"
