"""Parts that networks share: stages, convolutions of any size, residual blocks, fitting, float32 normalisation."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.nn.blocks import (
    CONVOLUTIONS,
    AveragePool,
    ConvBlock,
    InstanceNorm,
    ResidualBlock,
    Stage,
    conv_stage,
    fit_to,
    follow_device,
    residual_stage,
    resize_linearly,
    same_convolution,
    set_checkpointing,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- stages ----


def test_checkpointing_reaches_every_stage_and_changes_no_weight():
    network = nn.Sequential(
        conv_stage(2, 1, 2, (3, 3), (1, 1), 2),
        nn.ModuleDict({"deep": Stage(ConvBlock(2, 2, 2, (3, 3), (2, 2)))})["deep"],
    )
    keys = list(network.state_dict())
    assert [stage.checkpointing for stage in network] == [False, False]
    set_checkpointing(network, True)
    assert [stage.checkpointing for stage in network] == [True, True]
    assert list(network.state_dict()) == keys
    assert keys[0] == "0.0.0.weight"  # stage, block, layer: a stage adds no name of its own
    set_checkpointing(network, False)
    assert [stage.checkpointing for stage in network] == [False, False]


@pytest.mark.parametrize("on", [False, True])
def test_a_checkpointed_stage_keeps_its_input_alone(on):
    stage = conv_stage(2, 3, 3, (3, 3), (1, 1), 3)
    set_checkpointing(stage, on)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stage(torch.randn(1, 3, 8, 8, requires_grad=True))
    parameters = {p.data_ptr() for p in stage.parameters()}
    activations = {t.data_ptr() for t in kept if t.ndim == 4} - parameters
    # the input, and what every normalisation is given and gives (the activation works in place)
    assert len(activations) == (1 if on else 1 + 2 * 3)


def test_without_gradients_nothing_is_recomputed_or_kept():
    stage = conv_stage(2, 1, 2, (3, 3), (1, 1), 1)
    set_checkpointing(stage, True)
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        result = stage(image)
    assert not result.requires_grad
    assert torch.equal(result, stage(image))


# ---- convolutions of any size ----


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_a_convolution_divides_edges_by_its_stride_and_rounds_up(kernel, stride, dilation):
    convolution = same_convolution(2, 1, 1, (kernel, 1), (stride, 1), (dilation, 1))
    for edge in (1, 2, 3, 7, 12):
        assert convolution(torch.zeros(1, 1, edge, 2)).shape == (1, 1, -(-edge // stride), 2)


def test_taps_of_a_dilated_convolution_are_that_far_apart():
    block = ConvBlock(2, 1, 1, (3, 3), (1, 1), (2, 3))
    nn.init.ones_(block[0].weight)
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1
    reached = (block[0](image)[0, 0] > 0.5).nonzero().tolist()
    assert reached == [[y, x] for y in (2, 4, 6) for x in (1, 4, 7)]


def test_average_pooling_divides_by_the_voxels_there_are():
    line = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 1, 3)
    assert AveragePool((1, 2))(line).flatten().tolist() == [1.5, 6.0]
    assert AveragePool((2, 3))(line).flatten().tolist() == [3.0]  # a window longer than the axis
    volume = torch.arange(12.0).view(1, 1, 3, 2, 2)
    assert AveragePool((2, 2, 1))(volume).flatten().tolist() == [3.0, 4.0, 9.0, 10.0]


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (3, 1, 2)])
def test_average_pooling_of_volumes_against_torch(stride):
    volume = torch.randn(2, 3, 5, 6, 7)
    expected = F.avg_pool3d(volume, stride, ceil_mode=True)
    assert torch.allclose(AveragePool(stride)(volume), expected, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_average_pooling_keeps_the_dtype_and_no_copy_under_autocast(dims):
    image = torch.ones(1, 1, *(3,) * dims, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        assert AveragePool((2,) * dims)(image).dtype == torch.bfloat16
    assert {t.dtype for t in kept} == {torch.bfloat16}


# ---- residual blocks ----


def leaky(x):
    return torch.where(x > 0, x, 0.01 * x)


def test_a_residual_block_begins_as_the_identity_before_its_activation():
    block = ResidualBlock(3, 2, 2, (3, 3, 3), (1, 1, 1))
    x = torch.randn(2, 2, 4, 5, 6)
    assert torch.equal(block(x), leaky(x))


def test_a_strided_residual_block_begins_as_pooling_and_projection():
    x = torch.randn(2, 2, 4, 6)
    pooled = x.view(2, 2, 2, 2, 3, 2).mean((3, 5))
    assert torch.allclose(ResidualBlock(2, 2, 2, (3, 3), (2, 2))(x), leaky(pooled), atol=1e-6)
    widened = ResidualBlock(2, 2, 3, (3, 3), (2, 2))
    projected = torch.einsum("oc,bcyx->boyx", widened.skip[1].weight[:, :, 0, 0], pooled)
    mean, variance = projected.mean((2, 3), keepdim=True), projected.var((2, 3), correction=0, keepdim=True)
    assert torch.allclose(widened(x), leaky((projected - mean) / (variance + 1e-5).sqrt()), atol=1e-5)


def test_what_a_residual_block_learns_is_added():
    block = ResidualBlock(2, 2, 2, (3, 3), (1, 1))
    nn.init.ones_(block.norm.weight)
    x = torch.randn(1, 2, 8, 8)
    assert torch.allclose(block(x), leaky(block.norm(block.second(block.first(x))) + x))
    assert not torch.allclose(block(x), leaky(x), atol=0.1)


def test_only_the_first_block_of_a_stage_has_stride_and_projection():
    stage = residual_stage(3, 2, 4, (1, 3, 3), (1, 2, 2), 3, (1, 2, 2))
    assert [[type(m).__name__ for m in block.skip] for block in stage] == [
        ["AveragePool", "Convolution3d", "InstanceNorm"],
        [],
        [],
    ]
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv3d) and m.kernel_size != (1, 1, 1)]
    assert [c.stride for c in convolutions] == [(1, 2, 2)] + [(1, 1, 1)] * 5
    assert {c.dilation for c in convolutions} == {(1, 2, 2)}
    assert all(c.bias is not None for c in convolutions)
    assert stage[0].skip[1].bias is None
    assert stage(torch.randn(1, 2, 3, 7, 9)).shape == (1, 4, 3, 4, 5)


# ---- fitting ----


def test_fitting_cuts_trailing_voxels():
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(fit_to(x, torch.empty(2, 7, 3, 6)), x[:, :, :3])
    assert torch.equal(fit_to(x, torch.empty(1, 1, 1, 4)), x[:, :, :1, :4])


def test_fitting_repeats_the_last_voxel_of_an_axis_one_short():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    fitted = fit_to(x, torch.empty(1, 1, 1, 3))
    assert fitted.tolist() == [[[[1.0, 2.0, 2.0]]]]
    volume = torch.arange(8.0).view(1, 1, 2, 2, 2)
    assert torch.equal(fit_to(volume, torch.empty(1, 1, 3, 2, 2)), volume[:, :, [0, 1, 1]])


def test_fitting_returns_what_fits_and_refuses_what_cannot():
    x = torch.zeros(1, 1, 4, 6)
    assert fit_to(x, torch.empty(1, 3, 4, 6)) is x
    with pytest.raises(ValueError, match=r"\(4, 6\) is too small for \(6, 6\)"):
        fit_to(x, torch.empty(1, 1, 6, 6))


def test_linear_interpolation_covers_the_same_box():
    line = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert resize_linearly(line, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resize_linearly(line, (1, 1)).flatten().tolist() == [2.0]
    assert resize_linearly(line, (1, 2)) is line
    assert resize_linearly(torch.ones(1, 1, 2, 2, 2), (3, 5, 4)).shape == (1, 1, 3, 5, 4)


# ---- a convolution's block and its normalisation ----


def test_the_table_of_convolutions_knows_two_and_three_dimensions():
    bases = {dims: kind if kind in (nn.Conv2d, nn.Conv3d) else kind.__bases__[0] for dims, kind in CONVOLUTIONS.items()}
    assert bases == {2: nn.Conv2d, 3: nn.Conv3d}


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


@pytest.mark.parametrize("samples", [1, 2])
def test_a_single_voxel_becomes_the_shift(samples):
    norm = norm_with_random_parameters(3)
    result = norm(torch.randn(samples, 3, 1, 1, 1))
    # float32's rounding of a voxel of about 1, times 1 / sqrt(eps) = 316
    assert torch.allclose(result, norm.bias.view(1, 3, 1, 1, 1).expand(samples, 3, 1, 1, 1), atol=3e-4)


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


# ---- kernels one slice thick


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [
        ((1, 1, 1), (1, 1, 1), (0, 0, 0), 1),
        ((1, 3, 3), (1, 1, 1), (0, 1, 1), 1),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 2),
        ((1, 1, 1), (2, 2, 2), (0, 0, 0), 1),
        ((1, 2, 3), (3, 1, 2), (0, 0, 1), 1),
    ],
)
def test_kernels_one_slice_thick_give_the_same_by_slices(kernel, stride, padding, groups):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[3](4, 6, kernel, stride, padding, groups=groups)
    images = [torch.randn(2, 4, 5, 9, 8, requires_grad=True)]
    images.append(images[0].detach().clone().requires_grad_())
    gradients = []
    for image, by_slices in zip(images, (True, False), strict=True):
        layer.by_slices = by_slices
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = layer(image)
        assert result.dtype == torch.bfloat16
        assert result.is_contiguous()
        result.float().pow(2).sum().backward()
        gradients.append([result, image.grad, layer.weight.grad, layer.bias.grad])
    for here, there in zip(*gradients, strict=True):
        assert here.shape == there.shape
        torch.testing.assert_close(here, there, rtol=0.02, atol=0.02 * float(there.detach().float().std()))


def test_only_kernels_one_slice_thick_in_half_precision_on_a_cpu_run_by_slices(monkeypatch):
    called = []
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: called.append(1) or torch.conv2d(*a, **k))
    x = torch.randn(1, 4, 4, 8, 8)
    thin, thick = CONVOLUTIONS[3](4, 4, (1, 3, 3), 1, (0, 1, 1)), CONVOLUTIONS[3](4, 4, 3, 1, 1)
    thin(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        thick(x)
        assert not called
        follow_device(thin, "cuda")
        thin(x)
        assert not called
        follow_device(thin, "cpu")
        thin(x)
    assert called


DEBUGGING_ALLOCATOR = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")


@pytest.mark.thorough
@pytest.mark.skipif(not DEBUGGING_ALLOCATOR.exists(), reason="needs glibc's debugging allocator")
@pytest.mark.parametrize(("kernel", "shape"), [((1, 3, 3), (2, 16, 8, 96, 96)), ((1, 1, 1), (2, 16, 4, 128, 128))])
def test_gradients_of_thin_kernels_stay_within_their_memory(kernel, shape):
    """nn.Conv3d dies here on CPUs with AMX: the sizes are those at which the fault was seen."""
    code = f"""
import torch
from autoseg.nn.blocks import CONVOLUTIONS
layer = CONVOLUTIONS[3](16, 16, {kernel}, 1, {tuple(k // 2 for k in kernel)})
for _ in range(4):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(torch.randn({shape}, requires_grad=True))
    result.float().square().mean().backward()
"""
    environment = os.environ | {"LD_PRELOAD": str(DEBUGGING_ALLOCATOR), "MALLOC_CHECK_": "3"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
