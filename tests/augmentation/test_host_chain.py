"""The host chain: every probability and range of the table has the effect that its name says, and nothing else has.

What moves is tested in test_host_deform.
"""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoseg.augmentation.host_chain import build_chain
from autoseg.augmentation.presets import AUGMENTATIONS, Augmentation
from host_chain import run
from synthetic_patches import OFF, High, an_image, generator

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


@pytest.mark.thorough
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


# Ranges -------------------------------------------------------------------------------------------


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


def test_every_number_of_the_table_is_tested_here():
    ranges = """
        rotation_degrees_3d rotation_degrees_2d rotation_degrees_2d_oblong scaling_range elastic_magnitude noise_std
        blur_sigma brightness_range contrast_range low_resolution_zoom gamma_range colour_hue colour_saturation
    """  # what moves: test_host_deform.py
    elsewhere = """
        operation operation_per_label operation_radius removal removal_per_label removal_share
        cutmix cutmix_share mixup mixup_share paste paste_window
    """  # test_previous_stage.py; test_mixing.py
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
