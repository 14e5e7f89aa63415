"""COCO files of others: what is read, and what each fault is called."""

import json
from pathlib import Path

import numpy as np
import pytest

import outlines
import tiny
from autoseg.errors import DataError
from autoseg.imaging.formats import coco as module
from autoseg.imaging.formats.coco import file_name, open_coco
from autoseg.imaging.formats.readers import label_names, marks_unknown, read_labels
from autoseg.imaging.formats.run_lengths import encode, to_text
from outlines import SIZE, annotation, coco, flat, image

SQUARE = np.zeros(SIZE, bool)
SQUARE[2:5, 3:7] = True
BOX = flat(3, 2, 7, 5)  # the same as a polygon


def first(path: Path) -> np.ndarray:
    return read_labels(path).array[0] == 1


def refused(path: Path, words: str, **more) -> str:
    with pytest.raises(DataError) as caught:
        read_labels(path, **more)
    assert words in caught.value.what
    assert str(path) in caught.value.what
    return caught.value.what


@pytest.mark.parametrize(
    "segmentation",
    [
        [BOX],
        BOX,  # without the list around it
        [[[x, y] for x, y in zip(BOX[::2], BOX[1::2], strict=True)]],  # points
        [[x, y] for x, y in zip(BOX[::2], BOX[1::2], strict=True)],
        [flat(3, 2, 7, 4), flat(3, 4, 7, 5)],  # two parts
        [BOX, [1, 1]],  # and a click without a polygon
        {"counts": encode(SQUARE), "size": list(SIZE)},
        {"counts": to_text(encode(SQUARE)), "size": list(SIZE)},
        [{"counts": to_text(encode(SQUARE)), "size": list(SIZE)}],
    ],
)
def test_ways_to_write_one_object(tmp_path, segmentation):
    path = coco(tmp_path / "x.json", [annotation(1, segmentation)])
    assert np.array_equal(first(path), SQUARE)


def test_categories_are_numbered_in_order_of_their_ids_those_in_use_alone(tmp_path):
    """Roboflow adds a group as category 0, others begin with 0, and ids may be text."""
    categories = [{"id": "10", "name": "late"}, {"id": 2, "name": "early"}, {"id": 0, "name": "group"}, {"id": 3}]
    used = [
        annotation(1, [BOX], category_id=10),
        annotation(2, [BOX], category_id=2),
        annotation(3, [BOX], category_id=3),
    ]
    assert label_names(coco(tmp_path / "x.json", used, categories=categories)) == {
        "early": 1, "category_3": 2, "late": 3,
    }  # fmt: skip
    zero = coco(tmp_path / "y.json", [annotation(0, [BOX], category_id=0)], categories=[{"id": 0, "name": "cell"}])
    assert np.array_equal(first(zero), SQUARE)


def test_images_are_found_by_name_and_segmentations_of_them_too(tmp_path):
    images = [image("sub\\A 1.jpg", "7"), image("b/x.png", 8), image("c/x.png", 9)]
    objects = [annotation(1, [BOX], image_id=7), annotation(2, [flat(0, 0, 1, 1)], image_id="9")]
    path = coco(tmp_path / "x.json", objects, images)
    for like, expected in (
        ("images/sub/A 1.jpg", 12), ("predictions/A 1.png", 12), ("data/b/x.png", 0), ("data/c/x.png", 1),
        ("predictions/c_x.tif", 1), ("predictions/x_c_x.png", 1),
    ):  # fmt: skip
        picture = outlines.picture(tmp_path / like)
        assert read_labels(path, like=picture).array.sum() == expected, like
    refused(path, "describes 2 images of that name: x.png", like=outlines.picture(tmp_path / "x.png"))
    refused(path, "does not describe it: other.png", like=outlines.picture(tmp_path / "other.png"))
    refused(path, "does not describe it: my_c_x.png", like=outlines.picture(tmp_path / "my_c_x.png"))
    refused(path, "describes 3 images; which one is meant is not known")


def test_crowds_are_places_that_nobody_annotated(tmp_path):
    crowd = {"counts": encode(SQUARE), "size": list(SIZE)}
    objects = [annotation(1, [flat(0, 0, 1, 1)]), annotation(2, crowd, iscrowd=1, category_id=2)]
    path = coco(tmp_path / "x.json", objects)
    assert marks_unknown(path)
    assert label_names(path) == {"cell": 1}
    array = read_labels(path, names={"cell": 1}, ignore=255).array
    assert ((array == 255).sum(), (array == 1).sum()) == (12, 1)


