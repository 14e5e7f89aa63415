"""The device chain means what the host chain means, sample for sample and in distribution; and exact values by hand."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d, label, map_coordinates
from scipy.stats import ks_2samp, kstest

from autoseg.augmentation import AUGMENTATIONS, Augmentation
from autoseg.data import augment as host
from autoseg.data.augment import build_chain
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.transforms import spline_basis
from autoseg.nn import augment, deform
from autoseg.nn.augment import DeviceChain, blur_matrix, coarse_matrix, two_sided
from autoseg.nn.mixing import Mixing, find_component, mix

OFF = AUGMENTATIONS["none"]
CPU = torch.device("cpu")
EVERYTHING = Augmentation(
    rotation=0.5, scaling=0.5, elastic=0.5, noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, low_resolution=0.5,
    gamma_inverted=0.5, gamma=0.5, colour=0.5,
)  # fmt: skip


class High(np.random.Generator):
    """Draws the upper end of every range; whatever may happen happens."""

    def __init__(self):
        super().__init__(np.random.PCG64(5))

    def random(self, size=None):
        return 0.0 if size is None else np.zeros(size)

    def uniform(self, low, high, size=None):
        return high if size is None else np.full(size, float(high))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def an_image(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def apply(chain: DeviceChain, image: np.ndarray, target: np.ndarray, draw) -> tuple[np.ndarray, np.ndarray]:
    images, targets = chain([torch.from_numpy(image)], [torch.from_numpy(target)], [draw], CPU)
    return images[0].numpy(), targets[0].numpy()


def run(table: Augmentation, image: np.ndarray, target=None, rng=None, **settings):
    """Image and target after the chain; patch size and image size are the same unless given."""
    target = np.ones(image.shape[1:], np.int8) if target is None else target
    chain = DeviceChain(
        table, channels=len(image), **({"patch_size": image.shape[1:], "mirror_axes": ()} | settings)
    )  # fmt: skip
    return apply(chain, image, target, chain.draw(generator() if rng is None else rng))


def ramp(shape: tuple[int, ...], *slopes: float) -> np.ndarray:
    """(1, *shape): a linear function of the coordinates relative to the centre. Linear interpolation is exact on it."""
    centred = [slope * (np.arange(n) - (n - 1) / 2) for slope, n in zip(slopes, shape, strict=True)]
    return sum(np.meshgrid(*centred, indexing="ij"))[None].astype(np.float32)


def blobs(*shape: int, seed: int = 3) -> np.ndarray:
    """Label map of OUTSIDE, 0, 1, 2 and 3 with smooth borders."""
    smooth = gaussian_filter(an_image(*shape, seed=seed), 1.5)
    return np.clip(np.round(smooth / smooth.std() + 1), OUTSIDE, 3).astype(np.int8)


@pytest.fixture(params=[True, False], ids=["in pieces", "at once"])
def pieces(request, monkeypatch):
    """Work as on a CPU, and as on a GPU."""
    monkeypatch.setattr(deform, "in_pieces", lambda device: request.param)


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


# The host chain: the same parameters, the same voxels ----------------------------------------------

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


@pytest.mark.parametrize("shape", [(17, 20), (16, 30), (9, 13, 11), (3, 14, 12), (1, 8, 8), (2, 9, 10)])
@pytest.mark.parametrize("setting", FIXED)
def test_fixed_parameters_give_the_voxels_of_the_host_chain(shape, setting, pieces):
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
    assert (augment.ANISOTROPIC, augment.OBLONG) == (host.ANISOTROPIC, host.OBLONG)
    assert (deform.ELASTIC_INTERVALS, deform.OUTSIDE) == (host.ELASTIC_INTERVALS, OUTSIDE)


# The host chain: the same distribution -------------------------------------------------------------

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


@pytest.mark.parametrize("field", ALONE)
def test_each_transform_has_the_distribution_of_the_host_chain(field):
    compare(replace(OFF, **{field: 1.0 if field != "mirroring" else 0.5}), (5, 7, 6))


@pytest.mark.parametrize("shape", [(12, 15), (5, 7, 6), (2, 8, 9)])
def test_all_together_have_the_distribution_of_the_host_chain(shape):
    compare(EVERYTHING, shape)


# What is drawn -------------------------------------------------------------------------------------

SIGNS = {  # field -> whether a draw shows it
    "rotation": lambda draw: draw.deformation is not None and abs(draw.deformation.matrix[0, 1]) > 0,
    "scaling": lambda draw: draw.deformation is not None and draw.deformation.matrix[0, 0] != 1,
    "elastic": lambda draw: draw.deformation is not None and draw.deformation.control is not None,
    "noise": lambda draw: draw.noise_std > 0,
    "blur": lambda draw: draw.blur_sigma.any(),
    "brightness": lambda draw: (draw.brightness != 1).all(),
    "contrast": lambda draw: (draw.contrast != 1).all(),
    "low_resolution": lambda draw: (draw.low_resolution != (20, 24)).any(),
    "gamma_inverted": lambda draw: (draw.gamma_inverted != 1).all(),
    "gamma": lambda draw: (draw.gamma != 1).all(),
    "colour": lambda draw: draw.colour is not None,
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
        "noise": ([draw.noise_std for draw in draws], table.noise_std),
        "blur": ([draw.blur_sigma[1, 0] for draw in draws], table.blur_sigma),
        "scaling": (factors, table.scaling_range),
        "angle": (np.rad2deg(np.arcsin(matrices[:, 0, 1] / factors)), (-40.0, 40.0)),
        # the grey axis keeps its length, the plane across it is stretched twice
        "saturation": ([np.sqrt(np.linalg.det(draw.colour)) for draw in draws], table.colour_saturation),
    }
    for values, (low, high) in uniform.values():
        assert kstest((np.array(values) - low) / (high - low), "uniform").pvalue > 1e-3
    for field, limits in (("brightness", table.brightness_range), ("contrast", table.contrast_range),
                          ("gamma", table.gamma_range), ("gamma_inverted", table.gamma_range)):  # fmt: skip
        values = np.concatenate([getattr(draw, field) for draw in draws])
        for side, (low, high) in ((values < 1, (limits[0], 1)), (values > 1, (1, limits[1]))):
            assert side.mean() == pytest.approx(0.5, abs=0.06)
            assert kstest((values[side] - low) / (high - low), "uniform").pvalue > 1e-3


# By hand: what moves -------------------------------------------------------------------------------


def test_a_quarter_turn(pieces):
    image, target = an_image(2, 6, 6), generator(2).integers(0, 4, (6, 6)).astype(np.int16)
    table = replace(OFF, rotation=1.0, rotation_degrees_2d=90.0)
    result, labels = run(table, image, target, High())
    np.testing.assert_allclose(result, np.rot90(image, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(labels, np.rot90(target))


def test_three_quarter_turns_of_a_marked_cube(pieces):
    image = an_image(1, 5, 5, 5)
    target = generator(2).integers(0, 4, (5, 5, 5)).astype(np.int16)
    result, labels = run(replace(OFF, rotation=1.0, rotation_degrees_3d=90.0), image, target, High())
    # the coordinates are turned about the first axis, the second, the third; so the array is in the reverse order
    for array, turned in ((image[0], result[0]), (target, labels)):
        expected = np.rot90(np.rot90(np.rot90(array, axes=(0, 1)), axes=(2, 0)), axes=(1, 2))
        np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_thick_slices_are_turned_each_in_its_plane(pieces):
    image, target = an_image(2, 2, 8, 8), generator(3).integers(0, 3, (2, 8, 8)).astype(np.int8)
    table = replace(OFF, rotation=1.0, rotation_degrees_2d=90.0, rotation_degrees_3d=0.0)
    for setting in (None, True):
        result, labels = run(table, image, target, High(), anisotropic=setting)
        np.testing.assert_allclose(result, np.rot90(image, axes=(2, 3)), atol=1e-5)
        np.testing.assert_array_equal(labels, np.rot90(target, axes=(1, 2)))
    np.testing.assert_allclose(run(table, image, target, High(), anisotropic=False)[0], image, atol=1e-5)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_zoomed_ramp_is_a_ramp(factor, pieces):
    image = ramp((16, 20, 18), 1.0, 10.0, 100.0)
    table = replace(OFF, scaling=1.0, scaling_range=(factor, factor))
    result, _ = run(table, image, patch_size=(6, 8, 6))
    np.testing.assert_allclose(result, factor * ramp((6, 8, 6), 1.0, 10.0, 100.0), atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 9), (6, 8, 7), (2, 9, 10)])
@pytest.mark.parametrize("moved", [False, True])
def test_mirroring_is_a_flip(shape, moved):
    """Of everything that was done, exactly."""
    table = replace(EVERYTHING, mirroring=0.0, noise=0.0, low_resolution=0.0, **({} if moved else {"rotation": 0.0}))
    if not moved:
        table = replace(table, scaling=0.0, elastic=0.0)
    size = tuple(n + 20 for n in shape)
    image, target = an_image(2, *size), blobs(*size)
    chain = DeviceChain(table, channels=2, patch_size=shape, mirror_axes=())
    for seed in range(8):
        draw = chain.draw(generator(seed))
        result, labels = apply(chain, image, target, draw)
        for axes in ((0,), (1,), tuple(range(len(shape)))):
            flipped, flipped_labels = apply(chain, image, target, replace(draw, flips=axes))
            np.testing.assert_allclose(flipped, np.flip(result, [axis + 1 for axis in axes]), atol=2e-5)
            np.testing.assert_array_equal(flipped_labels, np.flip(labels, axes))


def test_mirror_axes_are_drawn_one_by_one():
    chain = DeviceChain(replace(OFF, mirroring=0.5), channels=1, patch_size=(4, 5, 6), mirror_axes=(0, 2))
    drawn = [chain.draw(generator(seed)).flips for seed in range(200)]
    assert {(), (0,), (2,), (0, 2)} == set(drawn)
    assert min(map(drawn.count, set(drawn))) > 30  # 50 each; 30 is 3.3 standard deviations below


@pytest.mark.parametrize("patch", [(10, 12), (6, 8, 7), (2, 10, 10), (1, 9, 9)])
def test_the_margin_is_all_that_a_deformation_reaches(patch, pieces):
    """The image beyond the margin changes nothing; one voxel less would be missed."""
    table = replace(OFF, rotation=0.7, scaling=0.7, elastic=0.7, scaling_range=(0.5, 2.0), elastic_magnitude=(0.2, 0.2))
    chain = DeviceChain(table, channels=1, patch_size=patch, mirror_axes=())
    size = tuple(n + 60 for n in patch)
    image, target = an_image(1, *size), generator(1).integers(0, 3, size).astype(np.int8)
    missed = 0
    for seed in range(12):
        draw = chain.draw(generator(seed))
        whole = apply(chain, image, target, replace(draw, margin=tuple(30 if n > 2 else 0 for n in patch)))
        results = []
        for less in (0, 1):
            margins = [m - less if m else 0 for m in draw.margin]
            cut = tuple(slice(30 - m, 30 + n + m) for m, n in zip(margins, patch, strict=True))
            results.append(apply(chain, image[:, *cut], target[cut], replace(draw, margin=tuple(margins))))
        np.testing.assert_allclose(results[0][0], whole[0], atol=1e-4)
        assert (results[0][1] != whole[1]).mean() < 0.002
        missed += np.abs(results[1][0] - whole[0]).max() > 1e-3
    assert missed > 3


@pytest.mark.parametrize("shape", [(24, 26), (12, 14, 16), (3, 20, 18)])
def test_sampling_is_linear_and_labels_are_voted(shape, pieces):
    """Against scipy, at coordinates computed one voxel at a time; labels by interpolating each class' indicator."""
    table = replace(OFF, rotation=1.0, scaling=1.0, elastic=1.0)
    size = tuple(n + 10 for n in shape)  # too small for the margin: the border is seen, too
    image, target = an_image(1, *size), blobs(*size)
    chain = DeviceChain(table, channels=1, patch_size=shape, mirror_axes=(), border=-2.0)
    for seed in range(3):
        draw = chain.draw(generator(seed))
        result, labels = apply(chain, image, target, draw)
        padding = [max(m - 5, 0) for m in draw.margin]
        wide = np.pad(image[0], [(p, p) for p in padding], constant_values=-2.0)
        marks = np.pad(target, [(p, p) for p in padding], constant_values=OUTSIDE)
        coordinates = np.indices(shape) + np.array(
            [(w - n) / 2 for w, n in zip(wide.shape, shape, strict=True)]
        ).reshape(-1, *[1] * len(shape))
        dims = len(draw.deformation.matrix)
        plane = shape[-dims:]
        mesh = np.indices(plane) - (np.array(plane).reshape(-1, *[1] * dims) - 1) / 2
        field = np.einsum(
            "dabc,ia,jb,kc->dijk" if dims == 3 else "dab,ia,jb->dij", draw.deformation.control,
            *(spline_basis(n, max(plane) / 4) for n in plane),
        )  # fmt: skip
        moved = np.einsum("ij,j...->i...", draw.deformation.matrix, mesh + field)
        centre = (np.array(wide.shape[-dims:]) - 1) / 2
        absolute = moved + centre.reshape(-1, *[1] * dims)
        coordinates[-dims:] = absolute if dims == len(shape) else absolute[:, None]
        np.testing.assert_allclose(result[0], map_coordinates(wide, coordinates, order=1, mode="nearest"), atol=1e-4)
        classes = np.arange(-1, 4)
        scores = np.stack(
            [map_coordinates((marks == c).astype(float), coordinates, order=1, mode="nearest") for c in classes]
        )
        order = np.sort(scores, axis=0)
        clear = order[-1] - order[-2] > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(labels[clear], np.maximum(classes[scores.argmax(axis=0)], 0)[clear])


