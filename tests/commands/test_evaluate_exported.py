"""`evaluate -m model.zip`: names of labels, a test set, what it carries; and a clear answer where that is nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autoseg
from autoseg.cli import main
from autoseg.datasets.dataset import Case, Dataset
from autoseg.errors import StateError
from autoseg.evaluation.speeds import Estimate, MeasuredSpeed, SpeedTable
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.models.decision import Decision, Rule
from autoseg.models.identity import fold_digests
from autoseg.models.opening import open_models
from autoseg.records import load, save
from commands import outcome
from exported import plan_for_tests, scored, workspace_of
from files import nifti
from phantom import tiny_case
from synthetic_fingerprints import label_set

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with scores and speeds, one without, and a workspace of a dataset with a labelled test case."""
    root = tmp_path_factory.mktemp("evaluated")
    plan = plan_for_tests().with_settings(["training.test_time_mirroring=false"])
    workspace = workspace_of(root / "w", plan)
    assert main(["export", str(root / "plain.zip"), "-w", str(workspace.root)]) == 0
    scored(workspace)
    speed = MeasuredSpeed("accurate", 0.5, 8, Estimate(0.9, 0.88, 0.92), Estimate(0.0, 0.0, 0.0), 4.0)
    save(workspace.speeds("3d_fullres", "unet"), SpeedTable(1, "3d_fullres", "unet", "cpu", {}, 5, (speed,)))
    assert main(["export", str(root / "model.zip"), "-w", str(workspace.root)]) == 0
    image, label = tiny_case(np.random.default_rng(0), (9, 16, 20))
    files = nifti(root / "in" / "t.nii", image[0], AFFINE), nifti(root / "labels" / "t.nii", label, AFFINE)
    dataset = load(Dataset, workspace.dataset)
    test = Case("t", "t", (str(files[0]),), str(files[1]))
    save(workspace.dataset, replace(dataset, test_cases=(test,)))
    return root


def test_it_names_the_labels_of_two_folders(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    folders = ("--predictions", folder / "labels", "--references", folder / "labels")
    code, said = outcome(capsys, "evaluate", *folders, "-m", folder / "model.zip")
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines() if line.startswith("label")][:2] == [
        ["label1", "1.0000"], ["label2", "1.0000"]
    ]  # fmt: skip
    scores = autoseg.evaluate_folders(
        folder / "labels", folder / "labels", model=folder / "model.zip", say=None, workers=0
    )
    assert set(scores.summary) == {"label1", "label2"}
    code, said = outcome(capsys, "evaluate", *folders, "-m", folder / "w")
    assert (code, "is not an exported model" in said) == (2, True)


@pytest.mark.thorough
def test_it_segments_the_test_cases_once(folder, capsys):
    code, said = outcome(capsys, "evaluate", "--test", "-m", folder / "model.zip", "-w", folder / "w")
    assert code == 0
    assert "1 test case" in said
    (made,) = (folder / "w").glob("test-*")
    assert sorted(path.name for path in made.iterdir()) == ["t.nii", "test.json"]
    before = (made / "t.nii").stat().st_mtime_ns
    result = autoseg.score_test_set(folder / "w", model=folder / "model.zip", say=None)
    assert [case.case for case in result.cases] == ["t"]
    assert (made / "t.nii").stat().st_mtime_ns == before
    code, said = outcome(capsys, "evaluate", "--test", "-m", folder / "model.zip", "-w", folder / "w")
    assert "the test set is scored only once; these are the results of model.zip" in said
    assert not (folder / "w" / "test.json").exists()  # that of the workspace's own models


