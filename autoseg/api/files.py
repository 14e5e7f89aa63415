"""Models as files, from Python: written to hand them on, looked at, taken over from nnU-Net."""

from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, FoldNames, Names, Say, as_path, checked, in_workspace, options_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.commands.export import Exported, ExportedNetwork
    from autoseg.commands.info import Info


@checked
def export_model(
    workspace: File,
    out: File,
    *,
    configurations: Names = (),
    network: str | None = None,
    folds: FoldNames | None = None,
    keep_case_ids: bool = False,
    compare: int | None = None,
    say: Say | None = print,
) -> "Exported":
    """Write trained models into one file that predicts as the workspace does.

    Args:
        workspace: with trained folds.
        out: the file to write: "model.zip".
        configurations: which to export, such as "3d_fullres"; several segment together; empty: the recommended one.
        network: None: the one that was planned.
        folds: which folds; None: all that are trained.
        keep_case_ids: keep names of cases and digests of their images, which may identify patients.
        compare: on so many held-out cases, compare what is computed in two ways; 0: none; None: as time allows, at
            most 2.
        say: what shows a line; None: nothing is shown.

    Returns:
        `path`, `size`, `sha256`, `models` (name -> folds), `agreements` and what was `left_out`.

    Raises:
        AutosegError: a model is not trained, its weights are not finite, or the file cannot be written.

    Example:
        >>> done = autoseg.export_model("ws", "model.zip")
        >>> done.sha256, [row.value for row in done.agreements if not row.holds]
    """
    from autoseg.commands.export import ExportOptions, export

    return export(in_workspace(workspace), as_path(out), None, options_of(ExportOptions, locals()))["model"]


@checked
def export_onnx(
    workspace: File,
    onnx: File,
    *,
    configurations: Names = (),
    network: str | None = None,
    folds: FoldNames | None = None,
    keep_case_ids: bool = False,
    compare: int | None = None,
    say: Say | None = print,
) -> "tuple[ExportedNetwork, ...]":
    """Write the network of each fold as ONNX, compared with torch, for programs without torch.

    What was compared is kept with the model, and is in the file that `export_model` writes afterwards.

    Args:
        workspace, configurations, network, folds, keep_case_ids, compare, say: as for `export_model`.
        onnx: folder for the networks, and for the plan of each model.

    Returns:
        A record per fold: `path`, `model`, `fold`, `any_size` and the largest `difference` of logits to torch.

    Raises:
        AutosegError: a model is not trained, torch cannot export its network, or the extra `onnx` is not installed.

    Example:
        >>> networks = autoseg.export_onnx("ws", "networks", folds=[0])
        >>> networks[0].path, networks[0].difference
    """
    from autoseg.commands.export import ExportOptions, export

    return export(in_workspace(workspace), None, as_path(onnx), options_of(ExportOptions, locals()))["onnx"]


@checked
def describe_model(path: File) -> "Info":
    """What an exported model, a workspace or a checkpoint is; nothing in it is executed, and nothing is shown.

    Args:
        path: "model.zip", a workspace, a checkpoint or the folder of a fold.

    Returns:
        `labels`, `channels`, `models` (name -> `folds`, `dice`, `speeds`, `agreements` and so on); `describe()` gives
        it as text.

    Raises:
        AutosegError: there is nothing, it is none of these, or an exported model is refused.

    Example:
        >>> found = autoseg.describe_model("model.zip")
        >>> print(found.describe())
    """
    from autoseg.commands.info import info

    return info(as_path(path))


@checked
def import_nnunet(folder: File, model: File, *, say: Say | None = print) -> Path:
    """Convert a model that nnU-Net v2 trained into a workspace that predicts the same.

    Args:
        folder: with plans.json, dataset.json and fold_0, ...; or the folder of a dataset in nnUNet_results.
        model: the workspace, a folder that does not exist yet, or is empty.
        say: what shows a line; None: nothing is shown.

    Returns:
        The workspace, for `predict_images` and `Predictor`.

    Raises:
        AutosegError: it is not such a model, it is damaged, it would run code, or autoseg cannot predict the same.

    Example:
        >>> ws = autoseg.import_nnunet("nnUNet_results/Dataset004_Hippocampus", "hippocampus_model")
        >>> autoseg.predict_images(ws, "scans", "segmentations")
    """
    from autoseg.commands.import_nnunet import import_nnunet

    return import_nnunet(as_path(folder), as_path(model)).root
