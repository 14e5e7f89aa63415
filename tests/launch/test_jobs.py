"""Phases of a training on GPUs or a cluster: what must be there before the folds of a cascade begin."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.cli import main
from autoseg.commands.folds import TrainOptions
from autoseg.datasets.splits import Splits
from autoseg.errors import AutosegError, StateError, UsageError
from autoseg.launch import local_gpus
from autoseg.launch.jobs import bring_previous_stage, preprocess_phase, split_into_phases, train_arguments
from autoseg.launch.local_gpus import train_on_gpus
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.workspace import FULL, Workspace
from commands import copy_of
from fleets import with_gpus
from phantom import tiny_dataset
from plans import with_cascade

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="folds side by side need Linux")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Path, Workspace]:
    """A planned workspace with a cascade; nothing is trained."""
    folder = tmp_path_factory.mktemp("planned")
    dataset, workspace = tiny_dataset(folder / "data", cases=5), Workspace(folder / "workspace")
    assert main(["plan", str(dataset), "-w", str(workspace.root), "--no-preprocess"]) == 0
    save(workspace.plan, with_cascade(load(Plan, workspace.plan)))
    return dataset, workspace


def pretend_trained(workspace: Workspace, name: str, folds: range, dataset: Path) -> None:
    """Put reference labels where folds put their held-out segmentations."""
    for split in load(Splits, workspace.splits).splits:
        if split.fold in folds:
            folder = workspace.fold(name, "unet", split.fold) / "validation"
            folder.mkdir(parents=True)
            for case in split.validation:
                shutil.copy(dataset / "labelsTr" / f"{case}.nii.gz", folder)


def test_prompts_are_planned_before_folds_are_spread(planned, tmp_path):
    """Each child is given the configuration by its name, and --prompts, by which it finds the fold to begin with."""
    workspace = copy_of(planned[1], tmp_path / "w")
    (phase,) = split_into_phases(workspace, TrainOptions(prompts=True, folds=(0, 2)))
    assert phase == TrainOptions(prompts=True, folds=(0, 2), configuration="3d_fullres_prompts")
    assert load(Plan, workspace.plan).configurations["3d_fullres_prompts"].prompts.continues == "3d_fullres"
    words = train_arguments(workspace, phase)
    assert {"--prompts", "--configuration=3d_fullres_prompts", "--folds=0,2"} <= set(words)
    assert split_into_phases(workspace, phase) == [phase]


@pytest.mark.thorough
def test_phases_of_a_command(planned, tmp_path, said):
    dataset, source = planned
    workspace = copy_of(source, tmp_path / "w")
    options = TrainOptions(epochs=3, restart=True, init_from=Path("m"))
    assert split_into_phases(workspace, options) == [
        replace(options, configuration="3d_fullres", folds=(0, 1, 2, 3, 4))
    ]
    cascade = replace(options, configuration="3d_cascade", folds=(1, 3))
    pretend_trained(workspace, "3d_lowres", range(2), dataset)
    assert split_into_phases(workspace, cascade) == [
        TrainOptions(configuration="3d_lowres", folds=(2, 3, 4), epochs=3),  # those trained are left alone
        cascade,
    ]
    assert said == ["3d_lowres, the previous stage: 2 of 5 folds are trained and validated"]
    pretend_trained(workspace, "3d_lowres", range(2, 5), dataset)
    assert split_into_phases(workspace, cascade) == [cascade]
    with pytest.raises(UsageError, match="no fold 7"):
        split_into_phases(workspace, replace(options, folds=(7,)))


def test_the_model_of_all_cases_is_a_phase_after_the_folds_it_learns_from(planned, tmp_path):
    """Every case it sees needs a segmentation by a fold of the previous stage that held it out."""
    dataset, source = planned
    workspace = copy_of(source, tmp_path / "w")
    options = TrainOptions(configuration="3d_cascade", folds=(FULL,), epochs=3)
    assert split_into_phases(workspace, options) == [
        TrainOptions(configuration="3d_lowres", folds=(0, 1, 2, 3, 4), epochs=3),
        options,
    ]
    pretend_trained(workspace, "3d_lowres", range(5), dataset)
    assert split_into_phases(workspace, options) == [options]
    with pytest.raises(StateError, match="no fold of 3d_cascade has been started"):
        split_into_phases(workspace, replace(options, finish=True))


def phase_command(folder: Path, fails: str) -> Callable[..., list[str]]:
    """Instead of training: note who was asked for, and what was there by then; fold 1 of a stage fails."""

    def command(workspace: Workspace, phase: TrainOptions, fold: int) -> list[str]:
        store = workspace.preprocessed("3d_lowres" if phase.configuration == "3d_lowres" else "3d_fullres")
        brought = workspace.previous_stage("3d_cascade", "unet")
        seen = f"{phase.configuration} {fold} {store.exists()} {len(list(brought.glob('*.npy')))}"
        script = f"open({str(folder / 'log')!r}, 'a').write({seen + chr(10)!r})"
        return [
            sys.executable,
            "-S",
            "-c",
            script + ("; raise SystemExit(5)" if fails == f"{phase.configuration} {fold}" else ""),
        ]

    return command


@pytest.mark.thorough
def test_a_cascade_waits_for_all_folds_of_its_previous_stage(planned, tmp_path, monkeypatch, said):
    dataset, source = planned
    workspace = copy_of(source, tmp_path / "w")
    with_gpus(monkeypatch, 1, None)
    options = TrainOptions(configuration="3d_cascade", folds=(0, 2))
    monkeypatch.setattr(local_gpus, "fold_command", phase_command(tmp_path, fails="3d_lowres 1"))
    with pytest.raises(AutosegError, match="fold 1 of 3d_lowres failed") as raised:
        train_on_gpus(workspace, options, "all")
    assert raised.value.exit_code == 5
    assert (tmp_path / "log").read_text().splitlines() == [f"3d_lowres {fold} True 0" for fold in range(5)]
    pretend_trained(workspace, "3d_lowres", range(5), dataset)
    (tmp_path / "log").unlink()
    said.clear()
    train_on_gpus(workspace, options, "all")
    assert (tmp_path / "log").read_text().splitlines() == ["3d_cascade 0 True 5", "3d_cascade 2 True 5"]
    assert "3d_cascade: 2 folds on GPU 0" in said
    assert said[-1].startswith("fold ")


def test_folds_that_learnt_from_older_segmentations_are_named(planned, tmp_path, said):
    dataset, source = planned
    workspace = copy_of(source, tmp_path / "w")
    phase = TrainOptions(configuration="3d_cascade", folds=(0, 1))
    pretend_trained(workspace, "3d_lowres", range(5), dataset)
    pretend_trained(workspace, "3d_cascade", range(1, 2), dataset)
    preprocess_phase(workspace, phase)
    bring_previous_stage(workspace, phase)
    assert not any("outdated" in line for line in said)
    (case,) = load(Splits, workspace.splits).splits[3].validation
    path = workspace.fold("3d_lowres", "unet", 3) / "validation" / f"{case}.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj)[::-1], nib.load(path).affine), path)
    bring_previous_stage(workspace, phase)
    assert any(line.startswith("note: fold 1 of 3d_cascade was trained on outdated segmentations") for line in said)


@pytest.mark.slow
def test_two_folds_are_trained_side_by_side(planned, tmp_path, monkeypatch, said):
    """On the CPU, each by its own `autoseg train`; then nothing is left to do."""
    workspace = copy_of(planned[1], tmp_path / "w")
    with_gpus(monkeypatch, 2, None)
    real = local_gpus.fold_command
    monkeypatch.setattr(
        local_gpus, "fold_command", lambda *a: [w.replace("--device=cuda", "--device=cpu") for w in real(*a)]
    )
    settings = ("training.iterations_per_epoch=12", "training.workers=0", "training.autocast=float32")
    options = TrainOptions(folds=(0, 1), epochs=2, settings=settings)
    for expected in ("24 steps in", "is already trained and validated"):
        said.clear()
        train_on_gpus(workspace, options, "all")
        for fold in (0, 1):
            assert any(line.startswith(f"fold {fold}  ") and expected in line for line in said)
            assert len(list((workspace.fold("3d_fullres", "unet", fold) / "validation").glob("*.nii.gz"))) == 1
        assert [line.split()[-1] for line in said[-1].splitlines()[1:]] == ["trained", "trained"]
