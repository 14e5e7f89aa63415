"""What labels measure: by hand, by scikit-image and by SimpleITK."""

import csv
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from skimage.measure import label as components_of
from skimage.measure import regionprops

from autoseg.errors import StateError
from autoseg.imaging.formats.readers import read_geometry, read_labels
from autoseg.imaging.geometry import Geometry
from autoseg.imaging.labels import LabelSet
from autoseg.inference.statistics import (
    COORDINATES,
    TABLE,
    TOGETHER,
    CaseStatistics,
    ExpectedDice,
    FolderStatistics,
    LabelStatistics,
    border_of,
    collect,
    measure,
    series_of,
    unit_of,
    with_expected_dice,
    with_uncertainty,
    write_case,
)
from autoseg.inference.uncertainty import CaseUncertainty, Uncertainty
from autoseg.records import load
from files import affine_along, affine_of, nifti, tilted

LABELS = LabelSet({"liver": 3, "cyst": 7, "absent": 9})
BRAIN = LabelSet({"oedema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2))


def scattered(shape=(9, 11, 13), seed=3) -> np.ndarray:
    """Class indices 0, 1 and 2 in blobs."""
    field = np.random.default_rng(seed).normal(size=shape)
    smooth = sum(np.roll(field, step, axis) for axis in range(3) for step in (-1, 0, 1))
    return np.digitize(smooth, [2.0, 4.0]).astype(np.uint8)


def image_like(indices: np.ndarray) -> np.ndarray:
    return np.random.default_rng(5).normal(100, 30, (2, *indices.shape)).astype(np.float32)


def case_of(name="a", labels=(), **changes) -> CaseStatistics:
    fields = {"version": 1, "case": name, "segmentation": f"{name}.nii.gz", "shape": (9, 11, 13)}
    fields |= {"spacing": (1.0, 1.0, 1.0), "unit": "ml", "labels": tuple(labels)}
    return CaseStatistics(**(fields | changes))


def label_of(name="liver", size=1.5, **changes) -> LabelStatistics:
    return replace(LabelStatistics(name, (1,), 10, size, 1, (1, 2, 3), (4, 5, 6), ((0, 2),) * 3, (), {}), **changes)


@pytest.mark.parametrize("degrees", [0, 25])
def test_an_oblique_volume_against_simple_itk_and_scikit_image(tmp_path, degrees):
    """SimpleITK measures the written file in its own way, with the direction in its header."""
    indices = scattered()
    path = nifti(tmp_path / "labels.nii.gz", indices, affine_of(tilted(degrees)))
    geometry, image = read_geometry(path), image_like(indices)
    found = {label.name: label for label in measure(indices, image, geometry, LABELS, ("CT", "PET"))}
    mask = sitk.ReadImage(str(path))
    shapes, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shapes.Execute(mask)
    voxel_ml = abs(np.linalg.det(nib.load(path).affine[:3, :3])) / 1000
    for props in regionprops(indices):
        own, index = found[("", "liver", "cyst")[props.label]], props.label
        assert own.voxels == props.area == shapes.GetNumberOfPixels(index)
        assert own.size == pytest.approx(props.area * voxel_ml, rel=1e-5)
        assert own.size == pytest.approx(shapes.GetPhysicalSize(index) / 1000, rel=1e-5)
        assert own.centroid_voxels == pytest.approx(props.centroid)
        assert own.centroid_mm == pytest.approx(shapes.GetCentroid(index), abs=1e-3)
        assert own.box == tuple(zip(props.bbox[:3], props.bbox[3:], strict=True))
        assert own.components == components_of(indices == index, connectivity=3).max()
        for channel, plane in zip(("CT", "PET"), image, strict=True):
            values.Execute(sitk.GetImageFromArray(plane), sitk.GetImageFromArray(indices))
            inside = own.intensities[channel]
            assert inside.mean == pytest.approx(values.GetMean(index), rel=1e-6)
            assert inside.std == pytest.approx(plane[indices == index].astype(float).std(), rel=1e-9)
            assert (inside.min, inside.max) == pytest.approx((values.GetMinimum(index), values.GetMaximum(index)))


def test_the_centroid_in_mm_is_where_nibabel_puts_it_in_lps(tmp_path):
    """One voxel at (z, y, x) = (2, 3, 4) of an image stored in another order of axes; nibabel counts in RAS."""
    indices = np.zeros((5, 6, 7), np.uint8)
    indices[2, 3, 4] = 1
    path = nifti(tmp_path / "labels.nii.gz", indices, affine_along("SLA", (3, 1, 2), (10, 20, 30)))
    (liver, *_) = measure(indices, image_like(indices), read_geometry(path), LABELS, ("CT", "PET"))
    x, y, z = (nib.load(path).affine @ [4, 3, 2, 1])[:3]
    assert liver.centroid_mm == pytest.approx((-x, -y, z))
    assert liver.centroid_voxels == (2, 3, 4)
    assert "LPS" in COORDINATES


def test_a_label_that_is_absent():
    indices = scattered()
    *_, absent = measure(indices, image_like(indices), Geometry(indices.shape, (1, 1, 1)), LABELS, ("CT", "PET"))
    assert absent == LabelStatistics("absent", (9,), 0, 0.0, 0, None, None, None, (), {})


def test_regions_of_several_labels_are_measured_as_unions():
    indices = scattered()
    found = measure(indices, image_like(indices), Geometry(indices.shape, (1, 1, 1)), BRAIN, ("T1", "T2"))
    assert [(label.name, label.values) for label in found] == [("oedema", (1,)), ("core", (2,)), ("whole", (1, 2))]
    assert found[2].voxels == found[0].voxels + found[1].voxels == np.count_nonzero(indices)
    assert found[2].intensities["T1"].mean == pytest.approx(image_like(indices)[0][indices > 0].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (Geometry((2, 3, 4), (5.0, 0.5, 2.0)), ("ml", 0.005)),
        (Geometry((1, 3, 4), (1.0, 0.5, 0.25), flat=True), ("mm2", 0.125)),
        (Geometry((1, 3, 4), (1.0, 1.0, 1.0), flat=True, sized=False, placed=False), ("pixels", 1.0)),
        (Geometry((2, 3, 4), (1.0, 1.0, 1.0), sized=False, placed=False), ("voxels", 1.0)),
    ],
)
def test_units(geometry, expected):
    assert unit_of(geometry) == (expected[0], pytest.approx(expected[1]))


def test_a_picture_has_an_area_and_no_place():
    geometry = Geometry((1, 4, 5), (1.0, 0.5, 0.5), flat=True, placed=False)
    indices = np.zeros((1, 4, 5), np.uint8)
    indices[0, 0:2, 3:5] = 1
    (liver, *_) = measure(indices, image_like(indices), geometry, LABELS, ("R", "G"))
    assert (liver.size, liver.centroid_voxels, liver.centroid_mm) == (1.0, (0, 0.5, 3.5), None)
    assert liver.border == ("top", "right")


def test_borders_are_named_where_they_are_in_the_patient():
    stored = Geometry((5, 6, 7), (1, 1, 1))  # LPS: x to the left, y to the posterior, z to the superior
    assert border_of(((0, 2), (1, 5), (3, 7)), stored) == ("inferior", "left")
    assert border_of(((1, 4), (0, 6), (0, 6)), stored) == ("anterior", "posterior", "right")
    turned = replace(stored, direction=((0, 0, -1.0), (0, -1.0, 0), (-1.0, 0, 0)))
    assert border_of(((0, 2), (1, 5), (3, 7)), turned) == ("superior", "right")
    assert border_of(((0, 2), (1, 5), (3, 7)), replace(stored, placed=False)) == ("first z", "last x")
    assert border_of(((1, 2), (1, 5), (3, 6)), stored) == ()
    assert border_of(((0, 1), (1, 5), (3, 6)), replace(stored, shape=(1, 6, 7))) == ()


def test_files_of_a_folder_are_put_together(tmp_path):
    for name, size in (("b", 2.0), ("a", 1.0)):
        (tmp_path / f"{name}.nii.gz").touch()
        expected = ExpectedDice(0.9, 0.8, 0.95, 0.9)
        case = case_of(name, [label_of(size=size), label_of("cyst", 0.0, centroid_mm=None, box=None)])
        write_case(tmp_path, with_expected_dice(case, {"liver": expected}, expected))
    together = collect(tmp_path)
    assert load(FolderStatistics, tmp_path / TOGETHER) == together
    assert [case.case for case in together.cases] == ["a", "b"]
    with open(tmp_path / TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["label"], r["size"], r["unit"]) for r in rows[:2]] == [
        ("a", "liver", "1", "ml"), ("a", "cyst", "0", "ml")
    ]  # fmt: skip
    assert (rows[0]["expected_dice"], rows[0]["expected_dice_low"], rows[1]["expected_dice"]) == ("0.9", "0.8", "")
    assert (rows[0]["centroid_x_mm"], rows[1]["centroid_x_mm"], rows[1]["box_z0"]) == ("4", "", "")


