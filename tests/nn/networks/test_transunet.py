"""TransUNet: positions that tell voxels apart, and its size, which is the U-Net's and a transformer's."""

import math

import pytest
import torch
from torch import nn

from autoseg.nn.attention import FeedForward, init_transformer, transformer_stage
from autoseg.nn.networks.segformer import MixFeedForward
from autoseg.nn.networks.transunet import GlobalAttention, PositionEncoding, TransUNet
from autoseg.nn.networks.unet import UNet
from small_transformers import build, enlarge, parameters_of, parameters_of_block


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


@pytest.mark.thorough
def test_transunet_is_the_unet_and_a_transformer():
    features = (32, 64, 128, 256, 320, 320)
    network = build(TransUNet, 3, features, out_channels=3, layers=4)
    added = 4 * parameters_of_block(320) + (27 + 1) * 320 + 2 * 320  # position encoding, last norm
    assert added == 4_940_160
    assert parameters_of(network) == parameters_of(build(UNet, 3, features, out_channels=3)) + added == 36_136_559
