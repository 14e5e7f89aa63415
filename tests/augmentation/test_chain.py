"""The device chain: what is drawn, intensities by hand, and that a sample follows from its generator alone.

What moves is tested in test_deform, mixing in test_mixing, and that the host chain means the same in test_chains_agree.
"""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import kstest

from autoseg.augmentation import deform
from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.intensities import STEPS, Step, blur_matrix, coarse_matrix, two_sided
from autoseg.augmentation.presets import Augmentation
from device_chain import CPU, apply, run
from synthetic_patches import EVERYTHING, OFF, High, an_image, blobs, generator

# What nothing does --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 4, 5, 6), (1, 2, 9, 9)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_without_any_probability_only_the_crop_is_left(shape, dtype):
    target = generator(1).integers(-1, 3, shape[1:]).astype(np.int8)
    image = an_image(*shape).astype(dtype)
    chain = DeviceChain(OFF, channels=shape[0], patch_size=shape[1:], mirror_axes=range(len(shape) - 1))
    draw = chain.draw(generator())
    assert draw.margin == (0,) * (len(shape) - 1)
    before = image.copy(), target.copy()
    for margin in (0, 3):
        wider = np.pad(image, [(0, 0), *[(margin, margin)] * (len(shape) - 1)], constant_values=9)
        result, labels = apply(chain, wider, np.pad(target, margin), draw)
        assert result.dtype == np.float32
        assert labels.dtype == np.int8
        np.testing.assert_array_equal(result, before[0])
        np.testing.assert_array_equal(labels, np.maximum(before[1], 0))


def test_the_input_is_left_alone():
    image, target = an_image(1, 8, 8), np.full((8, 8), -1, np.int8)
    before = image.copy(), target.copy()
    for table in (replace(EVERYTHING, cutmix=1.0, mixup=1.0, paste=1.0), OFF):
        for seed in range(10):
            run(table, image, target, generator(seed), mirror_axes=(0, 1), masked_channels=(0,))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(target, before[1])


# What is drawn ------------------------------------------------------------------------------------

SIGNS = {  # field -> whether a draw shows it
    "rotation": lambda draw: draw.deformation is not None and abs(draw.deformation.matrix[0, 1]) > 0,
    "scaling": lambda draw: draw.deformation is not None and draw.deformation.matrix[0, 0] != 1,
    "elastic": lambda draw: draw.deformation is not None and draw.deformation.control is not None,
    "noise": lambda draw: draw.steps["noise"] > 0,
    "blur": lambda draw: draw.steps["blur"].any(),
    "brightness": lambda draw: (draw.steps["brightness"] != 1).all(),
    "contrast": lambda draw: (draw.steps["contrast"] != 1).all(),
    "low_resolution": lambda draw: (draw.steps["low_resolution"] != (20, 24)).any(),
    "gamma_inverted": lambda draw: (draw.steps["gamma_inverted"] != 1).all(),
    "gamma": lambda draw: (draw.steps["gamma"] != 1).all(),
    "colour": lambda draw: draw.steps["colour"] is not None,
    "mirroring": lambda draw: bool(draw.flips),
}


@pytest.mark.parametrize("field", SIGNS)
def test_a_probability_is_the_share_of_samples(field):
    certain = {"blur_per_channel": 1.0, "low_resolution_per_channel": 1.0, "low_resolution_zoom": (0.5, 0.9)}
    settings = {"channels": 3, "patch_size": (20, 24), "mirror_axes": (1,), "rgb": True}
    table = replace(OFF, **certain, **{field: 0.3})
    draws = [DeviceChain(table, **settings).draw(generator(seed)) for seed in range(300)]
    assert np.mean([SIGNS[field](draw) for draw in draws]) == pytest.approx(0.3, abs=0.1)  # 3.8 standard deviations
    assert not any(sign(draw) for draw in draws for other, sign in SIGNS.items() if other not in (field, "scaling"))


