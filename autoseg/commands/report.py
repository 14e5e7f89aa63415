"""The report of a workspace, one HTML file: written by `autoseg report`, and by train and evaluate when they end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoseg.lines import LOG
from autoseg.messages import duration, suggest
from autoseg.workspace import Workspace, write_text

LEAST_SECONDS = 40.0  # a shorter training ends without a report, which would take a noticeable part of it


@dataclass(frozen=True)
class WrittenReport:
    """One report."""

    file: Path
    megabytes: float
    seconds: float
    cases: int  # with pictures


def write_report(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    out: Path | None = None,
    saliency: str | None = None,
) -> WrittenReport:
    """Write the report of a workspace and of one of its models.

    Args:
        configuration, network: of the model; None: the recommended one, or the first that was trained.
        out: the file; None: report.html of the workspace.
        saliency: a label to explain first in the worst, median and best held-out case; None: none.

    Raises:
        StateError: nothing has been planned, there is no such configuration, or no scored case to explain.
        UsageError: the model has no such label.
        StorageError: the file cannot be written.
    """
    if saliency is not None:
        from autoseg.commands.looked import explain_held_out

        explain_held_out(workspace, configuration, network, saliency)
    made = _write(workspace, (configuration, network), out or workspace.report)
    LOG.info(f"report: {made.file} ({made.megabytes:.1f} MB, {duration(made.seconds)})")
    return made


def report_or_warn(workspace: Workspace, configuration: str | None = None, network: str | None = None) -> None:
    """Write the report after other work; what fails is a warning, because that work is done."""
    try:
        made = _write(workspace, (configuration, network), workspace.report, live=False)
        LOG.info(f"report: {made.file}")
    except Exception as error:
        LOG.warning(
            f"cannot write {workspace.report}: {type(error).__name__}: {error}; to try again: "
            + suggest("report", workspace=workspace.root)
        )


def live_report(workspace: Workspace, configuration: str, network: str | None) -> None:
    """Rewrite the report while a fold trains: without pictures, and so that it reloads itself."""
    _write(workspace, (configuration, network), workspace.report, live=True, pictures=False)


@contextmanager
def reported(workspace: Workspace, configuration: str | None, network: str | None, *, wanted: bool) -> Iterator[None]:
    """Write the report when the body ends or is stopped, unless it took less than LEAST_SECONDS."""
    began = time.perf_counter()
    try:
        yield
    finally:
        if wanted and time.perf_counter() - began >= LEAST_SECONDS:
            report_or_warn(workspace, configuration, network)


def _write(
    workspace: Workspace,
    model: tuple[str | None, str | None],
    out: Path,
    *,
    live: bool | None = None,
    pictures: bool = True,
) -> WrittenReport:
    """Write the page. `live`: whether a training is running; None: judged by when its folds last wrote."""
    from autoseg.report.gathered import gather
    from autoseg.report.html import render
    from autoseg.training.machines import machine_here

    began = time.perf_counter()
    page = render(gather(workspace, *model, live=live), machine_here(), pictures=pictures)
    write_text(out, page.text)
    return WrittenReport(out, len(page.text.encode("utf-8")) / 1e6, time.perf_counter() - began, page.cases)
