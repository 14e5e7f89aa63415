"""Headers that say three times where voxels lie, and contradict themselves; the values are those written by hand."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import files
import hostile
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_labels, write_labels
from autoseg.imaging.geometry import orientation_code

# files.AFFINE: voxels of 2 x 3 x 4 mm (x, y, z) growing right, front, up; origin (-7, 11, 13) in RAS


def header(path, **fields):
    """A copy of a file with header fields changed through nibabel, unchecked."""
    image = nib.load(path)
    fresh = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    for name, value in fields.items():
        fresh.header[name] = value
    target = path.with_name("changed.nii")
    target.write_bytes(fresh.to_bytes())
    return target


def kinds(geometry):
    return [remark.kind for remark in geometry.remarks]


@pytest.fixture
def sound(tmp_path):
    return files.nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (1, 4), (2, 3)])
def test_a_header_that_agrees_with_itself_has_no_remark(tmp_path, codes):
    for matrix in (np.eye(3), files.tilted(30), np.diag([-1.0, 1, 1])):
        path = files.nifti(tmp_path / "a.nii", affine=files.affine_of(matrix), qform=codes[0], sform=codes[1])
        grid = read_geometry(path)
        assert kinds(grid) == []
        assert (grid.placed, grid.sized) == (True, True)


def test_two_voxel_sizes_are_named_and_the_sform_is_used(sound):
    path = header(sound, srow_z=(0, 0, 5.5, 13))
    grid = read_geometry(path)
    assert grid.spacing == (5.5, 3.0, 2.0)
    (remark,) = grid.remarks
    assert remark.kind == "sform and qform"
    assert (
        "2 x 3 x 5.5 mm (x, y, z) by the sform, 2 x 3 x 4 mm (x, y, z) by the qform; the sform is used" in remark.what
    )
    path = header(sound, srow_z=(0, 0, 5.5, 13), qform_code=0)
    (remark,) = read_geometry(path).remarks
    assert remark.kind == "sform and pixdim"
    assert "2 x 3 x 5.5 mm (x, y, z) by the sform, 2 x 3 x 4 (x, y, z) by pixdim; the sform is used" in remark.what


def test_rounding_is_no_contradiction(sound):
    assert kinds(read_geometry(header(sound, srow_z=(0, 0, 4.003, 13)))) == []
    assert kinds(read_geometry(header(sound, srow_z=(0, 0, 4.006, 13)))) == ["sform and qform"]


def test_a_sheared_sform_gives_way_to_a_sound_qform(sound):
    path = header(sound, srow_x=(2, 0.9, 0, -7))
    grid = read_geometry(path)
    assert (grid.spacing, grid.origin) == ((4.0, 3.0, 2.0), (7.0, -11.0, 13.0))
    assert grid.spacing[::-1] == pytest.approx(sitk.ReadImage(str(path)).GetSpacing())
    (remark,) = grid.remarks
    assert remark.kind == "unsound sform"
    assert "sheared" in remark.what
    assert "the qform is, and is used: 2 x 3 x 4 mm" in remark.what
    with pytest.raises(DataError, match=r"changed\.nii: its header defines no valid grid .*sheared"):
        read_geometry(header(path, qform_code=0))


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0), (0, 3, 0, 0), (2, 0, 0, np.inf)])
def test_a_singular_sform_gives_way_to_a_sound_qform(sound, row):
    grid = read_geometry(header(sound, srow_x=row))
    assert grid.spacing == (4.0, 3.0, 2.0)
    assert kinds(grid) == ["unsound sform"]


def test_forms_that_mirror_each_other_are_refused(sound):
    for fields in ({"srow_x": (-2, 0, 0, 7)}, {"srow_z": (0, 0, -4, 13)}):
        with pytest.raises(
            DataError, match=r"mirror each other: by the sform the axes run (LAS|RAI), by the qform RAS"
        ):
            read_geometry(header(sound, **fields))
    assert kinds(read_geometry(header(sound, srow_x=(-2, 0, 0, 7), qform_code=0))) == []
    qfac = hostile.patched(sound, qfac=(hostile.PIXDIM, "<f", -1.0))
    with pytest.raises(DataError, match="mirror each other"):
        read_geometry(qfac)


def test_forms_turned_against_each_other_are_named(sound):
    half_turn = {"srow_x": (-2, 0, 0, 7), "srow_y": (0, -3, 0, 0)}
    (remark,) = read_geometry(header(sound, **half_turn)).remarks
    assert remark.kind == "sform and qform turned"
    assert "LPS by the sform, RAS by the qform; the sform is used" in remark.what


def test_a_place_written_twice_is_compared_where_the_codes_are_equal(sound):
    moved = {"srow_x": (2, 0, 0, -3)}  # 4 mm, 2 voxels of the smallest size
    (remark,) = read_geometry(header(sound, **moved)).remarks
    assert remark.kind == "sform and qform apart"
    assert "up to 2 voxels apart" in remark.what
    assert kinds(read_geometry(header(sound, sform_code=4, **moved))) == []  # into the space of a template
    assert kinds(read_geometry(header(sound, srow_x=(2, 0, 0, -6.9)))) == []  # 0.05 voxel


@pytest.mark.parametrize("size", [0.0, -3.0, np.nan, np.inf])
def test_voxel_sizes_without_meaning_beside_a_sform(sound, size):
    path = hostile.patched(sound, pixdim=(hostile.PIXDIM + 8, "<f", size))
    grid = read_geometry(path)
    assert grid.spacing == (4.0, 3.0, 2.0)
    assert kinds(grid) == ["unsound qform"]
    assert f"2 x {size:.6g} x 4" in grid.remarks[0].what
    path = hostile.patched(path, code=(hostile.QFORM_CODE, "<h", 0))
    assert kinds(read_geometry(path)) == ["sform and pixdim"]
    with pytest.raises(DataError, match="neither form code is set"):
        read_geometry(hostile.patched(path, code=(hostile.SFORM_CODE, "<h", 0)))


def test_a_quaternion_longer_than_one(sound):
    long = header(sound, quatern_b=0.9, quatern_c=0.9)
    assert kinds(read_geometry(long)) == ["unsound qform"]
    assert "(b, c, d) = (0.9, 0.9, 0)" in read_geometry(long).remarks[0].what
    with pytest.raises(DataError, match=r"no valid grid \(the qform: its quaternion"):
        read_geometry(header(long, sform_code=0))
    rounded = header(sound, sform_code=0, quatern_b=1.0005)  # a half turn about x: y to the back, z down
    assert orientation_code(read_geometry(rounded)) == "RPI"
    assert read_geometry(rounded).spacing == pytest.approx((4, 3, 2))


def test_qfac_of_zero_counts_as_one(sound):
    path = hostile.patched(sound, qfac=(hostile.PIXDIM, "<f", 0.0), code=(hostile.SFORM_CODE, "<h", 0))
    assert orientation_code(read_geometry(path)) == "RAS"
    image = sitk.ReadImage(str(path))
    assert read_geometry(path).origin == pytest.approx(image.GetOrigin())


def test_without_codes_there_is_no_place(tmp_path):
    path = files.nifti(tmp_path / "a.nii", qform=0, sform=0)
    grid = read_geometry(path)
    assert (grid.placed, grid.sized, grid.spacing) == (False, True, (4.0, 3.0, 2.0))
    assert kinds(grid) == ["no place"]
    assert grid.stated_origin == ""
    affine = nib.load(path).affine  # nibabel's convention for such files, in RAS
    assert grid.origin == pytest.approx((-affine[0, 3], -affine[1, 3], affine[2, 3]))
    assert orientation_code(grid) == "".join(nib.aff2axcodes(affine))


@pytest.mark.parametrize(("code", "unit"), [(1, "m"), (2, "mm"), (3, "um"), (0, "mm")])
def test_the_origin_is_quoted_as_it_stands_in_the_header(sound, code, unit):
    path = hostile.patched(sound, units=(hostile.UNITS, "<B", code))
    assert read_geometry(path).stated_origin == f"(-7, 11, 13) {unit} (RAS, sform)"
    qform = hostile.patched(path, code=(hostile.SFORM_CODE, "<h", 0))
    assert read_geometry(qform).stated_origin == f"(-7, 11, 13) {unit} (RAS, qform)"


@pytest.mark.parametrize("fields", [{"qform_code": 0, "sform_code": 0}, {"srow_x": (2, 0.9, 0, -7)}, {"xyzt_units": 3}])
def test_a_label_map_is_written_under_the_same_header(sound, fields):
    like = header(sound, **fields)
    labels = files.voxels(high=3, dtype=np.uint8)
    write_labels(like.with_name("out.nii.gz"), labels, like)
    out = like.with_name("out.nii.gz")
    assert np.array_equal(read_labels(out).array, labels)
    assert read_geometry(out) == read_geometry(like)
    before, after = nib.load(like).header, nib.load(out).header
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
        assert np.array_equal(before[field], after[field]), field
    assert np.array_equal(before["pixdim"], after["pixdim"])
