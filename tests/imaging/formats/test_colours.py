"""Label maps in colours and with palettes: the colour says the class where indices do not."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.datasets.checks.annotation import agree_on_colours
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover, load_case, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.evaluation.evaluate import ScoreJob, score_case
from autoseg.imaging.formats.raster import palette
from autoseg.imaging.formats.readers import read_labels, write_labels
from autoseg.imaging.labels import LabelSet

BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)
NAMES = {BLACK: "#000000", RED: "#ff0000", GREEN: "#00ff00", WHITE: "#ffffff"}
TRUTH = np.zeros((12, 12), np.uint8)  # 0 background, 1 red, 2 green
TRUTH[2:6, 2:6], TRUTH[7:10, 5:9] = 1, 2


def mask(path, order, *, shown=(BLACK, RED, GREEN), truth=TRUTH):
    """A palette PNG that shows TRUTH in black, red and green, its colours numbered in the given order."""
    numbers = np.array([order.index(colour) if colour in order else 99 for colour in shown], np.uint8)
    image = Image.fromarray(numbers[truth], mode="P")
    image.putpalette([part for colour in order for part in colour])
    image.save(path)
    return str(path)


def dataset_of(root, *orders):
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for i, order in enumerate(orders):
        noise = np.random.default_rng(i).integers(0, 99, TRUTH.shape, dtype=np.uint8)
        Image.fromarray(noise).save(root / f"images/p{i}.png")
        mask(root / f"masks/p{i}.png", order)
    return root


ALIKE, SWAPPED = (BLACK, RED, GREEN), (BLACK, GREEN, RED)


def test_the_palette_of_a_file_as_far_as_it_is_used(tmp_path):
    path = mask(tmp_path / "a.png", (BLACK, GREEN, RED, WHITE))
    assert palette(tmp_path / "a.png") == {0: "#000000", 1: "#00ff00", 2: "#ff0000"}
    table = np.zeros((3, 256), np.uint16)
    table[:, 5] = 65535, 0, 32896
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4), 5, np.uint8), photometric="palette", colormap=table)
    assert palette(tmp_path / "a.tif") == {5: "#ff0080"}
    Image.fromarray(TRUTH).save(tmp_path / "grey.png")
    assert palette(tmp_path / "grey.png") == {}
    assert agree_on_colours([path, str(tmp_path / "grey.png")]) == ({}, [])


def test_palettes_that_agree_leave_indices_as_they_are(tmp_path):
    dataset, known = discover(dataset_of(tmp_path, ALIKE, (BLACK, RED, GREEN, WHITE)))
    assert dataset.labels == LabelSet({"label_1": 1, "label_2": 2})
    assert check(dataset, known=known, workers=0)[0] == []


def test_where_few_palettes_differ_labels_are_read_by_colour(tmp_path):
    dataset, known = discover(dataset_of(tmp_path, ALIKE, SWAPPED, ALIKE))
    assert dataset.labels.colours == {"#000000": 0, "#ff0000": 1, "#00ff00": 2}
    (found,) = check(dataset, known=known, workers=0)[0]
    assert found.severity == "warning"
    assert found.what == (
        "1 of 3 palettes number the colours differently: p0.png shows #00ff00 for 2, p1.png shows #00ff00 for 1"
    )
    for case in dataset.cases:
        assert np.array_equal(load_case(case, dataset.labels).target[0], TRUTH), case.id


def test_where_no_order_prevails_the_set_is_refused_until_colours_are_named(tmp_path):
    root = dataset_of(tmp_path, ALIKE, SWAPPED)
    dataset, known = discover(root)
    (error,) = [problem for problem in check(dataset, known=known, workers=0)[0] if problem.severity == "error"]
    assert "palettes of the label files disagree" in error.what
    assert "--labels label_1=#ff0000,label_2=#00ff00" in error.remedy
    named, known = discover(root, parse_options(labels="liver=#00FF00,tumour=#ff0000"))
    assert check(named, known=known, workers=0)[0] == []
    assert named.labels.values == {"liver": 1, "tumour": 2}
    for case in named.cases:
        assert np.array_equal(load_case(case, named.labels).target[0], np.array([0, 2, 1])[TRUTH])


def test_one_index_in_two_colours_is_refused(tmp_path):
    files = [
        mask(tmp_path / "a.png", (BLACK, RED, GREEN)),
        mask(tmp_path / "b.png", (BLACK, RED, WHITE), shown=(BLACK, RED, WHITE)),
    ]
    colours, (problem,) = agree_on_colours(files)
    assert colours == {}
    assert problem.severity == "error"
    assert "a.png shows #00ff00 for 2, b.png shows #ffffff for 2" in problem.what


def test_a_mask_whose_black_part_is_its_label_is_named(tmp_path):
    binary = (TRUTH > 0).astype(np.uint8)
    files = [mask(tmp_path / f"{i}.png", (WHITE, BLACK), shown=(BLACK, WHITE), truth=binary) for i in range(2)]
    colours, (problem,) = agree_on_colours(files)
    assert colours == {}
    assert problem.severity == "warning"
    assert "background (index 0) as #ffffff and the label 1 as black" in problem.what
    assert np.array_equal(read_labels(files[0], {"#ffffff": 1}).array[0], binary)


def coloured(path, alpha=None):
    array = np.array([BLACK, RED, GREEN], np.uint8)[TRUTH]
    if alpha is not None:
        array = np.concatenate([array, np.full((*TRUTH.shape, 1), alpha, np.uint8)], -1)
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("alpha", [None, 255])
def test_a_coloured_mask_is_refused_with_its_colours_and_read_by_them(tmp_path, alpha):
    path = coloured(tmp_path / "a.png", alpha)
    with pytest.raises(
        DataError, match=r"a\.png.* 3 colours: #000000 \(116 voxels\), #ff0000 \(16 .*, #00ff00 \(12 "
    ) as caught:
        read_labels(path)
    assert "--labels label_1=#ff0000,label_2=#00ff00" in caught.value.remedy
    assert np.array_equal(read_labels(path, {"#ff0000": 1, "#00ff00": 2}).array[0], TRUTH)
    with pytest.raises(DataError, match=r"belong to no label: #00ff00 \(12 voxels\)"):
        read_labels(path, {"#ff0000": 1})


def test_a_photograph_is_no_coloured_mask(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="400 colours, too many") as caught:
        read_labels(tmp_path / "a.png")
    assert "--labels" not in caught.value.remedy


def test_grey_values_stay_what_they_are_beside_colours(tmp_path):
    Image.fromarray(TRUTH).save(tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / "a.png", {"#ff0000": 2}).array[0], TRUTH)


def test_segmentations_are_scored_against_coloured_references(tmp_path):
    reference = coloured(tmp_path / "reference.png")
    write_labels(tmp_path / "segmentation.png", TRUTH[None], reference)
    labels = LabelSet({"liver": 1, "tumour": 2}, colours={"#ff0000": 1, "#00ff00": 2})
    scores = score_case(ScoreJob("a", reference, tmp_path / "segmentation.png", labels)).scores
    assert [scores[name]["dice"] for name in labels.values] == [1.0, 1.0]


@pytest.mark.parametrize("text", ["a=#ff0000,b=2", "a=#ff0000,b=#FF0000", "a=#ff00", "a=#gg0000"])
def test_colours_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="give every label its own colour"):
        parse_options(labels=text)
