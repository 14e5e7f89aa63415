"""Power laws: planted ones are found again, scipy as oracle, intervals cover, and what cannot be told is admitted."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from autoseg.evaluation.learning_curve import (
    LearningCurve,
    ShareResult,
    at,
    curve_of,
    fit_power_law,
    learning_curve,
)
from autoseg.evaluation.learning_curve_text import describe
from autoseg.records import load, save

SHARES = (12.0, 25.0, 50.0, 100.0)
SIZES = np.array([10.0, 21.0, 42.0, 83.0])


def results(
    generator: np.random.Generator,
    *,
    law: tuple[float, float, float] = (0.9, 0.5, 0.7),
    patients: int = 30,
    noise: float = 0.002,
    folds: int = 1,
    shares: tuple[float, ...] = SHARES,
    case_noise: float = 0.02,
) -> list[ShareResult]:
    """Two labels. Cases differ by 0.05, and by `case_noise` in each training; trainings differ by `noise`."""
    found = []
    for fold in range(folds):
        level = generator.normal(0, 0.05, patients)
        for share, size in zip(SHARES, SIZES, strict=True):
            values = at(law, size) + level + generator.normal(0, noise) + generator.normal(0, case_noise, patients)
            dice = {f"f{fold}_c{i}": {"a": float(v) + 0.01, "b": float(v) - 0.01} for i, v in enumerate(values)}
            if share in shares:
                found.append(ShareResult(share, fold, int(size), int(size) + 3, 250, f"share_{share:g}", dice))
    return found


def test_a_planted_law_is_found_again():
    for a, b, c in ((0.9, 0.5, 0.7), (1.0, 0.4, 0.2), (0.85, 2.0, 1.5)):
        found = fit_power_law(SIZES, at((a, b, c), SIZES)[None])
        assert [part[0] for part in found] == pytest.approx([a, b, c], rel=0.05)
        assert at(found, 166.0)[0] == pytest.approx(at((a, b, c), 166.0), abs=1e-3)


def test_the_fit_is_as_good_as_that_of_scipy():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = at((0.9, 0.5, 0.7), SIZES) + generator.normal(0, 0.01, 4)
        a, b, c = (part[0] for part in fit_power_law(SIZES, values[None]))
        oracle = least_squares(
            lambda law, values=values: at(law, SIZES) - values, (0.9, 0.5, 0.7), bounds=([-9, 0, 0.05], [1, 1e4, 2])
        )
        assert ((at((a, b, c), SIZES) - values) ** 2).sum() <= 2 * oracle.cost + 1e-7  # c is on a grid
        assert 0.05 <= c <= 2
        assert (b >= 0, a <= 1) == (True, True)


def test_dice_never_exceeds_1_and_never_falls():
    rising = np.array([[0.2, 0.5, 0.8, 0.99]])
    assert fit_power_law(SIZES, rising)[0][0] <= 1
    falling = fit_power_law(SIZES, np.array([[0.9, 0.8, 0.7, 0.6]]))
    assert (falling[0][0], falling[1][0]) == (pytest.approx(0.75), 0)
    constant = fit_power_law(SIZES, np.full((1, 4), 0.8))
    assert at(constant, 166.0)[0] == pytest.approx(0.8)


def test_a_clear_curve():
    curve = curve_of(results(np.random.default_rng(1)), {}, ["a", "b"])
    assert curve.unclear == ()
    assert [point.share for point in curve.points] == list(SHARES)
    assert [point.patients for point in curve.points] == SIZES.tolist()
    truth = at((0.9, 0.5, 0.7), 166.0) - at((0.9, 0.5, 0.7), 83.0)
    assert curve.gain.low < truth < curve.gain.high
    assert curve.doubled_patients == 166
    assert curve.doubled.value == pytest.approx(curve.points[-1].dice.value + curve.gain.value, abs=0.01)
    assert not curve.held_back.missed
    assert curve.held_back.share == 100


def test_values_by_hand():
    """Dice of two cases of one patient and one of another; the second label is in one case alone."""
    dice = {"c1": {"a": 0.5}, "c2": {"a": 0.7, "b": 0.9}, "c3": {"a": 0.6}}
    found = [ShareResult(share, 0, n, n, 9, "", dice) for n, share in enumerate((25.0, 50.0, 100.0), 1)]
    mean = curve_of(found, {"c1": "p", "c2": "p", "c3": "q"}, ["a", "b"])
    assert mean.points[0].dice.value == pytest.approx((0.5 + 0.8 + 0.6) / 3)
    assert (mean.points[0].dice.low, mean.points[0].dice.high) == (pytest.approx(0.6), pytest.approx(0.65))
    assert curve_of(found, {}, ["b"]).points[0].dice.value == pytest.approx(0.9)
    assert curve_of(found, {}, ["c"]) is None
    with pytest.raises(ValueError, match="2 shares"):
        curve_of(found[:2], {}, ["a"])


def test_noise_is_not_taken_for_a_curve():
    curve = curve_of(results(np.random.default_rng(3), law=(0.8, 0.0, 1.0), noise=0.02), {}, ["a", "b"])
    assert any("too wide to tell" in reason for reason in curve.unclear)
    curve = curve_of(results(np.random.default_rng(4), law=(0.8, 0.0, 1.0), noise=0.0001), {}, ["a", "b"])
    assert curve.gain.high < 0.01


def test_three_shares_are_not_enough_to_check():
    curve = curve_of(results(np.random.default_rng(5), shares=SHARES[1:]), {}, ["a"])
    assert curve.held_back is None
    assert sum("three shares can always be fitted" in reason for reason in curve.unclear) == 1
    assert sum("one fold cannot show" in reason for reason in curve.unclear) == 1
    several = curve_of(results(np.random.default_rng(5), shares=SHARES[1:], folds=3), {}, ["a"])
    assert not any("one fold" in reason for reason in several.unclear)


def test_a_curve_that_turns_does_not_extrapolate():
    """Steep until half of the patients, and lower at all of them."""
    found = results(np.random.default_rng(6))
    last = found[-1]
    lower = {case: {label: value - 0.1 for label, value in dice.items()} for case, dice in last.dice.items()}
    turned = [*found[:-1], ShareResult(last.share, 0, last.patients, last.cases, 9, "", lower)]
    sure = curve_of([*turned, *_more_folds(turned)], {}, ["a", "b"])
    assert sure.held_back.missed
    assert any("does not extrapolate" in reason for reason in sure.unclear)


def _more_folds(found: list[ShareResult]) -> list[ShareResult]:
    return [
        ShareResult(r.share, fold, r.patients, r.cases, r.steps, "", {f"{fold}{c}": d for c, d in r.dice.items()})
        for fold in (1, 2)
        for r in found
    ]


def test_the_record_and_its_words(tmp_path):
    found = results(np.random.default_rng(7), folds=2)
    patients = {case: case for result in found for case in result.dice}
    curve = learning_curve("3d_fullres", "unet", "250 steps", found, ["a", "b", "c"], patients)
    assert list(curve.labels) == ["a", "b"]
    save(tmp_path / "learning_curve.json", curve)
    assert load(LearningCurve, tmp_path / "learning_curve.json") == curve
    text = describe(curve)
    assert "each share trained for 250 steps; the same 60 held-out cases of fold 0, 1 for all" in text
    assert "twice the patients (166): mean Dice 0." in text
    assert "check: from the smaller shares, the curve expects 0." in text
    assert f"a: twice the patients: {curve.labels['a'].gain.value:+.4f} (95 % interval" in text


@pytest.mark.thorough
@pytest.mark.parametrize(("folds", "least"), [(1, 0.7), (5, 0.85)])
def test_intervals_hold_the_gain(folds, least):
    """Four shares of one fold know their scatter poorly, which is why five folds are better."""
    truth = at((0.9, 0.5, 0.7), 166.0) - at((0.9, 0.5, 0.7), 83.0)
    held, checked, width = 0, 0, []
    for seed in range(60):
        curve = curve_of(results(np.random.default_rng(seed), noise=0.004, folds=folds), {}, ["a"])
        held += curve.gain.low <= truth <= curve.gain.high
        checked += not curve.held_back.missed
        width.append(curve.gain.high - curve.gain.low)
    assert held / 60 >= least
    assert checked / 60 >= least
    assert np.median(width) < 0.05
