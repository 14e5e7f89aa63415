"""One training, three places where its batches may be augmented: what must be equal is, bit by bit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.presets import AUGMENTATIONS, Augmentation
from autoseg.dataloading.batches import Shard, batch_bytes
from autoseg.dataloading.previous_stage import corrupt
from autoseg.dataloading.sampling import PatchSampler, cut_patch, sample_generator
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from autoseg.imaging.components import component_weights
from stored_cases import commit, faultless_previous_stage, one_hot
from streams import stream_of

CPU = torch.device("cpu")
CHAINS = ("host", "worker", "device")
CASES = tuple(f"case{i}" for i in range(5))
PATCH = (6, 10, 8)
STRONG = replace(AUGMENTATIONS["default"], rotation=0.5, elastic=0.5, noise=0.5, blur=0.5, gamma=0.5)
MIXED = replace(STRONG, cutmix=0.5, mixup=0.5, paste=0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CaseStore:
    """Five cases of different shapes, of two channels and three labels in blobs, stored as float16."""
    store = CaseStore(tmp_path_factory.mktemp("store"))
    for number in range(5):
        shape = (8 + number, 14, 12 - number)
        rng = np.random.default_rng(number)
        target = np.kron(rng.integers(0, 4, (7, 7, 7)), np.ones((2, 2, 2)))[: shape[0], : shape[1], : shape[2]]
        target[0] = -1
        image = rng.standard_normal((2, *shape)).astype(np.float32)
        assert commit(store, f"case{number}", image, target, 3).image_dtype == "float16"
    return store


@pytest.fixture(scope="module")
def previous(store, tmp_path_factory) -> Path:
    return faultless_previous_stage(tmp_path_factory.mktemp("previous"), store, CASES)


@pytest.fixture(autouse=True)
def one_thread():
    """Where the training augments, the number of its threads shows in the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(store, chain: str, table: Augmentation = STRONG, patch=PATCH, **settings) -> BatchStream:
    defaults = {
        "patch_size": patch, "mirror_axes": range(len(patch)), "masked_channels": (1,), "border": -2.0,
        "labels": [(1,), (2,), (3,)],
    }  # fmt: skip
    return stream_of(store, CASES, table, chain, **(defaults | settings))


def finished(batches: BatchStream) -> list[dict]:
    return [batches.finish(batch, CPU) for batch in batches]


def assert_same(some, others) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert one["cases"] == other["cases"]
        for name in one.keys() - {"cases"}:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name]), name


@pytest.mark.thorough
@pytest.mark.parametrize("patch", [PATCH, (2, 10, 9), (10, 8)])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_finished_batch(store, previous, chain, patch):
    for cascade in ({}, {"previous": previous, "num_labels": 3}):
        batches = finished(stream(store, chain, patch=patch, **cascade))
        assert len(batches) == 8
        for batch in batches:
            assert set(batch) == {"image", "target", "cases"}
            assert batch["image"].shape == (2, 5 if cascade else 2, *patch)
            assert batch["image"].dtype == torch.float32
            assert batch["target"].shape == (2, *patch)
            assert batch["target"].dtype == torch.uint8
            assert batch["target"].is_contiguous()
            assert batch["target"].max() <= 3  # OUTSIDE would be 255
        assert {case for batch in batches for case in batch["cases"]} == set(CASES)


# Wherever it is prepared --------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("table", [STRONG, MIXED], ids=["alone", "mixed"])
def test_workers_and_a_new_start_change_nothing(store, previous, chain, table):
    cascade = {"previous": previous, "num_labels": 3}
    for more in ({}, cascade) if chain == "host" or table is STRONG else (cascade,):
        reference = finished(stream(store, chain, table, **more))
        assert not torch.equal(reference[0]["image"], reference[1]["image"])
        for count in (1, 2):
            assert_same(finished(stream(store, chain, table, worker_count=count, **more)), reference)
        for count in (0, 1):
            rest = stream(store, chain, table, worker_count=count, start_step=5, **more)
            assert_same(finished(rest), reference[5:])
        assert_same(finished(stream(store, chain, table, in_memory=False, **more)), reference)


@pytest.mark.thorough
@pytest.mark.parametrize("chain", CHAINS)
def test_a_killed_worker_changes_nothing(store, chain, said):
    reference = finished(stream(store, chain, stop_step=20))
    batches = stream(store, chain, stop_step=20, worker_count=2)
    rng = np.random.default_rng(1)
    result = []
    for step, batch in enumerate(batches):
        result.append(batches.finish(batch, CPU))
        if step in (4, 11):
            process = batches.workers.workers[rng.integers(2)].process
            process.kill()
            process.join()
    assert_same(result, reference)
    assert len(said) == 2


