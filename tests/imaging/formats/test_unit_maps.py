"""Maps of values from 0 to 1: nibabel and tifffile are the oracles for what a file shows."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from autoseg.imaging.formats.readers import read_geometry
from autoseg.imaging.formats.unit_maps import UnitMap
from files import affine_of, nifti, tilted


def values(shape=(4, 5, 6)) -> np.ndarray:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_a_map_of_a_volume_is_nifti_on_its_grid(tmp_path, ending, endianness):
    like = nifti(tmp_path / f"image{ending}", affine=affine_of(tilted(20)), endianness=endianness)
    made = UnitMap(tmp_path / "liver", read_geometry(like), like)
    made.stored[1:] = made.encode(values()[1:])
    made.close()
    assert made.path == tmp_path / "liver.nii"
    found = nib.load(made.path)
    np.testing.assert_array_equal(found.affine, nib.load(like).affine)
    expected = values()
    expected[0] = 0  # never written
    np.testing.assert_allclose(np.asarray(found.dataobj).T, expected, atol=2**-16)
    assert (found.header["cal_min"], found.header["cal_max"]) == (0, 1)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(made.path)))
    np.testing.assert_allclose(itk, expected, atol=2**-16 + 1e-7)


def test_zero_half_and_one_are_exact_and_what_is_beyond_is_clipped(tmp_path):
    like = nifti(tmp_path / "image.nii", np.zeros((1, 1, 5), np.int16))
    made = UnitMap(tmp_path / "p", read_geometry(like), like)
    made.stored[...] = made.encode(np.array([[[0, 0.5, 1, -0.25, 1.5]]], np.float32))
    assert made.decode(made.stored).tolist() == [[[0, 0.5, 1, 0, 1]]]
    made.close()
    assert np.asarray(nib.load(made.path).dataobj).ravel().tolist() == [0, 0.5, 1, 0, 1]


def test_a_map_of_an_image_that_is_not_nifti_is_at_its_place(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((-12.0, 30.0, 7.0))
    sitk.WriteImage(image, str(tmp_path / "image.mha"))
    made = UnitMap(tmp_path / "p", read_geometry(tmp_path / "image.mha"), tmp_path / "image.mha")
    made.stored[...] = made.encode(values())
    made.close()
    found = sitk.ReadImage(str(made.path))
    assert found.GetSpacing() == pytest.approx((0.5, 0.75, 3.0))
    assert found.GetOrigin() == pytest.approx((-12.0, 30.0, 7.0))
    np.testing.assert_allclose(sitk.GetArrayFromImage(found), values(), atol=2**-16 + 1e-7)


def test_a_map_of_a_picture_is_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((5, 6), np.uint8))
    made = UnitMap(tmp_path / "p", read_geometry(tmp_path / "image.tif"), tmp_path / "image.tif")
    made.stored[:, :3] = made.encode(values((1, 5, 6))[:, :3])
    made.close()
    assert made.path == tmp_path / "p.tif"
    expected = values((1, 5, 6))[0]
    expected[3:] = 0
    np.testing.assert_array_equal(tifffile.imread(made.path), expected)
