"""Mask classification: semantic inference and masked attention written out, what queries say, its size."""

import itertools
import math

import pytest
import torch

from autoseg.nn.blocks import Stage, set_checkpointing
from autoseg.nn.losses import DeepSupervision, build_loss
from autoseg.nn.networks.layout import Layout
from autoseg.nn.networks.mask_transformer import (
    CrossAttention,
    MaskTransformer,
    QueryLayer,
    positions,
    semantic_logits,
)
from autoseg.nn.networks.unet import UNet
from autoseg.nn.queries import QueryLogits
from small_transformers import build, enlarge, parameters_of, parameters_of_block, written_out


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def matched(**options):
    given = {"regions": (), "ignore_index": None, "class_weights": None, "batch_dice": True}
    return DeepSupervision(build_loss("mask_classification", **given, options=options))


# ---- semantic inference ----


def test_semantic_inference_equals_a_loop():
    classes, embeddings, voxels = torch.randn(2, 5, 4), torch.randn(2, 5, 3), torch.randn(2, 3, 4, 6)
    found = semantic_logits(classes, embeddings, voxels)
    assert found.shape == (2, 3, 4, 6)
    for sample, label, y, x in itertools.product(range(2), range(3), range(4), range(6)):
        total = 1e-6
        for query in range(5):
            of_class = classes[sample, query].exp()[label] / classes[sample, query].exp().sum()
            of_mask = 1 / (1 + math.exp(-float(embeddings[sample, query] @ voxels[sample, :, y, x])))
            total += float(of_class) * of_mask
        assert float(found[sample, label, y, x]) == pytest.approx(math.log(total), abs=1e-5)


def test_semantic_inference_by_hand():
    # a query that is sure of class 1 on the first voxel, and one that is sure to be nothing
    sure = torch.tensor([[[-50.0, 50.0, -50.0], [-50.0, -50.0, 50.0]]])
    masks = torch.tensor([[[60.0, -60.0], [60.0, 60.0]]])
    found = semantic_logits(sure, torch.eye(2)[None], masks)
    assert found[0, :, 0].tolist() == pytest.approx([math.log(1e-6), 0], abs=1e-5)
    assert found[0, :, 1].tolist() == pytest.approx([math.log(1e-6)] * 2, abs=1e-5)


# ---- attention ----


def test_a_query_looks_only_where_its_mask_is():
    network = build(MaskTransformer, 2, (4, 8, 8), queries=3)
    voxels = torch.tensor([[[3.0, -1.0, 2.0, -4.0]]])  # one channel, four tokens
    bias = network._outside(torch.tensor([[[1.0], [-1.0], [0.0]]]), voxels)
    assert bias.shape == (1, network.heads_of_attention, 3, 4)
    inf = math.inf
    assert bias[0, 0].tolist() == [[0, -inf, 0, -inf], [-inf, 0, -inf, 0], [0, 0, 0, 0]]
    nowhere = network._outside(torch.tensor([[[1.0]] * 3]), -voxels.abs())
    assert torch.equal(nowhere, torch.zeros_like(nowhere))  # a mask that is nowhere hides nothing


def test_cross_attention_equals_attention_written_out():
    block = enlarge(CrossAttention(8, 2))
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    bias = torch.where(torch.rand(2, 1, 3, 5) < 0.4, -math.inf, 0.0).expand(-1, 2, -1, -1).clone()
    bias[..., 0] = 0
    with torch.no_grad():
        expected = written_out(block.attention, block.norm(queries), context, bias.double().numpy())
        found = block(queries, context, bias) - queries
        weights = block.weights(queries, context, bias)
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    assert torch.equal(weights == 0, bias[:, 0] == -math.inf)


def test_layers_take_the_maps_in_turn_the_coarsest_first():
    network = build(MaskTransformer, 2, (4, 8, 8, 8, 8), layers=5)
    seen = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[1].shape[1]))
    network(torch.randn(1, 1, 32, 48))
    assert seen == [2 * 3, 4 * 6, 8 * 12, 2 * 3, 4 * 6]


