"""A decision on its way: `predict` applies it to its weights alone, `export` carries it, `info` shows it."""

from dataclasses import replace

import numpy as np
import pytest

from autoseg.commands.decision import apply_decision
from autoseg.commands.export import ExportOptions, export_model
from autoseg.commands.info import info
from autoseg.commands.predict import PredictOptions, predict_images
from autoseg.datasets.inputs import FileNames
from autoseg.errors import StateError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.models.archive import measured_with
from autoseg.models.decision import Decision, Rule
from autoseg.models.identity import weights_digest
from autoseg.records import save
from autoseg.workspace import Workspace
from bright import Bright, model_of, picture, plan_of
from exported import scored, workspace_of
from files import nifti

CPU = PredictOptions(device="cpu")
ONE = (1.0, 1.0, 1.0)


class Learnt(Bright):
    """Bright, with a weight, so that retraining can be seen."""

    def __init__(self, weight: float) -> None:
        import torch

        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))


@pytest.fixture
def model():
    return replace(model_of(ONE, plan=plan_of(file_names=FileNames("suffix", ("",)))), networks=(Learnt(1.0),))


@pytest.fixture
def workspace(tmp_path, monkeypatch, model) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    save(made.plan, model.plan)
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: model)
    return made


def decide_on(workspace: Workspace, model, **changes) -> Decision:
    weights = {model.name: {str(fold): weights_digest(net) for fold, net in zip(model.folds, model.networks)}}  # noqa: B905
    decision = Decision(**{"version": 1, "predicts": (model.name,), "weights": weights,
                           "rule": Rule({"organ": 1.0}), **changes})  # fmt: skip
    save(workspace.decision(model.configuration_name, "unet"), decision)
    return decision


def above(path, image) -> int:
    """The threshold that a segmentation follows: 80 or 100."""
    labels, values = read_labels(path).array > 0, read_image(image).array[0]
    return next(level for level in (80, 100) if (labels == (values > level)).all())


def images(folder):
    rng = np.random.default_rng(0)
    body = picture((8, 9, 10)) > 0
    return nifti(folder / "a.nii.gz", np.where(body, rng.integers(1, 200, body.shape), 0).astype(np.int16), np.eye(4))


def test_predict_applies_it_and_says_so(workspace, model, tmp_path, said):
    image = images(tmp_path / "in")
    (plain,) = predict_images(workspace, [image], tmp_path / "plain", CPU)
    assert above(plain, image) == 100
    decide_on(workspace, model)
    (decided,) = predict_images(workspace, [image], tmp_path / "decided", CPU)
    assert above(decided, image) == 80
    assert "by the decision of evaluate --choose: organ: logit +1 (--no-decision ignores it)" in said
    apply_decision(workspace, [model], optional=False)  # evaluate --test has no such option
    assert said[-1] == "by the decision of evaluate --choose: organ: logit +1"
    (ignored,) = predict_images(workspace, [image], tmp_path / "ignored", replace(CPU, decision=False))
    assert above(ignored, image) == 100


def test_resuming_with_another_rule_segments_again(workspace, model, tmp_path, said):
    image, out = images(tmp_path / "in"), tmp_path / "out"
    predict_images(workspace, [image], out, CPU)
    decide_on(workspace, model)
    (again,) = predict_images(workspace, [image], out, replace(CPU, resume=True))
    assert above(again, image) == 80
    assert any("another model made it" in line for line in said)


def test_other_weights_are_not_decided_for(workspace, model, tmp_path, said, monkeypatch):
    decide_on(workspace, model)
    other = replace(model, networks=(Learnt(2.0),))
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: other)
    image = images(tmp_path / "in")
    (path,) = predict_images(workspace, [image], tmp_path / "out", CPU)
    assert above(path, image) == 100
    note = "note: the decision was made without fold 0 of 3d_fullres-unet as it is now: it is not applied; to choose"
    assert any(line.startswith(note) for line in said)


def test_a_decision_for_two_models_is_not_applied_to_one(workspace, model, tmp_path, said):
    decide_on(workspace, model, predicts=(model.name, "2d-unet"), weights={model.name: {}, "2d-unet": {}})
    image = images(tmp_path / "in")
    (path,) = predict_images(workspace, [image], tmp_path / "out", CPU)
    assert above(path, image) == 100
    assert any("is for 3d_fullres-unet and 2d-unet: it is not applied" in line for line in said)


def test_a_damaged_decision_is_refused_with_two_ways_out(workspace, model, tmp_path):
    path = workspace.decision("3d_fullres", "unet")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(StateError) as caught:
        predict_images(workspace, [images(tmp_path / "in")], tmp_path / "out", CPU)
    assert "decision.json" in caught.value.what
    assert "--no-decision" in caught.value.remedy


def test_export_carries_it_and_info_shows_it(tmp_path):
    workspace = workspace_of(tmp_path / "ws")
    scored(workspace)
    weights = {"3d_fullres-unet": {"0": "a" * 64, "1": "b" * 64}}
    decision = Decision(1, ("3d_fullres-unet",), weights, Rule({"label1": 0.5}), "3d_fullres-unet")
    save(workspace.decision("3d_fullres", "unet"), decision)
    export_model(workspace, tmp_path / "model.zip", ExportOptions())
    assert measured_with(Decision, tmp_path / "model.zip", "3d_fullres-unet", "decision.json") == decision
    for path in (workspace.root, tmp_path / "model.zip"):
        assert "decision (0 of 0 choices accepted): label1: logit +0.5" in info(path).describe()


def test_two_models_that_decide_together_are_exported_together(tmp_path):
    workspace = workspace_of(tmp_path / "ws", configurations=("3d_fullres", "2d"))
    names = ("3d_fullres-unet", "2d-unet")
    save(workspace.decision("3d_fullres", "unet"), Decision(1, names, {name: {} for name in names}, Rule()))
    assert set(export_model(workspace, tmp_path / "both.zip").models) == set(names)
    options = ExportOptions(configurations=("3d_fullres",))
    assert set(export_model(workspace, tmp_path / "one.zip", options).models) == {"3d_fullres-unet"}
