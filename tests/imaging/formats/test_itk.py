"""NRRD and MetaImage: SimpleITK as oracle, the damage it lets pass, and grids that survive writing."""

import numpy as np
import pytest
import SimpleITK as sitk

import files
import hostile
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels, write_labels
from autoseg.imaging.geometry import corner_distance_voxels, orientation_code

ENDINGS = [".nrrd", ".mha", ".mhd"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_voxels_and_grid_equal_simple_itks(tmp_path, ending, compressed, dtype):
    path = files.itk_image(tmp_path / f"a{ending}", files.voxels(dtype=dtype), compressed=compressed)
    volume, oracle = read_image(path), sitk.ReadImage(str(path))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], files.voxels())
    assert np.array_equal(read_labels(path).array, files.voxels())
    grid = read_geometry(path)
    assert grid == volume.geometry
    assert grid.shape == (4, 5, 6)
    np.testing.assert_allclose(grid.spacing[::-1], oracle.GetSpacing(), rtol=1e-12)
    for index_xyz in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3), (5, 4, 3)):
        steps = np.array(index_xyz[::-1]) * grid.spacing
        place = np.array(grid.origin) + steps @ np.array(grid.direction)
        np.testing.assert_allclose(place, oracle.TransformIndexToPhysicalPoint(index_xyz), atol=1e-9)


@pytest.mark.parametrize("ending", [".NRRD", ".MHA", ".Mhd"])
def test_uppercase_endings_are_read(tmp_path, ending):
    sound = files.itk_image(tmp_path / f"a{ending.lower()}")
    assert np.array_equal(read_image(sound.rename(tmp_path / f"B{ending}")).array[0], files.voxels())


@pytest.mark.parametrize("ending", ENDINGS)
def test_flat_images(tmp_path, ending):
    volume = read_image(files.itk_image(tmp_path / f"a{ending}", files.voxels((5, 6))))
    assert volume.array.shape == (1, 1, 5, 6)
    assert np.array_equal(volume.array[0, 0], files.voxels((5, 6)))
    grid = volume.geometry
    assert grid.flat
    assert (grid.shape, grid.spacing, grid.origin) == ((1, 5, 6), (1.0, 1 / 3, 0.7), (5.0, -6.0, 0.0))
    assert grid.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert orientation_code(grid) == "LPS"


@pytest.mark.thorough
@pytest.mark.parametrize("ending", ENDINGS)
def test_components_and_a_fourth_axis_are_channels(tmp_path, ending):
    array = files.voxels((4, 5, 6, 3), dtype=np.float32)
    volume = read_image(files.itk_image(tmp_path / f"a{ending}", array, vector=True))
    assert np.array_equal(volume.array, np.moveaxis(array, -1, 0))
    assert volume.array.flags.c_contiguous
    flat = read_image(files.itk_image(tmp_path / f"b{ending}", array[0], vector=True))
    assert np.array_equal(flat.array[:, 0], np.moveaxis(array[0], -1, 0))
    assert flat.geometry.flat
    series = sitk.JoinSeries([sitk.GetImageFromArray(files.voxels(seed=i)) for i in range(2)])
    sitk.WriteImage(series, str(tmp_path / f"c{ending}"))
    volume = read_image(tmp_path / f"c{ending}")
    assert np.array_equal(volume.array, [files.voxels(seed=0), files.voxels(seed=1)])
    assert volume.geometry.shape == (4, 5, 6)
    with pytest.raises(DataError, match="this file has 2"):
        read_labels(tmp_path / f"c{ending}")


def test_complex_voxels_are_refused(tmp_path):
    image = sitk.Cast(sitk.GetImageFromArray(files.voxels(dtype=np.float32)), sitk.sitkComplexFloat32)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match="complex"):
        read_image(tmp_path / "a.nrrd")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_every_cut_is_refused(tmp_path, ending, compressed):
    path = files.itk_image(tmp_path / f"a{ending}", compressed=compressed)
    for length in np.unique(np.linspace(1, path.stat().st_size - 1, 40).astype(int)):
        with pytest.raises(DataError, match="cut-a"):
            read_image(hostile.cut(path, int(length)))


@pytest.mark.thorough
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_flipped_bit_in_compressed_voxels_is_refused_or_harmless(tmp_path, ending):
    path = files.itk_image(tmp_path / f"a{ending}", compressed=True)
    raw = path.read_bytes()
    start = raw.index(b"\n\n") + 2 if ending == ".nrrd" else raw.index(b"LOCAL\n") + 6
    refused = 0
    for byte in range(start, len(raw)):
        try:
            array = read_image(hostile.flipped(path, byte, 1 << byte % 8)).array
        except DataError:
            refused += 1
            continue
        assert np.array_equal(array[0], files.voxels()), byte
    assert refused > len(raw) - start - 20