@pytest.mark.thorough
@pytest.mark.parametrize("patch", [PATCH, (2, 10, 9), (20, 20, 20), (10, 8)])
@pytest.mark.parametrize("table", [STRONG, MIXED], ids=["alone", "mixed"])
def test_worker_and_device_are_one_chain(store, previous, patch, table):
    for cascade in ({}, {"previous": previous, "num_labels": 3}):
        settings = {"patch": patch, "batch_size": 3, **cascade}
        assert_same(
            finished(stream(store, "worker", table, **settings)), finished(stream(store, "device", table, **settings))
        )


@pytest.mark.parametrize("patch", [PATCH, (20, 20, 20), (10, 8)])
@pytest.mark.parametrize("chain", ["worker", "device"])
def test_where_nothing_is_drawn_all_chains_are_the_same(store, previous, chain, patch):
    for cascade in ({}, {"previous": previous, "num_labels": 3}):
        settings = {"table": AUGMENTATIONS["none"], "patch": patch, **cascade}
        assert_same(finished(stream(store, chain, **settings)), finished(stream(store, "host", **settings)))


# Raw batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_raw_batches_are_what_is_stored_and_the_chain_makes_the_rest(store, count):
    """By hand: the generator chooses the place, then the chain draws, then the patch is cut as wide as that."""
    chain = DeviceChain(STRONG, channels=2, patch_size=PATCH, mirror_axes=range(3), masked_channels=(1,), border=-2.0)
    infos = {case: store.info(case) for case in CASES}
    sampler = PatchSampler(infos, labels=[(1,), (2,), (3,)], foreground_fraction=0.5, seed=3)
    batches = stream(store, "device", worker_count=count)
    wider = 0
    for step, raw in enumerate(batches):
        assert set(raw) == {"images", "targets", "draws", "cases"}
        images, targets, draws = [], [], []
        for index in (2 * step, 2 * step + 1):
            case, rng = store.open(sampler.case_of(index)), sample_generator(3, index)
            lower = sampler.choose(index, case, PATCH, rng).lower
            draws.append(chain.draw(rng))
            lower = [first - m for first, m in zip(lower, draws[-1].margin, strict=True)]
            size = [n + 2 * m for n, m in zip(PATCH, draws[-1].margin, strict=True)]
            wider += any(draws[-1].margin)
            images.append(torch.from_numpy(cut_patch(case.image, lower, size, -2.0)))
            targets.append(torch.from_numpy(cut_patch(case.target, lower, size, -1)))
        for image, expected in zip(raw["images"], images, strict=True):
            assert image.dtype == torch.float16  # half of what float32 takes to the device
            assert torch.equal(image, expected)
        assert all(map(torch.equal, raw["targets"], targets))
        image, target = chain(images, targets, draws, CPU)
        batch = batches.finish(raw, CPU)
        assert torch.equal(batch["image"], image)
        assert torch.equal(batch["target"], target.to(torch.uint8))
    assert 4 < wider < 16


# The cascade --------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("chain", ["worker", "device"])
@pytest.mark.parametrize("table", [STRONG, MIXED], ids=["alone", "mixed"])
@pytest.mark.parametrize("patch", [PATCH, (2, 10, 9), (20, 20, 20), (10, 8)])
def test_the_previous_stage_follows_the_target(store, previous, chain, table, patch):
    """Undamaged, a segmentation that equals the target goes on to equal it; the rest is a training without it."""
    table = replace(table, operation=0, removal=0)
    alone = finished(stream(store, chain, table, patch))
    batches = finished(stream(store, chain, table, patch, previous=previous, num_labels=3))
    for batch, before in zip(batches, alone, strict=True):
        assert torch.equal(batch["image"][:, :2], before["image"])
        assert torch.equal(batch["target"], before["target"])
        assert torch.equal(batch["image"][:, 2:], one_hot(batch["target"], 3))


@pytest.mark.parametrize("chain", ["worker", "device"])
def test_the_previous_stage_is_damaged_before_it_moves(store, previous, chain):
    """By hand, where nothing moves: what `corrupt` makes of the patch, drawn after the chain has drawn."""
    table = replace(AUGMENTATIONS["none"], operation=1.0, operation_per_label=1.0, operation_radius=(1, 2))
    device_chain = DeviceChain(table, channels=2, patch_size=PATCH, mirror_axes=range(3))
    batches = stream(store, chain, table, previous=previous, num_labels=3)
    sampler = batches.batches.reader.sampler
    for step, batch in enumerate(finished(batches)):
        assert not torch.equal(batch["image"][:, 2:], one_hot(batch["target"], 3))
        for row, index in enumerate((2 * step, 2 * step + 1)):
            case, rng = store.open(sampler.case_of(index)), sample_generator(3, index)
            lower = sampler.choose(index, case, PATCH, rng).lower
            device_chain.draw(rng)
            before = cut_patch(np.load(previous / f"{case.info.id}.npy"), lower, PATCH, -1)
            damaged = torch.from_numpy(np.maximum(corrupt(before, 3, table, rng), 0))
            assert torch.equal(batch["image"][row, 2:], one_hot(damaged[None], 3)[0])


