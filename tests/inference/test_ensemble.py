"""An ensemble taken apart and put together: nothing changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.datasets.dataset import Case, load_case
from autoseg.inference.ensemble import probabilities, split
from autoseg.inference.member import EnsembleMember
from autoseg.inference.options import InferenceOptions
from bright import Lopsided, model_of, picture, plan_of
from files import nifti


@pytest.fixture
def models():
    first = model_of((1.0, 1.0, 1.0))
    return [
        replace(first, folds=(0, 2), networks=(Lopsided(0.1), Lopsided(-0.2))),
        replace(first, folds=(1,), networks=(Lopsided(0.3),)),
    ]


def test_members_know_what_they_are_parts_of(models):
    folds = split(models, by="folds")
    assert (folds.model_of, folds.fold_of) == ((0, 0, 1), (0, 1, 2))
    assert folds.weights == (0.25, 0.25, 0.5)
    assert [model.folds for model in folds.models] == [(0,), (2,), (1,)]
    flips = split(models, by="flips")
    assert flips.fold_of == (0,) * 8 + (1,) * 8 + (2,) * 8
    assert flips.model_of == (0,) * 16 + (1,) * 8
    assert sum(flips.weights) == pytest.approx(1)
    assert flips.options.mirroring is False
    whole = split(models, by="models")
    assert (whole.models, whole.model_of, whole.weights) == (tuple(models), (0, 1), (0.5, 0.5))


def test_without_mirroring_a_fold_has_one_flip(models):
    assert split(models, InferenceOptions(mirroring=False), by="flips").fold_of == (0, 1, 2)
    axes = InferenceOptions(mirror_axes=(1,))
    assert split(models[1:], axes, by="flips").fold_of == (0, 0)
    plain = [replace(models[1], plan=plan_of(test_time_mirroring=False))]
    assert split(plain, by="flips").fold_of == (0,)


@pytest.mark.parametrize("by", ["models", "folds", "flips"])
def test_the_parts_average_to_the_whole(models, by, tmp_path):
    image = nifti(tmp_path / "image.nii", picture((9, 11, 13)), np.diag([-1.0, -1.0, 1.0, 1.0]))
    loaded = load_case(Case("a", "a", (str(image),), None), None)
    apart = [EnsembleMember(model) for model in models]  # each averages its folds and flips itself
    whole = sum(member.logits(member.prepare(loaded).image).softmax(dim=0) for member in apart) / 2
    ensemble = split(models, by=by)
    members = [EnsembleMember(model, ensemble.options) for model in ensemble.models]
    logits = [member.logits(member.prepare(loaded).image) for member in members]
    found = probabilities(logits, ensemble.model_of, has_regions=False)
    assert found.shape == whole.shape  # the spacing is that of the network
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_regions_are_sigmoids():
    logits = [torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-2.0]])]
    torch.testing.assert_close(probabilities(logits, (0, 0), True), torch.tensor([[0.5], [0.0]]).sigmoid())
    torch.testing.assert_close(probabilities(logits, (0, 1), True), (logits[0].sigmoid() + logits[1].sigmoid()) / 2)
