"""Deep supervision: weights of the stages, targets and voxel weights taken at the centres of coarse voxels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoseg.nn.deep_supervision import stage_weights
from autoseg.nn.losses import LOSSES, DeepSupervision, _shrink

QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def dice_ce():
    return LOSSES["dice_ce"](ignore_index=None, class_weights=None, batch_dice=True)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (1, [1]),
        (2, [1, 0]),
        (3, [1 / 1.5, 0.5 / 1.5, 0]),
        (5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0]),
    ],
)
def test_stage_weights_by_hand(stages, expected):
    assert stage_weights(stages) == pytest.approx(expected)


class MeanDifference(nn.Module):
    """A loss that shows its target: mean of target - first head."""

    def forward(self, logits, target):
        return (target - logits[:, 0]).float().mean()


def test_deep_supervision_is_the_weighted_sum_over_shrunken_targets():
    target = torch.arange(64.0).reshape(1, 8, 8)
    logits = [torch.zeros(1, 2, 8, 8), torch.full((1, 2, 4, 4), 7.0), torch.full((1, 2, 2, 2), torch.nan)]
    # finest: mean of 0..63 = 31.5; next: rows and columns 1, 3, 5, 7, mean 8 * 4 + 4 = 36, minus 7; coarsest: not used
    expected = (31.5 + 0.5 * (36 - 7)) / 1.5
    assert DeepSupervision(MeanDifference())(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_deep_supervision_of_one_stage_is_the_loss_itself():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    assert torch.equal(DeepSupervision(dice_ce())([logits], target), dice_ce()(logits, target))


def test_voxel_weights_shrink_with_the_target():
    logits = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    target, weights = torch.randint(0, 3, (2, 8, 8)), torch.rand(2, 8, 8)
    fine = dice_ce()(logits[0], target, weights)
    coarse = dice_ce()(logits[1], target[:, 1::2, 1::2], weights[:, 1::2, 1::2])
    assert DeepSupervision(dice_ce())(logits, target, weights).item() == pytest.approx(
        (2 * fine.item() + coarse.item()) / 3, abs=1e-6
    )


def test_shrinking_picks_the_voxel_past_the_centre():
    line = torch.arange(12)[None]
    assert _shrink(line, (6,)).tolist() == [[1, 3, 5, 7, 9, 11]]
    assert _shrink(line, (4,)).tolist() == [[1, 4, 7, 10]]  # the centre itself
    assert _shrink(line, (3,)).tolist() == [[2, 6, 10]]
    assert _shrink(line, (1,)).tolist() == [[6]]
    assert _shrink(line, (12,)).tolist() == line.tolist()


def test_shrinking_of_odd_edges_stays_inside_the_image():
    line = torch.arange(21)[None]
    assert _shrink(line[:, :9], (5,)).tolist() == [[1, 3, 5, 7, 8]]  # the last coarse voxel covers 8 and nothing more
    assert _shrink(line[:, :10], (3,)).tolist() == [[2, 6, 9]]  # steps of 4: the centre of 8 .. 11 is outside
    assert _shrink(line[:, :7], (2,)).tolist() == [[2, 6]]
    assert _shrink(line, (6,)).tolist() == [[2, 6, 10, 14, 18, 20]]
    assert _shrink(line[:, :3], (1,)).tolist() == [[1]]
    assert _shrink(line[:, :3], (2,)).tolist() == [[1, 2]]
    # both axes on their own: rows 1, 2 and columns 1, 3, 4 of three rows of five
    assert _shrink(line[:, :15].reshape(1, 3, 5), (2, 3)).tolist() == [[[6, 8, 9], [11, 13, 14]]]


@QUICK
@given(st.sampled_from([2, 3, 4]), st.integers(1, 40))
def test_shrinking_of_any_edge_takes_the_voxel_nearest_the_centre(step, beyond):
    edge = step * (step - 1) + beyond  # long enough to tell the step from both edges
    coarse = math.ceil(edge / step)
    covered = [range(i * step, min(edge, (i + 1) * step)) for i in range(coarse)]
    nearest = [
        min(places, key=lambda p, i=i: (abs(p + 0.5 - (i + 0.5) * step), -p)) for i, places in enumerate(covered)
    ]
    assert _shrink(torch.arange(edge)[None], (coarse,))[0].tolist() == nearest


@QUICK
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 8])), min_size=2, max_size=3),
    st.integers(1, 2),
)
def test_shrinking_against_plain_indexing(axes, batch):
    shape = tuple(edge for edge, _ in axes)
    fine = tuple(edge * step for edge, step in axes)
    target = torch.arange(batch * math.prod(fine)).reshape(batch, *fine)
    expected = target.numpy()[np.ix_(range(batch), *(np.arange(edge) * step + step // 2 for edge, step in axes))]
    shrunk = _shrink(target, shape)
    assert shrunk.shape == (batch, *shape)
    assert np.array_equal(shrunk.numpy(), expected)
