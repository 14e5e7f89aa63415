"""DeepLab: strides that become dilation, rates that widen the view, and a pooled signal that survives normalisation."""

import pytest
import torch
from torch import nn

from autoseg.nn.blocks import InstanceNorm, ResidualBlock
from autoseg.nn.networks.deeplab import DeepLab, Pyramid, limit_strides
from small_networks import laid_out


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(stages, dims=2, **options):
    return DeepLab(**laid_out((4, 5, 6, 7, 8, 9, 10)[:stages], dims, depth=1, **options))


# ---- strides and dilation ----


def test_strides_stop_and_dilation_takes_over():
    assert limit_strides([(1,), (2,), (2,), (2,), (2,)], 16) == ([(1,), (2,), (2,), (2,), (2,)], [(1,)] * 5)
    assert limit_strides([(1,)] + [(2,)] * 6, 16) == (
        [(1,), (2,), (2,), (2,), (2,), (1,), (1,)],
        [(1,), (1,), (1,), (1,), (1,), (2,), (4,)],
    )


def test_every_axis_counts_its_own_strides():
    strides = [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 1)]
    kept, dilations = limit_strides(strides, 4)
    assert kept == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 1, 1)]
    assert dilations == [(1, 1, 1)] * 3 + [(1, 2, 1)]


def test_no_map_of_seven_stages_shrinks_beyond_sixteen():
    network = small(7)
    edges = []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _m, _i, result: edges.append(tuple(result.shape[2:])))
    network(torch.randn(1, 1, 64, 96))
    assert edges == [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6), (4, 6), (4, 6)]
    assert [stage[0].second.dilation for stage in network.encoder][-3:] == [(1, 1), (2, 2), (4, 4)]


@pytest.mark.parametrize(
    ("stages", "options", "expected"),
    [
        (5, {}, [1, 2, 3]),
        (6, {}, [2, 4, 6]),
        (7, {}, [4, 8, 12]),
        (6, {"output_stride": 8}, [4, 8, 12]),
        (4, {"rates": (1, 4)}, [1, 4]),
    ],
)
def test_rates_grow_with_the_map(stages, options, expected):
    branches = list(small(stages, **options).pyramid.branches)
    assert [branch[0][0].dilation for branch in branches[1:]] == [(rate, rate) for rate in expected]
    assert branches[0][0][0].kernel_size == (1, 1)


@pytest.mark.parametrize(("stages", "joined"), [(2, 0), (3, 1), (4, 2), (5, 2), (7, 2)])
def test_the_decoder_joins_at_stride_four_or_just_above_the_coarsest(stages, joined):
    network = small(stages)
    assert network.low_level[0][0].in_channels == (4, 5, 6, 7, 8, 9, 10)[joined]
    shapes = []
    network.decoder.register_forward_hook(lambda _m, _i, result: shapes.append(tuple(result.shape[2:])))
    network(torch.randn(1, 1, 32, 64))
    assert shapes == [(32 >> joined, 64 >> joined)]


# ---- the pyramid ----


def without_normalisation(network):
    """Normalisation sees the whole map, and would hide what convolutions see."""
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            module.forward = lambda x: x
    return network


def seen_from_the_centre(network, edge):
    """Places of a row that the centre of the result depends on, by the gradient."""
    image = torch.randn(1, 1, 1, edge, requires_grad=True)
    network(image)[..., edge // 2].sum().backward()
    return (image.grad.flatten() != 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("rates", [(1,), (2,), (1, 3), (2, 5)])
def test_rates_widen_the_view(rates):
    pyramid = without_normalisation(Pyramid(2, 1, 4, (1, 3), [(1, rate) for rate in rates]))
    nn.init.zeros_(pyramid.pooled.weight)  # which sees everything
    taps = {0, *rates, *(-rate for rate in rates)}
    assert seen_from_the_centre(pyramid, 15) == sorted(7 + tap for tap in taps)


def test_pooling_sees_everything():
    pyramid = without_normalisation(Pyramid(2, 1, 4, (1, 3), [(1, 1)]))
    assert seen_from_the_centre(pyramid, 15) == list(range(15))


def test_pooled_features_survive_normalisation():
    # two maps that differ by a constant look alike to every normalised branch, and to a normalised mean
    pyramid = Pyramid(2, 3, 4, (3, 3), [(1, 1)])
    x = torch.randn(1, 3, 6, 6)
    assert (pyramid(x + 1) - pyramid(x)).abs().mean() > 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1)])
def test_a_map_of_one_voxel_keeps_its_signal(shape):
    dims = len(shape)
    pyramid = Pyramid(dims, 3, 4, (3,) * dims, [(1,) * dims, (2,) * dims])
    x = torch.randn(2, 3, *shape)
    result = pyramid(x)
    expected = torch.einsum("oc,bc->bo", pyramid.pooled.weight.flatten(1), x.flatten(1)) + pyramid.pooled.bias
    leaky = torch.where(expected > 0, expected, 0.01 * expected)
    assert torch.allclose(result.flatten(1), leaky, atol=5e-3)  # normalisation leaves float32's rounding, magnified


def test_dilated_stages_are_residual_blocks_of_that_dilation():
    network = small(6, dims=3, strides=[(1, 1, 1)] + [(1, 2, 2)] * 2 + [(2, 2, 2)] * 3)
    last = [m for m in network.encoder[-1].modules() if isinstance(m, ResidualBlock)]
    assert [block.second.dilation for block in last] == [(1, 2, 2)]
    assert [block.first[0].stride for block in last] == [(2, 1, 1)]
    assert [branch[0][0].dilation for branch in network.pyramid.branches[1:]] == [(r, 2 * r, 2 * r) for r in (1, 2, 3)]
