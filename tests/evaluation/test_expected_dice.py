"""Expected Dice: lines and residuals by hand, and coverage of cases made so that it is known."""

import numpy as np
import pytest

from autoseg.errors import StateError
from autoseg.evaluation.expected_dice import (
    LEAST_CASES,
    ExpectedDiceRecord,
    ScoredCase,
    calibrate,
    describe,
    described,
    digest_of,
    fit,
    groups_of,
)
from autoseg.inference.agreement import Agreement
from autoseg.records import load, save

PAIRS, SOFT = "pairwise_dice", "soft_dice"


def made_up(count: int, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores, Dice = 0.1 + 0.8 score and noise in proportion to 1 - Dice, and five groups."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(8, 2, count)
    expected = 0.1 + 0.8 * scores
    dice = np.clip(expected + (1 - expected) * rng.normal(0, noise, count), 0, 1)
    return scores, dice, [f"fold {n % 5}" for n in range(count)]


def cases_of(count: int, seed: int = 0, soft_noise: float = 0.0) -> list[ScoredCase]:
    scores, dice, groups = made_up(count, seed)
    blur = np.clip(scores + np.random.default_rng(9).normal(0, soft_noise, count), 0, 1)
    return [
        ScoredCase(f"c{n}", groups[n], groups[n][-1], {PAIRS: {"a": scores[n]}, SOFT: {"a": blur[n]}}, {"a": dice[n]})
        for n in range(count)
    ]


def record_of(cases, **changes) -> ExpectedDiceRecord:
    return calibrate("3d_fullres", "unet", cases, **({"options": "step 0.5", "weights": {"0": "x"}} | changes))


def test_a_line_without_noise_is_found():
    scores = np.linspace(0.5, 1, 25)
    line = fit(scores, 0.2 + 0.7 * scores, [f"fold {n % 5}" for n in range(25)])
    assert (line.intercept, line.slope) == (pytest.approx(0.2), pytest.approx(0.7))
    assert (line.low, line.high, line.mean_error) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (line.correlation, line.measured_coverage) == (pytest.approx(1), 1.0)
    assert line.at(0.9).dice == pytest.approx(0.83)


def test_a_score_that_misleads_is_not_used():
    scores = np.linspace(0.5, 1, 25)
    line = fit(scores, 1 - 0.5 * scores, [f"fold {n % 5}" for n in range(25)])
    assert (line.intercept, line.slope) == (pytest.approx(1 - 0.5 * 0.75), 0.0)


def test_residuals_are_those_of_other_groups_and_their_ends_are_corrected_for_their_number():
    """Constant scores: the line through the others is their mean. 39 cases of 0.5 in two groups, and one of 0.9.

    In the odd one's group, others are all 0.5: 39 residuals, of which one is 0.4 / 0.5. In the other group, the mean of
    the others is 0.5 + 0.4 / 20 = 0.52: residuals of -0.02 / 0.48. Of 40 residuals, the interval ends at numbers
    41 x 0.05 = 2.05 and 41 x 0.95 = 38.95, counted from 1, on a line between neighbours.
    """
    dice = np.full(40, 0.5)
    dice[0] = 0.9
    line = fit(np.full(40, 0.8), dice, ["g", "h"] * 20)
    assert line.intercept == pytest.approx(0.51)
    assert line.low == pytest.approx(-0.02 / 0.48)
    assert line.high == pytest.approx(0)
    assert line.correlation is None


def test_twenty_cases_use_their_extremes():
    scores, dice, groups = made_up(20)
    line = fit(scores, dice, groups)
    inside = [line.at(score).low <= true <= line.at(score).high for score, true in zip(scores, dice, strict=True)]
    assert np.mean(inside) >= 0.9


@pytest.mark.thorough
@pytest.mark.parametrize("count", [40, 160])
def test_new_cases_are_held_as_often_as_promised(count):
    """Over 200 calibrations of one world: at least 90 % of new cases, and not many more; the measured share agrees."""
    held, measured = [], []
    for seed in range(200):
        line = fit(*made_up(count, seed))
        scores, dice, _ = made_up(50, 10_000 + seed)
        made = [line.at(float(score)) for score in scores]
        held.append(np.mean([m.low <= true <= m.high for m, true in zip(made, dice, strict=True)]))
        measured.append(line.measured_coverage)
    assert 0.89 < np.mean(held) < 0.95
    assert np.mean(measured) == pytest.approx(np.mean(held), abs=0.03)


def test_poor_segmentations_get_wider_intervals():
    line = fit(*made_up(160))
    poor, good = line.at(0.4), line.at(0.95)
    assert poor.high - poor.low > 2 * (good.high - good.low)
    assert 0 <= poor.low <= poor.dice <= poor.high <= 1


def test_the_better_score_is_chosen():
    assert record_of(cases_of(60, soft_noise=0.2)).score == PAIRS
    swapped = [
        ScoredCase(c.case, c.group, c.fold, {PAIRS: c.scores[SOFT], SOFT: c.scores[PAIRS]}, c.dice)
        for c in cases_of(60, soft_noise=0.2)
    ]
    assert record_of(swapped).score == SOFT


def test_without_flips_there_is_one_score():
    cases = [ScoredCase(c.case, c.group, c.fold, {PAIRS: {}, SOFT: c.scores[SOFT]}, c.dice) for c in cases_of(30)]
    assert record_of(cases).score == SOFT


def test_too_few_cases_are_refused():
    with pytest.raises(StateError, match="19 held-out cases: an interval that holds 90% of them needs 20 or more"):
        record_of(cases_of(LEAST_CASES - 1))
    blank = [ScoredCase(c.case, c.group, c.fold, {PAIRS: {}, SOFT: {}}, c.dice) for c in cases_of(30)]
    with pytest.raises(StateError, match="fewer than 20 of 30 held-out cases have both"):
        record_of(blank)


def test_a_rare_label_is_refused_and_the_others_are_not():
    rare = [
        ScoredCase(c.case, c.group, c.fold, c.scores, c.dice | ({"rare": 0.5} if n < 5 else {}))
        for n, c in enumerate(cases_of(30))
    ]
    record = record_of(rare)
    assert list(record.labels) == ["a"]
    assert record.refused == {"rare": "0 of 30 cases have a Dice and a score, 20 are needed"}
    assert "note: rare: 0 of 30" in describe(record)


def test_the_record_survives_its_file_and_expects(tmp_path):
    record = record_of(cases_of(60))
    save(tmp_path / "expected_dice.json", record)
    assert load(ExpectedDiceRecord, tmp_path / "expected_dice.json") == record
    labels, mean = record.expected(Agreement({"a": 0.9, "new": 0.3}, {}))
    assert labels == {"a": record.labels["a"].at(0.9)}
    assert mean == record.mean.at(0.6)
    assert record.expected(Agreement({}, {})) == ({}, None)


def test_groups_are_folds_or_patients():
    five = [(f"c{n}", str(n % 5), f"p{n}") for n in range(10)]
    assert groups_of(five)["c7"] == "fold 2"
    one = [(f"c{n}", "0", f"p{n // 2}") for n in range(20)]  # two cases of each patient
    found = groups_of(one)
    assert len(set(found.values())) == 5
    assert all(found[f"c{n}"] == found[f"c{n + 1}"] for n in range(0, 20, 2))


def test_words_and_digests_differ_where_they_must():
    assert described(0.5, (0, 1), None) != described(0.5, (0,), None) != described(0.75, (0,), None)
    zeros = {"w": np.zeros((2, 3), np.float32)}
    assert digest_of(zeros) == digest_of({"w": np.zeros((2, 3), np.float32)})
    assert digest_of(zeros) != digest_of({"w": np.zeros((3, 2), np.float32)}) != digest_of({"v": zeros["w"]})
