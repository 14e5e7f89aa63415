"""The transformer networks and their parts: attention by its formula, windows by hand, who sees whom, and learning."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoseg.nn.attention import (
    ChannelNorm,
    FeedForward,
    MultiHeadAttention,
    TransformerBlock,
    head_count,
    init_transformer,
    transformer_stage,
)
from autoseg.nn.blocks import ConvBlock, InstanceNorm, Stage, set_checkpointing
from autoseg.nn.losses import DeepSupervision, dice_ce
from autoseg.nn.segformer import MixFeedForward, ReducedAttention, SegFormer, embedding_stage
from autoseg.nn.swin_unet import (
    PatchMerging,
    SwinUNet,
    WindowAttention,
    from_windows,
    offset_index,
    same_region,
    to_windows,
    window_extent,
)
from autoseg.nn.transunet import GlobalAttention, PositionEncoding, TransUNet
from autoseg.nn.unet import UNet

NETWORKS = [SegFormer, SwinUNet, TransUNet]
CPU = torch.device("cpu")


def build(network, dims=2, features=(8, 16, 24), in_channels=1, num_heads=2, **changed):
    """Two blocks per stage; isotropic halving and 3-wide kernels unless said otherwise."""
    stages = len(features)
    plan = {
        "strides": [(1,) * dims] + [(2,) * dims] * (stages - 1),
        "kernel_sizes": [(3,) * dims] * stages,
        "blocks": [2] * stages,
        "decoder_blocks": [2] * (stages - 1),
    }
    return network(in_channels=in_channels, num_heads=num_heads, features=features, **(plan | changed))


def enlarge(module, factor=10.0):
    """Linear weights and position biases as far from 0 as training makes them: attention that prefers something."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    return module