def test_drawn_numbers_fill_their_ranges():
    table = Augmentation(**dict.fromkeys(SIGNS, 1.0), rotation_degrees_2d=40.0, blur_per_channel=1.0)
    chain = DeviceChain(table, channels=3, patch_size=(20, 24), mirror_axes=(), rgb=True)
    draws = [chain.draw(generator(seed)) for seed in range(400)]
    matrices = np.stack([draw.deformation.matrix for draw in draws])
    factors = np.sqrt(np.linalg.det(matrices))
    uniform = {
        "noise": ([draw.steps["noise"] for draw in draws], table.noise_std),
        "blur": ([draw.steps["blur"][1, 0] for draw in draws], table.blur_sigma),
        "scaling": (factors, table.scaling_range),
        "angle": (np.rad2deg(np.arcsin(matrices[:, 0, 1] / factors)), (-40.0, 40.0)),
        # the grey axis keeps its length, the plane across it is stretched twice
        "saturation": ([np.sqrt(np.linalg.det(draw.steps["colour"])) for draw in draws], table.colour_saturation),
    }
    for values, (low, high) in uniform.values():
        assert kstest((np.array(values) - low) / (high - low), "uniform").pvalue > 1e-3
    for field, limits in (("brightness", table.brightness_range), ("contrast", table.contrast_range),
                          ("gamma", table.gamma_range), ("gamma_inverted", table.gamma_range)):  # fmt: skip
        values = np.concatenate([draw.steps[field] for draw in draws])
        for side, (low, high) in ((values < 1, (limits[0], 1)), (values > 1, (1, limits[1]))):
            assert side.mean() == pytest.approx(0.5, abs=0.06)
            assert kstest((values[side] - low) / (high - low), "uniform").pvalue > 1e-3


def test_mirror_axes_are_drawn_one_by_one():
    chain = DeviceChain(replace(OFF, mirroring=0.5), channels=1, patch_size=(4, 5, 6), mirror_axes=(0, 2))
    drawn = [chain.draw(generator(seed)).flips for seed in range(200)]
    assert {(), (0,), (2,), (0, 2)} == set(drawn)
    assert min(map(drawn.count, set(drawn))) > 30  # 50 each; 30 is 3.3 standard deviations below


def test_blur_and_resolution_are_drawn_for_each_channel():
    table = replace(OFF, blur=1.0, blur_per_channel=0.5, low_resolution=1.0, low_resolution_per_channel=0.25)
    chain = DeviceChain(table, channels=4, patch_size=(50, 60), mirror_axes=())
    draws = [chain.draw(generator(seed)) for seed in range(200)]
    for field, unchanged in (("blur", 0), ("low_resolution", (50, 60))):
        some = np.array([(draw.steps[field] != unchanged).any(axis=1) for draw in draws])
        assert 0.5 < (some.any(axis=1) & ~some.all(axis=1)).mean() < 1  # not all channels or none: 0.88 and 0.68
    sigma = np.concatenate([draw.steps["blur"] for draw in draws])
    assert (sigma[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.07)
    assert ((sigma[:, 0] > 0) == (sigma[:, 1] > 0)).all()
    assert 0.5 <= sigma[sigma > 0].min() < 0.51
    assert 0.99 < sigma.max() <= 1.0
    assert (sigma[:, 0] != sigma[:, 1])[sigma[:, 0] > 0].all()
    lengths = np.concatenate([draw.steps["low_resolution"] for draw in draws])
    assert (lengths[:, 1] < 60).mean() == pytest.approx(0.25, abs=0.06)
    assert lengths.min(axis=0) == pytest.approx([25, 30], abs=1)
    zoom = lengths / (50, 60)
    assert np.abs(zoom[:, 0] - zoom[:, 1]).max() < 0.02  # one factor for all axes


def test_two_sided_factors():
    drawn = two_sided(generator(), (0.5, 3.0), 4000)
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03)  # a single uniform range would give 0.2
    assert 0.5 <= drawn.min() < 0.51
    assert 2.98 < drawn.max() <= 3.0
    assert two_sided(generator(), (1.5, 2.0), 100).min() >= 1.5
    assert two_sided(generator(), (0.5, 0.8), 100).max() <= 0.8