def test_another_size_than_the_image_s_is_seen_in_the_grid(tmp_path):
    path = coco(tmp_path / "x.json", [annotation(1, [BOX])])
    assert read_labels(path, like=outlines.picture(tmp_path / "a.png", size=(16, 20))).geometry.shape == (1, *SIZE)
    unsized = coco(tmp_path / "y.json", [annotation(1, [BOX])], [{"id": 1, "file_name": "a.png", "height": None}])
    assert read_labels(unsized, like=tmp_path / "a.png").geometry.shape == (1, 16, 20)
    refused(unsized, "does not state the size of its image")
    volume = tiny.nifti(tmp_path / "a.nii.gz", tiny.image(0))
    refused(path, "which belong to a flat image", like=volume)


BROKEN = {
    "a polygon has an odd number of coordinates (9)": [[*BOX, 1]],
    "its polygon has 2 points, expected 3 or more: is it a box?": [[0, 1, 5, 6]],
    "its polygon is a list of run lengths, which add up to the size of the image": [[70, 5, 5]],
    "a coordinate is nan": [[*BOX[:-1], float("nan")]],
    "a coordinate is not a number: 'x'": [[*BOX[:-1], "x"]],
    "its segmentation is neither polygons nor run lengths": "3,2,7,5",
    "its segmentation mixes polygons with": [BOX, 3],
    "its run lengths are of 8 x 10 pixels, the image has 10 x 8: rows and columns are exchanged": {
        "counts": [80], "size": [10, 8]},
    "its run lengths have the size [8], expected [rows, columns]": {"counts": [80], "size": [8]},
    "its run lengths have the size None": {"counts": [80]},
    "its run lengths add up to 81 pixels, the image has 10 x 8 = 80": {"counts": [1, 80], "size": [8, 10]},
    "its run lengths are bytes as Python prints them": {"counts": "b'52203'", "size": [8, 10]},
    "its run lengths contain ' '": {"counts": "5 5", "size": [8, 10]},
    "neither a list of whole numbers nor text: [1.5, 78.5]": {"counts": [1.5, 78.5], "size": [8, 10]},
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN)
def test_segmentations_that_cannot_be_read_name_their_annotation(tmp_path, words):
    what = refused(coco(tmp_path / "x.json", [annotation(17, BROKEN[words])]), words)
    assert "annotation 17: " in what


@pytest.mark.parametrize(
    "size", [[2**30, 2**30], [1e30, 1e30], [-8, 10], [0, 0], [True, True], ["8", "10"], "8x10", 80]
)
def test_a_size_that_is_none_takes_no_memory(tmp_path, size):
    refused(coco(tmp_path / "x.json", [annotation(1, {"counts": [80], "size": size})]), "annotation 1: its run lengths")


def test_all_faults_of_an_image_are_told_at_once(tmp_path):
    objects = [annotation(n, [[1, 2, 3]]) for n in range(5)] + [
        annotation(9, []),
        annotation(10, None, bbox=[0, 0, 5, 5]),
    ]
    what = refused(coco(tmp_path / "x.json", objects), "2 objects of 7 without a segmentation: only boxes?")
    assert "annotation 0: " in what
    assert what.endswith("; and 3 more")


def test_a_category_that_the_file_lacks_is_named(tmp_path):
    refused(
        coco(tmp_path / "x.json", [annotation(1, [BOX], category_id=5)]),
        "its category 5 is not one of the file (1 cell",
    )
    refused(coco(tmp_path / "y.json", [annotation(1, [BOX], category_id=None)]), "its category None is not one")
    refused(coco(tmp_path / "z.json", [annotation(1, [BOX])], categories=[]), "is not one of the file (none)")


