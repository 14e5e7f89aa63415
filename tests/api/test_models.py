"""Training, scoring and predicting from Python: what is passed on, and the records that come back."""

from pathlib import Path

import numpy as np
import pytest

import autoseg
from autoseg.commands.predict import PartlySegmented, PredictOptions
from autoseg.commands.train import TrainedFold
from autoseg.datasets.dataset import Problem
from autoseg.errors import DataError
from autoseg.training.state import Position
from autoseg.training.train import FoldResult
from autoseg.workspace import Workspace
from files import nifti
from plans import plan_of
from synthetic_fingerprints import label_set


def test_a_fold_reports_dice_by_label_steps_and_folder():
    labels = label_set(3)
    plan = plan_of(labels)
    result = FoldResult(1, Path("ws/fold_1"), Position(epoch=3, step=75), (0.5, None), ("a warning",), False)
    assert TrainedFold.of(result, plan, "2d") == TrainedFold(
        fold=1, configuration="2d", network="unet", folder=Path("ws/fold_1"), epochs=3, steps=75,
        pseudo_dice=dict(zip(labels.scored, (0.5, None), strict=True)), warnings=("a warning",), already_finished=False,
    )  # fmt: skip
    full = FoldResult("full", Path("ws/fold_full"), Position(epoch=3, step=75), (), (), True)
    assert TrainedFold.of(full, plan, "2d").pseudo_dice == {}


def test_predict_passes_everything_on(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "autoseg.commands.predict.predict_images", lambda *a, **k: calls.append((a, k)) or [Path("o/a")]
    )
    found = autoseg.predict_images("ws", "images", "o")
    assert (found.files, found.failed) == ((Path("o/a"),), ())
    assert calls[0][0] == (Workspace(Path("ws")), [Path("images")], Path("o"), PredictOptions())
    autoseg.predict_images("ws", ["a.nii", Path("b.nii")], "o", models=["2d-unet"], folds=0, device="cpu", step=0.25,
                           mirroring=False, unfinished=True, tile=2)  # fmt: skip
    options = PredictOptions(
        models=("2d-unet",), folds=(0,), device="cpu", step=0.25, mirroring=False, unfinished=True, tile=2.0
    )
    assert calls[1] == ((Workspace(Path("ws")), [Path("a.nii"), Path("b.nii")], Path("o"), options), {})


def test_what_could_not_be_segmented_is_returned_beside_the_rest(monkeypatch):
    failed = Problem("b", "b.nii", "is damaged", "repair it")

    def partly(*_: object, **__: object) -> None:
        raise PartlySegmented([failed], [Path("o/a.nii")], Path("o"))

    monkeypatch.setattr("autoseg.commands.predict.predict_images", partly)
    found = autoseg.predict_images("ws", "images", "o")
    assert (found.files, found.failed) == ((Path("o/a.nii"),), (failed,))


def test_two_folders_are_compared_without_a_workspace(tmp_path, capsys):
    """Label 1: 2 of 2 voxels; label 2: 1 of 2, so Dice 2 * 1 / (2 + 1)."""
    reference, segmentation = np.zeros((1, 2, 4), np.uint8), np.zeros((1, 2, 4), np.uint8)
    reference[0, :, 0] = segmentation[0, :, 0] = 1
    reference[0, :, 3], segmentation[0, 0, 3] = 2, 2
    nifti(tmp_path / "references" / "a.nii", reference)
    nifti(tmp_path / "out" / "a.nii", segmentation)
    labels = {"liver": 1, "tumour": 2}
    scores = autoseg.evaluate_folders(
        tmp_path / "out", str(tmp_path / "references"), labels=labels, csv=tmp_path / "scores.csv", workers=0, say=None
    )
    assert scores.cases[0].scores["tumour"]["dice"] == pytest.approx(2 / 3)
    assert scores.summary["liver"]["dice"].mean == 1
    assert scores.mean_dice == pytest.approx(5 / 6)
    assert (tmp_path / "scores.csv").read_text().startswith("case,label,dice")
    assert capsys.readouterr().out == ""
    lines: list[str] = []
    autoseg.evaluate_folders(tmp_path / "out", tmp_path / "references", workers=0, say=lines.append)
    assert lines[0].startswith("1 case ")
    assert "label_2" in lines[0]
    with pytest.raises(DataError, match="not labels"):
        autoseg.evaluate_folders(tmp_path / "out", tmp_path / "references", labels="liver=1", workers=0)


def test_a_status_is_text(tmp_path, capsys):
    assert autoseg.status(tmp_path / "ws").endswith(f"next: autoseg plan DATASET -w {tmp_path}/ws")
    assert capsys.readouterr().out == ""
