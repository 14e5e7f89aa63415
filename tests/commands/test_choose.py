"""`evaluate --choose` from images to a decision, with networks that need no training and are wrong in a known way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.commands import choose as choose_module
from autoseg.commands.choose import choose_decision
from autoseg.commands.evaluate import ScoringOptions
from autoseg.datasets.dataset import Case, Dataset
from autoseg.errors import UsageError
from autoseg.evaluation.crossval import cross_validate_folds, validation_jobs
from autoseg.inference.predict import predict_cases
from autoseg.models.decision import Decision
from autoseg.records import load
from autoseg.workspace import Workspace
from bright import THRESHOLD, model_of, plan_of
from files import nifti

pytestmark = pytest.mark.thorough
ONE = (1.0, 1.0, 1.0)
CASES, FOLDS = 20, 4


class Shy(torch.nn.Module):
    """Says organ only where it is very bright: its logit is too low by a known amount."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def forward(self, image):
        above = (image[:, -1:] - THRESHOLD) / 20 - self.shift
        return [torch.cat([torch.zeros_like(above), above], dim=1)]


def dataset(root: Path, islands: bool) -> Dataset:
    """An organ of about 130 in a body of about 60, with noise; islands as bright as the organ, which are not it."""
    cases = []
    for n in range(CASES):
        rng = np.random.default_rng(n)
        label = np.zeros((12, 14, 14), np.uint8)
        z, y, x = rng.integers(1, 4, 3)
        label[z : z + 6, y : y + 6, x : x + 6] = 7
        image = np.where(label > 0, 130, 60) + rng.normal(0, 15, label.shape)
        if islands:
            image[9:11, 11:13, n % 5 + 5 : n % 5 + 8] = 180
        files = (nifti(root / f"c{n}.nii", image.astype(np.int16), np.eye(4)),
                 nifti(root / f"c{n}_label.nii", label, np.eye(4)))  # fmt: skip
        cases.append(Case(f"c{n}", f"p{n}", (str(files[0]),), str(files[1])))
    return Dataset(1, "test", str(root), "plain", ("MR",), plan_of().labels, tuple(cases), (), True, None, ())


@pytest.fixture
def made(tmp_path, monkeypatch, request):
    """A workspace whose folds are all the same network, with held-out segmentations and their scores."""
    shift, islands = request.param
    data, workspace = dataset(tmp_path / "data", islands), Workspace(tmp_path / "ws")
    model = model_of(ONE, network=Shy(shift), patch=(12, 14, 14))
    jobs = {}
    for fold in range(FOLDS):
        held_out = data.cases[fold::FOLDS]
        folder = workspace.fold("3d_fullres", "unet", fold) / "validation"
        predict_cases([model], held_out, folder)
        jobs[fold] = validation_jobs(folder, held_out, model.plan.labels)
    patients = {case.id: case.patient for case in data.cases}
    result = cross_validate_folds("3d_fullres", "unet", jobs, FOLDS, patients=patients, workers=0)
    runs = []

    def opened(workspace, name, network, *, folds, device):
        return replace(model, folds=tuple(folds))

    monkeypatch.setattr("autoseg.commands.choose.cross_validate", lambda *a, **k: result)
    monkeypatch.setattr("autoseg.commands.choose.load_records", lambda *a: (data, model.plan, None))
    monkeypatch.setattr("autoseg.models.model.open_model", opened)
    monkeypatch.setattr(Workspace, "models", lambda self: (("3d_fullres", "unet"),))
    model.networks[0].register_forward_hook(lambda *a: runs.append(1))
    return workspace, model, runs


def choose(workspace, **more) -> Decision:
    return choose_decision(workspace, None, ScoringOptions(workers=0, report=False), device="cpu", **more)


@pytest.mark.parametrize("made", [(1.5, True)], indirect=True)
def test_a_shy_network_with_islands_gets_an_offset_and_loses_its_islands(made):
    workspace, _, _ = made
    decision = choose(workspace)
    assert decision == load(Decision, workspace.decision("3d_fullres", "unet"))
    assert decision.rule.offsets["organ"] > 0.5
    islands = decision.rule.components["organ"]
    assert islands.keep_largest or islands.min_volume > 0
    assert decision.dice_after > decision.dice_before + 0.05
    by_kind = {(choice.what, choice.accepted) for choice in decision.choices}
    assert by_kind == {("model", False), ("threshold", True), ("components", True), ("components", False)} or (
        by_kind == {("model", False), ("threshold", True), ("components", True)}
    )


