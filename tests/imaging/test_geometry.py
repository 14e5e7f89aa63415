"""Orientation and place: cases worked out by hand, round trips, nibabel and SimpleITK as oracles."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from autoseg.errors import DataError
from autoseg.imaging.geometry import (
    Geometry,
    Volume,
    axes3,
    corner_distance_voxels,
    geometry_from_steps,
    orientation_code,
    orientation_of,
    reorient,
    to_canonical,
    undo_reorient,
)

CANONICAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
ALL_48 = [
    (permutation, flips)
    for permutation in itertools.permutations(range(3))
    for flips in itertools.product((0, 1), repeat=3)
]


def test_a_shape_has_three_axes():
    """Plain numbers, which JSON takes, whatever numpy made them."""
    made = axes3(np.array([3, 4, 5], np.int64))
    assert made == (3, 4, 5)
    assert {type(length) for length in made} == {int}
    with pytest.raises(ValueError, match="unpack"):
        axes3((1, 3, 4, 5))


def rotation(seed: int, largest_degrees: float = 180.0) -> np.ndarray:
    """Random (3, 3) rotation about a random axis by at most the given angle."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(0, largest_degrees))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def geometry(direction, shape=(3, 4, 5), spacing=(2.0, 0.5, 1.25), origin=(-10.0, 20.0, 7.5), flat=False) -> Geometry:
    rows = tuple(tuple(float(value) for value in row) for row in direction)
    return Geometry(shape=shape, spacing=spacing, origin=origin, direction=rows, flat=flat)


def signed(permutation, flips) -> np.ndarray:
    """Directions of a stored array that must be permuted and flipped so to become canonical."""
    rows = np.zeros((3, 3))
    for i, (axis, flip) in enumerate(zip(permutation, flips, strict=True)):
        rows[axis] = np.array(CANONICAL[i]) * (-1 if flip else 1)
    return rows


def places(volume: Volume) -> dict[float, tuple]:
    """World position of every voxel by its value, spelled out as the definition of Geometry says."""
    grid, found = volume.geometry, {}
    for (z, y, x), value in np.ndenumerate(volume.array):
        d = np.array(grid.direction)
        at = (
            np.array(grid.origin) + z * grid.spacing[0] * d[0] + y * grid.spacing[1] * d[1] + x * grid.spacing[2] * d[2]
        )
        found[float(value)] = tuple(at)
    return found


def numbered(grid: Geometry) -> Volume:
    return Volume(np.arange(np.prod(grid.shape)).reshape(grid.shape), grid)


# ---- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("permutation", "flips"), ALL_48)
def test_each_of_the_48_axis_aligned_orientations_is_recognised(permutation, flips):
    assert orientation_of(geometry(signed(permutation, flips))) == (permutation, flips)


@given(st.integers(0, 10**6), st.sampled_from(ALL_48))
def test_up_to_30_degrees_of_obliqueness_do_not_change_the_orientation(seed, orientation):
    tilted = signed(*orientation) @ rotation(seed, 30)
    assert orientation_of(geometry(tilted)) == orientation


