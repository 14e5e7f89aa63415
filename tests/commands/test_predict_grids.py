"""Segmentations of images whose headers are odd: on the image's own grid, with a word; or refused."""

import nibabel as nib
import numpy as np
import pytest

import tiny
from autoseg.datasets.dataset import Case
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_labels
from autoseg.inference.predict import predict_cases
from autoseg.planning.plan import TrainingGrids
from bright import model_of, picture, plan_of
from hostile import UNITS, patched

ONE = (1.0, 1.0, 1.0)
SEEN = TrainingGrids(ONE, ONE, (8, 9, 10), (20, 24, 28))


def predicted(folder, *files):
    model = model_of(ONE, plan=plan_of(channels=("MR",) * len(files), grids=SEEN))
    (prediction,) = predict_cases([model], [Case("c", "c", tuple(map(str, files)), None)], folder / "out")
    return prediction


def test_an_image_without_a_place_keeps_its_header(tmp_path):
    image = picture((8, 9, 10))
    path = tiny.unplaced(tiny.nifti(tmp_path / "i.nii", image))
    prediction = predicted(tmp_path, path)
    assert np.array_equal(read_labels(prediction.path).array == 7, image > 100)
    header = nib.load(prediction.path).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
    assert [remark.kind for _, _, remark in prediction.remarks] == ["no place"]


def test_a_channel_in_another_order_is_reordered(tmp_path):
    """The network looks at the last channel; its segmentation lies on the first one's grid."""
    image = picture((8, 9, 10))
    first = tiny.nifti(tmp_path / "a.nii", np.ones_like(image))
    last = tiny.nifti(tmp_path / "b.nii", image[::-1, :, ::-1].copy(), origin=(9.0, 0.0, 7.0), axes="RPI")
    prediction = predicted(tmp_path, first, last)
    assert np.array_equal(read_labels(prediction.path).array == 7, image > 100)
    np.testing.assert_array_equal(nib.load(prediction.path).affine, nib.load(first).affine)
    assert [remark.kind for _, _, remark in prediction.remarks] == ["reordered"]


def test_the_header_is_that_of_the_channel_which_has_a_place(tmp_path):
    image = picture((8, 9, 10))
    first = tiny.unplaced(tiny.nifti(tmp_path / "a.nii", np.ones_like(image)))
    last = tiny.nifti(tmp_path / "b.nii", image, origin=(9.0, 0.0, 7.0), axes="RPI")
    prediction = predicted(tmp_path, first, last)
    assert np.array_equal(read_labels(prediction.path).array == 7, image > 100)
    np.testing.assert_array_equal(nib.load(prediction.path).affine, nib.load(last).affine)
    assert [remark.kind for _, _, remark in prediction.remarks] == ["unplaced"]


@pytest.mark.parametrize("unit", [1, 3])  # metres, micrometres
def test_an_image_in_another_unit_is_refused_before_anything_is_made(tmp_path, unit):
    path = patched(tiny.nifti(tmp_path / "i.nii", picture((8, 9, 10))), units=(UNITS, "<B", unit))
    with pytest.raises(
        DataError, match=r"patched-i\.nii: voxels of .* the model was trained on 1 x 1 x 1 mm: 1000 times"
    ):
        predicted(tmp_path, path)
    assert not (tmp_path / "out").exists()


def test_an_older_plan_refuses_what_cannot_be_resampled(tmp_path):
    path = patched(tiny.nifti(tmp_path / "i.nii", picture((8, 9, 10))), units=(UNITS, "<B", 3))
    with pytest.raises(DataError, match=r"patched-i\.nii: .* keep less than one voxel"):
        predict_cases([model_of(ONE)], [Case("c", "c", (str(path),), None)], tmp_path / "out")
