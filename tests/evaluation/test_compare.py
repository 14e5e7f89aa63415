"""Two sides case by case: a planted null is called null, a planted shift is found, and nothing is left out silently."""

import numpy as np
import pytest

from autoseg.evaluation.compare import (
    CaseDifference,
    Comparison,
    Presence,
    Scored,
    compare,
    rows_of,
)
from autoseg.evaluation.comparison_text import describe, verdicts
from autoseg.evaluation.evaluate import presence


def metrics(dice: float | None, **more: float | None) -> dict[str, float | None]:
    return {"dice": dice, "precision": dice, "recall": dice, **more}


def side(name: str, labels: dict[str, list[float | None]], **more: object) -> Scored:
    """Dice of cases 0, 1, ... by label."""
    number = len(next(iter(labels.values())))
    cases = {f"c{i:02}": {label: metrics(dice[i]) for label, dice in labels.items()} for i in range(number)}
    return Scored(name, f"{number} cases", cases, **more)  # type: ignore[arg-type]


def random_sides(generator: np.random.Generator, shift: float, cases: int = 24) -> tuple[Scored, Scored]:
    """Two labels; A and B differ by noise, and B by a shift."""
    base = generator.uniform(0.6, 0.8, (2, cases))
    a, b = base + generator.normal(0, 0.02, base.shape), base + shift + generator.normal(0, 0.02, base.shape)
    return tuple(side(name, {"liver": list(v[0]), "spleen": list(v[1])}) for name, v in (("A", a), ("B", b)))


def test_differences_by_hand():
    """B - A is 0.1, 0.2, 0.3: the mean is 0.2, one flip of four is as extreme."""
    result = compare(side("x", {"liver": [0.5, 0.5, 0.5]}), side("y", {"liver": [0.6, 0.7, 0.8]}))
    found = result.labels["liver"]["dice"]
    assert (found.cases, found.patients, found.mean_a, found.mean_b) == (3, 3, 0.5, pytest.approx(0.7))
    assert found.difference == pytest.approx(0.2)
    assert (found.p, found.exact, found.won_a, found.won_b, found.tied) == (0.25, True, 0, 3, 0)
    assert result.better is None
    assert result.mean["dice"] == found
    assert not result.patients_known


def test_the_mean_is_over_the_labels_that_both_have_in_a_case():
    a, b = (
        side("x", {"liver": [0.5, 0.5], "spleen": [0.9, None]}),
        side("y", {"liver": [0.6, 0.6], "spleen": [0.5, 0.3]}),
    )
    result = compare(a, b)
    assert result.mean["dice"].difference == pytest.approx(((0.55 - 0.7) + 0.1) / 2)
    assert result.labels["spleen"]["dice"].cases == 1
    assert result.labels["spleen"]["dice"].unpaired == 1


def test_cases_and_labels_of_one_side_are_named():
    a = Scored("x", "", {"c1": {"liver": metrics(0.5), "l": metrics(0.1)}, "c2": {"liver": metrics(0.5)}})
    b = Scored("y", "", {"c2": {"liver": metrics(0.6)}, "c3": {"liver": metrics(0.5), "r": metrics(0.1)}})
    result = compare(a, b)
    assert (result.cases, result.only_a, result.only_b) == (("c2",), ("c1",), ("c3",))
    assert (result.labels_only_a, result.labels_only_b) == (("l",), ("r",))
    text = describe(result)
    for line in ("only in A: 1 case: c1", "only in B: 1 case: c3", "only in A: 1 label: l", "only in B: 1 label: r"):
        assert line in text
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(a, Scored("z", "", {"c9": {"liver": metrics(0.5)}}))


def test_a_missed_object_counts_the_diagonal():
    """Otherwise A, who misses the liver of c1, would seem better: its other distance is smaller."""
    missed = {"dice": 0.0, "precision": None, "recall": 0.0, "hd95": None}
    a = Scored("x", "", {"c1": {"liver": missed}, "c2": {"liver": metrics(0.9, hd95=1.0)}}, {"c1": 100.0})
    b = Scored("y", "", {c: {"liver": metrics(0.8, hd95=2.0)} for c in ("c1", "c2")})
    found = compare(a, b, metric="hd95").labels["liver"]["hd95"]
    assert (found.mean_a, found.mean_b, found.won_a, found.won_b) == (50.5, 2.0, 1, 1)
    without = Scored(a.name, "", a.cases)
    found = compare(without, b, metric="hd95").labels["liver"]["hd95"]
    assert (found.cases, found.unpaired, found.mean_a, found.won_a) == (1, 1, 1.0, 1)


def test_missed_and_spurious_labels_are_counted():
    absent = dict.fromkeys(("dice", "precision", "recall"))
    spurious = {"dice": 0.0, "precision": 0.0, "recall": None}
    missed = {"dice": 0.0, "precision": None, "recall": 0.0}
    assert [presence(m) for m in (absent, spurious, missed, metrics(0.0), {"hd95": 1.0})] == [
        "absent", "spurious", "missed", "found", "found",
    ]  # fmt: skip
    a = Scored("x", "", {"c1": {"l": absent}, "c2": {"l": missed}, "c3": {"l": metrics(0.5)}, "c4": {"l": absent}})
    b = Scored("y", "", {"c1": {"l": spurious}, "c2": {"l": missed}, "c3": {"l": metrics(0.5)}, "c4": {"l": absent}})
    result = compare(a, b)
    assert result.presence["l"] == Presence(2, 1, 1, 2, 0, 1)
    assert "l: of 2 cases without it, A segments some in 0 and B in 1" in describe(result)
    assert "l: of 2 cases with it, A misses 1 and B 1" in describe(result)


