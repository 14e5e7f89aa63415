"""The stream of batches: the same for any number of workers, resumable, and true to the stored cases."""

import itertools
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import streams
from autoseg.augmentation.host_chain import Deformation
from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading import patches
from autoseg.dataloading.sampling import cut_patch, sample_generator
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from stored_cases import commit, digest, faultless_previous_stage, one_hot
from streams import stream_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CaseStore:
    """Five cases of different shapes. Channel 0 says which voxel it is, channel 1 repeats the target."""
    store = CaseStore(tmp_path_factory.mktemp("store"))
    for number in range(5):
        shape = (8 + number, 14, 12 - number)
        target = np.random.default_rng(number).integers(0, 3, shape).astype(np.int16)
        target[0] = -1
        # exact in float16, standard deviation of about 0.3
        address = np.arange(target.size).reshape(shape) / 1024 - 0.5
        commit(store, f"case{number}", np.stack([address, np.maximum(target, 0)]).astype(np.float32), target, 2)
    return store


@pytest.fixture(scope="module")
def previous(store, tmp_path_factory) -> Path:
    return faultless_previous_stage(tmp_path_factory.mktemp("previous"), store, CASES)


CASES = tuple(f"case{i}" for i in range(5))


def stream(store, strength="default", augmentation=None, **settings):
    return stream_of(store, CASES, augmentation or AUGMENTATIONS[strength], **settings)


def assert_same(some, others) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["target"], other["target"])
        assert one["cases"] == other["cases"]


def test_a_batch(store):
    batches = list(stream(store))
    assert len(batches) == 8
    for batch in batches:
        assert set(batch) == {"image", "target", "cases"}
        assert batch["image"].shape == (2, 2, 6, 10, 8)
        assert batch["image"].dtype == torch.float32
        assert batch["image"].is_contiguous()
        assert batch["target"].shape == (2, 6, 10, 8)
        assert batch["target"].dtype == torch.uint8
        assert batch["target"].max() <= 2  # OUTSIDE would be 255
        assert len(batch["cases"]) == 2
        assert set(batch["cases"]) <= set(CASES)
    assert {case for batch in batches for case in batch["cases"]} == set(CASES)


@pytest.mark.parametrize(
    ("patch", "mirrored", "deformed"),
    [
        ((6, 10, 8), "7c49bfaf26d0fc4a", "a3adf1caac9daa0b"),
        ((2, 10, 9), "259a566fa3574e8f", "633d2e466545e23f"),
        ((10, 8), "0d9efb19d479ea5e", "7ed8132bb1b89ae7"),
    ],
)
def test_batches_without_a_previous_stage_are_what_they_always_were(store, patch, mirrored, deformed):
    """Bit by bit. Gamma is off: machines differ in how they raise to powers."""
    settings = {"patch_size": patch, "mirror_axes": range(len(patch)), "masked_channels": (1,)}
    assert digest(stream(store, "mirror", **settings)) == mirrored
    without_powers = replace(AUGMENTATIONS["default"], gamma=0, gamma_inverted=0)
    assert digest(stream(store, augmentation=without_powers, **settings)) == deformed


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((6, 10, 8), "200edcd872df2f83"),
        ((2, 10, 9), "6d343e8c2510d342"),
        ((20, 20, 20), "17a763e70bdcc333"),
        ((10, 8), "4ad8e2ad7010346f"),
    ],
)
@pytest.mark.parametrize("count", [0, 1])
def test_validation_batches_are_what_they_always_were(store, patch, expected, count):
    """Bit by bit, whoever prepares them."""
    fixed = stream(
        store, "none", patch_size=patch, mirror_axes=range(len(patch)), seed=1_000_003, worker_count=count
    )  # fmt: skip
    assert digest(fixed) == expected


@pytest.mark.parametrize("patch", [(6, 10, 8), (2, 10, 9), (20, 20, 20), (10, 8)])
@pytest.mark.parametrize("strength", ["none", "mirror", "default"])
def test_the_previous_stage_follows_the_target(store, previous, patch, strength):
    """Undamaged, a segmentation that equals the target goes on to equal it, wherever the patch is cut and however it is
    turned; image and target are those of a training without it."""
    table = replace(AUGMENTATIONS[strength], operation=0, removal=0)
    settings = {"patch_size": patch, "mirror_axes": range(len(patch)), "augmentation": table}
    alone = list(stream(store, **settings))
    batches = list(stream(store, previous=previous, num_labels=2, **settings))
    for batch, before in zip(batches, alone, strict=True):
        assert batch["image"].shape == (2, 4, *patch)
        assert batch["image"].dtype == torch.float32
        assert torch.equal(batch["image"][:, :2], before["image"])
        assert torch.equal(batch["target"], before["target"])
        assert torch.equal(batch["image"][:, 2:], one_hot(batch["target"], 2))
    assert any(batch["image"][:, 2:].any() for batch in batches)


