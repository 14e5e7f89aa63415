"""The host chain: every probability and range of the table has the effect that its name says, and nothing else has."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from batchgenerators.augmentations import utils as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from autoseg.augmentation import AUGMENTATIONS, Augmentation
from autoseg.data import augment as module
from autoseg.data.augment import build_chain, elastic_field, fit, resample

OFF = AUGMENTATIONS["none"]


class High(np.random.Generator):
    """Draws the upper end of every range; whatever may happen happens."""

    def __init__(self):
        super().__init__(np.random.PCG64(5))

    def random(self, size=None):
        return 0.0 if size is None else np.zeros(size)

    def uniform(self, low, high):
        return high


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def an_image(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def run(table: Augmentation, image: np.ndarray, target=None, rng=None, **settings):
    """Image and target after the chain; patch size and image size are the same unless given."""
    target = np.ones(image.shape[1:], np.int8) if target is None else target
    chain = build_chain(table, **({"patch_size": image.shape[1:], "mirror_axes": ()} | settings))
    return chain(image, target, generator() if rng is None else rng)


def ramp(shape: tuple[int, ...], *slopes: float) -> np.ndarray:
    """(1, *shape): a linear function of the coordinates relative to the centre. Linear interpolation is exact on it."""
    centred = [slope * (np.arange(n) - (n - 1) / 2) for slope, n in zip(slopes, shape, strict=True)]
    return sum(np.meshgrid(*centred, indexing="ij"))[None].astype(np.float32)


# What nothing does --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 4, 5, 6), (1, 2, 9, 9)])
def test_without_any_probability_only_the_crop_is_left(shape):
    target = generator(1).integers(-1, 3, shape[1:]).astype(np.int8)
    image = an_image(*shape).astype(np.float16)
    chain = build_chain(OFF, patch_size=shape[1:], mirror_axes=range(len(shape) - 1))
    result, labels = chain(image, target, generator())
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, image)
    assert labels.dtype == np.int8
    np.testing.assert_array_equal(labels, np.where(target < 0, 0, target))
    wider = np.pad(image, [(0, 0), *[(3, 3)] * (len(shape) - 1)], constant_values=9)
    again, _ = chain(wider, np.pad(target, 3), generator())
    np.testing.assert_array_equal(again, result)


def test_the_input_is_left_alone():
    image, target = an_image(1, 8, 8), np.full((8, 8), -1, np.int8)
    before = image.copy(), target.copy()
    for table in (AUGMENTATIONS["default"], OFF):
        for seed in range(10):
            run(table, image, target, generator(seed), mirror_axes=(0, 1), masked_channels=(0,))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(target, before[1])


# Probabilities ------------------------------------------------------------------------------------

PROBABILITIES = {  # field -> what else must be on for it to show
    "rotation": {},
    "scaling": {},
    "elastic": {},
    "noise": {},
    "blur": {"blur_per_channel": 1.0},
    "blur_per_channel": {"blur": 1.0},
    "brightness": {},
    "contrast": {},
    "low_resolution": {"low_resolution_per_channel": 1.0, "low_resolution_zoom": (0.4, 0.6)},
    "low_resolution_per_channel": {"low_resolution": 1.0, "low_resolution_zoom": (0.4, 0.6)},
    "gamma": {},
    "gamma_inverted": {},
    "colour": {},
    "mirroring": {},
}


@pytest.mark.parametrize("field", PROBABILITIES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_probability_is_the_share_of_changed_samples(field, probability):
    table = replace(OFF, **PROBABILITIES[field], **{field: probability})
    image = np.stack([an_image(6, 8, seed=1)] * 3)
    image[1:] += an_image(2, 6, 8) * (0.0 if "per_channel" in field else 1.0)
    chain = build_chain(table, patch_size=(6, 8), mirror_axes=(1,), rgb=field == "colour")
    target = np.zeros((6, 8), np.int8)
    changed = []
    for seed in range(120):
        result = chain(image, target, generator(seed))[0]
        different = (result != image).any(axis=(1, 2))
        changed += different.tolist() if "per_channel" in field else [different.all()]
    assert np.mean(changed) == pytest.approx(probability, abs=0.12 if probability == 0.3 else 0)


# Ranges: rotation, scaling, elastic deformation ---------------------------------------------------


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


# Ranges: intensities ------------------------------------------------------------------------------


def test_noise():
    image = an_image(2, 40, 40, 40)
    result, _ = run(replace(OFF, noise=1.0, noise_std=(0.5, 0.5)), image)
    added = result - image
    assert added.std(axis=(1, 2, 3)) == pytest.approx([0.5, 0.5], rel=0.02)
    assert abs(added.mean()) < 0.01
    assert abs(np.corrcoef(added.reshape(2, -1))[0, 1]) < 0.02
    drawn = [
        (run(replace(OFF, noise=1.0, noise_std=(0.2, 0.4)), image[:1, 0], rng=generator(s))[0] - image[:1, 0]).std()
        for s in range(100)
    ]
    assert 0.19 < min(drawn) < 0.22
    assert 0.38 < max(drawn) < 0.42


def test_blur():
    image = an_image(2, 12, 12)
    result, _ = run(replace(OFF, blur=1.0, blur_per_channel=1.0, blur_sigma=(0.8, 0.8)), image)
    expected = np.stack([gaussian_filter(channel, 0.8) for channel in image])
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert np.abs(result - image).max() > 0.1


def test_blur_is_drawn_for_each_channel_and_axis():
    image = np.zeros((2, 25, 25), np.float32)
    image[:, 12, 12] = 1.0
    result, _ = run(replace(OFF, blur=1.0, blur_per_channel=1.0, blur_sigma=(0.5, 2.0)), image)
    squares = (np.arange(25) - 12.0) ** 2
    sigmas = [np.sqrt((channel.sum(axis=1 - axis) * squares).sum()) for channel in result for axis in (0, 1)]
    assert np.diff(sorted(sigmas)).min() > 0.02  # four different ones
    assert min(sigmas) > 0.45
    assert max(sigmas) < 2.0


def test_brightness():
    image = an_image(2, 5, 5)
    for factor in (2.0, 0.5):
        result, _ = run(replace(OFF, brightness=1.0, brightness_range=(factor, factor)), image)
        np.testing.assert_array_equal(result, factor * image)
    drawn = []
    for seed in range(200):
        result, _ = run(replace(OFF, brightness=1.0, brightness_range=(0.5, 3.0)), image, rng=generator(seed))
        drawn.append(result[:, 0, 0] / image[:, 0, 0])
    drawn = np.array(drawn)
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.08)  # a single uniform range would give 0.2
    assert 0.5 <= drawn.min() < 0.52
    assert 2.9 < drawn.max() <= 3.0
    assert (drawn[:, 0] != drawn[:, 1]).all()


def test_contrast():
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2)  # mean 1.5, so doubled: -1.5, 0.5, 2.5, 4.5
    result, _ = run(replace(OFF, contrast=1.0, contrast_range=(2.0, 2.0)), image)
    np.testing.assert_allclose(result.ravel(), [0.0, 0.5, 2.5, 3.0])


def test_low_resolution():
    table = replace(OFF, low_resolution=1.0, low_resolution_per_channel=1.0, low_resolution_zoom=(1 / 3, 1 / 3))
    row = np.array([0, 10, 20, 30, 100], np.float32)
    # five voxels become two, at 0.75 and 3.25: the nearest are 10 and 30; then back, at 0, 0.1, 0.5, 0.9 and 1
    expected = np.array([10, 12, 20, 28, 30], np.float32)
    half = replace(table, low_resolution_zoom=(0.5, 0.5))
    result, _ = run(half, np.broadcast_to(row, (1, 5, 5)).copy())
    np.testing.assert_allclose(result, np.broadcast_to(expected, (1, 5, 5)), atol=1e-4)
    # thick slices keep their own
    along = np.broadcast_to(np.array([0, 10, 20, 30, 40, 50], np.float32)[:, None, None], (1, 6, 20, 20)).copy()
    np.testing.assert_allclose(run(table, along)[0], along, atol=1e-4)
    assert np.abs(run(table, along, anisotropic=False)[0] - along).max() > 5
    tiny = an_image(1, 2, 2, 2)  # an axis that would vanish stays as it is
    np.testing.assert_allclose(run(table, tiny)[0], tiny, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma(inverted):
    image = np.stack([np.linspace(0, 1, 16).reshape(4, 4), np.linspace(-3, 5, 16).reshape(4, 4)]).astype(np.float32)
    table = replace(OFF, **{"gamma_inverted" if inverted else "gamma": 1.0}, gamma_range=(2.0, 2.0))
    result, _ = run(table, image)
    for channel, before in zip(result, image.astype(np.float64), strict=True):
        share = (before - before.min()) / np.ptp(before)
        bent = -((1 - share) ** 2) if inverted else share**2
        expected = (bent - bent.mean()) / bent.std() * before.std() + before.mean()
        np.testing.assert_allclose(channel, expected, atol=1e-5)


def test_colour():
    image = np.zeros((3, 2, 2), np.float32)
    image[0] = 1.0  # red
    third = replace(OFF, colour=1.0, colour_hue=1 / 3, colour_saturation=(1.0, 1.0))
    result, _ = run(third, image, rng=High(), rgb=True)
    np.testing.assert_allclose(result[:, 0, 0], [0, 1, 0], atol=1e-6)  # green
    grey, _ = run(replace(third, colour_saturation=(0.0, 0.0)), an_image(3, 4, 4), rng=High(), rgb=True)
    np.testing.assert_allclose(grey, np.broadcast_to(an_image(3, 4, 4).mean(axis=0), (3, 4, 4)), atol=1e-6)
    doubled, _ = run(replace(third, colour_hue=0.0, colour_saturation=(2.0, 2.0)), image, rng=High(), rgb=True)
    np.testing.assert_allclose(doubled[:, 0, 0], [1 / 3 + 4 / 3, 1 / 3 - 2 / 3, 1 / 3 - 2 / 3], atol=1e-6)
    np.testing.assert_array_equal(run(third, image, rng=High(), rgb=False)[0], image)


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


def test_every_number_of_the_table_is_tested_here():
    ranges = """
        rotation_degrees_3d rotation_degrees_2d rotation_degrees_2d_oblong scaling_range elastic_magnitude noise_std
        blur_sigma brightness_range contrast_range low_resolution_zoom gamma_range colour_hue colour_saturation
    """
    elsewhere = """
        operation operation_per_label operation_radius removal removal_per_label removal_share
        cutmix cutmix_share mixup mixup_share paste paste_window
    """  # test_previous_stage.py; test_device_augment.py
    tested = {*PROBABILITIES, *ranges.split(), *elsewhere.split()}
    assert {field.name for field in fields(Augmentation)} == tested


# What holds for the chain as a whole --------------------------------------------------------------


def test_steps_come_in_the_order_of_the_table():
    """Each step doubles as a witness: the image it is given holds what the earlier ones left."""
    table = Augmentation(**dict.fromkeys(PROBABILITIES, 1.0))
    chain = build_chain(table, patch_size=(6, 6), mirror_axes=(), rgb=True)
    kinds = [type(getattr(step, "transform", step)).__name__ for _, step in chain.steps]
    assert kinds == [
        "GaussianNoiseTransform", "GaussianBlurTransform", "Brightness", "ContrastAugmentationTransform",
        "SimulateLowResolutionTransform", "GammaTransform", "GammaTransform", "ColourJitter",
    ]  # fmt: skip
    assert [step.transform.invert_image for _, step in chain.steps[5:7]] == [True, False]


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 10, 12, 14), (2, 2, 16, 16)])
@pytest.mark.parametrize("strength", AUGMENTATIONS)
def test_several_label_maps_are_moved_alike(shape, strength):
    """The first is treated as it is alone; a second one that equals it stays equal."""
    target = generator(1).integers(-1, 4, shape[1:]).astype(np.int8)
    settings = {"mirror_axes": range(len(shape) - 1), "masked_channels": (1,)}
    for seed in range(12):
        image, labels = run(AUGMENTATIONS[strength], an_image(*shape), target, generator(seed), **settings)
        twice = np.stack([target, target])
        same, both = run(AUGMENTATIONS[strength], an_image(*shape), twice, generator(seed), **settings)
        np.testing.assert_array_equal(same, image)
        np.testing.assert_array_equal(both, np.stack([labels, labels]))
        other = np.stack([target, np.zeros_like(target)])  # masked by the target, not by what comes with it
        np.testing.assert_array_equal(
            run(AUGMENTATIONS[strength], an_image(*shape), other, generator(seed), **settings)[0], image
        )


def test_masked_channels_are_zero_outside_the_body_again():
    target = np.ones((10, 10), np.int8)
    target[:4] = -1
    table = replace(OFF, noise=1.0, noise_std=(1.0, 1.0), mirroring=1.0)
    result, labels = run(table, np.full((3, 10, 10), 5, np.float32), target, mirror_axes=(0,), masked_channels=(0, 2))
    assert not result[[0, 2], 6:].any()
    assert (np.abs(result[1, 6:]) > 0.01).mean() > 0.9
    assert (np.abs(result[[0, 2], :6]) > 0.01).mean() > 0.9
    assert labels[6:].max() == 0
    assert labels[:6].min() == 1


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 10, 12, 14), (2, 2, 16, 16)])
@pytest.mark.parametrize("strength", AUGMENTATIONS)
def test_the_generator_decides_everything(shape, strength):
    settings = {"mirror_axes": range(len(shape) - 1), "rgb": len(shape) == 3}
    target = generator(1).integers(-1, 4, shape[1:]).astype(np.int8)
    results = []
    for attempt in range(2):
        np.random.seed(attempt)  # noqa: NPY002
        random.seed(attempt)
        state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        results.append(
            [run(AUGMENTATIONS[strength], an_image(*shape), target, generator(s), **settings) for s in range(12)]
        )
        np.testing.assert_array_equal(np.random.get_state()[1], state[0])  # noqa: NPY002
        assert random.getstate() == state[1]
    for (image, labels), (image_again, labels_again) in zip(*results, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(labels, labels_again)
        assert image.shape == shape
        assert np.isfinite(image).all()
        assert image.flags.c_contiguous
        assert labels.flags.c_contiguous
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
    if strength != "none":
        assert any((a[0] != b[0]).any() for a, b in zip(results[0][:6], results[0][6:], strict=True))


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