# By hand: intensities -----------------------------------------------------------------------------


def test_noise_has_its_spread_in_every_channel():
    image = an_image(2, 40, 40, 40)
    added = run(replace(OFF, noise=1.0, noise_std=(0.5, 0.5)), image)[0] - image
    assert added.std(axis=(1, 2, 3)) == pytest.approx([0.5, 0.5], rel=0.02)
    assert abs(added.mean()) < 0.01
    assert abs(np.corrcoef(added.reshape(2, -1))[0, 1]) < 0.02


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40])
def test_blur_matrices_are_the_gaussian_filter_of_scipy(length):
    sigma = torch.tensor([0.5, 0.73, 1.0, 2.2])
    for matrix, s in zip(blur_matrix(length, sigma, reach=9), sigma, strict=True):
        expected = gaussian_filter1d(np.eye(length), float(s), axis=0, mode="reflect")
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)


def test_a_coarse_line():
    # five voxels become two, at 0.75 and 3.25: the nearest are 10 and 30; then back, at 0, 0.1, 0.5, 0.9 and 1
    row = torch.tensor([0.0, 10, 20, 30, 100])
    matrix = coarse_matrix(5, torch.tensor([2.0, 5.0, 1.0]))
    np.testing.assert_allclose(matrix[0] @ row, [10, 12, 20, 28, 30], atol=1e-5)
    np.testing.assert_array_equal(matrix[1] @ row, row)
    np.testing.assert_array_equal(matrix[2] @ row, [20] * 5)


def test_contrast_by_hand():
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2)  # mean 1.5, so doubled: -1.5, 0.5, 2.5, 4.5
    result, _ = run(replace(OFF, contrast=1.0, contrast_range=(2.0, 2.0)), image)
    np.testing.assert_allclose(result.ravel(), [0.0, 0.5, 2.5, 3.0])


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_by_hand(inverted, pieces):
    image = np.stack([np.linspace(0, 1, 16).reshape(4, 4), np.linspace(-3, 5, 16).reshape(4, 4)]).astype(np.float32)
    table = replace(OFF, **{"gamma_inverted" if inverted else "gamma": 1.0}, gamma_range=(2.0, 2.0))
    result, _ = run(table, image)
    for channel, before in zip(result, image.astype(np.float64), strict=True):
        share = (before - before.min()) / np.ptp(before)
        bent = -((1 - share) ** 2) if inverted else share**2
        expected = (bent - bent.mean()) / bent.std() * before.std() + before.mean()
        np.testing.assert_allclose(channel, expected, atol=1e-5)


def test_a_constant_image_stays_finite_and_constant(pieces):
    table = replace(
        EVERYTHING, noise=0.0, brightness=0.0, **dict.fromkeys(("gamma", "gamma_inverted", "contrast"), 1.0)
    )
    for seed in range(5):
        result, _ = run(table, np.full((3, 8, 9), 4, np.float32), rng=generator(seed), border=4.0)
        np.testing.assert_allclose(result, 4.0, atol=1e-4)


