"""What a viewer is given: the voxels that were read, where they lie."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest

from autoseg.imaging.formats.readers import read_image
from autoseg.imaging.geometry import Geometry
from autoseg.serve.images import affine, narrowed, nifti_bytes, steps_for, thinned, window_of
from files import affine_along, nifti
from served import voxels_of

AXES = ["".join(code) for code in itertools.product("LR", "PA", "SI")] + ["SLP", "AIR"]


@pytest.mark.parametrize("code", AXES)
def test_a_voxel_lies_where_the_file_says(tmp_path, code):
    """By another reader: what nibabel finds at a voxel of the file is found at the same place of what is served."""
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = nifti(tmp_path / "a.nii.gz", array, affine_along(code, (0.7, 1.5, 3.0), (-31.0, 12.5, 100.25)))
    there, volume = nibabel.load(path), read_image(path)
    served = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(volume.array[0], volume.geometry)))
    assert np.array_equal(np.asarray(served.dataobj), np.asarray(there.dataobj))
    for matrix in (served.affine, np.array(affine(volume.geometry))):
        assert np.allclose(matrix, there.affine, atol=1e-4)


def test_a_flat_image_is_one_slice():
    flat = Geometry((1, 4, 5), (1.0, 1.0, 1.0), flat=True)
    array = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    assert np.array_equal(voxels_of(nifti_bytes(array, flat)), array)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 255.0], np.uint8), ([-1024.0, 3071.0], np.int16), ([0.0, 60000.0], np.uint16), ([0.5, 1.0], np.float32),
        ([-5.0, 60000.0], np.float32), ([0, 300], np.int16),
    ],
)  # fmt: skip
def test_whole_values_take_a_narrow_type_and_stay_the_same(values, dtype):
    array = np.array(values).reshape(1, 1, 2)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.uint16)
    made = narrowed(array)
    assert made.dtype == dtype
    assert np.array_equal(made, array)


def test_a_window_has_an_extent():
    assert window_of(np.full((2, 2, 2), 7.0)) == (7.0, 8.0)
    low, high = window_of(np.arange(1000.0).reshape(10, 10, 10))
    assert (round(low), round(high)) == (5, 994)
    sparse = np.zeros((10, 10, 10))
    sparse[0, 0, 0] = 9
    assert window_of(sparse) == (0.0, 9.0)


def test_every_so_manyeth_voxel_stays_where_it_is():
    geometry = Geometry((4, 6, 5), (2.0, 1.0, 0.5), (3.0, 4.0, 5.0))
    array = np.arange(120).reshape(4, 6, 5)
    steps = steps_for(array.shape, 3)
    assert steps == (2, 2, 2)
    thin, there = thinned(array, geometry, steps)
    assert thin.shape == there.shape == (2, 3, 3)
    before, after = np.array(affine(geometry)), np.array(affine(there))
    for z, y, x in np.ndindex(thin.shape):
        assert thin[z, y, x] == array[2 * z, 2 * y, 2 * x]
        assert np.allclose(after @ [x, y, z, 1], before @ [2 * x, 2 * y, 2 * z, 1])
