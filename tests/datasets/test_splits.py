"""Folds: by patient, alike, stable; checked against what can be counted by hand."""

import csv
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg import records
from autoseg.datasets import splits as module
from autoseg.datasets.splits import Split, Splits, leaking_patients, make_splits, splits_from_nnunet
from autoseg.errors import DataError


def check_partition(splits: Splits, cases, patients) -> None:
    """Every case validates once, trains in all other folds, and never against its own patient."""
    assert sorted(c for s in splits.splits for c in s.validation) == sorted(cases)
    assert [s.fold for s in splits.splits] == list(range(len(splits.splits)))
    for split in splits.splits:
        assert sorted((*split.train, *split.validation)) == sorted(cases)
        assert split.train == tuple(sorted(split.train))
        assert not {patients[c] for c in split.train} & {patients[c] for c in split.validation}
    assert leaking_patients(splits, patients) == {}


def one_each(count: int) -> dict[str, str]:
    return {f"c{i:03}": f"p{i:03}" for i in range(count)}


def sizes(splits: Splits) -> list[int]:
    return [len(s.validation) for s in splits.splits]


def test_volumes_that_can_be_paired_exactly_are():
    patients = one_each(10)
    volumes = {case: [i + 1.0] for i, case in enumerate(patients)}  # 1..10: five pairs of sum 11
    splits = make_splits(patients, volumes, seed=0)
    check_partition(splits, patients, patients)
    assert [sum(volumes[c][0] for c in s.validation) for s in splits.splits] == [11.0] * 5
    assert splits.notes == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_label_is_in_every_fold(seed):
    patients = one_each(50)
    volumes = {case: [100.0, 5.0 if i in (0, 1, 2, 3, 4) else 0.0] for i, case in enumerate(patients)}
    splits = make_splits(patients, volumes, seed=seed)
    assert sizes(splits) == [10] * 5
    assert [sum(volumes[c][1] > 0 for c in s.validation) for s in splits.splits] == [1] * 5


def test_means_are_equal_in_folds_of_unequal_size():
    patients = one_each(9)
    volumes = {case: [9.0 + i % 3] for i, case in enumerate(patients)}  # mean 10; equal sums would be 45 and 45
    splits = make_splits(patients, volumes, folds=2, seed=0)
    assert sorted((len(s.validation), sum(volumes[c][0] for c in s.validation)) for s in splits.splits) == [
        (4, 40.0),
        (5, 50.0),
    ]


def test_presence_counts_besides_volume():
    patients = one_each(50)
    amounts = [4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0] + [
        0.0
    ] * 42  # equal volumes: four folds of one case, one of four
    volumes = {case: [amount] for case, amount in zip(patients, amounts, strict=True)}
    splits = make_splits(patients, volumes, seed=0)
    assert sorted(sum(volumes[c][0] > 0 for c in s.validation) for s in splits.splits) == [1, 1, 2, 2, 2]


def test_a_giant_does_not_stand_for_all_sizes():
    patients = one_each(20)
    volumes = {case: [i + 1.0] for i, case in enumerate(patients)} | {"c019": [1000.0]}
    splits = make_splits(patients, volumes, folds=4, seed=0)
    with_giant = next(s.validation for s in splits.splits if "c019" in s.validation)
    others = [volumes[c][0] for c in with_giant if c != "c019"]
    assert np.mean(others) > 5  # to balance volumes alone would give it 1, 2, 3 and 4


def test_no_fold_is_emptied_for_balance():
    features = np.array([[0.0], [5.0], [-5.0]])
    assignment = np.arange(3)
    module._improve(assignment, features, np.ones(3, bool), 3, np.random.default_rng(0))
    assert sorted(assignment) == [0, 1, 2]


def test_folds_are_equal_in_cases_though_patients_are_not():
    counts = [7, 5, 4, 4, 3, 3, 2, 2, 2, 1, 1, 1]  # 35 cases: seven per fold
    patients = {f"p{p}_{i}": f"p{p}" for p, count in enumerate(counts) for i in range(count)}
    splits = make_splits(patients, {c: [] for c in patients}, seed=3)
    check_partition(splits, patients, patients)
    assert sizes(splits) == [7] * 5


def test_the_same_cases_give_the_same_folds_in_any_order():
    patients = {f"c{i}": f"p{i // 2}" for i in range(40)}
    volumes = {c: [float(hash_of(c)), float(hash_of(c) % 7)] for c in patients}
    backwards = dict(reversed(patients.items()))
    first = make_splits(patients, volumes, seed=1)
    assert make_splits(backwards, volumes, seed=1) == first
    assert make_splits(patients, volumes, seed=2) != first
    check_partition(first, patients, patients)


