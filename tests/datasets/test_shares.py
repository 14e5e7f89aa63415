"""Shares of patients: nested, whole patients, balanced in cases and labels."""

import itertools

import numpy as np
import pytest

from autoseg.datasets.shares import nested_shares

SHARES = (12, 25, 50, 100)


def made_up(number: int, seed: int = 0) -> tuple[dict[str, str], dict[str, list[float]]]:
    """Patients of one or two cases; a large label, and a small one in a quarter of the patients."""
    generator = np.random.default_rng(seed)
    patients, volumes = {}, {}
    for i in range(number):
        rare = i % 4 == 0
        for k in range(1 + i % 2):
            patients[f"c{i:03}_{k}"] = f"p{i:03}"
            volumes[f"c{i:03}_{k}"] = [generator.lognormal(3, 0.5), 5.0 * rare]
    return patients, volumes


def test_shares_are_nested_and_hold_whole_patients():
    patients, volumes = made_up(50)
    found = nested_shares([*patients], patients, volumes, SHARES, seed=1)
    members = {share: {patients[case] for case in cases} for share, cases in found.items()}
    assert {share: len(names) for share, names in members.items()} == {12: 6, 25: 12, 50: 25, 100: 50}
    for smaller, larger in itertools.pairwise(SHARES):
        assert members[smaller] < members[larger]
    for share, cases in found.items():
        assert list(cases) == sorted(case for case, patient in patients.items() if patient in members[share])
    assert set(found[100]) == set(patients)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_balanced_in_labels(seed):
    """A quarter of all patients has the small label; so it is in a half and a quarter of them, and in 1 to 2 of 6."""
    patients, volumes = made_up(48, seed)
    found = nested_shares([*patients], patients, volumes, SHARES, seed=seed)
    rare = {share: len({patients[c] for c in cases if volumes[c][1]}) for share, cases in found.items()}
    assert rare[50] == 6
    assert rare[25] == 3
    assert 1 <= rare[12] <= 2
    for share in (25, 50):
        mean = np.mean([volumes[case][0] for case in found[share]])
        assert mean == pytest.approx(np.mean([v[0] for v in volumes.values()]), rel=0.1)
        assert len(found[share]) == pytest.approx(len(patients) * share / 100, abs=2)


def test_the_same_cases_give_the_same_shares():
    patients, volumes = made_up(21)
    first = nested_shares([*patients], patients, volumes, SHARES, seed=4)
    backwards = nested_shares([*reversed(patients)], patients, volumes, (50, 12), seed=4)
    assert {share: first[share] for share in (50, 12)} == backwards
    assert nested_shares([*patients], patients, volumes, SHARES, seed=5)[50] != first[50]


def test_few_patients():
    patients, volumes = made_up(3)
    found = nested_shares([*patients], patients, volumes, (1, 50, 100), seed=0)
    assert [len({patients[case] for case in cases}) for cases in found.values()] == [1, 2, 3]
    alone = nested_shares(["a"], {"a": "p"}, {"a": [1.0]}, (12, 100), seed=0)
    assert alone == {12: ("a",), 100: ("a",)}
