"""The arrays of a case against voxels placed by hand, and what must hold for its grids and values."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from autoseg.datasets.dataset import Case, load_case
from autoseg.datasets.loading import class_indices, count_values, non_finite
from autoseg.errors import DataError
from autoseg.imaging.labels import LabelSet


def test_a_case_is_brought_to_one_axis_order(tmp_path):
    """One voxel at left 1, posterior 2, superior 0 mm, stored in RAS (x to the right, y to the front)."""
    array = np.zeros((3, 4, 5), np.float32)  # stored (z, y, x)
    array[0, 1, 3] = 7  # x index 3 of 5: 1 from the left end; y index 1 of 4: 2 from the front end
    origin = (4.0, 3.0, 0.0)  # the right end lies at x = 0, the front end at y = 0
    image = tiny.nifti(tmp_path / "i.nii", array, (3.0, 1.0, 1.0), origin, "RAS")
    label = tiny.nifti(tmp_path / "l.nii", (array > 0).astype(np.uint8), (3.0, 1.0, 1.0), origin, "RAS")
    case = Case("c", "c", (str(image),), str(label))
    loaded = load_case(case, LabelSet({"dot": 1}))
    assert np.argwhere(loaded.image[0]).tolist() == [[0, 2, 1]]
    assert np.argwhere(loaded.target).tolist() == [[0, 2, 1]]
    assert (loaded.spacing, loaded.image.dtype, loaded.target.dtype) == ((3.0, 1.0, 1.0), np.float32, np.int16)
    stored = load_case(case, None, orientation="as_stored", axis_order=(1, 0, 2))
    assert stored.target is None
    assert (stored.image.shape, stored.spacing) == ((1, 4, 3, 5), (1.0, 3.0, 1.0))
    assert np.argwhere(stored.image[0]).tolist() == [[1, 0, 3]]


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(["L", "P", "S"]), st.tuples(*[st.booleans()] * 3), st.permutations([0, 1, 2]),
    st.sampled_from(["canonical", "as_stored"]),
)  # fmt: skip
def test_to_stored_undoes_any_order(tmp_path_factory, axes, flips, axis_order, orientation):
    opposite = {"L": "R", "P": "A", "S": "I"}
    code = "".join(opposite[a] if flip else a for a, flip in zip(axes, flips, strict=True))
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = tiny.nifti(tmp_path_factory.mktemp("axes") / "i.nii", array, (1.0, 2.0, 3.0), axes=code)
    loaded = load_case(Case("c", "c", (str(path),), None), None, orientation=orientation, axis_order=tuple(axis_order))
    assert np.array_equal(loaded.to_stored(loaded.image)[0], array)
    assert sorted(zip(loaded.image.shape[1:], loaded.spacing, strict=True)) == [(3, 1.0), (4, 2.0), (5, 3.0)]


def test_a_case_that_cannot_be_loaded_names_its_file(tmp_path):
    sound = tiny.nifti(tmp_path / "i.nii", tiny.image(1))
    moved = tiny.nifti(tmp_path / "moved.nii", tiny.image(2), origin=(0.5, 0, 0))
    strange = tiny.nifti(tmp_path / "strange.nii", tiny.label(1, 7))
    holes = tiny.image(3)
    holes[0, 0, 0] = np.nan
    holes = tiny.nifti(tmp_path / "holes.nii", holes)
    labels = LabelSet({"one": 1})
    for case, message in (
        (Case("c", "c", (str(sound), str(moved)), None), r"moved\.nii: origin"),
        (Case("c", "c", (str(holes),), None), r"holes\.nii: 1 NaN voxels"),
        (Case("c", "c", (str(sound),), str(strange)), r"strange\.nii: unexpected label values \[7\]"),
    ):
        with pytest.raises(DataError, match=message):
            load_case(case, labels)


def test_channels_and_labels_in_another_order_are_reordered_exactly(tmp_path):
    """Three voxels placed by hand: image stored LPS, second channel RAS, label with its axes in the order y, z, x."""
    array = np.zeros((3, 4, 5), np.float32)  # (z, y, x), origin 0, 1 mm, growing to the left, the back and up
    array[0, 1, 3] = array[2, 0, 0] = array[1, 3, 4] = 5
    first = tiny.nifti(tmp_path / "a.nii", array, (3.0, 2.0, 1.0))
    second = tiny.nifti(tmp_path / "b.nii", array[:, ::-1, ::-1] + 1, (3.0, 2.0, 1.0), (4.0, 6.0, 0.0), "RAS")
    turned = (array > 0).astype(np.uint8)[:, :, ::-1].transpose(2, 0, 1)  # its x, y, z run back, up and right
    label = tiny.nifti(tmp_path / "l.nii", turned, (1.0, 3.0, 2.0), (4, 0, 0), "PSR")
    loaded = load_case(Case("c", "c", (str(first), str(second)), str(label)), LabelSet({"dot": 1}))
    assert np.argwhere(loaded.target).tolist() == [[0, 1, 3], [1, 3, 4], [2, 0, 0]]
    assert np.array_equal(loaded.image[1], loaded.image[0] + 1)
    assert [(Path(file).name, remark.kind) for file, remark in loaded.remarks] == [
        ("b.nii", "reordered"), ("l.nii", "reordered")
    ]  # fmt: skip
    assert "(PSR here, LPS in the image)" in loaded.remarks[1][1].what
    assert np.array_equal(loaded.to_stored(loaded.image)[0], array)


def test_the_channel_that_has_a_place_gives_it_to_the_case(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    placed = tiny.nifti(tmp_path / "placed.nii", array, axes="RAI", origin=(4.0, 3.0, 2.0))
    unplaced = tiny.unplaced(tiny.nifti(tmp_path / "unplaced.nii", array))
    loaded = load_case(Case("c", "c", (str(unplaced), str(placed)), None), None)
    assert np.array_equal(loaded.image[0], array[::-1, ::-1, ::-1])
    assert np.array_equal(loaded.image[0], loaded.image[1])
    assert [(Path(file).name, remark.kind) for file, remark in loaded.remarks] == [("unplaced.nii", "unplaced")]
    assert np.array_equal(loaded.to_stored(loaded.image)[0], array)


def test_voxels_that_are_no_numbers_are_counted():
    array = np.zeros((1, 2, 2, 2), np.float32)
    assert non_finite(array) == ""
    array.flat[0] = -np.inf
    assert non_finite(array) == "1 infinite voxels (0.12 of all)"
    array.flat[1:3] = np.nan
    assert non_finite(array) == "2 NaN and 1 infinite voxels (0.38 of all)"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-3, 0, 1, 4, 255, 70000]), min_size=4, max_size=4))
def test_values_are_counted_and_mapped_as_by_sorting(values):
    array = np.array(values, dtype=np.int32).reshape(1, 2, 2)
    assert count_values(array) == {v: values.count(v) for v in sorted(set(values))}
    labels = LabelSet({"a": 1, "b": 4, "c": 70000}, ignore=255, aliases={-3: 1})
    assert np.array_equal(class_indices(array, labels, sorted(set(values))), labels.to_indices(array))