@pytest.mark.parametrize("compressed", [False, True])
def test_the_second_file_of_an_mhd_must_be_whole(tmp_path, compressed):
    path = files.itk_image(tmp_path / "a.mhd", compressed=compressed)
    data = path.with_suffix(".zraw" if compressed else ".raw")
    whole = data.read_bytes()
    data.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="a"):
        read_image(path)
    if compressed:
        data.write_bytes(whole[:60] + bytes([whole[60] ^ 4]) + whole[61:])
        with pytest.raises(DataError, match=r"a\.zraw is damaged"):
            read_image(path)
    data.unlink()
    with pytest.raises(DataError, match=r"a\.mhd"):
        read_image(path)


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".nrrd", b"sizes: 6 5 4", b"sizes: 60000 50000 40000"),
        (".mha", b"DimSize = 6 5 4", b"DimSize = 60000 50000 40000"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused_unread(tmp_path, ending, old, new, compressed):
    path = files.itk_image(tmp_path / f"a{ending}", compressed=compressed)
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(DataError, match="declares 120000000000000 values"):
        read_image(path)


@pytest.mark.parametrize(
    ("ending", "old", "new", "reason"),
    [
        (".nrrd", b"space directions: (", b"space directions: (0,0,0) (0,1,0) (0,0,1)\n# (", "a.nrrd"),
        (".nrrd", b"space directions: (", b"space directions: (1,0.1,0) (0,1,0) (0,0,1)\n# (", "sheared"),
        (".nrrd", b"space directions: (", b"space directions: (nan,0,0) (0,1,0) (0,0,1)\n# (", "a.nrrd"),
        (".mha", b"ElementSpacing = ", b"ElementSpacing = 0 1 1\nComment = ", "a.mha"),
        (".mha", b"TransformMatrix = ", b"TransformMatrix = 1 0.1 0 0 1 0 0 0 1\nComment = ", "sheared"),
    ],
)
def test_grids_without_meaning_are_refused(tmp_path, ending, old, new, reason):
    path = files.itk_image(tmp_path / f"a{ending}")
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    for read in (read_image, read_geometry):
        with pytest.raises(DataError, match=reason):
            read(path)


def test_a_text_of_another_kind_is_refused(tmp_path):
    for ending in (".mha", ".mhd"):
        (tmp_path / f"a{ending}").write_text("shopping list\nmilk = 2\n")
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / f"a{ending}")


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ENDINGS)
@pytest.mark.parametrize("source", ENDINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_labels_are_written_on_the_grid_of_the_image(tmp_path, source, target, dtype):
    like = files.itk_image(tmp_path / f"like{source}", files.voxels(dtype=np.float32))
    write_labels(tmp_path / f"out{target}", files.voxels(dtype=dtype), like)
    image, oracle = sitk.ReadImage(str(tmp_path / f"out{target}")), sitk.ReadImage(str(like))
    assert np.array_equal(sitk.GetArrayFromImage(image), files.voxels())
    assert sitk.GetArrayFromImage(image).dtype == dtype
    assert image.GetOrigin() == oracle.GetOrigin()
    np.testing.assert_allclose(image.GetSpacing(), oracle.GetSpacing(), rtol=1e-14)
    np.testing.assert_allclose(image.GetDirection(), oracle.GetDirection(), atol=1e-14)


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_file_is_written_and_no_metadata_is_copied(tmp_path, ending):
    like = files.itk_image(tmp_path / "in" / f"like{ending}")
    image = sitk.ReadImage(str(like))
    image.SetMetaData("PatientName", "SECRET")
    sitk.WriteImage(image, str(like))
    assert b"SECRET" in like.read_bytes()
    write_labels(tmp_path / "out" / f"out{ending}", files.voxels(), like)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"out{ending}"]
    assert b"SECRET" not in (tmp_path / "out" / f"out{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_masks_of_flat_and_multi_channel_images(tmp_path, ending):
    flat = files.itk_image(tmp_path / f"flat{ending}", files.voxels((5, 6)))
    write_labels(tmp_path / f"out{ending}", files.voxels((1, 5, 6)), flat)
    assert sitk.ReadImage(str(tmp_path / f"out{ending}")).GetDimension() == 2
    assert read_geometry(tmp_path / f"out{ending}") == read_geometry(flat)
    series = sitk.JoinSeries([sitk.GetImageFromArray(files.voxels(seed=i)) for i in range(2)])
    series.SetSpacing((0.5, 0.6, 0.7, 1.0))
    sitk.WriteImage(series, str(tmp_path / f"series{ending}"))
    write_labels(tmp_path / f"out2{ending}", files.voxels(), tmp_path / f"series{ending}")
    written = read_labels(tmp_path / f"out2{ending}")
    assert np.array_equal(written.array, files.voxels())
    assert corner_distance_voxels(written.geometry, read_geometry(tmp_path / f"series{ending}")) < 1e-9
