"""The plain U-Net and its parts: sizes, shapes, gradients, float32 statistics, and that it can learn."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.nn.blocks import CONVOLUTIONS, ConvBlock, InstanceNorm
from autoseg.nn.losses import DeepSupervision, DiceCE
from autoseg.nn.networks import NETWORKS, build_network


def small_unet(dims=3, in_channels=1, num_heads=2, features=(4, 6, 8), strides=None, kernel_sizes=None):
    """Two convolutions per stage; isotropic halving with 3-wide kernels unless said otherwise."""
    stages = len(features)
    return build_network(
        "unet",
        in_channels=in_channels,
        num_heads=num_heads,
        features=features,
        strides=strides or [(1,) * dims] + [(2,) * dims] * (stages - 1),
        kernel_sizes=kernel_sizes or [(3,) * dims] * stages,
        blocks=[2] * stages,
        decoder_blocks=[2] * (stages - 1),
    )


def count_parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- size ----


def test_parameter_count_of_nnunets_six_stage_network():
    features, heads = (32, 64, 128, 256, 320, 320), 3
    network = small_unet(num_heads=heads, features=features)

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
    network = small_unet(dims=2, in_channels=3, num_heads=4, features=(2, 5))
    encoder = (9 * 3 * 2 + 2 + 4) + (9 * 2 * 2 + 2 + 4) + (9 * 2 * 5 + 5 + 10) + (9 * 5 * 5 + 5 + 10)
    decoder = (4 * 5 * 2 + 2) + (9 * 4 * 2 + 2 + 4) + (9 * 2 * 2 + 2 + 4)
    assert count_parameters(network) == encoder + decoder + (2 * 4 + 4)


def test_an_unknown_network_names_those_that_exist():
    with pytest.raises(KeyError, match=r"no network 'resnet'.*unet"):
        build_network(
            "resnet", in_channels=1, num_heads=2, features=[], strides=[], kernel_sizes=[], blocks=[], decoder_blocks=[]
        )
    assert set(NETWORKS) >= {"unet"}


# ---- shapes ----


@pytest.mark.parametrize(
    ("dims", "patch", "expected"),
    [
        (2, (16, 24), [(16, 24), (8, 12)]),
        (3, (8, 16, 12), [(8, 16, 12), (4, 8, 6)]),
    ],
)
def test_one_map_of_logits_per_decoder_stage_finest_first(dims, patch, expected):
    network = small_unet(dims, in_channels=2, num_heads=5)
    logits = network(torch.randn(3, 2, *patch))
    assert [tuple(stage.shape) for stage in logits] == [(3, 5, *shape) for shape in expected]


def test_without_deep_supervision_only_the_same_finest_logits():
    network = small_unet(2)
    image = torch.randn(1, 1, 16, 16)
    supervised = network(image)
    network.deep_supervision = False
    alone = network(image)
    assert len(supervised) == 2
    assert len(alone) == 1
    assert torch.equal(alone[0], supervised[0])


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


# ---- parts ----


def test_conv_block_is_convolution_normalisation_leaky_relu():
    block = ConvBlock(2, 1, 1, (1, 1), (1, 1))
    with torch.no_grad():
        block[0].weight.fill_(2.0)
        block[0].bias.fill_(5.0)  # normalisation removes it
        block[1].weight.fill_(3.0)
        block[1].bias.fill_(0.5)
    # four voxels 2, 4, 4, 6 after scaling: mean 4, variance 2 -> (-sqrt 2, 0, 0, sqrt 2) * 3 + 0.5
    result = block(torch.tensor([[[[1.0, 2.0], [2.0, 3.0]]]])).flatten()
    root = 3 * np.sqrt(2)
    assert result.tolist() == pytest.approx([0.01 * (0.5 - root), 0.5, 0.5, 0.5 + root], abs=1e-4)


def test_weights_begin_as_he_initialisation_and_biases_at_zero():
    network = small_unet(features=(16, 32))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert torch.count_nonzero(parameter) == 0
    weight = network.encoder[1][1][0].weight  # 32 -> 32 channels, 27 taps: 27648 draws
    assert weight.std().item() == pytest.approx(np.sqrt(2 / (1 + 0.01**2) / (32 * 27)), rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=0.001)


def reference_norm(x, weight, bias, eps=1e-5):
    """Instance normalisation in float64, from its definition."""
    x = x.double().numpy()
    axes = tuple(range(2, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    shape = (1, -1, *[1] * len(axes))
    return (x - mean) / np.sqrt(variance + eps) * weight.numpy().reshape(shape) + bias.numpy().reshape(shape)


def norm_with_random_parameters(channels):
    norm = InstanceNorm(channels)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 4, 5, 6), (1, 1, 2, 1, 1)])
def test_instance_norm_equals_its_definition(shape):
    norm = norm_with_random_parameters(shape[1])
    x = 3 * torch.randn(shape) + 10
    expected = reference_norm(x, norm.weight.detach(), norm.bias.detach())
    assert norm(x).detach().numpy() == pytest.approx(expected, abs=1e-4)


def test_instance_norm_keeps_float32_statistics_under_bfloat16():
    # bfloat16 holds 8 bits: about 300 it knows 300 and 302 only. A mean of 300.7 rounded to it would shift the result
    # by 0.7 / 8 = 0.09, and a bfloat16 sum of 2^16 voxels would stop growing altogether.
    norm = norm_with_random_parameters(2)
    x = (8 * torch.randn(1, 2, 2**8, 2**8) + 300.7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = norm(x)
    assert result.dtype == torch.bfloat16  # memory traffic stays halved
    expected = reference_norm(x.float(), norm.weight.detach(), norm.bias.detach())
    rounding = 2**-8 * np.abs(expected)  # of the result, half a unit in the last place at most
    assert np.all(np.abs(result.detach().double().numpy() - expected) <= rounding + 1e-3)


def test_instance_norm_of_float32_stays_float32_under_autocast():
    norm = norm_with_random_parameters(2)
    x = torch.randn(1, 2, 16, 16) + 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = norm(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, norm(x))


def test_normalisation_parameters_learn_in_float32_under_autocast():
    network = small_unet(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(1, 1, 16, 16))
    sum(stage.float().square().mean() for stage in logits).backward()
    assert logits[0].dtype == torch.bfloat16
    assert {p.grad.dtype for p in network.parameters()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_single_voxel_becomes_the_shift():
    norm = norm_with_random_parameters(3)
    result = norm(torch.randn(2, 3, 1, 1, 1))
    # float32's rounding of a voxel of about 1, times 1 / sqrt(eps) = 316
    assert torch.allclose(result, norm.bias.view(1, 3, 1, 1, 1).expand(2, 3, 1, 1, 1), atol=3e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 6, 7, 8), (2, 3, 1, 1, 1)])
def test_instance_norm_is_the_same_on_cuda(dtype, shape):
    norm = norm_with_random_parameters(3)
    x = (8 * torch.randn(shape) + 300.7).to(dtype)
    expected = reference_norm(x.float(), norm.weight.detach(), norm.bias.detach())
    on_device = x.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = norm.cuda()(on_device)
    result.float().square().sum().backward()
    assert result.dtype == dtype
    assert result.detach().double().cpu().numpy() == pytest.approx(expected, rel=2**-7, abs=2e-3)
    assert torch.isfinite(on_device.grad).all()


# ---- gradients ----


def assert_gradients(network, logits, target):
    """Finite gradients everywhere, and non-zero ones where there should be.

    Two kinds of parameters cannot learn by design: the coarsest head, whose stage has weight 0 in the loss, and the
    bias of a convolution that normalisation follows, which the mean takes away again. Both belong to nnU-Net's network.
    """
    DeepSupervision(DiceCE(ignore_index=None, class_weights=None, batch_dice=True))(logits, target).backward()
    coarsest = f"heads.{len(network.heads) - 1}."
    normalised = {f"{n}.0.bias" for n, m in network.named_modules() if isinstance(m, ConvBlock)}
    assert normalised  # the names still follow the blocks
    for name, parameter in network.named_parameters():
        if name.startswith(coarsest):
            assert parameter.grad is None, name
            continue
        assert torch.isfinite(parameter.grad).all(), name
        if name not in normalised:
            assert parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize(("dims", "patch"), [(2, (16, 16)), (3, (8, 8, 12))])
def test_every_parameter_learns(dims, patch):
    network = small_unet(dims, in_channels=2, num_heads=3)
    logits = network(torch.randn(2, 2, *patch))
    assert_gradients(network, logits, torch.randint(0, 3, (2, *patch)))


def test_a_bottleneck_of_a_single_voxel_works():
    # its normalised features are the shift alone: the bottleneck's convolutions get no gradient, all others do
    network = small_unet(3, features=(4, 6, 8))
    image = torch.randn(2, 1, 4, 4, 4)
    logits = network(image)
    assert [tuple(stage.shape[2:]) for stage in logits] == [(4, 4, 4), (2, 2, 2)]
    DeepSupervision(DiceCE(ignore_index=None, class_weights=None, batch_dice=True))(
        logits, torch.randint(0, 2, (2, 4, 4, 4))
    ).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert network.encoder[0][0][0].weight.grad.abs().max() > 1e-8
    assert network.encoder[2][1][1].bias.grad.abs().max() > 1e-8
    assert network.encoder[2][1][0].weight.grad.abs().max() == 0


def test_the_table_of_convolutions_knows_two_and_three_dimensions():
    assert {dims: kind.__name__ for dims, kind in CONVOLUTIONS.items()} == {2: "Conv2d", 3: "Conv3d"}


# ---- learning ----


def two_cases(dims, edge):
    """A disc (ball) in one case, a square (cube) in the other, brighter than noisy background."""
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * dims, indexing="ij")) - edge / 2 + 0.5
    ball = (np.square(grid + 1).sum(0) < (edge / 3) ** 2).astype(np.int64)
    cube = (np.abs(grid - 2).max(0) < edge / 5).astype(np.int64)
    target = torch.from_numpy(np.stack([ball, cube]))
    image = target[:, None] + 0.5 * torch.randn(2, 1, *[edge] * dims)
    return image, target


@pytest.mark.parametrize(("dims", "edge"), [(2, 16), (3, 8)])
def test_it_learns_two_cases_by_heart(dims, edge):
    image, target = two_cases(dims, edge)
    network = small_unet(dims, features=(8, 16))
    criterion = DeepSupervision(DiceCE(ignore_index=None, class_weights=None, batch_dice=True))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        criterion(network(image), target).backward()
        optimizer.step()
    decided = network(image)[0].argmax(1)
    for case in range(2):
        both = (decided[case] * target[case]).sum()
        dice = 2 * both / (decided[case].sum() + target[case].sum())
        assert dice > 0.95, f"case {case}"
