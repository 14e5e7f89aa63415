"""What annotating an image brings: entropies by hand, label by label, whatever the background."""

import csv
import math

import numpy as np
import pytest
import torch

from autoseg.datasets.dataset import Case
from autoseg.evaluation.annotation_value import UncertaintySums, WorthOfImage, describe, ordered, to_csv, worth
from autoseg.imaging.labels import LabelSet
from autoseg.inference.agreement import Agreement
from autoseg.inference.statistics import ExpectedDice

HEADS = LabelSet({"one": 1, "two": 2})


def logits(*probabilities: tuple[float, float, float]) -> torch.Tensor:
    """One member's logits (3, 1, 1, n) of voxels with these probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).T.log().float().reshape(3, 1, 1, -1)


def sums(*members: torch.Tensor) -> UncertaintySums:
    count = len(members)
    found = UncertaintySums(HEADS, list(range(count)), [1 / count] * count)
    found.take(slice(0, 1), members)
    return found


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p) / math.log(3)


def test_entropy_is_weighed_by_the_probability_of_the_label():
    doubtful, clear = (0.5, 0.5, 1e-9), (1e-9, 1.0, 1e-9)
    (e, d, voxels) = sums(logits(doubtful, doubtful, clear)).result()["one"]
    assert voxels == pytest.approx(2)
    assert e == pytest.approx((0.5 + 0.5) * entropy(0.5, 0.5) / 2, rel=1e-4)
    assert d == 0


def test_background_does_not_count_however_much_there_is():
    one, nothing = (0.3, 0.7, 1e-12), (1 - 2e-12, 1e-12, 1e-12)
    few = sums(logits(one, one, one)).result()["one"]
    many = sums(logits(one, one, one, *[nothing] * 1000)).result()["one"]
    assert many == pytest.approx(few, rel=1e-5)
    assert "two" not in sums(logits(one, one, one)).result()  # less than a voxel is expected of it


def test_members_that_contradict_each_other_disagree():
    a, b = logits((1e-9, 1, 1e-9), (1e-9, 1, 1e-9)), logits((1e-9, 1, 1e-9), (1, 1e-9, 1e-9))
    e, d, voxels = sums(a, b).result()["one"]
    assert voxels == pytest.approx(1.5)
    assert d == pytest.approx(0.5 * 1 / 1.5, rel=1e-4)  # one of two voxels, in which one of two members sees the label
    assert e == pytest.approx(0.5 * entropy(0.5, 0.5) / 1.5, rel=1e-4)


def test_rows_add_up():
    part, rest = logits((0.3, 0.6, 0.1), (0.2, 0.4, 0.4)), logits((0.1, 0.8, 0.1), (0.1, 0.1, 0.8))
    whole = sums(torch.cat([part, rest], dim=3)).result()
    pieces = UncertaintySums(HEADS, [0], [1.0])
    pieces.take(slice(0, 1), [part])
    pieces.take(slice(1, 2), [rest])
    for name, found in pieces.result().items():
        assert found == pytest.approx(whole[name], rel=1e-6)


def image(name: str, **labels: float) -> WorthOfImage:
    found = {label: (value, value / 2, 10.0) for label, value in labels.items()}
    return worth(Case(name, name, (f"/{name}.nii.gz",), None), found, Agreement({"one": 0.9}))


def test_labels_count_alike_and_the_least_sure_comes_first(tmp_path):
    order = ordered([image("a", one=0.1, two=0.1), image("b", one=0.02, two=0.3), image("c"), image("d", two=0.5)])
    assert order.by == "entropy"
    assert [(one.case, one.entropy, one.most_uncertain) for one in order.cases] == [
        ("d", 0.5, "two"), ("b", pytest.approx(0.16), "two"), ("a", pytest.approx(0.1), "one"), ("c", 0.0, ""),
    ]  # fmt: skip
    assert order.cases[1].labels["one"].pairwise == pytest.approx(0.1)
    lines = describe(order, 2).splitlines()
    assert lines[1].split() == ["1", "d", "0.500", "0.250", "-", "two", "0.500"]
    assert "... and 2 more images" in lines
    to_csv(order, tmp_path / "order.csv")
    with open(tmp_path / "order.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["case"] for row in rows] == ["d", "b", "b", "a", "a", "c"]
    assert rows[-1]["label"] == ""


def test_the_expected_dice_decides_where_it_was_learnt():
    def expected(agreement):
        dice = agreement.pairwise_dice["one"]
        return {"one": ExpectedDice(dice, 0, 1, 0.9)}, ExpectedDice(dice, 0, 1, 0.9)

    case = Case("a", "a", ("/a.nii.gz",), None)
    poor = worth(case, {"one": (0.1, 0, 5.0)}, Agreement({"one": 0.4}), expected)
    good = worth(Case("b", "b", ("/b.nii.gz",), None), {"one": (0.9, 0, 5.0)}, Agreement({"one": 0.9}), expected)
    order = ordered([good, poor])
    assert (order.by, [one.case for one in order.cases]) == ("expected_dice", ["a", "b"])
    assert order.cases[0].labels["one"].expected_dice == 0.4
    assert ordered([good, poor, image("c", one=0.2)]).by == "entropy"  # not known of all
    assert np.isfinite(order.cases[0].entropy)
