"""How large pixels are, by tags that tifffile writes as ImageJ, microscopes and drawing programs do."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

import files
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_image, write_labels

STACK = files.voxels((3, 5, 7), dtype=np.uint8)


def of(path):
    grid = read_geometry(path)
    assert read_image(path).geometry == grid
    assert not grid.placed
    return grid.spacing if grid.sized else None, [remark.kind for remark in grid.remarks]


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("mm", 1.0), ("nm", 1e-6), ("cm", 10.0), ("inch", 25.4)],
)  # fmt: skip
def test_imagej(tmp_path, unit, mm):
    path = tmp_path / "a.tif"
    options = {"imagej": True, "resolution": (1 / 0.25, 1 / 0.5)}  # pixels per unit along x, y
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", "spacing": 2.0, "unit": unit}, **options)
    assert of(path) == (pytest.approx((2 * mm, 0.5 * mm, 0.25 * mm)), [])
    tifffile.imwrite(path, STACK[0], metadata={"axes": "YX", "unit": unit}, **options)
    assert of(path) == (pytest.approx((1.0, 0.5 * mm, 0.25 * mm)), [])
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", "unit": unit}, **options)  # ImageJ leaves out a spacing of 1
    assert of(path) == (pytest.approx((mm, 0.5 * mm, 0.25 * mm)), [])


def test_imagej_without_a_unit(tmp_path):
    path = tmp_path / "a.tif"
    for unit in ({}, {"unit": "pixel"}):
        tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX", **unit})
        assert of(path) == (None, [])
        tifffile.imwrite(path, STACK[0], imagej=True, resolution=(4, 4), metadata={"axes": "YX", **unit})
        assert of(path) == (None, [])
        tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX", "spacing": 3.0, **unit})
        assert of(path) == ((3.0, 1.0, 1.0), [])  # the ratio at least


@pytest.mark.parametrize(("unit", "mm"), [(None, 1e-3), ("\u00b5m", 1e-3), ("nm", 1e-6), ("mm", 1.0)])
def test_ome(tmp_path, unit, mm):
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    units = {} if unit is None else {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", **sizes, **units})
    assert of(path) == (pytest.approx((2 * mm, 0.5 * mm, 0.25 * mm)), [])
    tifffile.imwrite(path, STACK[0], metadata={"axes": "YX", **sizes, **units})
    assert of(path) == (pytest.approx((1.0, 0.5 * mm, 0.25 * mm)), [])


def test_ome_without_sizes_and_without_a_distance_of_slices(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"})
    assert of(path) == (None, [])
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
    assert of(path) == (None, ["no distance between slices"])


@pytest.mark.parametrize(
    ("per_unit", "unit", "mm"),
    [
        (20000, "CENTIMETER", 5e-4),  # a microscope: half a micrometre
        (50800, "INCH", 5e-4),
        (28.35, "CENTIMETER", None),  # 72 dots per inch: a drawing program
        (72, "INCH", None),
        (300, "INCH", None),
        (2400, "INCH", None),
        (20000, "NONE", None),
    ],
)
def test_resolution_tags(tmp_path, per_unit, unit, mm):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], resolution=(per_unit, per_unit), resolutionunit=unit, metadata=None)
    assert of(path) == (None if mm is None else pytest.approx((1.0, mm, mm)), [])
    tifffile.imwrite(
        path, STACK, photometric="minisblack", resolution=(per_unit,) * 2, resolutionunit=unit, metadata=None
    )
    assert of(path) == (None, [] if mm is None else ["no distance between slices"])


def test_a_picture_without_tags_has_no_size(tmp_path):
    Image.fromarray(STACK[0]).save(tmp_path / "a.tif")
    assert of(tmp_path / "a.tif") == (None, [])
    Image.fromarray(STACK[0]).save(tmp_path / "b.tif", dpi=(300, 300))
    assert of(tmp_path / "b.tif") == (None, [])
    Image.fromarray(STACK[0]).save(tmp_path / "c.png")
    assert of(tmp_path / "c.png") == (None, [])


def test_the_json_beside_it_comes_first_and_a_contradiction_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "spacing": 2, "unit": "um"})
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [0.002, 0.0005, 0.00025]}))
    assert of(path) == ((0.002, 0.0005, 0.00025), [])
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [2, 0.5, 0.25]}))
    assert of(path) == ((2.0, 0.5, 0.25), ["two voxel sizes"])
    assert "2 x 0.5 x 0.25 mm (z, y, x) by the .json file" in read_geometry(path).remarks[0].what
    assert "0.002 x 0.0005 x 0.00025 mm (z, y, x) by ImageJ's description" in read_geometry(path).remarks[0].what


@pytest.mark.parametrize("sizes", [{"spacing": 0.0}, {"spacing": float("nan")}, {"spacing": -1.0}])
def test_distances_without_meaning_are_not_used(tmp_path, sizes):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "unit": "um", **sizes})
    assert of(path)[0] is None


@pytest.mark.parametrize("beside", [[1, 0, 1], [1, -1, 1], [1, "2", 3], [1, 2], "1,2,3"])
def test_a_damaged_json_is_refused(tmp_path, beside):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    (tmp_path / "a.json").write_text(json.dumps({"spacing": beside}))
    with pytest.raises(DataError, match=r"a\.json.*three"):
        read_geometry(tmp_path / "a.tif")


@pytest.mark.parametrize("array", [STACK, STACK[0]])
def test_label_maps_are_written_with_the_size_of_their_image(tmp_path, array):
    image = tmp_path / "a.tif"
    axes = "ZYX"[3 - array.ndim :]
    tifffile.imwrite(image, array, imagej=True, resolution=(4, 2), metadata={"axes": axes, "spacing": 2, "unit": "um"})
    write_labels(tmp_path / "out.tif", (STACK if array.ndim == 3 else STACK[:1]) % 3, image)
    assert of(tmp_path / "out.tif")[0] == pytest.approx(read_geometry(image).spacing)
    tifffile.imwrite(image, array, photometric="minisblack")
    write_labels(tmp_path / "out.tif", (STACK if array.ndim == 3 else STACK[:1]) % 3, image)
    assert of(tmp_path / "out.tif") == (None, [])
