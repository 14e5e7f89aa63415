"""Topologies worked out by hand, the published nnU-Net ones, and laws that hold for any spacing and patch."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.planning.topology import (
    GUESSES,
    SMALLEST_PATCH_EDGE,
    Topology,
    feature_counts,
    feature_map_elements,
    fit_patch,
    initial_patch,
    receptive_field,
    search_patch,
    shrinking,
    smallest_topology,
    topology,
)

edges = st.integers(1, 700)
spacings = st.floats(0.01, 100)
axes = st.integers(2, 3)


def lists(values, dims):
    return st.lists(values, min_size=dims, max_size=dims)


# ---- topology


def test_isotropic_patch_is_halved_five_times():
    chosen = topology((1, 1, 1), (128, 128, 128))
    assert chosen.strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert chosen.kernel_sizes == ((3, 3, 3),) * 6
    assert chosen.bottleneck == (4, 4, 4)


def test_thick_slices_wait_for_the_plane():
    # 3.6 / .625 = 5.8: two halvings in the plane until 3.6 / 2.5 < 2; the 20 slices allow two halvings, 20 -> 10 -> 5
    chosen = topology((3.6, 0.625, 0.625), (20, 320, 256))
    assert chosen.strides == (
        (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2),
    )  # fmt: skip
    assert chosen.kernel_sizes == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)


def test_kernel_along_a_waiting_axis_is_one_until_spacings_meet():
    # 5 / 1.5625 = 3.2: one halving of the plane suffices
    chosen = topology((5, 1.5625, 1.5625), (18, 237, 208))
    assert chosen.patch_size == (20, 256, 224)
    assert chosen.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert chosen.kernel_sizes == ((1, 3, 3), *((3, 3, 3),) * 5)


def test_bottleneck_kernel_is_three_even_along_an_axis_that_still_waits():
    # 10 / 4 = 2.5 after two halvings of the plane, 24 -> 12 -> 6
    assert topology((10, 1, 1), (8, 24, 24)).kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_single_remaining_axis_needs_three_times_the_smallest_edge():
    # alone, 11 voxels stay (nnU-Net v2 asks for 12); with company 8 are enough
    assert topology((1, 1), (4, 11)).strides == ((1, 1),)
    assert topology((1, 1), (4, 12)).strides == ((1, 1), (1, 2))
    assert topology((1, 1), (8, 8)).strides == ((1, 1), (2, 2))


def test_half_voxels_of_a_median_shape_are_rounded_up_to_what_divides():
    assert topology((1, 1), (35.5, 40)).patch_size == (40, 40)
    assert topology((1, 1), (7.5, 40)).patch_size[0] == 8  # 7.5 is not enough to be halved
    assert topology((1, 1), (7.5, 40)).divisor[0] == 1


def test_images_too_small_for_two_stages_are_padded_in_the_plane():
    assert smallest_topology((1, 1), (1, 1)).patch_size == (SMALLEST_PATCH_EDGE,) * 2
    assert smallest_topology((5, 1, 1), (2, 7, 5)).patch_size == (2, 12, 12)
    assert smallest_topology((1, 1), (64, 1)).patch_size == (64, 1)  # one axis can be halved: nothing to do


@pytest.mark.thorough
@given(data=st.data(), dims=axes)
def test_any_topology_divides_its_patch_and_keeps_the_bottleneck_wide(data, dims):
    spacing, patch = data.draw(lists(spacings, dims)), data.draw(lists(edges, dims))
    chosen = smallest_topology(spacing, patch)
    assert chosen.stages >= 2
    assert len(chosen.kernel_sizes) == chosen.stages
    assert all(padded >= edge for padded, edge in zip(chosen.patch_size, patch, strict=True))
    assert all(padded % d == 0 for padded, d in zip(chosen.patch_size, chosen.divisor, strict=True))
    assert all(edge >= 4 for edge, d in zip(chosen.bottleneck, chosen.divisor, strict=True) if d > 1)
    assert math.prod(chosen.bottleneck) >= 4  # instance normalisation sees more than one voxel
    for earlier, later in zip(chosen.kernel_sizes, chosen.kernel_sizes[1:], strict=False):
        assert all(a <= b for a, b in zip(earlier, later, strict=True))  # a kernel never shrinks back to 1


# ---- the first patch


def test_first_patch_is_a_cube_in_mm():
    assert initial_patch((1, 1, 1), (999,) * 3) == (256, 256, 256)
    assert initial_patch((0.5, 0.5), (9999,) * 2) == (2048, 2048)
    # edges 256 * 4^(1/3) = 406.4 in the plane and a quarter of it across
    assert initial_patch((4, 1, 1), (999,) * 3) == (102, 406, 406)


def test_first_patch_stays_within_the_median_shape():
    assert initial_patch((1, 1, 1), (35.5, 300, 1)) == (35.5, 256, 1)


@given(data=st.data(), dims=axes)
def test_first_patch_never_falls_below_one_voxel(data, dims):
    patch = initial_patch(data.draw(lists(st.floats(1e-6, 1e6), dims)), data.draw(lists(edges, dims)))
    assert all(edge >= 1 for edge in patch)


# ---- feature-map elements


def elements(chosen, features, num_classes):
    """Those of the plain U-Net: two convolutions per stage."""
    stages = len(features)
    return feature_map_elements(chosen, features, num_classes, (2,) * stages, (2,) * (stages - 1))


def test_feature_map_elements_of_two_stages_by_hand():
    chosen = Topology((8, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (2, 2))
    # stage 0: 64 voxels x 2 maps x (2 encoder + 1 transposed + 2 decoder) = 640; stage 1: 16 x 4 x 2 = 128; head 64 x 3
    assert feature_map_elements(chosen, (2, 4), 3, (2, 2), (2,)) == 640 + 128 + 192


def test_feature_map_elements_are_those_a_network_computes():
    torch = pytest.importorskip("torch")
    from autoseg.nn.networks.unet import UNet

    chosen = topology((3, 1, 1), (8, 24, 32))
    features = feature_counts(chosen.stages, 2, 5)
    network = UNet(
        in_channels=1,
        out_channels=3,
        features=features,
        strides=chosen.strides,
        kernel_sizes=chosen.kernel_sizes,
        blocks=(2,) * chosen.stages,
        decoder_blocks=(2,) * (chosen.stages - 1),
    )
    network.deep_supervision = False
    counted = []
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            module.register_forward_hook(lambda _module, _inputs, output: counted.append(output.numel()))
    network(torch.zeros(1, 1, *chosen.patch_size))
    assert sum(counted) == elements(chosen, features, 3)


def test_feature_map_elements_of_residual_blocks_by_hand():
    """The rule's own example: a stem, two convolutions per block, a projection where width or resolution changes."""
    chosen = Topology((8, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (2, 2))
    # stage 0: 64 voxels x 2 maps x (stem 1 + 1 block x 2 + 1 transposed + 1 decoder) = 640
    # stage 1: 16 x 4 x (3 blocks x 2 + 1 projection) = 448; head 64 x 3
    assert feature_map_elements(chosen, (2, 4), 3, (1, 3), (1,), residual=True) == 640 + 448 + 192


def test_features_double_up_to_their_maximum():
    assert feature_counts(6, 32, 320) == (32, 64, 128, 256, 320, 320)


# ---- receptive field


def dependency_1d(strides, kernels, blocks, decoder_blocks):
    """Oracle: follow which input voxels each voxel depends on, layer by layer, as sets; the widest interior span."""
    total = math.prod(strides)
    length = total * 2 * (64 // total + 8) * 2
    line = [frozenset([i]) for i in range(length)]

    def convolved(values, kernel, stride):
        radius = kernel // 2
        return [frozenset().union(*values[max(0, i - radius) : i + radius + 1]) for i in range(0, len(values), stride)]

    skips = []
    for stride, kernel, count in zip(strides, kernels, blocks, strict=True):
        for j in range(count):
            line = convolved(line, kernel, stride if j == 0 else 1)
        skips.append(line)
    for stage in reversed(range(len(decoder_blocks))):
        step = strides[stage + 1]
        line = [line[i // step] | skips[stage][i] for i in range(len(skips[stage]))]
        for _ in range(decoder_blocks[stage]):
            line = convolved(line, kernels[stage], 1)
    middle = line[length // 2 - total : length // 2 + total]
    assert all(0 not in seen and length - 1 not in seen for seen in middle), "the line is too short for the oracle"
    return max(max(seen) - min(seen) + 1 for seen in middle)


@pytest.mark.parametrize(
    ("strides", "kernels", "blocks", "decoder_blocks"),
    [
        ((1,), (3,), (2,), ()),
        ((1, 2), (3, 3), (2, 2), (2,)),
        ((1, 2, 2), (3, 3, 3), (2, 2, 2), (2, 2)),
        ((1, 2, 2), (3, 3, 3), (1, 3, 2), (1, 2)),
        ((1, 1, 2, 2, 1), (1, 1, 3, 3, 3), (2,) * 5, (2,) * 4),
        ((1, 1, 2), (3, 3, 3), (2, 2, 2), (1, 1)),
    ],
)
def test_receptive_field_is_what_dependencies_span(strides, kernels, blocks, decoder_blocks):
    expected = dependency_1d(strides, kernels, blocks, decoder_blocks)
    found = receptive_field([(s,) for s in strides], [(k,) for k in kernels], blocks, decoder_blocks)
    assert found == (expected,)


def test_receptive_field_by_hand():
    # 5 convolutions of 3 at full resolution give 1 + 2 * 5; two stages and a stride are the oracle's task
    assert receptive_field([(1, 1)], [(3, 1)], (5,), ()) == (11, 1)


# ---- shrinking


def fit(spacing, patch, *, limit=5e6, base_features=32, max_features=320, num_classes=2, **changes):
    path = shrinking(spacing, patch, **{"median_shape": patch, "needed": (0,) * len(spacing)} | changes)

    def cost(chosen):
        return elements(chosen, feature_counts(chosen.stages, base_features, max_features), num_classes)

    return fit_patch(path, cost, limit)


def test_a_patch_that_fits_is_not_shrunk():
    assert fit((1, 1, 1), (36, 50, 35), limit=1e9).topology.patch_size == (40, 56, 40)
    assert fit((1, 1, 1), (36, 50, 35), limit=1e9).steps == 0


@settings(deadline=None, max_examples=40)
@given(data=st.data(), dims=axes, limit=st.floats(1e5, 1e9), skew=st.sampled_from([1e-3, 100.0, 1e6]))
def test_looking_at_few_patches_finds_one_that_fits_beside_one_that_does_not(data, dims, limit, skew):
    spacing, shape = data.draw(lists(spacings, dims)), data.draw(lists(edges, dims))
    asked = []
    path = list(shrinking(spacing, initial_patch(spacing, shape), median_shape=shape, needed=(0,) * dims))
    every = {chosen.patch_size: elements(chosen, feature_counts(chosen.stages, 32, 320), 2) for chosen in path}

    def cost(chosen):
        asked.append(chosen)
        return every[chosen.patch_size]

    few = search_patch(path, cost, lambda chosen: skew * math.prod(chosen.patch_size), limit)
    assert len(asked) <= GUESSES + math.ceil(math.log2(len(path) + 1))
    assert few.topology == path[few.steps]
    assert few.fits == (every[few.topology.patch_size] <= limit)
    if few.larger is not None:
        assert few.larger == path[few.steps - 1]
        assert few.larger_cost == every[few.larger.patch_size] > limit
    else:
        assert few.steps == 0 or not few.fits
    if list(every.values()) == sorted(every.values(), reverse=True):
        assert few == fit_patch(path, cost, limit)


def test_a_good_guess_spares_looks():
    path = list(shrinking((1, 1, 1), (256, 256, 256), median_shape=(400, 400, 400), needed=(0, 0, 0)))
    looks = []

    def cost(chosen):
        looks.append(chosen)
        return 5.9 * elements(chosen, feature_counts(chosen.stages, 32, 320), 2) + 1e9

    found = search_patch(path, cost, lambda chosen: 6 * math.prod(chosen.patch_size) * 200, 4e9)
    assert found.fits
    assert len(path) > 20
    assert len(looks) <= 5


def test_the_axis_that_covers_most_shrinks_first():
    # equal coverage: the last axis first, as in nnU-Net; 64 -> 56 is one step of 2^3
    once = elements(topology((1, 1, 1), (64, 64, 64)), feature_counts(5, 32, 320), 2) - 1
    assert fit((1, 1, 1), (64, 64, 64), limit=once).topology.patch_size == (64, 64, 56)
    assert fit((1, 1, 1), (64, 64, 64), limit=once, median_shape=(64, 128, 128)).topology.patch_size == (56, 64, 64)


def test_axes_that_are_needed_are_spared():
    spared = fit((1, 1, 1), (128, 128, 128), limit=8e7, needed=(128, 0, 0))
    assert spared.topology.patch_size[0] == 128
    assert spared.fits
    assert max(spared.topology.patch_size[1:]) < max(fit((1, 1, 1), (128,) * 3, limit=8e7).topology.patch_size)


def test_needs_that_cannot_be_met_do_not_stop_the_shrinking():
    stuck = fit((1, 1, 1), (128, 128, 128), limit=1e7, needed=(128, 128, 128))
    assert stuck.fits
    assert stuck.cost <= 1e7


def test_a_limit_that_nothing_meets_is_reported():
    hopeless = fit((1, 1, 1), (128, 128, 128), limit=1.0)
    assert not hopeless.fits
    assert min(hopeless.topology.patch_size) >= 4


def test_shrinking_ends_though_padding_brought_an_earlier_patch_back(monkeypatch):
    # shrinking one axis can pad another up; should that ever lead back to a patch seen before, it must not go on
    small, large = topology((1, 1), (16, 32)), topology((1, 1), (32, 16))
    calls = iter(range(20))

    def back_and_forth(_spacing, chosen, _axis, _min_edge):
        assert next(calls, None) is not None, "no end in sight"
        return small if chosen.patch_size == large.patch_size else large

    monkeypatch.setattr("autoseg.planning.topology._shrunk", back_and_forth)
    assert not fit((1, 1), (32, 16), limit=1.0).fits


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(data=st.data(), dims=axes, limit=st.floats(1, 1e9), classes=st.integers(2, 105))
def test_shrinking_ends_and_says_whether_it_fits(data, dims, limit, classes):
    spacing, shape = data.draw(lists(spacings, dims)), data.draw(lists(edges, dims))
    found = fit(
        spacing, initial_patch(spacing, shape), median_shape=shape, limit=limit, num_classes=classes, max_features=128,
        needed=data.draw(lists(st.integers(0, 100), dims)),
    )  # fmt: skip
    assert found.fits == (found.cost <= limit)
    if min(shape) >= 12:  # three times the least edge: of a smaller image no axis may be long enough to be halved
        assert found.topology.stages >= 2
    assert all(e % d == 0 for e, d in zip(found.topology.patch_size, found.topology.divisor, strict=True))


def test_a_compact_patch_of_few_thick_slices_keeps_them():
    """20 slices of 2 mm, 512 x 512 pixels of 1 mm: 40 mm against 512 mm, so the plane is what shrinks."""
    limits = {
        "median_shape": (20, 512, 512),
        "needed": (0, 0, 0),
        "limit": 1e7,
        "base_features": 16,
        "max_features": 128,
    }
    thin = fit((2.0, 1.0, 1.0), (20, 320, 320), num_classes=3, **limits)
    block = fit((2.0, 1.0, 1.0), (20, 320, 320), num_classes=3, compact=True, **limits)
    assert thin.topology.patch_size[0] < 10
    assert block.topology.patch_size[0] >= 16
    extents = [edge * step for edge, step in zip(block.topology.patch_size, (2.0, 1.0, 1.0), strict=True)]
    assert max(extents) < 3 * min(extents)
    assert block.cost <= 1e7
