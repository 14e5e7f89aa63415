"""Files written anew under their own name: what changes, and what must not."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats import rewrite
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels
from autoseg.imaging.formats.rewrite import convert, has_place, replace_grid, replace_voxels
from autoseg.imaging.geometry import corner_distance_voxels
from files import AFFINE, affine_of, content, itk_image, nifti, png, stack, tilted, voxels

OBLIQUE = affine_of(tilted(20))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_a_grid_is_copied_and_the_voxels_stay_bit_for_bit(tmp_path, name, version, endianness):
    path = nifti(tmp_path / name, voxels(), AFFINE, version=version, endianness=endianness, qform=0, sform=0)
    like = nifti(tmp_path / "like.nii.gz", voxels(), OBLIQUE, qform=1, sform=2)
    before = content(path)
    assert not has_place(path)
    replace_grid(path, like)
    after = content(path)
    size = {1: 348, 2: 540}[version]
    assert after[size:] == before[size:]
    assert has_place(path)
    assert corner_distance_voxels(read_geometry(path), read_geometry(like)) < 1e-5
    header = nib.load(path).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 2)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_time_and_texts_of_a_header_stay(tmp_path):
    image = nib.Nifti1Image(voxels((2, 4, 5, 6)).T, AFFINE)
    image.header["descrip"], image.header["intent_name"] = b"made by hand", b"t1"
    image.header.set_zooms((2, 3, 4, 0.5))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "a.nii.gz")
    replace_grid(tmp_path / "a.nii.gz", nifti(tmp_path / "like.nii.gz", voxels(), OBLIQUE))
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_zooms() == pytest.approx((0.7, 1.5, 3.0, 0.5))
    assert header.get_xyzt_units() == ("unknown", "msec")  # the unit of length is that of the other file
    assert (header["descrip"].item(), header["intent_name"].item()) == (b"made by hand", b"t1")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_a_grid_goes_from_nifti_to_itk_and_back(tmp_path, name):
    path, like = itk_image(tmp_path / name), nifti(tmp_path / "like.nii.gz", voxels(), OBLIQUE)
    there = itk_image(tmp_path / "there.mha")
    before = read_image(path).array
    replace_grid(path, like)
    np.testing.assert_array_equal(read_image(path).array, before)
    assert corner_distance_voxels(read_geometry(path), read_geometry(like)) < 1e-5
    replace_grid(like, there)
    assert corner_distance_voxels(read_geometry(like), read_geometry(there)) < 1e-3  # single precision
    np.testing.assert_array_equal(read_image(like).array[0], voxels())
    assert not list(tmp_path.glob("*.raw"))  # the voxels of an .mhd stand behind its header afterwards


def test_keys_of_nrrd_stay(tmp_path):
    image = sitk.GetImageFromArray(voxels())
    image.SetMetaData("Segment0_Name", "liver")
    sitk.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    replace_voxels(tmp_path / "a.seg.nrrd", (voxels() + 1)[None])
    assert sitk.ReadImage(str(tmp_path / "a.seg.nrrd")).GetMetaData("Segment0_Name") == "liver"
    np.testing.assert_array_equal(read_image(tmp_path / "a.seg.nrrd").array[0], voxels() + 1)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_voxels_are_replaced_in_any_dtype(tmp_path, name, channels, dtype):
    path = nifti(tmp_path / name) if ".nii" in name else itk_image(tmp_path / name)
    before = read_geometry(path)
    new = np.stack([voxels(seed=seed, dtype=dtype) for seed in range(channels)])
    replace_voxels(path, new)
    np.testing.assert_array_equal(read_image(path).array, new.astype(np.float32))
    assert corner_distance_voxels(read_geometry(path), before) < 1e-6
    stored = sitk.ReadImage(str(path)) if ".nii" not in name else nib.load(path)
    assert stored is not None


def test_flat_files_stay_flat(tmp_path):
    for path in (nifti(tmp_path / "a.nii.gz", voxels((5, 6))), itk_image(tmp_path / "a.mha", voxels((5, 6)))):
        new = voxels((1, 5, 6), seed=3)[None]
        replace_voxels(path, new)
        assert read_geometry(path).flat
        np.testing.assert_array_equal(read_image(path).array, new)


def test_pictures(tmp_path):
    path = png(tmp_path / "a.png", voxels((1, 5, 6))[0])
    replace_voxels(path, np.full((1, 1, 5, 6), 300, np.uint16))
    assert (read_labels(path).array == 300).all()
    with pytest.raises(UsageError, match="cannot be written as"):
        replace_voxels(path, np.zeros((1, 1, 5, 6), np.float32))
    with pytest.raises(UsageError, match="cannot store a position"):
        replace_grid(path, nifti(tmp_path / "like.nii.gz"))
    paged = stack(tmp_path / "b.tif", voxels().astype(np.float32))
    replace_voxels(paged, np.full((1, 4, 5, 6), 0.5, np.float32))
    assert tifffile.imread(paged).dtype == np.float32
    assert (read_image(paged).array == 0.5).all()
    assert not has_place(path)


@pytest.mark.parametrize(
    ("true", "name"), [(".nrrd", "a.nii.gz"), (".nii", "a.mha"), (".mha", "a.nrrd"), (".nii.gz", "b.nrrd")]
)
def test_the_format_becomes_that_of_the_name(tmp_path, true, name):
    source = tmp_path / f"source{true}"
    nifti(source, voxels(), OBLIQUE) if ".nii" in true else itk_image(source)
    wanted = read_image(source)
    source.rename(tmp_path / name)
    convert(tmp_path / name, true)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert corner_distance_voxels(found.geometry, wanted.geometry) < 1e-3  # single precision in NIfTI
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_scaling_is_applied_where_the_format_knows_none(tmp_path):
    image = nib.Nifti1Image(voxels().T, AFFINE)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()
    (tmp_path / "a.nrrd").write_bytes(bytes(raw))
    convert(tmp_path / "a.nrrd", ".nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").array[0], voxels() * 0.5 - 3)


def test_a_damaged_file_is_not_given_another_header(tmp_path):
    path, like = nifti(tmp_path / "a.nii.gz"), nifti(tmp_path / "like.nii.gz", voxels(), OBLIQUE)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 4  # the checksum
    path.write_bytes(raw)
    with pytest.raises(DataError):
        replace_grid(path, like)
    assert path.read_bytes() == bytes(raw)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "like.nii.gz"]


def test_what_reads_back_differently_does_not_take_the_place_of_the_file(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii.gz")
    before = path.read_bytes()

    class Lossy(gzip.GzipFile):
        def write(self, data):
            super().write(bytes(len(data)) if len(data) == 60 else data)  # 60 bytes are a plane of 5 x 6 int16
            return len(data)

    monkeypatch.setattr(rewrite.gzip, "GzipFile", Lossy)
    with pytest.raises(StorageError, match="reads back differently"):
        replace_voxels(path, (voxels() + 1)[None])
    assert path.read_bytes() == before
