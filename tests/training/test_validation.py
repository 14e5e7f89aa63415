"""What an epoch is watched by: which samples, what is counted in them, how logits become labels."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.dataloading.store import CaseStore
from autoseg.imaging.labels import LabelSet
from autoseg.models.build import head_probabilities
from autoseg.planning.plan import ChannelNormalization, Configuration, Plan
from autoseg.training.validation import choose_batches, decide, evenly_spaced, samples_to_validate, tile_count, validate
from plans import plan_of
from stored_cases import faultless_previous_stage, is_cut_from_its_case, one_hot, store_of_coordinates
from synthetic_fingerprints import label_set

CPU = torch.device("cpu")
CASES = tuple(f"case{i}" for i in range(4))
PATCH = (6, 10, 8)


# ---- what is counted


class Show(nn.Module):
    """Logits that make of an image its rounded values: head k is highest where the image is k."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.cat([-((image - k) ** 2) for k in range(self.heads)], dim=1)]


def batch(segmentation: list[int], reference: list[int]) -> dict:
    """One patch of one row: what `Show` will say, and what is true."""
    return {
        "image": torch.tensor(segmentation, dtype=torch.float32)[None, None, None, None],
        "target": torch.tensor(reference, dtype=torch.uint8)[None, None, None],
    }


def losses(*values: float):
    remaining = iter(values)
    return lambda logits, target: torch.tensor(next(remaining))


def test_pseudo_dice_counts_voxels_of_all_patches_together():
    """Label 1: 1 of 2 + 3, and 2 of 2 + 2, together 2 * 3 / 9; label 2 is invented once; label 3 is nowhere."""
    plan = plan_of(labels=label_set(4))
    batches = [batch([1, 1, 1, 0, 2], [0, 0, 1, 1, 0]), batch([1, 1, 0, 0, 0], [1, 1, 0, 0, 0])]
    loss, dice = validate(Show(4), losses(0.5, 1.0), batches, plan, CPU, "float32")
    assert loss == pytest.approx(0.75)
    assert dice == [pytest.approx(2 * 3 / 9), 0, None]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_batches_are_looked_at_in_parts(parts):
    """The means are those of whole batches, whatever fits the memory; a batch has as many parts as samples at most."""
    plan, seen = plan_of(labels=label_set(2)), []

    def mean(logits: list[Tensor], target: Tensor) -> Tensor:
        seen.append(len(target))
        return logits[0][:, 1].mean()  # -1 where the image is 0

    pieces = [batch([1, 1, 0], [1, 0, 0]), batch([0, 1, 1], [1, 1, 0]), batch([1, 0, 0], [1, 1, 1])]
    whole = {key: torch.cat([piece[key] for piece in pieces]) for key in ("image", "target")}
    loss, dice = validate(Show(2), mean, [whole, pieces[0]], plan, CPU, "float32", parts=parts)
    assert seen == {1: [3, 1], 2: [2, 1, 1], 4: [1, 1, 1, 1]}[parts]
    assert loss == pytest.approx(-(1 + 1 + 2 + 1) / 3 / 4)
    assert dice == [pytest.approx(2 * 4 / (2 + 1 + 2 + 2 + 1 + 3 + 2 + 1))]


def test_pseudo_dice_knows_what_nobody_annotated():
    """Of three claimed voxels one is right and one is ignored."""
    plan = plan_of(labels=LabelSet({"organ": 1}, ignore=255))
    _, dice = validate(Show(2), losses(0.0), [batch([1, 1, 1, 0], [1, 0, 2, 0])], plan, CPU, "float32")
    assert dice == [pytest.approx(2 * 1 / (1 + 2))]


