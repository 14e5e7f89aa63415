"""The report of a workspace from Python."""

from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Say, as_path, checked, in_workspace

if TYPE_CHECKING:  # imported when it is made
    from autoseg.commands.report import WrittenReport


@checked
def write_report(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    out: File | None = None,
    saliency: str | None = None,
    say: Say | None = print,
) -> "WrittenReport":
    """Write one HTML page about a workspace: data, plan, training, scores, cases and provenance.

    Args:
        workspace: a folder where `plan_dataset` planned; what is not done yet is missing in the page.
        configuration, network: of the model to report; None: the recommended one, or the first that was trained.
        out: the file; None: report.html in the workspace.
        saliency: a label to explain first in the worst, median and best held-out case; None: none.
        say: what shows a line; None: nothing is shown.

    Returns:
        `file`, `megabytes`, `seconds`, and the number of `cases` with pictures.

    Raises:
        AutosegError: nothing is planned, or the file cannot be written.

    Example:
        >>> report = autoseg.write_report("ws")
        >>> report.file
    """
    from autoseg.commands.report import write_report

    file = None if out is None else as_path(out)
    return write_report(in_workspace(workspace), configuration, network=network, out=file, saliency=saliency)
