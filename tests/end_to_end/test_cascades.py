"""Cascades from the command line, and the models of one workspace side by side."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.cli import main
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.evaluation.crossval import CrossValidation, HeldOutScores
from autoseg.evaluation.speeds import SpeedTable
from autoseg.inference import member
from autoseg.models.checkpoint import load_checkpoint
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.training import within_memory
from autoseg.workspace import Workspace
from commands import SHORT, Killed, copy_of, dice_of, run
from phantom import tiny_dataset
from plans import with_cascade

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cascaded(tmp_path_factory) -> tuple[Path, Workspace]:
    """All folds of 3d_lowres, two of 3d_cascade and of 3d_fullres: the cascade in one command."""
    folder = tmp_path_factory.mktemp("cascaded")
    dataset = tiny_dataset(folder / "data", cases=6, orientations=("LPS", "RAS"))
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess")
    save(workspace.plan, with_cascade(load(Plan, workspace.plan)))
    run("train", "-c", "3d_cascade", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    run("train", "-c", "3d_fullres", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    return dataset, workspace


def test_a_cascade_is_trained_in_one_command(cascaded, tmp_path, capsys):
    dataset, workspace = cascaded
    for fold in range(5):
        assert load_checkpoint(workspace.fold("3d_lowres", "unet", fold) / "last.pt")["finished"]
        state_of_cascade = workspace.fold("3d_cascade", "unet", fold) / "last.pt"
        assert state_of_cascade.exists() == (fold < 2)
    weights = load_checkpoint(workspace.fold("3d_cascade", "unet", 0) / "last.pt")["network"]
    assert next(iter(weights.values())).shape[1] == 3  # one channel, two labels
    run("evaluate", "-c", "3d_cascade", "-w", workspace.root)
    result = load(CrossValidation, workspace.crossval("3d_cascade", "unet"))
    assert result.configuration == "3d_cascade"
    for name in ("organ_1", "organ_2"):
        assert result.summary[name]["dice"].mean > 0.3  # nothing learnt: 0
    run("predict", "-c", "3d_cascade", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root)
    assert dice_of(tmp_path / "out", dataset) > 0.6
    capsys.readouterr()
    run("status", "-w", workspace.root)
    shown = capsys.readouterr().out
    start = shown.splitlines().index("3d_cascade-unet, after 3d_lowres")
    assert "trained and validated" in shown.splitlines()[start + 1]
    assert "not trained" in shown.splitlines()[start + 3]


def test_a_held_out_case_is_segmented_after_the_fold_that_held_it_out(cascaded, tmp_path, monkeypatch):
    """What the cascade is told of the case that fold 1 held out follows from fold 1 of 3d_lowres alone."""
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    (case,) = load(Splits, workspace.splits).splits[1].validation
    written = workspace.fold("3d_cascade", "unet", 1) / "validation" / f"{case}.nii.gz"
    before = np.asarray(nib.load(written).dataobj)
    told = []
    real = member.previous_labels
    monkeypatch.setattr(member, "previous_labels", lambda *a: told.append(real(*a)) or told[-1])
    written.unlink()
    run("train", "-c", "3d_cascade", "-f", 1, "--epochs", 8, "-w", workspace.root, *SHORT)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), before)
    stored = np.load(workspace.previous_stage("3d_cascade", "unet") / f"{case}.npy")
    np.testing.assert_array_equal(told, [np.maximum(stored, 0)])


def test_an_interrupted_cascade_goes_on(cascaded, tmp_path, monkeypatch, capsys):
    """Cut short within 3d_lowres, then within 3d_cascade: the weights are those of one go, bit by bit."""
    _, source = cascaded
    command = ["train", "-c", "3d_cascade", "-f", "0", "--epochs", "1", *SHORT]
    states, real = [], within_memory.TrainingStep.__call__
    for stops in ((), (30, 64)):
        workspace = Workspace(tmp_path / f"stops{len(stops)}")
        shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models", "3d_cascade-unet"))
        begun = 0
        for stop in stops:  # 5 folds of 12 steps, then the cascade

            def stop_at(*arguments, stop=stop, **options):
                nonlocal begun
                begun += 1
                if begun > stop:
                    raise Killed
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(within_memory.TrainingStep, "__call__", stop_at)
                with pytest.raises(Killed):
                    main([*command, "-w", str(workspace.root)])
            begun = stop // 12 * 12  # an epoch that was cut short is begun anew
        capsys.readouterr()
        run(*command, "-w", workspace.root)
        shown = capsys.readouterr().out
        assert f"stage 1 of 2: 3d_lowres, {5 if stops else 0} of 5 folds" in shown
        assert "stage 2 of 2: 3d_cascade" in shown
        states.append(load_checkpoint(workspace.fold("3d_cascade", "unet", 0) / "last.pt")["network"])
    whole, resumed = states
    for key, weights in whole.items():
        assert torch.equal(weights, resumed[key]), key


def test_a_retrained_previous_stage_is_noticed(cascaded, tmp_path, capsys):
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    held_out = load(Splits, workspace.splits).splits[3].validation
    folder = workspace.previous_stage("3d_cascade", "unet")
    before = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    run("train", "-c", "3d_lowres", "-f", 3, "--epochs", 1, "--restart", "-w", workspace.root, *SHORT)
    cascade = ("train", "-c", "3d_cascade", "-f", 0, "--epochs", 8, "-w", workspace.root, *SHORT)
    capsys.readouterr()
    run(*cascade)
    shown = capsys.readouterr().out
    assert "5 of 5 folds are already trained" in shown  # with other epochs, and yet left alone
    assert "note: fold 0 of 3d_cascade was trained on outdated segmentations; retrain with --restart" in shown
    after = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    assert {name for name in after if after[name] != before[name]} == {f"{case}.npy" for case in held_out}
    run(*cascade)
    assert "note: fold" not in capsys.readouterr().out


def test_shares_of_tiles_are_measured_carried_and_said(cascaded, tmp_path, capsys):
    dataset, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    run("evaluate", "--speeds", "-c", "3d_cascade", "-w", workspace.root)
    table = load(SpeedTable, workspace.speeds("3d_cascade", "unet"))
    shares = {speed.top_k: speed for speed in table.speeds if speed.top_k is not None}
    assert set(shares) == {0.5, 0.2, 0.1}
    assert all(speed.change is not None and 0 < speed.same <= 1 for speed in shares.values())
    assert "top-k 20%" in capsys.readouterr().out
    run("export", tmp_path / "cascade.zip", "-c", "3d_cascade", "-w", workspace.root)
    images = ("-i", dataset / "imagesTr" / "case_00_0000.nii.gz", "--device", "cpu", "--top-k", "20%")
    for out, model in (
        ("here", ("-m", tmp_path / "cascade.zip")),
        ("there", ("-c", "3d_cascade", "-w", workspace.root)),
    ):
        capsys.readouterr()
        run("predict", *images, "-o", tmp_path / out, *model)
        line = f"top-k 20%: Dice {shares[0.2].dice.mean:.4f}"
        assert line in capsys.readouterr().out
    pairs = [np.asarray(nib.load(tmp_path / out / "case_00.nii.gz").dataobj) for out in ("here", "there")]
    np.testing.assert_array_equal(*pairs)


def test_models_vote_with_their_probabilities(cascaded, tmp_path, capsys):
    """The mean of what two models say by themselves, one of them a cascade, is what they say together."""
    dataset, workspace = cascaded
    images = ("-i", dataset / "imagesTr" / "case_00_0000.nii.gz", "-w", workspace.root)
    found = []
    for number, models in enumerate((["3d_cascade-unet"], ["3d_fullres-unet"], ["3d_cascade-unet", "3d_fullres-unet"])):
        out = tmp_path / str(number)
        run("predict", *images, "-o", out, "--probabilities", "-m", *models)
        files = sorted((out / "probabilities" / "case_00").glob("*.nii"))
        found.append(np.stack([nib.load(file).get_fdata() for file in files]))
    assert "by 2 folds of 3d_cascade (unet) and 2 folds of 3d_fullres (unet)" in capsys.readouterr().out
    cascade, full, together = found
    assert np.abs(cascade - full).max() > 0.01
    np.testing.assert_allclose(together, (cascade + full) / 2, atol=2**-15)  # as they are stored
    decided = np.asarray(nib.load(out / "case_00.nii.gz").dataobj)
    first, second = np.sort(together, axis=0)[:-3:-1]
    clear = first - second > 2**-13
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(decided[clear], together.argmax(axis=0)[clear])
    assert main(["predict", *map(str, images), "-o", str(tmp_path / "x"), "-m", "2d-unet"]) == 4
    assert "there are: 3d_cascade-unet, 3d_fullres-unet, 3d_lowres-unet" in capsys.readouterr().err
    assert main(["predict", *map(str, images), "-o", str(tmp_path / "x"), "-m", "3d_fullres-unet", "-c", "2d"]) == 2


def test_results_of_models_stand_side_by_side(cascaded, capsys):
    _, workspace = cascaded
    run("evaluate", "-c", "3d_lowres", "-w", workspace.root)
    run("evaluate", "-c", "3d_cascade", "-w", workspace.root)
    capsys.readouterr()
    run("evaluate", "-w", workspace.root)  # 3d_fullres
    shown = capsys.readouterr().out
    assert shown.startswith("3d_fullres, unet: 2 cases in 2 folds")
    assert "\n3d_lowres, unet: mean Dice 0." in shown
    assert ", 6 cases in 5 folds" in shown
    assert "\n3d_cascade, unet: mean Dice 0." in shown
    assert "\n3d_fullres, unet: mean Dice" not in shown  # its tables are above
    for name, cases in (("3d_fullres", 2), ("3d_lowres", 6), ("3d_cascade", 2)):
        assert len(load(CrossValidation, workspace.crossval(name, "unet")).cases) == cases
    workspace.crossval("3d_cascade", "unet").unlink()
    run("evaluate", "-w", workspace.root)
    command = shlex.join(["autoseg", "evaluate", "-c", "3d_cascade", "--network", "unet", "-w", str(workspace.root)])
    assert f"3d_cascade, unet: not evaluated ({command})" in capsys.readouterr().out
    run("evaluate", "-c", "3d_fullres", "-w", workspace.root)
    assert "3d_lowres" not in capsys.readouterr().out


def test_a_cascade_is_scored_on_test_cases(cascaded, tmp_path, capsys):
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    dataset = load(Dataset, workspace.dataset)
    save(workspace.dataset, replace(dataset, test_cases=dataset.cases[:2]))
    assert main(["evaluate", "--test", "-c", "3d_cascade", "-w", str(workspace.root)]) == 4
    assert "fold 2 of" in capsys.readouterr().err
    run("train", "-c", "3d_cascade", "--epochs", 1, "-f", "2..4", "-w", workspace.root, *SHORT)
    run("evaluate", "--test", "-c", "3d_cascade", "-w", workspace.root)
    result = load(HeldOutScores, workspace.test)
    assert (result.configuration, [score.case for score in result.cases]) == ("3d_cascade", ["case_00", "case_01"])
    assert max(score.scores["organ_1"]["dice"] for score in result.cases) > 0.5
