"""Dice + cross-entropy: values worked out by hand, torch's own formulas as oracle, ignored voxels, deep supervision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from autoseg.imaging.labels import LabelSet
from autoseg.nn.losses import LOSSES, SMOOTH, DeepSupervision, DiceBCE, DiceCE, _shrink, stage_weights

QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def dice_ce(ignore_index=None, class_weights=None, batch_dice=True):
    return DiceCE(ignore_index=ignore_index, class_weights=class_weights, batch_dice=batch_dice)


def dice_bce(regions, ignore_index=None, class_weights=None, batch_dice=True):
    return DiceBCE(regions=regions, ignore_index=ignore_index, class_weights=class_weights, batch_dice=batch_dice)


def two_voxels(shape):
    """Foreground probabilities 0.75 and 0.5, targets 1 and 0; `shape` = (samples, voxels), two in all."""
    foreground = torch.tensor([0.75, 0.5]).reshape(shape)
    logits = torch.stack((1 - foreground, foreground), dim=1).log()
    return logits, torch.tensor([1, 0]).reshape(shape)


# ---- by hand ----

CROSS_ENTROPY = -(math.log(0.75) + math.log(0.5)) / 2  # 0.490415


def test_two_voxels_of_one_sample():
    logits, target = two_voxels((1, 2))
    dice = (2 * 0.75 + 1e-5) / (0.75 + 0.5 + 1 + 1e-5)  # TP 0.75, P 1.25, G 1
    assert dice == pytest.approx(0.6666681, abs=1e-7)
    assert dice_ce(batch_dice=False)(logits, target).item() == pytest.approx(CROSS_ENTROPY - dice, abs=1e-6)
    assert dice_ce(batch_dice=True)(logits, target).item() == pytest.approx(CROSS_ENTROPY - dice, abs=1e-6)


def test_two_samples_of_one_voxel_with_and_without_batch_dice():
    logits, target = two_voxels((2, 1))
    over_batch = (2 * 0.75 + 1e-5) / (0.75 + 0.5 + 1 + 1e-5)
    # sample 1: TP 0.75, P 0.75, G 1; sample 2 has no foreground: TP 0, P 0.5, G 0
    per_sample = ((1.5 + 1e-5) / (1.75 + 1e-5) + 1e-5 / (0.5 + 1e-5)) / 2
    assert per_sample == pytest.approx(0.428582, abs=1e-6)
    assert dice_ce(batch_dice=True)(logits, target).item() == pytest.approx(CROSS_ENTROPY - over_batch, abs=1e-6)
    assert dice_ce(batch_dice=False)(logits, target).item() == pytest.approx(CROSS_ENTROPY - per_sample, abs=1e-6)


def test_dice_is_the_mean_over_foreground_labels():
    probabilities = torch.tensor([[[0.5, 0.25], [0.25, 0.5], [0.25, 0.25]]])  # (1, 3 heads, 2 voxels)
    target = torch.tensor([[1, 2]])
    first = (2 * 0.25 + 1e-5) / (0.75 + 1 + 1e-5)
    second = (2 * 0.25 + 1e-5) / (0.5 + 1 + 1e-5)
    expected = math.log(4) - (first + second) / 2  # both voxels give their class 1/4
    assert dice_ce()(probabilities.log(), target).item() == pytest.approx(expected, abs=1e-6)


def test_class_weights_act_on_the_cross_entropy_alone():
    logits, target = two_voxels((1, 2))
    dice = (2 * 0.75 + 1e-5) / (0.75 + 0.5 + 1 + 1e-5)
    weighted = -(3 * math.log(0.75) + 1 * math.log(0.5)) / (3 + 1)
    for class_weights in [(1.0, 3.0), (1, 3), (10, 30)]:  # whole numbers, and only ratios matter
        loss = dice_ce(class_weights=class_weights)(logits, target)
        assert loss.item() == pytest.approx(weighted - dice, abs=1e-6)


def test_an_ignored_voxel_leaves_the_other():
    logits, target = two_voxels((1, 2))
    target[0, 1] = 2  # ignore index of one label
    dice = (2 * 0.75 + 1e-5) / (0.75 + 1 + 1e-5)
    loss = dice_ce(ignore_index=2)(logits, target)
    assert loss.item() == pytest.approx(-math.log(0.75) - dice, abs=1e-6)


def test_regions_two_voxels_by_hand():
    # regions {1, 2} and {2}; voxel targets 1 and 2; probabilities below
    regions = ((1, 2), (2,))
    probabilities = torch.tensor([[[0.8, 0.5], [0.25, 0.5]]])
    target = torch.tensor([[1, 2]])
    entropy = -(math.log(0.8) + math.log(0.5) + math.log(0.75) + math.log(0.5)) / 4
    whole = (2 * 1.3 + 1e-5) / (1.3 + 2 + 1e-5)
    core = (2 * 0.5 + 1e-5) / (0.75 + 1 + 1e-5)
    loss = dice_bce(regions)(probabilities.logit(), target)
    assert loss.item() == pytest.approx(entropy - (whole + core) / 2, abs=1e-6)
    weighted = -(3 * (math.log(0.8) + math.log(0.5)) + math.log(0.75) + math.log(0.5)) / 8
    loss = dice_bce(regions, class_weights=(3, 1))(probabilities.logit(), target)
    assert loss.item() == pytest.approx(weighted - (whole + core) / 2, abs=1e-6)


def test_a_label_outside_every_region_is_background_to_all():
    # the class indices 3 and 4 belong to no region; they must neither fail nor count as the region below them
    logits = torch.randn(1, 2, 5)
    for ignore_index in (None, 5):
        loss = dice_bce(((1, 2), (2,)), ignore_index=ignore_index)
        assert torch.equal(loss(logits, torch.tensor([[1, 2, 3, 0, 4]])), loss(logits, torch.tensor([[1, 2, 0, 0, 0]])))


def test_a_perfect_segmentation_costs_minus_one():
    target = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    logits = 40 * (F.one_hot(target, 3).movedim(-1, 1).float() - 0.5)
    assert dice_ce()(logits, target).item() == pytest.approx(-1, abs=1e-5)
    assert dice_bce(((1,), (2,)))(logits[:, 1:], target).item() == pytest.approx(-1, abs=1e-5)


# ---- oracles ----


def soft_dice(probabilities, one_hot, annotated, batch_dice):
    """Mean soft Dice in float64 numpy, from its definition. All (B, H, N), annotated (B, N)."""
    scores = []
    batches = [slice(None)] if batch_dice else [slice(b, b + 1) for b in range(len(probabilities))]
    for batch in batches:
        for head in range(probabilities.shape[1]):
            inside = annotated[batch]
            p = probabilities[batch, head][inside].astype(np.float64)
            g = one_hot[batch, head][inside].astype(np.float64)
            scores.append((2 * (p * g).sum() + SMOOTH) / (p.sum() + g.sum() + SMOOTH))
    return np.mean(scores)


@st.composite
def problems(draw, ignore):
    """Random logits (B, n + 1, Z, Y, X), targets with indices 0..n (or n + 1: ignored), and settings."""
    labels = draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 3)), *draw(st.tuples(*[st.integers(1, 4)] * draw(st.sampled_from([2, 3])))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = 3 * torch.randn(shape[0], labels + 1, *shape[1:], generator=generator)
    target = torch.randint(0, labels + 1, shape, generator=generator)
    ignore_index = None
    if ignore:
        ignore_index = labels + 1
        target[torch.rand(shape, generator=generator) < 0.4] = ignore_index
        target[(0,) * len(shape)] = 0  # at least one voxel counts: torch's cross-entropy of none is NaN
    class_weights = draw(st.none() | st.lists(st.floats(0.1, 10), min_size=labels + 1, max_size=labels + 1))
    return logits, target, ignore_index, class_weights, draw(st.booleans())


@QUICK
@given(problems(ignore=False) | problems(ignore=True))
def test_dice_ce_against_torchs_cross_entropy_and_one_hot_dice(problem):
    logits, target, ignore_index, class_weights, batch_dice = problem
    loss = dice_ce(ignore_index, class_weights, batch_dice)(logits, target)
    weight = None if class_weights is None else torch.tensor(class_weights)
    missing = -100 if ignore_index is None else ignore_index
    entropy = F.cross_entropy(logits, target, weight, ignore_index=missing).item()
    labels = range(1, logits.shape[1])
    one_hot = np.stack([target.flatten(1).numpy() == label for label in labels], axis=1)
    probabilities = logits.softmax(1).flatten(2).numpy()[:, 1:]
    dice = soft_dice(probabilities, one_hot, target.flatten(1).numpy() != missing, batch_dice)
    assert loss.item() == pytest.approx(entropy - dice, abs=1e-4)


@QUICK
@given(problems(ignore=False) | problems(ignore=True))
def test_dice_bce_against_torchs_binary_cross_entropy_and_one_hot_dice(problem):
    logits, target, ignore_index, class_weights, batch_dice = problem
    labels = logits.shape[1] - 1
    regions = [tuple(range(first, labels + 1)) for first in range(1, labels + 1)] + [(1,)]  # nested, then one label
    loss = dice_bce(regions, ignore_index, class_weights, batch_dice)(logits, target)
    masks = np.stack([np.isin(target.flatten(1).numpy(), region) for region in regions], axis=1)
    annotated = np.ones(masks.shape[::2], bool) if ignore_index is None else target.flatten(1).numpy() != ignore_index
    entropy = F.binary_cross_entropy_with_logits(
        logits.flatten(2).double(), torch.from_numpy(masks).double(), reduction="none"
    ).numpy()
    heads = np.ones(len(regions)) if class_weights is None else np.array(class_weights)
    weight = heads[None, :, None] * annotated[:, None]
    dice = soft_dice(logits.sigmoid().flatten(2).numpy(), masks, annotated, batch_dice)
    assert loss.item() == pytest.approx((entropy * weight).sum() / weight.sum() - dice, abs=1e-4)


@QUICK
@given(problems(ignore=True), st.booleans(), st.floats(-50, 50))
def test_ignored_voxels_change_nothing(problem, use_regions, noise):
    logits, target, ignore_index, class_weights, batch_dice = problem
    regions = [(head,) for head in range(logits.shape[1])]
    loss = (
        dice_bce(regions, ignore_index, class_weights, batch_dice)
        if use_regions
        else dice_ce(ignore_index, class_weights, batch_dice)
    )
    ignored = (target == ignore_index)[:, None]
    other = torch.where(ignored, logits.flip(1) + noise * torch.randn_like(logits), logits)
    first, second = logits.clone().requires_grad_(), other.clone().requires_grad_()
    loss(first, target).backward()
    loss(second, target).backward()
    assert torch.equal(loss(first, target), loss(second, target))
    assert torch.equal(first.grad, second.grad)
    assert torch.count_nonzero(first.grad * ignored) == 0


# ---- robustness ----


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("what", ["empty", "ignored", "one label"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_are_finite_without_foreground(what, batch_dice, scale):
    torch.manual_seed(0)
    target = torch.full((2, 4, 4), {"empty": 0, "ignored": 3, "one label": 2}[what])
    for loss, heads in [
        (dice_ce(3, None, batch_dice), 3),
        (dice_bce(((1, 2), (2,)), 3, None, batch_dice), 2),
    ]:
        logits = (scale * torch.randn(2, heads, 4, 4)).requires_grad_()
        value = loss(logits, target)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()
        # without a single annotated voxel there is nothing to learn; otherwise there is
        assert (torch.count_nonzero(logits.grad) > 0) == (what != "ignored")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_whatever_the_logits(dtype):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 16, 16).to(dtype), torch.randint(0, 4, (2, 16, 16))
    for loss, heads in [(dice_ce(3), 3), (dice_bce(((1, 2), (2,)), 3), 2)]:
        exact = loss(logits[:, :heads].float(), target)
        assert torch.equal(loss(logits[:, :heads], target), exact)
        assert exact.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(logits[:, :heads], target), exact)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_targets_of_any_integer_dtype(dtype):
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 4, (2, 4, 4))
    for loss, heads in [(dice_ce(3), 3), (dice_bce(((1, 2), (2,)), 3), 2)]:
        assert torch.equal(loss(logits[:, :heads], target.to(dtype)), loss(logits[:, :heads], target))


def test_the_table_builds_both_losses_from_the_same_arguments():
    labels = LabelSet({"oedema": 1, "core": 4}, regions={"whole": (1, 4), "core": (4,)}, region_values=(1, 4), ignore=9)
    target = torch.tensor([[0, 1, 2, 3]])
    for name, heads in [("dice_ce", 3), ("dice_bce", 2)]:
        loss = LOSSES[name](
            regions=labels.regions_as_indices,
            ignore_index=labels.ignore_index,
            class_weights=None,
            batch_dice=False,
        )
        assert torch.isfinite(loss(torch.zeros(1, heads, 4), target))
    assert list(LOSSES) == ["dice_ce", "dice_bce"]


# ---- deep supervision ----


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
