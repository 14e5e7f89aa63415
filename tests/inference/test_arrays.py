"""Arrays as cases: the same as files that hold them, in every orientation, and clear words for what cannot be."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import DataError, UsageError
from autoseg.inference.arrays import LETTERS, case_of_array
from autoseg.planning.plan import TrainingGrids
from bright import picture, plan_of
from files import affine_along, nifti, png

CODES = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*axes)
]  # fmt: skip
FLAT = TrainingGrids((1.0, 0.5, 0.5), (1.0, 0.5, 0.5), (1, 20, 20), (1, 40, 40))
SLICES = TrainingGrids((1.0, 0.5, 0.5), (3.0, 0.5, 0.5), (10, 20, 20), (30, 40, 40))


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48
    assert set("".join(CODES)) == set(LETTERS)


@pytest.mark.thorough
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("orientation", ["canonical", "as_stored"])
def test_an_array_is_the_case_that_a_file_of_it_is(tmp_path, code, orientation):
    """Written by nibabel with an affine, whose letters nibabel finds itself; read by `load_case`."""
    image, spacing = picture((5, 6, 7)), (3.0, 1.5, 0.5)
    affine = affine_along(code, spacing)
    assert "".join(nib.aff2axcodes(affine)) == code
    path = nifti(tmp_path / "image.nii", image, affine)
    plan = plan_of(orientation=orientation, axis_order=(1, 2, 0))
    case = Case("image", "image", (str(path),), None)
    file = load_case(case, None, channels=plan.channels, orientation=orientation, axis_order=(1, 2, 0))
    for array in (image, image[None], image.astype(np.float64)):
        made = case_of_array(array, plan, spacing, code)
        np.testing.assert_array_equal(made.image, file.image)
        assert made.image.dtype == np.float32
        assert made.spacing == pytest.approx(file.spacing)
        assert (made.orientation, made.axis_order) == (file.orientation, file.axis_order)
        np.testing.assert_array_equal(made.to_stored(made.image[0]), image)


def test_a_flat_array_is_the_case_that_a_picture_is(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (6, 9)).astype(np.uint8)
    path = png(tmp_path / "image.png", grey)
    file = load_case(Case("image", "image", (str(path),), None), None, channels=("MR",))
    made = case_of_array(grey, replace(plan_of(), grids=FLAT), (0.5, 0.5))
    np.testing.assert_array_equal(made.image, file.image)
    assert (made.geometry.flat, made.geometry.shape) == (True, file.geometry.shape)
    assert made.spacing == (1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("shape", "channels", "grids", "seen"),
    [
        ((8, 9, 10), 1, SLICES, (1, 8, 9, 10)),
        ((1, 8, 9, 10), 1, SLICES, (1, 8, 9, 10)),
        ((2, 8, 9, 10), 2, SLICES, (2, 8, 9, 10)),
        ((2, 8, 9, 10), 2, None, (2, 8, 9, 10)),
        ((9, 10), 1, FLAT, (1, 1, 9, 10)),
        ((2, 9, 10), 2, FLAT, (2, 1, 9, 10)),
        ((2, 1, 9, 10), 2, FLAT, (2, 1, 9, 10)),
        ((8, 9, 10), 1, None, (1, 8, 9, 10)),
    ],
)
def test_the_axes_of_an_array(shape, channels, grids, seen):
    plan = replace(plan_of(channels=("a", "b")[:channels]), grids=grids, orientation="as_stored")
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = case_of_array(array, plan, [0.5] * (len(shape) if len(shape) == 2 else 2 if grids is FLAT else 3))
    assert made.image.shape == seen


@pytest.mark.parametrize(
    ("shape", "channels", "grids", "what", "remedy"),
    [
        ((8, 9, 10), 2, SLICES, r"\(8, 9, 10\).*expects \(2, Z, Y, X\)", "channels a, b as first axis"),
        ((3, 8, 9, 10), 2, SLICES, r"\(3, 8, 9, 10\).*\(2, Z, Y, X\)", "channels a, b as first axis"),
        ((8, 9, 10, 2), 2, SLICES, r"\(2, Z, Y, X\)", "moveaxis"),
        ((9, 10), 2, SLICES, r"\(2, Z, Y, X\)", "whole volumes"),
        ((9, 10, 2), 2, FLAT, r"expects \(2, Y, X\)", "moveaxis"),
        ((3, 9, 10), 1, FLAT, r"expects \(1, Y, X\) or \(Y, X\)", "one channel"),
        ((2, 8, 9, 10, 1), 1, SLICES, r"expects \(1, Z, Y, X\) or \(Z, Y, X\)", "front"),
        ((7,), 1, SLICES, r"\(7,\)", "one channel"),
        ((), 1, SLICES, r"\(\)", "one channel"),
    ],
)
def test_arrays_of_another_form_are_refused(shape, channels, grids, what, remedy):
    plan = replace(plan_of(channels=("a", "b")[:channels]), grids=grids)
    with pytest.raises(UsageError, match=what) as caught:
        case_of_array(np.zeros(shape, np.float32), plan, (1, 1, 1))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("spacing", "what"),
    [
        ((1, 1), "spacing has 2 numbers, but the array has 3 spatial axes"),
        ((1, 1, 1, 1), "spacing has 4 numbers"),
        ((1, 0, 1), "expected finite numbers above 0"),
        ((1, -1, 1), "expected finite numbers above 0"),
        ((1, float("nan"), 1), "expected finite numbers above 0"),
        ((1, float("inf"), 1), "expected finite numbers above 0"),
        (("1", 1, 1), "expected finite numbers above 0"),
        ((True, 1, 1), "expected finite numbers above 0"),
        (1.0, "expected 3 numbers"),
        (None, "no spacing is given"),
    ],
)
def test_spacings_that_cannot_be_are_refused(spacing, what):
    with pytest.raises(UsageError, match=what) as caught:
        case_of_array(picture((8, 9, 10)), replace(plan_of(), grids=SLICES), spacing)
    assert "spacing=(Z, Y, X) in mm" in caught.value.remedy


def test_without_spacing_voxels_count_as_they_did_in_training():
    ones = TrainingGrids((1.0,) * 3, (1.0,) * 3, (8, 8, 8), (30, 30, 30))
    made = case_of_array(picture((8, 9, 10)), replace(plan_of(), grids=ones), None)
    assert (made.spacing, made.geometry.sized) == ((1.0, 1.0, 1.0), False)
    assert case_of_array(picture((8, 9, 10)), plan_of(), np.array([2, 1, 1])).spacing == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("code", ["", "LP", "LPSS", "LRS", "lps", "XYZ", None, 7])
def test_orientations_that_cannot_be_are_refused(code):
    with pytest.raises(UsageError, match="expected three letters"):
        case_of_array(picture((8, 9, 10)), plan_of(), (1, 1, 1), code)


def with_value(value: float) -> np.ndarray:
    array = picture((8, 9, 10)).astype(np.float64)
    array[2, 3, 4] = value
    return array


@pytest.mark.parametrize(
    ("array", "error", "what"),
    [
        (with_value(np.nan), DataError, "1 NaN voxels"),
        (with_value(-np.inf), DataError, "1 infinite voxels"),
        (with_value(1e300), DataError, "1 infinite voxels"),  # beyond single precision
        (with_value(1e30), DataError, "the rest would be constant"),
        (picture((8, 9, 10)).astype(complex), UsageError, "holds complex128, expected numbers"),
        (picture((8, 9, 10)).astype(object), UsageError, "holds object"),
        (picture((8, 9, 10)).astype(str), UsageError, "holds <U"),
        (np.zeros((0, 9, 10)), UsageError, "is empty"),
        ([[1, 2], [3, 4]], UsageError, r"the shape \(2, 2\)"),
    ],
)
def test_values_that_cannot_be_are_refused(array, error, what):
    with pytest.raises(error, match=what):
        case_of_array(array, replace(plan_of(), grids=SLICES), (1, 0.5, 0.5))
