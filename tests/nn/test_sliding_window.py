"""Tiles cover the image, weights are the Gaussian's, mirroring averages, stitching equals a slow loop in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from autoseg.nn.sliding_window import (
    flip_sets,
    gaussian_importance,
    images_at_once,
    mirrored,
    predict_logits,
    tile_edge,
    tile_starts,
)

QUICK = settings(max_examples=50, deadline=None)
STEPS = st.sampled_from([0.25, 0.3, 0.5, 0.57, 0.75, 1.0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def identity(tiles):
    return tiles


# ---- positions ----


@pytest.mark.parametrize(
    ("size", "tile", "step", "expected"),
    [
        (110, 64, 0.5, [0, 23, 46]),  # 46 to walk, at most 32 at a time: 2 strides of 23
        (128, 64, 0.5, [0, 32, 64]),
        (65, 64, 0.5, [0, 1]),
        (64, 64, 0.5, [0]),
        (10, 64, 0.5, [0]),
        (100, 40, 1.0, [0, 30, 60]),
        (10, 4, 0.75, [0, 3, 6]),
        (11, 4, 0.75, [0, 2, 5, 7]),  # 7 / 3 = 2.33 and 4.67, rounded
        (9, 4, 1.0, [0, 2, 5]),  # 2.5 rounds to the even neighbour
    ],
)
def test_tile_starts_by_hand(size, tile, step, expected):
    assert tile_starts(size, tile, step) == expected


@pytest.mark.parametrize(
    ("size", "patch", "growth", "multiple", "step", "expected"),
    [
        (40, 32, 1.5, 8, 0.5, 40),  # one tile of 40 voxels, instead of two of 32
        (40, 32, 1.24, 8, 0.5, 32),  # 39 voxels are not enough for 40
        (40, 32, 1.25, 8, 0.5, 40),
        (39, 32, 1.5, 8, 0.5, 32),  # a tile of 40 would be padded
        (52, 32, 2.0, 16, 0.5, 32),  # the network divides by 16: two of 48, beside three of 32, cost the same
        (32, 32, 2.0, 8, 0.5, 32),
        (10, 32, 2.0, 8, 0.5, 32),  # what is shorter than the patch is padded as in training
        (64, 16, 2.0, 16, 0.5, 32),  # 7 of 16 voxels, 3 of 32: 112 and 96
        (64, 16, 2.0, 4, 1.0, 16),  # 4 of 16: nothing is computed twice
        (100, 48, 1.5, 8, 0.75, 64),  # 36 to walk, at most 48: 2 of 64, beside 3 of 48 and 3 of 56
        (300, 64, 1.0, 8, 0.5, 64),
    ],
)
def test_tile_edges_by_hand(size, patch, growth, multiple, step, expected):
    assert tile_edge(size, patch, growth=growth, multiple=multiple, step=step) == expected


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 400), patch=st.integers(1, 12), multiple=st.sampled_from([1, 2, 4, 8, 16]),
    growth=st.floats(1, 4), step=st.floats(0.1, 1),
)  # fmt: skip
def test_a_larger_tile_never_computes_more(size, patch, multiple, growth, step):
    patch *= multiple
    edge = tile_edge(size, patch, growth=growth, multiple=multiple, step=step)
    assert patch <= edge <= growth * patch + 1e-6 * patch
    assert edge % multiple == 0
    longest = max(patch, min(size, int(growth * patch + 1e-6)))
    cost = {e: e * len(tile_starts(size, e, step)) for e in range(patch, longest + 1, multiple)}
    assert cost[edge] == min(cost.values())
    assert edge <= size or edge == patch  # nothing is padded that was not in training


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 300), st.integers(1, 100), st.floats(0.1, 1))
def test_tiles_cover_the_axis_evenly_and_end_at_its_ends(size, tile, step):
    starts = tile_starts(size, tile, step)
    assert starts[0] == 0
    assert starts[-1] == max(size - tile, 0)
    gaps = np.diff(starts)
    assert all(0 <= gap <= tile for gap in gaps)  # no voxel between two tiles
    if len(gaps):
        assert max(gaps) < step * tile + 1  # at most the step, up to rounding
        assert max(gaps) - min(gaps) <= 1
    # no tile more than needed: one fewer would have to walk further than the step
    if len(starts) > 2:
        assert (size - tile) / (len(starts) - 2) > step * tile * (1 - 1e-9)


# ---- weights ----


@pytest.mark.parametrize("tile", [(16,), (13,), (24, 16), (9, 12), (12, 16, 10), (1, 8, 8)])
def test_importance_against_scipys_filtered_impulse(tile):
    # A Gaussian-filtered impulse is the Gaussian itself; scipy cuts it at 4 sigma, which is the tile's edge. Tolerance:
    # relative 1e-5 (float32 against float64). Below 1e-6 ours is held there, so that no voxel has weight 0.
    impulse = np.zeros(tile)
    impulse[tuple(edge // 2 for edge in tile)] = 1
    expected = ndimage.gaussian_filter(impulse, [edge / 8 for edge in tile], mode="constant", truncate=4.0)
    expected /= expected.max()
    weight = gaussian_importance(tile)
    assert weight.dtype == torch.float32
    assert weight.shape == tile
    assert weight.numpy() == pytest.approx(np.maximum(expected, 1e-6), rel=1e-5)


def test_importance_by_hand():
    # sigma = 8 / 8 = 1, the peak at voxel 4
    expected = [np.exp(-0.5 * (i - 4) ** 2) for i in range(8)]
    assert gaussian_importance((8,)).tolist() == pytest.approx(expected, rel=1e-6)
    assert gaussian_importance((8, 8, 8)).min().item() == pytest.approx(1e-6)


# ---- stitching ----


@st.composite
def tilings(draw):
    """Image shape, tile, step and tiles per batch, in one to three dimensions; images may be smaller than the tile."""
    dims = draw(st.integers(1, 3))
    tile = draw(st.tuples(*[st.integers(1, 9)] * dims))
    shape = draw(st.tuples(*[st.integers(1, 14)] * dims))
    return shape, tile, draw(STEPS), draw(st.integers(1, 5))


@QUICK
@given(tilings(), st.integers(0, 2**31))
def test_the_identity_returns_the_image_whatever_the_tiling(tiling, seed):
    shape, tile, step, tile_batch = tiling
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    logits = predict_logits(image, [identity], out_channels=2, tile=tile, step=step, tile_batch=tile_batch)
    assert logits.dtype == torch.float32
    assert logits.shape == image.shape
    # up to the rounding of a weighted mean
    assert torch.allclose(logits, image, rtol=1e-5, atol=1e-6)


@QUICK
@given(tilings(), st.floats(-1e3, 1e3))
def test_a_constant_stays_constant(tiling, value):
    shape, tile, step, tile_batch = tiling

    def constant(tiles):
        return torch.full((len(tiles), 3, *tile), value)

    logits = predict_logits(
        torch.zeros(1, *shape), [constant], out_channels=3, tile=tile, step=step, tile_batch=tile_batch
    )
    assert logits.shape == (3, *shape)
    assert torch.allclose(logits, torch.tensor(value), rtol=1e-5, atol=1e-6)


def slow_prediction(image, network, tile, step):
    """The same in float64 and plain loops, for images at least as large as the tile."""
    image = image.double().numpy()
    offset = [(np.arange(edge) - edge // 2) / (edge / 8) for edge in tile]
    squares = sum(np.square(grid) for grid in np.meshgrid(*offset, indexing="ij"))
    weight = np.maximum(np.exp(-0.5 * squares), 1e-6)
    total, weights = np.zeros(image.shape), np.zeros(image.shape[1:])
    for start in itertools.product(*(tile_starts(s, t, step) for s, t in zip(image.shape[1:], tile, strict=True))):
        window = tuple(slice(p, p + t) for p, t in zip(start, tile, strict=True))
        seen = torch.from_numpy(image[(slice(None), *window)])[None]
        total[(slice(None), *window)] += network(seen)[0].numpy() * weight
        weights[window] += weight
    return total / weights


def position_dependent(tiles):
    """A network whose answer depends on where in the tile a voxel lies, so that every weight matters."""
    ramp = torch.arange(tiles[0, 0].numel(), dtype=tiles.dtype).reshape(tiles.shape[2:]) / 10
    return tiles * ramp + ramp


@QUICK
@given(tilings(), st.integers(0, 2**31))
def test_stitching_against_a_slow_loop(tiling, seed):
    shape, tile, step, tile_batch = tiling
    assume(all(s >= t for s, t in zip(shape, tile, strict=True)))
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    logits = predict_logits(image, [position_dependent], out_channels=2, tile=tile, step=step, tile_batch=tile_batch)
    expected = slow_prediction(image, position_dependent, tile, step)
    assert logits.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_small_image_is_centred_in_zeros():
    seen = []

    def network(tiles):
        seen.append(tiles.clone())
        return 10 * tiles

    image = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])  # (1, 3, 2)
    logits = predict_logits(image, [network], out_channels=1, tile=(4, 5))
    expected = torch.zeros(1, 1, 4, 5)
    expected[0, 0, 0:3, 1:3] = image  # one row to add: behind; three columns: one before, two behind
    assert torch.equal(torch.cat(seen), expected)
    assert torch.allclose(logits, 10 * image)


def convolution(cin, heads, dims, seed):
    """A random network with context: a 3-wide convolution and a non-linearity."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(heads, cin, *[3] * dims, generator=generator)
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    return lambda tiles: convolve(tiles, weight, padding=1).tanh()


