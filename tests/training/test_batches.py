"""How a plan is unpacked for the batches of a training: what it says reaches the sampler, the chains and the memory."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import plans
from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.sampling import SAMPLERS
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from autoseg.errors import UsageError
from autoseg.imaging.components import component_weights
from autoseg.imaging.labels import LabelSet
from autoseg.planning.plan import ChannelNormalization, Configuration, Plan
from autoseg.training import batches as batches_of
from autoseg.training.batches import TrainingBatches, build_sampler
from stored_cases import digest, faultless_previous_stage, is_cut_from_its_case, store_of_coordinates
from synthetic_fingerprints import label_set

CPU = torch.device("cpu")
CASES = tuple(f"case{i}" for i in range(4))
PATCH = (6, 10, 8)
CHAINS = ("host", "worker", "device")
LABELS = label_set(3)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CaseStore:
    return store_of_coordinates(tmp_path_factory.mktemp("store"), CASES)


def plan_of(labels: LabelSet = LABELS, batch_size: int = 4, **training) -> tuple[Plan, Configuration]:
    plan = plans.plan_of(labels, ("MR", "T1", "T2"), **training)
    configuration = replace(plan.configurations["3d_fullres"], patch_size=PATCH, batch_size=batch_size)
    return replace(plan, normalization=(ChannelNormalization("none"),) * 3), configuration


def stream(store, plan, configuration, chain="host", previous=None, rank=0, ranks=1, **delivery) -> BatchStream:
    batches = TrainingBatches(store, CASES, plan, configuration, previous, rank, ranks)
    return batches.stream(chain, **({"stop_step": 6} | delivery))


def finished(store, plan, configuration, chain="host", **settings) -> list[dict]:
    batches = stream(store, plan, configuration, chain, **settings)
    return [batches.finish(batch, CPU) for batch in batches]


@pytest.mark.parametrize("chain", CHAINS)
def test_patches_are_augmented_as_the_recipe_says(store, chain):
    """With "none" every patch is a piece of its case, unchanged; with "default" most are not."""

    def share_unchanged(augmentation: str) -> float:
        made = plan_of(batch_size=3, augmentation=augmentation)
        batches = finished(store, *made, chain=chain, stop_step=8)
        assert [b["image"].shape for b in batches] == [(3, 3, *PATCH)] * 8
        pairs = [pair for b in batches for pair in zip(b["image"], b["target"], strict=True)]
        return sum(is_cut_from_its_case(*pair) for pair in pairs) / len(pairs)

    assert share_unchanged("none") == 1
    assert share_unchanged("default") < 0.5


def test_without_a_number_of_steps_the_stream_has_no_end(store):
    endless = stream(store, *plan_of(), stop_step=None)
    assert len(list(itertools.islice(endless, 50))) == 50


def test_the_stream_obeys_the_plan(store):
    """Seed, share of foreground, mirror axes, masked channels: each changes what comes, as its name says."""
    plan, configuration = plan_of(batch_size=3, augmentation="none", foreground_fraction=1.0)

    def batches(plan: Plan, start: int = 0) -> list[dict]:
        return list(stream(store, plan, configuration, start_step=start, stop_step=start + 6))

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
    made = stream(store, plan, configuration, chain).batches.chain
    assert made.augmentation == AUGMENTATIONS["nnunet"]
    assert (made.channels, made.patch_size, made.border) == (3, PATCH, 0.0)
    assert (made.mirror_axes, made.masked_channels, made.ignore_index) == ((1, 2), (1, 2), 3)
    assert not made.patches.rgb
    flat = replace(configuration, patch_size=(10, 8))
    assert stream(store, plan, flat, chain).batches.chain.mirror_axes == (0, 1)
    rgb = replace(plan, normalization=(ChannelNormalization("rgb_to_0_1"),) * 3)
    coloured = replace(rgb, training=replace(rgb.training, augmentation="default"))
    made = stream(store, coloured, flat, chain).batches.chain
    assert made.patches.rgb
    assert made.augmentation.colour == 0.3


def test_the_device_chain_of_a_cascade_sees_the_images_alone(store, tmp_path):
    faultless_previous_stage(tmp_path, store, CASES)
    plan, configuration = plan_of()
    cascade = replace(configuration, cascade_from="3d_lowres")
    for chain in ("worker", "device"):
        opened = stream(store, plan, cascade, chain, previous=tmp_path)
        assert opened.batches.chain.channels == 3
        assert opened.finish(next(opened), CPU)["image"].shape == (4, 3 + 2, *PATCH)


def test_seed_rank_and_start(store):
    plan, configuration = plan_of(seed=7)
    for chain in CHAINS:
        reference = finished(store, plan, configuration, chain=chain)
        assert digest(finished(store, plan, configuration, chain=chain)) == digest(reference)
        assert digest(finished(store, *plan_of(seed=8), chain=chain)) != digest(reference)
        assert digest(finished(store, plan, configuration, chain=chain, start_step=2)) == digest(reference[2:])
        second = finished(store, plan, configuration, chain=chain, rank=1, ranks=2)
        for part, whole in zip(second, reference, strict=True):
            assert part["cases"] == whole["cases"][2:]
            assert torch.equal(part["image"], whole["image"][2:])


@pytest.mark.thorough
@pytest.mark.parametrize("chain", ["host", "worker"])
def test_weights_of_components(store, chain):
    labels = LabelSet({"organ": 1, "lesion": 2}, ignore=255)
    for made, ignore_index in ((plan_of(component_weight=0.5), None), (plan_of(labels, component_weight=0.5), 3)):
        assert stream(store, *made, chain=chain).batches.weigh.keywords == {"power": 0.5, "ignore_index": ignore_index}
        for batch in finished(store, *made, chain=chain, worker_count=1):
            expected = [component_weights(target, 0.5, ignore_index) for target in batch["target"].numpy()]
            np.testing.assert_array_equal(batch["weights"], np.stack(expected))
    assert all("weights" not in batch for batch in finished(store, *plan_of(component_weight=0.0), chain=chain))


def test_what_happens_to_workers_is_told(store, said):
    plan, configuration = plan_of()
    opened = stream(store, plan, configuration, worker_count=1)
    next(opened)
    process = opened.workers.workers[0].process
    process.kill()
    process.join()
    next(opened)
    opened.close()
    assert len(said) == 1


def test_the_sampler_is_the_plans(store):
    made, _ = plan_of(case_sampling="presence", class_sampling="inverse_frequency", foreground_fraction=0.75, seed=7)
    sampler = build_sampler(store, CASES, made, seed=8)
    assert (sampler.cases, sampler.seed, sampler.fraction) == (CASES, 8, 0.75)
    assert sampler.labels == tuple(made.labels.scored.values())
    assert sampler.label_weights.tolist() != [1.0] * len(sampler.labels)
    other = build_sampler(store, CASES, plan_of(class_sampling="uniform")[0], seed=8)
    assert other.label_weights.tolist() == [1.0] * len(sampler.labels)


def test_a_plan_names_a_new_rule_of_sampling(store, monkeypatch):
    """One function and one line: the plan's setting is a string that is checked against the table."""
    plan, configuration = plan_of()
    with pytest.raises(
        UsageError, match=r"training\.case_sampling: expected one of 'uniform', 'presence', found 'first'"
    ):
        plan.with_settings(["training.case_sampling=first"])
    monkeypatch.setitem(SAMPLERS["case"], "first", lambda voxels: np.arange(len(voxels)) == 0)
    plan = plan.with_settings(["training.case_sampling=first"])
    drawn = {case for batch in stream(store, plan, configuration) for case in batch["cases"]}
    assert drawn == {CASES[0]}