@pytest.mark.parametrize(("stages", "levels"), [(2, 1), (3, 2), (4, 3), (6, 3)])
def test_queries_never_look_at_the_finest_map(stages, levels):
    assert len(build(MaskTransformer, 2, (4,) * stages).levels) == levels


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (1, 7)])
def test_every_place_has_a_code_of_its_own(shape):
    code = positions(shape, 24, torch.device("cpu"))
    assert code.shape == (math.prod(shape), 24)
    assert code.abs().max() <= 1
    assert torch.cdist(code, code).fill_diagonal_(9).min() > 0.1
    narrow = positions(shape, 7, torch.device("cpu"))  # the slowest waves of all axes
    assert torch.equal(narrow[:, : 2 * len(shape)], positions(shape, 2 * len(shape), torch.device("cpu"))[:, :7])


def test_the_slowest_wave_is_half_a_period_along_an_axis():
    code = positions((1, 4), 4, torch.device("cpu"))  # sines of y and x, cosines of y and x
    assert code[:, 1].tolist() == pytest.approx([math.sin(math.pi * (i + 0.5) / 4) for i in range(4)], abs=1e-6)
    assert code[:, 3].tolist() == pytest.approx([math.cos(math.pi * (i + 0.5) / 4) for i in range(4)], abs=1e-6)


# ---- what it returns ----


def test_queries_come_with_the_logits():
    network = build(MaskTransformer, 3, (4, 8, 16), out_channels=3, queries=7, layers=2)
    result = network(torch.randn(2, 1, 9, 10, 11))
    assert isinstance(result, QueryLogits)
    said = result.queries
    assert said.classes.shape == (3, 2, 7, 4)  # before the first layer and after each
    assert said.embeddings.shape == (3, 2, 7, 4)
    assert said.voxels.shape == (2, 4, 9, 10, 11)
    torch.testing.assert_close(result[0], semantic_logits(said.classes[-1], said.embeddings[-1], said.voxels))
    network.deep_supervision = False
    alone = network(torch.randn(2, 1, 9, 10, 11)).queries
    assert (len(alone.classes), len(alone.embeddings)) == (1, 1)


def test_there_are_as_many_queries_as_classes_at_least():
    assert build(MaskTransformer, out_channels=105, queries=10).queries.shape[1] == 105
    assert build(MaskTransformer, out_channels=3, queries=10).queries.shape[1] == 10


def test_masks_differ_from_each_other_from_the_start():
    network = build(MaskTransformer, 2, (8, 16, 32), queries=12)
    masks = network.explain(torch.randn(1, 1, 32, 32)).masks
    logits = masks.logit().flatten(2)
    assert 0.5 < logits.std() < 2
    assert torch.corrcoef(logits[0]).fill_diagonal_(0).abs().max() < 0.99


@pytest.mark.parametrize(("dims", "shape"), [(2, (18, 21)), (3, (9, 12, 10))])
def test_what_the_queries_did_is_explained(dims, shape):
    network = build(MaskTransformer, dims, (4, 8, 8), out_channels=3, queries=5, layers=3)
    image = torch.randn(2, 1, *shape)
    seen = network.explain(image)
    said = network(image).queries
    torch.testing.assert_close(seen.classes, said.classes[-1].softmax(-1))
    torch.testing.assert_close(seen.masks, torch.einsum("bqc,bc...->bq...", said.embeddings[-1], said.voxels).sigmoid())
    half, quarter = (tuple(math.ceil(edge / step) for edge in shape) for step in (2, 4))
    assert [tuple(attention.shape) for attention in seen.attention] == [
        (2, 5, *quarter), (2, 5, *half), (2, 5, *quarter)
    ]  # fmt: skip
    for attention in seen.attention:
        torch.testing.assert_close(attention.flatten(2).sum(2), torch.ones(2, 5))
        assert (attention >= 0).all()
    assert not seen.masks.requires_grad
    assert not any(layer[0]._forward_pre_hooks for layer in network.layers)


def test_its_facts_for_the_planner():
    assert MaskTransformer.layout == Layout(
        decoder_blocks=1, sees="patch", learning_rate=5e-4, predicts="labels", loss="mask_classification", queries=True
    )


