"""What all formats share: names, labels, damage, impostors, and writing that is complete or not there at all."""

import dataclasses
import resource
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import files
import hostile
from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats import nifti, readers
from autoseg.imaging.formats.readers import ending_of, read_geometry, read_image, read_labels, stem_of, write_labels
from autoseg.imaging.geometry import corner_distance_voxels

# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ending", "stem"),
    [
        ("case_0000.nii.gz", ".nii.gz", "case_0000"),
        ("Case 1.NII.GZ", ".nii.gz", "Case 1"),
        ("a.b.nii", ".nii", "a.b"),
        ("scan.seg.nrrd", ".seg.nrrd", "scan"),
        ("photo.JPEG", ".jpeg", "photo"),
        ("archive.gz", None, "archive.gz"),
        ("notes.txt", None, "notes.txt"),
        (".nii.gz", None, ".nii.gz"),  # a name that is nothing but an ending has neither
        ("ünï cödé.mha", ".mha", "ünï cödé"),
    ],
)
def test_endings_and_stems(name, ending, stem):
    assert ending_of(Path("folder.nii") / name) == ending
    assert stem_of(Path("folder.nii") / name) == stem


def test_an_unknown_ending_names_the_known_ones(tmp_path):
    (tmp_path / "scan.gipl").write_bytes(b"x")
    with pytest.raises(DataError, match=r"scan\.gipl") as caught:
        read_image(tmp_path / "scan.gipl")
    assert ".nii.gz" in caught.value.remedy


def test_uppercase_endings_are_read(tmp_path):
    for name in ("A.NII.GZ", "B.Nii"):
        path = files.nifti(tmp_path / name)
        assert np.array_equal(read_image(path).array[0], files.voxels())


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_float_labels_with_scaling_noise_are_rounded(tmp_path):
    path, labels = hostile.noisy_float_labels(tmp_path)
    stored = nib.load(path).get_fdata()
    assert (stored != np.rint(stored)).any()  # the noise is there
    assert np.array_equal(read_labels(path).array, labels)


@pytest.mark.parametrize(("value", "accepted"), [(1.0009, True), (0.9991, True), (1.0011, False), (0.9882, False)])
def test_labels_must_be_within_a_thousandth_of_integers(tmp_path, value, accepted):
    array = np.zeros((3, 4, 5), np.float32)
    array[2, 3, 4] = value
    path = files.nifti(tmp_path / "a.nii.gz", array)
    if accepted:
        assert read_labels(path).array[2, 3, 4] == 1
    else:
        with pytest.raises(DataError, match=rf"integers.*found {value:.4f}"):
            read_labels(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_labels_that_are_not_finite_are_refused(tmp_path, value):
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 0, 0] = value
    with pytest.raises(DataError, match=f"found {value}"):
        read_labels(files.nifti(tmp_path / "a.nii.gz", array))


def test_scaled_thirds_are_no_labels(tmp_path):
    path = files.nifti(tmp_path / "a.nii", files.voxels(high=4, dtype=np.uint8))
    with pytest.raises(DataError, match="integers"):
        read_labels(hostile.patched(path, slope=(hostile.SLOPE, "<2f", (0.3333, 0.0))))


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_labels_beyond_32_bits_are_refused(tmp_path, value):
    for dtype in (np.int64, np.float64):
        array = np.zeros((2, 2, 2), dtype)
        array[1, 1, 1] = value
        with pytest.raises(DataError, match="32 bits"):
            read_labels(files.nifti(tmp_path / "a.nii", array))
        array[1, 1, 1] = 2**31 - 1
        assert read_labels(files.nifti(tmp_path / "a.nii", array)).array[1, 1, 1] == 2**31 - 1


def test_labels_have_one_value_per_voxel(tmp_path):
    with pytest.raises(DataError, match="this file has 2"):
        read_labels(files.nifti(tmp_path / "a.nii", files.voxels((2, 3, 4, 5))))


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.DAMAGED)
def test_a_damaged_file_is_refused_with_its_name(tmp_path, name):
    path = hostile.DAMAGED[name](tmp_path)
    for read in (read_image, read_labels):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(path) in caught.value.what
        assert caught.value.remedy


@pytest.mark.parametrize("name", hostile.IMPOSTORS)
@pytest.mark.parametrize("ending", readers.READERS)
def test_an_impostor_is_called_by_its_name(tmp_path, name, ending):
    path = hostile.impostor(tmp_path, name, ending)
    for read in (read_image, read_geometry):
        with pytest.raises(DataError, match=name):
            read(path)


