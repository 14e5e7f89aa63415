"""`autoseg floor` as a user runs it: datasets with objects and with labels, folds of a workspace, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import autoseg
from autoseg.cli import main
from autoseg.datasets.splits import Splits
from autoseg.evaluation.crossval import CrossValidation, FoldScores
from autoseg.evaluation.evaluate import CaseScore, summary_of
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.workspace import Workspace
from commands import outcome, run
from phantom import sphere, tiny_dataset

NAMES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture
def discs(tmp_path) -> Path:
    """Six pictures of two discs that touch and one apart, brighter than their surroundings."""
    folder = tmp_path / "discs"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        numbers = np.zeros((48, 64), np.uint16)
        for number, centre in enumerate(((14, 12), (14, 24 + index % 2), (34, 46)), start=1):
            numbers[sphere(numbers.shape, centre, 7.0) & (numbers == 0)] = number
        noise = np.random.default_rng(index).normal(0, 3, numbers.shape)
        Image.fromarray((60 + 100 * (numbers > 0) + noise).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(numbers).save(folder / "labels" / f"{name}.png")
    return folder


def answer(capsys, *arguments: object) -> tuple[int, dict]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.thorough
def test_objects_of_a_dataset(discs, tmp_path, capsys):
    code, found = answer(
        capsys, "floor", discs, "--instances", "disc", "-w", tmp_path / "none", "--workers", 0, "--tune", 1
    )
    assert code == 0
    methods = found["result"]["objects"]["disc"]
    assert methods["otsu_watershed"]["scores"]["average_precision"]["0.5"] > 0.9
    assert methods["otsu_components"]["scores"]["average_precision"]["0.5"] < 0.7  # two of three discs are one
    assert methods["chosen"]["scores"]["reference"] == 18
    assert found["result"]["cases"] == 6
    assert not (tmp_path / "none").exists()


@pytest.mark.thorough
def test_labels_of_a_dataset_and_the_same_from_python(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=5, labels=1)
    code, said = outcome(capsys, "floor", dataset, "-w", tmp_path / "none", "--workers", 0)
    assert code == 0
    assert "without a network; numbers tuned on at most 4 training cases" in said
    found = autoseg.measure_floor(dataset, tmp_path / "none", workers=0, say=None)
    assert found.labels["otsu"].dice["organ_1"].mean > 0.9  # blobs of 180 on 60, noise of 8
    assert f"{found.labels['chosen'].dice['mean'].mean:.4f}" in said
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
def test_folds_and_models_of_a_workspace_stand_beside_it(tmp_path, capsys):
    dataset, workspace = tiny_dataset(tmp_path / "data", cases=5, labels=1), Workspace(tmp_path / "ws")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess", "--workers", 0)
    splits, plan = load(Splits, workspace.splits), load(Plan, workspace.plan)
    save(workspace.splits, replace(splits, splits=splits.splits[:2]))
    capsys.readouterr()
    code, said = outcome(capsys, "floor", "-w", workspace.root, "--workers", 0)
    assert code == 0
    assert "2 folds of" in said
    assert "data: 2 held-out cases" in said or "Tiny: 2 held-out cases" in said
    assert "no model is scored beside it: autoseg evaluate" in said
    network = plan.configurations[plan.recommended].network.name
    folder = workspace.fold(plan.recommended, network, 0)
    folder.mkdir(parents=True)
    (folder / "last.pt").touch()
    dice = summary_of([0.2, 0.3], ["one", "other"])
    cases = tuple(CaseScore(name, ((9, 1), (1, 1)), {"organ_1": {"dice": 0.25}}) for name in ("one", "other"))
    folds, summary = (FoldScores(0, cases),), {"organ_1": {"dice": dice}}
    scores = CrossValidation(1, plan.recommended, network, folds, 2, summary, dice)
    save(workspace.crossval(plan.recommended, network), scores)
    code, said = outcome(capsys, "floor", dataset, "-w", workspace.root, "--workers", 0)
    assert code == 0
    assert f"WARNING: {plan.recommended}-{network}: mean Dice 0.2500" in said
    assert "which needs no network" in said
    capsys.readouterr()
    code, found = answer(capsys, "floor", dataset, "--labels", "lump=1", "-w", workspace.root, "--workers", 0)
    assert code == 0  # other labels: neither the folds nor the models of the workspace
    assert found["result"]["cases"] == 5
    assert found["result"]["networks"] == []


@pytest.mark.thorough
def test_what_is_refused(tmp_path, discs, capsys):
    code, said = outcome(capsys, "floor", "-w", tmp_path / "none")
    assert code == 4
    assert "make a plan first" in said
    code, said = outcome(capsys, "floor", discs, "--tune", "0")
    assert code == 2
    Image.fromarray(np.ones((5, 5), np.uint16)).save(discs / "labels" / "c.png")
    code, said = outcome(
        capsys, "floor", discs, "--instances", "disc", "-w", tmp_path / "none", "--workers", 0, "--tune", 1
    )
    assert code == 3
    assert "has 1 error (listed above)" in said
    assert "c.png" in said
    code, said = outcome(
        capsys,
        "floor",
        discs,
        "--instances",
        "disc",
        "-w",
        tmp_path / "none",
        "--workers",
        0,
        "--tune",
        1,
        "--skip-bad",
    )
    assert code == 0
    assert "5 held-out cases" in said
