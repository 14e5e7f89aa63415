"""The whole line on tiny datasets: plan, train, evaluate, predict, as a user runs it."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from autoseg.cli import main
from autoseg.datasets.splits import Splits
from autoseg.evaluation.crossval import CrossValidation, HeldOutScores
from autoseg.models.checkpoint import load_checkpoint
from autoseg.planning.plan import Plan
from autoseg.records import load
from autoseg.training import within_memory
from autoseg.workspace import Workspace
from commands import SHORT, Killed, copy_of, dice_of, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Workspace]:
    """A 3-D dataset in mixed orientations, two folds trained for long enough to find the blobs."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = tiny_dataset(folder / "data", cases=6, orientations=("LPS", "RAS", "PIR"))
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root)
    run("train", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    return dataset, workspace


def test_every_stage_leaves_its_record(trained):
    _, workspace = trained
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    assert len(splits.splits) == 5
    assert plan.recommended == "3d_fullres"
    for fold in (0, 1):
        folder = workspace.fold("3d_fullres", "unet", fold)
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [12 * (i + 1) for i in range(8)]
        assert rows[-1]["loss"] < rows[0]["loss"]
        names = {path.name for path in (folder / "validation").iterdir()}
        assert names == {f"{case}.nii.gz" for case in splits.splits[fold].validation}


def test_cross_validation_scores_each_held_out_case_once_and_finds_the_blobs(trained, capsys):
    _, workspace = trained
    run("evaluate", "-w", workspace.root)
    shown = capsys.readouterr().out
    result = load(CrossValidation, workspace.crossval("3d_fullres", "unet"))
    splits = load(Splits, workspace.splits)
    held_out = [case for split in splits.splits[:2] for case in split.validation]
    assert [score.case for score in result.cases] == held_out
    for name in ("organ_1", "organ_2"):
        assert result.summary[name]["dice"].mean > 0.6
        assert f"{result.summary[name]['dice'].mean:.4f}" in shown


def test_predictions_return_to_the_grid_and_header_of_the_input(trained, tmp_path):
    dataset, workspace = trained
    run("predict", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root)
    images = sorted((dataset / "imagesTr").iterdir())
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(images) == 6
    for image in images:
        source = nib.load(image)
        result = nib.load(tmp_path / "out" / image.name.replace("_0000", ""))
        assert result.shape == source.shape
        np.testing.assert_array_equal(result.affine, source.affine)
        for key in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(result.header[key], source.header[key])
        reference = np.asarray(nib.load(dataset / "labelsTr" / image.name.replace("_0000", "")).dataobj)
        found, wanted = np.asarray(result.dataobj) > 0, reference > 0
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.6  # on the right grid, not mirrored


def test_a_folder_against_its_references(trained, tmp_path, capsys):
    dataset, workspace = trained
    run("predict", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root, "--no-mirroring")
    capsys.readouterr()
    run("evaluate", "--predictions", tmp_path / "out", "--references", dataset / "labelsTr", "-w", workspace.root,
        "--csv", tmp_path / "scores.csv")  # fmt: skip
    assert "organ_2" in capsys.readouterr().out
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 6 * 2


def test_a_finished_fold_is_left_alone_and_restarted_on_demand(trained, capsys):
    _, workspace = trained
    folder = workspace.fold("3d_fullres", "unet", 0)
    before = (folder / "last.pt").read_bytes()
    run("train", "-f", 0, "--epochs", 8, "-w", workspace.root, *SHORT)
    assert "already" in capsys.readouterr().out
    assert (folder / "last.pt").read_bytes() == before
    copy = Workspace(workspace.root.with_name("copy"))
    shutil.copytree(workspace.root, copy.root)
    run("train", "-f", 0, "--epochs", 1, "--restart", "-w", copy.root, *SHORT)
    kept = list(copy.model("3d_fullres", "unet").glob("fold_0.before-*"))
    assert [(path / "last.pt").read_bytes() for path in kept] == [before]


def test_a_resumed_training_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    """Three epochs in one go, and three epochs cut short in the third, give the same weights bit by bit."""
    _, source = trained
    states = []
    for cut_short in (False, True):
        workspace = Workspace(tmp_path / f"cut_{cut_short}")
        shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
        command = ["train", "-f", 2, "--epochs", 3, "-w", workspace.root, *SHORT]
        if cut_short:
            real, calls = within_memory.TrainingStep.__call__, iter(range(100))

            def stop_in_the_third_epoch(*arguments, real=real, calls=calls, **options):
                if next(calls) == 30:
                    raise Killed
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(within_memory.TrainingStep, "__call__", stop_in_the_third_epoch)
                with pytest.raises(Killed):
                    main([str(a) for a in command])
            assert load_checkpoint(workspace.fold("3d_fullres", "unet", 2) / "last.pt")["position"]["epoch"] == 2
        run(*command)
        states.append(load_checkpoint(workspace.fold("3d_fullres", "unet", 2) / "last.pt"))
    whole, resumed = states
    for key, weights in whole["network"].items():
        assert torch.equal(weights, resumed["network"][key]), key
    assert [row["loss"] for row in whole["history"]] == [row["loss"] for row in resumed["history"]]


def test_other_settings_than_a_fold_was_begun_with_are_refused(trained, capsys):
    _, workspace = trained
    code = main(["train", "-f", "0", "--epochs", "8", "-w", str(workspace.root), "--set", "training.learning_rate=0.5"])
    assert code == 4
    assert "training" in capsys.readouterr().err


def test_a_time_budget_is_kept(trained, tmp_path):
    """The schedule spans the budget: the last learning rate is the lowest, whatever the number of steps."""
    _, source = trained
    workspace = Workspace(tmp_path / "budget")
    shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
    run("train", "-f", 0, "--time-budget", "12s", "-w", workspace.root, "--set", "training.workers=0")
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")
    assert state["finished"]
    rates = [row["learning_rate"] for row in state["history"]]
    assert rates[-1] < 0.1 * max(rates)


@pytest.mark.parametrize("layout", ["nnunet", "plain"])
def test_flat_images_go_the_whole_way(layout, tmp_path):
    dataset = tiny_dataset(tmp_path / "data", cases=4, dims=2, layout=layout, patients=["a", "a", "b", "c"])
    workspace = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", workspace.root)
    assert load(Plan, workspace.plan).recommended == "2d"
    assert len(load(Splits, workspace.splits).splits) == 3
    run("train", "-f", "0..4", "--epochs", 2, "-w", workspace.root, *SHORT)
    images = dataset / ("imagesTr" if layout == "nnunet" else "images")
    run("predict", "-i", images, "-o", tmp_path / "out", "-w", workspace.root)
    for image in images.iterdir():
        result = Image.open(tmp_path / "out" / image.name.replace("_0000", ""))
        assert result.size == Image.open(image).size
    run("evaluate", "-w", workspace.root)
    assert len(load(CrossValidation, workspace.crossval("2d", "unet")).cases) == 4


def test_a_test_set_is_scored_once(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=6, patients=list("aabbcc"))
    for part in ("images", "labels"):
        (dataset / f"{part}Ts").mkdir()
        for case in ("case_04", "case_05"):  # both of patient c
            for path in (dataset / f"{part}Tr").glob(f"{case}*"):
                path.rename(dataset / f"{part}Ts" / path.name)
    workspace = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", workspace.root)
    assert main(["evaluate", "--test", "-w", str(workspace.root)]) == 4  # nothing is trained yet
    run("train", "--epochs", 2, "-w", workspace.root, *SHORT)
    run("evaluate", "--test", "-w", workspace.root)
    first = load(HeldOutScores, workspace.test)
    assert [score.case for score in first.cases] == ["case_04", "case_05"]
    capsys.readouterr()
    shutil.rmtree(workspace.root / "models")
    run("evaluate", "--test", "-w", workspace.root)
    assert "the test set is scored only once" in capsys.readouterr().out
    assert load(HeldOutScores, workspace.test) == first


def test_networks_stand_side_by_side(trained, tmp_path, capsys):
    """Another network is planned from the same data, trained beside the first, and votes with it."""
    dataset, source = trained
    workspace = copy_of(source, tmp_path / "w")
    before = workspace.plan.read_bytes()
    run("train", "--network", "residual_unet", "-f", 0, "--epochs", 2, "-w", workspace.root, *SHORT)
    assert "plan for residual_unet" in capsys.readouterr().out
    assert workspace.plan.read_bytes() == before
    assert workspace.models() == (("3d_fullres", "residual_unet"), ("3d_fullres", "unet"))
    run("evaluate", "-w", workspace.root)
    run("evaluate", "--network", "residual_unet", "-w", workspace.root)
    for network, cases in (("unet", 2), ("residual_unet", 1)):
        result = load(CrossValidation, workspace.crossval("3d_fullres", network))
        assert (result.network, len(result.cases)) == (network, cases)
    assert "plan for" not in capsys.readouterr().out  # made once
    run("status", "-w", workspace.root)
    assert "\n3d_fullres-residual_unet\n  fold 0: epoch 2" in capsys.readouterr().out
    run("predict", "--network", "residual_unet", "-i", dataset / "imagesTr", "-o", tmp_path / "a", "-w", workspace.root)
    both = ("-m", "3d_fullres-unet", "3d_fullres-residual_unet")
    run("predict", *both, "-i", dataset / "imagesTr", "-o", tmp_path / "b", "-w", workspace.root)
    assert dice_of(tmp_path / "b", dataset) > 0.6
    assert main(["train", "--network", "paintbrush", "-w", str(workspace.root)]) == 2
    assert "residual_unet" in capsys.readouterr().err
