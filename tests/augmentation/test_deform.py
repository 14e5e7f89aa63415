"""The sampling pass of the device chain: turns, zooms and flips by hand, scipy as oracle, labels by a vote."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.formulas import spline_basis
from autoseg.imaging.labels import OUTSIDE
from device_chain import apply, run
from synthetic_patches import EVERYTHING, OFF, High, an_image, blobs, generator, ramp


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
