"""NIfTI: nibabel and SimpleITK as oracles, damage of every kind, and grids that are copied bit for bit."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import files
import hostile
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels, write_labels
from autoseg.imaging.geometry import corner_distance_voxels, orientation_code

AXIS_ALIGNED = [
    np.eye(3)[list(p)] * signs
    for p in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


# ---- voxels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_voxels_equal_nibabels(tmp_path, ending, endianness, version, dtype):
    array = files.voxels(high=100, dtype=dtype)
    path = files.nifti(tmp_path / f"a{ending}", array, endianness=endianness, version=version)
    image, labels = read_image(path).array, read_labels(path).array
    assert (image.dtype, labels.dtype) == (np.float32, np.int32)
    assert image.shape == (1, 4, 5, 6)
    oracle = np.asanyarray(nib.load(path).dataobj).T
    assert np.array_equal(image[0], oracle)
    assert np.array_equal(labels, oracle)
    image[0, 0, 0, 0] = 7  # the array is the caller's own
    assert image.flags.c_contiguous
    assert image.flags.aligned


@pytest.mark.parametrize(("slope", "intercept"), [(0.3333, -7.25), (2.0, 0.0), (1.0, -1024.0), (-1e-4, 1e3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_scaled_voxels_equal_nibabels_bit_for_bit(tmp_path, slope, intercept, dtype):
    path = files.nifti(tmp_path / "a.nii.gz", files.voxels(dtype=dtype))
    path = hostile.patched(path, slope=(hostile.SLOPE, "<2f", (slope, intercept)))
    assert np.array_equal(read_image(path).array[0], nib.load(path).get_fdata().astype(np.float32).T)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_an_unset_slope_means_no_scaling(tmp_path, slope):
    path = hostile.patched(files.nifti(tmp_path / "a.nii"), slope=(hostile.SLOPE, "<2f", (slope, 55.0)))
    assert np.array_equal(read_image(path).array[0], files.voxels())


def test_the_fourth_axis_is_channels(tmp_path):
    array = files.voxels((3, 4, 5, 6))
    volume = read_image(files.nifti(tmp_path / "a.nii.gz", array))
    assert np.array_equal(volume.array, array)
    assert volume.geometry.shape == (4, 5, 6)


def test_trailing_axes_of_one_are_no_axes(tmp_path):
    path = hostile.patched(files.nifti(tmp_path / "a.nii"), dim=(hostile.DIM, "<8h", (5, 6, 5, 4, 1, 1, 1, 1)))
    assert read_image(path).array.shape == (1, 4, 5, 6)
    assert read_labels(path).array.shape == (4, 5, 6)


def test_two_axes_are_flat_and_three_are_not(tmp_path):
    flat = read_image(files.nifti(tmp_path / "flat.nii", files.voxels((5, 6))))
    assert flat.array.shape == (1, 1, 5, 6)
    assert flat.geometry.flat
    assert flat.geometry.shape == (1, 5, 6)
    assert flat.geometry.spacing == (1.0, 3.0, 2.0)
    slice_ = read_geometry(files.nifti(tmp_path / "slice.nii", files.voxels((1, 5, 6))))
    assert not slice_.flat
    assert slice_.spacing == (4.0, 3.0, 2.0)


@pytest.mark.parametrize("column", [(0, 0, 0), (5, 5, 5), (0, 0, -4)])
def test_the_third_axis_of_a_flat_image_means_nothing(tmp_path, column):
    path = files.nifti(tmp_path / "flat.nii", files.voxels((5, 6)))
    fields = {f"row{i}": (hostile.SROW_X + 16 * i + 8, "<f", column[i]) for i in range(3)}
    assert read_geometry(hostile.patched(path, **fields)) == read_geometry(path)


def test_values_that_are_not_finite_come_through(tmp_path):
    for ending in (".nii.gz", ".nii", ".mha", ".nrrd"):
        array = read_image(hostile.not_finite(tmp_path, ending)).array[0]
        assert np.isnan(array[0, 0, 0])
        assert array[0, 0, 1:3].tolist() == [np.inf, -np.inf]
        assert (array.ravel()[3:] == 1).all()


# ---- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 4)])
@pytest.mark.parametrize("matrix", [*AXIS_ALIGNED[::5], files.tilted(20), files.tilted(44), files.tilted(-70)])
def test_geometry_equals_simple_itks(tmp_path, codes, matrix):
    path = files.nifti(tmp_path / "a.nii.gz", affine=files.affine_of(matrix), qform=codes[0], sform=codes[1])
    grid, image = read_geometry(path), sitk.ReadImage(str(path))
    assert grid.shape[::-1] == image.GetSize()
    np.testing.assert_allclose(grid.spacing[::-1], image.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(grid.origin, image.GetOrigin(), atol=1e-4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    np.testing.assert_allclose(np.array(grid.direction)[::-1].T, direction, atol=1e-5)
    assert read_image(path).geometry == grid
    assert orientation_code(grid) == "".join(nib.aff2axcodes(nib.load(path).affine))


def test_the_sform_wins_over_the_qform(tmp_path):
    path = files.nifti(tmp_path / "a.nii")
    path = hostile.patched(path, srow=(hostile.SROW_X, "<12f", (5, 0, 0, 1, 0, 5, 0, 2, 0, 0, 5, 3)))
    assert read_geometry(path).spacing == (5.0, 5.0, 5.0)
    assert read_geometry(path).origin == (-1.0, -2.0, 3.0)  # RAS 1 2 3
    path = hostile.patched(path, code=(hostile.SFORM_CODE, "<h", 0))
    assert read_geometry(path).spacing == (4.0, 3.0, 2.0)
    assert read_geometry(path).origin == (7.0, -11.0, 13.0)


def test_without_any_form_the_voxel_sizes_remain(tmp_path):
    path = files.nifti(tmp_path / "a.nii", qform=0, sform=0)
    assert read_geometry(path).spacing == (4.0, 3.0, 2.0)
    assert orientation_code(read_geometry(path)) == "".join(nib.aff2axcodes(nib.load(path).affine))


@pytest.mark.parametrize(("code", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (2 + 8, 1.0), (3 + 16, 0.001)])
def test_units_become_millimetres(tmp_path, code, mm):
    path = hostile.patched(files.nifti(tmp_path / "a.nii"), units=(hostile.UNITS, "<B", code))
    assert read_geometry(path).spacing == pytest.approx((4 * mm, 3 * mm, 2 * mm))
    assert read_geometry(path).origin == pytest.approx((7 * mm, -11 * mm, 13 * mm))


@pytest.mark.parametrize("cosine", [0, 1e-6, 1e-4, 9e-4])
def test_a_tiny_shear_reads_as_an_orthonormal_direction(tmp_path, cosine):
    grid = read_image(hostile.sheared(tmp_path, cosine)).geometry
    rows = np.array(grid.direction)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(rows[::-1] @ np.diag([-1, -1, 1]), np.eye(3), atol=cosine)


@pytest.mark.parametrize("cosine", [2e-3, 0.1, 0.3])
def test_a_sheared_affine_is_refused(tmp_path, cosine):
    path = hostile.sheared(tmp_path, cosine)
    for read in (read_image, read_labels, read_geometry):
        with pytest.raises(DataError, match=r"sheared\.nii\.gz.*sheared"):
            read(path)


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan, np.inf])
def test_voxel_sizes_without_meaning_are_refused(tmp_path, value):
    path = files.nifti(tmp_path / "a.nii", sform=0)
    path = hostile.patched(path, pixdim=(hostile.PIXDIM + 8, "<f", value))
    with pytest.raises(DataError, match=r"patched-a\.nii"):
        read_geometry(path)


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0), (0, 3, 0, 0)])
def test_a_degenerate_sform_is_refused(tmp_path, row):
    path = hostile.patched(files.nifti(tmp_path / "a.nii", qform=0), srow=(hostile.SROW_X, "<4f", row))
    with pytest.raises(DataError, match=r"patched-a\.nii"):
        read_geometry(path)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_cut_is_refused(tmp_path, ending):
    path = files.nifti(tmp_path / f"a{ending}")
    size = path.stat().st_size
    for length in np.unique(np.linspace(1, size - 1, 64).astype(int)):
        with pytest.raises(DataError, match="cut-a"):
            read_image(hostile.cut(path, int(length)))


def test_a_cut_between_blocks_of_a_large_file_is_refused(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**15, (40, 200, 200)).astype(np.int16)  # packed beyond one chunk
    path = files.nifti(tmp_path / "a.nii.gz", array)
    assert path.stat().st_size > 2 << 20
    assert np.array_equal(read_image(path).array[0], array)
    for length in (1 << 20, 2 << 20, path.stat().st_size - 1):
        with pytest.raises(DataError, match=r"cut-a\.nii\.gz is truncated"):
            read_image(hostile.cut(path, length))


@pytest.mark.thorough
def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    path = files.nifti(tmp_path / "a.nii.gz", files.voxels((3, 4, 5)))
    sound, refused = read_image(path), 0
    for byte in range(path.stat().st_size):
        damaged = hostile.flipped(path, byte, 1 << byte % 8)
        try:
            volume = read_image(damaged)
        except DataError:
            refused += 1
            continue
        assert np.array_equal(volume.array, sound.array), byte
        assert volume.geometry == sound.geometry
    assert refused > path.stat().st_size - 30  # all but what the gzip header leaves free


@pytest.mark.parametrize("tail", [b"\0" * 1000, b"garbage", b"\x1f"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_padding_after_the_end_is_no_damage(tmp_path, ending, tail):
    path = hostile.with_appended(files.nifti(tmp_path / f"a{ending}"), tail)
    assert np.array_equal(read_image(path).array[0], files.voxels())


def test_files_of_several_gzip_members_are_read_and_verified(tmp_path):
    whole = files.content(files.nifti(tmp_path / "a.nii"))
    parts = [whole[:100], whole[100:420], b"", whole[420:]]
    packed = [files.write(tmp_path / "part.gz", part).read_bytes() for part in parts]
    path = tmp_path / "members.nii.gz"
    path.write_bytes(b"".join(packed))
    assert np.array_equal(read_image(path).array[0], files.voxels())
    for member in range(4):  # the first byte of each checksum
        with pytest.raises(DataError, match="flipped-members"):
            read_image(hostile.flipped(path, sum(map(len, packed[: member + 1])) - 8))


def test_a_header_that_claims_more_than_the_file_can_hold_is_refused_unread(tmp_path):
    path = hostile.header_bomb(tmp_path)
    assert path.stat().st_size < 500
    with pytest.raises(DataError, match="declares 216000000352 bytes, but has at most"):
        read_image(path)
    plain = hostile.patched(files.nifti(tmp_path / "b.nii"), dim=(hostile.DIM, "<4h", (3, 30000, 30000, 30000)))
    with pytest.raises(DataError, match="but has at most 592"):
        read_image(plain)


@pytest.mark.parametrize("offset", [-1.0, 0.0, 100.0, 352.5, 1e9, 3e38, np.nan, np.inf])
def test_a_voxel_offset_without_meaning_is_refused(tmp_path, offset):
    for ending in (".nii", ".nii.gz"):
        path = files.nifti(tmp_path / f"a{ending}")
        with pytest.raises(DataError, match="patched-a"):
            read_image(hostile.patched(path, offset=(hostile.VOX_OFFSET, "<f", offset)))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ((hostile.DIM, "<8h", (5, 3, 2, 2, 1, 10, 1, 1)), "2-D or 3-D"),
        ((hostile.DIM, "<8h", (1, 120, 1, 1, 1, 1, 1, 1)), "2-D or 3-D"),
        ((hostile.DIM, "<h", 0), "0 axes"),
        ((hostile.DIM, "<h", 9), "9 axes"),
        ((hostile.DIM, "<8h", (3, 6, 0, 4, 1, 1, 1, 1)), "empty"),
        ((hostile.DIM, "<8h", (3, 6, -5, 4, 1, 1, 1, 1)), "empty"),
        ((hostile.DIM, "<8h", (4, 6, 5, 4, -2, 1, 1, 1)), "empty"),
        ((hostile.DATATYPE, "<2h", (32, 64)), "complex"),
        ((hostile.DATATYPE, "<2h", (128, 24)), "RGB"),
        ((hostile.DATATYPE, "<2h", (77, 16)), "cannot be read"),
        ((hostile.DATATYPE, "<2h", (0, 0)), "type none"),
        ((hostile.SLOPE, "<2f", (2.0, np.nan)), "scaling is not finite"),
        ((hostile.SLOPE, "<2f", (np.inf, 0.0)), "scaling is not finite"),
        ((hostile.MAGIC, "<4s", b"ni1\0"), "pair"),
        ((hostile.MAGIC, "<4s", b"\0\0\0\0"), "not NIfTI"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(tmp_path, field, expected):
    path = hostile.patched(files.nifti(tmp_path / "a.nii.gz"), field=field)
    with pytest.raises(DataError, match=expected):
        read_image(path)


SOUND = {version: files.nifti_bytes(version=version) for version in (1, 2)}


@pytest.mark.thorough
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(4, 347), st.integers(0, 255)), min_size=1, max_size=6), st.sampled_from([1, 2]))
def test_no_header_makes_the_reader_fail_otherwise_than_by_refusing(tmp_path, changes, version):
    raw = bytearray(SOUND[version])
    for byte, value in changes:
        raw[byte] = value
    path = files.write(tmp_path / "b.nii", bytes(raw))
    try:
        volume = read_image(path)
    except DataError:
        return
    assert volume.array.shape[1:] == volume.geometry.shape
    assert volume.array.dtype == np.float32
    assert min(volume.geometry.spacing) > 0
    assert np.isfinite([*volume.geometry.spacing, *volume.geometry.origin]).all()
    rows = np.array(volume.geometry.direction)
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-6)


# ---- writing --------------------------------------------------------------------------------------------------------


def raw_fields(path: Path) -> dict[str, bytes]:
    """The bytes of the geometry fields, straight from the file."""
    block = files.content(path)[:348]
    places = {"pixdim": (76, 108), "units": (123, 124), "codes and quaternion and offsets and srows": (252, 328)}
    return {name: block[start:end] for name, (start, end) in places.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 4), (0, 0)])
@pytest.mark.parametrize("matrix", [AXIS_ALIGNED[7], AXIS_ALIGNED[-1], files.tilted(33)])
def test_the_grid_of_the_image_is_copied_bit_for_bit(tmp_path, ending, endianness, codes, matrix):
    like = files.nifti(
        tmp_path / "like.nii.gz",
        affine=files.affine_of(matrix),
        qform=codes[0],
        sform=codes[1],
        endianness=endianness,
    )
    if endianness == "<":  # values that nibabel would correct
        like = hostile.patched(like, time=(hostile.PIXDIM + 16, "<4f", (2.5, np.nan, -1, 0)), units=(123, "<B", 2 + 16))
    labels = files.voxels(high=5, dtype=np.uint8)
    out = tmp_path / "new folder" / f"out{ending}"
    write_labels(out, labels, like)
    assert raw_fields(out) == raw_fields(like)
    assert np.array_equal(nib.load(out).affine, nib.load(like).affine)
    assert np.array_equal(np.asanyarray(nib.load(out).dataobj), labels.T)
    assert nib.load(out).shape == (6, 5, 4)
    assert np.array_equal(read_labels(out).array, labels)
    assert read_geometry(out) == read_geometry(like)
    assert [file.name for file in out.parent.iterdir()] == [out.name]  # nothing is left beside it


def test_itk_reads_what_was_written(tmp_path):
    like = files.nifti(tmp_path / "like.nii.gz", affine=files.affine_of(files.tilted(25)))
    labels = files.voxels(high=3, dtype=np.uint8)
    write_labels(tmp_path / "out.nii.gz", labels, like)
    image, oracle = sitk.ReadImage(str(tmp_path / "out.nii.gz")), sitk.ReadImage(str(like))
    assert np.array_equal(sitk.GetArrayFromImage(image), labels)
    assert image.GetOrigin() == oracle.GetOrigin()
    assert image.GetSpacing() == oracle.GetSpacing()
    assert image.GetDirection() == oracle.GetDirection()


def test_nothing_that_may_name_a_patient_is_copied(tmp_path):
    image = nib.Nifti1Image(files.voxels().T, files.AFFINE)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET"))
    like = files.write(tmp_path / "like.nii", image.to_bytes())
    assert like.read_bytes().count(b"SECRET") == 5
    write_labels(tmp_path / "out.nii", files.voxels(), like)
    assert b"SECRET" not in (tmp_path / "out.nii").read_bytes()


def test_the_mask_of_a_multi_channel_image_has_one_channel(tmp_path):
    like = files.nifti(tmp_path / "like.nii.gz", files.voxels((3, 4, 5, 6)))
    write_labels(tmp_path / "out.nii.gz", files.voxels(), like)
    assert nib.load(tmp_path / "out.nii.gz").shape == (6, 5, 4)
    assert raw_fields(tmp_path / "out.nii.gz") == raw_fields(like)


def test_flat_and_second_version_images_stay_what_they_are(tmp_path):
    flat = files.nifti(tmp_path / "flat.nii", files.voxels((5, 6)))
    write_labels(tmp_path / "out.nii", files.voxels((1, 5, 6)), flat)
    assert nib.load(tmp_path / "out.nii").shape == (6, 5)
    assert raw_fields(tmp_path / "out.nii") == raw_fields(flat)
    second = files.nifti(tmp_path / "second.nii", version=2)
    write_labels(tmp_path / "out2.nii", files.voxels(), second)
    assert isinstance(nib.load(tmp_path / "out2.nii"), nib.Nifti2Image)
    assert np.array_equal(nib.load(tmp_path / "out2.nii").affine, nib.load(second).affine)


def test_equal_labels_give_equal_bytes(tmp_path):
    like = files.nifti(tmp_path / "like.nii.gz")
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, files.voxels(), like)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5)  # neither name nor time in the gzip header


# ---- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("hippocampus/imagesTr/hippocampus_001_0000.nii.gz", "hippocampus/labelsTr/hippocampus_001.nii.gz"),
        ("ms_lesion_mni/images/patient07_0000.nii.gz", "ms_lesion_mni/labels/patient07.nii.gz"),
        ("ct_ts_512x512x20/images/ts_dicom_0000.nii.gz", "ct_ts_512x512x20/labels/ts_dicom.nii.gz"),
    ],
)
def test_real_scans(data_dir, tmp_path, image, labels):
    scan, reference = read_image(data_dir / image), read_labels(data_dir / labels)
    assert np.array_equal(scan.array[0], np.asanyarray(nib.load(data_dir / image).dataobj).T)
    assert corner_distance_voxels(scan.geometry, reference.geometry) < 1e-3
    write_labels(tmp_path / "out.nii.gz", reference.array.astype(np.uint8), data_dir / image)
    assert raw_fields(tmp_path / "out.nii.gz") == raw_fields(data_dir / image)
    assert np.array_equal(read_labels(tmp_path / "out.nii.gz").array, reference.array)
