"""Pictures turned as their orientation tag says, in every format, and what is written for them."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

import files
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover
from autoseg.errors import DataError
from autoseg.imaging.formats.raster import orientation
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels, write_labels
from autoseg.imaging.formats.upright import upright, upright_extent

SHOWN = np.array([[1, 2, 3], [4, 5, 6]])
STORED = {  # orientation tag -> how a camera stores what is shown as SHOWN: by hand, from the EXIF standard's table
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],  # row 0 is the top, column 0 the right side
    3: [[6, 5, 4], [3, 2, 1]],  # the bottom, the right side
    4: [[4, 5, 6], [1, 2, 3]],  # the bottom, the left side
    5: [[1, 4], [2, 5], [3, 6]],  # the left side, the top
    6: [[3, 6], [2, 5], [1, 4]],  # the right side, the top
    7: [[6, 3], [5, 2], [4, 1]],  # the right side, the bottom
    8: [[4, 1], [5, 2], [6, 3]],  # the left side, the bottom
}
TAGS = list(STORED)


def exif(tag):
    block = Image.Exif()
    block[0x0112] = tag
    return block


@pytest.mark.parametrize("tag", TAGS)
def test_every_orientation_worked_out_by_hand(tag):
    stored = np.array(STORED[tag])
    assert np.array_equal(upright(stored, tag), SHOWN)
    assert upright_extent(*stored.shape, tag) == (2, 3)


@pytest.mark.parametrize("tag", TAGS)
def test_pictures_are_read_as_they_are_shown(tmp_path, tag):
    stored = np.array(STORED[tag], dtype=np.uint8) * 40
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif(tag))
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=[(274, "H", 1, tag, True)])
    Image.fromarray(stored).save(tmp_path / "packed.tif", compression="tiff_lzw", tiffinfo={274: tag})
    colours = np.stack([stored, stored // 2, 255 - stored], axis=-1)
    Image.fromarray(colours).save(tmp_path / "colours.tif", compression="tiff_lzw", tiffinfo={274: tag})
    for name in ("a.png", "a.tif", "packed.tif", "colours.tif"):
        path = tmp_path / name
        assert np.array_equal(read_image(path).array[0, 0], SHOWN * 40), name
        assert read_geometry(path).shape == read_image(path).geometry.shape == (1, 2, 3)
        assert orientation(path) == tag
    assert np.array_equal(read_labels(tmp_path / "a.png").array[0], SHOWN * 40)
    assert np.array_equal(read_labels(tmp_path / "a.tif").array[0], SHOWN * 40)


@pytest.mark.parametrize("tag", TAGS)
def test_a_jpeg_is_turned_and_its_segmentation_lies_on_what_viewers_show(tmp_path, tag):
    blocks = np.kron(np.array(STORED[tag], dtype=np.uint8) * 40, np.ones((16, 16), np.uint8))
    Image.fromarray(blocks).save(tmp_path / "a.jpg", quality=100, exif=exif(tag))
    viewer = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    volume = read_image(tmp_path / "a.jpg")
    assert np.array_equal(volume.array[0, 0], viewer)
    labels = (volume.array[0] > 100).astype(np.uint8)
    write_labels(tmp_path / "out.png", labels, tmp_path / "a.jpg")
    written = Image.open(tmp_path / "out.png")
    assert np.array_equal(np.asarray(written), viewer > 100)
    assert 0x0112 not in written.getexif()


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_tags_without_a_meaning_turn_nothing(tmp_path, tag):
    Image.fromarray(SHOWN.astype(np.uint8)).save(tmp_path / "a.png", exif=exif(tag))
    assert np.array_equal(read_image(tmp_path / "a.png").array[0, 0], SHOWN)


def test_a_broken_exif_block_turns_nothing(tmp_path):
    Image.fromarray(SHOWN.astype(np.uint8)).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png").array[0, 0], SHOWN)


def test_an_orientation_that_stands_in_xmp_alone_is_refused(tmp_path):
    text = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(np.zeros((16, 16), np.uint8))
    image.save(tmp_path / "a.jpg", xmp=text.encode())
    with pytest.raises(DataError, match=r"a\.jpg.*XMP.*6"):
        read_image(tmp_path / "a.jpg")
    image.save(tmp_path / "b.jpg", xmp=text.replace('"6"', '"1"').encode())
    assert read_image(tmp_path / "b.jpg").array.shape == (1, 1, 16, 16)


def test_pages_of_a_stack_are_turned_together_or_refused(tmp_path):
    array = files.voxels()
    pages = [Image.fromarray(page.astype(np.uint8)) for page in array]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw", tiffinfo={274: 8})
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0], np.rot90(array, 1, (1, 2)))
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        for page, tag in zip(array, (1, 1, 3, 1), strict=True):
            writer.write(page, contiguous=False, metadata=None, extratags=[(274, "H", 1, tag, True)])
    with pytest.raises(DataError, match="different orientations"):
        read_image(tmp_path / "b.tif")


def test_the_spacing_of_a_turned_stack_turns_with_it(tmp_path):
    array = files.voxels()
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", extratags=[(274, "H", 1, 6, False)])
    (tmp_path / "a.json").write_text('{"spacing": [5, 2, 1]}')
    geometry = read_geometry(tmp_path / "a.tif")
    assert geometry.shape == (4, 6, 5)
    assert geometry.spacing == (5.0, 1.0, 2.0)


def test_check_says_which_pictures_were_turned_and_which_labels_were_drawn_on_the_stored_one(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i, tag in enumerate((1, 6, 3)):
        shown = np.random.default_rng(i).integers(0, 255, (20, 30), dtype=np.uint8)
        stored = {1: shown, 6: np.rot90(shown, 1), 3: np.rot90(shown, 2)}[tag]
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"images/p{i}.jpg", exif=exif(tag))
        Image.fromarray((shown > 128).astype(np.uint8)).save(tmp_path / f"masks/p{i}.png")
    dataset, known = discover(tmp_path)
    (found,) = check(dataset, known=known, workers=0)[0]
    assert found.severity == "warning"
    assert "2 of 3 pictures" in found.what
    assert "p1.jpg" in found.what + found.file
    mask = np.asarray(Image.open(tmp_path / "masks/p1.png"))
    Image.fromarray(np.ascontiguousarray(np.rot90(mask, 1))).save(tmp_path / "masks/p1.png")
    problems = check(dataset, known=known, workers=0)[0]
    shape, explained = (problem for problem in problems if problem.severity == "error" and problem.case == "p1")
    assert {explained.file, shape.file} == {str(tmp_path / "masks/p1.png")}
    assert "as stored, before its orientation tag (6)" in shape.what + explained.what
