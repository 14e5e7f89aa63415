"""What is known about models from Python: whether one is better than another, and what more patients would bring."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, FoldNames, Labels, Say, Settings, checked, in_workspace, options_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.compare import Comparison
    from autoseg.evaluation.learning_curve import LearningCurve


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


@checked
def learning_curve(
    workspace: File,
    *,
    folds: FoldNames | None = (0,),
    shares: Sequence[float] = (12.0, 25.0, 50.0, 100.0),
    configuration: str | None = None,
    network: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    time_budget_seconds: float | None = None,
    device: str = "auto",
    restart: bool = False,
    stop_after_seconds: float | None = None,
    settings: Settings = (),
    say: Say | None = print,
) -> "LearningCurve":
    """Train on nested shares of the patients, and estimate what twice as many would bring.

    A share that is trained is left alone; one that was interrupted is resumed.

    Args:
        workspace: a folder where `plan_dataset` planned.
        folds: whose patients to train on, and whose held-out cases to score; None: all.
        shares: percent of the patients, three at least.
        configuration: such as "2d"; None: the recommended one.
        network: None: the one that was planned for.
        epochs, steps, time_budget_seconds: length of every training, one of them; None: as planned.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        restart: retrain all shares from scratch; the old folders are renamed.
        stop_after_seconds: save and stop after so long; the same call resumes.
        settings: changes of the plan: {"training.learning_rate": 0.001}.
        say: what shows a line; None: nothing is shown.

    Returns:
        `mean` and `labels[label]`, each with `points`, `doubled` and `gain` (with their intervals) and `unclear`: why
        not to rely on them.

    Raises:
        AutosegError: nothing is planned, a share was trained otherwise, or two shares hold the same patients.
        Stopped: by a signal or after `stop_after_seconds`; the same call resumes.

    Example:
        >>> curve = autoseg.learning_curve("ws", steps=500)
        >>> curve.mean.gain, curve.mean.unclear
    """
    from autoseg.commands.learning_curve import LearningCurveOptions, learning_curve

    return learning_curve(in_workspace(workspace), options_of(LearningCurveOptions, locals()))