@pytest.mark.parametrize("made", [(1.5, True)], indirect=True)
def test_scores_are_made_as_asked_and_the_report_follows_the_decision(made, monkeypatch):
    workspace, _, _ = made
    scored, decided = [], []
    result = choose_module.cross_validate()
    monkeypatch.setattr(choose_module, "cross_validate", lambda w, c, options: scored.append(options) or result)
    path = workspace.decision("3d_fullres", "unet")
    monkeypatch.setattr(choose_module, "report_or_warn", lambda *model: decided.append((model[1:], path.exists())))
    asked = ScoringOptions(tolerance=2.0, good=0.9, workers=0)
    choose_decision(workspace, None, asked, choose=["components"], device="cpu")
    assert scored == [replace(asked, report=False)]
    assert decided == [(("3d_fullres", "unet"), True)]
    choose_decision(workspace, None, replace(asked, report=False), choose=["components"], device="cpu")
    assert len(decided) == 1


@pytest.mark.parametrize("made", [(0.25, False)], indirect=True)
def test_of_a_sound_network_nothing_is_changed_but_by_little(made):
    """The threshold of 105 is where both sides of the noise are equally likely at the organ's edge."""
    workspace, _, _ = made
    decision = choose(workspace, choose=["components"])
    assert decision.rule.components == {} or decision.dice_after >= decision.dice_before
    assert decision.rule.offsets == {}


@pytest.mark.parametrize("made", [(1.5, False)], indirect=True)
def test_choosing_again_needs_no_network(made):
    workspace, _, runs = made
    first = choose(workspace, choose=["model"])
    count = len(runs)
    assert count > 0
    assert choose(workspace, choose=["model"]) == first
    assert len(runs) == count


@pytest.mark.parametrize("made", [(1.5, False)], indirect=True)
def test_components_alone_need_no_network(made):
    workspace, _, runs = made
    runs.clear()
    choose(workspace, choose=["components"])
    assert runs == []


@pytest.mark.parametrize("made", [(1.5, False)], indirect=True)
def test_a_recall_that_is_asked_for(made):
    workspace, _, _ = made
    decision = choose(workspace, choose=["model"], recall={"organ": 0.95})
    (choice,) = [choice for choice in decision.choices if choice.what == "recall"]
    assert choice.accepted
    assert abs(choice.after - 0.95) < 0.03
    assert decision.rule.offsets["organ"] > 0
    with pytest.raises(UsageError, match="--recall tumour: there is no such label"):
        choose(workspace, recall={"tumour": 0.9})
    with pytest.raises(UsageError, match="is not a share"):
        choose(workspace, recall={"organ": 1.5})


class Speckled(torch.nn.Module):
    """Right where it is sure; its doubt flips voxels at random, which their neighbours and their looks contradict."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = torch.nn.Parameter(torch.tensor(noise))

    def forward(self, image):
        generator = torch.Generator().manual_seed(int(image.sum()) % 1000)
        above = (image[:, -1:] - THRESHOLD + 5) / 20
        above = above.clamp(-1, 1) + self.noise * torch.randn(above.shape, generator=generator)
        return [torch.cat([torch.zeros_like(above), above], dim=1)]


@pytest.mark.parametrize("made", [(0.25, False)], indirect=True)
def test_a_crf_is_accepted_where_neighbours_know_better_and_predict_applies_it(made, tmp_path, monkeypatch):
    workspace, model, _ = made
    speckled = replace(model, networks=(Speckled(1.0),))

    def opened(workspace, name, network, *, folds, device):
        return replace(speckled, folds=tuple(folds))

    monkeypatch.setattr("autoseg.models.model.open_model", opened)
    decision = choose(workspace, choose=["crf"])
    (choice,) = decision.choices
    assert (choice.what, choice.accepted) == ("crf", True)
    assert choice.change > 0.02
    assert str(decision.rule.crf) == choice.candidate
    assert decision == load(Decision, workspace.decision("3d_fullres", "unet"))


@pytest.mark.parametrize("made", [(0.25, False)], indirect=True)
def test_a_crf_is_refused_where_nothing_is_gained(made, monkeypatch):
    """Of a grid whose only candidate wipes out every boundary."""
    workspace, _, _ = made
    monkeypatch.setattr("autoseg.evaluation.crf_runs.GRID", ((2, 100, 0, 1.0),))
    decision = choose(workspace, choose=["crf"])
    assert [(choice.what, choice.accepted) for choice in decision.choices] == [("crf", False)]
    assert decision.rule.crf is None
    assert decision.rule.is_plain


def test_a_crf_of_overlapping_regions_is_not_tried():
    from autoseg.evaluation.choose import HeldOutCases
    from autoseg.evaluation.crf_runs import choose_crf

    plan = plan_of(labels=plan_of().labels.as_regions())
    held = HeldOutCases((), np.array([]), ())
    crf, choice = choose_crf({0: [model_of(ONE, plan=plan)]}, {0: []}, held, {})
    assert crf is None
    assert not choice.accepted
    assert "regions may overlap" in choice.reason
