"""Scores by group: means by hand, deals that can be enumerated, planted gaps found and none invented."""

import itertools
import math

import numpy as np
import pytest

from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.groups import CHANCE, DEALS, MEAN, GroupScores, compare, describe, largest_gap
from autoseg.records import load, save


def score(case, organ, lesion=None):
    return CaseScore(case, ((1, 0), (0, 1)), {"organ": {"dice": organ}, "lesion": {"dice": lesion}})


SCORES = [score("a", 0.9, 0.5), score("b", 0.7), score("c", 0.6, 0.1), score("d", 0.4, 0.3), score("e", 0.2)]
GROUPS = {"oslo": ["a", "b"], "bern": ["c", "d", "unscored"]}
PATIENTS = {"a": "p1", "b": "p2", "c": "p3", "d": "p3", "e": "p4", "unscored": "p5"}


def test_means_by_hand():
    """Oslo: organ 0.8, lesion 0.5 of one case; mean over labels (0.7 + 0.7) / 2. Bern: 0.5, 0.2, 0.35; one patient."""
    table = compare(SCORES, GROUPS, PATIENTS, "site")
    shown = {label: [(m.group, m.cases, m.patients, m.mean) for m in means] for label, means in table.labels.items()}
    assert shown["organ"] == [("oslo", 2, 2, pytest.approx(0.8)), ("bern", 2, 1, pytest.approx(0.5))]
    assert shown["lesion"] == [("oslo", 1, 1, 0.5), ("bern", 2, 1, pytest.approx(0.2))]
    assert shown[MEAN] == [("oslo", 2, 2, pytest.approx(0.7)), ("bern", 2, 1, pytest.approx(0.35))]
    assert table.labels["organ"][0].interval == pytest.approx((0.7, 0.9))
    assert table.labels["organ"][1].interval is None
    assert table.without == ("e",)
    gap = table.gaps["organ"]
    assert (gap.best, gap.worst, gap.difference) == ("oslo", "bern", pytest.approx(0.3))


def test_a_single_label_has_no_further_mean_and_an_absent_one_no_gap():
    one = [CaseScore(s.case, s.confusion, {"organ": s.scores["organ"]}) for s in SCORES]
    assert [*compare(one, GROUPS, PATIENTS, "site").labels] == ["organ"]
    nowhere = [score("a", 0.9), score("c", None)]
    table = compare(nowhere, GROUPS, PATIENTS, "site")
    assert table.gaps == {"organ": None, "lesion": None, MEAN: None}
    assert [m.mean for m in table.labels["organ"]] == [0.9, None]
    assert "organ: fewer than two groups have a Dice" in describe(table)


def test_p_is_the_share_of_deals_with_a_gap_as_large():
    """All 70 deals of eight patients to two groups of four, enumerated; the estimate is within four deviations."""
    values = [0.1, 0.2, 0.35, 0.6, 0.5, 0.65, 0.8, 0.9]
    observed = np.mean(values[4:]) - np.mean(values[:4])
    gaps = [
        abs(np.mean([values[i] for i in chosen]) - np.mean([v for i, v in enumerate(values) if i not in chosen]))
        for chosen in itertools.combinations(range(8), 4)
    ]
    share = np.mean([gap >= observed - 1e-12 for gap in gaps])
    assert len(gaps) == 70
    gap = largest_gap(values, ["a"] * 4 + ["b"] * 4, range(8))
    assert (gap.best, gap.worst, gap.difference) == ("b", "a", pytest.approx(observed))
    assert gap.p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / DEALS))


def test_patients_are_dealt_whole():
    """Twenty cases of two patients each way: as cases the gap is certain, as four patients it is one deal of three."""
    values = [0.9] * 20 + [0.5] * 20
    groups = ["a"] * 20 + ["b"] * 20
    assert largest_gap(values, groups, range(40)).beyond_chance
    gap = largest_gap(values, groups, [i // 10 for i in range(40)])
    assert gap.p == pytest.approx(1 / 3, abs=0.03)


def test_groups_of_one_patient_have_no_p():
    gap = largest_gap([0.9, 0.8, 0.5], ["a", "a", "b"], ["p", "p", "q"])
    assert (gap.difference, gap.p, gap.beyond_chance) == (pytest.approx(0.35), None, False)
    assert largest_gap([0.9, 0.8], ["a", "a"], ["p", "q"]) is None


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [2, 5])
def test_a_null_is_called_beyond_chance_as_rarely_as_it_says(groups):
    """Of 200 columns that mean nothing, about 5 % are; more groups do not make it more."""
    random = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        values = random.normal(0.8, 0.1, 40)
        home = random.permutation(np.arange(40) % groups).astype(str)
        called += largest_gap(values, [*home], range(40)).beyond_chance
    assert called <= 200 * CHANCE + 4 * math.sqrt(200 * CHANCE * (1 - CHANCE))
    assert called >= 1


def test_a_planted_gap_is_found_and_shown(tmp_path):
    """One site of four loses 0.1 where Dice varies by 0.05."""
    random = np.random.default_rng(1)
    sites = {f"s{i}": [f"s{i}_{j}" for j in range(12)] for i in range(4)}
    scores = [
        CaseScore(case, ((1,),), {"organ": {"dice": float(random.normal(0.85 - 0.1 * (site == "s2"), 0.05))}})
        for site, cases in sites.items()
        for case in cases
    ]
    table = compare(scores, sites, {s.case: s.case for s in scores}, "site")
    assert table.gaps["organ"].worst == "s2"
    assert table.gaps["organ"].beyond_chance
    lines = describe(table).splitlines()
    assert lines[0].split() == ["site", "label", "Dice", "95", "%", "interval", "cases", "patients"]
    assert lines[4].split()[:2] == ["s2", "organ"]
    assert lines[4].split()[-2:] == ["12", "12"]
    assert lines[-1].endswith("down to s2: beyond chance (p below 0.001)")
    record = GroupScores(1, "2d", "unet", "dice", (table,))
    save(tmp_path / "groups.json", record)
    assert load(GroupScores, tmp_path / "groups.json") == record