def hash_of(case: str) -> int:
    return int(case[1:]) * 7919 % 101


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_any_data_set_is_divided(patient_of, folds, seed):
    patients = {f"c{i}": f"p{p}" for i, p in enumerate(patient_of)}
    volumes = {c: [float(i % 3), 0.0] for i, c in enumerate(patients)}
    splits = make_splits(patients, volumes, folds=folds, seed=seed, candidates=2)
    if len(set(patient_of)) == 1:
        assert splits.splits == (Split(0, tuple(sorted(patients)), tuple(sorted(patients))),)
        return
    check_partition(splits, patients, patients)
    assert len(splits.splits) == min(folds, len(set(patient_of)))
    assert min(sizes(splits)) >= 1
    assert bool(splits.notes) == (len(set(patient_of)) < folds)


def test_the_improvement_ends_where_no_exchange_or_move_helps():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 3))
    features[:, 0] = rng.integers(1, 4, 12)
    assignment = np.arange(12) % 3
    free = np.ones(12, bool)
    free[:2] = False

    def cost(of: np.ndarray) -> float:
        fair = features.sum(axis=0) / 3
        return sum(((features[of == fold].sum(axis=0) - fair) ** 2).sum() for fold in range(3))

    before = cost(assignment)
    result = module._improve(assignment, features, free, 3, rng)
    assert result == pytest.approx(cost(assignment))
    assert result < before
    assert assignment[:2].tolist() == [0, 1]
    for a, b in itertools.combinations(range(2, 12), 2):
        other = assignment.copy()
        other[[a, b]] = other[[b, a]]
        assert cost(other) >= result - 1e-6
    for a, fold in itertools.product(range(2, 12), range(3)):
        other = assignment.copy()
        other[a] = fold
        assert cost(other) >= result - 1e-6


def test_many_patients_are_balanced_too():
    patients = {f"c{i:04}": f"p{i // 2}" for i in range(800)}
    rng = np.random.default_rng(1)
    volumes = {c: [float(v)] for c, v in zip(patients, rng.lognormal(0, 1, 800), strict=True)}
    splits = make_splits(patients, volumes, seed=0, candidates=2)
    check_partition(splits, patients, patients)
    assert sizes(splits) == [160] * 5
    means = [np.mean([volumes[c] for c in s.validation]) for s in splits.splits]
    assert np.ptp(means) < 0.02 * np.mean(means)  # by chance about 0.25


def test_fewer_patients_than_folds():
    patients = {"a": "x", "b": "y", "c": "y", "d": "z"}
    splits = make_splits(patients, {c: [1.0] for c in patients}, seed=0)
    check_partition(splits, patients, patients)
    assert sorted(s.validation for s in splits.splits) == [("a",), ("b", "c"), ("d",)]
    assert "3 patients are too few for 5 folds" in splits.notes[0]


def test_a_single_patient_validates_on_itself_with_a_warning_until_there_are_more():
    patients = {"a": "x", "b": "x"}
    volumes = {c: [1.0] for c in "abcd"}
    alone = make_splits(patients, volumes, seed=0)
    assert alone.splits == (Split(0, ("a", "b"), ("a", "b")),)
    assert alone.notes[0].startswith("WARNING")
    assert "(x)" in alone.notes[0]
    more = make_splits(patients | {"c": "y", "d": "z"}, volumes, seed=0, existing=alone)
    check_partition(more, "abcd", patients | {"c": "y", "d": "z"})
    assert not any("WARNING" in note for note in more.notes)


def test_no_case_at_all_is_an_error():
    with pytest.raises(DataError, match="no labelled case"):
        make_splits({}, {}, seed=0)


def test_cases_keep_their_fold_when_new_ones_arrive():
    patients = one_each(20)
    volumes = {c: [float(i)] for i, c in enumerate(patients)}
    before = make_splits(patients, volumes, seed=5)
    grown = patients | {f"n{i}": f"new{i}" for i in range(10)} | {"again": "p007"}
    volumes |= {c: [10.0] for c in grown if c not in volumes}
    after = make_splits(grown, volumes, seed=99, existing=before)
    check_partition(after, grown, grown)
    assert after.seed == 5
    for old, new in zip(before.splits, after.splits, strict=True):
        assert set(old.validation) <= set(new.validation)
        assert ("again" in new.validation) == ("c007" in old.validation)
    assert sorted(sizes(after)) == [6, 6, 6, 6, 7]
    assert after.notes == ()
    assert make_splits(grown, volumes, seed=0, existing=after) == after


def test_cases_that_are_gone_leave_their_fold_and_a_note():
    patients = one_each(10)
    volumes = {c: [1.0] for c in patients}
    before = make_splits(patients, volumes, seed=0)
    lost = set(before.splits[2].validation) | {before.splits[0].validation[0]}
    kept = {c: p for c, p in patients.items() if c not in lost}
    after = make_splits(kept, volumes, seed=0, existing=before)
    assert [len(s.validation) for s in after.splits] == [1, 2, 0, 2, 2]
    assert "3 cases of the folds are no longer in the dataset" in after.notes[0]
    assert after.notes[1].startswith("WARNING: fold 2 has lost all its validation cases")


