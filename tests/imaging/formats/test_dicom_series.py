"""DICOM series as volumes: synthetic ones by hand, in every orientation, faulty ones by name, real ones by oracles."""

import itertools
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")

import pydicom
import SimpleITK as sitk
from pydicom.encaps import encapsulate

import dicom
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats import dicom_files, dicom_series
from autoseg.imaging.formats.dicom_frames import values_of
from autoseg.imaging.formats.readers import files_of, read_geometry, read_image, read_labels, write_labels
from autoseg.imaging.geometry import (
    Geometry,
    Volume,
    corner_distance_voxels,
    reorient,
    reorient_geometry,
    to_canonical,
)

CANONICAL = Geometry(shape=(7, 12, 10), spacing=(2.5, 0.8, 0.7), origin=(-11.0, 22.5, -333.25))
ORIENTATIONS = [
    (permutation, flips)
    for permutation in itertools.permutations((0, 1, 2))
    for flips in itertools.product((0, 1), repeat=3)
]


def oriented(permutation, flips):
    """The phantom as a scanner would store it: axes permuted and reversed, each voxel where it was."""
    array = np.ascontiguousarray(reorient(dicom.phantom(), permutation, flips))
    return array, reorient_geometry(CANONICAL, permutation, flips)


def oblique():
    """A grid turned about all axes."""
    a, b = 0.3, -0.2
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    rows = np.array(CANONICAL.direction) @ x @ z
    return replace(CANONICAL, direction=tuple(map(tuple, rows)))


@pytest.mark.thorough
@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
def test_each_voxel_keeps_its_place_in_every_orientation(tmp_path, permutation, flips):
    volume = read_image(dicom.slices(tmp_path / "s", *oriented(permutation, flips)))
    found = to_canonical(Volume(volume.array[0], volume.geometry))
    assert np.array_equal(found.array, dicom.phantom())
    assert corner_distance_voxels(found.geometry, CANONICAL) < 1e-4


@pytest.mark.parametrize("grid", [CANONICAL, oblique()], ids=["axial", "oblique"])
def test_agrees_with_itk(tmp_path, grid):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), grid)
    volume = read_image(folder)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    assert np.allclose(image.GetSpacing()[::-1], volume.geometry.spacing, atol=1e-4)
    assert np.allclose(image.GetOrigin(), volume.geometry.origin, atol=1e-4)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)).T[::-1], volume.geometry.direction, atol=1e-6)


def test_each_slice_has_its_own_scaling(tmp_path):
    def change(data, i):
        data.RescaleSlope, data.RescaleIntercept = 1 + i, -100 * i

    volume = read_image(dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, change=change))
    for i, plane in enumerate(dicom.phantom()):
        assert np.array_equal(volume.array[0, i], plane * np.float32(1 + i) - 100 * i)


@pytest.mark.parametrize(
    ("dtype", "bits", "values"),
    [
        (np.uint8, 8, (0, 255)), (np.uint16, 12, (0, 4095)), (np.uint16, 16, (0, 65535)),
        (np.int16, 12, (-2048, 2047)), (np.int16, 16, (-32768, 32767)),
    ],
)  # fmt: skip
def test_signed_and_unsigned_of_8_12_and_16_bits(tmp_path, dtype, bits, values):
    array = np.random.default_rng(0).integers(*values, (3, 6, 5), endpoint=True).astype(dtype)
    array[0, 0, :2] = values

    def change(data, i):
        plane = array[i].copy()
        if bits == 12:
            plane = (plane & np.array(0x0FFF).astype(dtype)) | np.array(0x5000 * (dtype is np.uint16)).astype(dtype)
        dicom.voxels(data, plane, bits)

    found = read_image(dicom.slices(tmp_path / "s", array, replace(CANONICAL, shape=array.shape), change=change))
    assert np.array_equal(found.array[0], array)


def test_low_values_that_are_bright_are_inverted_unless_they_have_a_unit(tmp_path):
    array = np.arange(40, dtype=np.uint16).reshape(2, 4, 5)

    def change(modality):
        def to(data, i):
            dicom.voxels(data, array[i], 12)
            data.PhotometricInterpretation, data.Modality = "MONOCHROME1", modality

        return to

    grid = replace(CANONICAL, shape=array.shape)
    assert np.array_equal(
        read_image(dicom.slices(tmp_path / "m", array, grid, change=change("MR"))).array[0], 4095.0 - array
    )
    assert np.array_equal(read_image(dicom.slices(tmp_path / "c", array, grid, change=change("CT"))).array[0], array)


