"""Datasets whose labels are outlines, as programs export them: layouts, labels, problems, and the way into a plan."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import outlines
import tiny
from autoseg.commands.fix import fix_dataset
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover, load_case, parse_options
from autoseg.datasets.loading import read_label
from autoseg.datasets.outlined import part_of
from autoseg.datasets.splits import Split
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import read_labels_as
from outlines import annotation, coco, feature, flat, geojson, image, labelme, ring, shape


def layout(root: Path, where: str = "annotations.json", images: str = "images", names=("a.png", "b.png")) -> Path:
    """A COCO file of pictures, each with a cell that holds a nucleus."""
    listed, objects = [], []
    for number, name in enumerate(names, start=1):
        outlines.picture(root / images / name.replace("\\", "/"), seed=number + sum(map(ord, where)))
        listed.append(image(name, number))
        objects.append(annotation(2 * number, [flat(2, 2, 3, 3)], image_id=number, category_id=2))
        objects.append(annotation(2 * number + 1, [flat(0, 0, 5, number)], image_id=number))
    return coco(root / where, objects, listed)


def found(root: Path, **options):
    dataset, problems = discover(root, parse_options(**options))
    problems, _ = check(dataset, known=problems, workers=0)
    return dataset, problems


def errors(problems) -> list[tuple[str | None, str]]:
    return [(problem.case, problem.what) for problem in problems if problem.severity == "error"]


def test_one_file_for_all_images(tmp_path):
    path = layout(tmp_path)
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert (dataset.layout, [case.id for case in dataset.cases]) == ("COCO", ["a", "b"])
    assert {case.label for case in dataset.cases} == {str(path)}
    assert dataset.labels.values == {"cell": 1, "nucleus": 2}
    targets = [load_case(case, dataset.labels).target for case in dataset.cases]
    assert [int((target == 1).sum()) for target in targets] == [5, 10]
    assert any("cell=1,nucleus=2" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("where", "images"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("annotations/instances_train2017.json", "train2017"),  # COCO
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("result.json", "images"),  # Label Studio
        ("annotations.json", "."),
    ],
)
def test_where_programs_put_file_and_images(tmp_path, where, images):
    layout(tmp_path, where, images)
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert [Path(case.images[0]).name for case in dataset.cases] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("annotations/instances_val2017.json", "val"), ("valid/_annotations.coco.json", "val"),
        ("test/_annotations.coco.json", "test"), ("instances_test-dev.json", "test"), ("latest_coco.json", "train"),
        ("interval_coco.json", "train"), ("annotations.json", "train"),
    ],
)  # fmt: skip
def test_parts_of_a_dataset_are_words_in_names(tmp_path, file, part):
    assert part_of(tmp_path / file, tmp_path) == part


@pytest.mark.parametrize("name", ["..\\..\\media\\upload\\4\\a.png", "/home/x/a.png", "C:\\data\\a.png", "old/a.png"])
def test_images_are_found_without_the_folders_of_another_machine(tmp_path, name):
    outlines.picture(tmp_path / "images/a.png")
    coco(tmp_path / "result.json", [annotation(1, [flat(0, 0, 2, 2)])], [image(name)])
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert dataset.cases[0].id == "a"


def test_the_file_itself_can_be_named_and_labels_chosen(tmp_path):
    path = layout(tmp_path, "my labels.json")
    dataset, problems = found(path, labels="nucleus=1")
    assert errors(problems) == []
    assert dataset.labels.values == {"nucleus": 1}
    assert any("structures that are not labels: cell" in note for note in dataset.notes)
    _, problems = found(path, labels="nuclei=1")
    assert (None, "no label file has a structure named 'nuclei'") in errors(problems)


def test_validation_is_a_fold_and_test_the_test_set(tmp_path):
    for part, name in (("train", "a.png"), ("valid", "b.png"), ("test", "c.png")):
        layout(tmp_path, f"{part}/_annotations.coco.json", part, (name, f"{part}2.png"))
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert [case.id for case in dataset.test_cases] == ["c", "test2"]
    assert dataset.splits == (Split(0, ("a", "train2"), ("b", "valid2")),)


def test_equal_names_in_folders_get_the_folder_s_name(tmp_path):
    layout(tmp_path, names=("x/001.png", "y\\001.png"))
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert [case.id for case in dataset.cases] == ["x_001", "y_001"]
    assert [int((load_case(case, dataset.labels).target == 1).sum()) for case in dataset.cases] == [5, 10]


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
            ["train_a", "train_b", "valid_a", "valid_b"],
        ),
        (("instances_1.json", "instances_2.json"), [f"instances_{n}_{name}" for n in (1, 2) for name in "ab"]),
    ],
)
def test_equal_names_in_several_files_get_the_file_s_name(tmp_path, files, ids):
    for file in files:
        layout(tmp_path, file, str(Path(file).parent) if "/" in file else Path(file).stem.split("_")[1])
    dataset, _ = discover(tmp_path)
    assert [case.id for case in dataset.cases] == ids
    for case in dataset.cases:
        segmentation = outlines.picture(tmp_path / f"out/{case.id}.png")
        target = load_case(case, dataset.labels).target
        assert np.array_equal(read_labels_as(dataset.labels, case.label, segmentation).array, target)


@pytest.mark.thorough
def test_faults_are_collected(tmp_path):
    objects = [
        annotation(1, [flat(0, 0, 2, 2)], image_id=1), annotation(2, [[1, 2, 3]], image_id=2),
        annotation(3, [flat(0, 0, 2, 2)], image_id=3), annotation(4, [flat(0, 0, 2, 2)], image_id=9),
        annotation(5, [flat(0, 0, 3, 3)], image_id=5), annotation(6, [flat(2, 0, 5, 3)], image_id=5),
    ]  # fmt: skip
    images = [image("a.png", 1), image("b.png", 2), image("gone.png", 3), image("empty.png", 4), image("both.png", 5)]
    path = coco(tmp_path / "annotations.json", objects, images)
    for seed, name in enumerate(("a", "b", "empty", "both", "stranger")):
        outlines.picture(tmp_path / f"images/{name}.png", seed)
    dataset, problems = found(tmp_path)
    assert ("gone", "does not exist, but annotations.json lists it") in errors(problems)
    assert ("b", ", image b.png: annotation 2: a polygon has an odd number of coordinates (3)") in errors(problems)
    assert len(errors(problems)) == 2
    warnings = [problem.what for problem in problems if problem.severity == "warning"]
    assert "1 annotation of images that it does not list (image_id 9): not used" in warnings
    assert any(what.startswith("1 image not listed in annotations.json: not used (") for what in warnings)
    assert any("1 image of 5 in annotations.json without an annotation" in note for note in dataset.notes)
    assert str(path) in {problem.file for problem in problems}


def test_objects_that_overlap_are_counted(tmp_path):
    objects = [annotation(1, [flat(0, 0, 3, 3)]), annotation(2, [flat(2, 0, 5, 3)], category_id=2)]
    outlines.picture(tmp_path / "images/a.png")
    coco(tmp_path / "annotations.json", objects)
    _, problems = found(tmp_path)
    (overlap,) = [problem.what for problem in problems if "in several objects" in problem.what]
    assert overlap.startswith("3 pixels of 15 labelled ones (0.2) in several objects: the label of the smaller object")


def test_a_picture_that_its_tag_rotates_is_told_from_its_outlines(tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown with 10 rows and 8 columns
    Image.fromarray(np.random.default_rng(0).integers(0, 255, outlines.SIZE).astype(np.uint8)).save(
        tmp_path / "images/a.jpg", exif=exif
    )
    coco(tmp_path / "annotations.json", [annotation(1, [flat(0, 0, 2, 2)])], [image("a.jpg")])
    _, problems = found(tmp_path)
    assert ("a", "the label fits the picture as stored, before its orientation tag (6) rotates it") in errors(problems)


def test_another_size_than_that_of_the_image_is_an_error(tmp_path):
    outlines.picture(tmp_path / "images/a.png", size=(16, 20))
    coco(tmp_path / "annotations.json", [annotation(1, [flat(0, 0, 2, 2)])])
    _, problems = found(tmp_path)
    ((case, what),) = errors(problems)
    assert case == "a"
    assert "(1, 8, 10)" in what


def test_crowds_are_the_ignore_label(tmp_path):
    outlines.picture(tmp_path / "images/a.png")
    objects = [annotation(1, [flat(0, 0, 2, 2)]), annotation(2, [flat(4, 4, 6, 6)], iscrowd=1)]
    coco(tmp_path / "annotations.json", objects)
    dataset, problems = found(tmp_path, labels="cell=1")
    assert errors(problems) == []
    assert dataset.labels.ignore == 255
    assert (load_case(dataset.cases[0], dataset.labels).target == dataset.labels.ignore_index).sum() == 4
    assert discover(tmp_path, parse_options(ignore=9))[0].labels.ignore == 9
    told_apart, _ = discover(tmp_path)
    assert told_apart.labels.ignore == 65535  # values are numbers of objects, of which there may be many
    target = load_case(told_apart.cases[0], told_apart.labels).target
    assert (target == told_apart.labels.ignore_index).sum() == 4


def test_outlines_of_one_kind_are_objects_of_their_own(tmp_path):
    outlines.picture(tmp_path / "images/a.png")
    coco(tmp_path / "annotations.json", [annotation(1, [flat(0, 0, 4, 4)]), annotation(2, [flat(4, 0, 8, 4)])])
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert list(dataset.labels.things) == ["cell"]
    assert dataset.objects["cell"].count == 2
    assert any(
        note.startswith("all outlines are called cell: every one is an object of its own") for note in dataset.notes
    )
    label = read_label(dataset.cases[0], dataset.labels).array
    assert np.unique(label).tolist() == [0, 1, 2]
    assert discover(tmp_path, parse_options(instances="Cell"))[0].labels == dataset.labels
    assert not discover(tmp_path, parse_options(labels="cell=1"))[0].labels.things
    with pytest.raises(UsageError, match="no outline is called 'cells'"):
        discover(tmp_path, parse_options(instances="cells"))


def test_objects_of_several_kinds_have_values_and_numbers(tmp_path):
    """The cell is told apart, the nucleus in it is one label."""
    layout(tmp_path)
    dataset, problems = found(tmp_path, instances="cell")
    assert errors(problems) == []
    assert dataset.labels.values == {"cell core": 1, "nucleus": 2, "cell border": 3}
    assert np.unique(read_label(dataset.cases[0], dataset.labels).array).tolist() == [0, 2, 1001]
    both, _ = discover(tmp_path, parse_options(instances="nucleus,cell"))
    assert np.unique(read_label(both.cases[1], both.labels).array).tolist() == [0, 1001, 2001]


def test_files_without_annotations_and_other_json_are_refused(tmp_path):
    outlines.picture(tmp_path / "images/a.png")
    path = coco(tmp_path / "annotations.json", [])
    with pytest.raises(DataError, match="contains no annotation of its images"):
        discover(tmp_path)
    tiny.text(path, {"images": "none"})
    with pytest.raises(DataError, match="none of the layouts"):
        discover(tmp_path)
    tiny.text(path, '{"annotations": [1, }')
    with pytest.raises(DataError, match="line 1 column"):
        discover(tmp_path)


def test_label_maps_come_before_outlines(tmp_path):
    layout(tmp_path)
    for name in ("a", "b"):
        tiny.picture(tmp_path / f"labels/{name}.png", tiny.label(1, shape=outlines.SIZE))
    dataset, problems = discover(tmp_path)
    assert dataset.layout == "plain folders"
    assert [(problem.what, problem.severity) for problem in problems] == [("is not used: labels/ is", "warning")]


# ---- one file per image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["labels", "annotations", "images", "."])
def test_one_file_per_image_beside_it_or_in_a_folder(tmp_path, labels):
    images = tmp_path / ("." if labels == "." else "images")
    for seed, name in enumerate(("a", "b", "c")):
        outlines.picture(images / f"{name}.png", seed)
        labelme(
            tmp_path / labels / f"{name}.json", [shape("cell", ring(0, 0, 3, seed + 1)), shape("dot", ring(5, 0, 6, 1))]
        )
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    assert [case.id for case in dataset.cases] == ["a", "b", "c"]
    assert dataset.labels.values == {"cell": 1, "dot": 2}
    assert [int((load_case(case, dataset.labels).target == 1).sum()) for case in dataset.cases] == [3, 6, 9]


def test_names_mean_the_same_in_all_files(tmp_path):
    """Each file numbers its labels as they appear in it."""
    for seed, names in enumerate((("cell", "dot"), ("Dot", "cell"))):
        outlines.picture(tmp_path / f"images/{seed}.tif", seed)
        features = [feature(name, "Polygon", [ring(3 * i, 0, 3 * i + 2, 1 + i)]) for i, name in enumerate(names)]
        geojson(tmp_path / f"labels/{seed}.geojson", features)
    dataset, problems = found(tmp_path)
    assert errors(problems) == []
    targets = [load_case(case, dataset.labels).target for case in dataset.cases]
    assert [[int((target == value).sum()) for value in (1, 2)] for target in targets] == [[2, 4], [4, 2]]


def test_images_without_outlines_and_outlines_without_an_image_are_reported(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        outlines.picture(tmp_path / f"{name}.png", seed)
    for name in ("a", "b", "z"):
        labelme(tmp_path / f"{name}.json", [shape("cell", ring(0, 0, 3, 3))])
    _, problems = discover(tmp_path)
    assert {(problem.case, problem.what.split(":")[0]) for problem in problems} == {
        ("c", "missing label"), ("z", f"no image in {tmp_path.name}/ belongs to this label"),
    }  # fmt: skip


def test_side_files_of_label_maps_stay_side_files(tmp_path):
    root = tmp_path
    for seed, name in enumerate(("a", "b")):
        tiny.nifti(root / f"images/{name}.nii.gz", tiny.image(seed))
        tiny.nifti(root / f"labels/{name}.nii.gz", tiny.label(1, 2))
        tiny.text(root / f"labels/{name}.json", {"Description": "a side file"})
    dataset, problems = discover(root)
    assert problems == []
    assert all(str(case.label).endswith(".nii.gz") for case in dataset.cases)


def test_a_copy_is_not_made_of_a_file_of_many_images(tmp_path):
    layout(tmp_path / "set")
    with pytest.raises(UsageError, match="is never rewritten"):
        fix_dataset(tmp_path / "set", tmp_path / "copy")


def test_a_copy_of_files_beside_their_images_leaves_out_what_cannot_be_read(tmp_path):
    for seed, name in enumerate(("a", "b")):
        outlines.picture(tmp_path / f"set/{name}.png", seed)
        labelme(tmp_path / f"set/{name}.json", [shape("cell", ring(0, 0, 3, 3) if seed else [[0, 0], [1]])])
    report = fix_dataset(tmp_path / "set", tmp_path / "copy", workers=0)
    assert not report.complete
    assert [path.name for path in sorted(report.folder.glob("*.*")) if path.stem in "ab"] == ["b.json", "b.png"]
