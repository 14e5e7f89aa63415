"""What is known about models from Python: whether one is better than another."""

from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Labels, Say, checked, in_workspace, options_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.compare import Comparison


@checked
def compare(
    a: File,
    b: File,
    workspace: File = "autoseg_workspace",
    *,
    references: File | None = None,
    labels: Labels | None = None,
    patients: File | None = None,
    metric: str = "dice",
    csv: File | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "Comparison":
    """Compare two models, or two folders of segmentations, case by case.

    Args:
        a, b: each a workspace, "WORKSPACE:3d_fullres-unet", a model of `workspace`, a folder, or a CSV of scores.
        workspace: whose models can be named alone; its plan and patients hold where no other are given.
        references: folder of expert labels, for folders; None: those of the other side's dataset.
        labels: names and values: {"liver": 1} or "liver=1"; None: those of a workspace, or the values found.
        patients: CSV of case and patient; None: those of the datasets.
        metric: the one that decides.
        csv: also write one row per case, label and metric to this file.
        workers: processes; 0: none but this one; None: as cores and memory allow.
        say: what shows a line; None: nothing is shown.

    Returns:
        `better` ("A", "B", or None: no difference shown), `mean[metric]` and `labels[label][metric]` with `difference`,
        `low`, `high`, `p_corrected` and `detectable`, and `largest`: the cases that differ most.

    Raises:
        AutosegError: a side cannot be compared, they have no case in common, or other references.

    Example:
        >>> result = autoseg.compare("ws:3d_fullres-unet", "ws:2d-unet")
        >>> result.better, result.mean["dice"].difference
    """
    from autoseg.commands.compare import CompareOptions, compare

    return compare(str(a), str(b), in_workspace(workspace), options_of(CompareOptions, locals()))