@pytest.mark.parametrize("tile_batch", [2, 3, 5, 100])
def test_several_tiles_per_batch_give_the_same(tile_batch):
    image, network = torch.randn(2, 9, 10, 11), convolution(2, 3, 3, seed=0)
    one = predict_logits(image, [network], out_channels=3, tile=(4, 6, 6), tile_batch=1)
    several = predict_logits(image, [network], out_channels=3, tile=(4, 6, 6), tile_batch=tile_batch)
    assert torch.allclose(several, one, atol=1e-5)  # a convolution adds up in another order for other batch sizes


def test_batches_hold_as_many_tiles_as_asked_for():
    sizes = []

    def network(tiles):
        sizes.append(tuple(tiles.shape))
        return tiles

    predict_logits(torch.zeros(1, 4, 20), [network], out_channels=1, tile=(4, 4), step=1.0, tile_batch=2)  # five tiles
    assert sizes == [(2, 1, 4, 4), (2, 1, 4, 4), (1, 1, 4, 4)]


def test_an_ensemble_is_the_mean_of_its_members():
    image = torch.randn(1, 12, 13)
    members = [convolution(1, 2, 2, seed) for seed in range(3)]
    alone = [predict_logits(image, [member], out_channels=2, tile=(8, 8)) for member in members]
    together = predict_logits(image, members, out_channels=2, tile=(8, 8))
    assert torch.allclose(together, torch.stack(alone).mean(0), atol=1e-5)
    assert not torch.allclose(together, alone[0], atol=1e-2)