@pytest.mark.parametrize("order", [None, (3, 1, 0, 6, 5, 2, 4)])
def test_an_enhanced_file_is_a_volume_whatever_the_order_of_its_frames(tmp_path, order):
    path = dicom.enhanced(tmp_path / "IM1.dcm", dicom.phantom(), CANONICAL, order)
    volume = read_image(path)
    expected = dicom.phantom() * np.float32(2) - 10 * np.arange(7, dtype=np.float32)[:, None, None]
    assert np.array_equal(volume.array[0], expected)
    assert corner_distance_voxels(volume.geometry, CANONICAL) < 1e-6


def test_names_and_numbers_do_not_decide_the_order(tmp_path):
    def change(data, i):
        data.InstanceNumber = 100 - i

    names = [f"{9 - i}.dcm" for i in range(7)]
    found = read_image(dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, change=change, names=names))
    assert np.array_equal(found.array[0], dicom.phantom())


def test_files_without_an_extension_are_found(tmp_path):
    names = [f"1.2.840.{i}" if i % 2 else f"IM{i}" for i in range(7)]
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, names=names)
    (folder / "notes.txt").write_text("not DICOM")
    assert read_image(folder).array.shape == (1, 7, 12, 10)
    assert len(files_of(folder)) == 7


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_slices_by_pydicom(tmp_path, syntax):
    if syntax == "JPEGLSLossless":
        pytest.importorskip("jpeg_ls", reason="pyjpegls encodes such a file")
    folder = dicom.slices(tmp_path / "s", dicom.phantom().astype(np.uint16), CANONICAL)
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.compress(getattr(pydicom.uid, syntax))
        data.save_as(file)
    assert np.array_equal(read_image(folder).array[0], dicom.phantom().astype(np.uint16))


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_slices_that_only_itk_decodes(tmp_path, compressor):
    """Lossless JPEG needs a plugin of pydicom; SimpleITK has a decoder, and scales the values itself."""

    def change(data, i):
        data.RescaleIntercept = -1024

    array = (dicom.phantom() + 1200).astype(np.uint16)
    folder = dicom.slices(tmp_path / "s", array, CANONICAL, change=change)
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        writer = sitk.ImageFileWriter()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / "packed.dcm"))
        writer.Execute(sitk.GetImageFromArray(data.pixel_array))
        packed = pydicom.dcmread(tmp_path / "packed.dcm")
        data.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        data.PixelData = packed.PixelData
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.save_as(file)
    assert "JPEG" in data.file_meta.TransferSyntaxUID.name
    assert np.array_equal(read_image(folder).array[0], array - np.float32(1024))


def test_what_cannot_be_decoded_names_the_syntax(tmp_path):
    def change(data, i):
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLossless
        data.PixelData = encapsulate([b"\xff\xd8 not a JPEG"])
        data["PixelData"].VR = "OB"

    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, change=change)
    with pytest.raises(DataError, match=r"JPEG Lossless.*1\.2\.840\.10008\.1\.2\.4\.57|JPEG Lossless") as error:
        read_image(folder)
    assert "gdcmconv" in error.value.remedy
    assert ".dcm" in error.value.what


def test_one_slice_is_a_volume_and_a_radiograph_is_flat(tmp_path):
    one = dicom.slices(tmp_path / "one", dicom.phantom()[:1], replace(CANONICAL, shape=(1, 12, 10)))
    assert read_geometry(one).shape == (1, 12, 10)
    assert not read_geometry(one).flat

    def change(data, i):
        del data.ImagePositionPatient, data.ImageOrientationPatient

    flat = dicom.slices(tmp_path / "x", dicom.phantom()[:1], CANONICAL, change=change)
    geometry = read_geometry(flat)
    assert (geometry.flat, geometry.placed, geometry.sized) == (True, False, True)
    assert geometry.spacing == (1.0, 0.8, 0.7)


# ---- what is no volume ----------------------------------------------------------------------------------------------


