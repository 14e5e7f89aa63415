"""Where patches come from: shares, weights and places against counts by hand; cutting against numpy's padding."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.dataloading.sampling import SAMPLERS, PatchSampler, cut_patch, sample_generator
from autoseg.dataloading.store import CaseInfo, StoredCase, class_locations
from stored_cases import whole

PATCH = (4, 6, 5)


def stored(case_id: str, target: np.ndarray, num_labels: int = 2, ignore_index: int | None = None) -> StoredCase:
    voxels, lists = class_locations(np.ascontiguousarray(target, np.int8), num_labels, ignore_index)
    info = CaseInfo(case_id, "", whole(target.shape), num_labels, ignore_index, class_voxels=voxels)
    annotated = lists.pop() if ignore_index is not None else None
    return StoredCase(np.zeros((1, *target.shape)), target, dict(enumerate(lists, start=1)), annotated, info)


def with_voxels(case_id: str, *counts: int) -> StoredCase:
    """A case with so many voxels of class 1, 2, ..."""
    target = np.zeros(20_000, np.int8)
    target[: sum(counts)] = np.repeat(np.arange(1, len(counts) + 1), counts)
    return stored(case_id, target.reshape(20, 25, 40), len(counts))


def sampler_of(*cases: StoredCase, **settings) -> PatchSampler:
    defaults = {"labels": [(1,), (2,)], "foreground_fraction": 0.5, "seed": 7}
    return PatchSampler({case.info.id: case.info for case in cases}, **(defaults | settings))


@pytest.mark.parametrize("fraction", [0.0, 0.33, 0.29, 0.5, 2 / 3, 1.0])
def test_the_share_of_foreground_samples_is_exact_and_evenly_spread(fraction):
    sampler = sampler_of(with_voxels("a", 10, 10), foreground_fraction=fraction)
    aimed = [sampler.is_foreground(i) for i in range(300)]
    assert sum(aimed[:100]) == int(fraction * 100 + 1e-6)
    assert sum(aimed) == int(fraction * 300 + 1e-6)
    gaps = np.diff(np.flatnonzero(aimed))
    if len(gaps):
        assert gaps.max() - gaps.min() <= 1


def test_every_case_comes_once_per_round():
    cases = [with_voxels(name, 10, 10) for name in "abcde"]
    sampler = sampler_of(*cases, foreground_fraction=0.0)
    drawn = [sampler.case_of(i) for i in range(50)]
    rounds = [drawn[start : start + 5] for start in range(0, 50, 5)]
    assert all(sorted(r) == list("abcde") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 5  # the order changes


def test_foreground_samples_come_from_cases_with_foreground_and_the_others_from_all():
    cases = [with_voxels("a", 10, 0), with_voxels("b", 0, 0), with_voxels("c", 0, 3), with_voxels("d", 0, 0)]
    sampler = sampler_of(*cases, foreground_fraction=0.5)
    aimed = [sampler.case_of(i) for i in range(800) if sampler.is_foreground(i)]
    others = [sampler.case_of(i) for i in range(800) if not sampler.is_foreground(i)]
    assert Counter(aimed) == {"a": 200, "c": 200}
    assert Counter(others) == {"a": 100, "b": 100, "c": 100, "d": 100}


def test_without_any_foreground_all_samples_are_random():
    case = with_voxels("a", 0, 0)
    sampler = sampler_of(case, foreground_fraction=1.0)
    assert not any(sampler.is_foreground(i) for i in range(20))
    assert sampler.choose(0, case, PATCH, sample_generator(7, 0)).voxel is None


def test_cases_of_rare_labels_are_drawn_more_often():
    # label 1 in all four cases: weight sqrt(4/4) = 1; label 2 in one: sqrt(4/1) = 2
    cases = [with_voxels("a", 9, 5), *(with_voxels(name, 9, 0) for name in "bcd")]
    sampler = sampler_of(*cases, foreground_fraction=0.0, case_sampling="presence")
    drawn = Counter(sampler.case_of(i) for i in range(4000))  # of 5 draws a has 2, each other 1
    for name, expected in {"a": 1600, "b": 800, "c": 800, "d": 800}.items():
        assert drawn[name] == pytest.approx(expected, abs=60)
    for start in range(0, 4000, 4):  # per round of 4: 1.6 and 0.8, rounded up or down
        part = Counter(sampler.case_of(i) for i in range(start, start + 4))
        assert part["a"] in (1, 2)
        assert all(part[name] in (0, 1) for name in "bcd")


@pytest.mark.parametrize(("how", "share"), [("uniform", 1 / 2), ("inverse_frequency", 10 / 11)])
def test_which_label_is_aimed_at(how, share):
    # 9,900 and 99 voxels: 1/sqrt gives weights of 1 : 10
    case = with_voxels("a", 9_900, 99)
    sampler = sampler_of(case, foreground_fraction=1.0, class_sampling=how)
    hits = Counter(sampler.choose(i, case, PATCH, sample_generator(7, i)).class_index for i in range(2000))
    assert hits[2] / 2000 == pytest.approx(share, abs=0.04)
    assert set(hits) == {1, 2}


def test_labels_are_weighed_by_their_voxels_in_all_cases():
    a, b = with_voxels("a", 100, 100), with_voxels("b", 9_900, 0)  # 10,000 against 100 voxels
    sampler = sampler_of(a, b, class_sampling="inverse_frequency")
    np.testing.assert_allclose(sampler.label_weights, [1 / 100, 1 / 10])


def test_a_new_rule_is_a_function_and_a_line(monkeypatch):
    """Cases by their foreground voxels, and the last label alone: 3 of 4 draws, and never label 1."""
    monkeypatch.setitem(SAMPLERS["case"], "voxels", lambda voxels: voxels.sum(axis=1).astype(float))
    monkeypatch.setitem(SAMPLERS["class"], "last", lambda voxels: np.arange(voxels.shape[1]).astype(float))
    cases = {"a": with_voxels("a", 20, 10), "b": with_voxels("b", 5, 5)}
    settings = {"foreground_fraction": 1.0, "case_sampling": "voxels", "class_sampling": "last"}
    sampler = sampler_of(*cases.values(), **settings)
    drawn = [sampler.case_of(i) for i in range(400)]
    assert Counter(drawn)["a"] == pytest.approx(300, abs=20)  # of each round of two draws 1.5, rounded by chance
    hits = {sampler.choose(i, cases[name], PATCH, sample_generator(7, i)).class_index for i, name in enumerate(drawn)}
    assert hits == {2}
    monkeypatch.setitem(SAMPLERS["case"], "wrong", lambda voxels: np.ones(3))
    with pytest.raises(AssertionError, match="wrong: one weight per case"):
        sampler_of(*cases.values(), case_sampling="wrong")


def test_only_labels_of_the_case_are_aimed_at():
    a, b = with_voxels("a", 5, 0), with_voxels("b", 0, 5)
    sampler = sampler_of(a, b, foreground_fraction=1.0)
    for i in range(50):
        case = {"a": a, "b": b}[sampler.case_of(i)]
        choice = sampler.choose(i, case, PATCH, sample_generator(7, i))
        assert choice.case == case.info.id
        assert choice.class_index == {"a": 1, "b": 2}[choice.case]


def test_a_region_is_aimed_at_evenly_over_its_voxels():
    case = with_voxels("a", 100, 300, 50)
    sampler = sampler_of(case, labels=[(1, 2)], foreground_fraction=1.0)
    hits = Counter(sampler.choose(i, case, PATCH, sample_generator(7, i)).class_index for i in range(2000))
    assert hits[2] / 2000 == pytest.approx(0.75, abs=0.04)
    assert set(hits) == {1, 2}


def test_the_voxel_lies_anywhere_in_the_patch():
    target = np.zeros((40, 40, 40), np.int8)
    target[20, 21, 22] = 1
    case = stored("a", target, 1)
    sampler = sampler_of(case, labels=[(1,)], foreground_fraction=1.0)
    places = [Counter(), Counter(), Counter()]
    for i in range(1800):
        choice = sampler.choose(i, case, (8, 6, 5), sample_generator(7, i))
        assert choice.voxel == (20, 21, 22)
        for axis in range(3):
            places[axis][choice.voxel[axis] - choice.lower[axis]] += 1
    assert [sorted(p) for p in places] == [list(range(8)), list(range(6)), list(range(5))]
    for p in places:
        assert min(p.values()) > 0.8 * 1800 / len(p)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_patches_stay_inside_or_have_the_image_in_their_middle(shape, patch, where, seed):
    target = np.zeros(shape, np.int8)
    target.reshape(-1)[int(where * (target.size - 1))] = 1
    case = stored("a", target, 1)
    sampler = sampler_of(case, labels=[(1,)], seed=seed)
    for index in range(4):
        choice = sampler.choose(index, case, patch, sample_generator(seed, index))
        assert sampler.is_foreground(index) == (choice.class_index == 1)
        for axis, (s, p) in enumerate(zip(shape, patch, strict=True)):
            low = choice.lower[axis]
            if s >= p:
                assert 0 <= low <= s - p
            else:
                before, after = -low, low + p - s  # padding
                assert before in (after, after - 1)
            if choice.voxel is not None:
                assert 0 <= choice.voxel[axis] - low < p
        if choice.voxel is not None:
            assert target[choice.voxel] == 1


def test_random_patches_reach_every_corner():
    case = with_voxels("a", 0, 0)
    sampler = sampler_of(case)  # a patch of (18, 23, 38) in (20, 25, 40): 27 places
    seen = {sampler.choose(i, case, (18, 23, 38), sample_generator(7, i)).lower for i in range(600)}
    assert seen == {(z, y, x) for z in range(3) for y in range(3) for x in range(3)}


def test_where_little_is_annotated_patches_are_aimed_at_what_is():
    target = np.full((30, 30, 30), 2, np.int8)  # 2: ignored
    target[10:12, 5, 5] = 0
    target[25, 25, 25] = 1
    target[0] = -1
    case = stored("a", target, 1, ignore_index=2)
    sampler = sampler_of(case, labels=[(1,)], foreground_fraction=0.5)
    voxels = Counter()
    for i in range(200):
        choice = sampler.choose(i, case, PATCH, sample_generator(7, i))
        if not sampler.is_foreground(i):
            voxels[choice.voxel] += 1
    assert set(voxels) == {(10, 5, 5), (11, 5, 5), (25, 25, 25)}


def test_slices_of_a_volume():
    target = np.zeros((5, 20, 20), np.int8)
    target[3, 10, 11] = 1
    case = stored("a", target, 1)
    sampler = sampler_of(case, labels=[(1,)], foreground_fraction=0.5)
    choices = [sampler.choose(i, case, (8, 8), sample_generator(7, i)) for i in range(200)]
    assert {c.lower[0] for c in choices if c.voxel} == {3}
    assert {c.lower[0] for c in choices if not c.voxel} == {0, 1, 2, 3, 4}


def test_a_sample_depends_on_seed_and_index_alone():
    cases = {name: with_voxels(name, 50, 20) for name in "abc"}
    keys = range(60)

    def choices(sampler, order):
        drawn = {
            i: sampler.choose(i, cases[sampler.case_of(i)], PATCH, sample_generator(sampler.seed, i)) for i in order
        }
        return [drawn[i] for i in keys]

    straight = choices(sampler_of(*cases.values()), keys)
    assert choices(sampler_of(*cases.values()), reversed(keys)) == straight
    shared = sampler_of(*cases.values())
    shared.case_of(100_000)
    assert choices(shared, keys) == straight
    assert choices(sampler_of(*cases.values(), seed=8), keys) != straight
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    choices(shared, keys)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(-8, 8)] * 3),
    st.tuples(*[st.integers(1, 7)] * 3),
)
def test_cutting_is_padding_and_slicing(shape, lower, size):
    array = np.arange(2 * np.prod(shape), dtype=np.int16).reshape(2, *shape)
    padded = np.pad(array, [(0, 0), (20, 20), (20, 20), (20, 20)], constant_values=-5)
    expected = padded[(slice(None), *(slice(20 + first, 20 + first + n) for first, n in zip(lower, size, strict=True)))]
    patch = cut_patch(array, lower, size, -5)
    np.testing.assert_array_equal(patch, expected)
    assert patch.dtype == np.int16
    np.testing.assert_array_equal(cut_patch(array[1], lower, size, -5), expected[1])
    flat = cut_patch(array, lower, size[1:], -5)
    np.testing.assert_array_equal(
        flat, padded[:, 20 + lower[0], 20 + lower[1] :, 20 + lower[2] :][:, : size[1], : size[2]]
    )


def test_a_patch_of_a_memory_map_is_a_copy(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.float16).reshape(1, 4, 4, 4))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    patch = cut_patch(mapped, (1, 1, 1), (2, 2, 2), 0)
    patch += 1
    assert type(patch) is np.ndarray
    assert patch.dtype == np.float16
    assert patch.ravel().tolist() == [22, 23, 26, 27, 38, 39, 42, 43]
