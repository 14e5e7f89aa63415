"""Agreement of members, against Dice of whole masks."""

import itertools

import numpy as np
import pytest
import torch

from autoseg.imaging.labels import LabelSet
from autoseg.inference.agreement import AgreementCounter
from rows import feed

TWO = LabelSet({"a": 1, "b": 2})
REGIONS = LabelSet({"oedema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2))


def members(count: int, heads: int, seed=0) -> list[torch.Tensor]:
    """Members alike, but not equal: one field and noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn((heads, 7, 6, 5), generator=generator) * 2
    return [common + torch.randn(common.shape, generator=generator) for _ in range(count)]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_pairwise_dice_is_the_mean_over_pairs_of_folds():
    parts = members(4, 3)
    counter = AgreementCounter(TWO, (0, 1, 2, 3))
    feed([counter], parts)
    labels = [part.argmax(dim=0).numpy() for part in parts]
    for name, index in (("a", 1), ("b", 2)):
        expected = np.mean([dice(x == index, y == index) for x, y in itertools.combinations(labels, 2)])
        assert counter.result().pairwise_dice[name] == pytest.approx(expected)


def test_flips_are_compared_within_their_fold_alone():
    parts = members(4, 3)
    counter = AgreementCounter(TWO, (0, 0, 1, 1))
    feed([counter], parts)
    labels = [part.argmax(dim=0).numpy() for part in parts]
    expected = (dice(labels[0] == 1, labels[1] == 1) + dice(labels[2] == 1, labels[3] == 1)) / 2
    assert counter.result().pairwise_dice["a"] == pytest.approx(expected)


def test_soft_dice_is_that_of_each_folds_own_probabilities():
    parts = members(3, 3)
    counter = AgreementCounter(TWO, (0, 0, 1))
    feed([counter], parts)
    expected = []
    for logits in ((parts[0] + parts[1]) / 2, parts[2]):
        found = logits.softmax(dim=0).numpy()
        mask = found.argmax(axis=0) == 2
        expected.append(2 * (found[2] * mask).sum() / (found[2].sum() + mask.sum()))
    assert counter.result().soft_dice["b"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_regions_overlap():
    parts = members(2, 2)
    counter = AgreementCounter(REGIONS, (0, 1))
    feed([counter], parts)
    first, second = (part.numpy() > 0 for part in parts)
    assert counter.result().pairwise_dice == {
        "whole": pytest.approx(dice(first[0], second[0])), "core": pytest.approx(dice(first[1], second[1]))
    }  # fmt: skip


def test_what_nobody_finds_has_no_score_and_what_one_finds_alone_has_0():
    parts = [torch.zeros((3, 4, 4, 4)) for _ in range(2)]
    for part in parts:
        part[0] = 30.0
    parts[0][1, 2, 2, 2] = 60.0
    counter = AgreementCounter(TWO, (0, 1))
    feed([counter], parts)
    assert counter.result().pairwise_dice == {"a": 0.0}
    assert counter.result().soft_dice == {"a": pytest.approx(0.5)}  # 1 of one fold, 0 of the other


def test_certain_members_that_agree_score_1():
    part = torch.full((3, 4, 4, 4), -40.0)
    part[0], part[1, :2] = 0.0, 40.0
    counter = AgreementCounter(TWO, (0, 1))
    feed([counter], [part, part])
    assert counter.result().pairwise_dice == counter.result().soft_dice == {"a": pytest.approx(1)}


def test_one_member_has_no_pairs():
    counter = AgreementCounter(TWO, (0,))
    feed([counter], members(1, 3))
    assert counter.result().pairwise_dice == {}
    assert set(counter.result().soft_dice) == {"a", "b"}
