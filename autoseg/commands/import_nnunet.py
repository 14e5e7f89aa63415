"""A model that nnU-Net v2 trained -> a workspace that predicts the same."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.errors import StorageError, UsageError
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.records import save
from autoseg.workspace import FULL, Workspace

if TYPE_CHECKING:  # torch is imported when a model is read
    from autoseg.models.nnunet.folder import ImportedModel


def import_nnunet(folder: Path, out: Path) -> Workspace:
    """Convert a trained model of nnU-Net v2 into a workspace with its plan and its folds.

    Everything is read and checked first: what cannot be represented is refused before anything is written.

    Args:
        folder: with plans.json, dataset.json and fold_0, ...; or the folder of a dataset in nnU-Net's results, for all
            configurations of one trainer and plans.
        out: the workspace, a folder that does not exist yet, or is empty.

    Raises:
        StateError: it is not such a model, it is damaged, it would run code, or autoseg cannot predict the same.
        UsageError: `out` holds something, or `folder` does not say which model is meant.
        StorageError: the workspace cannot be written.
    """
    from autoseg.models.checkpoint import save_generation
    from autoseg.models.nnunet.folder import common_plan, open_nnunet

    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already, and is not an empty folder", remedy="name a new folder for the model")
    models = open_nnunet(folder)
    plan = common_plan(models)
    made = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        made.mkdir(parents=True)
        workspace = Workspace(made)
        save(workspace.plan, plan)
        for model in models:
            for fold in model.weights:
                into = workspace.fold(model.configuration, model.network, fold)
                into.mkdir(parents=True)
                save_generation(into, model.checkpoint(fold).to_plain())
        made.replace(out)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}", remedy="check free space, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    for model in models:
        _show(model)
    LOG.info("next: " + suggest("predict", "-i", "IMAGES", "-o", "SEGMENTATIONS", workspace=out))
    return Workspace(out)


def _show(model: "ImportedModel") -> None:
    """One line per model, and what a user should know of it."""
    configuration, folds = model.plan.configurations[model.configuration], model.weights
    partitions = [str(fold) for fold in folds if fold != FULL]
    parts = [f"{counted(len(partitions), 'fold')} ({', '.join(partitions)})"] if partitions else []
    parts += ["the model of all cases"] if FULL in folds else []
    patch = " x ".join(map(str, configuration.patch_size))
    axes = ", ".join("ZYX"[axis] for axis in model.plan.training.mirror_axes) or "no axis"
    LOG.info(f"{model.configuration}-{model.network}: {' and '.join(parts)}; patch {patch}, mirrored along {axes}")
    for note in model.notes:
        LOG.info(f"note: {note}")
