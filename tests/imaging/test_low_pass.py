"""Filters before an axis shrinks: constants, ramps, a zone plate's aliases; Pillow and scipy's filters as oracles.

Aliased energy: a zone plate's waves grow finer outwards, along each axis as far as one is from its centre. Where they
are above the new Nyquist limit along an axis, a smaller grid cannot show them, and all energy that it has there is
aliases. Its share of the energy there was is the mean squared gain of the filter, in closed form.
"""

import math

import numpy as np
import pytest
from PIL import Image
from scipy import signal

from autoseg.imaging.low_pass import FILTERS, LOBES, OVERSHOOTS, LowPass, hamming, windowed_sinc
from autoseg.imaging.resample import _interpolate, resample_image

FACTOR = 4
LINES = 512  # of the zone plate


def shrunk(array, shape, filter, *, order=3, above=1.5):
    """A (Z, Y, X) array as a plan resamples it."""
    return resample_image(
        np.asarray(array, np.float32)[None], (1, 1, 1), (1, 1, 1), shape, order=order, coarse_axis_order=0,
        anisotropy_threshold=3.0, low_pass=LowPass(filter, above),
    )[0]  # fmt: skip


def matrix(filter, n_in, n_out):
    """The matrix of one axis; a cubic spline interpolates where the filter does not."""
    return LowPass(filter, 1.0).weights(n_in, n_out, lambda values, n: _interpolate(values, n, order=3))