@pytest.mark.parametrize(
    ("made_as", "named", "remedy"),
    [
        ("a.nii", "b.nii.gz", ".nii"),
        ("a.nii.gz", "b.nii", ".nii.gz"),
        ("a.nii", "b.png", ".nii"),
        ("a.nii", "b.mha", ".nii"),
    ],
)
def test_a_wrong_ending_is_explained(tmp_path, made_as, named, remedy):
    path = files.nifti(tmp_path / made_as).rename(tmp_path / named)
    with pytest.raises(DataError, match=rf"{named} is .*NIfTI|{named} is gzip") as caught:
        read_image(path)
    assert f"rename it to {remedy}" in caught.value.remedy


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path / "b.nii.gz")


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_the_dtype_is_kept_and_nothing_is_scaled(tmp_path, dtype):
    like = hostile.patched(files.nifti(tmp_path / "like.nii"), slope=(hostile.SLOPE, "<2f", (0.5, -3.0)))
    write_labels(tmp_path / "out.nii.gz", files.voxels(dtype=dtype), like)
    image = nib.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == dtype
    assert image.header.get_slope_inter() == (None, None)
    assert np.array_equal(np.asanyarray(image.dataobj).T, files.voxels())


def test_masks_are_written_as_bytes(tmp_path):
    like = files.nifti(tmp_path / "like.nii")
    write_labels(tmp_path / "out.nii.gz", files.voxels() > 100, like)
    assert nib.load(tmp_path / "out.nii.gz").get_data_dtype() == np.uint8
    assert np.array_equal(read_labels(tmp_path / "out.nii.gz").array, files.voxels() > 100)


def test_a_write_that_silently_breaks_off_is_noticed(tmp_path, monkeypatch):
    like, out = files.nifti(tmp_path / "like.nii.gz"), tmp_path / "out.nii.gz"
    write_labels(out, files.voxels(seed=1), like)
    before = out.read_bytes()

    def writes_half(path, labels, geometry, like):
        nifti.write(path, labels, geometry, like)
        path.write_bytes(path.read_bytes()[:-20])

    def writes_another(path, labels, geometry, like):
        nifti.write(path, labels[:, ::-1], geometry, like)

    def moves_it(path, labels, geometry, like):
        nifti.write(path, labels, dataclasses.replace(geometry, origin=(0.0, 0.0, 0.0)), None)

    for wrong, reason in ((writes_half, "truncated"), (writes_another, "different"), (moves_it, "moved by")):
        broken = dataclasses.replace(readers.READERS[".nii.gz"], write=wrong)
        monkeypatch.setitem(readers.READERS, ".nii.gz", broken)
        with pytest.raises(StorageError, match=reason):
            write_labels(out, files.voxels(), like)
        assert out.read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["like.nii.gz", "out.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".mhd", ".tif"])
def test_a_full_disk_is_reported_and_spares_what_was_there(tmp_path, ending):
    like, out = files.nifti(tmp_path / "like.nii.gz", files.voxels((20, 40, 50))), tmp_path / f"out{ending}"
    write_labels(out, files.voxels((20, 40, 50), 2, np.uint8, seed=1), like)
    before = out.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may grow beyond, as on a full disk
    try:
        with pytest.raises(StorageError, match="out"):
            write_labels(out, files.voxels((20, 40, 50), 30000), like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["like.nii.gz", out.name]


def test_labels_of_another_shape_or_kind_are_a_mistake_of_the_caller(tmp_path):
    like = files.nifti(tmp_path / "like.nii.gz")
    with pytest.raises(ValueError, match="shape"):
        write_labels(tmp_path / "out.nii.gz", files.voxels((4, 5, 7)), like)
    with pytest.raises(ValueError, match="integers"):
        write_labels(tmp_path / "out.nii.gz", files.voxels().astype(np.float32), like)


@pytest.mark.parametrize("name", ["out.jpg", "out.jpeg", "out.txt", "out"])
def test_formats_that_cannot_hold_labels_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=name) as caught:
        write_labels(tmp_path / name, files.voxels(), files.nifti(tmp_path / "like.nii.gz"))
    assert ".nii.gz" in caught.value.remedy


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"]),
    st.sampled_from([".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"]),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from([np.uint8, np.int16, np.int32]),
    st.integers(-90, 90),
)
def test_labels_return_to_the_same_place_in_every_format(tmp_path, source, target, shape, dtype, degrees):
    first = files.nifti(tmp_path / "first.nii", files.voxels(shape), files.affine_of(files.tilted(degrees)))
    like, out = tmp_path / f"like{source}", tmp_path / f"out{target}"
    write_labels(like, files.voxels(shape), first)
    labels = files.voxels(shape, 100, dtype, seed=degrees + 90)
    write_labels(out, labels, like)
    volume = read_labels(out)
    assert np.array_equal(volume.array, labels)
    assert volume.geometry.shape == shape
    assert corner_distance_voxels(volume.geometry, read_geometry(first)) < 1e-4
