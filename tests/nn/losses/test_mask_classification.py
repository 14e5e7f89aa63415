"""The loss of queries: terms by hand and by loops, the points, ignored voxels, the matching's freedom."""

import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoseg.nn.losses import LOSSES, DeepSupervision, build_loss
from autoseg.nn.losses.matched_queries import NO_OBJECT, SMOOTH, look_at, pairwise_terms, wanted_classes
from autoseg.nn.losses.segments import NONE, segments_of
from autoseg.nn.queries import Queries, QueryLogits
from small_networks import small_network

IGNORED = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loss_of(**changed):
    usual = {"regions": (), "ignore_index": None, "class_weights": None, "batch_dice": True, "options": {}}
    return build_loss("mask_classification", **usual | changed)


def of_queries(said, target, **changed):
    """What the queries add to the loss of the logits."""
    logits = torch.zeros(len(target), said.classes.shape[-1] - 1, *target.shape[1:])
    without = loss_of(**changed | {"options": changed.get("options", {}) | {"mask_weight": 0.0}})
    result = QueryLogits([logits], said)
    return loss_of(**changed)(result, target) - without(result, target)


def queries_with(masks, classes):
    """Queries of one layer whose masks (B, Q, *s) and classes (B, Q, K + 1) have these logits: one channel each."""
    masks, classes = torch.as_tensor(masks, dtype=torch.float32), torch.as_tensor(classes, dtype=torch.float32)
    embeddings = torch.eye(masks.shape[1]).expand(1, len(masks), -1, -1)
    return Queries(classes[None], embeddings, masks)


# ---- by hand ----


def test_two_queries_and_two_segments_by_hand():
    # four voxels, of which one is foreground; masks of 0.8 and 0.2 probability, classes of 0.5, 0.25, 0.25
    target = torch.tensor([[0, 0, 0, 1]])
    inside = math.log(4)  # sigmoid(log 4) = 0.8
    masks = [[[inside, inside, inside, -inside], [-inside, -inside, -inside, inside]]]
    classes = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]]).log()
    dice_of_three = 2 * 2.4 / (2.6 + 3)
    dice_of_one = 2 * 0.8 / (1.4 + 1)
    terms = [-math.log(0.8) + 1 - dice_of_three, -math.log(0.8) + 1 - dice_of_one]
    expected = sum(terms) / 2 + 0.4 * -math.log(0.5)
    assert of_queries(queries_with(masks, classes), target).item() == pytest.approx(expected, abs=1e-5)


def test_a_query_without_a_segment_should_say_no_object():
    target = torch.zeros(1, 4, dtype=torch.long)  # background alone
    masks = [[[9.0] * 4, [-9.0] * 4]]
    classes = torch.tensor([[[0.7, 0.1, 0.2], [0.3, 0.3, 0.4]]]).log()
    of_mask = float(F.softplus(torch.tensor(-9.0))) * (1 + 0.5)  # Dice of masks near 1 misses as much again, halved
    expected = of_mask + 0.4 * (-math.log(0.7) - NO_OBJECT * math.log(0.4)) / (1 + NO_OBJECT)
    assert of_queries(queries_with(masks, classes), target).item() == pytest.approx(expected, abs=1e-5)


def test_perfect_queries_add_nothing_and_the_loss_is_minus_one():
    target = torch.tensor([[0, 0, 1, 2, 2, 1]])
    masks = 40.0 * (2 * F.one_hot(target, 4).movedim(-1, 1) - 1).float()
    classes = 40.0 * torch.eye(4)[None]
    logits = 40.0 * F.one_hot(target, 3).movedim(-1, 1).float()
    result = QueryLogits([logits], queries_with(masks, classes))
    assert loss_of()(result, target).item() == pytest.approx(-1, abs=1e-4)