@pytest.mark.parametrize("degrees", [44.9, 45.0, 45.1, 135.0, 225.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_at_45_degrees_two_axes_never_get_the_same_place(axis, degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    i, j = (k for k in range(3) if k != axis)
    turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    permutation, _ = orientation_of(geometry(np.array(CANONICAL) @ turn))
    assert sorted(permutation) == [0, 1, 2]


def test_single_precision_noise_does_not_decide_at_45_degrees():
    turn = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    exact = np.array(CANONICAL) @ turn
    assert {
        orientation_of(geometry(exact + noise * np.random.default_rng(seed).normal(size=(3, 3))))[0]
        for seed in range(50)
        for noise in (0, 1e-8)
    } == {(0, 1, 2)}


@given(st.integers(0, 10**6), st.booleans())
def test_every_axis_ends_up_growing_towards_its_own_side(seed, mirrored):
    direction = rotation(seed) * (-1 if mirrored else 1)
    assert sorted(orientation_of(geometry(direction))[0]) == [0, 1, 2]
    turned = np.array(to_canonical(numbered(geometry(direction))).geometry.direction)
    diagonal = np.diag(turned[:, ::-1])
    assert (diagonal > 0).all()
    # no other permutation is nearer: compare with all six, by brute force
    cosines = np.abs(direction[:, ::-1])
    best = max(sum(cosines[p[i], i] for i in range(3)) for p in itertools.permutations(range(3)))
    assert diagonal.sum() == pytest.approx(best, abs=2e-6)


@given(st.integers(0, 10**6))
def test_what_is_canonical_stays_as_it_is(seed):
    once = to_canonical(numbered(geometry(rotation(seed))))
    assert orientation_of(once.geometry) == ((0, 1, 2), (0, 0, 0))
    again = to_canonical(once)
    assert again.geometry == once.geometry
    assert np.array_equal(again.array, once.array)


def test_flat_images_are_never_turned():
    upside_down = geometry(-np.array(CANONICAL), shape=(1, 4, 5), flat=True)
    assert orientation_of(upside_down) == ((0, 1, 2), (0, 0, 0))
    assert orientation_of(geometry(-np.array(CANONICAL), shape=(1, 4, 5))) == ((0, 1, 2), (1, 1, 1))


# ---- reorient -------------------------------------------------------------------------------------------------------


def test_reorient_by_hand():
    array = np.arange(6).reshape(1, 2, 3)  # Y rows 0 1 2 / 3 4 5
    assert reorient(array, (2, 0, 1), (0, 0, 1)).tolist() == [[[3, 0]], [[4, 1]], [[5, 2]]]
    assert reorient(array, (0, 1, 2), (0, 1, 0)).tolist() == [[[3, 4, 5], [0, 1, 2]]]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_undo_reorient_is_the_inverse_in_both_directions(lead, subtests):
    array = np.arange(np.prod(lead, dtype=int) * 24).reshape(*lead, 2, 3, 4)
    for permutation, flips in ALL_48:
        with subtests.test(permutation=permutation, flips=flips):
            assert np.array_equal(undo_reorient(reorient(array, permutation, flips), permutation, flips), array)
            assert np.array_equal(reorient(undo_reorient(array, permutation, flips), permutation, flips), array)
            assert reorient(array, permutation, flips).shape == (*lead, *((2, 3, 4)[axis] for axis in permutation))


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(ALL_48),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.floats(0.1, 5)] * 3),
    st.booleans(),
)
def test_every_voxel_keeps_its_place_in_the_world(seed, orientation, shape, spacing, oblique):
    direction = rotation(seed) if oblique else signed(*orientation)
    before = numbered(geometry(direction, shape, spacing))
    after = to_canonical(before)
    assert after.array.shape == after.geometry.shape
    here, there = places(before), places(after)
    assert here.keys() == there.keys()
    np.testing.assert_allclose([here[v] for v in here], [there[v] for v in here], atol=1e-9)


def test_to_canonical_leaves_channels_alone():
    grid = geometry(signed((2, 1, 0), (1, 0, 1)))
    image = np.random.default_rng(0).normal(size=(2, *grid.shape)).astype(np.float32)
    turned = to_canonical(Volume(image, grid))
    for channel in range(2):
        assert np.array_equal(turned.array[channel], to_canonical(Volume(image[channel], grid)).array)


