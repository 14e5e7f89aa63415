"""Segmentations corrected by prompts: those of files, and what clicks bring on held-out cases."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, FoldNames, Names, Say, as_path, checked, in_workspace, options_of
from autoseg.inference.options import SpeedName

if TYPE_CHECKING:
    from autoseg.commands.refine import RefinedCase
    from autoseg.evaluation.click_curves import ClickTable


@checked
def refine_image(
    workspace: File,
    images: File | Sequence[File],
    out: File,
    *,
    prompts: Names = (),
    mask: File | None = None,
    configuration: str | None = None,
    network: str | None = None,
    folds: FoldNames | None = None,
    device: str = "auto",
    speed: SpeedName | None = None,
    say: Say | None = print,
) -> "RefinedCase":
    """Segment one image, correct it by prompts, one after the other, and write the result on its grid.

    Args:
        workspace: with folds that were trained with prompts, or an exported model: "model.zip".
        images: of one case: its file, its files in order of channel, or a DICOM series.
        out: the file to write.
        prompts: texts of a kind, places and a label: "click 30,41,22:liver", "scribble 30,41,22/30,48,25:liver", "box
            20,30,10/40,52,30:liver"; the label "background" is of what has none.
        mask: a segmentation to correct; None: the automatic one.
        configuration: one with prompts, or one that has them: "3d_fullres"; None: the recommended one.
        network: None: as planned.
        folds: that answer together; None: all that are trained.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        speed: of answers: "accurate", "balanced" or "fast"; None: accurate.
        say: what shows a line; None: nothing is shown.

    Returns:
        `file`, `changed` (voxels), `voxels` of each label, and the `seconds` of each answer.

    Raises:
        AutosegError: no model with prompts is trained, a prompt lies outside or names no label, or a file is refused.

    Example:
        >>> made = autoseg.refine_image("ws", "image.nii.gz", "corrected.nii.gz", prompts=["click 30,41,22:liver"])
        >>> made.changed, made.voxels["liver"]
    """
    from autoseg.commands.predict import PredictOptions
    from autoseg.commands.refine import parse_text, refine_case

    options = options_of(
        PredictOptions,
        {"configuration": configuration, "network": network, "folds": folds, "device": device, "speed": speed},
    )
    files = [as_path(images)] if isinstance(images, (str, os.PathLike)) else [as_path(file) for file in images]
    asked = [parse_text(text) for text in ((prompts,) if isinstance(prompts, str) else prompts)]
    given = None if mask is None else as_path(mask)
    return refine_case(in_workspace(workspace), files, as_path(out), asked, options, mask=given)


@checked
def measure_clicks(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    clicks: int = 20,
    device: str = "auto",
    say: Say | None = print,
) -> "ClickTable":
    """Correct held-out cases by simulated clicks, each by its own fold, and see what the clicks bring.

    Args:
        workspace, network, say: as for `cross_validate`.
        configuration: one with prompts, or one that has them: "3d_fullres"; None: the recommended one.
        clicks: on a case, at most.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        `cases`, each with its `dice` before the first click, after the first, and so on, and the `seconds` of each
        answer; `mean_after(clicks)`, `gain_after(clicks)` and `noc(dice)` of all.

    Raises:
        AutosegError: no fold with prompts is trained, or a file cannot be read.

    Example:
        >>> found = autoseg.measure_clicks("ws", clicks=5)
        >>> found.mean_after(0), found.gain_after(5)
    """
    from autoseg.commands.clicks import measure_clicks

    return measure_clicks(in_workspace(workspace), configuration, network=network, clicks=clicks, device=device)
