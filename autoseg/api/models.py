"""Models from Python: trained, scored, used; and the machine they are planned for."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autoseg.api.keywords import (
    File,
    FoldNames,
    Labels,
    Names,
    Say,
    Settings,
    as_path,
    checked,
    in_workspace,
    intake_of,
    options_of,
)
from autoseg.api.spelling import in_python
from autoseg.inference.options import SpeedName

if TYPE_CHECKING:  # imported when they are made
    from autoseg.commands.evaluate import FolderScores
    from autoseg.commands.train import TrainedFold
    from autoseg.datasets.dataset import Problem
    from autoseg.evaluation.crossval import CrossValidation, HeldOutScores


@dataclass(frozen=True)
class Segmentations:
    """What was segmented, and what could not be."""

    files: tuple[Path, ...]  # one label file per case
    failed: "tuple[Problem, ...]"  # images that could not be segmented, each with its reason and what to do


@checked
def train_folds(
    workspace: File,
    *,
    folds: FoldNames | None = None,
    configuration: str | None = None,
    network: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    time_budget_seconds: float | None = None,
    device: str = "auto",
    restart: bool = False,
    finish: bool = False,
    init_from: File | None = None,
    prompts: bool = False,
    stop_after_seconds: float | None = None,
    checkpoint_seconds: float = 60.0,
    settings: Settings = (),
    report: bool = True,
    say: Say | None = print,
) -> "list[TrainedFold]":
    """Train folds one after the other and segment the held-out cases of each.

    A fold that is trained is left alone; one that was interrupted is resumed.

    Args:
        workspace: a folder where `plan_dataset` planned.
        folds: 0, [0, 2], "0..4", or "full": one model on all cases, none held out; None: all that hold cases out.
        configuration: such as "2d"; None: the recommended one.
        network: None: the one that was planned for.
        epochs, steps, time_budget_seconds: length of each fold's training, one of them; None: as planned.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        restart: retrain these folds from scratch; the old folders are renamed.
        finish: let begun folds cool down now, and end.
        init_from: a trained model to initialise from: its matching weights.
        prompts: continue trained folds as ones that prompts correct: `Predictor.refine`.
        stop_after_seconds: save and stop after so long; the same call resumes.
        checkpoint_seconds: least time between two checkpoints within an epoch.
        settings: changes of the plan: {"training.learning_rate": 0.001}.
        report: write report.html of the workspace, while folds train and at the end.
        say: what shows a line; None: nothing is shown.

    Returns:
        One record per fold, with `folder`, `steps`, `pseudo_dice` per label, `warnings` and `already_finished`; those
        of a cascade's previous stage come first. Dice of whole images: see `cross_validate`.

    Raises:
        AutosegError: nothing is planned, there is no such fold, it was trained otherwise, or memory ran out.
        Stopped: by a signal or after `stop_after_seconds`; the same call resumes. Like KeyboardInterrupt it is not an
            Exception.

    Example:
        >>> folds = autoseg.train_folds("ws", folds=[0], steps=100, device="cpu")
        >>> folds[0].pseudo_dice["liver"]
    """
    from autoseg.commands.folds import TrainOptions
    from autoseg.commands.train import train_folds

    trained = train_folds(in_workspace(workspace), options_of(TrainOptions, locals()))
    return [replace(fold, warnings=tuple(map(in_python, fold.warnings))) for fold in trained]


@checked
def cross_validate(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    tubes: Names = (),
    csv: File | None = None,
    good: float = 0.8,
    poor: float = 0.5,
    workers: int | None = None,
    report: bool = True,
    say: Say | None = print,
) -> "CrossValidation":
    """Score the held-out segmentations of every trained fold of one model.

    Args:
        workspace: with trained folds.
        configuration, network: of the model; None: the recommended one, as planned.
        tolerance, tubes: mm, of nsd and the like: 2, or {"liver": 2}; None: 1. Labels with centreline_dice, or "all".
        csv: also write one row per case and label to this file.
        good, poor: mean Dice above which the verdict is good, and below which it is poor.
        workers: processes; 0: none but this one; None: as cores and memory allow.
        report: also write report.html of the workspace.
        say: what shows a line; None: nothing is shown.

    Returns:
        `summary` (label -> metric -> mean, std, median, quartiles, 95 % interval over patients, number of cases),
        `mean_dice`, `flags` of what failed, `coverage`, `curves`, and `folds` and `cases` with their scores.

    Raises:
        AutosegError: no fold is trained, one saw a patient whose cases it holds out, or a file cannot be read.

    Example:
        >>> result = autoseg.cross_validate("ws")
        >>> result.summary["liver"]["dice"].mean, result.summary["liver"]["dice"].interval
    """
    from autoseg.commands.evaluate import ScoringOptions, cross_validate

    table = None if csv is None else as_path(csv)
    chosen = ScoringOptions(network, tolerance, tubes, table, good, poor, workers, report)
    return cross_validate(in_workspace(workspace), configuration, chosen)


@checked
def score_test_set(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    model: File | None = None,
    say: Say | None = print,
) -> "HeldOutScores":
    """Segment the dataset's held-out test cases with the ensemble of all folds, and score them once.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        model: an exported file to segment with, "model.zip"; None: the folds of the workspace.

    Returns:
        `cases` with their scores; a second call returns what the first one found.

    Raises:
        AutosegError: the dataset has no labelled test cases, or a fold is not trained.

    Example:
        >>> result = autoseg.score_test_set("ws")
        >>> [case.scores["liver"]["dice"] for case in result.cases]
    """
    from autoseg.commands.evaluate import score_test_set

    file = None if model is None else as_path(model)
    return score_test_set(in_workspace(workspace), configuration, network=network, device=device, model=file)


@checked
def evaluate_folders(
    predictions: File,
    references: File,
    workspace: File | None = None,
    *,
    labels: Labels | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    tubes: Names = (),
    csv: File | None = None,
    workers: int | None = None,
    model: File | None = None,
    say: Say | None = print,
) -> "FolderScores":
    """Compare two folders of label files; formats may differ.

    Args:
        predictions, references: folders whose files are paired by name.
        workspace: whose plan names the labels; None: `labels` names them, or they are called after their values.
        labels: names and values: {"liver": 1} or "liver=1".
        instances, divisor: as for `check_dataset`; objects are then matched, too.
        tolerance, tubes, csv, workers, say: as for `cross_validate`.
        model: an exported file that names the labels, "model.zip", instead of a workspace.

    Returns:
        `mean_dice`, `summary` (label -> metric -> mean, std and number of cases), `objects` (average precision and
        panoptic quality of each kind) and `cases` with their scores.

    Raises:
        AutosegError: files cannot be paired, lie on other grids, or hold values that are not labels.

    Example:
        >>> scores = autoseg.evaluate_folders("out", "references", labels={"liver": 1})
        >>> scores.mean_dice, scores.summary["liver"]["hd95"].mean
    """
    from autoseg.commands.evaluate import evaluate_folders

    return evaluate_folders(
        as_path(predictions), as_path(references), None if workspace is None else in_workspace(workspace),
        intake=intake_of(labels=labels, instances=instances, divisor=divisor), measures=(tolerance, tubes),
        csv=None if csv is None else as_path(csv), workers=workers, model=None if model is None else as_path(model),
    )  # fmt: skip


@checked
def predict_images(
    workspace: File,
    images: File | Sequence[File],
    out: File,
    *,
    configuration: str | None = None,
    network: str | None = None,
    models: Names = (),
    folds: FoldNames | None = None,
    device: str = "auto",
    speed: SpeedName | None = None,
    step: float | None = None,
    mirroring: bool | None = None,
    unfinished: bool = False,
    tile: float | None = None,
    top_k: float | None = None,
    skip_empty: bool = False,
    decision: bool = True,
    shard: str | None = None,
    resume: bool = False,
    format: str | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    statistics: bool = False,
    coco: bool = False,
    patients: File | None = None,
    saliency: Names = (),
    saliency_stage: str | None = None,
    saliency_method: Literal["grad_cam", "hires_cam"] | None = None,
    say: Say | None = print,
) -> Segmentations:
    """Segment images with the ensemble of the trained folds, each on its own grid.

    Args:
        workspace: with trained folds.
        images: a folder, a file, or a list of files.
        out: folder for the segmentations.
        configuration, network: of the model; None: the recommended one, as planned.
        models: or models to average, as their folders are called: ["3d_fullres-unet", "2d-unet"].
        folds: that form the ensemble; None: all that are trained.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        speed: "accurate", "balanced" or "fast"; None: accurate. `step` and `mirroring` have precedence.
        step: distance of tiles as a share of the tile; None: by the speed.
        mirroring: average over flips; None: by the speed.
        unfinished: also use folds that are not trained to the end.
        tile: longest edges of tiles as a multiple of the training patch's; None: as suits the device.
        top_k: share of a cascade's tiles to compute, the most worthwhile ones; None: all.
        skip_empty: leave out tiles that hold hardly anything brighter than the background.
        decision: apply what `choose_decision` chose on held-out cases.
        shard: "2/8" for the second of eight parts of the cases.
        resume: keep segmentations that are verified to be of the same images, by the same model and options.
        format: "seg.nrrd", "nii.gz" and so on, with names and colours of the labels; None: that of each image.
        probabilities, uncertainty, statistics: also write them (docs/outputs.md).
        coco: also write boxes and outlines of all objects to annotations.json in `out`.
        patients: table of case, patient and date: statistics then list each patient's scans in order.
        saliency: labels, or "LABEL@Z,Y,X": also write where the networks looked (docs/outputs.md).
        saliency_stage: by which layer: "bottleneck", "decoder", or an encoder stage: "0"; None: bottleneck.
        saliency_method: how its features are weighted; None: as suits the layer.
        say: what shows a line; None: nothing is shown.

    Returns:
        `files` that were written or kept, and `failed`: images that could not be segmented, each with the reason.

    Raises:
        AutosegError: no model is trained, there is nothing to segment, or a file would be overwritten.
        Stopped: by a signal; the same call with `resume` keeps what is finished.

    Example:
        >>> segmented = autoseg.predict_images("ws", "images", "out")
        >>> segmented.files, [problem.what for problem in segmented.failed]
    """
    from autoseg.commands.predict import PartlySegmented, PredictOptions, predict_images

    options = options_of(PredictOptions, locals())
    files = [as_path(images)] if isinstance(images, (str, os.PathLike)) else [as_path(file) for file in images]
    try:
        written = predict_images(in_workspace(workspace), files, as_path(out), options)
    except PartlySegmented as partly:
        return Segmentations(partly.written, partly.failed)
    return Segmentations(tuple(written), ())


@checked
def calibrate_device(device: str = "auto", *, say: Say | None = print) -> None:
    """Measure this machine's memory and speed, for the plans made on it.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".
        say: what shows a line; None: nothing is shown.

    Raises:
        AutosegError: there is no such device.

    Example:
        >>> autoseg.calibrate_device("cpu")
        >>> plan = autoseg.plan_dataset("data", workspace="ws")
    """
    from autoseg.commands.calibrate import calibrate_device

    calibrate_device(device)


@checked
def status(workspace: File) -> str:
    """Where a workspace stands, fold by fold, and what to do next, as text; nothing is shown.

    Args:
        workspace: a folder; one where nothing is planned has a status, too.

    Raises:
        AutosegError: its plan cannot be read.

    Example:
        >>> text = autoseg.status("ws")
        >>> print(text)
    """
    from autoseg.commands.status import status

    return status(in_workspace(workspace))