# ---- oracles --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALL_48))
def test_agrees_with_nibabel_as_closest_canonical(seed, orientation):
    before = numbered(geometry(signed(*orientation) @ rotation(seed, 30)))
    steps = np.array(before.geometry.direction) * np.array(before.geometry.spacing)[:, None]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps[::-1].T, before.geometry.origin
    lps_to_ras = np.diag([-1.0, -1, 1, 1])
    image = nib.Nifti1Image(before.array.T.astype(np.int16), lps_to_ras @ affine)
    assert orientation_code(before.geometry) == "".join(aff2axcodes(image.affine))
    ras = nib.as_closest_canonical(image)

    after = to_canonical(before)
    assert np.array_equal(after.array.T, np.asarray(ras.dataobj)[::-1, ::-1])  # R to L, A to P
    first = lps_to_ras @ ras.affine @ [ras.shape[0] - 1, ras.shape[1] - 1, 0, 1]
    np.testing.assert_allclose(after.geometry.origin, first[:3], atol=1e-9)
    columns = (lps_to_ras @ ras.affine)[:3, :3] * [-1, -1, 1]
    own = np.array(after.geometry.direction) * np.array(after.geometry.spacing)[:, None]
    np.testing.assert_allclose(own[::-1].T, columns, atol=1e-9)


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALL_48))
def test_agrees_with_itk_dicom_orient(seed, orientation):
    before = numbered(geometry(signed(*orientation) @ rotation(seed, 30)))
    image = sitk.GetImageFromArray(before.array.astype(np.int16))
    image.SetSpacing(before.geometry.spacing[::-1])
    image.SetOrigin(before.geometry.origin)
    image.SetDirection(np.array(before.geometry.direction)[::-1].T.ravel().tolist())
    assert sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()) == orientation_code(
        before.geometry
    )
    oriented = sitk.DICOMOrient(image, "LPS")

    after = to_canonical(before)
    assert np.array_equal(after.array, sitk.GetArrayFromImage(oriented))
    assert after.geometry.spacing[::-1] == oriented.GetSpacing()
    np.testing.assert_allclose(after.geometry.origin, oriented.GetOrigin(), atol=1e-9)
    direction = np.reshape(oriented.GetDirection(), (3, 3))
    np.testing.assert_allclose(np.array(after.geometry.direction)[::-1].T, direction, atol=1e-12)


def test_orientation_codes_by_hand():
    assert orientation_code(geometry(CANONICAL)) == "LPS"
    assert orientation_code(geometry([(0, 0, 1), (0, -1, 0), (-1, 0, 0)])) == "RAS"
    # sagittal: x runs to the back, y down, slices from left to right
    assert orientation_code(geometry([(-1, 0, 0), (0, 0, -1), (0, 1, 0)])) == "PIR"


# ---- corner distance ------------------------------------------------------------------------------------------------


def test_corner_distance_of_shifts_by_hand():
    a = geometry(CANONICAL, spacing=(2.0, 0.5, 1.25))
    assert corner_distance_voxels(a, a) == 0
    b = geometry(CANONICAL, spacing=(2.0, 0.5, 1.25), origin=(-10.0 + 3.0, 20.0 - 4.0, 7.5))
    assert corner_distance_voxels(a, b) == pytest.approx(5.0 / 0.5)  # 3-4-5 triangle over the smallest spacing


