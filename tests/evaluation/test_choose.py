"""What is accepted, out of fold and beyond chance: a planted improvement is, a planted null is not."""

import numpy as np
import pytest

from autoseg.evaluation.choose import HeldOutCases, Tried, judged, mean_dice, out_of_fold, recall, try_out
from autoseg.evaluation.margins import MarginCounter
from autoseg.evaluation.thresholds import Scorer, choose_offsets
from autoseg.imaging.labels import LabelSet

LABELS = LabelSet({"organ": 1, "lesion": 2})


def held_out(count: int = 50, folds: int = 5) -> HeldOutCases:
    cases = tuple(f"c{n}" for n in range(count))
    return HeldOutCases(cases, np.array([str(n % folds) for n in range(count)]), cases)


def tried(scores, baseline, names=None) -> Tried:
    scores = np.atleast_2d(scores)
    return Tried("components", "organ", names or tuple(f"n{i}" for i in range(len(scores))), scores, baseline)


def test_dice_and_recall_by_hand():
    """Reference: 4 organ, 0 lesion; segmented: 3 organ of which 2 are right, 1 false lesion."""
    confusion = np.array([[10, 1, 1], [2, 2, 0], [0, 0, 0]])
    assert mean_dice(confusion, LABELS) == pytest.approx((4 / 7 + 0) / 2)
    assert recall(confusion, LABELS, "organ") == 0.5
    assert np.isnan(recall(confusion, LABELS, "lesion"))
    confusion[0] = [11, 1, 0]  # without the false lesion
    assert mean_dice(confusion, LABELS) == pytest.approx((4 / 7 + 1) / 2)


def test_a_true_improvement_is_accepted():
    rng = np.random.default_rng(0)
    baseline = rng.uniform(0.7, 0.9, 50)
    better = baseline + rng.normal(0.02, 0.02, 50)
    choice, at = try_out(tried([better], baseline), held_out(), 4)
    assert (choice.accepted, at, choice.reason) == (True, 0, "better beyond chance")
    assert choice.change == pytest.approx((better - baseline).mean())
    assert 0 < choice.low < choice.change < choice.high
    assert choice.level == pytest.approx(1 - 0.05 / 4)


def test_nulls_are_refused():
    """Candidates that differ from the baseline by noise: the best of many looks good on the cases it was chosen on."""
    accepted = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        baseline = rng.uniform(0.7, 0.9, 50)
        noise = baseline + rng.normal(0, 0.03, (30, 50))
        assert (noise.mean(axis=1) > baseline.mean()).any()
        choice, at = try_out(tried(noise, baseline), held_out(), 1)
        assert choice.accepted == (at >= 0)
        accepted += choice.accepted
    assert accepted <= 4  # 2.5 % are expected


def test_without_nesting_the_nulls_would_be_accepted():
    """The reason for choosing out of fold: scored on the cases that it was chosen on, noise passes."""
    accepted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        baseline = rng.uniform(0.7, 0.9, 50)
        noise = baseline + rng.normal(0, 0.03, (30, 50))
        chosen = noise[np.argmax(noise.mean(axis=1))]
        accepted += judged(tried(noise, baseline), chosen, held_out(), 1, "best").accepted
    assert accepted >= 6  # of 20; out of fold, 1 of 40 is expected


def test_the_candidate_of_a_fold_is_chosen_on_the_others():
    """One candidate helps the cases of fold 0 alone: on the others it harms, so it is not used for fold 0."""
    held = held_out(10, 2)
    inside = held.groups == "0"
    baseline = np.full(10, 0.5)
    only_here = np.where(inside, 0.9, 0.4)
    np.testing.assert_array_equal(out_of_fold(tried([only_here], baseline), held), np.where(inside, 0.5, 0.4))


