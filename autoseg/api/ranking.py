"""Which case next, from Python: training cases by likely label error, images by what annotating them brings."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Names, Say, as_path, checked, in_workspace, names_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.annotation_value import AnnotationOrder
    from autoseg.evaluation.label_errors import LabelErrors


@checked
def rank_cases(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    top: int = 20,
    csv: File | None = None,
    say: Say | None = print,
) -> "LabelErrors":
    """Order the training cases by likely label error, each judged by the fold that held it out.

    Args:
        workspace: with trained folds.
        configuration, network: of the model; None: the recommended one, as planned.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        top: rows of the table that is shown.
        csv: also write one row per case and label to this file.
        say: what shows a line; None: nothing is shown.

    Returns:
        `cases`, most doubtful first, each with `score`, `labels`, `place` (Z, Y, X), `remarks`, `image`, `label`.

    Raises:
        AutosegError: no fold is trained, or a file cannot be read.

    Example:
        >>> order = autoseg.rank_cases("ws")
        >>> [(case.case, case.worst, case.score) for case in order.cases[:5]]
    """
    from autoseg.commands.rank import rank_cases

    table = None if csv is None else as_path(csv)
    return rank_cases(in_workspace(workspace), configuration, network=network, device=device, top=top, csv=table)


@checked
def rank_images(
    workspace: File,
    images: File | Sequence[File],
    *,
    configuration: str | None = None,
    network: str | None = None,
    models: Names = (),
    device: str = "auto",
    top: int = 20,
    csv: File | None = None,
    say: Say | None = print,
) -> "AnnotationOrder":
    """Order unlabelled images by the expected benefit of annotating them.

    Args:
        workspace, configuration, network, device, top, csv, say: as for `rank_cases`.
        images: a folder, a file, or a list of files.
        models: models to average, as their folders are called: ["3d_fullres-unet", "2d-unet"].

    Returns:
        `cases`, most beneficial first, each with `entropy`, `disagreement`, `expected_dice`, `labels`; `by`: what they
        are ordered by; and `failed`: images that cannot be read.

    Raises:
        AutosegError: no model is trained, or there is no image.

    Example:
        >>> order = autoseg.rank_images("ws", "unlabelled")
        >>> [case.image for case in order.cases[:5]]
    """
    from autoseg.commands.predict import PredictOptions
    from autoseg.commands.rank import rank_images

    options = PredictOptions(configuration=configuration, network=network, models=names_of(models), device=device)
    files = [as_path(images)] if isinstance(images, (str, os.PathLike)) else [as_path(file) for file in images]
    table = None if csv is None else as_path(csv)
    return rank_images(in_workspace(workspace), files, options, top=top, csv=table)