def test_colour_turns_red_into_green():
    image = np.zeros((3, 2, 2), np.float32)
    image[0] = 1.0
    third = replace(OFF, colour=1.0, colour_hue=1 / 3, colour_saturation=(1.0, 1.0))
    np.testing.assert_allclose(run(third, image, rng=High(), rgb=True)[0][:, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(run(third, image, rng=High(), rgb=False)[0], image)


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


# What a batch does not change ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 18), (7, 9, 8), (2, 9, 9)])
def test_a_sample_follows_from_its_generator_alone(shape, pieces):
    chain = DeviceChain(EVERYTHING, channels=3, patch_size=shape, mirror_axes=range(len(shape)), rgb=True)
    samples = []
    for seed in range(6):
        draw = chain.draw(generator(seed))
        size = [n + 2 * m for n, m in zip(shape, draw.margin, strict=True)]
        samples.append((torch.from_numpy(an_image(3, *size, seed=seed)), torch.from_numpy(blobs(*size)), draw))
    alone = [chain(*zip(sample, strict=True), CPU) for sample in samples]
    assert len({sample[0].shape for sample in samples}) > 1  # each with its own margin
    torch.manual_seed(99)  # and the global generator has no part in it
    state = torch.get_rng_state()
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 4]):
        images, targets = chain(*zip(*(samples[i] for i in order), strict=True), CPU)
        for i, image, target in zip(order, images, targets, strict=True):
            np.testing.assert_allclose(image, alone[i][0][0], atol=1e-5)
            np.testing.assert_array_equal(target, alone[i][1][0])
    again = chain.draw(generator(3))
    image, _ = chain([samples[3][0]], [samples[3][1]], [again], CPU)
    np.testing.assert_array_equal(image, alone[3][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(20, 20), (10, 12, 14), (2, 16, 16)])
def test_several_label_maps_are_moved_alike(shape, pieces):
    target = blobs(*shape)
    settings = {"mirror_axes": range(len(shape)), "masked_channels": (1,)}
    for seed in range(6):
        image, labels = run(EVERYTHING, an_image(2, *shape), target, generator(seed), **settings)
        other = np.stack([target, np.zeros_like(target), target])
        same, all_labels = run(EVERYTHING, an_image(2, *shape), other, generator(seed), **settings)
        np.testing.assert_array_equal(same, image)
        np.testing.assert_array_equal(all_labels[0], labels)
        np.testing.assert_array_equal(all_labels[2], labels)
        assert not all_labels[1].any()


def test_nothing_waits_for_the_device():
    """On tensors without values, whatever needs one on the host raises; and the way of a GPU is taken."""
    table = Augmentation(**dict.fromkeys(SIGNS, 1.0), cutmix=1.0, mixup=1.0, paste=1.0, blur_per_channel=1.0)
    nowhere = torch.device("meta")
    torch.zeros(1, device=nowhere) + torch.zeros(2, device=nowhere)  # imports much of torch, before the mock stands
    no_generator = mock.Mock(return_value=mock.Mock(manual_seed=lambda seed: None))
    for shape in ((16, 18), (6, 8, 7), (2, 12, 12)):
        chain = DeviceChain(table, channels=3, patch_size=shape, mirror_axes=(0,), rgb=True, masked_channels=(0,))
        draws = [chain.draw(generator(seed)) for seed in range(2)]
        images = [torch.empty(3, *shape, device=nowhere) for _ in draws]
        targets = [torch.empty(shape, dtype=torch.int8, device=nowhere) for _ in draws]
        with mock.patch("torch.Generator", no_generator):
            result, labels = chain(images, targets, draws, nowhere)
            assert result.shape == (2, 3, *shape)
            assert labels.shape == (2, *shape)
            with mock.patch.object(deform, "in_pieces", return_value=True), pytest.raises(NotImplementedError):
                chain(images, targets, draws, nowhere)  # the way of a CPU does ask for values


# A step more ---------------------------------------------------------------------------------------


def test_a_new_step_is_one_entry(monkeypatch):
    """It draws after those before it, so that what these do to a sample is unchanged."""

    def add(patches, images, drawn, seeds):
        images.add_(torch.tensor(drawn).view(-1, 1, 1, 1))

    raised = Step("raised", lambda patches, rng: float(rng.integers(1, 9)), add)
    image, table = an_image(1, 8, 8), replace(OFF, brightness=1.0)
    before, _ = run(table, image, rng=generator(2))
    monkeypatch.setattr("autoseg.augmentation.chain.STEPS", (*STEPS, raised))
    after, _ = run(table, image, rng=generator(2))
    (added,) = np.unique(np.round(after - before, 4))
    assert added in range(1, 9)
