"""Statistics of a cross-validation: by hand, and against numpy."""

import csv

import numpy as np
import pytest

from autoseg.errors import UsageError
from autoseg.evaluation.evaluate import CaseScore, summarise, summary_of
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.evaluation.statistics import (
    Bands,
    find_flags,
    interval_table,
    mean_over_cases,
    verdict_in_words,
    write_statistics,
)


def score(case: str, organ, lesion=None) -> CaseScore:
    return CaseScore(case, ((1,),), {"organ": {"dice": organ}, "lesion": {"dice": lesion}})


def test_pooled_by_hand():
    """0, 2, 4, 6: mean 3, std of the four √5, median 3, quartiles 1.5 and 4.5."""
    found = summary_of([0.0, 2.0, None, 4.0, 6.0], ["p", "q", "q", "r", "s"])
    assert (found.defined, found.undefined, found.patients) == (4, 1, 4)
    assert (found.mean, found.median, found.quartiles) == (3, 3, (1.5, 4.5))
    assert found.std == pytest.approx(5**0.5)
    assert found.interval == interval_of_mean([0.0, 2.0, 4.0, 6.0], ["p", "q", "r", "s"])


def test_an_interval_needs_two_patients():
    found = summary_of([0.5, 0.7], ["p", "p"])
    assert (found.interval, found.mean) == (None, pytest.approx(0.6))
    assert summary_of([None], ["p"]).mean is None


def test_scans_of_one_patient_are_not_independent():
    """Twenty equal scans of each of five patients: the interval is that of five values, not of a hundred."""
    rng = np.random.default_rng(0)
    of_patients = rng.uniform(0.5, 1, 5)
    values = np.repeat(of_patients, 20).tolist()
    grouped = summary_of(values, [str(n // 20) for n in range(100)])
    alone = summary_of(values, [str(n) for n in range(100)])
    five = summary_of(of_patients.tolist(), list("abcde"))
    assert grouped.interval == pytest.approx(five.interval)
    assert np.ptp(grouped.interval) > 3 * np.ptp(alone.interval)


def test_the_mean_over_labels_is_taken_case_by_case():
    cases = [score("a", 1.0, 0.5), score("b", 0.5), score("c", None)]
    mean = mean_over_cases(cases, {"a": "P", "b": "Q"})
    assert mean.mean == pytest.approx((0.75 + 0.5) / 2)
    assert (mean.defined, mean.undefined) == (2, 1)
    assert summarise(cases)["lesion"]["dice"].defined == 1


def test_verdicts():
    bands = Bands()
    assert [bands.of(dice) for dice in (0.81, 0.8, 0.5, 0.49, None)] == ["good", "fair", "fair", "poor", "unknown"]
    assert Bands(0.95, 0.9).of(0.81) == "poor"
    with pytest.raises(UsageError, match=r"poor below 0\.9 and good above 0\.8"):
        Bands(0.8, 0.9)


def test_verdict_in_words():
    cases = [score("a", 0.9, 0.2), score("b", 0.9, 0.3)]
    table, mean = summarise(cases, {}), mean_over_cases(cases, {})
    words = verdict_in_words(table, mean, Bands())
    assert words == (
        "verdict: fair, mean Dice 0.575 (good is above 0.8, poor below 0.5). good: organ (0.90); poor: lesion (0.25)"
    )
    shown = interval_table(table, mean, Bands())
    assert [line.split()[-1] for line in shown.splitlines()[2:]] == ["good", "poor", "fair"]


def test_what_failed_is_flagged():
    folds = {
        0: [score(f"a{n}", 0.9 + n / 100, 0.8) for n in range(5)],
        1: [score(f"b{n}", 0.9 + n / 100, 0.1) for n in range(5)],  # the lesion failed here
        2: [score(f"c{n}", 0.2, 0.0) for n in range(5)],  # all of it
    }
    flags = find_flags(folds, {}, Bands())
    assert [(flag.fold, flag.label) for flag in flags] == [(None, "lesion"), (2, None)]
    flags = find_flags({**folds, 1: folds[0], 2: folds[1]}, {}, Bands())
    assert [(flag.fold, flag.label) for flag in flags] == [(2, None), (2, "lesion")]
    assert flags[0].what == "fold 2 is behind: mean Dice 0.510, 0.860 in the other folds"
    assert flags[1].what == "lesion failed in fold 2: mean Dice 0.100, 0.800 in the other folds"


def test_equal_folds_raise_no_flag():
    rng = np.random.default_rng(0)
    folds = {fold: [score(f"{fold}{n}", rng.normal(0.85, 0.03), 0.8) for n in range(20)] for fold in range(5)}
    assert find_flags(folds, {}, Bands()) == []


def test_a_label_nobody_has():
    flags = find_flags({0: [score("a", 0.9)]}, {}, Bands())
    assert [flag.what for flag in flags] == ["lesion: no reference and no segmentation contains it"]


def test_the_table_as_csv(tmp_path):
    folds = {0: [score("a", 1.0, 0.5)], 1: [score("b", 0.5)]}
    cases = [case for fold in folds.values() for case in fold]
    per_fold = {str(fold): summarise(own) for fold, own in folds.items()}
    write_statistics(tmp_path / "crossval.csv", summarise(cases, {}), mean_over_cases(cases, {}), per_fold)
    with open(tmp_path / "crossval.csv", newline="") as file:
        rows = {(row["fold"], row["label"]): row for row in csv.DictReader(file)}
    assert float(rows["all", "organ"]["mean"]) == 0.75
    assert float(rows["all", "organ"]["median"]) == 0.75
    assert float(rows["all", "mean over labels"]["mean"]) == pytest.approx((0.75 + 0.5) / 2)
    assert (rows["1", "organ"]["mean"], rows["1", "organ"]["low"], rows["1", "lesion"]["mean"]) == ("0.5", "", "")