def test_terms_equal_a_loop():
    masks, weights = torch.randn(2, 3, 4, 7), torch.rand(3, 7)
    slots = torch.randint(-1, 5, (3, 7))
    found = pairwise_terms(masks, weights, slots, 5)
    for layer, sample, query, slot in itertools.product(range(2), range(3), range(4), range(5)):
        own = (slots[sample] == slot).float()
        entropy = F.binary_cross_entropy_with_logits(masks[layer, sample, query], own, reduction="none")
        likely = masks[layer, sample, query].sigmoid()
        weight = weights[sample]
        dice = (2 * (weight * likely * own).sum() + SMOOTH) / ((weight * (likely + own)).sum() + SMOOTH)
        torch.testing.assert_close(found[layer, sample, query, slot], (weight * entropy).sum() + 1 - dice)


def test_wanted_classes_by_hand():
    assigned = torch.tensor([[[2, NONE, 0]], [[NONE, 1, NONE]]])
    classes = torch.tensor([[5, 6, 7]])
    assert wanted_classes(assigned, classes, queries=3, no_object=9).tolist() == [[[7, 9, 5]], [[9, 6, 9]]]


# ---- the whole against a loop ----


def by_loops(said, target, ignore_index):
    """The same loss, one layer, sample and permutation after the other."""
    of_masks, of_classes, weights = [], [], []
    layers, batch, queries, count = said.classes.shape
    for layer, sample in itertools.product(range(layers), range(batch)):
        annotated = target[sample] != (-1 if ignore_index is None else ignore_index)
        share = annotated.float().mean()
        masks = torch.einsum("qc,cyx->qyx", said.embeddings[layer, sample], said.voxels[sample])
        classes = said.classes[layer, sample]
        present = [label for label in range(count - 1) if (target[sample] == label).any()]

        def fit(query, label, masks=masks, annotated=annotated, sample=sample):
            own = (target[sample] == label).float()[annotated]
            logits = masks[query][annotated]
            likely = logits.sigmoid()
            dice = 2 * (likely * own).sum() / (likely + own).sum()
            return F.binary_cross_entropy_with_logits(logits, own) + 1 - dice

        def cost(chosen, classes=classes, present=present, fit=fit):
            return sum(
                fit(q, label) - 0.4 * classes[q].softmax(0)[label] for q, label in zip(chosen, present, strict=True)
            )

        best = min(itertools.permutations(range(queries), len(present)), key=cost)
        of_masks += [fit(q, label) for q, label in zip(best, present, strict=True)]
        wanted = torch.full((queries,), count - 1)
        wanted[list(best)] = torch.tensor(present, dtype=torch.long)
        of_classes += list(F.cross_entropy(classes, wanted, reduction="none"))
        weights += [1.0 if label < count - 1 else NO_OBJECT * share for label in wanted]
    weighted = sum(w * c for w, c in zip(weights, of_classes, strict=True)) / sum(weights)
    return sum(of_masks) / len(of_masks) + 0.4 * weighted


@pytest.mark.parametrize("ignore_index", [None, IGNORED])
def test_it_equals_loops_and_permutations(ignore_index):
    target = torch.randint(0, 3, (2, 4, 5))
    target[1] = target[1].clamp_max(1)  # one class fewer
    if ignore_index is not None:
        target[:, :2, :3] = IGNORED
    said = Queries(torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 6), torch.randn(2, 6, 4, 5))
    expected = by_loops(said, target, ignore_index)
    torch.testing.assert_close(of_queries(said, target, ignore_index=ignore_index), expected, atol=2e-4, rtol=1e-4)


def test_queries_may_have_any_order():
    target = torch.randint(0, 3, (2, 6, 5))
    said = Queries(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 6), torch.randn(2, 6, 6, 5))
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Queries(said.classes[:, :, order], said.embeddings[:, :, order], said.voxels)
    torch.testing.assert_close(of_queries(said, target), of_queries(shuffled, target))


# ---- ignored voxels, patches of one class, things ----