def test_new_cases_of_a_hand_made_split_only_train():
    patients = one_each(6)
    volumes = {c: [1.0] for c in patients}
    hand_made = Splits(1, 0, (Split(0, ("c000", "c001", "c002"), ("c003",)),), (), ("mine",))
    after = make_splits(patients, volumes, seed=0, existing=hand_made)
    assert after.splits == (Split(0, ("c000", "c001", "c002", "c004", "c005"), ("c003",)),)
    assert after.notes[0] == "mine"
    assert "2 new cases only train" in after.notes[1]


def test_test_cases_and_their_patients_are_held_out():
    patients = {"a": "x", "b": "x", "c": "y", "d": "z", "e": "w"}
    volumes = {c: [1.0] for c in patients}
    splits = make_splits(patients, volumes, folds=2, seed=0, test=["a", "elsewhere"])
    assert splits.test == ("a", "b", "elsewhere")
    check_partition(splits, "cde", patients)
    again = make_splits(patients | {"f": "x", "g": "v"}, volumes | {"f": [1.0], "g": [1.0]}, seed=0, existing=splits)
    assert again.test == ("a", "b", "elsewhere", "f")
    check_partition(again, "cdeg", patients | {"g": "v"})


def test_folds_of_nnunet_are_read_and_leaks_are_reported():
    patients = {"a": "x", "b": "x", "c": "y", "d": "z", "e": "w"}
    folds = [{"train": ["b", "a"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b", "d"]}]
    splits = splits_from_nnunet(folds, patients)
    assert splits.splits == (Split(0, ("a", "b"), ("c",)), Split(1, ("a", "c"), ("b", "d")))
    assert leaking_patients(splits, patients) == {1: ("x",)}
    assert splits.notes[0] == "The folds are those of splits_final.json."
    assert "1 cases are in no fold" in splits.notes[1]
    assert splits.notes[1].endswith(": e")
    assert splits.notes[2].startswith("WARNING: fold 1")
    assert splits.notes[2].endswith("too high: x")
    assert len(splits.notes) == 3


def test_folds_of_nnunet_take_new_cases_and_keep_their_leaks_reported():
    patients = {"a": "x", "b": "x", "c": "y", "d": "z"}
    folds = [{"train": ["c", "d"], "val": ["a"]}, {"train": ["a", "d"], "val": ["c"]}]
    partition = [{"train": ["b", "d"], "val": ["a", "c"]}, {"train": ["a", "c"], "val": ["b", "d"]}]
    volumes = {c: [1.0] for c in "abcdef"}
    grown = patients | {"e": "x", "f": "v"}
    after = make_splits(grown, volumes, seed=0, existing=splits_from_nnunet(partition, patients))
    assert sorted(c for s in after.splits for c in s.validation) == list("abcdef")
    assert {"a", "c"} <= set(after.splits[0].validation)
    assert {"b", "d"} <= set(after.splits[1].validation)
    assert sizes(after) == [3, 3]
    assert sum(note.startswith("WARNING: fold") for note in after.notes) == 2
    assert leaking_patients(after, grown) == {0: ("x",), 1: ("x",)}
    no_partition = make_splits(patients, volumes, seed=0, existing=splits_from_nnunet(folds, patients))
    assert no_partition.splits[0].train == ("b", "c", "d")  # b was in no fold


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ({"train": ["a"], "validation": ["b"]}, "fold 0 needs two lists"),
        ({"train": ["a"], "val": []}, "fold 0 needs two lists"),
        ({"train": ["a", "b"], "val": ["b"]}, "in both train and val: b"),
        ({"train": ["a", "q"], "val": ["b"]}, "not in the dataset: q"),
    ],
)
def test_broken_folds_of_nnunet_are_refused(fold, message):
    with pytest.raises(DataError, match=message) as caught:
        splits_from_nnunet([fold], {"a": "x", "b": "y"}, file="my.json")
    assert caught.value.what.startswith("my.json")


def test_splits_are_a_record(tmp_path):
    splits = make_splits(one_each(6), {c: [1.0] for c in one_each(6)}, folds=3, seed=1)
    records.save(tmp_path / "splits.json", splits)
    assert records.load(Splits, tmp_path / "splits.json") == splits


def test_hippocampus(data_dir):
    """No patient in two folds; fold means of each label's volume within 5 % of each other."""
    folder = data_dir / "hippocampus"
    with open(folder / "patients.csv") as file:
        table = {row["case"]: row["patient"] for row in csv.DictReader(file)}
    volumes = {}
    for path in sorted((folder / "labelsTr").glob("*.nii.gz")):
        labels = np.asarray(nibabel.load(path).dataobj)
        volumes[path.name[: -len(".nii.gz")]] = [float((labels == value).sum()) for value in (1, 2)]
    patients = {case: table[case] for case in volumes}
    assert len(patients) == 160
    for seed in (0, 1234):
        splits = make_splits(patients, volumes, seed=seed)
        check_partition(splits, patients, patients)
        assert sizes(splits) == [32] * 5
        means = np.array([np.mean([volumes[c] for c in s.validation], axis=0) for s in splits.splits])
        spread = np.ptp(means, axis=0) / np.mean(list(volumes.values()), axis=0)
        assert spread.max() < 0.05
