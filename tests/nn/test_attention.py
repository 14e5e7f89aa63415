"""The parts that transformers share: layer normalisation and attention by their formulas, the block by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.nn.attention import (
    ChannelNorm,
    FeedForward,
    MultiHeadAttention,
    TransformerBlock,
    head_count,
    init_transformer,
)
from small_transformers import enlarge, written_out


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


# ---- blocks ----


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
