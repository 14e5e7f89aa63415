"""Corrupted images against closed forms and values worked out by hand."""

import numpy as np
import pytest

from autoseg.evaluation.corruptions import SHIFTS, bias_field, blur, contrast, corrupted, noise, resolution

ONE = (1.0, 1.0, 1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


def body(shape=(6, 7, 8), channels=2, seed=1):
    """Channels of positive intensities with a margin of 0 about them."""
    image = np.zeros((channels, *shape), np.float32)
    inner = (slice(None), *(slice(1, n - 1) for n in shape))
    image[inner] = generator(seed).uniform(50, 150, image[inner].shape)
    return image


NEUTRAL = {"noise": 0.0, "blur": 0.0, "bias_field": 0.0, "contrast": 1.0, "resolution": 1.0}


@pytest.mark.parametrize("name", SHIFTS)
def test_a_strength_that_is_neutral_changes_nothing(name):
    image = body()
    np.testing.assert_allclose(corrupted(image, ONE, name, NEUTRAL[name], "a"), image, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SHIFTS)
def test_what_is_around_the_body_stays_and_the_input_is_not_written_to(name):
    image = body()
    before = image.copy()
    changed = corrupted(image, (2.0, 1.0, 1.0), name, SHIFTS[name].strengths[-1], "a")
    assert (changed.dtype, changed.shape) == (np.float32, image.shape)
    assert not changed[image == 0].any()
    assert not np.allclose(changed, image)
    assert np.isfinite(changed).all()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_same_case_gives_the_same_image_and_another_another(name):
    image, strength = body(), SHIFTS[name].strengths[1]
    first = corrupted(image, ONE, name, strength, "a")
    np.testing.assert_array_equal(first, corrupted(image, ONE, name, strength, "a"))
    others = [corrupted(image, ONE, name, strength, case) for case in "bcdefgh"]
    drawn = name not in ("blur", "resolution")
    assert any(not np.array_equal(first, other) for other in others) == drawn


@pytest.mark.parametrize("name", SHIFTS)
def test_a_stronger_shift_is_further_from_the_image(name):
    image = body()
    far = [np.abs(corrupted(image, ONE, name, s, "a") - image).mean() for s in SHIFTS[name].strengths]
    assert far[0] < far[1] < far[2]


def test_noise_has_the_deviation_that_was_asked_for_in_each_channel():
    """Channels of -1 and 1, and of 90 and 110: deviations 1 and 10, of which a half; the pattern scales exactly."""
    signs = np.where(generator().uniform(size=(1, 40, 40, 40)) < 0.5, -1, 1)
    signs.flat[: signs.size // 2], signs.flat[signs.size // 2 :] = -1, 1
    image = np.concatenate([signs, 100 + 10 * signs]).astype(np.float32)
    added = noise(image, ONE, 0.5, generator()) - image
    assert added.std(axis=(1, 2, 3)) == pytest.approx([0.5, 5], rel=0.01)
    assert added.mean(axis=(1, 2, 3)) == pytest.approx([0, 0], abs=0.1)
    assert abs(np.corrcoef(added.reshape(2, -1))[0, 1]) < 0.02
    twice = noise(image, ONE, 1.0, generator()) - image
    np.testing.assert_allclose(twice, 2 * added, atol=1e-4)


def test_noise_is_measured_within_the_body():
    """Half of the image is 0: the deviation of the other half, 1, counts; that of all voxels would be 50."""
    image = np.zeros((1, 20, 20, 40), np.float32)
    image[..., 20:] = np.where(np.arange(20) % 2, 99, 101)
    added = noise(image, ONE, 1.0, generator())[..., 20:] - image[..., 20:]
    assert added.std() == pytest.approx(1, rel=0.05)


def test_blur_is_a_gaussian_in_mm():
    """A point spreads as exp(-d^2 / 2 sigma^2): sigma is 1 mm, one voxel in plane and half of one across slices."""
    image = np.ones((1, 21, 21, 21), np.float32)
    image[0, 10, 10, 10] += 1000
    spread = blur(image, (2.0, 1.0, 1.0), 1.0, generator())[0] - 1
    peak = spread[10, 10, 10]
    assert spread[10, 10, 11:14] / peak == pytest.approx(np.exp([-0.5, -2, -4.5]), rel=1e-4)
    assert spread[11, 10, 10] / peak == pytest.approx(np.exp(-2), rel=1e-4)
    assert spread.sum() == pytest.approx(1000, rel=1e-4)
    flat = np.ones((1, 1, 21, 21), np.float32)
    flat[0, 0, 10, 10] += 1000
    spread = blur(flat, (0.001, 2.0, 2.0), 0.5, generator())[0, 0] - 1  # an axis of one voxel has no finest spacing
    assert spread[10, 11] / spread[10, 10] == pytest.approx(np.exp(-2), rel=1e-4)


def test_a_bias_field_is_a_smooth_factor_of_the_strength_that_was_asked_for():
    """Of intensities above the minimum; its logarithm is a polynomial of degree 3, whose fourth differences vanish."""
    image = np.full((1, 12, 14, 16), 60.0, np.float32)
    image[0, 0, 0, 0] = -40
    field = np.log((bias_field(image, ONE, 0.4, generator(3))[0].astype(float) + 40)[1:, 1:, 1:] / 100)
    assert np.abs(field).max() == pytest.approx(0.4, abs=0.08)  # the largest may be at the corner that was left out
    assert np.ptp(field) > 0.2
    for axis in range(3):
        assert np.abs(np.diff(field, 4, axis=axis)).max() < 1e-5
        assert np.abs(np.diff(field, 1, axis=axis)).max() > 1e-3
    whole = np.log((bias_field(image, ONE, 0.4, generator(3))[0].astype(float) + 40).ravel()[1:] / 100)
    assert np.abs(whole).max() <= 0.4 + 1e-5


def test_contrast_is_a_power_of_the_share_of_the_range():
    """20, 60 and 100: a half becomes a quarter, 40, or its root, 76.57; both ends stay."""
    image = np.array([20.0, 60.0, 100.0], np.float32).reshape(1, 1, 1, 3)
    made = [contrast(image, ONE, 2.0, generator(seed)).ravel().tolist() for seed in range(12)]
    assert min(made) == pytest.approx([20, 40, 100], abs=1e-3)
    assert max(made) == pytest.approx([20, 76.5685, 100], abs=1e-3)
    constant = np.full((1, 2, 2, 2), 7.0, np.float32)
    np.testing.assert_array_equal(contrast(constant, ONE, 2.0, generator()), constant)


def test_resolution_loses_what_coarser_voxels_cannot_hold_and_keeps_ramps():
    ramp = np.broadcast_to(np.arange(1, 61, dtype=np.float32), (1, 30, 40, 60)).copy()
    again = resolution(ramp, ONE, 2.0, generator())
    np.testing.assert_allclose(again[..., 12:-12], ramp[..., 12:-12], atol=1e-3)
    stripes = ramp * 0 + np.where(np.arange(60) % 2, 90, 110).astype(np.float32)
    np.testing.assert_allclose(resolution(stripes, ONE, 2.0, generator())[..., 12:-12], 100, atol=0.5)


def test_an_axis_that_is_coarse_already_keeps_its_slices():
    slices = np.where(np.arange(10) % 2, 90, 110).astype(np.float32)[None, :, None, None] * np.ones(
        (1, 1, 24, 24), "f4"
    )
    np.testing.assert_allclose(resolution(slices, (5.0, 1.0, 1.0), 3.0, generator()), slices, rtol=1e-5)
    assert np.ptp(resolution(slices, ONE, 3.0, generator())[:, 3:-3]) < 10
    one = body((1, 20, 20), 1)
    assert resolution(one, (0.001, 1.0, 1.0), 2.0, generator()).shape == one.shape