def test_half_precision_logits_are_accumulated_in_float32():
    # 0.1 is inexact in bfloat16, but its sum over tiles must not drift any further
    rounded = torch.tensor(0.1).bfloat16().float()
    logits = predict_logits(
        torch.zeros(1, 40), [lambda tiles: (tiles + 0.1).bfloat16()] * 3, out_channels=1, tile=(8,), step=0.25
    )
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, rounded, rtol=1e-6)


def test_nothing_is_recorded_for_gradients():
    weight = torch.ones((), requires_grad=True)
    logits = predict_logits(torch.ones(1, 6), [lambda tiles: weight * tiles], out_channels=1, tile=(4,))
    assert not logits.requires_grad
    assert not logits.is_inference()  # the caller may go on with it as with any tensor


# ---- 2-D networks over 3-D images ----


def test_a_2d_network_visits_every_slice():
    image, network = torch.randn(2, 5, 9, 12), convolution(2, 3, 2, seed=1)
    logits = predict_logits(image, [network], out_channels=3, tile=(6, 8), tile_batch=2)
    slices = [predict_logits(image[:, z], [network], out_channels=3, tile=(6, 8)) for z in range(5)]
    assert logits.shape == (3, 5, 9, 12)
    assert torch.allclose(logits, torch.stack(slices, dim=1), atol=1e-5)


# ---- progress ----