def fault(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read_image(folder)
    assert str(folder) in error.value.what
    return error.value.what


def test_several_series_are_counted_and_named(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL)
    dicom.slices(folder, dicom.phantom()[:3], CANONICAL, series=2, names=["x.dcm", "y.dcm", "z.dcm"])
    what = fault(folder)
    assert "2 series: series 1 (7 images" in what
    assert "series 2 (3 images" in what


def test_localizers_and_other_objects_are_left_out_and_named(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL)

    def change(data, i):
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    dicom.slices(folder, dicom.phantom()[:1], CANONICAL, series=2, names=["scout.dcm"], change=change)
    report = dicom.header("1.2.840.10008.5.1.4.1.1.88.22", "P1", 3)
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = dicom.uid(3, 1)
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    volume = read_image(folder)
    assert volume.array.shape == (1, 7, 12, 10)
    words = " ".join(remark.what for remark in volume.geometry.remarks)
    assert "1 localizer image in the folder: scout.dcm" in words
    assert "report.dcm" in words


def test_slices_of_two_sizes_or_directions(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL)
    dicom.slices(folder, dicom.phantom()[:1, :6], CANONICAL, names=["odd.dcm"])
    assert "2 sizes: 7 of 12 x 10 pixels" in fault(folder)
    assert "(odd.dcm)" in fault(folder)
    folder = dicom.slices(tmp_path / "t", dicom.phantom(), CANONICAL)
    dicom.slices(folder, dicom.phantom()[:1], oblique(), names=["odd.dcm"])
    assert "2 directions: 7 of normal (0, 0, 1)" in fault(folder)


def test_a_slice_without_a_position(tmp_path):
    def change(data, i):
        if i == 3:
            del data.ImagePositionPatient

    folder = dicom.slices(
        tmp_path / "s", dicom.phantom(), CANONICAL, change=change, names=[f"{i}.dcm" for i in range(7)]
    )
    assert f"{folder / '3.dcm'} has no position (ImagePositionPatient), like 1 of 7 images" in fault(folder)


def test_a_copy_of_a_slice_is_used_once_and_another_image_there_is_refused(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, names=[f"{i}.dcm" for i in range(7)])
    shutil.copy(folder / "4.dcm", folder / "4 copy.dcm")
    volume = read_image(folder)
    assert np.array_equal(volume.array[0], dicom.phantom())
    assert "1 slice twice in the folder" in volume.geometry.remarks[0].what

    def change(data, i):
        data.EchoTime, data.InstanceNumber = 12.5, i + 20
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = dicom.uid(1, 9, i)

    folder = dicom.slices(tmp_path / "t", dicom.phantom(), CANONICAL)
    dicom.slices(folder, dicom.phantom() + 1, CANONICAL, names=[f"b{i}.dcm" for i in range(7)], change=change)
    assert "2 different images at each of 7 positions, which differ in EchoTime" in fault(folder)


def test_a_missing_slice_is_refused_with_its_neighbours(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, names=[f"{i}.dcm" for i in range(7)])
    (folder / "3.dcm").unlink()
    assert "1 slice missing of 7" in fault(folder)
    assert "5 mm between 2.dcm and 4.dcm" in fault(folder)


def test_damaged_and_truncated_files_are_named(tmp_path):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL, names=[f"{i}.dcm" for i in range(7)])
    content = (folder / "5.dcm").read_bytes()
    (folder / "5.dcm").write_bytes(content[:-50])
    assert "5.dcm" in fault(folder)
    (folder / "5.dcm").write_bytes(b"nonsense")
    assert "5.dcm is damaged or not a DICOM file" in fault(folder)


def test_without_pydicom_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    folder = dicom.slices(tmp_path / "s", dicom.phantom(), CANONICAL)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UsageError, match="pydicom") as error:
        read_image(folder)
    assert "pip install 'autoseg-med[dicom]'" in error.value.remedy


def test_the_patient_is_a_hash_that_does_not_hold_the_id(tmp_path):
    a = dicom.slices(tmp_path / "a", dicom.phantom(), CANONICAL, patient="Doe John 1234")
    b = dicom.slices(tmp_path / "b", dicom.phantom(), CANONICAL, patient="Doe John 1234", series=2)
    c = dicom.slices(tmp_path / "c", dicom.phantom(), CANONICAL, patient="Roe")
    found = [dicom_series.patient_of(folder) for folder in (a, b, c)]
    assert found[0] == found[1] != found[2]
    assert "Doe" not in found[0]
    assert len(found[0]) == len("dicom-") + 12