def test_corner_distance_of_a_rotation_is_its_chord():
    a = geometry(CANONICAL, shape=(1, 1, 101), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    angle = 0.01
    turned = [(0, 0, 1), (-np.sin(angle), np.cos(angle), 0), (np.cos(angle), np.sin(angle), 0)]
    b = geometry(turned, shape=(1, 1, 101), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    assert corner_distance_voxels(a, b) == pytest.approx(2 * 100 * np.sin(angle / 2))


def test_corner_distance_of_another_spacing_grows_with_the_extent():
    a = geometry(CANONICAL, shape=(11, 1, 1), spacing=(1.0, 1.0, 1.0))
    b = geometry(CANONICAL, shape=(11, 1, 1), spacing=(1.1, 1.0, 1.0))
    assert corner_distance_voxels(a, b) == pytest.approx(1.0)


def test_corner_distance_sees_a_flip():
    a = geometry(CANONICAL, shape=(3, 4, 5), spacing=(1.0, 1.0, 1.0))
    b = geometry([CANONICAL[0], CANONICAL[1], (-1, 0, 0)], shape=(3, 4, 5), spacing=(1.0, 1.0, 1.0))
    assert corner_distance_voxels(a, b) == pytest.approx(8.0)


def test_corner_distance_of_other_shapes_is_infinite():
    assert corner_distance_voxels(geometry(CANONICAL, (3, 4, 5)), geometry(CANONICAL, (3, 4, 6))) == float("inf")
    flat = geometry(CANONICAL, (1, 4, 5), flat=True)
    assert corner_distance_voxels(geometry(CANONICAL, (1, 4, 5)), flat) == float("inf")


def test_corner_distance_of_flat_images_ignores_the_thickness():
    a = geometry(CANONICAL, (1, 4, 5), (0.001, 2.0, 2.0), flat=True)
    b = geometry(CANONICAL, (1, 4, 5), (0.001, 2.0, 2.0), origin=(-9.0, 20.0, 7.5), flat=True)
    assert corner_distance_voxels(a, b) == pytest.approx(0.5)


# ---- from header steps ----------------------------------------------------------------------------------------------


def from_steps(steps, shape=(3, 4, 5), flat=False) -> Geometry:
    return geometry_from_steps(shape, np.array(steps, dtype=float), np.zeros(3), flat=flat, file="scan.nii")


def test_exact_axes_stay_exact():
    grid = from_steps([(0, 0, -2.5), (0, 0.3, 0), (-0.7, 0, 0)])
    assert grid.spacing == (2.5, 0.3, 0.7)
    assert grid.direction == ((0, 0, -1), (0, 1, 0), (-1, 0, 0))


@pytest.mark.parametrize("cosine", [1e-6, 1e-4, 0.99e-3])
def test_a_tiny_shear_is_split_evenly_between_the_axes(cosine):
    # two unit axes at 90 - a degrees: the nearest perpendicular pair turns each of them by a / 2
    lean = np.arcsin(cosine)
    grid = from_steps([(0, 0, 1), (np.sin(lean), np.cos(lean), 0), (1, 0, 0)])
    half = lean / 2
    np.testing.assert_allclose(grid.direction[1], (np.sin(half), np.cos(half), 0), atol=1e-12)
    np.testing.assert_allclose(grid.direction[2], (np.cos(half), -np.sin(half), 0), atol=1e-12)
    rows = np.array(grid.direction)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-12)
    assert grid.spacing == pytest.approx((1, 1, 1), abs=1e-12)


@pytest.mark.parametrize("cosine", [1.01e-3, 0.01, 0.3, -0.01])
def test_a_real_shear_is_refused(cosine):
    with pytest.raises(DataError, match=r"scan\.nii.*sheared"):
        from_steps([(0, 0, 1), (cosine, np.sqrt(1 - cosine**2), 0), (1, 0, 0)])


def test_a_shear_between_any_two_axes_is_seen():
    for i, j in itertools.combinations(range(3), 2):
        steps = np.array(CANONICAL)
        steps[i] = steps[i] + 0.01 * steps[j]
        with pytest.raises(DataError, match="sheared"):
            from_steps(steps)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_steps_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="finite"):
        from_steps([(0, 0, 1), (0, bad, 0), (1, 0, 0)])
    with pytest.raises(DataError, match="finite"):
        geometry_from_steps((3, 4, 5), np.array(CANONICAL), np.array([0, bad, 0]), flat=False, file="scan.nii")


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e200])
def test_voxels_without_size_are_refused(size):
    with pytest.raises(DataError, match="size"):
        from_steps([(0, 0, 1), (0, size, 0), (1, 0, 0)])


def test_a_single_slice_without_thickness_gets_one_millimetre_along_its_normal():
    grid = from_steps([(0, 0, 0), (0, 3, 0), (2, 0, 0)], shape=(1, 4, 5))
    assert grid.spacing == (1, 3, 2)
    assert grid.direction == CANONICAL
    assert not grid.flat


def test_an_empty_axis_is_refused():
    with pytest.raises(DataError, match="empty"):
        from_steps(CANONICAL, shape=(3, 0, 5))


def test_flat_spacing_across_the_plane_is_one():
    grid = from_steps([(0, 0, 9), (0, 3, 0), (2, 0, 0)], shape=(1, 4, 5), flat=True)
    assert grid.flat
    assert grid.spacing == (1, 3, 2)