@pytest.mark.thorough
def test_test_cases_are_segmented_by_the_decision_as_predict_does(folder, tmp_path):
    """Of a file, and of a workspace whose decision is that another model predicts."""
    plan = plan_for_tests().with_settings(["training.test_time_mirroring=false"])
    workspace = workspace_of(tmp_path / "w", plan, configurations=("3d_fullres", "2d"), folds=("full",))
    save(workspace.dataset, load(Dataset, folder / "w" / "dataset.json"))
    (model,) = open_models(workspace.root, configuration="2d", device=torch.device("cpu"))
    decision = Decision(1, ("2d-unet",), {"2d-unet": fold_digests(model)}, Rule({"label1": 50.0}), "3d_fullres-unet")
    for name in ("3d_fullres", "2d"):
        save(workspace.decision(name, "unet"), decision)
    image, file = folder / "in" / "t.nii", tmp_path / "model.zip"
    autoseg.export_model(workspace.root, file, configurations=["2d"], say=None)
    (decided,) = autoseg.predict_images(workspace.root, image, tmp_path / "out", say=None).files
    assert np.unique(read_labels(decided).array[read_image(image).array[0] != 0]).tolist() == [1]
    (plain,) = autoseg.predict_images(workspace.root, image, tmp_path / "plain", decision=False, say=None).files
    assert not np.array_equal(read_labels(plain).array, read_labels(decided).array)
    result = autoseg.score_test_set(workspace.root, say=None)
    assert (result.configuration, result.network) == ("2d", "unet")
    autoseg.score_test_set(workspace.root, model=file, say=None)
    for made in (workspace.model("3d_fullres", "unet") / "test" / "t.nii", *workspace.root.glob("test-*/t.nii")):
        assert np.array_equal(read_labels(made).array, read_labels(decided).array), made
    assert len([*workspace.root.glob("test-*")]) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"channels": ("CT",)}, "the channels"),
        ({"labels": LabelSet({"liver": 1, "label2": 2})}, "the labels"),
        ({"labels": replace(label_set(3), regions={"all": (1, 2)}, region_values=(1,))}, "the regions"),
        ({"test_cases": ()}, "no labelled test cases"),
    ],
)
def test_a_dataset_it_does_not_fit(folder, tmp_path, change, why):
    dataset = load(Dataset, folder / "w" / "dataset.json")
    save(tmp_path / "dataset.json", replace(dataset, **change))
    with pytest.raises(StateError, match=why):
        autoseg.score_test_set(tmp_path, model=folder / "model.zip", say=None)


def test_what_it_carries_is_shown(folder, tmp_path, capsys):
    code, said = outcome(capsys, "evaluate", "-m", folder / "model.zip", "--csv", tmp_path / "scores.csv")
    assert code == 0
    assert "3d_fullres, unet: 5 cases in 5 folds" in said
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 5 * 2
    code, said = outcome(capsys, "evaluate", "-m", folder / "model.zip", "--speeds")
    assert (code, "accurate   0.5       8  0.9000" in said) == (0, True)
    assert main(["evaluate", "-m", str(folder / "model.zip"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["configuration"] == "3d_fullres"


@pytest.mark.parametrize(
    ("file", "options", "why", "then"),
    [
        (
            "plain.zip",
            (),
            "carries no scores of 3d_fullres-unet",
            "it was exported from: autoseg evaluate",
        ),
        ("plain.zip", ("--speeds",), "carries no speeds", "evaluate --speeds"),
        ("model.zip", ("--expected-dice",), "carries no expected Dice", "evaluate --expected-dice"),
        ("model.zip", ("-c", "2d"), "holds no model 2d", "it holds: 3d_fullres-unet"),
    ],
)
def test_what_it_does_not_carry_cannot_be_measured(folder, capsys, file, options, why, then):
    code, said = outcome(capsys, "evaluate", "-m", folder / file, *options)
    assert (code, why in said, then in said) == (4, True, True)


def test_models_as_files_from_python(folder, tmp_path):
    said = []
    done = autoseg.export_model(folder / "w", tmp_path / "a.zip", folds=[1], compare=0, say=said.append)
    assert done.models == {"3d_fullres-unet": (1,)}
    assert said
    found = autoseg.describe_model(tmp_path / "a.zip")
    assert [fold.fold for fold in found.models["3d_fullres-unet"].folds] == [1]
    assert found.models["3d_fullres-unet"].speeds.cases == 5
    with pytest.raises(autoseg.AutosegError, match="compare=-1 is not a number of cases"):
        autoseg.export_model(folder / "w", tmp_path / "a.zip", compare=-1, say=None)
    with pytest.raises(autoseg.AutosegError, match="does not exist"):
        autoseg.describe_model(tmp_path / "nothing.zip")
