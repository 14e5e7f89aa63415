"""Outlines of one image: labelme and GeoJSON as programs write them, and with their usual faults."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import outlines
import tiny
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import label_names, marks_unknown, read_labels, stem_of
from outlines import SIZE, feature, geojson, labelme, ring, shape


def like(tmp_path: Path) -> Path:
    return outlines.picture(tmp_path / "images/a.png")


def remarks(volume) -> dict[str, str]:
    return {remark.kind: remark.what for remark in volume.geometry.remarks}


# ---- labelme --------------------------------------------------------------------------------------------------------


def test_shapes_and_groups(tmp_path):
    path = labelme(tmp_path / "a.json", [
        shape("cell", ring(0, 0, 3, 2)),
        shape("cell", [[4, 0], [6, 2]], "rectangle", group=3),
        shape("cell", ring(4, 4, 6, 6), None, group=3),  # with the one before: one object
        shape("nucleus", ring(8, 0, 9, 1), group=3),
        shape("dot", [[8.5, 6.5], [8.5, 7.6]], "circle"),
    ])  # fmt: skip
    assert label_names(path) == {"cell": 1, "nucleus": 2, "dot": 3}
    semantic = read_labels(path).array[0]
    assert [int((semantic == value).sum()) for value in (1, 2, 3)] == [6 + 4 + 4, 1, 5]
    objects = read_labels(path, things={"cell": 1}).array[0]
    assert [int((objects == value).sum()) for value in (1, 2, 3)] == [6, 8, 0]


def test_the_corners_of_a_rectangle_may_come_in_any_order(tmp_path):
    path = labelme(tmp_path / "a.json", [shape("a", [[6, 5], [2, 1]], "rectangle")])
    assert read_labels(path).array.sum() == 16


def test_a_mask_is_a_picture_as_text(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(content, "PNG")
    text = base64.b64encode(content.getvalue()).decode()
    path = labelme(tmp_path / "a.json", [shape("a", [[3, 2], [4, 3]], "mask", mask=text)])
    assert np.argwhere(read_labels(path).array[0]).tolist() == [[2, 4], [3, 3], [3, 4]]


def test_what_has_no_area_is_not_used_and_said(tmp_path):
    shapes = [shape("a", ring(0, 0, 2, 2)), shape("axis", [[0, 0], [5, 5]], "line"), shape("b", [[1, 1]], "point"),
              shape("a", [[1, 1], [2, 2]])]  # fmt: skip
    volume = read_labels(labelme(tmp_path / "a.json", shapes))
    assert volume.array.sum() == 4
    assert remarks(volume)["no area"].startswith("2 lines or points without an area: not used (line 'axis', point 'b')")
    assert "1 object of 2 without the centre of any pixel" in remarks(volume)["empty outlines"]


def test_labels_that_mean_background_or_not_annotated(tmp_path):
    drawn = {"a": ring(0, 0, 4, 4), "_background_": ring(1, 1, 3, 3), "__ignore__": ring(6, 0, 8, 2)}
    path = labelme(tmp_path / "a.json", [shape(name, points) for name, points in drawn.items()])
    assert label_names(path) == {"a": 1}
    assert marks_unknown(path)
    array = read_labels(path, names={"a": 1}, ignore=255).array
    assert ((array == 1).sum(), (array == 255).sum()) == (12, 4)


def test_a_size_other_than_the_image_s_stays_to_be_seen(tmp_path):
    path = labelme(tmp_path / "a.json", [shape("a", ring(0, 0, 2, 2))], imageHeight=80, imageWidth=100)
    assert read_labels(path, like=like(tmp_path)).geometry.shape == (1, 80, 100)
    path = labelme(tmp_path / "b.json", [shape("a", ring(0, 0, 2, 2))], imageHeight=None, imageWidth=None)
    assert read_labels(path, like=like(tmp_path)).geometry.shape == (1, *SIZE)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (shape("a", [[0, 0], [1]]), "shapes[0] ('a'): its points are not a list of [x, y]"),
        (shape("a", None), "its points are not a list"),
        (shape("a", ring(0, 0, float("nan"), 2)), "a coordinate is nan"),
        (shape("a", [[0, 0]], "circle"), "a circle has 1 point, expected 2"),
        (shape("a", ring(0, 0, 1, 1)[:3], "rectangle"), "a rectangle has 3 points, expected 2"),
        (shape("a", [[0, 0], [1, 1]], "mask", mask="no picture"), "its mask is not a PNG file as text"),
        (shape("a", [[0, 0], [1, 1]], "mask"), "its mask is not a PNG file as text"),
        (shape("a", ring(0, 0, 1, 1), "spline"), "the shape type 'spline' is not known"),
        ("a", "shapes[0] is not an object"),
    ],
)
def test_shapes_that_cannot_be_read_are_named(tmp_path, wrong, words):
    path = labelme(tmp_path / "a.json", [wrong, shape("b", ring(0, 0, 1, 1))])
    with pytest.raises(DataError) as caught:
        read_labels(path)
    assert words in caught.value.what
    assert str(path) in caught.value.what


# ---- GeoJSON --------------------------------------------------------------------------------------------------------


def closed(*corners: float) -> list:
    points = ring(*corners)
    return [*points, points[0]]


def test_polygons_with_holes_and_several_parts(tmp_path):
    path = geojson(tmp_path / "a.geojson", [
        feature("Tumor", "Polygon", [closed(0, 0, 6, 6), closed(2, 2, 4, 4)]),
        feature("Stroma", "MultiPolygon", [[closed(7, 0, 9, 2)], [closed(7, 4, 9, 6)]]),
    ])  # fmt: skip
    assert label_names(path) == {"Tumor": 1, "Stroma": 2}
    array = read_labels(path, like=like(tmp_path)).array[0]
    assert [int((array == value).sum()) for value in (1, 2)] == [32, 8]
    with pytest.raises(DataError, match="does not state the size of its image"):
        read_labels(path)


def test_objects_without_a_class_are_objects_and_nuclei_in_cells_are_said(tmp_path):
    cell = feature(None, "Polygon", [closed(0, 0, 3, 3)], nucleusGeometry={"type": "Polygon", "coordinates": []})
    ignored = feature("Ignore*", "Polygon", [closed(5, 5, 7, 7)])
    path = geojson(tmp_path / "a.geojson", [cell, ignored, feature("x", "Point", [1, 1])])
    assert label_names(path) == {"object": 1}
    volume = read_labels(path, like=like(tmp_path), names={"object": 1}, ignore=255)
    assert ((volume.array == 1).sum(), (volume.array == 255).sum()) == (9, 4)
    assert "the nuclei in 1 cell are not used" in remarks(volume)["nuclei"]
    assert "1 line or point" in remarks(volume)["no area"]


@pytest.mark.parametrize("form", ["list", "one"])
def test_a_list_of_features_and_a_single_one(tmp_path, form):
    one = feature("a", "Polygon", [closed(0, 0, 3, 3)])
    path = tiny.text(tmp_path / "a.json", [one] if form == "list" else one)
    assert read_labels(path, like=like(tmp_path)).array.sum() == 9


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "Feature", "geometry": None, "properties": None}, "features[0] has no geometry"),
        (feature("a", "Curve", []), "features[0] ('a'): the geometry 'Curve' is not known"),
        (feature("a", "Polygon", ring(0, 0, 2, 2)), "its points are not a list of [x, y]"),
        (feature("a", "MultiPolygon", [1, 2]), "its coordinates are not those of a MultiPolygon"),
        (feature("a", "Polygon", [[[0, 0], [1, "x"], [2, 2]]]), "a coordinate is not a number"),
    ],
)
def test_features_that_cannot_be_read_are_named(tmp_path, wrong, words):
    path = geojson(tmp_path / "a.geojson", [wrong])
    with pytest.raises(DataError) as caught:
        read_labels(path, like=like(tmp_path))
    assert words in caught.value.what


def test_outlines_of_a_whole_slide_on_a_part_of_it_are_refused(tmp_path):
    path = geojson(tmp_path / "a.geojson", [feature("a", "Polygon", [closed(20_000, 30_000, 20_100, 30_100)])])
    with pytest.raises(DataError, match="lie outside the image of 10 x 8 pixels: from x 20000 to 20100, y 30000 to"):
        read_labels(path, like=like(tmp_path))


def test_other_json_is_refused(tmp_path):
    path = tiny.text(tmp_path / "a.json", {"spacing": [1, 1, 1]})
    with pytest.raises(DataError, match="is JSON, but holds no outlines: expected `shapes`"):
        read_labels(path)


def test_names_of_outline_files_are_those_of_their_images():
    assert [stem_of(name) for name in ("a.json", "a.b.geojson", "a.png.json", "x/a.JSON")] == ["a", "a.b", "a", "a"]
