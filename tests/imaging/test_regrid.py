"""From one grid in space onto another: closed forms, and SimpleITK as the independent word."""

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.imaging.geometry import Geometry, reorient
from autoseg.imaging.regrid import fit, resample_image_onto, resample_labels_onto, share_inside, smoothing

PLAIN = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # rows: Z grows to S, Y to P, X to L


def turned(about_x: float, about_z: float) -> np.ndarray:
    a, b = about_x, about_z
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return PLAIN @ x @ z


def grid(shape, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), axes=PLAIN, flat=False) -> Geometry:
    rows = [tuple(float(v) for v in row) for row in axes]
    return Geometry(shape, spacing, origin, (rows[0], rows[1], rows[2]), flat)


def as_itk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.array(geometry.direction)[::-1].T.ravel().tolist())
    return image


SOURCE = grid((9, 30, 32), (5.0, 0.5, 0.5), (-8.0, -7.0, -22.0), turned(0.1, 0.2))
TARGET = grid((20, 9, 10), (2.0, 0.6, 0.7), (-7.5, -7.0, -20.0), turned(-0.05, 0.1))


def test_oblique_grids_agree_with_simpleitk():
    rng = np.random.default_rng(0)
    image = rng.normal(size=SOURCE.shape).astype(np.float32)
    like = as_itk(np.zeros(TARGET.shape, np.float32), TARGET)
    low = float(image.min())
    theirs = sitk.Resample(as_itk(image, SOURCE), like, sitk.Transform(), sitk.sitkLinear, low)
    ours, outside = resample_image_onto(image[None], SOURCE, TARGET)
    assert outside == (low,)
    assert 0.02 < (ours == low).mean() < 0.6  # there is an outside to compare, and an inside
    np.testing.assert_allclose(ours[0], sitk.GetArrayFromImage(theirs), atol=1e-5)
    labels = rng.integers(0, 4, SOURCE.shape).astype(np.uint8)
    nearest = sitk.Resample(as_itk(labels, SOURCE), like, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    moved = resample_labels_onto(labels, SOURCE, TARGET)
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(moved, sitk.GetArrayFromImage(nearest))


def test_a_ramp_in_space_stays_one_where_the_image_shrinks():
    """FLAIR onto DWI: 512 pixels of 0.46875 mm become 112 of 2 mm; a linear ramp is not changed by smoothing."""
    fine = grid((4, 64, 64), (5.0, 0.46875, 0.46875), (-14.765625, -14.765625, 0.0))
    coarse = grid((9, 12, 12), (2.0, 2.0, 2.0), (-11.0, -11.0, 1.0))
    z, y, x = np.indices(fine.shape)
    ramp = 3.0 * (-14.765625 + 0.46875 * x) - 2.0 * (-14.765625 + 0.46875 * y) + 0.0 * z
    assert smoothing(fine, coarse) == (0.0, *[pytest.approx((2 / 0.46875 - 1) / 2)] * 2)  # 1.633 voxels
    ours, _ = resample_image_onto(ramp[None], fine, coarse)
    _, y, x = np.indices(coarse.shape)
    wanted = 3.0 * (-11 + 2.0 * x) - 2.0 * (-11 + 2.0 * y)
    inner = (slice(0, 9), slice(2, 10), slice(2, 10))  # away from the edge, which the filter continues flat
    np.testing.assert_allclose(ours[0][inner], wanted[inner], atol=2e-3)


def test_shrinking_is_smoothed_and_not_picked_out():
    """A chequerboard of one-voxel squares averages to its mean; picking voxels would give 0 or 1."""
    fine, coarse = grid((1, 63, 63)), grid((1, 21, 21), (1.0, 3.0, 3.0), (1.0, 1.0, 0.0))
    board = (np.indices(fine.shape).sum(axis=0) % 2).astype(np.float32)
    ours, _ = resample_image_onto(board[None], fine, coarse)
    assert np.abs(ours[0, 0, 1:-1, 1:-1] - 0.5).max() < 0.01


def test_the_half_voxel_beyond_the_outermost_centres_belongs_to_the_image():
    """Two slices of 5 mm show 10 mm: ten slices of 1 mm, none of them outside."""
    thick, thin = grid((2, 1, 1), (5.0, 1.0, 1.0)), grid((10, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, -2.0))
    assert share_inside(thin, thick) == 1.0
    ours, _ = resample_image_onto(np.array([10.0, 20.0]).reshape(1, 2, 1, 1), thick, thin)
    np.testing.assert_allclose(ours.ravel(), [10, 10, 10, 12, 14, 16, 18, 20, 20, 20], atol=1e-5)


def test_shares():
    small = grid((2, 2, 2), origin=(3.0, 0.0, 0.0))
    assert share_inside(grid((2, 2, 4)), small) == 0.25  # x = 3 alone of 0, 1, 2, 3
    assert share_inside(grid((2, 2, 4)), grid((2, 2, 2), origin=(50.0, 0, 0))) == 0.0
    where = np.zeros((2, 2, 4), bool)
    assert share_inside(grid((2, 2, 4)), small, where) == 1.0  # nothing to lose
    where[0, 0, 2:] = True
    assert share_inside(grid((2, 2, 4)), small, where) == 0.5


def test_every_order_of_axes_is_found_and_undone():
    target = grid((3, 4, 5), (3.0, 0.7, 0.9), (-3.0, 20.0, 7.0), turned(0.3, -0.4))
    values = np.arange(60).reshape(target.shape)
    for permutation in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for flips in np.ndindex(2, 2, 2):
            axes = np.array(target.direction)[list(permutation)] * np.where(flips, -1, 1)[:, None]
            corner = np.zeros(3)
            for axis, flip in zip(permutation, flips, strict=True):
                corner[axis] = (target.shape[axis] - 1) * target.spacing[axis] * flip
            origin = np.array(target.origin) + corner @ np.array(target.direction)
            other = Geometry(
                tuple(target.shape[a] for a in permutation),
                tuple(target.spacing[a] for a in permutation),
                tuple(origin),
                tuple(tuple(row) for row in axes),
            )
            found = fit(other, target)
            assert found is not None
            assert found.near
            assert found.distance_voxels < 1e-9
            assert found.in_order == (permutation == (0, 1, 2) and not any(flips))
            np.testing.assert_array_equal(
                reorient(reorient(values, permutation, flips), found.permutation, found.flips), values
            )


@pytest.mark.parametrize(
    ("other", "same", "near"),
    [
        (grid((3, 4, 5)), True, True),
        (grid((3, 4, 5), origin=(0.009, 0, 0)), True, True),
        (grid((3, 4, 5), origin=(0.09, 0, 0)), False, True),
        (grid((3, 4, 5), origin=(0.11, 0, 0)), False, False),
        (grid((3, 4, 5), (1.0005, 1, 1)), True, True),
        (grid((3, 4, 5), (1.04, 1, 1)), False, True),  # the farthest corner 2 * 0.04 = 0.08 away
        (grid((3, 4, 5), (1.06, 1, 1)), False, False),  # 0.12
        (grid((3, 4, 5), (2, 1, 1)), False, False),
        (grid((3, 4, 5), axes=turned(0, 0.01)), False, True),  # sqrt(4² + 3²) * 0.01 = 0.05
        (grid((3, 4, 5), axes=turned(0, 0.05)), False, False),
    ],
)
def test_how_far_apart_is_one_place(other, same, near):
    found = fit(other, grid((3, 4, 5)))
    assert found is not None
    assert (found.same, found.near) == (same, near)


def test_a_rounded_spacing_is_equal_over_any_number_of_voxels():
    found = fit(grid((1, 1, 512), (1, 1, 0.9375)), grid((1, 1, 512), (1, 1, 0.938)))
    assert found is not None
    assert found.same  # its corners would lie 0.27 voxels apart


def test_extents_that_do_not_agree_do_not_fit():
    assert fit(grid((3, 4, 6)), grid((3, 4, 5))) is None
    assert fit(grid((3, 5, 4)), grid((3, 4, 5))) is None  # the numbers do, along other axes
    assert fit(grid((1, 4, 5), flat=True), grid((1, 4, 5))) is None
