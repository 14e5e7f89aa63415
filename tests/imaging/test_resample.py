"""Resampling: hand-worked rows, constants, ramps; scikit-image, scipy and a dense argmax of all classes as oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.low_pass import LowPass
from autoseg.imaging.resample import (
    require_possible,
    resample_image,
    resample_labels,
    resample_probabilities,
    resampled_shape,
    separate_axis,
)

ISOTROPIC = (1.0, 1.0, 1.0)
SHAPES = st.tuples(*[st.integers(1, 14)] * 3)


def image(
    array,
    shape,
    *,
    spacing=ISOTROPIC,
    target=ISOTROPIC,
    order=3,
    coarse=0,
    threshold=3.0,
    antialias=np.inf,
    filter="gaussian",
):
    return resample_image(
        array,
        spacing,
        target,
        shape,
        order=order,
        coarse_axis_order=coarse,
        anisotropy_threshold=threshold,
        low_pass=LowPass(filter, antialias),
    )


def labels(array, shape, *, spacing=ISOTROPIC, target=ISOTROPIC, coarse=0, threshold=3.0):
    return resample_labels(array, spacing, target, shape, coarse_axis_order=coarse, anisotropy_threshold=threshold)


def row(*values, dtype=np.float32):
    return np.array(values, dtype=dtype).reshape(1, 1, -1)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- shapes and the separate axis ---------------------------------------------------------------------------------


def test_resampled_shape_rounds_the_extent_in_new_voxels():
    assert resampled_shape((10, 100, 100), (5.0, 0.5, 0.7), (2.5, 1.0, 1.0)) == (20, 50, 70)
    assert resampled_shape((3, 100, 100), (1.0, 1.0, 1.0), (2.0, 1.5, 1.0)) == (2, 67, 100)


def test_resampled_shape_keeps_one_voxel():
    assert resampled_shape((1, 2, 5), (1.0, 1.0, 1.0), (9.0, 9.0, 1.0)) == (1, 1, 5)


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),  # coarse now
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),  # coarse then
        ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0), 2),  # both: what is coarse now decides
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # not more than the threshold
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),  # two coarsest axes
        ((5.0, 5.0, 1.0), (9.0, 1.0, 1.0), None),  # and then the target is not asked
        ((1.0, 1.0, 1.0), (9.0, 9.0, 1.0), None),
        ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), None),
    ],
)
def test_separate_axis(spacing, target, axis):
    assert separate_axis(spacing, target, 3.0) == axis


# --- images ---------------------------------------------------------------------------------------------------------


def test_same_shape_is_the_same_object():
    array = noise((2, 3, 4, 5))
    assert image(array, (3, 4, 5), spacing=(1, 1, 1), target=(2, 2, 2)) is array
    probabilities = noise((2, 3, 4, 5))
    assert (
        resample_probabilities(probabilities, ISOTROPIC, ISOTROPIC, (3, 4, 5), anisotropy_threshold=3) is probabilities
    )
    indices = np.zeros((3, 4, 5), dtype=np.int16)
    assert labels(indices, (3, 4, 5)) is indices


def test_linear_row_by_hand():
    # centres of 4 cells over 2 lie at -0.25, 0.25, 0.75, 1.25; the outer two are clamped to the edge
    np.testing.assert_array_equal(image(row(0, 8)[None], (1, 1, 4), order=1).ravel(), [0, 2, 6, 8])
    # centres of 2 cells over 4 lie at 0.5 and 2.5
    np.testing.assert_array_equal(image(row(0, 2, 10, 20)[None], (1, 1, 2), order=1).ravel(), [1, 15])


def test_nearest_row_by_hand():
    np.testing.assert_array_equal(image(row(1, 2, 3)[None], (1, 1, 6), order=0).ravel(), [1, 1, 2, 2, 3, 3])
    # cells of 2 over 5 have centres in the cells 1 (1.25) and 3 (3.75)
    np.testing.assert_array_equal(image(row(0, 1, 2, 3, 4)[None], (1, 1, 2), order=0).ravel(), [1, 3])


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("antialias", [1.5, np.inf])
def test_a_constant_stays(order, antialias):
    array = np.full((1, 7, 3, 1), 3.7, dtype=np.float32)
    resampled = image(array, (2, 11, 4), order=order, antialias=antialias)
    assert resampled.shape == (1, 2, 11, 4)
    np.testing.assert_allclose(resampled, 3.7, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("n_out", [23, 64, 97])
def test_a_ramp_stays_a_ramp_away_from_the_edges(axis, n_out):
    n_in = 40
    ramp = np.moveaxis(np.broadcast_to(np.arange(n_in, dtype=np.float32), (2, 3, n_in)), -1, axis)
    shape = list(ramp.shape)
    shape[axis] = n_out
    resampled = np.moveaxis(image(ramp[None], tuple(shape), order=3, antialias=1.5)[0], axis, -1)
    expected = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    inner = (expected > 14) & (expected < n_in - 15)
    assert inner.sum() > 5
    np.testing.assert_allclose(resampled[..., inner], np.broadcast_to(expected[inner], (2, 3, inner.sum())), atol=1e-4)


@pytest.mark.parametrize("order", [1, 3])
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, new_shape=SHAPES, seed=st.integers(0, 9))
def test_equals_skimage_resize(order, shape, new_shape, seed):
    array = noise(shape, seed)
    expected = resize(array.astype(np.float64), new_shape, order=order, mode="edge", anti_aliasing=False)
    resampled = image(array[None], new_shape, order=order)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled[0], expected, atol=1e-6 * max(1, np.ptp(array)))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, new_shape=SHAPES, factor=st.sampled_from([1.0, 1.5, 3.0]))
def test_smoothing_equals_skimage_resize(shape, new_shape, factor):
    array = noise(shape)
    shrinks = np.divide(shape, new_shape)
    sigma = np.where(shrinks > factor, (shrinks - 1) / 2, 0)
    expected = resize(
        array.astype(np.float64),
        new_shape,
        order=3,
        mode="edge",
        anti_aliasing=bool(sigma.any()),
        anti_aliasing_sigma=sigma if sigma.any() else None,
    )
    if shape != new_shape:
        resampled = image(array[None], new_shape, antialias=factor)[0]
        np.testing.assert_allclose(resampled, expected, atol=1e-6 * max(1, np.ptp(array)))


@pytest.mark.parametrize(
    ("shape", "new_shape"), [((33, 70, 61), (80, 31, 62)), ((5, 120, 90), (40, 100, 200)), ((64, 50, 3), (7, 13, 40))]
)
def test_equals_skimage_resize_where_operators_have_several_blocks(shape, new_shape):
    array = noise(shape)
    expected = resize(array.astype(np.float64), new_shape, order=3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(image(array[None], new_shape)[0], expected, atol=1e-6 * np.ptp(array))


@pytest.mark.parametrize("coarse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_coarse_axis_is_resampled_on_its_own(axis, coarse):
    spacing = tuple(6.0 if i == axis else 1.0 for i in range(3))
    shape = tuple(5 if i == axis else 12 for i in range(3))
    new_shape = tuple(9 if i == axis else 17 + i for i in range(3))
    array = noise(shape)
    in_plane = new_shape[:axis] + new_shape[axis + 1 :]
    slices = [
        resize(s.astype(np.float64), in_plane, order=3, mode="edge", anti_aliasing=False, clip=coarse == 0)
        for s in np.moveaxis(array, axis, 0)  # copied slices keep to their own range, others to that of the channel
    ]
    position = (np.arange(9) + 0.5) * 5 / 9 - 0.5
    grid = np.meshgrid(position, *[np.arange(n) for n in in_plane], indexing="ij")
    expected = np.moveaxis(ndimage.map_coordinates(np.stack(slices), grid, order=coarse, mode="nearest"), 0, axis)
    expected = expected.clip(array.min(), array.max())
    resampled = image(array[None], new_shape, spacing=spacing, coarse=coarse)[0]
    np.testing.assert_allclose(resampled, expected, atol=1e-6 * np.ptp(array))


def test_an_unchanged_coarse_axis_keeps_its_slices_apart():
    array = np.zeros((1, 3, 4, 4), dtype=np.float32)
    array[0, 1] = 7
    resampled = image(array, (3, 8, 8))
    np.testing.assert_allclose(resampled[0, 1], 7, rtol=1e-6)
    assert not resampled[0, [0, 2]].any()


def test_cubic_does_not_overshoot_and_channels_are_apart():
    array = np.zeros((2, 1, 1, 10), dtype=np.float32)
    array[0, ..., 5:] = 1
    array[1, ..., 5:] = -30
    resampled = image(array, (1, 1, 37))
    assert resampled[0].min() == 0
    assert resampled[0].max() == 1
    assert resampled[1].min() == -30
    assert resampled[1].max() == 0
    np.testing.assert_allclose(resampled[1], -30 * resampled[0], atol=1e-5)


def test_smoothing_removes_what_the_new_grid_cannot_show():
    stripes = np.tile(np.array([0, 1], dtype=np.float32), 60).reshape(1, 1, 1, 120)
    assert np.ptp(image(stripes, (1, 1, 24), antialias=1.5)[..., 3:-3]) < 0.02
    aliased = image(stripes, (1, 1, 24), antialias=5.0)  # not more than the factor: every fifth voxel as it stands
    np.testing.assert_allclose(aliased.ravel()[3:-3], np.tile([1, 0], 9), atol=1e-6)


def test_input_may_be_a_strided_view_and_is_not_written_to():
    array = noise((5, 4, 6, 2))
    before = array.copy()
    view = array.transpose(3, 1, 2, 0)[..., ::-1]
    np.testing.assert_array_equal(image(view, (7, 5, 8)), image(np.ascontiguousarray(view), (7, 5, 8)))
    np.testing.assert_array_equal(array, before)


def test_unknown_order_is_refused():
    with pytest.raises(UsageError, match="order 2"):
        image(noise((1, 3, 3, 3)), (4, 4, 4), order=2)


# --- probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (6.0, 1.0, 1.0)])
def test_probabilities_keep_their_sum_and_range(spacing):
    probabilities = np.random.default_rng(0).dirichlet([0.3] * 4, size=(5, 9, 8)).transpose(3, 0, 1, 2)
    resampled = resample_probabilities(
        probabilities.astype(np.float32), spacing, ISOTROPIC, (13, 4, 21), anisotropy_threshold=3.0
    )
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled.sum(axis=0), 1, atol=1e-6)
    assert resampled.min() >= 0
    assert resampled.max() <= 1 + 1e-6


def test_probabilities_are_linear_in_plane_and_nearest_along_a_coarse_axis():
    array = np.zeros((1, 2, 1, 2), dtype=np.float32)
    array[0, 1, 0, 1] = 8
    isotropic = resample_probabilities(array, ISOTROPIC, ISOTROPIC, (4, 1, 4), anisotropy_threshold=3.0)
    np.testing.assert_array_equal(isotropic[0, :, 0], np.outer([0, 0.25, 0.75, 1], [0, 2, 6, 8]))
    coarse = resample_probabilities(array, (5.0, 1.0, 1.0), ISOTROPIC, (4, 1, 4), anisotropy_threshold=3.0)
    np.testing.assert_array_equal(coarse[0, :, 0], np.outer([0, 0, 1, 1], [0, 2, 6, 8]))


# --- labels ---------------------------------------------------------------------------------------------------------


def dense_argmax(indices, new_shape):
    """All classes at once, each by scikit-image, the lowest of the (almost) largest."""
    classes = np.unique(indices)
    scores = [
        resize((indices == c).astype(np.float64), new_shape, order=1, mode="edge", anti_aliasing=False, clip=False)
        for c in classes
    ]
    best = np.max(scores, axis=0)
    return classes[np.argmax([score >= best - 1e-6 for score in scores], axis=0)]


@settings(max_examples=80, deadline=None)
@given(shape=SHAPES, new_shape=SHAPES, num_classes=st.integers(1, 6), seed=st.integers(0, 99))
def test_labels_equal_a_dense_argmax(shape, new_shape, num_classes, seed):
    indices = np.random.default_rng(seed).integers(OUTSIDE, num_classes, size=shape).astype(np.int16)
    resampled = labels(indices, new_shape)
    assert resampled.dtype == np.int16
    np.testing.assert_array_equal(resampled, dense_argmax(indices, new_shape))


def test_a_label_that_no_voxel_of_a_coarser_grid_sees_is_lost():
    """Of seven cells one is left, whose centre lies in the fourth: 2 stands elsewhere, in one of two rows."""
    indices = np.zeros((1, 2, 7), np.int16)
    indices[0, 0, 6] = 2
    assert labels(indices, (1, 1, 1)).tolist() == [[[0]]]
    indices[0, :, 3] = 1
    assert labels(indices, (1, 1, 1)).tolist() == [[[1]]]


@pytest.mark.parametrize("new_shape", [(40, 30, 37), (9, 50, 11)])
def test_labels_are_decided_in_slabs(new_shape, monkeypatch):
    indices = np.random.default_rng(0).integers(-1, 4, size=(7, 6, 5)).astype(np.int16).repeat(3, 0).repeat(4, 2)
    whole = labels(indices, new_shape)
    monkeypatch.setattr("autoseg.imaging.resample._SLAB_VOXELS", 3 * new_shape[1] * new_shape[2])
    np.testing.assert_array_equal(labels(indices, new_shape), whole)
    np.testing.assert_array_equal(whole, dense_argmax(indices, new_shape))


def test_label_row_by_hand():
    # two cells over three: centres at 0.25 and 1.75, weights (3/4, 1/4, 0) and (0, 1/4, 3/4)
    np.testing.assert_array_equal(labels(row(5, 1, 2, dtype=np.int16), (1, 1, 2)).ravel(), [5, 2])
    # 1/2 : 1/2 everywhere: the lowest class
    np.testing.assert_array_equal(labels(row(4, 2, 1, 3, dtype=np.int16), (1, 1, 2)).ravel(), [2, 1])


def test_three_classes_meeting_leave_no_hole():
    # weights 1/4 each: none reaches one half, where a threshold would leave background
    indices = np.array([[[1, 2], [3, 4]]], dtype=np.int16)
    np.testing.assert_array_equal(labels(indices, (1, 1, 1)), [[[1]]])
    checker = np.array([[[3, 2], [2, 3]]], dtype=np.int16)
    assert 0 not in labels(checker.repeat(4, 1), (1, 11, 13))


def test_outside_and_ignore_are_classes():
    indices = np.zeros((4, 4, 4), dtype=np.int16)
    indices[:, :, 0] = OUTSIDE
    indices[:, :, 3] = 255
    resampled = labels(indices, (8, 8, 8))
    np.testing.assert_array_equal(resampled[0, 0], [-1, -1, 0, 0, 0, 0, 255, 255])
    assert (resampled == resampled[0, 0]).all()


@pytest.mark.parametrize("coarse", [0, 1])
def test_labels_along_a_coarse_axis(coarse):
    indices = np.array([0, 1, 1], dtype=np.int16).reshape(3, 1, 1).repeat(4, 1).repeat(4, 2)
    resampled = labels(indices, (4, 4, 4), spacing=(9.0, 1.0, 1.0), coarse=coarse)
    # centres at -0.125, 0.625, 1.375, 2.125: nearest gives 0, 1, 1, 2, linear the same majorities
    np.testing.assert_array_equal(resampled[:, 0, 0], [0, 1, 1, 1])
    tall = labels(indices, (2, 4, 4), spacing=(9.0, 1.0, 1.0), coarse=coarse)
    np.testing.assert_array_equal(tall[:, 2, 2], [0, 1])


def test_coarse_axis_order_0_picks_whole_slices():
    indices = np.random.default_rng(0).integers(0, 4, size=(3, 5, 5)).astype(np.int16)
    in_plane = np.stack([dense_argmax(s[None], (1, 9, 8))[0] for s in indices])
    resampled = labels(indices, (7, 9, 8), spacing=(9.0, 1.0, 1.0))
    np.testing.assert_array_equal(resampled, in_plane[[0, 0, 1, 1, 1, 2, 2]])


def test_a_ball_keeps_its_volume():
    z, y, x = np.ogrid[:30, :30, :30]
    ball = ((z - 14.5) ** 2 + (y - 14.5) ** 2 + (x - 14.5) ** 2 <= 12**2).astype(np.int16)
    resampled = labels(ball, (45, 21, 60))
    assert resampled.sum() / ball.sum() == pytest.approx(45 * 21 * 60 / 30**3, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "expected"),
    [
        ((28, 32, 36), (1.5, 1.2, 1.0), (1.5, 1.2, 1.0), (28, 32, 36)),
        ((7, 32, 36), (0.1, 1.2, 1.0), (5.0, 1.2, 1.0), (1, 32, 36)),  # few slices may become one
        ((8, 32, 36), (0.4, 1.2, 1.0), (5.0, 1.2, 1.0), (1, 32, 36)),  # 0.64 of a voxel is one
        ((8, 32, 36), (0.3, 1.2, 1.0), (5.0, 1.2, 1.0), "less than one voxel"),  # 0.48
        ((4, 5, 6), (1e-3, 1e-3, 1e-3), (1.0, 1.0, 1.0), "less than one voxel"),
        ((4, 5, 6), (0.1, 0.1, 0.1), (1.0, 1.0, 1.0), (1, 1, 1)),  # 0.4, 0.5, 0.6
        ((28, 32, 36), (1.5e-3, 1.2e-3, 1e-3), (1.5, 1.2, 1.0), "less than one voxel"),
        ((28, 32, 36), (1500, 1200, 1000), (1.5, 1.2, 1.0), "28000 x 32000 x 36000"),
        ((28, 32, 36), (13.5, 10.8, 9.0), (1.5, 1.2, 1.0), (252, 288, 324)),  # 729 for one
        ((2, 3, 4), (100, 100, 100), (1, 1, 1), (200, 300, 400)),  # a million for one, and still small
        ((10, 512, 512), (10, 10, 10), (0.9, 0.9, 0.9), "GB per channel"),
    ],
)
def test_what_cannot_be_resampled_is_refused_before_anything_is_allocated(shape, spacing, target, expected):
    if isinstance(expected, tuple):
        assert require_possible(shape, spacing, target, "scan.nii") == expected
        return
    with pytest.raises(DataError, match=rf"^scan\.nii: .*{expected}") as caught:
        require_possible(shape, spacing, target, "scan.nii")
    assert "voxel size in its header" in caught.value.remedy
