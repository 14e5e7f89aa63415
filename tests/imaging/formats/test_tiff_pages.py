"""TIFFs that mean something else than their numbers, and stacks of which a part is not there."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels

PLANES = np.random.default_rng(5).integers(0, 200, (4, 7, 9)).astype(np.uint8)
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{own}>'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="9" SizeY="7" SizeZ="{z}" '
    'SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
)


def ome_file(path, plane, *, names, number, own=True, z=None):
    """One file of a stack that is spread over `names`, or a file of several planes without such parts."""
    parts = "".join(
        f'<TiffData FirstZ="{i}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{i:04d}</UUID></TiffData>'
        for i, name in enumerate(names)
    )
    parts = parts or f'<TiffData IFD="0" PlaneCount="{len(plane)}"/>'
    text = OME.format(own=f' UUID="urn:uuid:{number:04d}"' if own else "", z=z or len(names), parts=parts)
    with tifffile.TiffWriter(path) as writer:
        for i, page in enumerate(plane):
            writer.write(page, description=text if i == 0 else None, metadata=None, contiguous=False)


@pytest.mark.parametrize("own", [True, False])
def test_a_stack_in_several_files_is_whole_or_refused(tmp_path, own):
    names = [f"part_{i}.ome.tif" for i in range(4)]
    for i, name in enumerate(names):
        ome_file(tmp_path / name, PLANES[i : i + 1], names=names, number=i, own=own)
    assert np.array_equal(read_image(tmp_path / names[1]).array[0], PLANES)
    (tmp_path / names[3]).unlink()
    for read in (read_image, read_labels, read_geometry):
        with pytest.raises(DataError, match=r"part_1\.ome\.tif is part of a stack.*part_3\.ome\.tif is missing"):
            read(tmp_path / names[1])
    (tmp_path / names[0]).rename(tmp_path / "case_0.tif")  # renamed for a dataset, as if it were a case of its own
    with pytest.raises(DataError, match="missing"):
        read_image(tmp_path / "case_0.tif")


@pytest.mark.parametrize("own", [True, False])
def test_a_single_file_may_have_been_renamed(tmp_path, own):
    ome_file(tmp_path / "new.tif", PLANES[:1], names=["old.ome.tif"], number=0, own=own)
    assert np.array_equal(read_image(tmp_path / "new.tif").array[0], PLANES[:1])


def test_a_file_whose_description_lies_elsewhere_is_refused(tmp_path):
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="companion.ome" UUID="urn:uuid:2"/></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANES[0], description=text, metadata=None)
    with pytest.raises(DataError, match="companion"):
        read_image(tmp_path / "a.ome.tif")


def test_slices_that_are_promised_and_in_no_file(tmp_path):
    ome_file(tmp_path / "a.ome.tif", PLANES, names=[], number=0, z=4)
    assert np.array_equal(read_image(tmp_path / "a.ome.tif").array[0], PLANES)
    ome_file(tmp_path / "b.ome.tif", PLANES, names=[], number=0, z=6)
    with pytest.raises(DataError, match="2 of 6 slices"):
        read_image(tmp_path / "b.ome.tif")
    text = "ImageJ=1.53t\nimages=6\nslices=6\nloop=false\n"
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
        for i, page in enumerate(PLANES):
            writer.write(page, description=text if i == 0 else None, metadata=None, contiguous=False)
    with pytest.raises(DataError, match="2 of 6 slices"):
        read_image(tmp_path / "c.tif")


def test_a_pyramid_is_read_at_full_resolution_and_several_images_are_refused(tmp_path):
    full = np.tile(PLANES[0], (8, 8))
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(full, subifds=1, tile=(16, 16))
        writer.write(full[::2, ::2], subfiletype=1, tile=(16, 16))
    assert np.array_equal(read_image(tmp_path / "pyramid.tif").array[0, 0], full)
    with tifffile.TiffWriter(tmp_path / "several.ome.tif", ome=True) as writer:
        writer.write(PLANES[0], metadata={"axes": "YX"})
        writer.write(PLANES[1][:5], metadata={"axes": "YX"})
    with pytest.raises(DataError, match="different sizes or kinds"):
        read_image(tmp_path / "several.ome.tif")


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (bool, 1)])
def test_where_0_is_white_values_are_inverted(tmp_path, dtype, largest):
    stored = PLANES[0] > 100 if dtype is bool else PLANES[0].astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0, 0], largest - stored.astype(int))
    if dtype is bool:
        assert np.array_equal(read_labels(tmp_path / "a.tif").array[0], 1 - stored)
    else:
        with pytest.raises(DataError, match="MinIsWhite"):
            read_labels(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_white_that_is_0_means_nothing_without_a_largest_value(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", PLANES[0].astype(dtype), photometric="miniswhite")
    with pytest.raises(DataError, match="MinIsWhite"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("kind", "named"), [("separated", "CMYK"), ("cielab", "CIE"), ("ycbcr", "YCbCr")])
def test_other_kinds_of_colour_are_refused(tmp_path, kind, named):
    samples = 4 if kind == "separated" else 3
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, samples), np.uint8), photometric=kind)
    with pytest.raises(DataError, match=named):
        read_image(tmp_path / "a.tif")


def test_a_colour_jpeg_inside_a_tiff_is_red_green_blue(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    array = read_image(tmp_path / "a.tif").array
    assert array.shape == (3, 1, 32, 32)
    assert np.abs(array[:, 0, 5, 5] - (200, 0, 0)).max() < 6


def test_an_animation_is_no_picture(tmp_path):
    frames = [Image.fromarray(plane) for plane in PLANES]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for read in (read_image, read_labels):
        with pytest.raises(DataError, match=r"a\.png is an animation of 4 frames"):
            read(tmp_path / "a.png")


def test_a_second_picture_behind_a_jpeg_counts_for_nothing(tmp_path):
    """Phones append a preview or a depth map (MPO); viewers show the first."""
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (50, 200)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / "a.jpg").array - 50).max() < 3
