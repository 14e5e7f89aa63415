"""Swin U-Net: windows by hand, which voxels see each other, patches merged, its size."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoseg.nn.blocks import InstanceNorm
from autoseg.nn.networks.swin_unet import (
    PatchMerging,
    SwinUNet,
    WindowAttention,
    from_windows,
    offset_index,
    same_region,
    to_windows,
    window_extent,
)
from small_transformers import build, enlarge, parameters_of, parameters_of_block, written_out

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


# ---- window attention ----


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


# ---- the network ----


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


def test_parameter_count_of_swin_unet():
    offsets = 15 * 15  # of an 8 x 8 window, one head

    def stage(entry, channels):
        return entry + 2 * (parameters_of_block(channels) + offsets) + 2 * channels

    def convolutions(cin, cout):
        return 9 * cin * cout + 9 * cout**2 + 2 * (cout + 2 * cout)

    encoder = convolutions(1, 8) + stage((4 * 8 + 1) * 16, 16) + stage((4 * 16 + 1) * 24, 24)
    up = (4 * 24 + 1) * 16 + 4 * 16 * 8 + 8
    decoder = convolutions(16, 8) + stage((32 + 1) * 16, 16)
    assert parameters_of(build(SwinUNet)) == encoder + up + decoder + (8 + 1) * 2 + (16 + 1) * 2


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