def test_classes_of_files(tmp_path):
    kinds = {}
    for name, sop in (
        ("ct", dicom.CT), ("enhanced", dicom.ENHANCED_CT), ("seg", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("rt", "1.2.840.10008.5.1.4.1.1.481.3"), ("sr", "1.2.840.10008.5.1.4.1.1.88.33"),
        ("mr", "1.2.840.10008.5.1.4.1.1.4"), ("dose", "1.2.840.10008.5.1.4.1.1.481.2"),
        ("dir", "1.2.840.10008.1.3.10"), ("reg", "1.2.840.10008.5.1.4.1.1.66.1"),
        ("pet", "1.2.840.10008.5.1.4.1.1.128"),
    ):  # fmt: skip
        data = dicom.header(sop, "P", 1)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = dicom.uid(5)
        data.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        kinds[name] = dicom_files.kind_of(tmp_path / f"{name}.dcm")
    assert kinds == {
        "ct": "slice", "enhanced": "frames", "seg": "labels", "rt": "labels", "sr": "other", "mr": "slice",
        "dose": "other", "dir": "other", "reg": "other", "pet": "slice",
    }  # fmt: skip


# ---- segmentations of a series as NIfTI -----------------------------------------------------------------------------


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS[::5])
def test_a_nifti_written_for_a_series_overlays_it_in_another_program(tmp_path, permutation, flips):
    folder = dicom.slices(tmp_path / "s", *oriented(permutation, flips))
    volume = read_image(folder)
    write_labels(tmp_path / "s.nii.gz", (volume.array[0] > 250).astype(np.uint8), like=folder)
    image = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "s.nii.gz")), "LPS")
    assert np.array_equal(sitk.GetArrayFromImage(image), dicom.phantom() > 250)
    assert np.allclose(image.GetOrigin(), CANONICAL.origin, atol=1e-3)


# ---- real series ----------------------------------------------------------------------------------------------------


def by_dcm2niix(folder: Path, out: Path) -> dict[str, sitk.Image]:
    if (program := shutil.which("dcm2niix")) is None:
        pytest.skip("dcm2niix is not installed: it is the oracle")
    out.mkdir()
    subprocess.run([program, "-f", "x", "-o", str(out), str(folder)], check=True, capture_output=True)
    return {path.name: sitk.ReadImage(str(path)) for path in sorted(out.glob("*.nii"))}


def canonical(image: sitk.Image) -> tuple[np.ndarray, sitk.Image]:
    turned = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(turned), turned


def repaired(folder: Path, out: Path) -> Path:
    """A copy of the phantom's series in which the slice that lacks its last 2524 bytes is filled with zeros."""
    shutil.copytree(folder, out)
    out.chmod(0o755)
    content = (out / "I90").read_bytes()
    (out / "I90").unlink()
    (out / "I90").write_bytes(content + bytes(2524))
    return out


def test_a_truncated_slice_of_a_real_series_is_named(data_dir):
    what = fault(data_dir / "dicom_ct/philips_phantom")
    assert "I90: its pixels are missing or damaged" in what
    assert "521764" in what


def test_a_plain_series_equals_dcm2niix_and_itk_voxel_by_voxel(data_dir, tmp_path):
    folder = repaired(data_dir / "dicom_ct/philips_phantom", tmp_path / "series")
    volume = read_image(folder)
    found = to_canonical(Volume(volume.array[0], volume.geometry))
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    array, turned = canonical(image)
    assert np.array_equal(found.array, array)
    assert np.allclose(turned.GetOrigin(), found.geometry.origin, atol=1e-3)
    (image,) = by_dcm2niix(folder, tmp_path / "out").values()
    array, turned = canonical(image)
    assert np.array_equal(found.array, array)
    assert np.allclose(turned.GetSpacing()[::-1], found.geometry.spacing, atol=1e-3)
    assert np.allclose(turned.GetOrigin(), found.geometry.origin, atol=1e-2)


def test_a_slice_less_of_a_real_series_is_missed(data_dir, tmp_path):
    folder = repaired(data_dir / "dicom_ct/philips_phantom", tmp_path / "series")
    (folder / "I150").unlink()
    assert "1 slice missing of 28: the distance between slices is 5 mm, but 10 mm between" in fault(folder)


def test_a_tilted_series_of_two_distances_equals_dcm2niix(data_dir, tmp_path):
    """Slices as stored, exactly; sheared back, on dcm2niix's own heights, to its rounding of values and shifts."""
    folder = data_dir / "dicom_ct/ge_tilted"
    series = dicom_series.open_series(folder)
    slices = np.stack([values_of(frame, {}) for frame in series.frames])
    images = by_dcm2niix(folder, tmp_path / "out")
    stored = sitk.GetArrayFromImage(images["x.nii"])
    assert np.array_equal(slices, stored[:, ::-1])
    theirs = images["x_Tilt_Eq_1.nii"]
    expected = sitk.GetArrayFromImage(theirs)[:, ::-1].astype(np.float32)
    assert series.geometry.shape[1:] == expected.shape[1:] == (611, 512)
    heights = series.stack.heights - series.stack.heights[0]
    grid = replace(
        series.grid,
        heights=heights / (heights[-1] / (len(expected) - 1)),
        geometry=replace(series.geometry, shape=expected.shape),
    )
    found = grid.from_slices(slices)
    inside = (found > -1400) & (expected > -1400)
    assert inside.mean() > 0.5
    assert np.corrcoef(found[inside], expected[inside])[0, 1] > 0.9999
    assert np.abs(found - expected)[inside].mean() < 1  # Hounsfield unit, which dcm2niix rounds to
    moved = np.roll(found, 1, axis=1)
    assert np.abs(moved - expected)[inside].mean() > 5  # a shift by one pixel would be seen


