"""The device chain means what the host chain means: the same voxels by equal parameters, the same distribution."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from autoseg.augmentation import chain, deform
from autoseg.augmentation import host_chain as host
from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.host_chain import build_chain
from autoseg.augmentation.presets import Augmentation
from autoseg.imaging.labels import OUTSIDE
from device_chain import apply, run
from synthetic_patches import EVERYTHING, OFF, High, an_image, blobs, generator

# The same parameters, the same voxels -------------------------------------------------------------

FIXED = {  # what leaves nothing to chance, with a generator that draws the upper end
    "rotation": {"rotation": 1.0},
    "scaling up": {"scaling": 1.0},
    "scaling down": {"scaling": 1.0, "scaling_range": (0.6, 0.6)},
    "elastic": {"elastic": 1.0},
    "all that moves": {"rotation": 1.0, "scaling": 1.0, "elastic": 1.0},
    "blur": {"blur": 1.0, "blur_per_channel": 1.0, "blur_sigma": (0.9, 0.9)},
    "wide blur": {"blur": 1.0, "blur_per_channel": 1.0, "blur_sigma": (2.4, 2.4)},
    "darker": {"brightness": 1.0, "brightness_range": (0.7, 0.7)},
    "brighter": {"brightness": 1.0, "brightness_range": (1.3, 1.3)},
    "contrast": {"contrast": 1.0, "contrast_range": (1.25, 1.25)},
    "coarse": {"low_resolution": 1.0, "low_resolution_per_channel": 1.0, "low_resolution_zoom": (0.45, 0.45)},
    "less coarse": {"low_resolution": 1.0, "low_resolution_per_channel": 1.0, "low_resolution_zoom": (0.8, 0.8)},
    "gamma": {"gamma": 1.0, "gamma_range": (1.4, 1.4)},
    "gamma_inverted": {"gamma_inverted": 1.0, "gamma_range": (1.4, 1.4)},
    "colour": {"colour": 1.0},
}


@pytest.mark.thorough
@pytest.mark.parametrize("setting", FIXED)
def test_fixed_parameters_give_the_voxels_of_the_host_chain(setting, pieces, subtests):
    for shape in ((17, 20), (16, 30), (9, 13, 11), (3, 14, 12), (1, 8, 8), (2, 9, 10)):
        with subtests.test(shape=shape):
            compare_voxels(shape, setting)


def compare_voxels(shape: tuple[int, ...], setting: str) -> None:
    image, target = an_image(3, *(n + 12 for n in shape)) * 3 + 2, blobs(*(n + 12 for n in shape))
    if setting in FIXED and "blur" not in setting and "coarse" not in setting:
        image = gaussian_filter(image, (0, *[1.0] * len(shape)))
    settings = {"patch_size": shape, "mirror_axes": (), "rgb": True, "masked_channels": (1,)}
    table = replace(OFF, **FIXED[setting])
    expected, expected_labels = build_chain(table, **settings)(image, target, High())
    result, labels = run(table, image, target, High(), **settings)
    np.testing.assert_allclose(result, expected, atol=2e-4)
    assert (labels != expected_labels).mean() <= (
        0.002 if np.prod(shape) > 500 else 0
    )  # a tie may be broken either way
    inside = tuple(slice(6, -6) for _ in shape)
    assert setting == "colour" or np.abs(result[0] - image[0][inside]).max() > 0.01  # something was done
    chain = DeviceChain(table, channels=3, **settings)
    assert chain.draw(High()).margin == build_chain(table, **settings).draw(High()).margin


def test_what_the_two_chains_share_is_the_same():
    assert (chain.ANISOTROPIC, chain.OBLONG) == (host.ANISOTROPIC, host.OBLONG)
    assert (deform.ELASTIC_INTERVALS, deform.OUTSIDE) == (host.ELASTIC_INTERVALS, OUTSIDE)


# The same distribution ----------------------------------------------------------------------------

ALONE = [
    "rotation", "scaling", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted",
    "gamma", "mirroring",
]  # fmt: skip
SAMPLES = 500
CHANCE = (
    1e-5  # that one comparison of samples from one distribution fails; there are about 600, and the seeds are fixed
)


def measured(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What is compared of a sample: moments, quantiles, roughness, single voxels, label volumes."""
    corner, middle = (0,) * target.ndim, tuple(n // 3 for n in target.shape)
    flat = np.sort(image.reshape(len(image), -1), axis=1)
    last = flat.shape[1] - 1
    values = [flat.mean(axis=1), flat.std(axis=1), *(flat[:, round(q * last)] for q in (0.0, 0.1, 0.5, 0.9, 1.0))]
    values += [
        np.abs(np.diff(image, axis=axis)).mean(axis=tuple(range(1, image.ndim))) for axis in range(1, image.ndim)
    ]
    values += [image[:, *corner], image[:, *middle], np.bincount(target.ravel(), minlength=4) / target.size]
    return np.concatenate(values).astype(np.float64)


def compare(table: Augmentation, shape: tuple[int, ...]) -> None:
    """Draw from both chains, and ask of each figure whether its two sets could be of one distribution."""
    size = [n + 2 * ((n + 7) // 2) for n in shape]
    image = gaussian_filter(an_image(2, *size), (0, *[0.8] * len(shape))) * 3
    target = blobs(*size)
    settings = {"patch_size": shape, "mirror_axes": range(len(shape)), "masked_channels": (1,)}
    ours, theirs = DeviceChain(table, channels=2, **settings), build_chain(table, **settings)
    results: list[list[np.ndarray]] = [[], []]
    for seed in range(SAMPLES):
        draw = ours.draw(generator(seed))
        results[0].append(measured(*apply(ours, image, target, draw)))
        results[1].append(measured(*theirs(image, target, generator(seed + SAMPLES))))
    first, second = (np.stack(rows) for rows in results)
    for a, b in zip(first.T, second.T, strict=True):
        spread = np.hypot(a.std(), b.std()) / np.sqrt(SAMPLES)
        assert abs(a.mean() - b.mean()) <= 4.5 * spread + 1e-5  # 4.5 standard errors: a chance of 7e-6
        if np.ptp(a) > 1e-4 or np.ptp(b) > 1e-4:  # otherwise nothing but rounding is left to compare
            step = 1e-4  # voxels that nothing touched differ in the last digits
            assert ks_2samp(np.round(a / step), np.round(b / step), method="asymp").pvalue > CHANCE


@pytest.mark.thorough
@pytest.mark.parametrize("field", ALONE)
def test_each_transform_has_the_distribution_of_the_host_chain(field):
    compare(replace(OFF, **{field: 1.0 if field != "mirroring" else 0.5}), (5, 7, 6))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(12, 15), (5, 7, 6), (2, 8, 9)])
def test_all_together_have_the_distribution_of_the_host_chain(shape):
    compare(EVERYTHING, shape)
