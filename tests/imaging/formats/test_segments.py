"""Names and colours of labels in the files of viewers, read by other libraries where there are some."""

import xml.etree.ElementTree as ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import DataError
from autoseg.imaging.formats.readers import ending_of, read_geometry, read_labels, stem_of, write_labels
from autoseg.imaging.formats.seg_nrrd import named_segments
from autoseg.imaging.formats.segments import Segment, colour_of, itk_snap_labels, segments_of
from autoseg.imaging.labels import LabelSet
from files import affine_of, nifti, tilted

LABELS = LabelSet({"liver": 3, "tumour, necrotic": 7, "absent": 9})
VALUES = np.array([0, 3, 7], np.uint8)[np.random.default_rng(0).integers(0, 3, (4, 5, 6))]


@pytest.fixture
def image(tmp_path):
    return nifti(tmp_path / "image.nii.gz", affine=affine_of(tilted(15)))


def fields_of(path) -> dict[str, str]:
    """The header's key/value pairs, as SimpleITK reads them."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def test_the_header_of_a_slicer_segmentation(tmp_path, image):
    path = tmp_path / "case.seg.nrrd"
    write_labels(path, VALUES, image, segments_of(LABELS))
    fields = fields_of(path)
    assert [fields[f"Segment{n}_Name"] for n in range(3)] == ["liver", "tumour, necrotic", "absent"]
    assert [fields[f"Segment{n}_LabelValue"] for n in range(3)] == ["3", "7", "9"]
    assert [fields[f"Segment{n}_Layer"] for n in range(3)] == ["0", "0", "0"]
    assert len({fields[f"Segment{n}_ID"] for n in range(3)}) == 3
    assert [float(part) for part in fields["Segment0_Color"].split()] == pytest.approx(
        [part / 255 for part in colour_of(0)], abs=1e-5
    )
    z, y, x = np.nonzero(VALUES == 7)
    extent = [x.min(), x.max(), y.min(), y.max(), z.min(), z.max()]
    assert [int(number) for number in fields["Segment1_Extent"].split()] == extent
    assert fields["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert fields["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert "Segment3_ID" not in fields
    assert b"space: left-posterior-superior" in path.read_bytes()[:1000]


def test_a_slicer_segmentation_reads_back_on_the_image(tmp_path, image):
    path = tmp_path / "case.seg.nrrd"
    write_labels(path, VALUES, image, segments_of(LABELS))
    volume = read_labels(path)
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.geometry.origin, read_geometry(image).origin, atol=1e-4)
    np.testing.assert_allclose(volume.geometry.direction, read_geometry(image).direction, atol=1e-6)
    assert [(s.name, s.value) for s in named_segments(path)] == [
        ("liver", 3), ("tumour, necrotic", 7), ("absent", 9)
    ]  # fmt: skip


def test_its_extension_is_seg_nrrd(tmp_path):
    assert (ending_of("a/Case1.SEG.NRRD"), stem_of("a/case1.seg.nrrd")) == (".seg.nrrd", "case1")
    assert (ending_of("case.nrrd"), stem_of("case.nrrd")) == (".nrrd", "case")
    sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(tmp_path / "plain.nrrd"))
    assert named_segments(tmp_path / "plain.nrrd") == ()


def test_values_without_names_still_are_segments(tmp_path, image):
    write_labels(tmp_path / "case.seg.nrrd", VALUES, image)
    assert [(s.name, s.value) for s in named_segments(tmp_path / "case.seg.nrrd")] == [("label_3", 3), ("label_7", 7)]


def layered(path, layers: list[np.ndarray], segments: list[tuple[str, int, int]]):
    """A file as Slicer writes it where segments overlap: layers as the first axis of the NRRD file."""
    image = sitk.GetImageFromArray(np.stack(layers, axis=-1), isVector=True)
    for number, (name, value, layer) in enumerate(segments):
        image.SetMetaData(f"Segment{number}_ID", f"Segment_{number + 1}")
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
        image.SetMetaData(f"Segment{number}_Layer", str(layer))
    sitk.WriteImage(image, str(path))
    return path


def test_layers_without_overlap_become_one_map(tmp_path):
    first, second = np.where(VALUES == 3, 1, 0).astype(np.uint8), np.where(VALUES == 7, 2, 0).astype(np.uint8)
    path = layered(tmp_path / "a.seg.nrrd", [first, second], [("liver", 1, 0), ("cyst", 2, 1)])
    np.testing.assert_array_equal(read_labels(path).array, first + second)


def test_segments_that_overlap_are_refused_by_name(tmp_path):
    first, second = np.where(VALUES == 3, 1, 0).astype(np.uint8), np.where(VALUES > 0, 2, 0).astype(np.uint8)
    path = layered(tmp_path / "a.seg.nrrd", [first, second], [("liver", 1, 0), ("cyst", 2, 1)])
    shared = int((VALUES == 3).sum())
    with pytest.raises(DataError, match=f"segments overlap: liver and cyst share {shared} voxels"):
        read_labels(path)


def test_layers_that_use_one_value_twice_are_refused(tmp_path):
    first, second = np.where(VALUES == 3, 1, 0).astype(np.uint8), np.where(VALUES == 7, 1, 0).astype(np.uint8)
    path = layered(tmp_path / "a.seg.nrrd", [first, second], [("liver", 1, 0), ("cyst", 1, 1)])
    with pytest.raises(DataError, match="the segments cyst, liver have the same label value in different layers"):
        read_labels(path)


def test_nifti_holds_the_names_and_every_reader_still_opens_it(tmp_path, image):
    for ending in (".nii.gz", ".nii"):
        path = tmp_path / f"case{ending}"
        write_labels(path, VALUES, image, segments_of(LABELS))
        found = nib.load(path)
        np.testing.assert_array_equal(np.asarray(found.dataobj).T, VALUES)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VALUES)
        np.testing.assert_array_equal(read_labels(path).array, VALUES)
        first, second = found.header.extensions
        assert (first.get_code(), second.get_code()) == (0, 30)
        assert first.content == second.content == first.get_content()
        rows = ElementTree.fromstring(first.get_content()).iter("Label")
        assert {int(row.get("Key")): row.text for row in rows} == {3: "liver", 7: "tumour, necrotic", 9: "absent"}
    write_labels(tmp_path / "plain.nii", VALUES, image)
    assert list(nib.load(tmp_path / "plain.nii").header.extensions) == []


def test_names_that_headers_cannot_hold(tmp_path, image):
    odd = LabelSet({'say "ah"\nnow': 3, "a]]>b & <c>": 7})
    write_labels(tmp_path / "case.nii", VALUES, image, segments_of(odd))
    extension = nib.load(tmp_path / "case.nii").header.extensions[0]
    rows = ElementTree.fromstring(extension.get_content()).iter("Label")
    assert [row.text for row in rows] == ['say "ah" now', "a]] >b & <c>"]
    write_labels(tmp_path / "case.seg.nrrd", VALUES, image, segments_of(odd))
    assert [s.name for s in named_segments(tmp_path / "case.seg.nrrd")] == ['say "ah" now', "a]]>b & <c>"]
    assert "\"say 'ah' now\"" in itk_snap_labels(segments_of(odd))


def test_itk_snaps_label_file():
    rows = [line.split(None, 7) for line in itk_snap_labels(segments_of(LABELS)).splitlines() if line[0] != "#"]
    assert rows[0] == ["0", "0", "0", "0", "0", "0", "0", '"Clear Label"']
    assert [(int(row[0]), row[7]) for row in rows[1:]] == [(3, '"liver"'), (7, '"tumour, necrotic"'), (9, '"absent"')]
    assert [tuple(map(int, row[1:4])) for row in rows[1:]] == [colour_of(n) for n in range(3)]


def test_colours_are_those_of_the_dataset_or_far_apart():
    by_colour = LabelSet({"cell": 1, "nucleus": 2}, colours={"#ff8000": 2})
    assert segments_of(by_colour)[1] == Segment(2, "nucleus", 255, 128, 0)
    colours = np.array([colour_of(n) for n in range(32)])
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(32, dtype=int)
    assert apart.min() >= 25
    assert colours.sum(axis=1).min() > 100  # none is mistaken for background


def test_other_formats_take_no_names(tmp_path, image):
    for ending in (".nrrd", ".mha"):
        write_labels(tmp_path / f"case{ending}", VALUES, image, segments_of(LABELS))
        np.testing.assert_array_equal(read_labels(tmp_path / f"case{ending}").array, VALUES)