def test_what_is_resampled_of_a_tilted_series_is_reported(data_dir):
    geometry = read_geometry(data_dir / "dicom_ct/ge_tilted")
    words = {remark.kind: remark.what for remark in geometry.remarks}
    assert (
        "13 of 4.002 mm, then 1 of 1.081 mm, then 13 of 6.999 mm; interpolated linearly to 4.002 mm"
        in (words["slice distance"])
    )
    assert "tilted by 18.5 degrees" in words["tilt"]
    assert geometry.shape == (37, 611, 512)


def test_a_point_of_a_tilted_series_is_where_its_slice_says(data_dir):
    """The brightest pixels of stored slices, by the position in their headers, against the grid's own affine."""
    folder = data_dir / "dicom_ct/ge_tilted"
    volume, series = read_image(folder), dicom_series.open_series(folder)
    for k in (0, 5, 13):  # these lie on slices of the grid
        plane = values_of(series.frames[k], {})
        rows, columns = (axis.ravel() for axis in np.indices(plane.shape))
        flat = np.stack([rows, columns], axis=1) * np.array(series.stack.spacing)
        world = series.stack.positions[k] + flat @ series.stack.axes[1:]
        geometry = volume.geometry
        index = (world - np.array(geometry.origin)) @ np.array(geometry.direction).T / np.array(geometry.spacing)
        assert np.abs(index[:, 0] - k).max() < 0.01
        z, y, x = np.rint(index).astype(int).T
        right = np.corrcoef(volume.array[0][z, y, x], plane.ravel())[0, 1]
        assert right > 0.995
        for wrong in (-2, 2):
            there = np.clip(y + wrong, 0, geometry.shape[1] - 1)
            assert np.corrcoef(volume.array[0][z, there, x], plane.ravel())[0, 1] < right - 0.002


# ---- real labels ----------------------------------------------------------------------------------------------------


def test_a_real_structure_set(data_dir):
    draw = pytest.importorskip("skimage.draw", reason="scikit-image is the oracle")
    folder = data_dir / "dicom_ct/rtstruct"
    labels = read_labels(folder / "rt.dcm", like=folder)
    assert labels.geometry.remarks == ()
    image = pydicom.dcmread(folder / "ct_1.dcm")
    spacing, origin = np.array(image.PixelSpacing, float), np.array(image.ImagePositionPatient, float)
    expected = np.zeros((512, 512), bool)
    for contour in pydicom.dcmread(folder / "rt.dcm").ROIContourSequence[0].ContourSequence:
        points = (np.array(contour.ContourData, float).reshape(-1, 3) - origin)[:, :2] / spacing
        expected ^= draw.polygon2mask((512, 512), points[:, ::-1])
    assert np.count_nonzero(expected) > 1000
    both = np.count_nonzero(expected & (labels.array[0] > 0))
    assert 2 * both / (np.count_nonzero(expected) + np.count_nonzero(labels.array[0])) > 0.99
    assert not labels.array[1].any()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "voxels"), [("binary", {1: 638}), ("binary_overlap", {1: 48, 2: 16}), ("true_fractional", {1: 638})]
)
def test_real_segmentations_equal_another_reader(data_dir, name, voxels):
    highdicom = pytest.importorskip("highdicom", reason="highdicom is the second reader")
    path = data_dir / f"dicom_ct/seg/seg_image_ct_{name}.dcm"
    labels = read_labels(path)
    values, counts = np.unique(labels.array[labels.array > 0], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == voxels
    segments = highdicom.seg.segread(path)
    other = segments.get_volume(rescale_fractional=True)
    merged = np.max((other.array >= 0.5) * np.arange(1, other.array.shape[-1] + 1), axis=-1)
    assert np.array_equal(np.unique(merged, return_counts=True)[1], np.unique(labels.array, return_counts=True)[1])