def test_a_segmentation_that_was_deleted_is_left_out(tmp_path):
    assert collect(tmp_path) is None
    for name in ("a", "b"):
        write_case(tmp_path, case_of(name))
    (tmp_path / "b.nii.gz").touch()
    assert [case.case for case in collect(tmp_path).cases] == ["b"]


def test_a_record_that_was_damaged_is_reported(tmp_path):
    write_case(tmp_path, case_of("a")).write_text("{}")
    with pytest.raises(StateError, match=r"a\.json: missing key"):
        collect(tmp_path)


def test_a_series_is_in_the_order_of_the_scans():
    cases = [
        case_of("second", [label_of(size=2.0)], patient="P", place_in_series=1),
        case_of("first", [label_of(size=1.0)], patient="P", place_in_series=0),
        case_of("other", [label_of()], patient="Q"),
        case_of("unknown", [label_of()]),
    ]
    (series,) = series_of(cases)
    assert (series.patient, series.cases, series.sizes) == ("P", ("first", "second"), {"liver": (1.0, 2.0)})
    assert series_of([*cases[:1], replace(cases[1], unit="voxels")]) == ()


def test_uncertainty_is_that_of_each_label():
    found = CaseUncertainty(1, "a", 5, Uncertainty(0.1, 0.2), {"liver": Uncertainty(0.3, 0.4)})
    case = with_uncertainty(case_of("a", [label_of(), label_of("cyst")]), found)
    assert (case.entropy, case.disagreement) == (0.1, 0.2)
    assert [(label.entropy, label.disagreement) for label in case.labels] == [(0.3, 0.4), (None, None)]
    nothing = with_uncertainty(case_of("a", [label_of()]), CaseUncertainty(1, "a", 5, None, {}))
    assert nothing == case_of("a", [label_of()])


def test_a_body_of_31_organs(data_dir):
    """Volumes and places of all organs of a CT against SimpleITK."""
    path = next((data_dir / "ct_ts_512x512x20" / "labels").glob("*.nii.gz"))
    volume = read_labels(path)
    values = [int(v) for v in np.unique(volume.array) if v]
    labels = LabelSet({f"organ {v}": v for v in values})
    indices = labels.to_indices(volume.array)
    found = measure(indices, volume.array[None].astype(np.float32), volume.geometry, labels, ("CT",))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt32))
    assert len(found) == len(values) == 31
    for own in found:
        assert own.size == pytest.approx(shapes.GetPhysicalSize(own.values[0]) / 1000, rel=1e-5)
        assert own.centroid_mm == pytest.approx(shapes.GetCentroid(own.values[0]), abs=1e-3)
        assert own.intensities["CT"].mean == own.values[0]
