"""Which case and plane is shown, where the largest error is, what the viewer gets."""

import base64
import gzip
import io
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.object_scores import ObjectCounts
from autoseg.report.gallery import chosen
from autoseg.report.small_volumes import (
    CONFUSED,
    EXTRA,
    MISSED,
    RIGHT,
    errors_of,
    factors_for,
    volumes_of,
)
from autoseg.report.stills import CaseArrays, around, grey_levels, largest_error, outline, stills


def arrays(shape=(12, 20, 30), spacing=(2.0, 1.0, 1.0), **more) -> CaseArrays:
    """A box of label 1, of which the segmentation misses a cube of 4 voxels and adds a shell of one."""
    reference, segmentation = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    reference[3:9, 5:15, 8:20] = 1
    segmentation[3:9, 5:15, 7:20] = 1  # a plane too much
    segmentation[4:8, 9:13, 12:16] = 0  # a hole
    image = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    return CaseArrays("c", image, reference, segmentation, spacing, **more)


def nifti(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def scores(**dice: float | None) -> list[CaseScore]:
    return [CaseScore(name, ((1,),), {"x": {"dice": value}}) for name, value in dice.items()]


def test_worst_median_and_best_cases():
    cases = scores(**{f"c{i:02d}": i / 20 for i in range(11)}, none=None)
    places = chosen(cases, each=3)
    assert [name for name, where in places.items() if where == "worst"] == ["c00", "c01", "c02"]
    assert [name for name, where in places.items() if where == "median"] == ["c04", "c05", "c06"]
    assert [name for name, where in places.items() if where == "best"] == ["c10", "c09", "c08"]


@pytest.mark.parametrize("count", range(8))
def test_few_cases_are_each_shown_once(count):
    names = [f"c{i}" for i in range(count)]
    assert sorted(chosen(scores(**dict.fromkeys(names, 0.5)))) == names


def test_the_largest_error_is_the_thickest():
    """Of the hole 4 x 4 x 4 and of a plane of 60 voxels, a voxel in the middle of the hole."""
    z, y, x = largest_error(arrays())
    assert 4 <= z < 8
    assert 9 <= y < 13
    assert 12 <= x < 16
    assert (y, x) in {(10, 13), (10, 14), (11, 13), (11, 14)}


def test_in_a_large_image_every_second_voxel_is_looked_at(monkeypatch):
    """Of a hole of 8 x 8 x 8 voxels and a plane; the box of the errors has 12 x 20 x 25 = 6000."""
    monkeypatch.setattr("autoseg.report.stills.MOST_SEARCHED", 1000)
    small = arrays()
    twice = np.ones((2, 2, 2), np.int16)
    reference, segmentation = (np.kron(one, twice) for one in (small.reference, small.segmentation))
    z, y, x = largest_error(CaseArrays("c", np.ones(reference.shape), reference, segmentation, (1.0, 1.0, 1.0)))
    assert (8 < z < 15, 18 < y < 25, 24 < x < 31) == (True, True, True)


def test_without_an_error_the_middle_of_the_labels_is_shown():
    case = arrays()
    sound = CaseArrays("c", case.image, case.reference, case.reference, case.spacing)
    z, y, x = largest_error(sound)
    assert sound.reference[z, y, x] == 1
    empty = CaseArrays("c", case.image, 0 * case.reference, 0 * case.reference, case.spacing)
    assert largest_error(empty) == (6, 10, 15)
    assert all(axis.start == 0 for axis in around(empty))


def test_an_error_of_a_flat_image_is_found():
    reference = np.zeros((1, 20, 20), np.int16)
    reference[0, 5:15, 5:15] = 1
    segmentation = reference.copy()
    segmentation[0, 8:13, 8:13] = 0
    case = CaseArrays("c", np.ones((1, 20, 20), np.float32), reference, segmentation, (1.0, 1.0, 1.0))
    assert largest_error(case) == (0, 10, 10)
    assert [one.plane for one in stills(case)] == ["axial"]


def test_three_planes_with_contours_and_true_proportions():
    found = stills(arrays())
    assert [one.plane for one in found] == ["axial", "coronal", "sagittal"]
    for one in found:
        assert one.svg.count('class="reference"') == one.svg.count('class="segmentation"') == 1
    boxes = [tuple(map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', one.svg).groups())) for one in found]
    (width, depth), (same_width, height), (same_depth, same_height) = boxes
    assert (width, depth, height) == (same_width, same_depth, same_height)  # mm: planes fit each other
    assert height == 24  # all 12 slices of 2 mm: the margin reaches the ends


def test_superior_is_above():
    """The brightest slice is the lowest one, z = 0: the last row of a coronal picture."""
    case = arrays()
    image = np.zeros_like(case.image)
    image[0] = 1000
    one = stills(CaseArrays("c", image, case.reference, case.segmentation, case.spacing))[1]
    data = re.search(r"data:image/png;base64,([^\"]+)", one.svg)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert picture[-1].min() == 255
    assert picture[:-1].max() == 0


def test_contours_follow_voxel_edges():
    """One voxel at row 1, column 2, of 2 x 1 mm: a diamond about its centre (x 2.5, y 3)."""
    mask = np.zeros((3, 5), np.int16)
    mask[1, 2] = 3
    points = re.findall(r"([\d.]+),([\d.]+)", outline(mask, (2.0, 1.0)))
    assert {(float(x), float(y)) for x, y in points} == {(2, 3), (3, 3), (2.5, 2), (2.5, 4)}
    assert outline(np.zeros((3, 5), np.int16), (1.0, 1.0)) == ""


def test_a_name_in_a_picture_is_escaped():
    case = arrays()
    named = CaseArrays("<b>&", case.image, case.reference, case.segmentation, case.spacing)
    assert all("<b>" not in one.svg and "&lt;b&gt;&amp;" in one.svg for one in stills(named))


def test_kinds_of_errors():
    reference, segmentation = np.array([0, 1, 1, 0, 2, 2]), np.array([0, 1, 0, 2, 2, 1])
    assert errors_of(reference, segmentation).tolist() == [0, RIGHT, MISSED, EXTRA, RIGHT, CONFUSED]


def test_volumes_of_the_viewer_are_the_case():
    """Uncropped: the margin of 8 mm reaches the ends along z; NIfTI is x, y, z, and its x grows to the right."""
    case = arrays()
    found = volumes_of(case, 10**6)
    box = around(case)
    image, reference, errors = nifti(found.image), nifti(found.reference), nifti(found.errors)
    assert image.get_data_dtype() == reference.get_data_dtype() == np.uint8
    assert (case.reference[box] == np.asarray(reference.dataobj).T).all()
    assert (errors_of(case.reference[box], case.segmentation[box]) == np.asarray(errors.dataobj).T).all()
    assert image.header.get_zooms() == (1, 1, 2)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    z, y, x = largest_error(case)
    inside = np.array([x - box[2].start, y - box[1].start, z - box[0].start]) + 0.5
    share = inside / image.shape
    assert found.at == pytest.approx((1 - share[0], 1 - share[1], share[2]))


def test_volumes_are_shrunk_until_they_fit():
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (60, 80, 80)).astype(np.float32)
    reference = np.zeros(image.shape, np.int16)
    reference[10:50, 10:70, 10:70] = 1
    case = CaseArrays("c", image, reference, reference, (1.0, 1.0, 1.0))
    found = volumes_of(case, 60_000)
    assert found.nbytes <= 60_000
    assert min(found.spacing) > 1
    assert volumes_of(case, 10) is None


def test_the_finest_axis_is_shrunk_first():
    assert factors_for((10, 100, 100), (5.0, 1.0, 1.0), 100_000) == (1, 1, 1)
    assert factors_for((10, 100, 100), (5.0, 1.0, 1.0), 25_000) == (1, 2, 2)
    assert factors_for((1, 1, 64), (1.0, 1.0, 1.0), 4) == (1, 1, 16)


def test_grey_levels_keep_order_and_clip():
    grey = grey_levels(np.array([[[0.0, 1, 2, 3]]], np.float32))
    assert grey.dtype == np.uint8
    assert (np.diff(grey.astype(int)) >= 0).all()
    assert (grey_levels(np.full((2, 2, 2), 7.0)) == 0).all()


def test_objects_that_touch_have_an_outline_each():
    numbers = np.zeros((1, 8, 12), np.int32)
    numbers[0, 2:6, 2:6], numbers[0, 2:6, 6:10] = 7, 9
    case = CaseArrays(
        "c", np.zeros(numbers.shape, np.float32), (numbers > 0).astype(int), (numbers > 0).astype(int), (1.0,) * 3,
        objects=(numbers, numbers),
    )  # fmt: skip
    (still,) = stills(case)
    path = re.search(r'class="reference" d="([^"]*)"', still.svg)
    assert path
    assert path.group(1).count("M") == 2
    assert outline(np.full((3, 4), 5), (1.0, 1.0)).count("M") == 1


def test_images_of_objects_are_ordered_by_the_share_that_was_found():
    def case(name: str, dice: float, matched: int) -> CaseScore:
        counts = ObjectCounts(10, 10, (matched,) * 10, float(matched), 0, 0)
        return CaseScore(name, ((1,),), {"x": {"dice": dice}}, objects={"x": counts})

    places = chosen([case("a", 0.9, 1), case("b", 0.1, 9), case("c", 0.5, 5)], each=1)
    assert places == {"a": "worst", "c": "median", "b": "best"}