def test_what_is_ignored_counts_in_nothing():
    target = torch.randint(0, 3, (2, 6, 5))
    target[:, 2:4] = IGNORED
    said = Queries(torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 6), torch.randn(2, 6, 6, 5, requires_grad=True))
    value = of_queries(said, target, ignore_index=IGNORED)
    value.backward()
    assert torch.equal(said.voxels.grad[:, :, 2:4], torch.zeros(2, 6, 2, 5))
    assert said.voxels.grad[:, :, :2].abs().min() > 0
    elsewhere = said.voxels.detach().clone()
    elsewhere[:, :, 2:4] = 50.0
    changed = of_queries(said._replace(voxels=elsewhere), target, ignore_index=IGNORED)
    assert torch.equal(changed, value)


def test_a_patch_nobody_annotated_adds_nothing():
    target = torch.full((1, 4, 5), IGNORED)
    said = Queries(torch.randn(1, 1, 5, 4, requires_grad=True), torch.randn(1, 1, 5, 6), torch.randn(1, 6, 4, 5))
    value = of_queries(said, target, ignore_index=IGNORED)
    value.backward()
    assert value == 0
    assert torch.equal(said.classes.grad, torch.zeros_like(said.classes))


def test_the_less_is_annotated_the_less_no_object_is_claimed():
    said = queries_with([[[9.0] * 8, [-9.0] * 8]], torch.tensor([[[0.9, 0.05, 0.05], [0.9, 0.05, 0.05]]]).log())
    target = torch.zeros(1, 8, dtype=torch.long)
    target[0, 2:] = IGNORED  # a quarter is annotated
    weight = NO_OBJECT / 4
    of_classes = (-math.log(0.9) - weight * math.log(0.05)) / (1 + weight)
    of_mask = float(F.softplus(torch.tensor(-9.0))) * 1.5
    found = of_queries(said, target, ignore_index=IGNORED)
    assert found.item() == pytest.approx(of_mask + 0.4 * of_classes, abs=1e-5)


def test_a_patch_without_foreground_trains():
    network = small_network("mask_transformer", 2, out_channels=3)
    value = DeepSupervision(loss_of())(network(torch.randn(2, 1, 16, 12)), torch.zeros(2, 16, 12, dtype=torch.uint8))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_things_ask_for_a_mask_each():
    # two bright voxels: a mask of both is right for one class, and a mask of each for two things
    target = torch.tensor([[0, 1, 0, 1, 0]])
    both = [[[9.0, -9, 9, -9, 9], [-9.0, 9, -9, 9, -9], [-9.0] * 5]]
    each = [[[9.0, -9, 9, -9, 9], [-9.0, 9, -9, -9, -9], [-9.0, -9, -9, 9, -9]]]
    classes = torch.zeros(1, 3, 3)
    for options, right, wrong in (({}, both, each), ({"things": [1]}, each, both)):
        good = of_queries(queries_with(right, classes), target, options=options)
        bad = of_queries(queries_with(wrong, classes), target, options=options)
        assert bad > good + 0.2


# ---- points ----


def test_a_small_patch_is_seen_as_a_whole():
    segments = segments_of(torch.tensor([[0, 1, IGNORED, 1]]), 2, ignore_index=IGNORED, things=(), most=1)
    places, weights = look_at(segments, 4)
    assert places.tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 0, 1 / 3]]))


