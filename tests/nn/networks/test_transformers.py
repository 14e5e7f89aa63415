"""What the four transformer networks have in common: sizes and options, numbers, memory kept, and learning.

What one of them alone does is tested beside it: test_swin_unet, test_segformer, test_transunet,
test_mask_transformer; the parts they share in test_attention.
"""

import math

import numpy as np
import pytest
import torch

from autoseg.nn.attention import TransformerBlock
from autoseg.nn.blocks import ConvBlock, Stage, set_checkpointing
from autoseg.nn.losses import DeepSupervision, dice_ce
from autoseg.nn.networks.mask_transformer import MaskTransformer
from autoseg.nn.networks.segformer import ReducedAttention, SegFormer
from autoseg.nn.networks.swin_unet import SwinUNet, WindowAttention
from autoseg.nn.networks.transunet import GlobalAttention, TransUNet
from small_transformers import build, enlarge

NETWORKS = [SegFormer, SwinUNet, TransUNet, MaskTransformer]
SINGLE_MAP = (SegFormer, MaskTransformer)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- shapes and options ----


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("features", "shape"),
    [
        ((4, 6), (5, 4)),
        ((4, 8, 16), (37, 21)),
        ((48, 16, 4, 20), (3, 5)),  # edges shorter than the strides' product
        ((4, 6), (2, 3, 4)),
        ((4, 8, 16), (9, 16, 13)),
        ((4, 8, 16, 48), (1, 1, 1)),
        ((2,) * 8, (1, 130)),
    ],
)
def test_any_plan_and_any_size(network, features, shape):
    dims = len(shape)
    built = build(network, dims, features, in_channels=2, out_channels=3).eval()
    with torch.no_grad():
        logits = built(torch.randn(1, 2, *shape))
    supervised = 1 if network in SINGLE_MAP else len(features) - 1
    expected = [tuple(math.ceil(edge / 2**i) for edge in shape) for i in range(supervised)]
    assert [tuple(stage.shape) for stage in logits] == [(1, 3, *edges) for edges in expected]
    assert all(torch.isfinite(stage).all() for stage in logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_anisotropic_plan_with_an_axis_of_one_voxel(network):
    strides = [(1, 1, 1), (1, 2, 2), (1, 2, 3)]
    built = build(network, 3, strides=strides, kernel_sizes=[(1, 3, 3), (1, 3, 3), (3, 3, 3)])
    logits = built(torch.randn(1, 1, 1, 12, 11))
    supervised = [(1, 12, 11), (1, 6, 6)][: 1 if network in SINGLE_MAP else 2]
    assert [tuple(stage.shape[2:]) for stage in logits] == supervised


@pytest.mark.parametrize("network", NETWORKS)
def test_without_deep_supervision_only_the_same_finest_logits(network):
    built = build(network)
    image = torch.randn(2, 1, 16, 16)
    supervised = built(image)
    assert built.deep_supervision
    built.deep_supervision = False
    (alone,) = built(image)
    assert torch.equal(alone, supervised[0])


@pytest.mark.parametrize(
    ("network", "option"),
    [
        (SegFormer, {"mlp_ratio": 2}),
        (SegFormer, {"head_features": 8}),
        (SegFormer, {"keys": 4}),
        (SwinUNet, {"mlp_ratio": 2}),
        (SwinUNet, {"head_features": 8}),
        (SwinUNet, {"window_tokens": 4}),
        (TransUNet, {"mlp_ratio": 2}),
        (TransUNet, {"head_features": 8}),
        (TransUNet, {"layers": 1}),
        (MaskTransformer, {"mlp_ratio": 2}),
        (MaskTransformer, {"head_features": 8}),
        (MaskTransformer, {"layers": 1}),
        (MaskTransformer, {"queries": 4}),
    ],
)
def test_every_option_changes_the_network(network, option):
    def logits(**options):
        torch.manual_seed(1)
        return enlarge(build(network, **options))(image)[0]

    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(), logits(**option), atol=1e-3)


# ---- numbers ----


