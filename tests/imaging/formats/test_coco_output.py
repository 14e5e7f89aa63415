"""Maps of objects to COCO JSON and back: every voxel, boxes and areas by hand, pycocotools as second reader."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tiny
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.coco_output import ImageObjects, annotations, annotations_as, folder_to_coco, write_coco
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.labels import LabelSet, Thing

MAPS = arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 7]))


def written(path: Path, numbers: np.ndarray, **more) -> dict:
    write_coco(path, [ImageObjects("a.png", numbers.shape, annotations(numbers, **more))])
    return json.loads(path.read_text())


def numbered(numbers: np.ndarray) -> np.ndarray:
    """The same objects as 1, 2, ... without gaps."""
    return np.unique(np.concatenate([[0], numbers.ravel()]), return_inverse=True)[1][1:].reshape(numbers.shape)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MAPS)
def test_what_was_written_is_read_pixel_for_pixel(tmp_path, numbers):
    """Objects of one pixel, at the edges, with holes and of several parts, that touch at sides and corners."""
    path = tmp_path / "annotations.json"
    path.unlink(missing_ok=True)
    written(path, numbers)
    assert np.array_equal(read_labels(path, things={"object": 1}).array[0], numbered(numbers))


def test_pycocotools_reads_the_same(tmp_path):
    oracle = pytest.importorskip("pycocotools.coco", reason="pycocotools is the second reader")
    random = np.random.default_rng(0)
    for number in range(20):
        numbers = random.integers(0, 5, random.integers(1, 30, 2)) * (random.random() < 0.9)
        path = tmp_path / f"{number}.json"
        written(path, numbers)
        coco = oracle.COCO(str(path))
        found = np.zeros_like(numbers)
        for annotation in coco.dataset["annotations"]:
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            found[mask > 0] = annotation["object"]
        assert np.array_equal(found, numbers)


def test_box_area_and_outline_by_hand(tmp_path):
    numbers = np.zeros((5, 6), np.uint8)
    numbers[1:3, 2:5] = 4  # two rows, three columns
    numbers[4, 0] = 9  # one pixel in a corner
    found = written(tmp_path / "x.json", numbers, names={4: "cell", 9: "dirt"}, scores={4: 0.75})
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": 6, "height": 5}]
    assert [(c["id"], c["name"]) for c in found["categories"]] == [(1, "cell"), (2, "dirt")]
    assert found["annotations"] == [
        {
            "id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "object": 4, "score": 0.75, "bbox": [2, 1, 3, 2],
            "area": 6, "segmentation": [[2, 1, 5, 1, 5, 3, 2, 3]],
        },
        {
            "id": 2, "image_id": 1, "category_id": 2, "iscrowd": 0, "object": 9, "bbox": [0, 4, 1, 1], "area": 1,
            "segmentation": [[0, 4, 1, 4, 1, 5, 0, 5]],
        },
    ]  # fmt: skip


def test_an_object_with_a_hole_is_written_as_run_lengths_and_one_of_two_parts_as_two_polygons(tmp_path):
    ring = np.zeros((4, 5), np.uint8)
    ring[:3, 1:4] = 1
    ring[1, 2] = 0
    (annotation,) = written(tmp_path / "ring.json", ring)["annotations"]
    assert annotation["segmentation"]["size"] == [4, 5]
    assert (annotation["bbox"], annotation["area"]) == ([1, 0, 3, 3], 8)
    corners = np.array([[1, 0], [0, 1]], np.uint8)  # they touch at a corner
    (annotation,) = written(tmp_path / "corners.json", corners)["annotations"]
    assert len(annotation["segmentation"]) == 2
    assert annotation["bbox"] == [0, 0, 2, 2]


def test_a_volume_has_an_image_per_slice_and_a_box_per_object(tmp_path):
    volume = np.zeros((3, 4, 5), np.int32)
    volume[1:, 1:3, 2:5] = 70_000
    volume[0, 0, 0] = 2
    found = written(tmp_path / "x.json", volume)
    assert [(image["id"], image["slice"]) for image in found["images"]] == [(1, 0), (2, 1), (3, 2)]
    assert [(a["image_id"], a["object"]) for a in found["annotations"]] == [(1, 2), (2, 70_000), (3, 70_000)]
    assert [(o["object"], o["box_3d"], o["voxels"]) for o in found["objects"]] == [
        (2, [0, 0, 0, 1, 1, 1], 1),
        (70_000, [2, 1, 1, 3, 2, 2], 12),
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 3), elements=st.integers(0, 3)))
def test_a_volume_is_read_voxel_for_voxel(tmp_path, volume):
    path = tmp_path / "v.json"
    path.unlink(missing_ok=True)
    written(path, volume)
    assert np.array_equal(read_labels(path, things={"object": 1}).array, numbered(volume))


def test_a_folder_of_label_files_becomes_one_file(tmp_path):
    a, b = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    a[:2, :2], b[3, 1:4] = 3, 1
    tiny.picture(tmp_path / "maps/a.png", a)
    tiny.picture(tmp_path / "maps/b.png", b)
    tiny.text(tmp_path / "maps/notes.txt", "not a label map")
    assert folder_to_coco(tmp_path / "maps", tmp_path / "c.json", name="cell", images={"a": "a.jpg"}) == 2
    found = json.loads((tmp_path / "c.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.jpg", "b.png"]
    assert found["categories"] == [{"id": 1, "name": "cell", "supercategory": ""}]


def test_with_a_divisor_values_have_labels(tmp_path):
    array = np.array([[1001, 1002, 2001, 3, 0]], np.uint16)
    tiny.picture(tmp_path / "maps/a.png", array)
    folder_to_coco(tmp_path / "maps", tmp_path / "c.json", names={1: "cell", 2: "lymph"}, divisor=1000)
    found = json.loads((tmp_path / "c.json").read_text())
    assert [(a["object"], a["category_id"]) for a in found["annotations"]] == [(1001, 1), (1002, 1), (2001, 2)]
    back = read_labels(tmp_path / "c.json", names={"cell": 1}, things={"cell": 1, "lymph": 2}, divisor=1000)
    assert back.array.ravel().tolist() == [1001, 1002, 2001, 0, 0]
    with pytest.raises(DataError, match="2001 is an object of the value 2, which has no label"):
        folder_to_coco(tmp_path / "maps", tmp_path / "c.json", names={1: "cell"}, divisor=1000)
    assert json.loads((tmp_path / "c.json").read_text()) == found  # what was there before


def test_label_maps_with_the_meaning_of_labels():
    one = LabelSet({"cell core": 1, "cell border": 2}, things={"cell": Thing(1, 2)}, ignore=255)
    found = annotations_as(one, np.array([[3, 3, 0, 255, 9]]), {9: 0.5})
    assert [(a["object"], a["category"], a["area"], a.get("score")) for a in found] == [
        (3, "cell", 2, None), (9, "cell", 1, 0.5),
    ]  # fmt: skip
    values = {"cell core": 1, "dot core": 2, "tissue": 3, "cell border": 4, "dot border": 5}
    both = LabelSet(values, things={"cell": Thing(1, 4), "dot": Thing(2, 5)}, divisor=1000)
    found = annotations_as(both, np.array([[2001, 1001, 3, 0, 1002]]))
    assert [(a["object"], a["category"]) for a in found] == [(1001, "cell"), (1002, "cell"), (2001, "dot")]


def test_what_is_no_map_of_objects_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        annotations(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="axes"):
        annotations(np.zeros((2, 2, 2, 2), int))
    with pytest.raises(UsageError, match="contains no label file"):
        folder_to_coco(tmp_path, tmp_path / "c.json")
    with pytest.raises(UsageError, match="is not a folder"):
        folder_to_coco(tmp_path / "gone", tmp_path / "c.json")