# ---- what each filter keeps


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("n_out", [3, 16, 17, 25, 39])
def test_rows_sum_to_one_also_at_the_edges(filter, n_out):
    np.testing.assert_allclose(matrix(filter, 40, n_out).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(shrunk(np.full((5, 40, 7), 3.25), (2, n_out, 7), filter, above=1.0), 3.25, rtol=1e-6)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("n_out", [40, 24, 60, 53, 71])
def test_a_ramp_stays_a_ramp_inside(filter, n_out):
    """Voxel i holds i: each new voxel holds the place of its centre, to 1e-6 at whole factors and to 0.01 elsewhere."""
    factor = 120 / n_out
    centres = (np.arange(n_out) + 0.5) * factor - 0.5
    inside = (centres > 16 + LOBES * factor) & (centres < 103 - LOBES * factor)
    assert inside.sum() > 5
    found = matrix(filter, 120, n_out)[inside] @ np.arange(120)
    np.testing.assert_allclose(found, centres[inside], atol=1e-6 if factor == int(factor) else 0.01)


@pytest.mark.parametrize("filter", FILTERS)
def test_only_axes_that_shrink_by_enough_are_filtered(filter):
    """Halving y is filtered; growing x, and shrinking z by a third, are not."""
    array = np.random.default_rng(0).uniform(0, 1, (9, 32, 8))
    found = shrunk(array, (6, 16, 16), filter, order=1)
    plain = shrunk(shrunk(array, (9, 16, 8), filter, order=1), (6, 16, 16), "none", order=1)
    np.testing.assert_allclose(found, plain, atol=0.05 if filter in OVERSHOOTS else 1e-6)  # clipped last or before
    np.testing.assert_array_equal(shrunk(array, (6, 32, 16), filter), shrunk(array, (6, 32, 16), "none"))


def test_the_sincs_interpolate_themselves_and_nearest_is_never_filtered():
    array = np.random.default_rng(0).uniform(0, 1, (4, 30, 30))
    for filter in OVERSHOOTS:
        np.testing.assert_array_equal(shrunk(array, (4, 10, 10), filter, order=1), shrunk(array, (4, 10, 10), filter))
        np.testing.assert_array_equal(shrunk(array, (4, 10, 10), filter, order=0), array[:, 1::3, 1::3].astype("f4"))
    assert not np.allclose(shrunk(array, (4, 12, 12), "none", order=1), shrunk(array, (4, 12, 12), "none"), atol=0.01)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("filter", OVERSHOOTS)
def test_no_overshoot_invents_intensities(filter, order):
    step = np.zeros((1, 1, 60))
    step[..., 30:] = 1
    assert (matrix(filter, 60, 20) @ step[0, 0]).max() > 1.01
    found = shrunk(step, (1, 1, 20), filter, order=order)
    assert (found.min(), found.max()) == (0, 1)


# ---- oracles


@pytest.mark.parametrize("size", [(64, 48), (51, 37), (25, 60)])
@pytest.mark.parametrize("pillow", ["LANCZOS", "HAMMING"])
def test_equals_pillow(pillow, size):
    """To 1e-5 of the range, with the edge continued by hand: Pillow drops what is beyond the image.

    Its HAMMING is a sinc of one lobe, ours has three: the same function makes both.
    """
    window, lobes = {"LANCZOS": (np.sinc, 3), "HAMMING": (hamming, 1)}[pillow]
    array = np.random.default_rng(0).uniform(0, 1, (96, 128)).astype(np.float32)
    pad = 24
    padded = Image.fromarray(np.pad(array, pad, mode="edge"))
    box = (pad, pad, pad + 128, pad + 96)
    width, height = size
    expected = np.asarray(padded.resize((width, height), getattr(Image.Resampling, pillow), box=box))
    rows, columns = windowed_sinc(96, height, window, lobes), windowed_sinc(128, width, window, lobes)
    np.testing.assert_allclose(rows @ array @ columns.T, expected, atol=1e-5)
    if pillow == "LANCZOS":
        found = shrunk(array[None], (1, height, width), "lanczos", above=1.0)[0]
        np.testing.assert_allclose(found, expected.clip(array.min(), array.max()), atol=1e-5)


@pytest.mark.parametrize("factor", [3, 5])
def test_equals_a_low_pass_designed_by_scipy(factor):
    """At odd factors a new centre is a voxel's: weights are those of a filter cut off at the new Nyquist limit."""
    taps = signal.firwin(2 * LOBES * factor + 1, 1 / factor, window="hamming")
    found = matrix("hamming_sinc", 30 * factor, 30)[15]
    centre = 15 * factor + factor // 2
    np.testing.assert_allclose(found[centre - LOBES * factor + 1 : centre + LOBES * factor], taps[1:-1], atol=1e-4)


# ---- aliases


def zone_plate():
    """Lines of a plate cos(pi r^2 / (2 N)): at a distance of r voxels from its centre, r / (2 N) cycles per voxel.

    N voxels from the centre there is half a cycle per voxel, the most a grid can show; along y and x, voxels that far
    from the centre along that axis count. (LINES, LINES), a quarter of the plate.
    """
    place = np.arange(LINES) + 0.5
    return np.cos(np.pi * (place[:, None] ** 2 + place[None] ** 2) / (2 * LINES))


def gain(filter, frequency):
    """Response of a whole-factor matrix to waves of `frequency` cycles per voxel, around the centre of a new voxel."""
    n_out = 41
    row = matrix(filter, n_out * FACTOR, n_out)[n_out // 2]
    place = np.arange(len(row)) - ((n_out // 2 + 0.5) * FACTOR - 0.5)
    return np.cos(2 * np.pi * np.multiply.outer(frequency, place)) @ row


def too_fine(place):
    """Whether waves are above the new limit along y or x, as far from the edge as filters reach; of (n,) voxels."""
    farther = np.maximum(place[:, None], place[None])
    return (farther > LINES / FACTOR) & (farther < LINES - 2 * LOBES * FACTOR)


def aliased_share(filter):
    """Energy of a shrunk plate where the waves of the plate are too fine, over the energy they had: measured."""
    plate, place = zone_plate(), np.arange(LINES) + 0.5
    weights = matrix(filter, LINES, LINES // FACTOR)
    found, centres = weights @ plate @ weights.T, (np.arange(LINES // FACTOR) + 0.5) * FACTOR
    return np.mean(found[too_fine(centres)] ** 2) / np.mean(plate[too_fine(place)] ** 2)


def expected_share(filter):
    """The same in closed form: the mean of the squared gain, which is that along y times that along x."""
    centres = (np.arange(LINES // FACTOR) + 0.5) * FACTOR
    along = gain(filter, centres / (2 * LINES))
    return np.mean(np.multiply.outer(along, along)[too_fine(centres)] ** 2)


ALIASED = {"none": 0.601, "gaussian": 0.00753, "hamming_sinc": 0.00352, "lanczos": 0.00332}  # most first


@pytest.mark.parametrize("filter", FILTERS)
def test_aliased_energy_of_a_zone_plate(filter):
    share = aliased_share(filter)
    assert share == pytest.approx(expected_share(filter), rel=0.01)
    assert share == pytest.approx(ALIASED[filter], rel=0.005)


def test_the_sincs_keep_what_the_new_grid_can_show():
    """At 0.8 of the new limit both sincs keep more than the Gaussian, which has a closed form; at it, all keep half."""
    sigma, limit = (FACTOR - 1) / 2, 1 / (2 * FACTOR)
    for share in (0.8, 1.0):
        expected = math.exp(-2 * (math.pi * sigma * share * limit) ** 2)
        assert gain("gaussian", share * limit) == pytest.approx(expected, abs=1e-3)
        assert expected == pytest.approx({0.8: 0.6414, 1.0: 0.4996}[share], abs=1e-4)
    for filter in OVERSHOOTS:
        assert gain(filter, 0.8 * limit) > 0.79
        assert gain(filter, limit) == pytest.approx(0.5, abs=0.003)
