"""Components corrected slab by slab: by hand, and the same as scipy on the whole volume, for every thickness."""

import numpy as np
import pytest
from scipy import ndimage

from autoseg.imaging.corrections import Correction, correct

ORGAN = Correction((1,), 1)
LARGEST = Correction((1,), 1, keep_largest=True)


def whole(labels: np.ndarray, one: Correction) -> np.ndarray:
    """The same by scipy, with everything in memory."""
    out = labels.copy()
    mask = np.isin(out, one.indices)
    numbers, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.reshape(-1))
    removed = sizes < one.min_voxels
    if one.keep_largest and len(sizes) > 1:
        removed |= np.arange(len(sizes)) != 1 + np.argmax(sizes[1:])
    removed[0] = False
    out[removed[numbers]] = one.replaced_by
    if one.fill_holes:
        inside = ndimage.binary_fill_holes(np.isin(out, one.indices))
        out[inside & (out == 0)] = one.filled_with
    return out


@pytest.mark.parametrize("slab", [1, 40, 2**24])
def test_a_spiral_across_slabs_is_one_component(slab):
    """Two columns that meet in the last row: an island beside them is the only one removed."""
    labels = np.zeros((6, 3, 7), np.uint8)
    labels[:, 1, 1] = labels[:, 1, 5] = 1
    labels[5, 1, 1:6] = 1
    labels[0, 1, 3] = 1
    wanted = labels.copy()
    wanted[0, 1, 3] = 0
    correct(labels, [LARGEST], slab=slab)
    np.testing.assert_array_equal(labels, wanted)


def test_corners_join_components_and_faces_alone_bound_holes():
    labels = np.zeros((2, 2, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1  # touch at a corner, across slabs
    labels[0, 0, 3] = 1
    correct(labels, [LARGEST], slab=8)
    assert labels.sum() == 2
    assert labels[1, 1, 1] == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slab", [1, 100, 600, 2**24])
@pytest.mark.parametrize(
    "one",
    [
        LARGEST,
        Correction((1,), 1, min_voxels=4),
        Correction((1,), 1, fill_holes=True),
        Correction((1, 2), 2, replaced_by=3, min_voxels=9, fill_holes=True),
    ],
    ids=["largest", "small", "holes", "region"],
)
def test_as_scipy_does_on_the_whole(seed, slab, one):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(14, 11, 9)), 0.6)
    islands, holes = (np.digitize(smooth, np.quantile(smooth, [low, 0.9, 0.97])) for low in (0.75, 0.1))
    labels = np.where(np.arange(14)[:, None, None] < 7, islands, holes).astype(np.uint8)
    wanted = whole(labels, one)
    assert (wanted != labels).any()
    correct(labels, [one], slab=slab)
    np.testing.assert_array_equal(labels, wanted)


def test_a_hole_keeps_what_another_label_says():
    """A tumour (2) in a cavity of the liver (1): the cavity around it is filled, the tumour stays."""
    labels = np.zeros((7, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 2
    correct(labels, [Correction((1,), 1, fill_holes=True)], slab=49)
    assert labels[3, 3, 3] == 2
    assert (labels == 1).sum() == 5**3 - 1


def test_flat_images_have_holes_in_their_plane():
    labels = np.zeros((1, 5, 5), np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[0, 2, 2] = 0
    correct(labels, [Correction((1,), 1, fill_holes=True)])
    assert labels[0, 2, 2] == 1
    assert labels.sum() == 9


def test_nothing_to_do():
    for labels in (np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), np.uint8)):
        before = labels.copy()
        correct(labels, [LARGEST, Correction((1,), 1, min_voxels=3, fill_holes=True)])
        np.testing.assert_array_equal(labels, before)
