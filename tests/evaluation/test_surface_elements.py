"""Areas of surface elements: boxes, planes and spheres in closed form, surface-distance as oracle."""

import itertools
import math

import numpy as np
import pytest

from autoseg.evaluation.surface_elements import element_areas, neighbourhoods, surface_elements

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 1.0, 0.7), (2.5, 0.8, 1.1)]


def code(mask: list) -> int:
    """The code of one neighbourhood: that of the corner in its middle."""
    array = np.array(mask, dtype=bool)
    return int(neighbourhoods(array)[(1,) * array.ndim])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_neighbourhoods_with_an_area_by_hand(spacing):
    """A corner cut off; an edge cut off; half; two opposite corners; and what is left of each."""
    z, y, x = spacing
    areas = element_areas(spacing)
    triangle = np.linalg.norm(np.cross([-z / 2, y / 2, 0], [-z / 2, 0, x / 2])) / 2
    for expected, mask in (
        (0, [[[0, 0], [0, 0]], [[0, 0], [0, 0]]]),
        (triangle, [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]),
        (z * math.hypot(y, x) / 2, [[[1, 0], [0, 0]], [[1, 0], [0, 0]]]),
        (x * math.hypot(z, y) / 2, [[[1, 1], [0, 0]], [[0, 0], [0, 0]]]),
        (y * x, [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]),
        (z * x, [[[1, 1], [0, 0]], [[1, 1], [0, 0]]]),
        (2 * triangle, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]),
        (2 * triangle, [[[1, 0], [0, 1]], [[0, 0], [0, 0]]]),  # they touch along an edge, and stay apart
        (4 * triangle, [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]),
    ):
        assert areas[code(mask)] == pytest.approx(expected)
        assert areas[code(np.logical_not(mask))] == pytest.approx(expected)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_are_those_of_the_complement_and_of_every_mirror_image(spacing):
    areas = element_areas(spacing)
    for values in itertools.product((False, True), repeat=8):
        cube = np.array(values).reshape(2, 2, 2)
        assert areas[code(~cube)] == pytest.approx(areas[code(cube)])
        for axis in range(3):
            assert areas[code(np.flip(cube, axis))] == pytest.approx(areas[code(cube)])


# surface-distance 0.1: lookup_tables.create_table_neighbour_code_to_surface_area(spacing): sum and sum of squares, and
# create_table_neighbour_code_to_contour_length.
@pytest.mark.parametrize(
    ("spacing", "total", "squares"),
    [
        ((1.0, 1.0, 1.0), 241.3431397055, 267.0523395972),
        ((5.0, 1.0, 0.7), 829.9578869715, 3254.1269003181),
        ((2.0, 0.5), 17.3693168769, 25.5000000000),
    ],
)
def test_areas_equal_those_of_surface_distance(spacing, total, squares):
    areas = element_areas(spacing)
    assert areas.sum() == pytest.approx(total, rel=1e-9)
    assert np.square(areas).sum() == pytest.approx(squares, rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_surface_of_a_box(spacing):
    """Faces, less half a voxel at every edge; edges cut at an angle; corners cut off."""
    shape, (z, y, x) = (4, 5, 6), spacing
    mask = np.zeros((8, 9, 10), dtype=bool)
    mask[2:6, 1:6, 3:9] = True
    a, b, c = (n - 1 for n in shape)
    faces = 2 * (a * b * z * y + b * c * y * x + a * c * z * x)
    edges = 4 * (a * z * math.hypot(y, x) + b * y * math.hypot(z, x) + c * x * math.hypot(z, y)) / 2
    corners = 8 * np.linalg.norm(np.cross([-z / 2, y / 2, 0], [-z / 2, 0, x / 2])) / 2
    found = surface_elements(mask, spacing)
    assert found.areas.sum() == pytest.approx(faces + edges + corners)
    assert len(found.corners) == 5 * 6 * 7 - 3 * 4 * 5
    at_the_border = surface_elements(mask[2:6, 1:6, 3:9], spacing)  # beyond the image is outside
    np.testing.assert_array_equal(at_the_border.areas, found.areas)


def test_a_sphere_has_a_surface_a_little_larger_than_its_own():
    """Marching cubes through the middles of edges overestimates a round surface, by 8 % here."""
    axis = np.arange(61) - 30
    ball = np.square(axis[:, None, None]) + np.square(axis[:, None]) + np.square(axis) <= 25**2
    area = surface_elements(ball, (1.0, 1.0, 1.0)).areas.sum()
    assert area / (4 * math.pi * 25**2) == pytest.approx(1.08, abs=0.02)


def test_the_contour_of_a_flat_mask():
    """Of a rectangle of 3 x 5 pixels, 2 x 0.5 mm each: sides less half a pixel at each end, and four cut corners."""
    mask = np.zeros((6, 9), dtype=bool)
    mask[1:4, 2:7] = True
    found = surface_elements(mask, (2.0, 0.5))
    assert found.areas.sum() == pytest.approx(2 * (2 * 2.0 + 4 * 0.5) + 4 * math.hypot(1, 0.25))
    assert len(found.corners) == 4 * 6 - 2 * 4
    assert [tuple(map(int, np.unravel_index(found.corners[i], (7, 10)))) for i in (0, -1)] == [(1, 2), (4, 7)]


def test_an_empty_mask_has_no_surface():
    assert len(surface_elements(np.zeros((3, 4, 5), dtype=bool), (1.0, 1.0, 1.0)).corners) == 0
    assert len(surface_elements(np.zeros((0, 0, 0), dtype=bool), (1.0, 1.0, 1.0)).areas) == 0