def test_scans_of_one_patient_do_not_make_a_choice_sure():
    """Fifty scans of two patients, one of which is better by chance."""
    cases = tuple(f"c{n}" for n in range(50))
    held = HeldOutCases(cases, np.array([str(n % 5) for n in range(50)]), tuple("ab"[n // 25] for n in range(50)))
    baseline = np.full(50, 0.7)
    better = baseline + np.repeat([0.04, -0.01], 25)
    assert not try_out(tried([better], baseline), held, 1)[0].accepted
    assert try_out(tried([better], baseline), held_out(), 1)[0].accepted


def test_nothing_to_try_and_nothing_better():
    baseline = np.full(50, 0.7)
    choice, at = try_out(tried(np.empty((0, 50)), baseline, ()), held_out(), 1)
    assert (choice.accepted, at, choice.reason) == (False, -1, "there is nothing to change")
    choice, at = try_out(tried([baseline - 0.1], baseline), held_out(), 1)
    assert (choice.accepted, choice.reason) == (False, "no candidate is better on the held-out cases")


# ---- offsets


def tables(shift: float, count: int = 30, noise: float = 1.0):
    """Cases whose lesion logit is too low by `shift` for the decision that is best."""
    import torch

    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        reference = rng.choice(3, (6, 8, 8), p=[0.7, 0.2, 0.1]).astype(np.int16)
        logits = np.stack([3.0 * (reference == k) for k in range(3)]) + rng.normal(0, noise, (3, 6, 8, 8))
        logits[2] -= shift
        counter = MarginCounter(LABELS, reference, {0: 0}, np.zeros(3, np.int64))
        counter.take(slice(0, 6), [torch.tensor(logits, dtype=torch.float32)])
        found.append(counter.result())
    return found


def test_a_label_that_is_found_too_rarely_gets_its_offset():
    scorer, held = Scorer(tables(2.5), LABELS, LABELS), held_out(30)
    offsets, choices = choose_offsets(scorer, held, {}, ["lesion"])
    assert 1.5 < offsets["lesion"] < 3.5
    (choice,) = choices
    assert choice.accepted
    assert choice.after == pytest.approx(scorer.dice(offsets).mean(), abs=0.01)
    assert choice.before == pytest.approx(scorer.dice({}).mean())


def test_the_best_offset_of_sound_logits_is_refused_or_tiny():
    """Priors are in the noise: what is best here is near 0, and gains less than a tenth of what a shift costs."""
    scorer = Scorer(tables(0.0), LABELS, LABELS)
    offsets, _ = choose_offsets(scorer, held_out(30), {}, ["organ", "lesion"])
    gain = scorer.dice(offsets).mean() - scorer.dice({}).mean()
    shifted = Scorer(tables(2.5), LABELS, LABELS)
    assert gain < 0.1 * (scorer.dice({}).mean() - shifted.dice({}).mean())


def test_a_recall_target_is_reached_on_cases_that_had_no_part_in_it():
    scorer = Scorer(tables(1.5), LABELS, LABELS)
    offsets, choices = choose_offsets(scorer, held_out(30), {"lesion": 0.95}, [])
    (choice,) = choices
    assert choice.accepted
    assert choice.metric == "recall"
    assert choice.before < 0.8
    assert abs(choice.after - 0.95) < 0.03
    _, found = scorer.along("lesion", [offsets["lesion"], offsets["lesion"] - 0.25], {})
    assert found[0].mean() >= 0.95 > found[1].mean()
    assert choice.cost is not None


def test_a_recall_that_is_reached_or_cannot_be():
    sound = Scorer(tables(-3.0), LABELS, LABELS)
    offsets, (choice,) = choose_offsets(sound, held_out(30), {"lesion": 0.5}, [])
    assert (offsets, choice.accepted, choice.reason) == ({}, False, "it is reached without an offset")
    hopeless = Scorer(tables(12.0), LABELS, LABELS)
    offsets, (choice,) = choose_offsets(hopeless, held_out(30), {"lesion": 0.95}, [])
    assert (offsets, choice.accepted) == ({}, False)
    assert choice.reason.startswith("not reached: ")


def test_along_is_the_same_as_rule_by_rule():
    scorer = Scorer(tables(1.0, 4), LABELS, LABELS)
    dice, _ = scorer.along("organ", [-2.0, 0.5, 3.0], {"lesion": 1.0})
    for row, offset in zip(dice, [-2.0, 0.5, 3.0], strict=True):
        np.testing.assert_allclose(row, scorer.dice({"organ": offset, "lesion": 1.0}))