def test_the_previous_stage_is_damaged_in_training(store, previous):
    """Labels of single voxels: whatever is damaged shows. Image and target stay what they are."""
    settings = {"previous": previous, "num_labels": 2, "stop_step": 30}
    batches = list(stream(store, **settings))
    for batch, before in zip(batches, stream(store, stop_step=30), strict=True):
        assert torch.equal(batch["image"][:, :2], before["image"])
        assert torch.equal(batch["target"], before["target"])
        assert set(batch["image"][:, 2:].unique().tolist()) <= {0.0, 1.0}
    unlike = [(b["image"][i, 2:] != one_hot(b["target"], 2)[i]).any().item() for b in batches for i in range(2)]
    assert np.mean(unlike) == pytest.approx(1 - (1 - 0.4 * 0.75) * (1 - 0.2 * 0.75), abs=0.16)  # 0.4
    assert_same(stream(store, worker_count=1, **settings), batches)
    assert_same(stream(store, in_memory=False, **settings), batches)
    assert_same(stream(store, start_step=20, **settings), batches[20:])


def test_workers_change_nothing(store):
    reference = list(stream(store))
    for count in (1, 2):
        assert_same(stream(store, worker_count=count), reference)
    assert not torch.equal(next(iter(stream(store, seed=4)))["image"], reference[0]["image"])


@pytest.mark.parametrize("count", [0, 1])
def test_a_resumed_stream_goes_on_where_it_was(store, count):
    reference = list(stream(store))
    assert_same(stream(store, start_step=5, worker_count=count), reference[5:])
    endless = stream(store, start_step=3, stop_step=None, worker_count=count)
    assert_same(itertools.islice(endless, 5), reference[3:])
    endless.close()
    assert list(endless) == []
    assert list(stream(store, start_step=9, worker_count=count)) == []


def reader_of(stream: BatchStream) -> patches.PatchReader:
    return stream.batches.reader


def test_cases_in_memory_or_on_disk_are_the_same(store, monkeypatch):
    held, mapped = stream(store), stream(store, in_memory=False)
    assert [type(case.image) for case in reader_of(held).cases.values()] == [np.ndarray] * 5
    assert reader_of(mapped).cases == {}
    assert_same(held, mapped)
    assert all(isinstance(case.image, np.memmap) for case in reader_of(mapped).cases.values())
    monkeypatch.setattr(patches, "OPEN_CASES", 2)
    few = stream(store, in_memory=False)
    assert_same(few, stream(store))
    assert len(reader_of(few).cases) == 2


def test_batches_are_prepared_by_one_thread_wherever_that_is(store):
    """numpy's threads, too, wait for each other in loops that take a core each."""

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    assert threads()  # there is a library to ask
    seen = []

    class Telling:
        nbytes = 64

        def __call__(self, step):
            seen.append(threads())
            return {"threads": sorted(threads())}

        def finish(self, batch, device):
            return batch

    with threadpool_limits(2):
        before = threads()
        next(BatchStream(Telling()))
        assert seen == [{1}]
        assert threads() == before
        in_a_worker = BatchStream(Telling(), worker_count=1)
        assert next(in_a_worker) == {"threads": [1]}
        in_a_worker.close()


def test_what_prepares_batches_can_be_sent_to_another_process(store):
    for held in (True, False):
        batches = stream(store, in_memory=held).batches
        batch = batches(5)
        copy = pickle.loads(pickle.dumps(batches))
        assert (len(copy.reader.cases) > 0) == held
        assert_same([copy(5)], [batch])


def test_patches_are_those_of_the_stored_cases(store):
    """Without augmentation, channel 0 names the voxel that every place of a patch comes from."""
    for batch in stream(store, "none", patch_size=(4, 6, 5), stop_step=20):
        for image, target, name in zip(batch["image"].numpy(), batch["target"].numpy(), batch["cases"], strict=True):
            case = store.open(name)
            voxels = np.rint((image[0] + 0.5) * 1024).astype(int)
            where = np.unravel_index(voxels, case.info.shape)
            assert [np.unique(np.diff(w, axis=axis)).tolist() for axis, w in enumerate(where)] == [[1], [1], [1]]
            np.testing.assert_array_equal(target, np.maximum(case.target[where], 0))


def test_outside_the_image_is_background(store):
    for batch in stream(store, "none", patch_size=(20, 20, 20), border=-9.0, stop_step=5):
        for image, target, name in zip(batch["image"], batch["target"], batch["cases"], strict=True):
            shape = store.info(name).shape
            lower = [(20 - s) // 2 for s in shape]
            inside = torch.zeros(20, 20, 20, dtype=torch.bool)
            inside[tuple(slice(low, low + s) for low, s in zip(lower, shape, strict=True))] = True
            assert (image[:, ~inside] == -9).all()
            assert (image[:, inside] > -9).all()
            assert (target[~inside] == 0).all()
            assert (target[inside] > 0).any()


def test_mirroring_moves_image_and_target_together(store):
    batches = list(stream(store, "mirror", stop_step=10))
    for batch in batches:
        assert torch.equal(batch["image"][:, 1], batch["target"].float())
    plain = list(stream(store, "none", stop_step=10))
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(batches, plain, strict=True))


