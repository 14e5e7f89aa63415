"""SegFormer: keys averaged by hand and bounded for any map, the first embedding, its size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.nn.networks.segformer import ReducedAttention, SegFormer, embedding_stage
from small_transformers import build, enlarge, parameters_of, parameters_of_block


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


# ---- the network ----


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


def test_parameter_count_of_segformer():
    # stages 1 and 2: embedding; per block its linear reduction and norm, depth-wise convolution; norm; projection
    def stage(cin, cout):
        reduction, depth_wise = cout**2 + cout + 2 * cout, (9 + 1) * 4 * cout
        blocks = 2 * (parameters_of_block(cout) + reduction + depth_wise)
        return (9 * cin + 1) * cout + blocks + 2 * cout + (cout + 1) * 24

    head = 2 * 24 + 24 * 2 + 2
    assert parameters_of(build(SegFormer)) == stage(1, 16) + stage(16, 24) + head