def test_a_cascade_needs_its_previous_stage_and_nothing_else_has_one(store, tmp_path):
    plan, configuration = plan_of()
    with pytest.raises(AssertionError):
        TrainingBatches(store, CASES, plan, replace(configuration, cascade_from="3d_lowres"))
    with pytest.raises(AssertionError):
        TrainingBatches(store, CASES, plan, configuration, tmp_path)


# ---- memory


def size_of(store) -> int:
    return sum(path.stat().st_size for path in store.folder.glob("*.npy"))


def held(store, **settings) -> bool:
    return stream(store, *plan_of(), **settings).batches.reader.in_memory


def test_a_limit_decides_whether_cases_are_held_in_memory(store):
    size = size_of(store)
    assert held(store)  # of what is free here
    assert held(store, memory_limit=size)
    assert not held(store, memory_limit=size - 1)
    assert not held(store, memory_limit=0)


def test_a_quarter_of_the_free_memory_is_the_limit(store, monkeypatch):
    size = size_of(store)
    for free, expected in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr(batches_of, "free_memory", lambda free=free: free)
        assert held(store) is expected


def test_of_several_ranks_each_takes_its_share_of_the_memory(store, monkeypatch):
    size = size_of(store)
    monkeypatch.setattr(batches_of, "free_memory", lambda: 8 * size)
    assert held(store, ranks=2)
    monkeypatch.setattr(batches_of, "free_memory", lambda: 8 * size - 8)
    assert not held(store, ranks=2)


def test_processes_that_share_no_memory_do_not_each_hold_the_cases(store, monkeypatch):
    monkeypatch.setattr(batches_of, "FORKS", False)
    assert held(store)
    assert not held(store, worker_count=1)


def test_no_more_workers_than_there_is_memory_for_their_batches(store, monkeypatch, said):
    """A batch of two samples: 2 * (480 voxels * (3 * 4 + 6) + 1024) = 19328 bytes. Of what is free, half may hold 4 for
    each worker, and 3 that the training has."""
    made = plan_of(batch_size=2)
    reference = list(stream(store, *made, memory_limit=0))
    for batches, count in ((3 + 3 * 4, 3), (3 + 3 * 4 - 1, 2), (3 + 4, 1), (3 + 4 - 1, 0)):
        said.clear()
        monkeypatch.setattr(batches_of, "free_memory", lambda batches=batches: 2 * batches * 19328)
        few = stream(store, *made, memory_limit=0, worker_count=3)
        assert (few.workers.count if few.workers else 0) == count
        assert len(said) == (count < 3)
        assert all("not enough memory for 3 workers" in text and f": using {count};" in text for text in said)
    assert digest(few) == digest(reference)