def test_a_vote_by_hand(pieces):
    """Every voxel comes from the middle of four: each has a quarter of the votes, and the first wins a tie."""
    table = replace(OFF, scaling=1.0, scaling_range=(0.0, 0.0))
    image = np.array([[[1.0, 2], [3, 10]]], np.float32)
    for corners, winner in (([1, 2, 3, 2], 2), ([1, 2, 3, 3], 3), ([4, 3, 2, 1], 4), ([1, 1, 2, 2], 1)):
        result, labels = run(table, image, np.reshape(corners, (2, 2)).astype(np.int8))
        np.testing.assert_array_equal(result, np.full((1, 2, 2), 4.0))
        np.testing.assert_array_equal(labels, np.full((2, 2), winner))


def test_labels_are_never_invented():
    target = np.where(blobs(40, 40) > 0, 7, 0).astype(np.uint8)
    target[10:14] = 200
    table = replace(OFF, rotation=1.0, elastic=1.0, elastic_magnitude=(0.3, 0.3))
    for seed in range(10):
        labels = run(table, an_image(1, 40, 40), target, generator(seed), patch_size=(20, 20))[1]
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 7, 200}


# By hand: intensities ------------------------------------------------------------------------------


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


def test_blur_and_resolution_are_drawn_for_each_channel():
    table = replace(OFF, blur=1.0, blur_per_channel=0.5, low_resolution=1.0, low_resolution_per_channel=0.25)
    chain = DeviceChain(table, channels=4, patch_size=(50, 60), mirror_axes=())
    draws = [chain.draw(generator(seed)) for seed in range(200)]
    for field, unchanged in (("blur_sigma", 0), ("low_resolution", (50, 60))):
        some = np.array([(getattr(draw, field) != unchanged).any(axis=1) for draw in draws])
        assert 0.5 < (some.any(axis=1) & ~some.all(axis=1)).mean() < 1  # not all channels or none: 0.88 and 0.68
    sigma = np.concatenate([draw.blur_sigma for draw in draws])
    assert (sigma[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.07)
    assert ((sigma[:, 0] > 0) == (sigma[:, 1] > 0)).all()
    assert 0.5 <= sigma[sigma > 0].min() < 0.51
    assert 0.99 < sigma.max() <= 1.0
    assert (sigma[:, 0] != sigma[:, 1])[sigma[:, 0] > 0].all()
    lengths = np.concatenate([draw.low_resolution for draw in draws])
    assert (lengths[:, 1] < 60).mean() == pytest.approx(0.25, abs=0.06)
    assert lengths.min(axis=0) == pytest.approx([25, 30], abs=1)
    zoom = lengths / (50, 60)
    assert np.abs(zoom[:, 0] - zoom[:, 1]).max() < 0.02  # one factor for all axes


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


def test_two_sided_factors():
    drawn = two_sided(generator(), (0.5, 3.0), 4000)
    assert (drawn < 1).mean() == pytest.approx(0.5, abs=0.03)  # a single uniform range would give 0.2
    assert 0.5 <= drawn.min() < 0.51
    assert 2.98 < drawn.max() <= 3.0
    assert two_sided(generator(), (1.5, 2.0), 100).min() >= 1.5
    assert two_sided(generator(), (0.5, 0.8), 100).max() <= 0.8


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


# What a batch does not change ----------------------------------------------------------------------


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
    table = replace(
        Augmentation(**dict.fromkeys(ALONE, 1.0)), colour=1.0, cutmix=1.0, mixup=1.0, paste=1.0, blur_per_channel=1.0
    )
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


# Mixing --------------------------------------------------------------------------------------------


def test_samples_are_mixed_by_one_table_alone():
    mixing = {name for name, table in AUGMENTATIONS.items() if max(table.cutmix, table.mixup, table.paste) > 0}
    assert mixing == {"sparse"}


def a_batch(count: int = 2, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([torch.full((1, *shape), float(i)) for i in range(count)])
    targets = torch.stack([torch.full((1, *shape), i, dtype=torch.int8) for i in range(count)])
    return images, targets


def test_cutmix_moves_image_and_target_of_a_box():
    images, targets = a_batch(3, 4, 6)
    box = (slice(1, 3), slice(0, 5))
    mix(images, targets, [Mixing(), Mixing(box=box), Mixing(box=box)], None)
    expected = torch.ones(4, 6)
    expected[box] = 2
    last = torch.full((4, 6), 2.0)
    last[box] = 0  # the other of the last is the first, as it was
    for found in (images, targets):
        np.testing.assert_array_equal(found[0, 0], torch.zeros(4, 6))
        np.testing.assert_array_equal(found[1, 0], expected)
        np.testing.assert_array_equal(found[2, 0], last)


def test_mixup_mixes_intensities_and_keeps_the_target():
    images, targets = a_batch(2, 3, 3)
    mix(images, targets, [Mixing(share=0.25), Mixing(share=0.1)], None)
    np.testing.assert_allclose(images[0], 0.25)
    np.testing.assert_allclose(images[1], 0.9)
    assert not targets[0].any()
    assert (targets[1] == 1).all()


@pytest.mark.parametrize("shape", [(30, 32), (14, 16, 18)])
def test_a_component_is_what_hangs_together_with_a_voxel(shape):
    target = (gaussian_filter(an_image(*shape, seed=8), 1.5) > 0.13).astype(np.int8)
    target[tuple(slice(n // 2, None) for n in shape)] *= 2
    target[0] = 3  # the ignore label
    lengths = [n // 2 for n in shape]
    sizes = set()
    for seed in range(10):
        mask, where = find_component(torch.from_numpy(target), lengths, 3, torch.Generator().manual_seed(seed))
        places = np.unravel_index(where.numpy(), shape)
        window = tuple(slice(p.min(), p.max() + 1) for p in places)
        assert [w.stop - w.start for w in window] == lengths
        (found,) = np.unique(target[window][mask])
        assert found in (1, 2)
        pieces, count = label(target[window] == found, np.ones((3,) * len(shape)))
        assert any((mask.numpy() == (pieces == k)).all() for k in range(1, count + 1))
        sizes.add(int(mask.sum()))
    assert len(sizes) > 3
    empty, _ = find_component(torch.full(shape, 3), lengths, 3, torch.Generator().manual_seed(0))
    assert not empty.any()


def test_a_pasted_component_brings_its_voxels_and_nothing_else():
    images, targets = a_batch(2, 8, 8)
    targets[:] = 0
    targets[1, 0, 2:4, 5:7] = 2
    images[1] = torch.arange(64.0).view(8, 8)
    mix(images, targets, [Mixing(window=(slice(4, 8), slice(0, 4)), seed=1), Mixing()], None)
    brought = images[0, 0] != 0
    np.testing.assert_array_equal(brought, targets[0, 0] == 2)
    assert sorted(images[0, 0][brought].tolist()) == [21, 22, 29, 30]
    assert not brought[:4].any()
    assert not brought[:, 4:].any()


def test_mixing_is_drawn_as_often_and_as_large_as_the_table_says():
    table = replace(OFF, cutmix=0.5, cutmix_share=(0.1, 0.4), mixup=0.3, mixup_share=(0.1, 0.2), paste=0.2)
    chain = DeviceChain(table, channels=1, patch_size=(40, 60), mirror_axes=())
    drawn = [chain.draw(generator(seed)).mixing for seed in range(300)]
    assert np.mean([m.box is not None for m in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([m.share > 0 for m in drawn]) == pytest.approx(0.3, abs=0.1)
    assert np.mean([m.window is not None for m in drawn]) == pytest.approx(0.2, abs=0.08)
    covered = [np.prod([part.stop - part.start for part in m.box]) / 2400 for m in drawn if m.box]
    assert 0.08 < min(covered) < 0.12
    assert 0.37 < max(covered) < 0.42
    assert {tuple(part.stop - part.start for part in m.window) for m in drawn if m.window} == {(10, 15)}
    assert all(0.1 <= m.share <= 0.2 for m in drawn if m.share)
    starts = [m.window[0].start for m in drawn if m.window]
    assert min(starts) < 5
    assert max(starts) > 25