def parameters_of(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- layer normalisation ----


def test_channel_norm_equals_its_definition():
    norm = enlarge(ChannelNorm(5))
    nn.init.uniform_(norm.weight, 0.5, 2)
    tokens = 3 * torch.randn(2, 3, 4, 5) + 10
    x, weight, bias = (t.detach().double().numpy() for t in (tokens, norm.weight, norm.bias))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias
    assert norm(tokens).detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_channel_norm_keeps_float32_statistics_under_bfloat16():
    # about 300 bfloat16 knows every second integer: a mean rounded to it would shift the result by 0.1
    norm = ChannelNorm(64)
    tokens = (8 * torch.randn(16, 64) + 300.7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = norm(tokens)
    assert result.dtype == torch.bfloat16
    x = tokens.double().numpy()
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    assert np.all(np.abs(result.detach().double().numpy() - expected) <= 2**-8 * np.abs(expected) + 1e-3)


# ---- attention ----


@pytest.mark.parametrize(
    ("channels", "heads"), [(1, 1), (4, 1), (8, 1), (16, 1), (48, 1), (64, 2), (80, 2), (112, 2), (320, 10), (97, 1)]
)
def test_heads_divide_the_channels(channels, heads):
    assert head_count(channels, 32) == heads
    assert channels % heads == 0


def written_out(attention, tokens, context, bias):
    """softmax(Q K^T / sqrt(d) + bias) V of each sample and head alone, in float64, without a library's attention."""

    def linear(layer, x):
        y = x @ layer.weight.detach().double().numpy().T
        return y if layer.bias is None else y + layer.bias.detach().double().numpy()

    result = np.zeros(tokens.shape)
    for b, (own, other) in enumerate(zip(tokens.double().numpy(), context.double().numpy(), strict=True)):
        query, key, value = (
            linear(layer, x).reshape(len(x), attention.heads, -1)
            for layer, x in ((attention.query, own), (attention.key, other), (attention.value, other))
        )
        seen = np.zeros_like(query)
        for h in range(attention.heads):
            scores = query[:, h] @ key[:, h].T / math.sqrt(query.shape[-1]) + bias[b % len(bias), h]
            weights = np.exp(scores - scores.max(1, keepdims=True))
            seen[:, h] = weights / weights.sum(1, keepdims=True) @ value[:, h]
        result[b] = linear(attention.project, seen.reshape(len(own), -1))
    return result


@pytest.mark.parametrize("bias_batch", [None, 1, 2])
def test_attention_equals_its_formula(bias_batch):
    attention = enlarge(MultiHeadAttention(12, 3).apply(init_transformer), 30)
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    bias = None if bias_batch is None else torch.randn(bias_batch, 3, 5, 7)
    if bias is not None:
        bias[:, :, 2, 3:] = -torch.inf
    expected = written_out(attention, tokens, context, np.zeros((1, 3, 5, 7)) if bias is None else bias.numpy())
    assert expected.std() > 0.3  # there is something to compare
    assert attention(tokens, context, bias).detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_attention_takes_no_notice_of_forbidden_keys():
    attention = enlarge(MultiHeadAttention(8, 2))
    tokens = torch.randn(1, 3, 8)
    bias = torch.zeros(1, 1, 3, 3)
    bias[..., 2] = -torch.inf
    changed = tokens.clone()
    changed[:, 2] += 1
    assert torch.equal(attention(tokens, tokens, bias)[:, :2], attention(changed, changed, bias)[:, :2])


def test_a_block_adds_attention_and_then_feed_forward_to_its_normalised_tokens():
    class Times(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    # (1, 3) normalises to (-1, 1); plus twice that: (-1, 5), which normalises to (-1, 1) again; plus three times that
    block = TransformerBlock(2, Times(2), Times(3))
    assert block(torch.tensor([[1.0, 3.0]]))[0].tolist() == pytest.approx([-4, 8], abs=1e-3)


def test_linear_weights_begin_small_and_biases_at_zero():
    layer = FeedForward(64, 4).apply(init_transformer)[0]
    # a normal of standard deviation 0.02 cut off at twice that keeps 0.88 of it
    assert layer.weight.std().item() == pytest.approx(0.0176, rel=0.03)
    assert 0.039 < layer.weight.abs().max() < 0.0401
    assert layer.weight.mean().item() == pytest.approx(0, abs=5e-4)
    within_one = (layer.weight.abs() < 0.02).float().mean().item()
    assert within_one == pytest.approx(0.6827 / 0.9545, abs=0.01)
    assert torch.count_nonzero(layer.bias) == 0


# ---- windows ----


def test_windows_of_a_plane_by_hand():
    plane = torch.arange(16).view(1, 4, 4, 1)
    assert to_windows(plane, (2, 2))[..., 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert to_windows(plane, (1, 4))[..., 0].tolist() == plane[0, ..., 0].tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3), st.integers(1, 3))
def test_windows_are_put_back_where_they_were(axes, batch):
    window = [edge for _, edge in axes]
    shape = (batch, *(count * edge for count, edge in axes), 2)
    tokens = torch.arange(math.prod(shape)).view(shape)
    windows = to_windows(tokens, window)
    assert windows.shape == (batch * math.prod(count for count, _ in axes), math.prod(window), 2)
    assert torch.equal(from_windows(windows, shape, window), tokens)


def test_offset_index_of_a_2x2_window_by_hand():
    # columns 0..8 are the offsets (-1, -1), (-1, 0), ..., (1, 1); voxels (0, 0), (0, 1), (1, 0), (1, 1)
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert offset_index((2, 2), (2, 2), CPU).tolist() == expected
    # a smaller window uses the middle of the table: 3 x 7 offsets, (0, 0) is column 7 + 3
    assert offset_index((1, 2), (2, 4), CPU).tolist() == [[10, 9], [11, 10]]


def test_regions_of_a_shifted_line_by_hand():
    # voxels 0 1 2 3 shifted by one: windows (1 2) and (3 0), whose voxels lie at opposite ends
    both, none = [[True, True], [True, True]], [[True, False], [False, True]]
    assert same_region((4,), (2,), (0,), (1,), CPU).tolist() == [both, none]
    # voxels 0..4 and one of padding, p, in windows of three: (1 2 3) and (4 p 0)
    apart = same_region((5,), (3,), (1,), (1,), CPU)
    assert apart[0].all()
    assert torch.equal(apart[1], torch.eye(3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("kernel", "tokens", "window"),
    [
        ((3, 3, 3), 64, (4, 4, 4)),
        ((1, 3, 3), 64, (1, 8, 8)),
        ((3, 3), 64, (8, 8)),
        ((3, 3, 3), 343, (7, 7, 7)),
        ((3, 3, 3), 342, (6, 6, 6)),
        ((1, 1, 1), 64, (1, 1, 1)),
        ((5, 3), 1, (1, 1)),
    ],
)
def test_window_extent(kernel, tokens, window):
    assert window_extent(kernel, tokens) == window


def window_of(place, size, widest, shifted):
    """Number of the window a voxel lies in, along one axis; shifted windows begin half a window later."""
    count = math.ceil(size / widest)
    edge = math.ceil(size / count)
    return (place - (edge // 2 if shifted and count > 1 else 0)) // edge


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((7, 10), (4, 4)),  # two windows of 4, one padded; three of 4, two voxels padded
        ((9, 3), (8, 8)),  # two windows of 5, not of 8; one of 3
        ((4, 1, 6), (2, 2, 4)),
        ((5, 3, 2), (2, 1, 2)),
    ],
)
def test_a_voxel_sees_the_voxels_of_its_window_and_no_others(shape, window, shifted):
    attention = enlarge(WindowAttention(2, 1, window, shifted))
    tokens = torch.randn(1, *shape, 2)
    influence = torch.autograd.functional.jacobian(lambda x: attention(x).sum(-1), tokens)
    voxels = math.prod(shape)
    influence = influence.abs().amax(-1).view(voxels, voxels) > 0
    own = np.array(
        [
            [window_of(p, s, w, shifted) for p, s, w in zip(place, shape, window, strict=True)]
            for place in itertools.product(*map(range, shape))
        ]
    )
    expected = (own[:, None] == own[None, :]).all(-1)
    assert 1 < expected.sum(1).max() < voxels
    assert np.array_equal(influence.numpy(), expected)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=3), st.booleans(), st.integers(1, 2))
def test_window_attention_fits_any_map(shape, shifted, batch):
    attention = enlarge(WindowAttention(2, 1, (4,) * len(shape), shifted))
    tokens = torch.randn(batch, *shape, 2)
    result = attention(tokens)
    assert result.shape == tokens.shape
    assert torch.isfinite(result).all()
    # samples know nothing of each other, also where the mask is repeated for them
    assert torch.allclose(attention(tokens[-1:]), result[-1:], atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_map_inside_one_window_is_plain_attention_with_a_bias_per_offset(shifted):
    attention = enlarge(WindowAttention(4, 2, (4, 4), shifted), 3)
    nn.init.normal_(attention.offset_bias)
    tokens = torch.randn(2, 3, 2, 4)
    places = list(itertools.product(range(3), range(2)))
    columns = [[(qy - ky + 3) * 7 + qx - kx + 3 for ky, kx in places] for qy, qx in places]
    bias = attention.offset_bias.detach()[:, columns][None].numpy()
    flat = tokens.flatten(1, 2)
    expected = written_out(attention.attention, flat, flat, bias).reshape(tokens.shape)
    assert attention(tokens).detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_every_second_block_shifts_its_windows():
    built = build(SwinUNet, blocks=[1, 3, 2], decoder_blocks=[1, 4])
    stages = [*built.encoder, *built.decoder]
    shifted = [[m.shifted for m in stage.modules() if isinstance(m, WindowAttention)] for stage in stages]
    assert shifted == [[], [False, True, False], [False, True], [], [False, True, False, True]]


def test_patches_are_merged_linearly_and_padded_at_their_ends():
    merging = PatchMerging(1, 1, (2, 1))
    nn.init.constant_(merging.join.weight, 1)
    nn.init.constant_(merging.join.bias, 0.5)
    image = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    assert merging(image[None, None])[0, 0].tolist() == [[4.5, 6.5], [5.5, 6.5]]


# ---- spatial reduction ----


def test_keys_are_means_over_blocks_by_hand():
    # 4 keys: 2 per axis; 3 rows make blocks of 2, the last cut short, 5 columns blocks of 3
    attention = ReducedAttention(2, 1, 1, keys=4)
    tokens = torch.tensor([[0.0, 3, 6, 1, 3], [0, 3, 6, 5, 3], [9, 0, 0, 2, 4]]).view(1, 3, 5, 1)
    assert attention.averaged(tokens)[0, ..., 0].tolist() == [[3, 3], [3, 3]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=3), st.integers(1, 600))
def test_keys_are_bounded_for_any_map(shape, keys):
    averaged = ReducedAttention(len(shape), 1, 1, keys).averaged(torch.ones(1, *shape, 1))
    assert math.prod(averaged.shape) <= keys
    assert torch.equal(averaged, torch.ones_like(averaged))  # blocks cut short are means of what they hold
    root = math.floor(keys ** (1 / len(shape)) + 1e-9)
    assert all(got == edge for got, edge in zip(averaged.shape[1:-1], shape, strict=True) if edge <= root)


def test_a_map_of_few_voxels_is_not_reduced():
    attention = enlarge(ReducedAttention(3, 8, 2, keys=512))
    tokens = torch.randn(2, 8, 4, 1, 8)
    context = attention.norm(attention.reduce(tokens))
    expected = attention.attention(tokens.flatten(1, 3), context.flatten(1, 3)).view(tokens.shape)
    assert torch.equal(attention(tokens), expected)
    coarser = ReducedAttention(3, 8, 2, keys=511)
    coarser.load_state_dict(attention.state_dict())
    assert not torch.allclose(coarser(tokens), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("strides", "stage"),
    [
        ([(1, 1, 1)] + [(2, 2, 2)] * 5, 2),  # reduced by 4, as in the paper
        ([(1, 1)] + [(2, 2)] * 7, 2),
        ([(1, 1)] + [(2, 2)] * 4, 2),
        ([(1, 1, 1)] + [(2, 2, 2)] * 3, 1),  # three halvings: one of them
        ([(1, 1, 1)] + [(2, 2, 2)] * 2, 1),
        ([(1, 1, 1), (2, 2, 2)], 0),
        ([(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)], 2),
        ([(1, 1), (4, 2), (2, 2), (2, 2), (2, 2)], 1),  # 8 would be too much
    ],
)
def test_first_embedding_reduces_by_four_or_half_of_the_steps(strides, stage):
    assert embedding_stage(strides) == stage


def test_first_embedding_carries_the_product_of_the_strides():
    strides = [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    kernels = [(1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
    network = build(SegFormer, 3, (4, 6, 8, 10, 12), strides=strides, kernel_sizes=kernels)
    embeddings = [stage[0] for stage in network.encoder]
    assert [e.stride for e in embeddings] == [(1, 4, 4), (2, 2, 2), (2, 2, 2)]
    assert [e.kernel_size for e in embeddings] == [(1, 7, 7), (3, 3, 3), (3, 3, 3)]
    assert [e.out_channels for e in embeddings] == [8, 10, 12]


# ---- positions ----


def shuffled_alike(module, tokens):
    """Whether moving every token (B, *s, C) to the place of the next does nothing but move the result alike."""
    order = torch.arange(math.prod(tokens.shape[1:-1])).roll(1)

    def shuffle(x):
        return x.flatten(1, -2)[:, order].view(x.shape)

    return torch.allclose(module(shuffle(tokens)), shuffle(module(tokens)), atol=1e-4)


class Tokens(nn.Module):
    """A module of maps (B, C, *s), for tokens."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, tokens):
        return self.module(tokens.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (1, 3, 1)])
def test_positions_break_the_symmetry_of_attention(shape):
    tokens = torch.randn(2, *shape, 8)

    def stage(entry):
        parts = [(GlobalAttention(8, 2), FeedForward(8, 2))]
        return enlarge(Tokens(transformer_stage(entry, 8, parts).apply(init_transformer)))

    assert shuffled_alike(stage(nn.Identity()), tokens)
    assert not shuffled_alike(stage(PositionEncoding(len(shape), 8)), tokens)
    assert not shuffled_alike(MixFeedForward(len(shape), 8, 2, (3,) * len(shape)), tokens)


def test_positions_are_found_in_a_uniform_image():
    # of a constant map every voxel is the same, but for the edge that zero padding shows to the convolution
    encoded = PositionEncoding(2, 3)(torch.ones(1, 3, 6, 6))
    assert (encoded[..., 0, :] - encoded[..., 2, :]).abs().min() > 0
    assert torch.allclose(encoded[..., 2, 2], encoded[..., 3, 3], atol=1e-5)


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


# ---- networks: size ----


def block(channels, ratio=4):
    """Attention (four linear layers, one without bias), feed-forward, two norms."""
    attention = 4 * channels**2 + 3 * channels
    feed_forward = 2 * ratio * channels**2 + (ratio + 1) * channels
    return attention + feed_forward + 4 * channels


def test_transunet_is_the_unet_and_a_transformer():
    features = (32, 64, 128, 256, 320, 320)
    network = build(TransUNet, 3, features, num_heads=3, layers=4)
    added = 4 * block(320) + (27 + 1) * 320 + 2 * 320  # position encoding, last norm
    assert added == 4_940_160
    assert parameters_of(network) == parameters_of(build(UNet, 3, features, num_heads=3)) + added == 36_136_559


def test_parameter_count_of_segformer():
    # stages 1 and 2: embedding; per block its linear reduction and norm, depth-wise convolution; norm; projection
    def stage(cin, cout):
        reduction, depth_wise = cout**2 + cout + 2 * cout, (9 + 1) * 4 * cout
        return (9 * cin + 1) * cout + 2 * (block(cout) + reduction + depth_wise) + 2 * cout + (cout + 1) * 24

    head = 2 * 24 + 24 * 2 + 2
    assert parameters_of(build(SegFormer)) == stage(1, 16) + stage(16, 24) + head


def test_parameter_count_of_swin_unet():
    offsets = 15 * 15  # of an 8 x 8 window, one head

    def stage(entry, channels):
        return entry + 2 * (block(channels) + offsets) + 2 * channels

    def convolutions(cin, cout):
        return 9 * cin * cout + 9 * cout**2 + 2 * (cout + 2 * cout)

    encoder = convolutions(1, 8) + stage((4 * 8 + 1) * 16, 16) + stage((4 * 16 + 1) * 24, 24)
    up = (4 * 24 + 1) * 16 + 4 * 16 * 8 + 8
    decoder = convolutions(16, 8) + stage((32 + 1) * 16, 16)
    assert parameters_of(build(SwinUNet)) == encoder + up + decoder + (8 + 1) * 2 + (16 + 1) * 2


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
    ],
)
def test_every_option_changes_the_network(network, option):
    def logits(**options):
        torch.manual_seed(1)
        return enlarge(build(network, **options))(image)[0]

    image = torch.randn(1, 1, 16, 16)
    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(), logits(**option), atol=1e-3)


# ---- networks: shapes ----


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
    built = build(network, dims, features, in_channels=2, num_heads=3).eval()
    with torch.no_grad():
        logits = built(torch.randn(1, 2, *shape))
    supervised = 1 if network is SegFormer else len(features) - 1
    expected = [tuple(math.ceil(edge / 2**i) for edge in shape) for i in range(supervised)]
    assert [tuple(stage.shape) for stage in logits] == [(1, 3, *edges) for edges in expected]
    assert all(torch.isfinite(stage).all() for stage in logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_anisotropic_plan_with_an_axis_of_one_voxel(network):
    strides = [(1, 1, 1), (1, 2, 2), (1, 2, 3)]
    built = build(network, 3, strides=strides, kernel_sizes=[(1, 3, 3), (1, 3, 3), (3, 3, 3)])
    logits = built(torch.randn(1, 1, 1, 12, 11))
    supervised = [(1, 12, 11), (1, 6, 6)][: 1 if network is SegFormer else 2]
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


def test_swin_unet_keeps_slices_apart_where_kernels_and_strides_are_one():
    built = enlarge(build(SwinUNet, 3, (3, 4), strides=[(1, 1, 1), (1, 2, 2)], kernel_sizes=[(1, 3, 3)] * 2))
    for module in built.modules():
        if isinstance(module, InstanceNorm):  # it alone looks at the whole map
            module.forward = lambda x: x
    image = torch.randn(1, 1, 3, 20, 20)
    changed = image.clone()
    changed[:, :, 1] += 1
    difference = (built(changed)[0] - built(image)[0]).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] == difference[2] == 0
    assert difference[1] > 0


# ---- networks: numbers ----


@pytest.mark.parametrize("network", NETWORKS)
def test_building_reads_no_value_back(network):
    with torch.device("meta"):  # tensors without storage, as for tracing memory
        built = build(network)
    assert all(p.is_meta for p in built.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dims", "patch"), [(2, (40, 36)), (3, (20, 12, 16))])
def test_every_parameter_learns(network, dims, patch):
    built = build(network, dims, in_channels=2, num_heads=3)
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
        assert low.dtype == torch.bfloat16
        assert high.dtype == torch.float32
        assert (low.float() - high).square().mean().sqrt() < 0.05 * high.std()
    half[0].float().square().mean().backward()
    assert {p.grad.dtype for p in built.parameters() if p.grad is not None} == {torch.float32}


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


@pytest.mark.parametrize("network", NETWORKS)
def test_the_exported_network_gives_the_same_logits(network):
    built = build(network, 3).eval()
    image = torch.randn(1, 1, 9, 12, 10)  # windows of stage 1 are padded and shifted
    exported = torch.export.export(built, (image,)).module()
    for own, other in zip(built(image), exported(image), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


# ---- learning ----


def two_cases(dims, edge):
    """A disc (ball) in one case, a square (cube) in the other, brighter than noisy background."""
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * dims, indexing="ij")) - edge / 2 + 0.5
    ball = (np.square(grid + 1).sum(0) < (edge / 3) ** 2).astype(np.int64)
    cube = (np.abs(grid - 2).max(0) < edge / 5).astype(np.int64)
    target = torch.from_numpy(np.stack([ball, cube]))
    return target[:, None] + 0.5 * torch.randn(2, 1, *[edge] * dims), target


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