def test_faults_of_the_whole_file(tmp_path):
    images = [image("a.png"), image("b.png"), image("c.png", 3), image("c.png", 4)]
    objects = [annotation(1, [BOX], image_id=99), annotation(2, [BOX], image_id=None), annotation(3, [BOX], image_id=4)]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}]
    faults = [fault[0] for fault in open_coco(coco(tmp_path / "x.json", objects, images, categories)).faults]
    assert "1 id of several images, so that annotations cannot be assigned: 1 (a.png, b.png)" in faults
    assert "2 annotations of images that it does not list (image_id 99, None): not used" in faults
    assert "several categories are called cell: they are one label" in faults
    twice = open_coco(coco(tmp_path / "y.json", objects[2:], images[2:], categories[:1]))
    assert twice.faults[0][0] == "1 image listed twice: their annotations are joined"
    assert len(twice.drawn(twice.images[0]).outlines) == 1


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"images": [{"id": 1}]}, "images[0] has no file_name"),
        ({"images": [{"file_name": "a.png"}]}, "images[0] has no id"),
        ({"images": ["a.png"]}, "images[0] has no id"),
        ({"categories": [{"name": "cell"}]}, "categories[0] has no id"),
        ({"annotations": {"1": {}}}, "`annotations` is not a list"),
    ],
)
def test_a_file_without_what_identifies_its_parts_is_refused(tmp_path, entry, words):
    content = {"images": [image("a.png")], "annotations": [], "categories": []} | entry
    refused(tiny.text(tmp_path / "x.json", content), words)


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    content = {"images": [image("Zelle_ä.png")], "annotations": [annotation(1, [BOX])],
               "categories": [{"id": 1, "name": "größer"}]}  # fmt: skip
    text = json.dumps(content, ensure_ascii=False)
    for number, data in enumerate([text.encode(), text.encode("utf-8-sig")]):
        path = tmp_path / f"{number}.json"
        path.write_bytes(data)
        assert label_names(path) == {"größer": 1}
        assert np.array_equal(first(path), SQUARE)
        assert open_coco(path).images[0].name == "Zelle_ä.png"
    for name, data, words in (
        ("utf16", text.encode("utf-16"), "is text in UTF-16, expected UTF-8"),
        ("latin", text.encode("latin-1"), "is not text in UTF-8: byte 0xe4 at 42"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(data)
        refused(path, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-30], "is not valid JSON"),
        (lambda text: text.replace('}, {"id": 2', '} {"id": 2'), "Expecting ',' delimiter: line 1 column"),
        (lambda text: text + "x", "Extra data: line 1 column"),
        (lambda text: text.replace('"categories":', '"categories"'), "Expecting ':' delimiter"),
        (lambda text: "", "is empty, expected JSON"),
        (lambda text: text.replace("[", "[" * 100_000, 1), "is not valid JSON"),
    ],
)
def test_json_errors_name_file_and_place(tmp_path, change, words):
    objects = [annotation(1, [BOX]), annotation(2, [BOX])]
    path = coco(tmp_path / "x.json", objects)
    path.write_text(change(path.read_text()))
    refused(path, words)


def test_a_file_is_walked_through_once_for_all_its_images(tmp_path, monkeypatch):
    images = [image(f"{n}.png", n) for n in range(20)]
    path = coco(tmp_path / "x.json", [annotation(n, [BOX], image_id=n) for n in range(20)], images)
    walked = []
    real = module.read_top
    monkeypatch.setattr(module, "read_top", lambda *given: walked.append(1) or real(*given))
    for n in range(20):
        assert read_labels(path, like=outlines.picture(tmp_path / f"{n}.png")).array.sum() == 12
    assert walked == [1]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("..\\..\\label-studio\\media\\upload\\4\\cb06-a.png", "../../label-studio/media/upload/4/cb06-a.png"),
        ("C:\\data\\a.png", "/data/a.png"),
        ("./images//a.png", "images/a.png"),
        ("https://example.org/set/a%20b.png?token=x", "set/a b.png"),
        ("/data/local-files/?d=set/a%20b.png", "set/a b.png"),
        ("a%20b.png", "a%20b.png"),  # a file may be called so
    ],
)
def test_file_names_of_other_systems(written, meant):
    assert file_name(written) == meant


def test_annotations_of_an_image_stand_where_the_walk_found_them(tmp_path):
    """Blanks, line ends and accents before an annotation: its place is counted in bytes."""
    objects = [annotation(1, [BOX], note="ß"), annotation(2, [flat(0, 0, 2, 1)], note="ß")]
    content = {"info": {"description": "ä" * 10}, "images": [image("é.png")], "annotations": objects}
    content["categories"] = [{"id": 1, "name": "ü"}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent="\t").replace("\n", "\r\n"), encoding="utf-8")
    assert read_labels(path, things={"ü": 1}).array.max() == 2
