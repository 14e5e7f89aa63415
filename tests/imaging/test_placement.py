"""To the grid of the network and back, worked out by hand."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from autoseg.errors import DataError
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.placement import Placement, place
from autoseg.records import from_plain, to_plain


@dataclass(frozen=True)
class Rules:
    coarse_axis_order: int = 0
    anisotropy_threshold: float = 3.0


HALVED = Placement(
    spacing=(1.0, 1.0, 1.0),
    target_spacing=(1.0, 1.0, 2.0),
    box=((0, 1), (1, 2), (1, 7)),
    shape_before_crop=(1, 2, 8),
    shape_after_crop=(1, 1, 6),
    shape=(1, 1, 3),
)


def test_a_box_is_placed_on_the_grid_of_its_spacing():
    assert place((1, 2, 8), ((0, 1), (1, 2), (1, 7)), (1.0, 1.0, 1.0), (1.0, 1.0, 2.0), "a.nii") == HALVED
    # 3 x 2.0 / 1.5 = 4 of 3 slices; 5 x 0.5 / 0.7 = 3.57; 8 x 0.5 / 4.9 = 0.8
    made = place((9, 9, 9), ((1, 4), (0, 5), (1, 9)), (2.0, 0.5, 0.5), (1.5, 0.7, 4.9), "a.nii")
    assert (made.shape_before_crop, made.shape_after_crop, made.shape) == ((9, 9, 9), (3, 5, 8), (4, 4, 1))


def test_a_grid_that_cannot_be_is_refused_by_the_name_of_the_file():
    with pytest.raises(DataError, match=r"^a\.nii: 8 x 8 x 8 voxels"):
        place((9, 9, 9), ((0, 8), (0, 8), (1, 9)), (1.0, 1.0, 1.0), (1.0, 1.0, 1000.0), "a.nii")


def test_a_segmentation_comes_to_the_grid():
    """Cropped to 1 1 2 2 0 0, then halved: each new voxel lies between two of one label."""
    rows = np.array([[[8, 8, 8, 8, 8, 8, 8, 8], [9, 1, 1, 2, 2, 0, 0, 9]]], np.uint8)
    found = HALVED.to_grid(rows, Rules())
    assert found.tolist() == [[[1, 2, 0]]]
    assert found.dtype == np.int16


def test_what_lies_outside_the_body_is_a_class_of_its_own():
    indices = np.array([[[OUTSIDE, OUTSIDE, 2, 2, 0, 0]]], np.int16)
    assert HALVED.labels_to_grid(indices, Rules()).tolist() == [[[OUTSIDE, 2, 0]]]


def test_probabilities_come_back_to_the_box():
    """Linear between centres of voxels: those at 1, 3 and 5 of a line from 0 to 6, asked for at 0.5, 1.5, ... 5.5."""
    found = HALVED.back(np.array([[[[0.0, 1.0, 0.0]]], [[[1.0, 0.0, 1.0]]]], np.float32), Rules())
    np.testing.assert_allclose(found[0, 0, 0], [0, 0.25, 0.75, 0.75, 0.25, 0], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)
    assert found.dtype == np.float32


def test_a_coarse_axis_is_resampled_on_its_own():
    """Slices of 4 mm halved: the nearest one counts, along the other axes the mean of two; unless 5 is the limit."""
    thick = place((2, 1, 4), ((0, 2), (0, 1), (0, 4)), (4.0, 1.0, 1.0), (2.0, 1.0, 2.0), "a.nii")
    grid = np.array([[[0.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]]], np.float32)
    assert thick.shape == (4, 1, 2)
    separate = thick.back(grid[None], Rules())[0, :, 0]
    np.testing.assert_allclose(separate, [[0, 0.25, 0.75, 1], [1, 0.75, 0.25, 0]], atol=1e-6)
    labels = np.array([[[1, 1, 2, 2]], [[3, 3, 3, 3]]], np.int16)
    assert thick.to_grid(labels, Rules())[:, 0].tolist() == [[1, 2], [1, 2], [3, 3], [3, 3]]
    evened = place((4, 1, 1), ((0, 4), (0, 1), (0, 1)), (4.0, 1.0, 1.0), (8.0, 4.0, 4.0), "a.nii")
    assert evened.to_grid(np.array([1, 2, 3, 3], np.int16).reshape(4, 1, 1), Rules()).ravel().tolist() == [2, 3]


def test_a_grid_that_is_coarse_where_the_image_is_not():
    """Slices of 1 mm brought to 4 mm: the nearest one (the third of four), and each comes back four times."""
    thin = place((8, 1, 1), ((0, 8), (0, 1), (0, 1)), (1.0, 1.0, 1.0), (4.0, 1.0, 1.0), "a.nii")
    labels = np.array([1, 1, 2, 2, 3, 3, 4, 4], np.int16).reshape(8, 1, 1)
    assert thin.to_grid(labels, Rules()).ravel().tolist() == [2, 4]
    assert thin.to_grid(labels, Rules(anisotropy_threshold=4.0)).ravel().tolist() == [1, 3]  # halves: the lower label
    grid = np.array([0.0, 1.0], np.float32).reshape(1, 2, 1, 1)
    assert thin.back(grid, Rules()).ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_crop_there_and_back():
    whole = np.arange(16).reshape(1, 2, 8)
    assert HALVED.crop(whole).tolist() == [[[9, 10, 11, 12, 13, 14]]]
    assert HALVED.crop(np.stack([whole, whole + 16]))[1].tolist() == [[[25, 26, 27, 28, 29, 30]]]
    assert np.shares_memory(HALVED.crop(whole), whole)
    back = HALVED.uncrop(np.array([[[1, 2, 3, 4, 5, 6]]], np.uint8))
    assert back.tolist() == [[[0] * 8, [0, 1, 2, 3, 4, 5, 6, 0]]]
    assert back.dtype == np.uint8


def test_it_is_kept_as_json():
    assert from_plain(Placement, json.loads(json.dumps(to_plain(HALVED)))) == HALVED
