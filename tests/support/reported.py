"""A workspace that looks trained, made in a second: `from reported import reported_workspace`.

Planned from a tiny dataset; histories are written by hand, held-out segmentations are the references with a known
error, and their scores are real. No network is trained.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.evaluation.crossval import cross_validate_folds, validation_jobs
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.training.history import EpochRow, write_history
from autoseg.workspace import Workspace
from commands import run
from phantom import tiny_dataset

MODEL = ("3d_fullres", "unet")
SCRIPT = "<script>alert(1)<"  # a case that is called so, in every file of it


def row(epoch: int, epochs: int, dice: tuple[float, float], training: float = 0.02) -> EpochRow:
    """One epoch of a history; `training`: how much better the training patches are."""
    return EpochRow(
        epoch=epoch, step=10 * epoch, seconds=60.0 * epoch, loss=1 - sum(dice), validation_loss=1.1 - sum(dice),
        training_dice=(dice[0] + training, dice[1] + training), pseudo_dice=dice, learning_rate=0.01 / epoch,
        skipped=0, progress=epoch / epochs,
    )  # fmt: skip


def history(epochs: int = 8, best: float = 0.9) -> list[EpochRow]:
    """A sound training: Dice rises evenly."""
    return [row(i, epochs, (best * i / epochs, 0.9 * best * i / epochs)) for i in range(1, epochs + 1)]


def planned(folder: Path, *, cases: int = 6, named: str = SCRIPT) -> tuple[Path, Workspace]:
    """A dataset whose first case has an unusual name, and a workspace planned from it."""
    dataset = tiny_dataset(folder / "data", cases=cases)
    first = sorted((dataset / "labelsTr").iterdir())[0].name.removesuffix(".nii.gz")
    for path in [*dataset.glob(f"imagesTr/{first}_*"), *dataset.glob(f"labelsTr/{first}.*")]:
        path.rename(path.with_name(path.name.replace(first, named)))
    workspace = Workspace(folder / "work")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess")
    return dataset, workspace


def add_fold(workspace: Workspace, number: int, *, epochs: int = 8, shift: int = 1, rows: list | None = None) -> None:
    """History and held-out segmentations of a fold: each reference, moved by `shift` voxels along x."""
    dataset, splits = load(Dataset, workspace.dataset), load(Splits, workspace.splits)
    cases = {case.id: case for case in dataset.cases}
    folder = workspace.fold(*MODEL, number)
    write_history(folder, history(epochs) if rows is None else rows)
    (folder / "validation").mkdir(exist_ok=True)
    for case_id in splits.splits[number].validation:
        label = Path(str(cases[case_id].label))
        image = nib.load(label)
        moved = np.roll(np.asarray(image.dataobj), shift, axis=0)
        nib.save(nib.Nifti1Image(moved, image.affine, image.header), folder / "validation" / label.name)


def score(workspace: Workspace, folds: tuple[int, ...]) -> None:
    """Write crossval.json of these folds."""
    dataset, plan, splits = (load(kind, getattr(workspace, name)) for kind, name in
                             ((Dataset, "dataset"), (Plan, "plan"), (Splits, "splits")))  # fmt: skip
    cases = {case.id: case for case in dataset.cases}
    jobs = {
        fold: validation_jobs(
            workspace.fold(*MODEL, fold) / "validation", [cases[i] for i in splits.splits[fold].validation], plan.labels
        )
        for fold in folds
    }
    save(workspace.crossval(*MODEL), cross_validate_folds(*MODEL, jobs, len(splits.splits), workers=0))


def reported_workspace(folder: Path, *, folds: int = 5, cases: int = 6) -> tuple[Path, Workspace]:
    """Planned, and every fold "trained" and scored: fold 0 with the largest error."""
    dataset, workspace = planned(folder, cases=cases)
    for fold in range(folds):
        add_fold(workspace, fold, shift=2 if fold == 0 else 1)
    score(workspace, tuple(range(folds)))
    return dataset, workspace


def copied(workspace: Workspace, root: Path) -> Workspace:
    """A copy that a test may change."""
    shutil.copytree(workspace.root, root)
    return Workspace(root)
