"""Relations of two grids, by numbers written by hand; reordering against SimpleITK, which goes by places alone."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import tiny
from autoseg.imaging.alignment import compare_grids
from autoseg.imaging.formats.readers import read_geometry, read_image
from autoseg.imaging.geometry import Geometry

GRID = Geometry(shape=(10, 20, 30), spacing=(2.0, 1.0, 1.0), origin=(5.0, -3.0, 2.0))
REVERSED_X = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))


def kind(grid: Geometry, reference: Geometry = GRID) -> str:
    return compare_grids(grid, reference, "i.nii").kind


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "same"),
        ({"spacing": (2.0, 1.0, 1.0009)}, "same"),  # rounding, whatever it adds up to
        ({"spacing": (2.0, 1.0, 1.002)}, "near"),  # 29 x 0.002 = 0.058 voxel at the far end
        ({"spacing": (2.0, 1.0, 1.004)}, "size"),  # 0.116
        ({"spacing": (4.0, 1.0, 1.0)}, "size"),
        ({"origin": (5.0, -3.009, 2.0)}, "same"),
        ({"origin": (5.0, -3.011, 2.0)}, "near"),
        ({"origin": (5.0, -3.09, 2.0)}, "near"),
        ({"origin": (5.0, -3.11, 2.0)}, "elsewhere"),
        ({"direction": REVERSED_X, "origin": (34.0, -3.0, 2.0)}, "reordered"),
        ({"direction": REVERSED_X, "origin": (34.05, -3.0, 2.0)}, "reordered"),
        ({"direction": REVERSED_X, "origin": (34.2, -3.0, 2.0)}, "elsewhere"),
        ({"direction": REVERSED_X}, "elsewhere"),
        ({"placed": False}, "unplaced"),
        ({"placed": False, "origin": (0.0, 0.0, 0.0), "direction": REVERSED_X}, "unplaced"),
        ({"placed": False, "spacing": (2.0, 1.0, 1.5)}, "size"),
        ({"placed": False, "sized": False, "spacing": (1.0, 1.0, 1.0)}, "unplaced"),
        ({"placed": False, "shape": (10, 30, 20)}, "shape"),
        ({"shape": (10, 20, 31)}, "shape"),
        ({"shape": (20, 10, 30)}, "shape"),
    ],
)
def test_each_relation_has_its_kind(changed, expected):
    match = compare_grids(replace(GRID, **changed), GRID, "i.nii")
    assert match.kind == expected
    assert match.usable == (expected in ("same", "unplaced", "near", "reordered"))
    assert bool(match.differences) == bool(match.remedy) == (expected != "same")
    assert (match.remark() is None) == (expected == "same")


def test_two_files_without_a_place_are_the_same_grid():
    unplaced = replace(GRID, placed=False)
    assert kind(unplaced, replace(unplaced, origin=(9.0, 9.0, 9.0))) == "same"


def test_the_thickness_of_a_single_slice_counts():
    single = replace(GRID, shape=(1, 20, 30))
    assert kind(replace(single, spacing=(5.0, 1.0, 1.0)), single) == "size"
    assert kind(replace(single, spacing=(2.1, 1.0, 1.0)), single) == "near"


def test_flat_images_are_never_turned_out_of_their_plane():
    flat = Geometry(shape=(1, 6, 6), spacing=(1.0, 1.0, 1.0), flat=True)
    turned = replace(flat, direction=(flat.direction[0], flat.direction[2], flat.direction[1]))
    match = compare_grids(turned, flat, "i.nii")
    assert (match.kind, match.permutation, match.flips) == ("reordered", (0, 2, 1), (0, 0, 0))
    assert kind(replace(flat, placed=False, sized=False), flat) == "same"  # a PNG beside it
    assert kind(replace(flat, flat=False), flat) == "same"


def test_what_lies_elsewhere_is_quoted_as_it_stands(tmp_path):
    image = tiny.nifti(tmp_path / "i.nii", tiny.image(1), origin=(10.0, -20.0, 5.0))
    label = tiny.nifti(tmp_path / "l.nii", tiny.label(1), origin=(-10.0, 20.0, 5.0))
    match = compare_grids(read_geometry(label), read_geometry(image), "i.nii")
    assert match.kind == "elsewhere"
    stated = {name: nib.load(tmp_path / name).affine[:3, 3].tolist() for name in ("i.nii", "l.nii")}
    assert stated == {"i.nii": [-10, 20, 5], "l.nii": [10, -20, 5]}  # RAS: what a reader of headers shows
    assert (
        "origin (10, -20, 5) mm (RAS, sform) differs from (-10, 20, 5) mm (RAS, sform) of i.nii" in match.differences[0]
    )
    assert "44.7 mm apart" in match.differences[0]  # 20 and 40 mm
    assert "copy the header" not in match.remedy.split("where only")[0]


def test_lps_written_where_ras_is_read_is_recognised(tmp_path):
    grid = read_geometry(tiny.nifti(tmp_path / "i.nii", tiny.image(1), (3.0, 1.0, 1.0), (10.0, -20.0, 5.0)))
    mixed = replace(grid, origin=(-10.0, 20.0, 5.0), direction=((0, 0, 1), (0, -1, 0), (-1, 0, 0)))
    match = compare_grids(mixed, grid, "i.nii")
    assert match.kind == "elsewhere"
    assert "RAS was written where LPS is read" in match.differences[0]
    assert len(match.differences) == 1
    assert match.remedy.startswith("copy the header of the other file")


def test_another_unit_is_recognised_and_never_to_be_resampled():
    for factor in (1e-3, 10.0):
        z, y, x = GRID.spacing
        other = replace(
            GRID, spacing=(z * factor, y * factor, x * factor), origin=tuple(o * factor for o in GRID.origin)
        )
        match = compare_grids(other, GRID, "i.nii")
        assert match.kind == "size"
        assert f"the origin by the same factor of {1 / factor:.4g}: another unit" in match.differences[0]
        assert "do not resample" in match.remedy


def test_what_is_near_is_told_in_the_numbers_that_differ():
    spacing = compare_grids(replace(GRID, spacing=(2.0, 1.0, 1.002)), GRID, "i.nii").differences[0]
    assert "spacing (2, 1, 1.002) differs from (2, 1, 1) mm of i.nii" in spacing
    origin = compare_grids(replace(GRID, origin=(5.0, -3.05, 2.0)), GRID, "i.nii").differences[0]
    assert "origin (x, y, z) (5, -3.05, 2) differs from (5, -3, 2) mm (LPS) of i.nii" in origin


def test_all_48_orders_agree_with_simpleitk(tmp_path):
    """Each file is made by SimpleITK's own permuting and flipping, which keep voxels in place."""
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    reference = sitk.GetImageFromArray(array)
    a = 0.3
    reference.SetDirection((np.cos(a), -np.sin(a), 0, np.sin(a), np.cos(a), 0, 0, 0, 1))  # oblique
    reference.SetSpacing((0.7, 1.5, 3.0))
    reference.SetOrigin((-31.0, 12.5, 100.25))
    sitk.WriteImage(reference, str(tmp_path / "reference.nii.gz"))
    grid = read_geometry(tmp_path / "reference.nii.gz")
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            moved = sitk.Flip(sitk.PermuteAxes(reference, order), flips)
            sitk.WriteImage(moved, str(tmp_path / "moved.nrrd"))
            volume = read_image(tmp_path / "moved.nrrd")
            match = compare_grids(volume.geometry, grid, "reference.nii.gz")
            assert match.kind == ("same" if order == (0, 1, 2) and not any(flips) else "reordered")
            assert np.array_equal(match.apply(volume.array)[0], array)
            assert match.distance_voxels < 1e-3