@pytest.mark.parametrize("network", NETWORKS)
def test_building_reads_no_value_back(network):
    with torch.device("meta"):  # tensors without storage, as for tracing memory
        built = build(network)
    assert all(p.is_meta for p in built.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dims", "patch"), [(2, (40, 36)), (3, (20, 12, 16))])
def test_every_parameter_learns(network, dims, patch):
    built = build(network, dims, in_channels=2, out_channels=3)
    logits = built(torch.randn(2, 2, *patch))
    sum((stage * torch.randn_like(stage)).sum() for stage in logits).backward()
    # normalisation takes the bias of the convolution before it away again
    normalised = {f"{n}.0.bias" for n, m in built.named_modules() if isinstance(m, ConvBlock)}
    assert bool(normalised) == (network is not SegFormer)
    for name, parameter in built.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        if name not in normalised:
            assert parameter.grad.abs().max() > 1e-5, name


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dims", "patch"), [(2, (18, 23)), (3, (8, 11, 12))])
def test_bfloat16_comes_close_to_float32(network, dims, patch):
    built = build(network, dims)
    image = torch.randn(2, 1, *patch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = built(image)
    exact = built(image)
    for low, high in zip(half, exact, strict=True):
        assert low.dtype == (torch.float32 if network is MaskTransformer else torch.bfloat16)  # it sums probabilities
        assert high.dtype == torch.float32
        assert (low.float() - high).square().mean().sqrt() < 0.05 * high.std()
    half[0].float().square().mean().backward()
    assert {p.grad.dtype for p in built.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS)
def test_the_exported_network_gives_the_same_logits(network):
    built = build(network, 3).eval()
    image = torch.randn(1, 1, 9, 12, 10)  # windows of stage 1 are padded and shifted
    exported = torch.export.export(built, (image,)).module()
    for own, other in zip(built(image), exported(image), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


# ---- memory ----


def largest_kept(module, x):
    """Number of values of the largest tensor kept for the backward pass."""
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x)
    return max(sizes)


def test_attention_never_keeps_a_matrix_of_all_tokens():
    tokens = torch.randn(1, 32, 32, 8)  # 1024 tokens; all pairs would be a million scores
    wide = tokens.numel()
    assert largest_kept(GlobalAttention(8, 1), tokens) <= wide
    assert largest_kept(ReducedAttention(2, 8, 1, keys=64), tokens) <= wide
    for shifted in (False, True):
        assert largest_kept(WindowAttention(8, 1, (4, 4), shifted), tokens) <= 1024 * 16


@pytest.mark.parametrize("network", NETWORKS)
def test_checkpointing_changes_no_bit_of_the_gradients(network):
    built = build(network, 3)
    image = torch.randn(2, 1, 12, 9, 10)

    def gradients_and_kept(checkpointing):
        set_checkpointing(built, checkpointing)
        built.zero_grad()
        kept = []

        def note(tensor):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = sum(stage.square().mean() for stage in built(image))
        loss.backward()
        return [p.grad.clone() for p in built.parameters()], sum(kept)

    plain, all_kept = gradients_and_kept(False)
    recomputed, few_kept = gradients_and_kept(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert few_kept < all_kept / 2


@pytest.mark.parametrize("network", NETWORKS)
def test_what_keeps_most_memory_stands_in_stages(network):
    built = build(network)
    inside = {id(p) for stage in built.modules() if isinstance(stage, Stage) for p in stage.parameters()}
    assert inside
    blocks = [m for m in built.modules() if isinstance(m, (TransformerBlock, ConvBlock))]
    assert all(id(p) in inside for m in blocks for p in m.parameters())


# ---- learning ----


def two_cases(dims, edge):
    """A disc (ball) in one case, a square (cube) in the other, brighter than noisy background."""
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * dims, indexing="ij")) - edge / 2 + 0.5
    ball = (np.square(grid + 1).sum(0) < (edge / 3) ** 2).astype(np.int64)
    cube = (np.abs(grid - 2).max(0) < edge / 5).astype(np.int64)
    target = torch.from_numpy(np.stack([ball, cube]))
    return target[:, None] + 0.5 * torch.randn(2, 1, *[edge] * dims), target


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dims", "edge"), [(2, 32), (3, 16)])
def test_it_learns_two_cases_by_heart(network, dims, edge):
    image, target = two_cases(dims, edge)
    built = build(network, dims, (8, 16, 16))
    criterion = DeepSupervision(dice_ce(ignore_index=None, class_weights=None, batch_dice=True))
    optimizer = torch.optim.AdamW(built.parameters(), 0.005)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(built(image), target).backward()
        optimizer.step()
    decided = built(image)[0].argmax(1)
    for case in range(2):
        both = (decided[case] * target[case]).sum()
        dice = 2 * both / (decided[case].sum() + target[case].sum())
        assert dice > 0.95, f"case {case}"