def test_pseudo_dice_of_regions():
    """Two sigmoid heads: whole is everything from 1 up, core is 2 alone and written over it."""

    class Regions(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [torch.cat([image - 0.5, image - 1.5], dim=1)]

    plan = plan_of(labels=LabelSet({"oedema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2)))
    _, dice = validate(Regions(), losses(0.0), [batch([1, 2, 2, 0], [1, 1, 2, 1])], plan, CPU, "float32")
    assert dice == [pytest.approx(2 * 3 / (3 + 4)), pytest.approx(2 * 1 / (2 + 1))]


@pytest.mark.parametrize("regions", [{}, {"whole": (1, 2), "core": (2,)}, {"core": (2,), "whole": (1, 2)}])
def test_logits_are_decided_upon_as_probabilities_are(regions):
    labels = LabelSet({"oedema": 1, "core": 2}, regions, (1, 2) if regions else ())
    logits = torch.randn(2, labels.num_heads, 5, 6, generator=torch.Generator().manual_seed(1))
    probabilities = head_probabilities(logits, labels.has_regions).movedim(1, 0).numpy()
    np.testing.assert_array_equal(decide(logits, labels), labels.decide(probabilities))


# ---- what is watched


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CaseStore:
    return store_of_coordinates(tmp_path_factory.mktemp("store"), CASES)


def plan_of_patches(patch_size: tuple[int, ...] = PATCH) -> tuple[Plan, Configuration]:
    plan = plan_of(label_set(3), ("MR", "T1", "T2"))
    configuration = replace(plan.configurations["3d_fullres"], patch_size=patch_size, batch_size=3)
    return replace(plan, normalization=(ChannelNormalization("none"),) * 3), configuration


def test_small_volumes_are_seen_whole(store):
    """Tiles side by side, each voxel of each case at least once, none of them changed."""
    plan, configuration = plan_of_patches((13, 20, 16))
    shapes = [store.info(case).shape for case in CASES]
    assert shapes == [(12, 20, 24), (13, 20, 23), (14, 20, 22), (15, 20, 21)]
    cases = CASES[:2]
    assert [tile_count(shape, configuration.patch_size) for shape in shapes[:2]] == [2, 2]
    batches = list(choose_batches(store, cases, plan, configuration, samples=4))
    assert [len(b["target"]) for b in batches] == [3, 1]
    images = torch.cat([b["image"] for b in batches])
    targets = torch.cat([b["target"] for b in batches])
    assert is_cut_from_its_case(images[2], targets[2])
    for shape, part in zip(shapes, images.split(2), strict=False):
        seen = {tuple(voxel) for tile in part for voxel in tile.flatten(1).T.int().tolist()}
        assert seen == set(itertools.product(*map(range, shape)))


def test_no_more_volumes_are_seen_than_asked_for(store):
    plan, configuration = plan_of_patches((16, 20, 24))  # one tile each
    batches = choose_batches(store, CASES, plan, configuration, samples=2)
    slices = [int((image[0].amax(dim=(1, 2)) > 0).sum()) + 1 for b in batches for image in b["image"]]
    assert slices == [12, 14]  # the first and the third case


def test_a_volume_smaller_than_a_tile_stands_in_its_middle(store):
    plan, configuration = plan_of_patches((16, 20, 24))
    (batch,) = choose_batches(store, CASES[:1], plan, configuration, samples=8)
    image, target = batch["image"][0], batch["target"][0]
    assert image.shape == (3, 16, 20, 24)
    assert (image[0, 2:14, 0, 0] == torch.arange(12)).all()
    assert not image[:, :2].any()
    assert not image[:, 14:].any()
    assert target.min() == 0  # where no image is there is background


def test_large_volumes_are_seen_in_fixed_patches(store):
    """The same ones in every pass and in trainings of any seed, of every case, cut as they are; a third is aimed at
    foreground."""
    plan, configuration = plan_of_patches()
    assert [tile_count(store.info(case).shape, PATCH) for case in CASES] == [12, 18, 18, 18]
    other = replace(plan, training=replace(plan.training, seed=plan.training.seed + 1))
    samples = choose_batches(store, CASES, plan, configuration, samples=10)
    batches = list(samples)
    assert [len(b["target"]) for b in batches] == [3, 3, 3, 3]
    for again in (list(samples), list(choose_batches(store, CASES, other, configuration, samples=10))):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batches, again, strict=True))
        assert all(torch.equal(a["target"], b["target"]) for a, b in zip(batches, again, strict=True))
    pairs = [pair for b in batches for pair in zip(b["image"], b["target"], strict=True)]
    assert all(is_cut_from_its_case(*pair) for pair in pairs)
    assert sum(bool((target > 0).any()) for _, target in pairs) >= 3
    assert {case for case, _ in samples.places} == set(CASES)


def test_the_share_of_foreground_is_that_of_the_training(store):
    plan, configuration = plan_of_patches()

    def with_foreground(share: float) -> list[bool]:
        training = replace(plan.training, foreground_fraction=share)
        batches = choose_batches(store, CASES, replace(plan, training=training), configuration, samples=12)
        return [bool((target > 0).any()) for b in batches for target in b["target"]]

    assert all(with_foreground(1.0))
    assert not all(with_foreground(0.0))


@pytest.mark.parametrize("patch_size", [PATCH, (16, 20, 24)])
def test_a_cascade_is_shown_the_previous_stage_undamaged(store, tmp_path, patch_size):
    """One channel per label; the segmentation here is the target itself."""
    faultless_previous_stage(tmp_path, store, CASES)
    plan, configuration = plan_of_patches(patch_size)
    labels = plan.labels.num_labels
    for b in choose_batches(store, CASES, plan, configuration, samples=6, previous=tmp_path):
        assert b["image"].shape[1] == 3 + labels
        assert torch.equal(b["image"][:, 3:], one_hot(b["target"], labels))


def test_slices_are_watched_in_two_dimensions(store):
    """Small slices are tiled one by one, large ones seen in patches."""
    for patch_size, samples in (((20, 24), 12), ((10, 8), 7)):
        plan, configuration = plan_of_patches(patch_size)
        watched = choose_batches(store, CASES[:1], plan, configuration, samples=samples)
        images = torch.cat([b["image"] for b in watched])
        assert images.shape[1:] == (3, *patch_size)
        assert len({float(image[0].max()) for image in images}) > 3  # slices
        for image, (_, lower) in zip(images, watched.places, strict=True):
            assert (image[0] == lower[0]).all()
            assert image[1, 0, 0] == lower[1]
            assert image[2, 0, 0] == lower[2]


def test_cases_are_taken_evenly():
    assert evenly_spaced(list("abcdefghij"), 3) == ["a", "d", "g"]
    assert evenly_spaced(["a", "b"], 5) == ["a", "b"]


def test_a_tenth_of_an_epoch_is_watched_and_never_too_little():
    assert samples_to_validate(2, 250) == 50
    assert samples_to_validate(2, 50) == 16
