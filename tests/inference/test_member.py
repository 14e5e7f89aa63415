"""One model of an ensemble: what its folds, mirrorings and tiles make of an image that is prepared."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.datasets.dataset import Case, LoadedCase, load_case
from autoseg.inference import member as module
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import predict_cases, segment
from autoseg.preprocessing.prepare import prepare
from bright import THRESHOLD, Bright, model_of, picture, plan_of
from files import nifti


def test_members_of_an_ensemble_have_equal_votes(tmp_path):
    """Thresholds of 60 and 120 together make one of 90: it is the logits that are averaged."""

    class Above(nn.Module):
        def __init__(self, threshold: float) -> None:
            super().__init__()
            self.threshold = threshold

        def forward(self, image: Tensor) -> list[Tensor]:
            return [torch.cat([torch.zeros_like(image), image - self.threshold], dim=1)]

    model = replace(model_of((1.0, 1.0, 1.0)), networks=(Above(60.0), Above(120.0)), folds=(0, 1))
    image = np.random.default_rng(0).integers(30, 150, (1, 9, 10, 11)).astype(np.float32)
    logits = EnsembleMember(model).logits(image)
    np.testing.assert_allclose(logits[1].numpy(), image[0] - 90, atol=1e-3)
    assert logits.shape == (2, 9, 10, 11)


def test_mirroring_is_that_of_the_plan_unless_told(tmp_path):
    """A network that prefers the first slice: flipping along z evens it out, other flips do not."""

    class First(nn.Module):
        images = 0

        def forward(self, image: Tensor) -> list[Tensor]:
            First.images += len(image)
            slope = torch.linspace(1, -1, image.shape[2])[None, None, :, None, None].expand_as(image)
            return [torch.cat([torch.zeros_like(image), slope], dim=1)]

    plan = plan_of()

    def run(axes: tuple[int, ...], planned: bool, told: bool | None) -> tuple[bool, int]:
        training = replace(plan.training, mirror_axes=axes, test_time_mirroring=planned)
        model = model_of((1.0,) * 3, plan=replace(plan, training=training), network=First(), patch=(9, 10, 11))
        First.images = 0
        image = np.random.default_rng(0).random((1, 9, 10, 11), np.float32)
        logits = EnsembleMember(model, InferenceOptions(mirroring=told)).logits(image)
        return bool(logits[1].abs().max() < 1e-5), First.images

    assert run((0, 1, 2), True, None) == (True, 8)
    assert run((0,), True, None) == (True, 2)
    assert run((1, 2), True, None) == (False, 4)
    assert run((0,), True, False) == (False, 1)
    assert run((0,), False, None) == (False, 1)
    assert run((0,), False, True) == (True, 2)


def test_tiles_are_as_near_as_told():
    """18 voxels in tiles of 8: steps of 4 need 4 (0, 3, 7, 10), steps of 8 need 3; small ones in twos, or as told."""
    batches = []

    class Counting(Bright):
        def forward(self, image: Tensor) -> list[Tensor]:
            batches.append(len(image))
            return super().forward(image)

    model = model_of((1.0,) * 3, network=Counting())
    image = np.random.default_rng(0).random((1, 18, 10, 12), np.float32)
    for options, expected in (
        (InferenceOptions(mirroring=False), [2] * 2),
        (InferenceOptions(mirroring=False, step=1.0), [2, 1]),
        (InferenceOptions(mirroring=False, tile_batch=3), [3, 1]),
    ):
        batches.clear()
        EnsembleMember(model, options).logits(image)
        assert batches == expected


def test_models_that_see_an_image_alike_share_its_preparation(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        module, "prepare", lambda *a: prepared.append(module.target_spacing(a[4], a[2])) or prepare(*a)
    )  # fmt: skip
    path = nifti(tmp_path / "image.nii", picture((8, 9, 10)), np.eye(4))
    models = [model_of(spacing) for spacing in ((1.0,) * 3, (2.0,) * 3, (1.0,) * 3, (1.0,) * 2)]
    for out in ("first", "second"):
        predict_cases(models, [Case("a", "a", (str(path),), None)], tmp_path / out)
    assert prepared == [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)] * 2


def loaded_of(path: Path, seed: int = 0) -> LoadedCase:
    nifti(path, picture((8, 9, 10), seed), np.eye(4))
    return load_case(Case("a", "a", (str(path),), None), None)


def test_another_image_is_prepared_for_itself(tmp_path):
    """Two images of one shape and spacing, each segmented by what is in it, whatever came before."""
    member = EnsembleMember(model_of((1.0,) * 3))
    first, second = (loaded_of(tmp_path / f"{seed}.nii", seed) for seed in (0, 1))
    prepared = member.prepare(first)
    assert member.prepare(first) is prepared
    for loaded in (second, first):
        np.testing.assert_array_equal(decide([member], loaded), loaded.image[0] > THRESHOLD)
    assert member.prepare(first) is not prepared


def test_a_member_by_itself_and_its_previous_stage_share_one_preparation(tmp_path):
    model = model_of((1.0,) * 3)
    member = EnsembleMember(replace(model, previous=model))
    assert member.previous is not None
    loaded = loaded_of(tmp_path / "a.nii")
    assert member.previous.prepare(loaded) is member.prepare(loaded)
    assert EnsembleMember(model).prepare(loaded) is not member.prepare(loaded)


@pytest.mark.parametrize("fails", [False, True])
def test_an_image_that_is_segmented_is_let_go(tmp_path, fails):
    """So that it does not stand in memory beside the next one; also where it could not be segmented."""

    class Failing(Bright):
        def forward(self, image: Tensor) -> list[Tensor]:
            if fails:
                raise MemoryError
            return super().forward(image)

    loaded = loaded_of(tmp_path / "a.nii")
    shared = Preparations()
    members = [EnsembleMember(model_of((1.0,) * dims, network=Failing()), preparations=shared) for dims in (2, 3)]
    held = weakref.ref(members[0].prepare(loaded).image)
    assert held() is not None
    with pytest.raises(MemoryError) if fails else nullcontext():
        segment(members, loaded)
    assert held() is None


# ---- tiles larger than the patch


class Noting(Bright):
    """Keeps the shapes it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen += [tuple(image.shape[2:])] * len(image)
        return super().forward(image)


