"""The residual U-Net: nnU-Net's size, where its blocks lie, and that it begins as a shallow network."""

import itertools

import pytest
import torch
from torch import nn

from autoseg.nn.blocks import InstanceNorm, ResidualBlock
from autoseg.nn.networks.residual_unet import ResidualUNet

FEATURES, BLOCKS, HEADS = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6), 3


def six_stages(in_channels=1, out_channels=HEADS):
    with torch.device("meta"):
        return ResidualUNet(
            in_channels=in_channels,
            out_channels=out_channels,
            features=FEATURES,
            strides=[(1, 1, 1)] + [(2, 2, 2)] * 5,
            kernel_sizes=[(3, 3, 3)] * 6,
            blocks=BLOCKS,
            decoder_blocks=[1] * 5,
        )


def convolution(cin, cout):
    """3x3x3 weights and bias, then the normalisation's scale and shift."""
    return 27 * cin * cout + cout + 2 * cout


def test_parameter_count_of_nnunets_six_stage_network():
    def block(cin, cout):
        projection = 0 if cin == cout else cin * cout + 2 * cout  # 1x1x1 without bias, and its normalisation
        return convolution(cin, cout) + convolution(cout, cout) + projection

    incoming = (32, *FEATURES[:-1])
    stem = convolution(1, 32)
    encoder = sum(block(a, b) + (n - 1) * block(b, b) for a, b, n in zip(incoming, FEATURES, BLOCKS, strict=True))
    fine_and_coarse = list(itertools.pairwise(FEATURES))
    up = sum(8 * coarse * fine + fine for fine, coarse in fine_and_coarse)
    decoder = sum(convolution(2 * fine, fine) for fine in FEATURES[:-1])
    heads = sum(fine * HEADS + HEADS for fine in FEATURES[:-1])
    count = sum(p.numel() for p in six_stages().parameters())
    assert count == stem + encoder + up + decoder + heads
    assert count == 102_350_575  # nnU-Net's published 102.35 million


def test_its_blocks_are_counted_per_stage():
    network = six_stages()
    assert [sum(isinstance(m, ResidualBlock) for m in stage) for stage in network.encoder] == list(BLOCKS)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    assert len(convolutions) == 1 + 2 * sum(BLOCKS) + 5
    assert all(c.bias is not None for c in convolutions)
    without_bias = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.bias is None]
    assert [(c.in_channels, c.out_channels) for c in without_bias] == [(32, 64), (64, 128), (128, 256), (256, 320)]


def test_every_block_begins_without_effect_and_learns_to_have_one():
    torch.manual_seed(0)
    network = ResidualUNet(
        in_channels=1,
        out_channels=2,
        features=(4, 8),
        strides=[(1, 1), (2, 2)],
        kernel_sizes=[(3, 3)] * 2,
        blocks=(1, 3),
        decoder_blocks=(1,),
    )
    blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 4
    assert all(torch.count_nonzero(b.norm.weight) == torch.count_nonzero(b.norm.bias) == 0 for b in blocks)
    others = {m for m in network.modules() if isinstance(m, InstanceNorm)} - {b.norm for b in blocks}
    assert all(norm.weight.min() == norm.weight.max() == 1 for norm in others)
    # while the scale is zero, only it (and the shift) can learn; after a step the convolutions do, too
    image = torch.randn(2, 1, 8, 8)
    network(image)[0].square().mean().backward()
    assert all(b.norm.weight.grad.abs().max() > 1e-7 for b in blocks)
    assert all(b.first[0].weight.grad.abs().max() == 0 for b in blocks)
    torch.optim.SGD(network.parameters(), 0.1).step()
    network(image)[0].square().mean().backward()
    assert all(b.first[0].weight.grad.abs().max() > 1e-7 for b in blocks)


@pytest.mark.parametrize(("channels", "heads"), [(4, 2), (1, 5)])
def test_channels_and_heads_are_counted_once(channels, heads):
    base = sum(p.numel() for p in six_stages().parameters())
    other = sum(p.numel() for p in six_stages(channels, heads).parameters())
    assert other - base == (channels - 1) * 27 * 32 + (heads - HEADS) * sum(f + 1 for f in FEATURES[:-1])
