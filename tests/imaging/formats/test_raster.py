"""PNG, BMP, JPEG and TIFF: every value as it was stored, whatever the mode; files cut or flipped anywhere."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

import files
import hostile
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels, write_labels

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def samples(channels: int | None = None, bits: int = 8, shape=(7, 9), seed=0) -> np.ndarray:
    """(Y, X) or (Y, X, C) over the full range of the bits."""
    full = shape if channels is None else (*shape, channels)
    return np.random.default_rng(seed).integers(0, 2**bits, full).astype(np.uint16 if bits == 16 else np.uint8)


# ---- PNG, BMP, JPEG -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs_of_every_depth_keep_their_values(tmp_path, bits):
    stored = samples(bits=bits)
    path = files.png(tmp_path / "a.png", stored, bits=bits)
    volume, labels = read_image(path), read_labels(path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0, 0], stored)
    assert labels.array.dtype == np.int32
    assert np.array_equal(labels.array[0], stored)
    assert volume.geometry == labels.geometry == read_geometry(path)
    assert volume.geometry.flat
    assert (volume.geometry.shape, volume.geometry.spacing) == ((1, 7, 9), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_pngs_give_three_channels(tmp_path, bits):
    stored = samples(3, bits)
    path = files.png(tmp_path / "a.png", stored, bits=bits, colour_type=RGB)
    assert np.array_equal(read_image(path).array[:, 0], np.moveaxis(stored, -1, 0))
    with pytest.raises(DataError, match="this file has 3"):
        read_labels(path)


@pytest.mark.parametrize(("colour_type", "channels", "bits"), [(GREY_ALPHA, 2, 8), (RGBA, 4, 8), (RGBA, 4, 16)])
def test_transparency_is_dropped_if_constant_and_refused_if_not(tmp_path, colour_type, channels, bits):
    stored = samples(channels, bits)
    stored[..., -1] = 77
    path = files.png(tmp_path / "a.png", stored, bits=bits, colour_type=colour_type)
    assert np.array_equal(read_image(path).array[:, 0], np.moveaxis(stored[..., :-1], -1, 0))
    stored[3, 4, -1] = 78
    with pytest.raises(DataError, match="transparency"):
        read_image(files.png(tmp_path / "a.png", stored, bits=bits, colour_type=colour_type))


def test_deep_grey_with_transparency_is_refused(tmp_path):
    with pytest.raises(DataError, match="16-bit"):
        read_image(files.png(tmp_path / "a.png", samples(2, 16), bits=16, colour_type=GREY_ALPHA))


def test_a_palette_means_colours_in_images_and_indices_in_labels(tmp_path):
    path, indices = hostile.palette_png(tmp_path)
    assert np.array_equal(read_labels(path).array[0], indices)
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)])[indices]
    assert np.array_equal(read_image(path).array[:, 0], np.moveaxis(colours, -1, 0))


def test_a_grey_mask_saved_as_colours_is_one_label_map(tmp_path):
    mask = samples(bits=1) * 255
    path = files.png(tmp_path / "a.png", np.stack([mask] * 3, axis=-1), colour_type=RGB)
    assert np.array_equal(read_labels(path).array[0], mask)
    with_alpha = np.stack([mask, mask, mask, np.full_like(mask, 255)], axis=-1)
    assert np.array_equal(read_labels(files.png(tmp_path / "b.png", with_alpha, colour_type=RGBA)).array[0], mask)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_modes(tmp_path, mode):
    stored = samples(3) if mode == "RGB" else samples(bits=1 if mode == "1" else 8)
    image = Image.fromarray(stored > 0) if mode == "1" else Image.fromarray(stored)
    if mode == "P":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(tmp_path / "a.BMP")
    if mode == "RGB":
        assert np.array_equal(read_image(tmp_path / "a.BMP").array[:, 0], np.moveaxis(stored, -1, 0))
    else:
        assert np.array_equal(read_labels(tmp_path / "a.BMP").array[0], stored)


def test_jpeg_is_an_image_but_never_a_label_map(tmp_path):
    path = hostile.jpeg_mask(tmp_path)
    assert np.array_equal(read_image(path).array[0, 0], np.asarray(Image.open(path)))
    assert read_geometry(path).shape == (1, 16, 16)
    with pytest.raises(DataError, match=r"mask\.jpg.*lossy") as caught:
        read_labels(path)
    assert ".png" in caught.value.remedy
    Image.fromarray(samples(3)).save(tmp_path / "colour.jpeg")
    assert read_image(tmp_path / "colour.jpeg").array.shape == (3, 1, 7, 9)


@pytest.mark.parametrize(("bits", "colour_type"), [(8, GREY), (8, RGB), (16, GREY), (16, RGB), (1, GREY)])
def test_a_png_cut_or_flipped_anywhere_is_refused_or_harmless(tmp_path, bits, colour_type):
    stored = samples(3 if colour_type == RGB else None, bits)
    path = files.png(tmp_path / "a.png", stored, bits=bits, colour_type=colour_type)
    sound, size = read_image(path), path.stat().st_size
    refused = 0
    for byte in range(1, size, 3):
        for damaged in (hostile.cut(path, byte), hostile.flipped(path, byte, 1 << byte % 8)):
            try:
                volume = read_image(damaged)
            except DataError:
                refused += 1
                continue
            assert np.array_equal(volume.array, sound.array), byte
            assert volume.geometry == sound.geometry
    assert refused > 2 * (size // 3) - 16  # all but what lies in the end mark


@pytest.mark.thorough
@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("palette", [b"", bytes(range(12))])
def test_every_flipped_bit_of_a_compressible_png_is_refused_or_harmless(tmp_path, bits, palette):
    stored = samples(bits=1)
    path = files.png(tmp_path / "a.png", stored, bits=bits, colour_type=PALETTE if palette else GREY, palette=palette)
    for byte in range(8, path.stat().st_size):
        for bit in range(8):
            try:
                labels = read_labels(hostile.flipped(path, byte, 1 << bit))
            except DataError:
                continue
            assert np.array_equal(labels.array[0], stored), (byte, bit)


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp"])
def test_a_truncated_file_is_refused(tmp_path, name):
    Image.fromarray(samples(shape=(40, 50))).save(tmp_path / name)
    size = (tmp_path / name).stat().st_size
    for length in (3, 20, size // 2, size - 20):
        with pytest.raises(DataError, match="cut-a"):
            read_image(hostile.cut(tmp_path / name, length))


# ---- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_single_page_is_flat(tmp_path, dtype, byteorder):
    stored = files.voxels((7, 9), dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, byteorder=byteorder)
    volume = read_image(tmp_path / "a.tif")
    assert np.array_equal(volume.array[0, 0], stored)
    assert volume.geometry == read_geometry(tmp_path / "a.tif")
    assert volume.geometry.flat
    assert np.array_equal(read_labels(tmp_path / "a.tif").array[0], stored)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}])
def test_pages_are_slices(tmp_path, separate, options):
    big = {"bigtiff": options["bigtiff"]} if "bigtiff" in options and not separate else {}
    rest = {key: value for key, value in options.items() if key != "bigtiff"}
    path = files.stack(tmp_path / "a.tiff", files.voxels(), separate=separate, **big, **rest)
    volume = read_image(path)
    assert np.array_equal(volume.array[0], files.voxels())
    assert not volume.geometry.flat
    assert volume.geometry.shape == (4, 5, 6)
    assert volume.geometry == read_geometry(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "1"])
def test_files_of_other_programs_in_usual_compressions(tmp_path, compression, mode):
    stored = {"L": samples(), "I;16": samples(bits=16), "RGB": samples(3), "1": samples(bits=1)}[mode]
    image = Image.fromarray(stored > 0) if mode == "1" else Image.fromarray(stored)
    image.save(tmp_path / "a.tif", compression=compression)
    if mode == "1" and compression == "tiff_lzw":
        with pytest.raises(DataError, match=r"a\.tif"):
            read_image(tmp_path / "a.tif")
        return
    expected = np.moveaxis(stored, -1, 0) if mode == "RGB" else stored[None]
    assert np.array_equal(read_image(tmp_path / "a.tif").array[:, 0], expected)


def test_pages_in_lzw_are_slices_too(tmp_path):
    pages = [Image.fromarray(page) for page in files.voxels(dtype=np.uint8)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert np.array_equal(read_labels(tmp_path / "a.tif").array, files.voxels())


def test_colours_transparency_and_palettes(tmp_path):
    rgb, rgba = samples(3), samples(4)
    rgba[..., -1] = 255
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "rgb.tif").array[:, 0], np.moveaxis(rgb, -1, 0))
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "planar.tif").array[:, 0], np.moveaxis(rgb, -1, 0))
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([rgb, rgb[::-1]]), photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "stack.tif").array[:, 1], np.moveaxis(rgb[::-1], -1, 0))
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "rgba.tif").array[:, 0], np.moveaxis(rgba[..., :3], -1, 0))
    tifffile.imwrite(tmp_path / "four.tif", samples(4), photometric="rgb", extrasamples=["unspecified"])
    assert read_image(tmp_path / "four.tif").array.shape == (4, 1, 7, 9)
    rgba[0, 0, -1] = 3
    tifffile.imwrite(tmp_path / "varies.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(DataError, match="transparency"):
        read_image(tmp_path / "varies.tif")
    indices = samples(bits=2)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 1:4] = np.array([[255, 0, 10], [0, 255, 20], [0, 0, 30]]) * 256
    tifffile.imwrite(tmp_path / "palette.tif", indices, photometric="palette", colormap=colours)
    assert np.array_equal(read_labels(tmp_path / "palette.tif").array[0], indices)
    assert np.array_equal(read_image(tmp_path / "palette.tif").array[:, 0], (colours // 256)[:, indices])


def test_channels_and_slices_of_an_imagej_hyperstack(tmp_path):
    array = samples(bits=8, shape=(3, 2, 7, 9))  # Z C Y X
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(read_image(tmp_path / "a.tif").array, array.transpose(1, 0, 2, 3))
    array = samples(shape=(2, 3, 1, 7, 9))  # T Z C Y X
    tifffile.imwrite(tmp_path / "b.tif", array, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(DataError, match="TZYX"):
        read_image(tmp_path / "b.tif")


def test_pages_of_different_sizes_are_no_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(samples(), metadata=None)
        writer.write(samples(shape=(3, 3)), metadata=None)
    with pytest.raises(DataError, match="different sizes"):
        read_image(tmp_path / "a.tif")


def test_jpeg_inside_a_tiff_is_an_image_but_no_label_map(tmp_path):
    Image.fromarray(samples(shape=(16, 16))).save(tmp_path / "a.tif", compression="jpeg")
    assert read_image(tmp_path / "a.tif").array.shape == (1, 1, 16, 16)
    with pytest.raises(DataError, match="JPEG"):
        read_labels(tmp_path / "a.tif")


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_stack_is_refused_or_whole_but_never_shorter(tmp_path, separate, compression):
    array = files.voxels((8, 20, 30))
    path = files.stack(tmp_path / "a.tif", array, separate=separate, compression=compression)
    size, refused = path.stat().st_size, 0
    with tifffile.TiffFile(path) as file:
        starts = [page.offset for page in file.pages][1:]  # a cut right there leaves whole pages
    lengths = np.unique([*np.linspace(4, size - 1, 80).astype(int), *range(size - 12, size), *starts])
    for length in lengths:
        try:
            volume = read_image(hostile.cut(path, int(length)))
        except DataError:
            refused += 1
            continue
        assert np.array_equal(volume.array[0], array), length
    assert refused > len(lengths) * 0.8


def test_spacing_of_a_stack_stands_beside_it_or_inside(tmp_path):
    path = files.stack(tmp_path / "case_0000.tif", files.voxels())
    assert read_geometry(path).spacing == (1.0, 1.0, 1.0)
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [5, 0.5, 0.25]}))
    assert read_geometry(path).spacing == (5.0, 0.5, 0.25)
    assert read_image(path).geometry.spacing == (5.0, 0.5, 0.25)
    (tmp_path / "case.json").write_text(json.dumps({"age": 50}))
    assert read_geometry(path).spacing == (1.0, 1.0, 1.0)
    for wrong in ([5, 0.5], "5 5 5", [5, None, 1]):
        (tmp_path / "case.json").write_text(json.dumps({"spacing": wrong}))
        with pytest.raises(DataError, match=r"case\.json.*three numbers"):
            read_geometry(path)
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [5, 0, 1]}))
    with pytest.raises(DataError, match="size"):
        read_geometry(path)


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("like", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("target", ["out.png", "out.tif", "out.bmp", "out.nii.gz", "out.mha"])
def test_flat_labels_in_every_format(tmp_path, like, target):
    Image.fromarray(samples()).save(tmp_path / like)
    labels = samples(bits=2)[None]
    write_labels(tmp_path / target, labels, tmp_path / like)
    volume = read_labels(tmp_path / target)
    assert np.array_equal(volume.array, labels)
    assert volume.geometry == read_geometry(tmp_path / like)
    if target == "out.png":
        assert np.array_equal(np.asarray(Image.open(tmp_path / target)), labels[0])


@pytest.mark.parametrize(("target", "largest"), [("out.png", 65535), ("out.bmp", 255), ("out.tif", 2**31 - 1)])
def test_the_largest_value_of_each_format(tmp_path, target, largest):
    Image.fromarray(samples()).save(tmp_path / "a.png")
    labels = samples(bits=1)[None].astype(np.int64) * largest
    write_labels(tmp_path / target, labels, tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / target).array, labels)
    if target == "out.tif":
        return
    for wrong in (labels + 1, labels - 1):
        with pytest.raises(UsageError, match=f"holds values 0..{largest}"):
            write_labels(tmp_path / target, wrong, tmp_path / "a.png")


def test_stacks_are_written_with_their_spacing(tmp_path):
    like = files.nifti(tmp_path / "like.nii.gz")
    write_labels(tmp_path / "out.tif", files.voxels(), like)
    volume = read_labels(tmp_path / "out.tif")
    assert np.array_equal(volume.array, files.voxels())
    assert volume.geometry.spacing == read_geometry(like).spacing
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), files.voxels())
    with pytest.raises(UsageError, match="4 slices"):
        write_labels(tmp_path / "out.png", files.voxels(), like)
    single = files.nifti(tmp_path / "single.nii.gz", files.voxels((1, 5, 6)))
    write_labels(tmp_path / "out.png", files.voxels((1, 5, 6)), single)
    assert np.array_equal(read_labels(tmp_path / "out.png").array, files.voxels((1, 5, 6)))


# ---- real data ------------------------------------------------------------------------------------------------------


def test_real_micrographs(data_dir, tmp_path):
    image = data_dir / "axon_sem/images/sub-rat1_sample-data1_SEM.png"
    volume = read_image(image)
    assert volume.array.shape == (1, 1, 924, 1278)
    assert np.array_equal(volume.array[0, 0], np.asarray(Image.open(image)))
    labels = read_labels(next((data_dir / "axon_sem/labels").glob("sub-rat1*")))
    assert labels.geometry == volume.geometry
    assert set(np.unique(labels.array)) == {0, 1, 2}
    write_labels(tmp_path / "out.png", labels.array, image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), labels.array[0])
