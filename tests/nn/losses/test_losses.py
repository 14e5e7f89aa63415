"""The table of losses: values worked out by hand, torch's own formulas as oracle, ignored voxels."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoseg.imaging.labels import LabelSet
from autoseg.nn.losses import LOSSES, SMOOTH, DeepSupervision, _least_of_largest, build_loss, traits_of
from autoseg.nn.queries import Queries, QueryLogits

QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loss_named(name, regions=(), ignore_index=None, class_weights=None, batch_dice=True, **options):
    return LOSSES[name](
        regions=regions, ignore_index=ignore_index, class_weights=class_weights, batch_dice=batch_dice, **options
    )


def dice_ce(ignore_index=None, class_weights=None, batch_dice=True):
    return loss_named("dice_ce", (), ignore_index, class_weights, batch_dice)


def dice_bce(regions, ignore_index=None, class_weights=None, batch_dice=True):
    return loss_named("dice_bce", regions, ignore_index, class_weights, batch_dice)


NESTED = ((1, 2), (2,))
EVERY = [  # each loss with each kind of heads it has, and the boundary term
    *((name, (), {}) for name in ("dice_ce", "dice_focal", "dice_topk", "tversky")),
    *((name, NESTED, {}) for name in ("dice_bce", "dice_focal", "dice_topk", "tversky")),
    ("dice_ce", (), {"boundary_weight": 0.5}),
    ("dice_bce", NESTED, {"boundary_weight": 0.5}),
]
every_loss = pytest.mark.parametrize(
    ("name", "regions", "options"), EVERY, ids=[f"{name}-{len(r)}-{len(o)}" for name, r, o in EVERY]
)


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
    for name in ("dice_ce", "dice_focal", "dice_topk", "tversky"):
        assert loss_named(name)(logits, target).item() == pytest.approx(-1, abs=1e-5)
    for name in ("dice_bce", "dice_focal", "dice_topk", "tversky"):
        assert loss_named(name, ((1,), (2,)))(logits[:, 1:], target).item() == pytest.approx(-1, abs=1e-5)


DICE = (2 * 0.75 + 1e-5) / (0.75 + 0.5 + 1 + 1e-5)  # of the two voxels


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_two_voxels(gamma):
    logits, target = two_voxels((1, 2))
    focal = -(0.25**gamma * math.log(0.75) + 0.5**gamma * math.log(0.5)) / 2
    loss = loss_named("dice_focal", focal_gamma=gamma)
    assert loss(logits, target).item() == pytest.approx(focal - DICE, abs=1e-6)
    weighted = -(3 * 0.25**gamma * math.log(0.75) + 0.5**gamma * math.log(0.5)) / (3 + 1)
    loss = loss_named("dice_focal", class_weights=(1, 3), focal_gamma=gamma)
    assert loss(logits, target).item() == pytest.approx(weighted - DICE, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_of_a_certain_voxel_has_a_finite_slope(gamma):
    logits = torch.tensor([[[-200.0, 3.0], [200.0, 0.0]]], requires_grad=True)
    loss_named("dice_focal", focal_gamma=gamma)(logits, torch.tensor([[1, 0]])).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 1] < 0


@pytest.mark.parametrize("wanted", [1, 2, 5, 7, 8, 40])
def test_the_least_of_the_largest_is_found_by_sorting(wanted):
    values = torch.tensor([[3.0, 1e-40, 0.5], [-1.0, 3.0, 7e5], [0.0, 1.0, torch.inf], [-1.0, 0.5, -0.0]])
    sorted_down = sorted(values.clamp_min(0).flatten().tolist(), reverse=True)  # inf, 7e5, 3, 3, 1, .5, .5, 1e-40, 0
    assert _least_of_largest(values, torch.tensor(wanted)).item() == (sorted_down + [0.0] * 40)[wanted - 1]


def test_the_hardest_of_four_voxels():
    probabilities = torch.tensor([[0.9, 0.5, 0.25, 0.6]])  # of what is there: 1, 0, 1, 0
    target = torch.tensor([[1, 0, 1, 0]])
    foreground = torch.where(target == 1, probabilities, 1 - probabilities)
    logits = torch.stack((1 - foreground, foreground), 1).log()
    dice = (2 * 1.15 + 1e-5) / (0.9 + 0.5 + 0.25 + 0.4 + 2 + 1e-5)
    third, second, fourth = -math.log(0.25), -math.log(0.5), -math.log(0.6)  # in order of hardness
    for share, entropy in [
        (0.1, third),  # less than one voxel: one
        (0.25, third),
        (0.3, (third + second) / 2),  # what is begun counts
        (0.5, (third + second) / 2),
        (0.75, (third + second + fourth) / 3),
    ]:
        loss = loss_named("dice_topk", topk_share=share)
        assert loss(logits, target).item() == pytest.approx(entropy - dice, abs=1e-6)
    loss = loss_named("dice_topk", topk_share=0.5, class_weights=(1, 3))
    assert loss(logits, target).item() == pytest.approx((3 * third + second) / 4 - dice, abs=1e-6)


def test_the_hardest_share_is_one_of_the_annotated_voxels():
    logits = torch.tensor([[0.0, 1.0, 2.0, -3.0, -4.0, -5.0]])
    logits = torch.stack((torch.zeros_like(logits), logits), 1)
    target = torch.tensor([[1, 1, 1, 2, 2, 2]])  # three count; those that do not would be the hardest
    target[0, 3] = 1
    entropy = math.log(1 + math.exp(3))
    loss = loss_named("dice_topk", ignore_index=2, topk_share=0.25)
    overlap = loss_named("tversky", ignore_index=2, tversky_alpha=0.5, tversky_beta=0.5)(logits, target).item()
    assert loss(logits, target).item() == pytest.approx(entropy + overlap, abs=1e-6)
    two = loss_named("dice_topk", ignore_index=2, topk_share=0.5)
    assert two(logits, target).item() == pytest.approx((entropy + math.log(2)) / 2 + overlap, abs=1e-6)


def test_tversky_of_two_voxels():
    logits, target = two_voxels((1, 2))
    # TP 0.75, false positive 0.5 (voxel 2), false negative 0.25 (voxel 1)
    for alpha, beta in [(0.3, 0.7), (0.7, 0.3), (1.0, 1.0)]:
        index = (0.75 + 5e-6) / (0.75 + alpha * 0.5 + beta * 0.25 + 5e-6)
        loss = loss_named("tversky", tversky_alpha=alpha, tversky_beta=beta)
        assert loss(logits, target).item() == pytest.approx(-index, abs=1e-6)
    even = loss_named("tversky", tversky_alpha=0.5, tversky_beta=0.5)
    assert even(logits, target).item() == pytest.approx(-DICE, abs=1e-7)


def test_voxel_weights_by_hand():
    logits, target = two_voxels((1, 2))
    weights = torch.tensor([[3.0, 1.0]])
    weighted = -(3 * math.log(0.75) + math.log(0.5)) / 4
    assert dice_ce()(logits, target, weights).item() == pytest.approx(weighted - DICE, abs=1e-6)
    both = -(3 * 5 * math.log(0.75) + math.log(0.5)) / 16
    assert dice_ce(class_weights=(1, 5))(logits, target, weights).item() == pytest.approx(both - DICE, abs=1e-6)
    focal = -(3 * 0.25**2 * math.log(0.75) + 0.5**2 * math.log(0.5)) / 4
    assert loss_named("dice_focal")(logits, target, weights).item() == pytest.approx(focal - DICE, abs=1e-6)
    hardest = loss_named("dice_topk", topk_share=0.5)  # hard is what is wrong, not what weighs much
    assert hardest(logits, target, weights).item() == pytest.approx(math.log(2) - DICE, abs=1e-6)
    certain = hardest(logits, target, torch.tensor([[3.0, 0.0]]))  # what weighs nothing is not counted
    assert certain.item() == pytest.approx(-math.log(0.75) - DICE, abs=1e-6)
    region = logits[:, 1:] - logits[:, :1]
    assert dice_bce(((1,),))(region, target, weights).item() == pytest.approx(weighted - DICE, abs=1e-6)


# ---- every key ----


@pytest.mark.parametrize("regions", [(), NESTED])
@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("dice_focal", "focal_gamma", (1.0, 2.0)),
        ("dice_topk", "topk_share", (0.1, 0.5)),
        ("tversky", "tversky_alpha", (0.3, 0.6)),
        ("tversky", "tversky_beta", (0.7, 0.4)),
        *((name, "boundary_weight", (0.0, 0.1)) for name in ("dice_ce", "dice_focal", "dice_topk", "tversky")),
        *((name, "class_weights", (None, (3, 1, 1))) for name in ("dice_ce", "dice_focal", "dice_topk")),
        *((name, "batch_dice", (True, False)) for name in ("dice_ce", "dice_focal", "dice_topk", "tversky")),
    ],
)
def test_every_key_changes_the_result(name, key, values, regions):
    if regions and name == "dice_ce":
        name = "dice_bce"
    logits, target = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    heads = 2 if regions else 3
    first, second = (
        loss_named(name, regions, **{key: v[:heads] if isinstance(v, tuple) else v})(logits[:, :heads], target)
        for v in values
    )
    assert not torch.isclose(first, second, atol=1e-4)


@pytest.mark.parametrize(("name", "option"), [("dice_ce", "focal_gamma"), ("dice_focal", "topk_share")])
def test_options_of_another_loss_are_refused(name, option):
    with pytest.raises(TypeError, match=option):
        loss_named(name, **{option: 0.5})


def test_building_an_unknown_loss_names_those_that_exist():
    given = {"regions": (), "ignore_index": None, "class_weights": None, "batch_dice": True}
    with pytest.raises(KeyError, match=r"no loss 'dise'; there are: dice_ce, dice_bce, dice_focal, dice_topk, tversky"):
        build_loss("dise", **given)
    assert build_loss("tversky", options={"tversky_alpha": 0.6}, **given).alpha == 0.6


def test_the_boundary_term_is_added_with_its_weight():
    logits, target = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    plain, once, twice = (loss_named("dice_ce", boundary_weight=w)(logits, target) for w in (0.0, 1.0, 2.0))
    assert (twice - once).item() == pytest.approx((once - plain).item(), abs=1e-6)


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


@pytest.mark.thorough
@every_loss
@settings(max_examples=10, deadline=None)
@given(problem=problems(ignore=True), noise=st.floats(-50, 50))
def test_ignored_voxels_change_nothing(name, regions, options, problem, noise):
    logits, target, ignore_index, class_weights, batch_dice = problem
    if regions:
        regions = [(head,) for head in range(logits.shape[1])]
    loss = loss_named(name, regions, ignore_index, class_weights, batch_dice, **options)
    ignored = (target == ignore_index)[:, None]
    other = torch.where(ignored, logits.flip(1) + noise * torch.randn_like(logits), logits)
    first, second = logits.clone().requires_grad_(), other.clone().requires_grad_()
    loss(first, target).backward()
    loss(second, target).backward()
    assert torch.equal(loss(first, target), loss(second, target))
    assert torch.equal(first.grad, second.grad)
    assert torch.count_nonzero(first.grad * ignored) == 0
    assert torch.count_nonzero(first.grad) > 0


# ---- relations ----


@pytest.mark.thorough
@QUICK
@given(st.integers(0, 2**31), st.booleans())
def test_limits_are_the_cross_entropy(seed, use_regions):
    torch.manual_seed(seed)
    heads, regions = (2, NESTED) if use_regions else (3, ())
    logits, target = 3 * torch.randn(2, heads, 4, 5), torch.randint(0, 4, (2, 4, 5))
    given = {"ignore_index": 3, "class_weights": [1.0, 2.0, 0.5][:heads], "batch_dice": seed % 2 == 0}
    plain = loss_named("dice_bce" if use_regions else "dice_ce", regions, **given)(logits, target)
    torch.testing.assert_close(loss_named("dice_focal", regions, focal_gamma=0.0, **given)(logits, target), plain)
    torch.testing.assert_close(loss_named("dice_topk", regions, topk_share=1.0, **given)(logits, target), plain)


@pytest.mark.thorough
@QUICK
@given(problems(ignore=False) | problems(ignore=True))
def test_one_region_is_one_label_against_the_background(problem):
    logits, target, ignore_index, _, batch_dice = problem
    target = torch.where(target == ignore_index, target, target.clamp_max(1)) if ignore_index else target.clamp_max(1)
    logits = torch.stack((torch.zeros_like(logits[:, 0]), logits[:, 0]), 1)
    for name in ("dice_focal", "dice_topk", "tversky", "dice_ce"):
        label = loss_named(name, (), ignore_index, None, batch_dice, boundary_weight=0.3)
        region = loss_named(name.replace("_ce", "_bce"), ((1,),), ignore_index, None, batch_dice, boundary_weight=0.3)
        assert region(logits[:, 1:], target).item() == pytest.approx(label(logits, target).item(), abs=1e-5)


@every_loss
def test_the_gradient_asks_for_more_of_what_is_there(name, regions, options):
    logits = torch.zeros(1, 2 if regions else 3, 4, 4, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, 1:3, 1:3] = 2
    if name == "dice_topk":
        options = options | {"topk_share": 1.0}
    loss_named(name, regions, **options)(logits, target).backward()
    inside = (target == 2)[0]
    last = logits.grad[0, -1]  # label 2, or the region that is label 2
    assert (last[inside] < 0).all()
    assert (last[~inside] > 0).all()


# ---- robustness ----


@every_loss
def test_gradients_are_finite_without_foreground(name, regions, options, subtests):
    contents = {"empty": 0, "ignored": 3, "one label": 2}
    for what, batch_dice, scale in itertools.product(contents, (True, False), (1.0, 100.0)):
        with subtests.test(what=what, batch_dice=batch_dice, scale=scale):
            torch.manual_seed(0)
            loss = loss_named(name, regions, 3, None, batch_dice, **options)
            logits = (scale * torch.randn(2, 2 if regions else 3, 4, 4)).requires_grad_()
            value = loss(logits, torch.full((2, 4, 4), contents[what]))
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(logits.grad).all()
            # without a single annotated voxel there is nothing to learn; otherwise there is
            assert (torch.count_nonzero(logits.grad) > 0) == (what != "ignored")


@pytest.mark.thorough
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_whatever_the_logits(name, regions, options, dtype):
    logits, target = torch.randn(2, 2 if regions else 3, 16, 16).to(dtype), torch.randint(0, 4, (2, 16, 16))
    loss = loss_named(name, regions, 3, **options)
    exact = loss(logits.float(), target)
    assert torch.equal(loss(logits, target), exact)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, target), exact)
    half, full = logits.clone().requires_grad_(), logits.float().requires_grad_()
    loss(half, target).backward()
    loss(full, target).backward()
    rounding = torch.finfo(dtype).eps * full.grad.abs().max().item()
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=0, atol=rounding)


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_targets_of_any_integer_dtype(name, regions, options, dtype):
    logits, target = torch.randn(2, 2 if regions else 3, 4, 4), torch.randint(0, 4, (2, 4, 4))
    loss = loss_named(name, regions, 3, **options)
    assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


def test_the_table_builds_every_loss_from_the_same_arguments():
    labels = LabelSet({"oedema": 1, "core": 4}, regions={"whole": (1, 4), "core": (4,)}, region_values=(1, 4), ignore=9)
    target = torch.tensor([[0, 1, 2, 3]])
    for name in LOSSES:
        loss = LOSSES[name](
            regions=labels.regions_as_indices,
            ignore_index=labels.ignore_index,
            class_weights=None,
            batch_dice=False,
        )
        logits = torch.zeros(1, 3 if traits_of(name).predicts == "labels" else 2, 4)
        if traits_of(name).queries:
            said = Queries(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 5), torch.zeros(1, 5, 4))
            logits = QueryLogits([logits], said)
        assert torch.isfinite(loss(logits, target))
    assert list(LOSSES) == ["dice_ce", "dice_bce", "dice_focal", "dice_topk", "tversky", "mask_classification"]
    with pytest.raises(AssertionError, match="regions"):
        dice_bce(())


@pytest.mark.thorough
@every_loss
def test_losses_ask_no_value_of_the_device(name, regions, options):
    """Tensors without content have none to give; the tracer of memory depends on it."""
    loss = DeepSupervision(loss_named(name, regions, 3, [1.0] * (2 if regions else 3), **options))
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = [torch.empty(2, 2 if regions else 3, n, n, n, requires_grad=True) for n in (8, 4, 2)]
        loss(logits, torch.empty(2, 8, 8, 8, dtype=torch.uint8), torch.empty(2, 8, 8, 8)).backward()
        assert logits[1].grad.shape == logits[1].shape


@every_loss
def test_many_heads(name, regions, options):
    heads = 105
    loss = loss_named(name, [(label,) for label in range(1, heads + 1)] if regions else (), heads + 1, **options)
    logits = torch.randn(2, heads, 6, 6, 6, requires_grad=True)
    value = loss(logits, torch.randint(0, heads, (2, 6, 6, 6)))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.flatten(2).abs().amax((0, 2)) > 0).all()
