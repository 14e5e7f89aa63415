"""Label maps as DICOM-SEG and RTSTRUCT: round trips in all 48 orientations, by this reader and by others."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")
pytest.importorskip("highdicom", reason="DICOM output needs the extra dicom")

import highdicom
import pydicom

import dicom
from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats import dicom_labels, dicom_output
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.geometry import Geometry, reorient, reorient_geometry, to_canonical

CANONICAL = Geometry(shape=(7, 12, 10), spacing=(2.5, 0.8, 0.7), origin=(-11.0, 22.5, -333.25))
NAMES = {"liver": 2, "the tumour": 5}
ORIENTATIONS = [
    (permutation, flips)
    for permutation in itertools.permutations((0, 1, 2))
    for flips in itertools.product((0, 1), repeat=3)
]


def segmented(image: np.ndarray) -> np.ndarray:
    """A trivial segmentation by threshold: 2 in the hollow block, 5 in the brighter one."""
    return np.where(image > 500, 5, np.where(image > 250, 2, 0)).astype(np.uint8)


def series(folder, permutation=(0, 1, 2), flips=(0, 0, 0)):
    array = np.ascontiguousarray(reorient(dicom.phantom(), permutation, flips))
    return dicom.slices(folder, array, reorient_geometry(CANONICAL, permutation, flips))


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


EXPECTED = segmented(dicom.phantom())


@pytest.mark.thorough
@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
def test_a_segmentation_keeps_its_place_by_both_readers(tmp_path, permutation, flips):
    folder = series(tmp_path / "s", permutation, flips)
    labels = segmented(read_image(folder).array[0])
    path = tmp_path / "seg.dcm"
    dicom_output.write(path, "dicom-seg", labels, folder, NAMES)
    for like in (folder, None):
        found = read_labels(path, like=like, names=NAMES)
        here = to_canonical(found)
        if like is not None:
            assert np.array_equal(here.array, EXPECTED)
        else:  # its own grid holds the slices that are not empty
            assert np.count_nonzero(here.array) == np.count_nonzero(EXPECTED)
    other = highdicom.seg.segread(path).get_volume(combine_segments=True, rescale_fractional=False)
    assert np.array_equal(on_canonical(other), np.select([EXPECTED == 2, EXPECTED == 5], [1, 2]))


def on_canonical(volume) -> np.ndarray:
    """The voxels of highdicom's volume at those of the canonical grid, by its own affine."""
    z, y, x = np.meshgrid(*map(np.arange, CANONICAL.shape), indexing="ij")
    steps = np.stack([z, y, x], axis=-1) * CANONICAL.spacing
    world = np.array(CANONICAL.origin) + steps @ np.array(CANONICAL.direction)
    index = np.linalg.inv(volume.affine) @ np.append(world.reshape(-1, 3), np.ones((world.size // 3, 1)), axis=1).T
    index = np.rint(index[:3]).astype(int)
    inside = ((index >= 0) & (index < np.array(volume.spatial_shape)[:, None])).all(axis=0)
    found = np.zeros(world.size // 3, int)
    found[inside] = volume.array[tuple(index[:, inside])]
    return found.reshape(CANONICAL.shape)


@pytest.mark.thorough
@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
def test_structures_keep_their_place_by_both_readers(tmp_path, permutation, flips):
    folder = series(tmp_path / "s", permutation, flips)
    labels = segmented(read_image(folder).array[0])
    path = tmp_path / "rt.dcm"
    dicom_output.write(path, "rtstruct", labels, folder, NAMES)
    found = to_canonical(read_labels(path, like=folder, names=NAMES))
    assert np.array_equal(found.array, EXPECTED)
    for name, value in NAMES.items():
        assert dice(by_skimage(path, folder, name), value == EXPECTED) >= 0.99


def by_skimage(path, folder, name) -> np.ndarray:
    """An independent reader of an RTSTRUCT: world coordinates by each slice's header, filled by scikit-image."""
    draw = pytest.importorskip("skimage.draw", reason="scikit-image is the second reader")
    images = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, folder.iterdir())}
    structures = pydicom.dcmread(path)
    (number,) = (roi.ROINumber for roi in structures.StructureSetROISequence if roi.ROIName == name)
    (contours,) = (roi for roi in structures.ROIContourSequence if roi.ReferencedROINumber == number)
    mask = np.zeros(CANONICAL.shape, bool)
    for contour in contours.ContourSequence:
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(image.ImagePositionPatient, float)
        assert np.abs(points @ np.cross(row, column)).max() < 1e-3
        rows, columns = points @ column / image.PixelSpacing[0], points @ row / image.PixelSpacing[1]
        for r, c in zip(*draw.polygon(rows, columns, (image.Rows, image.Columns)), strict=True):
            place = (
                np.array(image.ImagePositionPatient, float)
                + r * image.PixelSpacing[0] * column
                + c * image.PixelSpacing[1] * row
            )
            x, y, z = np.rint((place - CANONICAL.origin) / np.array(CANONICAL.spacing[::-1])).astype(int)
            mask[z, y, x] = True
    return mask


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_an_output_that_is_mirrored_is_never_written(tmp_path, monkeypatch, kind):
    """The fault that other programs had: the verification reads the file back on the series' grid, and refuses."""
    folder = series(tmp_path / "s")
    right = dicom_output.WRITERS[kind]

    def mirrored(path, slices, found, names):
        right(path, slices[..., ::-1], found, names)

    monkeypatch.setitem(dicom_output.WRITERS, kind, mirrored)
    with pytest.raises(StorageError, match=r"reads back differently \(mirrored along x\)"):
        dicom_output.write(tmp_path / "out.dcm", kind, segmented(dicom.phantom()), folder, NAMES)
    assert not list(tmp_path.glob("*.dcm"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
@pytest.mark.parametrize("flip", [0, 1, 2])
def test_a_mirrored_file_is_seen_by_the_round_trip(tmp_path, monkeypatch, kind, flip):
    """Planted past the verification: both readers of the round trips above see it."""
    folder = series(tmp_path / "s")
    monkeypatch.setattr(dicom_output, "_verify", lambda *args: None)
    wrong = np.flip(segmented(read_image(folder).array[0]), flip)
    dicom_output.write(tmp_path / "out.dcm", kind, wrong, folder, NAMES)
    assert not np.array_equal(read_labels(tmp_path / "out.dcm", like=folder, names=NAMES).array, EXPECTED)
    if kind == "dicom-seg":
        other = highdicom.seg.segread(tmp_path / "out.dcm").get_volume(combine_segments=True)
        assert not np.array_equal(on_canonical(other) > 0, EXPECTED > 0)
    else:
        assert dice(by_skimage(tmp_path / "out.dcm", folder, "liver"), EXPECTED == 2) < 0.99


def test_what_a_segmentation_states(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "seg.dcm", "dicom-seg", segmented(dicom.phantom()), folder, NAMES)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    first, second = data.SegmentSequence
    assert [first.SegmentLabel, second.SegmentLabel] == ["liver", "the tumour"]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert first.RecommendedDisplayCIELabValue != second.RecommendedDisplayCIELabValue
    image = pydicom.dcmread(next(folder.iterdir()))
    assert data.StudyInstanceUID == image.StudyInstanceUID
    assert data.FrameOfReferenceUID == image.FrameOfReferenceUID
    (reference,) = data.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == image.SeriesInstanceUID
    assert len(reference.ReferencedInstanceSequence) == 7


def test_what_a_structure_set_states(tmp_path):
    folder = series(tmp_path / "s")
    colours = {5: (255, 0, 128)}
    dicom_output.write(tmp_path / "rt.dcm", "rtstruct", segmented(dicom.phantom()), folder, NAMES, colours)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [int(v) for v in data.ROIContourSequence[1].ROIDisplayColor] == [255, 0, 128]
    assert [roi.ROIName for roi in data.StructureSetROISequence] == ["liver", "the tumour"]
    image = pydicom.dcmread(next(folder.iterdir()))
    reference = data.ReferencedFrameOfReferenceSequence[0]
    assert reference.FrameOfReferenceUID == image.FrameOfReferenceUID
    listed = reference.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == image.SeriesInstanceUID
    assert len(listed.ContourImageSequence) == 7
    assert data.Modality == "RTSTRUCT"


def test_colours_of_labels_are_known_values():
    """CIELab of pure red in sRGB is (53.24, 80.09, 67.20); white is (100, 0, 0)."""
    scale = np.array([65535 / 100, 65535 / 255, 65535 / 255])
    shift = np.array([0, 128, 128])
    assert np.allclose(np.array(dicom_output._cielab((255, 0, 0))) / scale - shift, (53.24, 80.09, 67.20), atol=0.05)
    assert np.allclose(np.array(dicom_output._cielab((255, 255, 255))) / scale - shift, (100, 0, 0), atol=0.05)


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_an_enhanced_series_and_an_empty_segmentation(tmp_path, kind):
    path = dicom.enhanced(tmp_path / "IM1.dcm", dicom.phantom(), CANONICAL, (3, 1, 0, 6, 5, 2, 4))
    labels = segmented(dicom.phantom())
    dicom_output.write(tmp_path / "a.dcm", kind, labels, path, NAMES)
    assert np.array_equal(read_labels(tmp_path / "a.dcm", like=path, names=NAMES).array, labels)
    dicom_output.write(tmp_path / "b.dcm", kind, labels * 0, path, NAMES)
    assert not read_labels(tmp_path / "b.dcm", like=path, names=NAMES).array.any()


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_a_tilted_series_gets_labels_on_its_own_slices(tmp_path, kind):
    """Slices shifted by one pixel each: labels are drawn on the stored slices, and read back onto the same grid."""
    positions = np.array(CANONICAL.origin) + np.arange(7)[:, None] * np.array([0.0, 0.8, 2.5])
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, positions=positions)
    volume = read_image(folder)
    assert volume.geometry.shape == (7, 18, 10)
    labels = segmented(volume.array[0])
    dicom_output.write(tmp_path / "x.dcm", kind, labels, folder, NAMES)
    assert np.array_equal(read_labels(tmp_path / "x.dcm", like=folder, names=NAMES).array, labels)
    if kind == "dicom-seg":
        data = pydicom.dcmread(tmp_path / "x.dcm")
        places = {
            tuple(map(float, f.PlanePositionSequence[0].ImagePositionPatient))
            for f in data.PerFrameFunctionalGroupsSequence
        }
        assert places <= {tuple(np.round(p, 8).tolist()) for p in positions}


def test_a_radiograph_cannot_be_referred_to(tmp_path):
    def change(data, i):
        del data.ImagePositionPatient, data.ImageOrientationPatient

    folder = dicom.slices(tmp_path / "x", dicom.phantom()[:1], CANONICAL, change=change)
    with pytest.raises(UsageError, match="no position in space"):
        dicom_output.write(tmp_path / "a.dcm", "rtstruct", np.zeros((1, 12, 10), np.uint8), folder, NAMES)
    with pytest.raises(UsageError, match="is not DICOM"):
        dicom_output.write(tmp_path / "a.dcm", "rtstruct", np.zeros((1, 1, 1), np.uint8), tmp_path / "x.nii.gz", NAMES)


# ---- reading labels -------------------------------------------------------------------------------------------------


def test_names_choose_values_and_others_are_left_out(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "seg.dcm", "dicom-seg", EXPECTED, folder, NAMES)
    assert dicom_labels.names_in(tmp_path / "seg.dcm") == {"liver": 1, "the tumour": 2}
    found = read_labels(tmp_path / "seg.dcm", like=folder, names={"The_Tumour": 9}).array
    assert np.array_equal(found, (EXPECTED == 5) * 9)
    assert np.array_equal(np.unique(read_labels(tmp_path / "seg.dcm", like=folder).array), [0, 1, 2])


def test_a_contour_between_slices_above_all_or_oblique(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "rt.dcm", "rtstruct", EXPECTED, folder, NAMES)

    def moved(by):
        data = pydicom.dcmread(tmp_path / "rt.dcm")
        for roi in data.ROIContourSequence:
            for contour in roi.ContourSequence:
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                contour.ContourData = [f"{v:.4f}" for v in by(points).ravel()]
        data.save_as(tmp_path / "moved.dcm")
        return read_labels(tmp_path / "moved.dcm", like=folder, names=NAMES)

    assert np.array_equal(
        moved(lambda p: np.add(p, [0, 0, 1.0])).array, EXPECTED
    )  # nearer to its own slice, 2.5 mm apart
    above = moved(lambda p: np.add(p, [0, 0, 2.5 * 3]))
    assert "contours outside the slices" in above.geometry.remarks[0].what
    assert np.array_equal(above.array[4:], EXPECTED[1:4])
    with pytest.raises(DataError, match=r"all \d+ contours lie outside the image"):
        moved(lambda p: np.add(p, [0, 0, 500.0]))
    with pytest.raises(DataError, match=r"a contour of liver is not parallel to the slices"):
        moved(lambda p: p[:, [0, 2, 1]])


def test_an_rtstruct_needs_an_image(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "rt.dcm", "rtstruct", EXPECTED, folder, NAMES)
    with pytest.raises(DataError, match="need the image"):
        read_labels(tmp_path / "rt.dcm")


def test_structures_that_overlap_are_counted_and_the_greater_value_is_kept(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "rt.dcm", "rtstruct", (EXPECTED == 2) * np.uint8(2), folder, {"a": 2})
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    second = copy.deepcopy(data.StructureSetROISequence[0])
    second.ROINumber, second.ROIName = 2, "b"
    contours = copy.deepcopy(data.ROIContourSequence[0])
    contours.ReferencedROINumber = 2
    data.StructureSetROISequence.append(second)
    data.ROIContourSequence.append(contours)
    data.save_as(tmp_path / "two.dcm")
    found = read_labels(tmp_path / "two.dcm", like=folder, names={"a": 3, "b": 1})
    assert np.array_equal(found.array, (EXPECTED == 2) * 3)
    assert f"{np.count_nonzero(EXPECTED == 2)} voxels of b and a" in found.geometry.remarks[0].what


def test_a_segmentation_of_another_image_is_refused(tmp_path):
    folder = series(tmp_path / "s")
    dicom_output.write(tmp_path / "seg.dcm", "dicom-seg", EXPECTED, folder, NAMES)
    moved = dicom.slices(tmp_path / "t", dicom.phantom(), replace(CANONICAL, origin=(-11.3, 22.5, -333.25)))
    with pytest.raises(DataError, match=r"seg\.dcm is not on the grid of the image"):
        read_labels(tmp_path / "seg.dcm", like=moved)
    smaller = dicom.slices(tmp_path / "u", dicom.phantom()[:4], replace(CANONICAL, shape=(4, 12, 10)))
    with pytest.raises(DataError, match="covers voxels 4 to 4 of axis z, which has 4"):
        read_labels(tmp_path / "seg.dcm", like=smaller)


def test_labels_on_the_grid_of_a_nifti_of_the_same_series(tmp_path):
    """As evaluation needs it: the segmentation is NIfTI, stored in another order of axes."""
    from autoseg.imaging.formats.readers import write_labels

    folder = series(tmp_path / "s", (1, 0, 2), (1, 0, 1))
    dicom_output.write(tmp_path / "seg.dcm", "dicom-seg", segmented(read_image(folder).array[0]), folder, NAMES)
    plain = dicom.slices(tmp_path / "p", dicom.phantom(), CANONICAL)
    write_labels(tmp_path / "other.nii.gz", EXPECTED, like=plain)
    assert np.array_equal(
        read_labels(tmp_path / "seg.dcm", like=tmp_path / "other.nii.gz", names=NAMES).array, EXPECTED
    )
