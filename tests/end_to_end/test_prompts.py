"""Prompts from the command line: trained folds are continued, resumed exactly, measured, corrected, planned again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.evaluation.click_curves import ClickTable
from autoseg.imaging.formats.readers import read_labels
from autoseg.models.checkpoint import load_checkpoint
from autoseg.planning.plan import Plan
from autoseg.records import load
from autoseg.training import within_memory
from autoseg.workspace import Workspace
from commands import SHORT, Killed, copy_of, dice_of, outcome, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow

TRAIN = ("train", "--prompts", "-f", "0..1", "--epochs", 3, *SHORT, "--no-report")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Workspace]:
    """Two folds of the automatic model."""
    folder = tmp_path_factory.mktemp("prompts")
    dataset, workspace = tiny_dataset(folder / "data", cases=6), Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root)
    run("train", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT, "--no-report")
    return dataset, workspace


@pytest.fixture(scope="module")
def prompted(trained, tmp_path_factory) -> tuple[Path, Workspace]:
    """And both continued with prompts."""
    dataset, workspace = trained
    workspace = copy_of(workspace, tmp_path_factory.mktemp("prompted") / "w")
    run(*TRAIN, "-w", workspace.root)
    return dataset, workspace


def test_each_fold_begins_with_the_fold_that_holds_out_the_same_cases(prompted):
    _, workspace = prompted
    plan = load(Plan, workspace.plan)
    assert plan.configurations["3d_fullres_prompts"].prompts.continues == "3d_fullres"
    for fold in (0, 1):
        before = workspace.fold("3d_fullres", "unet", fold)
        state = load_checkpoint(workspace.fold("3d_fullres_prompts", "unet", fold) / "last.pt")
        assert state["finished"]
        assert state["init_from"] == str(before.resolve())
        assert state["validation"] == load_checkpoint(before / "last.pt")["validation"]
        first = next(iter(state["network"].values()))
        assert first.shape[1] == 1 + 5
        assert first[:, 1:].abs().max() > 0, "the weights of prompts were learnt"


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(trained, prompted, tmp_path, monkeypatch):
    _, workspace = trained
    copy = copy_of(workspace, tmp_path / "w")
    steps, step = [0], within_memory.TrainingStep.__call__

    def killed_at_17(self, *arguments, **more):
        steps[0] += 1
        if steps[0] == 17:
            raise Killed
        return step(self, *arguments, **more)

    command = ["train", "--prompts", "-f", "0", "--epochs", 3, *SHORT, "--no-report"]
    monkeypatch.setattr(within_memory.TrainingStep, "__call__", killed_at_17)
    with pytest.raises(Killed):
        run(*command, "-w", copy.root)
    monkeypatch.undo()
    run(*command, "-w", copy.root)
    fold = Path("models/3d_fullres_prompts-unet/fold_0/last.pt")
    resumed, whole = (load_checkpoint(root / fold)["network"] for root in (copy.root, prompted[1].root))
    assert all(torch.equal(a, b) for a, b in zip(resumed.values(), whole.values(), strict=True))


def test_the_model_with_prompts_segments_automatically(prompted, tmp_path):
    dataset, workspace = prompted
    run("predict", "-c", "3d_fullres_prompts", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root)
    assert dice_of(tmp_path / "out", dataset) > 0.6
    run("evaluate", "-c", "3d_fullres_prompts", "-w", workspace.root)


def test_clicks_are_measured_on_held_out_cases(prompted, capsys):
    _, workspace = prompted
    code, said = outcome(capsys, "evaluate", "--clicks", 5, "-w", workspace.root)
    assert code == 0, said
    table = load(ClickTable, workspace.clicks("3d_fullres_prompts", "unet"))
    assert len(table.cases) == 2
    assert table.mean_after(5) > table.mean_after(0)
    assert f"{table.mean_after(5):.4f}" in said
    assert set(table.weights) == {"0", "1"}
    code, said = outcome(capsys, "evaluate", "--clicks", 5, "-c", "3d_fullres_prompts", "-w", workspace.root)
    assert code == 0, said


def test_a_case_is_corrected(prompted, tmp_path):
    dataset, workspace = prompted
    image = sorted((dataset / "imagesTr").iterdir())[0]
    out = tmp_path / "corrected.nii.gz"
    at = (2, 3, 4)
    run("refine", image, "-o", out, "-w", workspace.root, "--click", "2,3,4:organ_2", "-f", "0", "--speed", "fast")
    assert read_labels(out).array[at] == 2


def test_planning_again_keeps_prompts_and_their_folds(prompted, tmp_path, capsys):
    dataset, workspace = prompted
    copy = copy_of(workspace, tmp_path / "w")
    code, said = outcome(capsys, "plan", dataset, "-w", copy.root, "--cpu-rate", "reference")
    assert code == 0, said
    assert load(Plan, copy.plan) == load(Plan, workspace.plan)
    assert "3d_fullres_prompts-unet: fold 0,1 stay valid" in said
    run(*TRAIN, "-w", copy.root)  # nothing is due


def test_without_a_trained_fold_there_is_nothing_to_continue(trained, tmp_path, capsys):
    _, workspace = trained
    copy = copy_of(workspace, tmp_path / "w")
    code, said = outcome(capsys, "train", "--prompts", "-f", "2", "--epochs", 1, *SHORT, "-w", copy.root)
    assert (code, "fold 2 of 3d_fullres, which prompts are to be trained for" in said) == (4, True), said
    code, said = outcome(capsys, "evaluate", "--clicks", 3, "-w", workspace.root)
    assert (code, "train one: autoseg train --prompts" in said) == (4, True), said


def test_another_network_has_prompts_of_its_own(trained, tmp_path, capsys):
    _, workspace = trained
    copy = copy_of(workspace, tmp_path / "w")
    short = ("--epochs", 1, *SHORT, "--no-report", "-w", copy.root, "-f", "0")
    run("train", "--network", "attention_unet", *short)
    run("train", "--network", "attention_unet", "--prompts", *short)
    plan = load(Plan, copy.plan_for("attention_unet"))
    assert "3d_fullres_prompts" in plan.configurations
    assert "3d_fullres_prompts" not in load(Plan, copy.plan).configurations
    image = np.zeros((8, 9, 10), np.float32)
    from autoseg import Predictor

    with Predictor(copy.root, "3d_fullres_prompts", network="attention_unet", say=None) as predictor:
        shape = replace(predictor._arrays.plan.configurations["3d_fullres_prompts"]).patch_size
        image = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
        correction = predictor.refine(image, (2.0, 1.0, 1.0), clicks=[((1, 2, 3), "organ_1")])
        assert correction.labels[1, 2, 3] == 1
