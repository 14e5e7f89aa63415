"""Images to predict against the grids a model was trained on."""

from dataclasses import replace

import pytest

from autoseg.errors import DataError, StateError
from autoseg.imaging.geometry import Geometry
from autoseg.planning.foreign_grids import require_like, training_grids
from autoseg.planning.plan import TrainingGrids
from synthetic_fingerprints import case, fingerprint, label_set

# slices of 2 to 5 mm, pixels of 0.6 to 0.9 mm
SEEN = TrainingGrids((2.0, 0.6, 0.6), (5.0, 0.9, 0.9), (20, 200, 200), (90, 512, 512))


def look(spacing, seen=SEEN, *, axis_order=(0, 1, 2), slices_alone=False, **grid):
    stored = Geometry((30, 256, 256), spacing, **grid)
    return require_like("i.nii", stored, spacing, seen, axis_order, slices_alone=slices_alone)


def test_the_range_is_that_of_the_cases():
    cases = [case(0, (2, 0.6, 0.9), (20, 200, 512), {}, []), case(1, (5, 0.9, 0.6), (90, 512, 200), {}, [])]
    assert training_grids(fingerprint(cases, label_set(2))) == SEEN


@pytest.mark.parametrize("spacing", [(2, 0.6, 0.6), (5, 0.9, 0.9), (10, 1.8, 1.8), (1, 0.3, 0.3), (3, 0.7, 0.7)])
def test_within_twice_the_range_nothing_is_said(spacing):
    assert look(spacing) == []


@pytest.mark.parametrize(
    ("spacing", "words"), [((11, 0.7, 0.7), "2.2 times larger"), ((3, 0.2, 0.7), "3 times smaller")]
)
def test_beyond_there_is_a_warning(spacing, words):
    (remark,) = look(spacing)
    assert remark.kind == "unlike training"
    assert f"{words} than any along one axis" in remark.what
    assert "the model was trained on 2 to 5 x 0.6 to 0.9 x 0.6 to 0.9 mm" in remark.what


@pytest.mark.parametrize("spacing", [(3e-3, 7e-4, 7e-4), (3e3, 7e2, 7e2), (25.0, 4.5, 4.5), (300, 0.7, 0.7)])
def test_an_image_in_another_unit_is_refused(spacing):
    with pytest.raises(
        DataError, match=r"i\.nii: voxels of .* mm, the model was trained on 2 to 5 x .*than any"
    ) as caught:
        look(spacing)
    assert "correct the voxel size in its header" in caught.value.remedy


def test_axes_follow_the_plan():
    assert look((0.7, 4.0, 0.7), axis_order=(2, 0, 1)) == []
    assert look((0.7, 4.0, 0.7))[0].kind == "unlike training"


def test_slices_alone_may_be_of_any_thickness():
    with pytest.raises(DataError):
        look((500, 0.7, 0.7))
    assert look((500, 0.7, 0.7), slices_alone=True) == []


def test_flat_images_are_no_volumes():
    with pytest.raises(DataError, match="a flat"):
        look((1.0, 0.7, 0.7), flat=True)
    flat = TrainingGrids((1.0, 0.6, 0.6), (1.0, 0.9, 0.9), (1, 200, 200), (1, 512, 512))
    assert look((1.0, 0.7, 0.7), flat, flat=True) == []
    with pytest.raises(DataError, match="700 x 700 mm"):
        look((1.0, 700.0, 700.0), flat, flat=True)


def test_an_image_without_a_size():
    with pytest.raises(DataError, match="does not state its voxel size, but the model was trained on"):
        look((1.0, 1.0, 1.0), sized=False)
    ones = TrainingGrids((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (20, 200, 200), (90, 512, 512))
    assert look((1.0, 1.0, 1.0), ones, sized=False) == []
    with pytest.raises(DataError) as caught:
        look((1e-3, 1e-3, 1e-3), ones)
    assert "state no voxel size count as 1 mm" in caught.value.remedy


@pytest.mark.parametrize(
    "changes", [{"spacing_min": (0.0, 1, 1)}, {"shape_min": (20, 600, 200)}, {"spacing_max": (-1.0, 1, 1)}]
)
def test_ranges_without_meaning_are_refused(changes):
    with pytest.raises(StateError, match="numbers above 0"):
        replace(SEEN, **changes)


def test_an_older_plan_compares_nothing():
    assert look((3e3, 7e2, 7e2), None) == []