def test_progress_counts_tiles():
    calls = []
    image = torch.zeros(1, 20)  # tile 4, step 1: five tiles
    predict_logits(
        image, [identity], out_channels=1, tile=(4,), step=1.0, tile_batch=2, progress=lambda *call: calls.append(call)
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_progress_counts_over_all_slices():
    calls = []
    image = torch.zeros(1, 3, 4, 8)  # three slices of two tiles
    predict_logits(image, [identity], out_channels=1, tile=(4, 4), step=1.0, progress=lambda *call: calls.append(call))
    assert calls == [(done, 6) for done in range(1, 7)]


# ---- mirroring ----

AXES = [(), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("axes", AXES)
def test_mirroring_leaves_an_equivariant_network_alone(axes):
    calls = []

    def network(tiles):
        calls.append(tiles)
        return torch.sin(tiles)

    image = torch.randn(2, 1, 3, 4, 5)
    assert torch.allclose(mirrored(network, axes)(image), torch.sin(image), atol=1e-6)
    assert len(calls) == 2 ** len(axes)
    # every flip is another one
    assert len({tuple(call.flatten().tolist()) for call in calls}) == len(calls)


@pytest.mark.parametrize(("tiles", "edge", "passes"), [(1, 40, [2, 2]), (1, 41, [1] * 4), (2, 40, [2] * 4)])
def test_small_images_go_in_twos_through_a_network_on_a_cpu(tiles, edge, passes):
    """40 x 40 x 40 voxels are fewer than 65,536, 41 x 41 x 41 are more; four flips of one or two tiles."""
    found = []

    def network(images):
        found.append(len(images))
        return images * 2

    image = torch.randn(tiles, 1, edge, edge, edge)
    assert torch.equal(mirrored(network, (0, 1))(image), image * 2)
    assert found == passes
    assert images_at_once(torch.device("cuda"), (8, 8, 8)) == 1


def test_half_of_the_flips_have_an_even_number_of_axes():
    """Each axis is flipped in half of them; a network that adds where a voxel lies along an axis is evened out."""
    for axes in ((), (0,), (0, 2), (0, 1, 2)):
        sets = flip_sets(axes, even=True)
        assert sets[0] == ()
        assert len(sets) == max(1, len(flip_sets(axes)) // 2)
        assert set(sets) <= set(flip_sets(axes))
        if len(axes) > 1:
            assert {sum(axis in chosen for chosen in sets) for axis in axes} == {len(sets) // 2}
    ramp = torch.arange(3.0)[:, None, None] + torch.arange(3.0)[:, None] * 10 + torch.arange(3.0) * 100
    image = torch.randn(1, 1, 3, 3, 3)
    found = mirrored(lambda tiles: tiles + ramp, (0, 1, 2), even=True)(image)
    assert torch.allclose(found, image + 111, atol=1e-4)


def test_mirroring_along_one_axis_by_hand():
    # the network adds 0, 1, 2 along Y; its mirror image adds 2, 1, 0: together 1 everywhere
    ramp = torch.tensor([0.0, 1.0, 2.0])[:, None]
    image = torch.randn(1, 1, 3, 2)
    assert torch.allclose(mirrored(lambda tiles: tiles + ramp, (0,))(image), image + 1)
    # along X the ramp is its own mirror image
    assert torch.allclose(mirrored(lambda tiles: tiles + ramp, (1,))(image), image + ramp)


def test_mirroring_along_two_axes_is_the_mean_of_four():
    def network(tiles):  # what lies one voxel to the left and above, twice what lies here
        return tiles.roll((1, 1), (2, 3)) + 2 * tiles

    image = torch.randn(2, 1, 4, 5)

    def flipped(*axes):
        return np.flip(network(torch.from_numpy(np.flip(image.numpy(), axes).copy())).numpy(), axes)

    expected = (flipped() + flipped(2) + flipped(3) + flipped(2, 3)) / 4
    assert mirrored(network, (0, 1))(image).numpy() == pytest.approx(expected, abs=1e-6)
    assert not np.allclose(expected, network(image).numpy(), atol=1e-2)


def test_mirroring_inside_the_window_averages_before_stitching():
    image, network = torch.randn(1, 10, 10), convolution(1, 2, 2, seed=2)

    def flipped(*axes):
        return lambda tiles: network(tiles.flip(axes)).flip(axes)

    each = [
        predict_logits(image, [member], out_channels=2, tile=(6, 6))
        for member in (network, flipped(2), flipped(3), flipped(2, 3))
    ]
    together = predict_logits(image, [mirrored(network, (0, 1))], out_channels=2, tile=(6, 6))
    assert torch.allclose(together, sum(each) / 4, atol=1e-5)