def test_errors_of_volume_are_compared_without_their_sign():
    """-0.3 is a larger error than 0.1; lower is better."""
    a, b = (Scored(n, "", {"c": {"l": metrics(0.5, volume_error=v, own=v)}}) for n, v in (("x", -0.3), ("y", 0.1)))
    found = compare(a, b).labels["l"]
    assert found["volume_error"].difference == pytest.approx(-0.2)
    assert (found["volume_error"].won_a, found["volume_error"].won_b) == (0, 1)
    assert found["own"].won_b is None  # a metric of a plugin: nobody knows which values are better


def test_the_largest_differences_by_name():
    a, b = side("x", {"l": [0.5] * 12}), side("y", {"l": [0.5 + i / 100 * (-1) ** i for i in range(12)]})
    result = compare(a, b)
    assert [d.case for d in result.largest] == [f"c{i:02}" for i in range(11, 1, -1)]
    assert result.largest[1] == CaseDifference("c10", "l", 0.5, 0.6, pytest.approx(0.1), "B")
    assert result.largest[0].better == "A"
    assert (result.mean["dice"].tied, result.mean["dice"].won_b) == (1, 5)


def test_a_planted_shift_is_found_and_a_planted_null_is_not():
    generator = np.random.default_rng(0)
    shifted = compare(*random_sides(generator, 0.03))
    assert shifted.better == "B"
    first, *labels = verdicts(shifted)
    assert first.startswith("mean over labels: B is better by 0.0")
    assert all("p corrected by Holm for 2 labels" in line for line in labels)
    assert len(labels) == 2
    null = compare(*random_sides(generator, 0.0))
    assert null.better is None
    first, second = verdicts(null)
    assert first.startswith("mean over labels: no difference shown in Dice")
    assert "24 patients with this spread show a difference of 0.0" in first
    assert second.startswith("no difference shown in any of 2 labels")
    backwards = compare(*reversed(random_sides(generator, 0.03)))
    assert backwards.better == "A"


def test_a_side_beside_itself_is_the_same():
    one, _ = random_sides(np.random.default_rng(0), 0.0)
    first, _ = verdicts(compare(one, one))
    assert first == "mean over labels: both sides have the same Dice in every case"


def test_smaller_distances_are_better():
    a, b = (
        Scored(name, "", {f"c{i}": {"l": metrics(0.9, hd95=value + i / 100)} for i in range(12)})
        for name, value in (("x", 1.0), ("y", 2.0))
    )
    result = compare(a, b, metric="hd95")
    assert result.better == "A"
    assert verdicts(result)[0].startswith("l: A is better by 1.0000 mm in hd95; B - A is +1.0000 (95 % interval")


def test_too_few_patients_are_named():
    """Ten cases of five patients: no p is below 2^-4."""
    a, b = side("x", {"l": [0.1] * 10}), side("y", {"l": [0.9] * 10})
    result = compare(a, b, {f"c{i:02}": f"p{i % 5}" for i in range(10)})
    assert (result.patients, result.better, result.mean["dice"].p) == (5, None, 0.0625)
    assert any(
        line.startswith("5 patients can never show a difference: p is at least 0.0625") for line in verdicts(result)
    )
    assert "10 cases on both sides, of 5 patients" in describe(result)


def test_rows_for_a_table():
    a, b = side("x", {"l": [0.5, None]}), side("y", {"l": [0.75, 0.2]})
    header, *rows = rows_of(a, b, {"c00": "p"}, compare(a, b, {"c00": "p"}))
    assert header == ["case", "patient", "label", "metric", "a", "b", "difference", "better"]
    assert rows[0] == ["c00", "p", "l", "dice", 0.5, 0.75, 0.25, "B"]
    assert rows[3] == ["c01", "c01", "l", "dice", "", 0.2, "", ""]


@pytest.mark.thorough
def test_labels_together_raise_a_false_alarm_in_one_of_twenty(monkeypatch):
    """Four labels without a difference: uncorrected, one in five comparisons would claim some."""
    for slow in ("detectable", "interval_of_difference"):  # neither decides
        monkeypatch.setattr(f"autoseg.evaluation.compare.{slow}", lambda *args, **options: None)
    generator = np.random.default_rng(1)
    alarms, uncorrected, overall = 0, 0, 0
    for _ in range(400):
        values = generator.normal(0.7, 0.05, (2, 4, 12))
        sides = [side(n, {f"l{k}": list(values[i, k]) for k in range(4)}) for i, n in enumerate("xy")]
        result: Comparison = compare(*sides)
        found = [result.labels[label]["dice"] for label in result.labels]
        alarms += any(one.shown for one in found)
        uncorrected += any(one.p <= 0.05 for one in found)
        overall += result.better is not None
    assert 0.02 <= alarms / 400 <= 0.08  # standard error 0.011
    assert uncorrected / 400 > 0.12
    assert 0.02 <= overall / 400 <= 0.08
