"""Slices in space to a grid, by hand: even, tilted, changing, missing."""

import numpy as np
import pytest

from autoseg.errors import DataError
from autoseg.imaging.formats.dicom_grid import grid_of, stack_of

AXES = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # along a column, along a row


def stack(positions, extent=(4, 5), spacing=(1.0, 1.0)):
    places = [np.array(p, dtype=float) for p in positions]
    return stack_of(places, AXES, extent, spacing, 2.0, [f"s{i}" for i in range(len(places))])


def axial(heights):
    return [(0.0, 0.0, height) for height in heights]


def test_even_slices_are_sorted_by_position_and_kept_as_they_are():
    found, order = stack(axial([4, 0, 2]))
    assert order.tolist() == [1, 2, 0]
    grid = grid_of(found, "f")
    assert not grid.resampled
    assert grid.geometry.shape == (3, 4, 5)
    assert grid.geometry.spacing == (2.0, 1.0, 1.0)
    assert grid.geometry.remarks == ()


def test_rounding_in_positions_is_not_a_changing_distance():
    grid = grid_of(stack(axial([0, 0.6667, 1.3333, 2.0, 2.6667]))[0], "f")
    assert not grid.resampled
    assert grid.geometry.spacing[0] == pytest.approx(0.666675)


def test_one_slice_is_as_thick_as_it_says():
    assert grid_of(stack(axial([7]))[0], "f").geometry.spacing[0] == 2.0


@pytest.mark.parametrize("numbers", [None, [1, 2, 3, 5, 6, 7]])
def test_a_missing_slice_is_named_with_its_neighbours(numbers):
    with pytest.raises(DataError, match=r"1 slice missing of 7.* 2 mm, but 4 mm between s2 and s3"):
        grid_of(stack(axial([0, 2, 4, 8, 10, 12]))[0], "f", numbers)


def test_numbers_that_jump_over_several_wide_gaps_show_lost_slices():
    with pytest.raises(DataError, match="3 slices missing of 9"):
        grid_of(stack(axial([0, 2, 4, 8, 12, 16]))[0], "f", [1, 2, 3, 5, 7, 9])


def test_a_single_smaller_distance_where_two_blocks_meet_does_not_decide():
    """4, 4, 4, 1, 7, 7, 7 mm, as of a head scan in two blocks."""
    grid = grid_of(stack(axial([0, 4, 8, 12, 13, 20, 27, 34]))[0], "f", range(8))
    assert grid.geometry.spacing[0] == 4.0
    assert grid.geometry.shape[0] == 9


def test_a_distance_that_changes_is_interpolated_to_the_smallest():
    """Distances 2, 2, 3, 3: slices at 0 2 4 7 10; a ramp along z stays a ramp."""
    found, _ = stack(axial([0, 2, 4, 7, 10]))
    grid = grid_of(found, "f", [1, 2, 3, 4, 5])
    assert grid.resampled
    assert grid.geometry.shape == (6, 4, 5)
    assert grid.geometry.spacing[0] == 2.0
    (remark,) = grid.geometry.remarks
    assert "2 of 2 mm, then 2 of 3 mm" in remark.what
    slices = np.broadcast_to(np.array([0, 2, 4, 7, 10], np.float32)[:, None, None], (5, 4, 5))
    assert np.allclose(grid.from_slices(slices)[:, 0, 0], [0, 2, 4, 6, 8, 10], atol=1e-5)


def test_distances_of_multiples_without_a_gap_in_the_numbers_were_scanned_so():
    grid = grid_of(stack(axial([0, 2, 4, 8, 12]))[0], "f", [1, 2, 3, 4, 5])
    assert grid.resampled
    assert grid.geometry.shape[0] == 7


def test_too_large_a_change_is_refused():
    with pytest.raises(DataError, match="more than a factor of 3"):
        grid_of(stack(axial([0, 1, 2, 5.5, 9]))[0], "f")


def test_a_tilted_gantry_is_sheared_back():
    """Slices 2 mm apart, each 1 mm further along y: a point at fixed (x, y, z) in the world moves back over rows."""
    n, rows = 4, 6
    found, _ = stack([(0.0, 1.0 * i, 2.0 * i) for i in range(n)], extent=(rows, 3))
    grid = grid_of(found, "f")
    assert grid.geometry.shape == (n, rows + 3, 3)
    assert grid.geometry.origin == (0.0, 0.0, 0.0)
    assert "26.6 degrees" in grid.geometry.remarks[0].what
    slices = np.zeros((n, rows, 3), np.float32)
    for i in range(n):
        slices[i] = (np.arange(rows) + i)[:, None]  # the value is the world's y
    whole = grid.from_slices(slices)
    for i in range(n):
        assert np.array_equal(whole[i, i : i + rows, 0], np.arange(i, i + rows))
        assert (np.delete(whole[i, :, 0], np.arange(i, i + rows)) == 0).all()  # the minimum, beyond the slice


def test_a_tilt_of_part_of_a_pixel_is_interpolated():
    found, _ = stack([(0.0, 0.25 * i, 2.0 * i) for i in range(3)], extent=(6, 3))
    grid = grid_of(found, "f")
    slices = np.zeros((3, 6, 3), np.float32)
    for i in range(3):
        slices[i] = (10 + np.arange(6) + 0.25 * i)[:, None]
    whole = grid.from_slices(slices)
    assert np.allclose(whole[1, 1:6, 0], 10 + np.arange(1, 6))
    assert np.allclose(whole[2, 1:6, 0], 10 + np.arange(1, 6))


def test_labels_go_to_the_slices_and_back_without_loss_where_shifts_are_whole():
    found, _ = stack([(0.0, 1.0 * i, 2.0 * i) for i in range(4)], extent=(6, 3))
    grid = grid_of(found, "f")
    labels = np.random.default_rng(0).integers(0, 3, (4, 6, 3)).astype(np.int32)
    assert np.array_equal(grid.labels_to_slices(grid.labels_from_slices(labels)), labels)


def test_slices_off_the_line_are_named():
    with pytest.raises(DataError, match="s2 is up to"):
        grid_of(stack([(0, 0, 0), (0, 0, 2), (5, 0, 4), (0, 0, 6)])[0], "f")