# Several processes --------------------------------------------------------------------------------


def test_the_samples_of_a_step_by_hand():
    assert list(Shard(4).indices(3)) == [12, 13, 14, 15]
    assert [list(Shard(6, rank, 3).indices(2)) for rank in range(3)] == [[12, 13], [14, 15], [16, 17]]
    for wrong in ((6, 0, 4), (6, 3, 3), (6, -1, 3)):
        with pytest.raises(AssertionError):
            Shard(*wrong)


@pytest.mark.parametrize("chain", CHAINS)
def test_two_ranks_deliver_the_samples_of_one(store, chain):
    settings = {"batch_size": 4, "stop_step": 5}
    whole = finished(stream(store, chain, **settings))
    parts = [finished(stream(store, chain, rank=rank, ranks=2, worker_count=rank, **settings)) for rank in (0, 1)]
    together = [
        {
            "image": torch.cat([first["image"], second["image"]]),
            "target": torch.cat([first["target"], second["target"]]),
            "cases": first["cases"] + second["cases"],
        }
        for first, second in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


# Weights of components ----------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["host", "worker"])
@pytest.mark.parametrize("patch", [PATCH, (10, 8)])
def test_weights_are_those_of_the_augmented_target(store, chain, patch):
    plain = finished(stream(store, chain, patch=patch))
    batches = finished(stream(store, chain, patch=patch, component_weight=0.7, ignore_index=3, worker_count=1))
    for batch, before in zip(batches, plain, strict=True):
        assert set(batch) == {"image", "target", "weights", "cases"}
        assert torch.equal(batch["image"], before["image"])
        assert torch.equal(batch["target"], before["target"])
        assert batch["weights"].shape == batch["target"].shape
        expected = np.stack([component_weights(target, 0.7, ignore_index=3) for target in batch["target"].numpy()])
        np.testing.assert_array_equal(batch["weights"], expected)
        assert (batch["weights"][batch["target"] == 3] == 1).all()
    assert any((batch["weights"] > 1.5).any() for batch in batches)


def test_the_device_makes_no_weights(store):
    with pytest.raises(AssertionError, match="weights of components"):
        stream(store, "device", component_weight=0.5)


# Memory -------------------------------------------------------------------------------------------


def test_the_bytes_of_a_batch_by_hand(store, previous):
    """Two samples of 480 voxels, and 1024 bytes for where arrays begin. Two channels: float32 and 6 bytes of labels and
    weights; 4 bytes more for each label of a previous stage; raw, 4 times (two float16 and two int16 label maps)."""
    cascade = {"previous": previous, "num_labels": 3}
    for chain in ("host", "worker"):
        assert stream(store, chain).batches.nbytes == 2 * (480 * (2 * 4 + 6) + 1024)
        assert stream(store, chain, **cascade).batches.nbytes == 2 * (480 * (5 * 4 + 6) + 1024)
    for more in ({}, cascade):
        assert stream(store, "device", **more).batches.nbytes == 2 * (480 * 4 * (2 * 2 + 2 * 2) + 1024)
    assert stream(store, "host", batch_size=4, ranks=2).batches.nbytes == stream(store, "host").batches.nbytes
    assert stream(store, "host", patch=(10, 8)).batches.nbytes == 2 * (80 * (2 * 4 + 6) + 1024)


def test_room_is_made_for_the_widest_of_the_stored_images():
    """Of four voxels and one channel, raw: 4 times (float32 + two label maps of int16), and where the arrays begin."""
    infos = [SimpleNamespace(channels=1, image_dtype=dtype) for dtype in ("float16", "float32")]
    assert batch_bytes(infos[:1], (2, 2), 1, 0, raw=True) == 4 * 4 * (2 + 4) + 1024
    assert batch_bytes(infos, (2, 2), 1, 0, raw=True) == 4 * 4 * (4 + 4) + 1024


# The patch size -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS)
def test_the_chain_alone_decides_how_large_patches_are(store, chain):
    """Reader and sampler ask the chain: one that is put in its place cuts other patches, inside the same cases."""
    other = stream(store, chain, AUGMENTATIONS["none"], patch=(4, 12, 5)).batches
    changed = replace(stream(store, chain, AUGMENTATIONS["none"]).batches, chain=other.chain)
    assert_same([changed.finish(changed(3), CPU)], [other.finish(other(3), CPU)])