def test_points_are_spread_over_voxels_and_over_segments():
    target = torch.zeros(1, 100, 100, dtype=torch.long)
    target[0, 40:44, 40:45] = 1  # 20 of 9,000 voxels
    target[0, :10] = IGNORED
    segments = segments_of(target, 2, ignore_index=IGNORED, things=(), most=1)
    places, weights = look_at(segments, 800)
    slots = segments.slots.gather(1, places)[0]
    assert (slots != NONE).all()
    # a quarter of the points belong to the small one by its being a segment, and few more by its voxels
    assert int((slots == 1).sum()) == pytest.approx(800 * (0.25 + 0.5 * 20 / 9000), abs=2)
    assert float(weights.sum()) == pytest.approx(1, rel=0.02)
    assert float(weights[0, slots == 1].sum()) == pytest.approx(20 / 9000, rel=0.02)
    assert places[0, slots == 1].unique().numel() == 20
    rows, columns = places[0, slots == 0] // 100, places[0, slots == 0] % 100
    assert torch.bincount(rows // 10, minlength=10)[1:].float().std() < 4  # none in the first ten rows
    assert torch.bincount(columns // 10, minlength=10).float().std() < 8


def test_points_estimate_the_sums_over_all_voxels():
    centre = torch.linspace(-1, 1, 64)
    distance = (centre[:, None] ** 2 + centre**2).sqrt()
    target = (distance < 0.4).long()[None]
    said = queries_with((20 * (0.45 - distance))[None, None].expand(1, 2, -1, -1).clone(), torch.zeros(1, 2, 3))
    exact = of_queries(said, target, options={"points": 64 * 64})
    seen = of_queries(said, target, options={"points": 512})
    assert seen.item() == pytest.approx(exact.item(), rel=0.03)
    assert torch.equal(seen, of_queries(said, target, options={"points": 512}))  # nothing is drawn
    assert seen != exact


@pytest.mark.parametrize("points", [16, 100])
def test_a_patch_of_ignored_voxels_alone_has_points_without_weight(points):
    segments = segments_of(torch.full((2, 50), IGNORED), 2, ignore_index=IGNORED, things=(), most=1)
    places, weights = look_at(segments, points)
    assert places.min() >= 0
    assert places.max() < 50
    assert torch.equal(weights, torch.zeros_like(weights))


# ---- as a loss of the table ----


def test_options_and_their_words():
    said = Queries(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 6), torch.randn(2, 6, 8, 5))
    target = torch.randint(0, 3, (2, 8, 5))
    whole = of_queries(said, target)
    torch.testing.assert_close(of_queries(said, target, options={"mask_weight": 0.5}), whole / 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="needs the queries of a network such as mask_transformer"):
        loss_of()([torch.zeros(2, 3, 8, 5)], target)


def test_class_and_voxel_weights_reach_the_logits():
    result = QueryLogits(
        [torch.randn(2, 3, 8, 5)], Queries(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 6), torch.randn(2, 6, 8, 5))
    )
    target, weights = torch.randint(0, 3, (2, 8, 5)), torch.rand(2, 8, 5)
    usual = LOSSES["dice_ce"](regions=(), ignore_index=None, class_weights=(1, 2, 3), batch_dice=True)
    plain, weighted = loss_of(class_weights=(1, 2, 3)), loss_of()
    difference = plain(result, target, weights) - weighted(result, target)
    alone = LOSSES["dice_ce"](regions=(), ignore_index=None, class_weights=None, batch_dice=True)
    torch.testing.assert_close(difference, usual(result[0], target, weights) - alone(result[0], target))


@pytest.mark.parametrize("options", [{}, {"things": [1]}], ids=str)
def test_it_asks_no_value_of_the_device_but_by_its_operators(options):
    loss = DeepSupervision(loss_of(ignore_index=IGNORED, options={"points": 64} | options))
    with FakeTensorMode(allow_non_fake_inputs=True):
        voxels = torch.empty(2, 6, 8, 8, 8, requires_grad=True)
        said = Queries(torch.empty(2, 2, 5, 4), torch.empty(2, 2, 5, 6), voxels)
        loss(QueryLogits([torch.empty(2, 3, 8, 8, 8)], said), torch.empty(2, 8, 8, 8, dtype=torch.uint8)).backward()
        assert voxels.grad.shape == voxels.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_targets_of_any_integer_dtype(dtype):
    said = Queries(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 6), torch.randn(2, 6, 8, 5))
    target = torch.randint(0, 4, (2, 8, 5))
    options = {"ignore_index": IGNORED, "options": {"things": [1]}}
    assert torch.equal(of_queries(said, target.to(dtype), **options), of_queries(said, target, **options))


def test_more_segments_than_queries():
    target = torch.arange(8)[None]  # eight classes, three queries
    said = Queries(torch.randn(1, 1, 3, 9), torch.randn(1, 1, 3, 6), torch.randn(1, 6, 8, requires_grad=True))
    value = of_queries(said, target)
    value.backward()
    assert torch.isfinite(value)
    assert said.voxels.grad.abs().max() > 0