@pytest.mark.parametrize("patch", [(6, 10, 8), (2, 10, 9), (10, 8)])
def test_a_deformed_patch_is_read_about_its_centre(store, patch):
    """The chain, given far more of the image than the loader reads, comes to the same patch."""
    table = replace(AUGMENTATIONS["none"], rotation=1.0, scaling=1.0, elastic=1.0)
    batches = stream(store, augmentation=table, patch_size=patch, mirror_axes=()).batches
    sampler = batches.reader.sampler
    for index in range(10):
        rng = sample_generator(3, index)
        case = store.open(sampler.case_of(index))
        lower = sampler.choose(index, case, patch, rng).lower
        lower = [first - (30 if axis >= 3 - len(patch) else 0) for axis, first in enumerate(lower)]
        size = [n + 60 for n in patch]
        image, target = cut_patch(case.image, lower, size, 0), cut_patch(case.target, lower, size, -1)
        image, target = batches.chain(image, target, rng)
        _, sample, labels = batches.sample(index)
        np.testing.assert_allclose(sample, image, atol=1e-4)
        assert (labels == target).mean() > 0.99


def test_slices(store):
    for batch in stream(store, patch_size=(10, 8), mirror_axes=(0, 1), batch_size=3, worker_count=1):
        assert batch["image"].shape == (3, 2, 10, 8)
        assert batch["target"].shape == (3, 10, 8)
    for batch in stream(store, "none", patch_size=(6, 6), mirror_axes=()):
        for image, target, name in zip(batch["image"].numpy(), batch["target"].numpy(), batch["cases"], strict=True):
            case = store.open(name)
            where = np.unravel_index(np.rint((image[0] + 0.5) * 1024).astype(int), case.info.shape)
            assert np.ptp(where[0]) == 0
            np.testing.assert_array_equal(target, np.maximum(case.target[where], 0))


def test_many_classes_need_a_wider_target(tmp_path):
    store = CaseStore(tmp_path)
    target = np.full((4, 4, 4), 200, np.int16)
    commit(store, "a", np.zeros((1, 4, 4, 4), np.float32), target, 200)
    batches = stream_of(
        store, ["a"], AUGMENTATIONS["none"], patch_size=(4, 4, 4), batch_size=1, labels=[(200,)],
        foreground_fraction=1.0, stop_step=1,
    )  # fmt: skip
    (batch,) = batches
    assert batch["target"].dtype == torch.int16
    assert (batch["target"] == 200).all()


def test_the_generator_of_the_training_is_left_alone(store):
    for count in (0, 1):
        before = torch.get_rng_state()
        list(stream(store, stop_step=2, worker_count=count))
        assert torch.equal(torch.get_rng_state(), before)


class Witness:
    """In place of the chain: an image that says how many threads torch would use."""

    patch_size, border = (6, 10, 8), 0.0

    def draw(self, rng):
        return Deformation(None, (0, 0, 0))

    def __call__(self, image, target, rng, deformation):
        return np.full_like(image, torch.get_num_threads(), dtype=np.float32), target


def test_batches_are_prepared_with_one_thread_wherever(store):
    """How many threads add up many numbers shows in the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for count in (0, 1):
            batches = replace(stream(store).batches, chain=Witness())
            witnessed = BatchStream(batches, stop_step=1, worker_count=count)
            assert {batch["image"].max().item() for batch in witnessed} == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.thorough
def test_workers_survive_the_signals_of_their_group_and_end_with_a_training_that_fails(store):
    """The parent decides what a signal means. At the end it waits for its workers, so they must let it go, too."""
    program = f"""
        import os, signal, sys, time
        from pathlib import Path
        from autoseg.augmentation.presets import AUGMENTATIONS
        from autoseg.dataloading.store import CaseStore
        sys.path.append({str(Path(streams.__file__).parent)!r})
        from streams import stream_of
        folder = Path({str(store.folder)!r})
        sys.kept_alive = stream = stream_of(
            CaseStore(folder), {CASES!r}, AUGMENTATIONS["none"], stop_step=None, worker_count=2
        )
        next(stream)
        print(*[worker.process.pid for worker in stream.workers.workers])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: print("signal"))
            os.killpg(0, number)
        for _ in range(30):
            next(stream)
        print("still there")
        raise RuntimeError("training failed")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    workers, *said = result.stdout.splitlines()
    assert said == ["signal", "signal", "signal", "still there"]
    assert result.stderr.rstrip().endswith("RuntimeError: training failed")
    assert result.returncode == 1
    for pid in map(int, workers.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