@pytest.mark.thorough
def test_its_size_is_that_of_the_unet_and_of_what_it_adds():
    features, heads, queries = (32, 64, 128, 256, 320, 320), 3, 32
    width = 256
    network = build(MaskTransformer, 3, features, out_channels=heads, queries=queries, layers=3)
    levels = sum((maps + 1) * width + 3 * width for maps in (320, 320, 256))  # projection, mark, norm
    cross = 4 * width**2 + 3 * width + 2 * width  # keys have no bias
    layers = 3 * (cross + parameters_of_block(width))
    said = 2 * width + (width + 1) * (heads + 1) + (width + 1) * width + (width + 1) * 32
    embedding = (32 + 1) * 32
    plain = build(UNet, 3, features, out_channels=heads)
    without_heads = parameters_of(plain) - parameters_of(plain.heads)
    assert parameters_of(network) == without_heads + levels + layers + said + embedding + queries * width


# ---- memory, other code ----


@pytest.mark.thorough
def test_layers_of_queries_are_checkpointed_with_the_same_gradients():
    network = build(MaskTransformer, 2, (4, 8, 8), out_channels=3)
    assert all(isinstance(layer, QueryLayer) and isinstance(layer, Stage) for layer in network.layers)
    image, target = torch.randn(2, 1, 16, 12), torch.randint(0, 3, (2, 16, 12))

    def gradients(checkpointing):
        set_checkpointing(network, checkpointing)
        network.zero_grad()
        matched()(network(image), target).backward()
        return [p.grad.clone() for p in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_masks_at_full_resolution_are_not_kept():
    network = build(MaskTransformer, 2, (2, 8, 8), queries=64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        network(torch.randn(1, 1, 64, 64))
    assert max(sizes) == 64 * 32 * 32  # the finest of the maps that queries look at; masks are four times as large


# ---- learning ----


@pytest.mark.parametrize(("dims", "shape"), [(2, (16, 13)), (3, (8, 9, 12))])
def test_every_parameter_learns_from_what_queries_say(dims, shape):
    network = build(MaskTransformer, dims, (4, 8, 8), in_channels=2, out_channels=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    value = matched()(network(torch.randn(2, 2, *shape)), torch.randint(0, 3, (2, *shape)))
    value.backward()
    taken_away = {f"{name}.0.bias" for name, module in network.named_modules() if type(module).__name__ == "ConvBlock"}
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert name in taken_away or parameter.grad.abs().max() > 1e-7, name


@pytest.mark.thorough
@pytest.mark.parametrize("things", [(), (1,)], ids=["classes", "things"])
@pytest.mark.parametrize(("dims", "edge"), [(2, 32), (3, 16)])
def test_it_learns_a_batch_by_heart_and_the_things_in_it(dims, edge, things):
    """Two bright balls of one class in each of two noisy cases: of things, each ball has a query of its own."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(edge)] * dims, indexing="ij")) + 0.5
    target = torch.zeros(2, *[edge] * dims, dtype=torch.long)
    centres = [(0.25, 0.75), (0.3, 0.7)]
    for case, along in enumerate(centres):
        for centre in along:
            target[case][((grid - centre * edge) ** 2).sum(0) < (edge / 5) ** 2] = 1
    image = target[:, None] + 0.3 * torch.randn(2, 1, *[edge] * dims)
    network = build(MaskTransformer, dims, (8, 16, 32), queries=12)
    optimizer = torch.optim.AdamW(network.parameters(), 0.005)
    criterion = matched(things=list(things))
    for _ in range(120):
        optimizer.zero_grad()
        criterion(network(image), target).backward()
        optimizer.step()
    decided = network(image)[0].argmax(1)
    assert 2 * (decided * target).sum() / (decided.sum() + target.sum()) > 0.95
    seen = network.explain(image)
    for case in range(2):
        ours = seen.masks[case][seen.classes[case].argmax(-1) == 1] > 0.5
        assert len(ours) == (2 if things else 1)
        covered = ours.flatten(1).float() @ target[case].flatten().float() / target[case].sum()
        assert covered.tolist() == pytest.approx([0.5, 0.5] if things else [1.0], abs=0.1)


@pytest.mark.thorough
def test_compiled_code_gives_the_queries_as_well():
    network = build(MaskTransformer, 2, (4, 8, 8), out_channels=3, queries=5)
    image = torch.randn(2, 1, 16, 12)
    expected = network(image)
    try:
        found = torch.compile(network, dynamic=False, backend="aot_eager")(image)
    finally:
        torch.compiler.reset()
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found.queries.classes, expected.queries.classes)
