"""Counted logits score any rule as the logits themselves do: against a decision voxel by voxel."""

import numpy as np
import pytest
import torch

from autoseg.evaluation.margins import STEP, MarginCounter, MarginTable
from autoseg.evaluation.metrics import confusion_matrix
from autoseg.imaging.labels import LabelSet
from autoseg.inference.ensemble import ensemble_logits

SOFTMAX = LabelSet({"a": 1, "b": 2, "c": 5}, ignore=9)
REGIONS = LabelSet(
    {"a": 1, "b": 2, "c": 5}, regions={"whole": (1, 2, 5), "core": (2, 5), "c": (5,)}, region_values=(1, 2, 5)
)


def counted(heads: LabelSet, models: int = 1, seed: int = 0, scale: float = 2.0, shape=(5, 6, 7)):
    """Logits of a case handed over in rows, and its reference with voxels that are not annotated."""
    rng = np.random.default_rng(seed)
    logits = [torch.tensor(rng.normal(0, scale, (heads.num_heads, *shape)), dtype=torch.float32) for _ in range(models)]
    reference = rng.integers(0, 4, shape).astype(np.int16)
    if heads.ignore is not None:
        reference[0, :3] = heads.ignore_index
    counter = MarginCounter(heads, reference, {n: n for n in range(models)}, np.array([7, 0, 0, 1]))
    for start in range(0, shape[0], 2):
        rows = slice(start, min(start + 2, shape[0]))
        counter.take(rows, [one[:, rows] for one in logits])
    return logits, reference, counter.result()


def directly(logits, reference, heads: LabelSet, offsets) -> np.ndarray:
    scores = ensemble_logits(logits, range(len(logits)), heads.has_regions).numpy()
    scores = scores + np.asarray(offsets, np.float32).reshape(-1, 1, 1, 1)
    if heads.has_regions:
        decided = np.zeros(reference.shape, np.int64)
        for score, index in zip(scores, heads.region_indices, strict=True):
            decided[score > 0] = index
    else:
        decided = scores.argmax(axis=0)
    confusion = confusion_matrix(reference, decided, 4, ignore_index=heads.ignore_index)
    confusion[:, 0] += [7, 0, 0, 1]
    return confusion


@pytest.mark.parametrize("heads", [SOFTMAX, REGIONS], ids=["softmax", "regions"])
@pytest.mark.parametrize("models", [1, 2])
def test_one_offset_is_exact(heads, models):
    logits, reference, table = counted(heads, models)
    assert table.counts.sum() == (reference <= 3).sum()
    for column in range(heads.num_heads):
        for steps in (-16, -3, -1, 0, 1, 5, 24):
            offsets = np.zeros(heads.num_heads)
            offsets[column] = steps * STEP
            np.testing.assert_array_equal(table.confusion(offsets, heads), directly(logits, reference, heads, offsets))


def test_several_offsets_are_nearly_exact():
    """Where two classes are both lifted above the largest, a difference below a step is not seen."""
    logits, reference, table = counted(SOFTMAX, shape=(30, 30, 30))
    offsets = np.array([0, 1.5, 2.0, -1.0])
    found, wanted = table.confusion(offsets, SOFTMAX), directly(logits, reference, SOFTMAX, offsets)
    assert found.sum() == wanted.sum()
    assert np.abs(found - wanted).sum() <= 0.02 * wanted.sum()


def test_regions_are_exact_for_any_offsets():
    logits, reference, table = counted(REGIONS)
    offsets = np.array([1.5, -2.25, 0.75])
    np.testing.assert_array_equal(table.confusion(offsets, REGIONS), directly(logits, reference, REGIONS, offsets))


def test_where_an_offset_cannot_matter_is_decided_once():
    _, _, table = counted(SOFTMAX, scale=8.0)
    near, far = table.divided(2)
    assert 0 < len(near.counts) < len(table.counts)
    for steps in (-16, 0, 24):
        offsets = np.array([0, 0, steps * STEP, 0])
        parts = near.confusion(offsets, SOFTMAX) + far.confusion(np.zeros(4), SOFTMAX)
        np.testing.assert_array_equal(parts, table.confusion(offsets, SOFTMAX))


def test_many_classes_are_packed_into_several_words():
    heads = LabelSet({f"l{n}": n for n in range(1, 24)})
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 1, (24, 2, 5, 5)), dtype=torch.float32)
    reference = rng.integers(0, 24, (2, 5, 5)).astype(np.int16)
    counter = MarginCounter(heads, reference, {0: 0}, np.zeros(24, np.int64))
    counter.take(slice(0, 2), [logits])
    offsets = np.zeros(24)
    offsets[17] = 1.0
    decided = (logits.numpy() + offsets.reshape(-1, 1, 1, 1)).argmax(axis=0)
    np.testing.assert_array_equal(counter.result().confusion(offsets, heads), confusion_matrix(reference, decided, 24))


def test_a_case_of_sure_voxels_is_a_few_rows():
    logits = torch.zeros((2, 10, 20, 20))
    logits[1, :, :10] = 30
    logits[0, :, 10:] = 30
    heads = LabelSet({"organ": 1})
    counter = MarginCounter(heads, np.zeros((10, 20, 20), np.int16), {0: 0}, np.zeros(2, np.int64))
    counter.take(slice(0, 10), [logits])
    assert sorted(counter.result().counts) == [2000, 2000]


def test_tables_are_kept_with_their_key(tmp_path):
    _, _, table = counted(SOFTMAX)
    path = tmp_path / "margins" / "case.npz"
    table.save(path, "key")
    found = MarginTable.load(path, "key")
    np.testing.assert_array_equal(found.codes, table.codes)
    np.testing.assert_array_equal(found.confusion(np.zeros(4), SOFTMAX), table.confusion(np.zeros(4), SOFTMAX))
    assert MarginTable.load(path, "another") is None
    assert MarginTable.load(tmp_path / "none.npz", "key") is None
    path.write_bytes(path.read_bytes()[:-40])
    assert MarginTable.load(path, "key") is None
    path.write_bytes(b"not a file of numpy")
    assert MarginTable.load(path, "key") is None
