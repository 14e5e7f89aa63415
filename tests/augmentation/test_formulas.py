"""The mathematics of augmentation, by hand."""

import numpy as np
import pytest

from autoseg.augmentation.formulas import colour_matrix, spline_basis

RED, GREEN, BLUE = np.eye(3)


def test_a_spline_in_the_middle_of_a_control_point_and_between_two():
    """Five voxels, a control point every second one: the middle voxel lies on one, its neighbours between two."""
    basis = spline_basis(5, 2.0)
    on, between = np.array([1, 4, 1]) / 6, np.array([1, 23, 23, 1]) / 48
    # control points lie at -2, -1, 0, 1, 2, 3 distances from the centre
    np.testing.assert_allclose(basis[2], [0, *on / np.linalg.norm(on), 0, 0], atol=1e-12)
    np.testing.assert_allclose(basis[3], [0, *between / np.linalg.norm(between), 0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), 1)


@pytest.mark.parametrize(("length", "distance"), [(7, 1.75), (8, 2.0), (1, 0.25), (40, 10.0)])
def test_every_voxel_is_moved_alike_and_the_splines_are_symmetric(length, distance):
    basis = spline_basis(length, distance)
    np.testing.assert_allclose((basis**2).sum(axis=1), 1)
    forward, back = ([row[row > 0] for row in rows] for rows in (basis, basis[::-1]))
    for row, other in zip(forward, back, strict=True):
        np.testing.assert_allclose(row, other[::-1], atol=1e-12)


def test_colours_by_hand():
    np.testing.assert_allclose(colour_matrix(0.0, 1.0), np.eye(3), atol=1e-12)
    third = colour_matrix(2 * np.pi / 3, 1.0)  # of the circle: red becomes green, green blue
    np.testing.assert_allclose(
        third @ np.stack([RED, GREEN, BLUE], axis=1), np.stack([GREEN, BLUE, RED], 1), atol=1e-12
    )
    np.testing.assert_allclose(colour_matrix(1.0, 0.0) @ RED, [1 / 3] * 3)
    np.testing.assert_allclose(colour_matrix(0.0, 2.0) @ RED, [5 / 3, -1 / 3, -1 / 3], atol=1e-12)
    np.testing.assert_allclose(colour_matrix(1.3, 0.7) @ [0.4, 0.4, 0.4], [0.4] * 3)
