"""What moves in the host chain: ranges and margins of deformations, labels that follow; resampling against scipy's."""

from dataclasses import replace

import numpy as np
import pytest
from batchgenerators.augmentations import utils as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from autoseg.augmentation import host_chain as module
from autoseg.augmentation.host_chain import build_chain, elastic_field, fit, resample
from autoseg.augmentation.presets import AUGMENTATIONS
from host_chain import run
from synthetic_patches import OFF, High, an_image, generator, ramp

# Ranges -------------------------------------------------------------------------------------------


def test_a_quarter_turn():
    image = an_image(2, 6, 6)
    target = generator(2).integers(0, 4, (6, 6)).astype(np.int16)
    result, labels = run(replace(OFF, rotation=1.0, rotation_degrees_2d=90.0), image, target, High())
    np.testing.assert_allclose(result, np.rot90(image, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(labels, np.rot90(target))
    assert labels.dtype == np.int16


def test_long_slices_turn_by_their_own_angle():
    table = replace(OFF, rotation=1.0, rotation_degrees_2d=0.0, rotation_degrees_2d_oblong=180.0)
    for shape, turned in [((6, 10), True), ((10, 6), True), ((6, 9), False), ((6, 6), False)]:
        image = an_image(1, *shape)
        result, _ = run(table, image, rng=High())
        np.testing.assert_allclose(result, image[:, ::-1, ::-1] if turned else image, atol=1e-5)


def test_volumes_turn_about_three_axes():
    image = an_image(1, 5, 5, 5)
    half, _ = run(replace(OFF, rotation=1.0, rotation_degrees_3d=180.0), image, rng=High())
    np.testing.assert_allclose(half, image, atol=1e-4)  # three half turns about three axes are none
    slopes = np.array([1.0, 10.0, 100.0])
    linear = ramp((9, 9, 9), *slopes)
    result, _ = run(replace(OFF, rotation=1.0, rotation_degrees_3d=25.0), linear, rng=High(), patch_size=(3, 3, 3))
    mesh = oracle.create_zero_centered_coordinate_mesh((3, 3, 3))
    coordinates = oracle.rotate_coords_3d(mesh, *[np.deg2rad(25.0)] * 3)
    np.testing.assert_allclose(result[0], np.tensordot(slopes, coordinates, 1), atol=1e-3)


def test_thick_slices_are_turned_each_in_its_plane():
    image = an_image(2, 2, 8, 8)
    target = generator(3).integers(0, 3, (2, 8, 8)).astype(np.int8)
    table = replace(OFF, rotation=1.0, rotation_degrees_2d=90.0, rotation_degrees_3d=0.0)
    for setting in (None, True):  # 8 / 2 is more than 3
        result, labels = run(table, image, target, High(), anisotropic=setting)
        np.testing.assert_allclose(result, np.rot90(image, axes=(2, 3)), atol=1e-5)
        np.testing.assert_array_equal(labels, np.rot90(target, axes=(1, 2)))
    np.testing.assert_allclose(run(table, image, target, High(), anisotropic=False)[0], image, atol=1e-5)


def test_angles_lie_between_minus_and_plus_the_largest():
    table = replace(OFF, rotation=1.0, rotation_degrees_2d=40.0)
    chain = build_chain(table, patch_size=(9, 9), mirror_axes=())
    angles = []
    for seed in range(300):
        y, x = chain.draw(generator(seed)).coordinates[:, 8, 4]  # 4 below the centre
        angles.append(np.rad2deg(np.arctan2(x, y)))
        assert np.hypot(x, y) == pytest.approx(4, abs=1e-5)
    assert -40 <= min(angles) < -35
    assert 35 < max(angles) <= 40


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_scaling_is_about_the_centre(factor):
    image = ramp((16, 20, 18), 1.0, 10.0, 100.0)
    table = replace(OFF, scaling=1.0, scaling_range=(factor, factor))
    result, _ = run(table, image, patch_size=(6, 8, 6))
    np.testing.assert_allclose(result, factor * ramp((6, 8, 6), 1.0, 10.0, 100.0), atol=1e-3)


def test_scaling_factors_fill_their_range():
    chain = build_chain(replace(OFF, scaling=1.0, scaling_range=(0.7, 1.4)), patch_size=(5, 5), mirror_axes=())
    factors = [chain.draw(generator(seed)).coordinates[0, 4, 0] / 2 for seed in range(300)]
    assert 0.7 <= min(factors) < 0.72
    assert 1.38 < max(factors) <= 1.4


def test_the_elastic_displacement_has_the_same_spread_everywhere():
    fields_drawn = np.stack([elastic_field((12, 16), 0.1, generator(seed)) for seed in range(1000)])
    spread = fields_drawn.std(axis=0)  # control points are 16 / 4 voxels apart: 0.1 of that is 0.4
    np.testing.assert_allclose(spread, 0.4, rtol=0.15)
    np.testing.assert_allclose(fields_drawn.mean(axis=0), 0.0, atol=0.05)
    both = np.corrcoef(fields_drawn[:, 0, 6, 8], fields_drawn[:, 1, 6, 8])[0, 1]
    assert abs(both) < 0.1  # the axes are displaced independently
    steps = np.diff(fields_drawn, axis=3)
    assert steps.std() < 0.6 * 0.4  # smooth: independent neighbours would give 1.4


def test_the_elastic_magnitude_is_the_one_drawn():
    assert not elastic_field((5, 6, 7), 0.0, generator()).any()
    image = ramp((40, 40), 1.0, 0.0)
    for magnitude in (0.05, 0.1):
        table = replace(OFF, elastic=1.0, elastic_magnitude=(magnitude, magnitude))
        chain = build_chain(table, patch_size=(16, 16), mirror_axes=())
        target = np.zeros((40, 40), np.int8)
        moved = [chain(image, target, generator(seed))[0] - ramp((16, 16), 1.0, 0.0) for seed in range(300)]
        assert np.std(moved) == pytest.approx(4 * magnitude, rel=0.1)


def test_thick_slices_are_deformed_alike_and_not_mixed():
    image = np.broadcast_to(np.arange(2.0, dtype=np.float32)[None, :, None, None], (1, 2, 8, 8)).copy()
    table = replace(OFF, elastic=1.0, scaling=1.0, rotation=1.0, elastic_magnitude=(0.2, 0.2))
    result, _ = run(table, image, patch_size=(2, 4, 4), anisotropic=True)
    np.testing.assert_allclose(result, image[:, :, :4, :4], atol=1e-6)


def test_mirroring():
    image = an_image(2, 3, 4, 5)
    target = generator(1).integers(0, 3, (3, 4, 5)).astype(np.int8)
    result, labels = run(replace(OFF, mirroring=1.0), image, target, mirror_axes=(0, 2))
    np.testing.assert_array_equal(result, image[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(labels, target[::-1, :, ::-1])
    seen = set()
    for seed in range(100):
        result, _ = run(replace(OFF, mirroring=0.5), image, target, generator(seed), mirror_axes=(0, 1))
        seen.add((result[0, 0, 0, 0] in image[0, 2], result[0, 0, 0, 0] in image[0, :, 3]))
    assert len(seen) == 4  # each axis by itself


# Image, labels and margin -------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(10, 12), (6, 8, 7), (2, 10, 10)])
def test_the_margin_is_all_that_a_deformation_reaches(patch):
    """The image beyond the margin, and padding in its place, change nothing; one voxel less would be missed."""
    table = replace(OFF, rotation=0.7, scaling=0.7, elastic=0.7, scaling_range=(0.5, 2.0), elastic_magnitude=(0.2, 0.2))
    chain = build_chain(table, patch_size=patch, mirror_axes=())
    size = tuple(n + 60 for n in patch)
    image, target = an_image(1, *size), generator(1).integers(0, 3, size).astype(np.int8)
    missed = 0
    for seed in range(12):
        deformation = chain.draw(generator(seed))
        results = []
        for less in (0, 1):
            cut = [
                slice(30 - m + (less if m else 0), 30 + n + m - (less if m else 0))
                for m, n in zip(deformation.margin, patch, strict=True)
            ]
            results.append(chain(image[(slice(None), *cut)], target[tuple(cut)], generator(99), deformation))
        whole = chain(image, target, generator(99), deformation)
        np.testing.assert_allclose(results[0][0], whole[0], atol=1e-4)
        assert (results[0][1] != whole[1]).mean() < 0.001
        missed += np.abs(results[1][0] - whole[0]).max() > 1e-3
        if deformation.coordinates is None:
            assert deformation.margin == (0,) * len(patch)
    assert missed > 3


def test_the_deformation_drawn_outside_is_the_one_drawn_inside():
    chain = build_chain(AUGMENTATIONS["default"], patch_size=(8, 8), mirror_axes=(0, 1))
    image, target = an_image(1, 30, 30), np.zeros((30, 30), np.int8)
    for seed in range(10):
        rng = generator(seed)
        outside = chain(image, target, rng, chain.draw(rng))
        inside = chain(image, target, generator(seed))
        np.testing.assert_array_equal(outside[0], inside[0])


def test_labels_follow_the_image():
    """For two classes the interpolated label is 1 exactly where the interpolated indicator exceeds one half."""
    target = (gaussian_filter(generator(3).standard_normal((24, 24, 24)), 2) > 0).astype(np.int8)
    table = replace(OFF, rotation=1.0, scaling=1.0, elastic=1.0)
    for seed in range(5):
        image, labels = run(table, target[None].astype(np.float32), target, generator(seed), patch_size=(10, 10, 10))
        clear = np.abs(image[0] - 0.5) > 1e-4
        np.testing.assert_array_equal(labels[clear], (image[0] > 0.5)[clear])
        assert 0 < labels.mean() < 1


def test_fitting_crops_and_pads_about_the_centre():
    image, target = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3), np.ones((2, 3), np.int8)
    fitted, labels = fit(image, target, (4, 1), (0, 0), border=-7.0)
    assert fitted.tolist() == [[[-7.0], [2.0], [5.0], [-7.0]]]
    assert labels.tolist() == [[-1], [1], [1], [-1]]
    with pytest.raises(AssertionError, match="common centre"):
        fit(image, target, (3, 3), (0, 0), border=0.0)


# Resampling against scipy and batchgenerators -----------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(1, 3), st.integers(0, 10**6), st.integers(1, 40)
)
def test_resampling_is_linear_interpolation(size, channels, seed, at_once):
    rng = generator(seed)
    image = rng.standard_normal((channels, *size)).astype(np.float32)
    target = rng.integers(-1, 4, size).astype(np.int8)
    half = (np.array(size) - 1) / 2
    shape = tuple(rng.integers(1, 6, len(size)))
    coordinates = (rng.uniform(-1, 1, (len(size), *shape)) * half.reshape(-1, *[1] * len(size))).astype(np.float32)
    before, module.POINTS_AT_ONCE = module.POINTS_AT_ONCE, at_once
    try:
        result, labels = resample(image, target, coordinates)
    finally:
        module.POINTS_AT_ONCE = before
    absolute = coordinates.astype(np.float64) + half.reshape(-1, *[1] * len(size))
    for channel, expected in zip(result, image, strict=True):
        np.testing.assert_allclose(channel, map_coordinates(expected, absolute, order=1, mode="nearest"), atol=1e-5)
    classes = np.arange(-1, 4)
    indicators = [map_coordinates((target == c).astype(float), absolute, order=1, mode="nearest") for c in classes]
    scores = np.sort(np.stack(indicators), axis=0)
    clear = scores[-1] - scores[-2] > 1e-5
    np.testing.assert_array_equal(labels[clear], classes[np.argmax(indicators, axis=0)][clear])
    one = np.stack(indicators)[labels.astype(int) + 1, *np.indices(shape)]
    np.testing.assert_allclose(one, scores[-1], atol=1e-5)  # in a tie: one of the best


def test_resampling_agrees_with_batchgenerators():
    image = an_image(1, 14, 15, 16)
    target = np.clip(gaussian_filter(an_image(14, 15, 16, seed=4), 1.5) * 20, -1, 3).astype(np.int8)
    mesh = oracle.create_zero_centered_coordinate_mesh((6, 7, 8))
    coordinates = oracle.scale_coords(oracle.rotate_coords_3d(mesh, 0.3, -0.2, 0.4), 1.2)
    centred = coordinates + (np.array([14, 15, 16]) / 2 - 0.5).reshape(3, 1, 1, 1)
    result, labels = resample(image, target, coordinates.astype(np.float32))
    np.testing.assert_allclose(result[0], oracle.interpolate_img(image[0], centred, 1, "constant"), atol=1e-5)
    expected = oracle.interpolate_img(target, centred, 1, "nearest", is_seg=True)
    assert (labels != expected).mean() < 0.005  # ties
    assert len(np.unique(labels)) > 3


def test_slices_are_resampled_each_by_itself():
    image, target = an_image(2, 3, 9, 9), generator(1).integers(-1, 4, (3, 9, 9)).astype(np.int8)
    coordinates = generator(2).uniform(-4, 4, (2, 5, 5)).astype(np.float32)
    result, labels = resample(image, target, coordinates)
    assert result.shape == (2, 3, 5, 5)
    for z in range(3):
        one, one_labels = resample(image[:, z], target[z], coordinates)
        np.testing.assert_array_equal(result[:, z], one)
        np.testing.assert_array_equal(labels[z], one_labels)
