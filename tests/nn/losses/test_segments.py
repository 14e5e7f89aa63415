"""Segments by hand, components against a count of one's own, and matchings against all permutations."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoseg.nn.losses.segments import NONE, assign, components, segments_of

RAISED = torch.tensor(
    [
        [
            [1, 1, 0, 0, 1],
            [0, 0, 0, 0, 1],
            [2, 2, 0, 1, 0],
            [2, 9, 9, 0, 0],
        ],
        [
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0],
            [9, 9, 9, 9, 9],
        ],
    ],
    dtype=torch.uint8,
)


def test_every_class_that_occurs_is_a_segment_and_the_background_too():
    found = segments_of(RAISED, 3, ignore_index=9, things=(), most=5)
    assert found.voxels.tolist() == [[10, 5, 3], [15, 0, 0]]
    assert found.classes.tolist() == [[0, 1, 2]] * 2
    assert found.present.tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(found.slots[0].view(4, 5) == NONE, RAISED[0] == 9)
    assert torch.equal(found.slots[0].view(4, 5)[:3], RAISED[0, :3].long())


def test_components_of_things_are_segments_of_their_own():
    found = segments_of(RAISED, 3, ignore_index=9, things=(1,), most=3)
    # 1 has three components: two voxels above left, two on the right, and one that touches these at a corner alone
    assert found.voxels[0].tolist() == [10, 0, 3, 2, 2, 1]
    assert found.classes[0].tolist() == [0, 1, 2, 1, 1, 1]
    assert found.slots[0].view(4, 5)[0].tolist() == [3, 3, 0, 0, 4]
    assert found.voxels[1].tolist() == [15, 0, 0, 0, 0, 0]
    assert not found.present[1, 1:].any()


def test_beyond_the_largest_components_nothing_is_asked():
    found = segments_of(RAISED, 3, ignore_index=9, things=(1, 2), most=2)
    assert found.voxels[0].tolist() == [10, 0, 0, 3, 2]
    assert found.classes[0, 3:].tolist() == [2, 1]
    left_out = (found.slots[0].view(4, 5) == NONE) & (RAISED[0] != 9)
    assert torch.equal(left_out.nonzero(), torch.tensor([[0, 4], [1, 4], [2, 3]]))


def test_a_volume_has_components_along_every_axis():
    target = torch.zeros(1, 3, 3, 3, dtype=torch.long)
    target[0, :, 0, 0] = 1
    target[0, 2, 2, :] = 1
    numbered, classes = components(target, [1], 4)
    assert classes.tolist() == [[1, 1, 0, 0]]
    assert numbered[0, :, 0, 0].unique().numel() == numbered[0, 2, 2].unique().numel() == 1
    assert numbered[0, 0, 0, 0] != numbered[0, 2, 2, 2]
    assert int((numbered > 0).sum()) == 6


def cheapest(cost):
    """Least sum of any assignment of rows to the columns of a small matrix (Q, S), tried one by one."""
    queries, segments = cost.shape
    if queries < segments:
        return cheapest(cost.T)
    return min(
        sum(float(cost[q, s]) for s, q in enumerate(chosen))
        for chosen in itertools.permutations(range(queries), segments)
    )


@pytest.mark.parametrize(("queries", "segments"), [(1, 1), (4, 4), (5, 2), (3, 5), (6, 4)])
def test_a_matching_is_the_cheapest_of_all(queries, segments):
    generator = torch.Generator().manual_seed(queries)
    cost = torch.randn(20, queries, segments, generator=generator)
    found = assign(cost, torch.ones(20, segments, dtype=torch.bool))
    for costs, chosen in zip(cost, found, strict=True):
        taken = chosen[chosen != NONE]
        assert len(taken) == min(queries, segments) == len(taken.unique())
        total = sum(float(costs[q, s]) for s, q in enumerate(chosen.tolist()) if q != NONE)
        assert total == pytest.approx(cheapest(costs), abs=1e-5)


def test_greedy_would_be_dearer():
    cost = torch.tensor([[[1.0, 2.0], [1.5, 9.0]]])  # the cheapest pair alone leaves 9 for the other
    assert assign(cost, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[1, 0]]


def test_empty_slots_get_no_query():
    cost = torch.tensor([[[5.0, -9.0, 1.0], [2.0, -9.0, 4.0]], [[0.0, 0.0, 0.0]] * 2])
    present = torch.tensor([[True, False, True], [False, False, False]])
    assert assign(cost, present).tolist() == [[1, NONE, 0], [NONE, NONE, NONE]]


def test_a_cost_that_is_not_a_number_ends_nothing():
    cost = torch.tensor([[[float("nan"), 1.0], [float("inf"), 2.0]]])
    assert sorted(assign(cost, torch.ones(1, 2, dtype=torch.bool))[0].tolist()) == [0, 1]


def test_without_content_shapes_are_known():
    with FakeTensorMode():
        target = torch.empty(2, 4, 5, dtype=torch.uint8)
        found = segments_of(target, 3, ignore_index=9, things=(1,), most=7)
        assert (found.slots.shape, found.classes.shape, found.voxels.shape) == ((2, 20), (2, 10), (2, 10))
        matched = assign(torch.empty(6, 8, 10), torch.empty(6, 10, dtype=torch.bool))
        assert (matched.shape, matched.dtype) == ((6, 10), torch.int64)


@pytest.mark.thorough
@pytest.mark.parametrize("operator", [components, assign])
def test_torchs_own_check_of_operators(operator):
    sample = {
        components: (RAISED, [1, 2], 4),
        assign: (torch.randn(3, 5, 4), torch.ones(3, 4, dtype=torch.bool)),
    }[operator]
    torch.library.opcheck(operator, sample)