def seen_by(image: np.ndarray, patch, tile: float | None = None, **changes) -> list[tuple[int, ...]]:
    """Shapes of the tiles, where a network divides its axes by 4 and is not mirrored."""
    network = Noting()
    model = model_of((1.0,) * len(patch), network=network, patch=patch)
    configuration = model.configuration
    strides = ((1,) * len(patch), (2,) * len(patch), (2,) * len(patch))
    spec = replace(configuration.network, strides=strides, name=changes.pop("network", "unet"))
    configuration = replace(configuration, network=spec, patch_size=patch, **changes)
    plan = replace(model.plan, configurations=model.plan.configurations | {model.configuration_name: configuration})
    logits = EnsembleMember(replace(model, plan=plan), InferenceOptions(mirroring=False, tile=tile)).logits(image)
    assert logits.shape[1:] == image.shape[1:]
    np.testing.assert_array_equal(logits.argmax(0).numpy(), image[-1] > THRESHOLD)
    return network.seen


def test_tiles_grow_where_that_is_less_to_compute():
    image = picture((20, 18, 30))[None] + np.random.default_rng(0).random((1, 20, 18, 30), np.float32)
    assert seen_by(image, (16, 16, 16)) == [(16, 16, 16)] * 2 * 2 * 3
    # one tile of 20 instead of two of 16; 20 voxels would exceed 18; two of 20 or of 24 instead of three of 16
    assert seen_by(image, (16, 16, 16), 1.5) == [(20, 16, 20)] * 1 * 2 * 2
    assert seen_by(image, (16, 16)) == [(16, 16)] * 20 * 2 * 3
    assert seen_by(image[..., :28], (16, 16), 2.0) == [(16, 28)] * 20 * 2


@pytest.mark.parametrize("network", ["deeplab", "segformer", "swin_unet", "transunet", "mask_transformer"])
def test_networks_that_know_their_patch_keep_it(network):
    image = picture((24, 16, 32))[None].astype(np.float32)
    assert set(seen_by(image, (16, 16, 16), 2.0)) == {(24, 16, 32)}
    assert set(seen_by(image, (16, 16, 16), 2.0, network=network)) == {(16, 16, 16)}


def test_tiles_do_not_outgrow_the_memory():
    """Two gigabytes are 537 million elements: 400 million of a patch are 500 million of a tile of 20 x 16 x 16."""
    image = picture((20, 16, 16))[None].astype(np.float32)
    assert set(seen_by(image, (16, 16, 16), 2.0, elements=400_000_000)) == {(20, 16, 16)}
    assert set(seen_by(image, (16, 16, 16), 2.0, elements=440_000_000)) == {(16, 16, 16)}


def test_mirroring_along_some_axes_only():
    """A network sees each flip once: 2 of one axis, 4 of two; axes that the plan does not mirror are left out."""
    for axes, calls in (((0, 1, 2), 4), ((2,), 2), ((0, 2), 2), ((0,), 1), ((), 1), (None, 4)):
        network = Noting()
        plan = plan_of()
        plan = replace(plan, training=replace(plan.training, mirror_axes=(1, 2)))
        model = model_of((1.0, 1.0, 1.0), plan=plan, network=network, patch=(16, 16, 16))
        EnsembleMember(model, InferenceOptions(mirror_axes=axes)).logits(np.zeros((1, 16, 16, 16), np.float32))
        assert len(network.seen) == calls, axes
