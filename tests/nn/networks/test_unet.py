"""The plain U-Net: its size, its geometry, and what a single voxel at the bottleneck does to it."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.nn.blocks import InstanceNorm
from autoseg.nn.losses import DeepSupervision, dice_ce
from small_networks import small_network


def small_unet(dims=3, features=(4, 6, 8), **changes):
    return small_network("unet", dims, features, **changes)


def count_parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- size ----


def test_parameter_count_of_nnunets_six_stage_network():
    features, heads = (32, 64, 128, 256, 320, 320), 3
    with torch.device("meta"):
        network = small_unet(out_channels=heads, features=features)

    def block(cin, cout):  # 3x3x3 convolution and bias, normalisation's scale and shift
        return 27 * cin * cout + cout + 2 * cout

    encoder = sum(block(a, b) + block(b, b) for a, b in itertools.pairwise((1, *features)))
    up = sum(8 * coarse * fine + fine for fine, coarse in itertools.pairwise(features))
    decoder = sum(block(2 * f, f) + block(f, f) for f in features[:-1])
    head = sum(f * heads + heads for f in features[:-1])
    # encoder  28 704 + 166 272 + 664 320 + 2 655 744 + 4 978 560 + 5 531 520
    # up       16 416 +  65 600 + 262 272 +   655 616 +   819 520
    # decoder  83 136 + 332 160 + 1 327 872 + 5 309 952 + 8 296 320
    assert (encoder, up, decoder, head) == (14_025_120, 1_819_424, 15_349_440, 2_415)
    # nnU-Net's published 31.2 million
    assert count_parameters(network) == 31_196_399 == encoder + up + decoder + head


def test_parameter_count_of_a_tiny_2d_network_by_hand():
    network = small_unet(dims=2, in_channels=3, out_channels=4, features=(2, 5))
    encoder = (9 * 3 * 2 + 2 + 4) + (9 * 2 * 2 + 2 + 4) + (9 * 2 * 5 + 5 + 10) + (9 * 5 * 5 + 5 + 10)
    decoder = (4 * 5 * 2 + 2) + (9 * 4 * 2 + 2 + 4) + (9 * 2 * 2 + 2 + 4)
    assert count_parameters(network) == encoder + decoder + (2 * 4 + 4)


# ---- shapes ----


def test_anisotropic_strides_and_kernels():
    # thick slices: the slice axis is neither convolved nor halved until the plane has caught up
    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2)]
    kernel_sizes = [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
    network = small_unet(features=(3, 4, 5, 6), strides=strides, kernel_sizes=kernel_sizes)
    logits = network(torch.randn(1, 1, 6, 16, 24))
    assert [tuple(stage.shape[2:]) for stage in logits] == [(6, 16, 24), (6, 8, 12), (3, 4, 6)]
    convolutions = [m for stage in network.encoder for m in stage.modules() if isinstance(m, nn.Conv3d)]
    assert [c.kernel_size for c in convolutions] == [k for k in kernel_sizes for _ in range(2)]
    assert [c.stride for c in convolutions] == [s for stride in strides for s in (stride, (1, 1, 1))]
    assert [up.kernel_size for up in network.up] == [up.stride for up in network.up] == strides[1:]
    decoding = [m for stage in network.decoder for m in stage.modules() if isinstance(m, nn.Conv3d)]
    assert [c.kernel_size for c in decoding] == [k for k in kernel_sizes[:-1] for _ in range(2)]


def test_slices_stay_apart_where_kernels_and_strides_are_one():
    # with kernel and stride 1 along Z, convolutions see single slices; normalisation, which does not, is taken out
    strides, kernel_sizes = [(1, 1, 1), (1, 2, 2)], [(1, 3, 3), (1, 3, 3)]
    network = small_unet(features=(3, 4), strides=strides, kernel_sizes=kernel_sizes)
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            module.forward = lambda x: x
    image = torch.randn(1, 1, 3, 8, 8)
    changed = image.clone()
    changed[:, :, 1] += 1.0
    difference = (network(changed)[0] - network(image)[0]).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] == difference[2] == 0
    assert difference[1] > 0


def test_skips_carry_detail_past_the_bottleneck():
    # with the path from below cut (zero up-sampled features), the image still reaches the finest logits
    network = small_unet(2, features=(4, 6))
    nn.init.zeros_(network.up[0].weight)
    image = torch.randn(1, 1, 8, 8)
    assert network(image)[0].std() > 1e-3


# ---- weights ----


def test_weights_begin_as_he_initialisation_and_biases_at_zero():
    network = small_unet(features=(16, 32))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert torch.count_nonzero(parameter) == 0
    weight = network.encoder[1][1][0].weight  # 32 -> 32 channels, 27 taps: 27648 draws
    assert weight.std().item() == pytest.approx(np.sqrt(2 / (1 + 0.01**2) / (32 * 27)), rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=0.001)


def test_a_bottleneck_of_a_single_voxel_works():
    # its normalised features are the shift alone: the bottleneck's convolutions get no gradient, all others do
    network = small_unet(3, features=(4, 6, 8))
    image = torch.randn(2, 1, 4, 4, 4)
    logits = network(image)
    assert [tuple(stage.shape[2:]) for stage in logits] == [(4, 4, 4), (2, 2, 2)]
    DeepSupervision(dice_ce(ignore_index=None, class_weights=None, batch_dice=True))(
        logits, torch.randint(0, 2, (2, 4, 4, 4))
    ).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert network.encoder[0][0][0].weight.grad.abs().max() > 1e-8
    assert network.encoder[2][1][1].bias.grad.abs().max() > 1e-8
    assert network.encoder[2][1][0].weight.grad.abs().max() == 0
