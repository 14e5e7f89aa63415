"""How a plan is unpacked for the stream of patches: what it says reaches the chains and the samples."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.store import CaseStore
from autoseg.imaging.components import component_weights
from autoseg.imaging.labels import LabelSet
from autoseg.models.build import patch_stream
from autoseg.planning.plan import ChannelNormalization, Configuration, Plan
from autoseg.planning.planner import make_plan
from stored import digest, faultless_previous_stage, is_cut_from_its_case, store_of_coordinates
from synthetic_fingerprints import label_set, uniform
from synthetic_memory import ElementMemory

CPU = torch.device("cpu")
CASES = tuple(f"case{i}" for i in range(4))
PATCH = (6, 10, 8)
CHAINS = ("host", "worker", "device")
LABELS = label_set(3)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CaseStore:
    return store_of_coordinates(tmp_path_factory.mktemp("store"), CASES)


def plan_of(labels: LabelSet = LABELS, batch_size: int = 4, **training) -> tuple[Plan, Configuration]:
    channels = ("MR", "T1", "T2")
    found = uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, labels, channels=channels)
    plan = make_plan(dataset="test", channels=channels, labels=labels, fingerprint=found, memory=ElementMemory())
    configuration = replace(plan.configurations["3d_fullres"], patch_size=PATCH, batch_size=batch_size)
    plan = replace(plan, training=replace(plan.training, **training))
    return replace(plan, normalization=(ChannelNormalization("none"),) * 3), configuration


def finished(store, plan, configuration, **settings) -> list[dict]:
    stream = patch_stream(store, CASES, plan, configuration, **({"steps": 6} | settings))
    return [stream.finish(batch, CPU) for batch in stream]


@pytest.mark.parametrize("chain", CHAINS)
def test_patches_are_augmented_as_the_recipe_says(store, chain):
    """With "none" every patch is a piece of its case, unchanged; with "default" most are not."""

    def share_unchanged(augmentation: str) -> float:
        made = plan_of(batch_size=3, augmentation=augmentation)
        batches = finished(store, *made, chain=chain, steps=8)
        assert [b["image"].shape for b in batches] == [(3, 3, *PATCH)] * 8
        pairs = [pair for b in batches for pair in zip(b["image"], b["target"], strict=True)]
        return sum(is_cut_from_its_case(*pair) for pair in pairs) / len(pairs)

    assert share_unchanged("none") == 1
    assert share_unchanged("default") < 0.5


def test_without_a_number_of_steps_the_stream_has_no_end(store):
    stream = patch_stream(store, CASES, *plan_of())
    assert len(list(itertools.islice(stream, 50))) == 50


def test_the_stream_obeys_the_plan(store):
    """Seed, share of foreground, mirror axes, masked channels: each changes what comes, as its name says."""
    plan, configuration = plan_of(batch_size=3, augmentation="none", foreground_fraction=1.0)

    def batches(plan: Plan, start: int = 0) -> list[dict]:
        return list(patch_stream(store, CASES, plan, configuration, steps=6, start_step=start))

    def changed(**training) -> list[dict]:
        return batches(replace(plan, training=replace(plan.training, **training)))

    reference = batches(plan)
    assert all((target > 0).any() for b in reference for target in b["target"])
    assert not torch.equal(changed(seed=1)[0]["image"], reference[0]["image"])
    assert any(not (target > 0).any() for b in changed(foreground_fraction=0.0) for target in b["target"])
    later = batches(plan, start=2)
    assert len(later) == 6
    assert torch.equal(later[0]["image"], reference[2]["image"])
    for axes in ((), (0,), (1, 2)):
        flipped = {
            axis
            for b in changed(augmentation="mirror", mirror_axes=axes)
            for image in b["image"]
            for axis in range(3)
            if image[axis].movedim(axis, 0)[0].mean() > image[axis].movedim(axis, 0)[-1].mean()
        }
        assert flipped == set(axes)


@pytest.mark.parametrize("chain", ["worker", "device"])
def test_the_device_chain_is_made_of_the_plan(store, chain):
    labels = LabelSet({"organ": 1, "lesion": 2}, ignore=255)
    plan, configuration = plan_of(labels, augmentation="nnunet", mirror_axes=(1, 2))
    plan = replace(plan, normalization=(ChannelNormalization("none"), *[ChannelNormalization("zscore", True)] * 2))
    made = patch_stream(store, CASES, plan, configuration, chain=chain).batches.chain
    assert made.augmentation == AUGMENTATIONS["nnunet"]
    assert (made.channels, made.patch_size, made.border) == (3, PATCH, 0.0)
    assert (made.mirror_axes, made.masked_channels, made.ignore_index) == ((1, 2), (1, 2), 3)
    assert made.colour == 0
    flat = replace(configuration, patch_size=(10, 8))
    assert patch_stream(store, CASES, plan, flat, chain=chain).batches.chain.mirror_axes == (0, 1)
    rgb = replace(plan, normalization=(ChannelNormalization("rgb_to_0_1"),) * 3)
    coloured = replace(rgb, training=replace(rgb.training, augmentation="default"))
    assert patch_stream(store, CASES, coloured, flat, chain=chain).batches.chain.colour == 0.3


def test_the_device_chain_of_a_cascade_sees_the_images_alone(store, tmp_path):
    faultless_previous_stage(tmp_path, store, CASES)
    plan, configuration = plan_of()
    cascade = replace(configuration, cascade_from="3d_lowres")
    for chain in ("worker", "device"):
        stream = patch_stream(store, CASES, plan, cascade, previous=tmp_path, chain=chain)
        assert stream.batches.chain.channels == 3
        assert stream.finish(next(stream), CPU)["image"].shape == (4, 3 + 2, *PATCH)


def test_seed_rank_and_start(store):
    plan, configuration = plan_of(seed=7)
    for chain in CHAINS:
        reference = finished(store, plan, configuration, chain=chain)
        assert digest(finished(store, plan, configuration, chain=chain)) == digest(reference)
        assert digest(finished(store, *plan_of(seed=8), chain=chain)) != digest(reference)
        assert digest(finished(store, plan, configuration, chain=chain, start_step=2, steps=4)) == digest(reference[2:])
        second = finished(store, plan, configuration, chain=chain, rank=1, ranks=2)
        for part, whole in zip(second, reference, strict=True):
            assert part["cases"] == whole["cases"][2:]
            assert torch.equal(part["image"], whole["image"][2:])


@pytest.mark.parametrize("chain", ["host", "worker"])
def test_weights_of_components(store, chain):
    labels = LabelSet({"organ": 1, "lesion": 2}, ignore=255)
    for made, ignore_index in ((plan_of(component_weight=0.5), None), (plan_of(labels, component_weight=0.5), 3)):
        stream = patch_stream(store, CASES, *made, chain=chain)
        assert stream.batches.weigh.keywords == {"power": 0.5, "ignore_index": ignore_index}
        for batch in finished(store, *made, chain=chain, workers=1):
            expected = [component_weights(target, 0.5, ignore_index) for target in batch["target"].numpy()]
            np.testing.assert_array_equal(batch["weights"], np.stack(expected))
    assert all("weights" not in batch for batch in finished(store, *plan_of(component_weight=0.0), chain=chain))


def test_what_happens_to_workers_is_told(store):
    plan, configuration = plan_of()
    said = []
    stream = patch_stream(store, CASES, plan, configuration, workers=1, say=said.append)
    next(stream)
    process = stream.workers.workers[0].process
    process.kill()
    process.join()
    next(stream)
    stream.close()
    assert len(said) == 1
