"""Label files that number objects: found, measured, and the width of the border that follows."""

import numpy as np
import pytest
from skimage import io

from autoseg.datasets.dataset import discover, parse_options
from autoseg.datasets.loading import load_case
from autoseg.datasets.objects import border_width, describe_objects, measure_map, measure_objects, numbers_objects
from autoseg.errors import DataError, UsageError


def disc(picture, centre, radius, value):
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] = value


def write(folder, name, labels):
    for kind, array in (("images", (labels > 0) * np.uint8(200) + np.uint8(20)), ("labels", labels.astype(np.uint16))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        io.imsave(folder / kind / f"{name}.png", array, check_contrast=False)


def cells(number, radius=5, step=14, seed=0):
    """A picture with so many discs on a lattice; every second touches the one before."""
    picture = np.zeros((step * 5, step * 5), np.int32)
    for i in range(number):
        y, x = divmod(i, 5)
        disc(picture, (step * y + 6, step * x + 6 - (x % 2) * (step - 2 * radius - 1)), radius, i + 1)
    return picture


@pytest.fixture
def dataset(tmp_path):
    for i, number in enumerate((12, 15, 18, 22, 25)):
        write(tmp_path, f"c{i}", cells(number))
    return tmp_path


@pytest.mark.parametrize(("values", "expected"), [
    ([range(1, 13), range(1, 16), range(1, 31)], True),
    ([range(1, 13), [], range(1, 16)], True),
    ([range(1, 32), range(1, 32), range(1, 32), range(1, 32), range(1, 32)], False),  # the same organs in each
    ([[1, 2], [1, 2, 3], [1]], False),  # a few labels
    ([[1, 5, 9, *range(20, 40)], [2, 7, *range(20, 50)]], False),  # with gaps
    ([range(1, 50)], False),  # a single file
    ([[], []], False),
])  # fmt: skip
def test_numbers_of_objects_are_told_from_labels(values, expected):
    assert numbers_objects([[*found] for found in values]) is expected


def test_objects_are_found_without_being_named(dataset):
    found, problems = discover(dataset)
    assert not [problem for problem in problems if problem.severity == "error"]
    assert found.labels.values == {"object core": 1, "object border": 2}
    assert any("number objects" in note and "--instances" in note for note in found.notes)
    measured = found.objects["object"]
    assert (measured.images, measured.count, measured.per_image) == (5, 92, (12.0, 18.0, 25.0))
    assert not measured.sized
    target = load_case(found.cases[0], found.labels).target
    assert sorted(np.unique(target)) == [0, 1, 2]


def test_named_objects_keep_their_name(dataset):
    found, _ = discover(dataset, parse_options(instances="nuclei"))
    assert [*found.labels.things] == ["nuclei"]
    assert not any("number objects" in note for note in found.notes)


def test_declared_labels_are_labels(dataset):
    with_names = {f"part_{value}": value for value in range(1, 26)}
    options = parse_options(labels=",".join(f"{name}={value}" for name, value in with_names.items()))
    assert discover(dataset, options)[0].labels.values == with_names


def test_kinds_and_objects_by_a_divisor(tmp_path):
    for i in range(3):
        picture = np.zeros((40, 40), np.int32)
        picture[:, 20:] = 2
        disc(picture, (10, 10), 6, 1001)
        disc(picture, (28, 10), 6, 1002)
        write(tmp_path, f"c{i}", picture)
    found, _ = discover(tmp_path, parse_options(labels="cell=1,tissue=2", instances="cell"))
    assert found.labels.values == {"cell core": 1, "tissue": 2, "cell border": 3}
    assert found.labels.divisor == 1000
    assert found.objects["cell"].count == 6


@pytest.mark.parametrize(("options", "what"), [
    ({"instances": "a,b"}, "needs to know what the values of the label files mean"),
    ({"instances": "a", "divisor": 10}, "--divisor needs to know"),
    ({"instances": "cell", "labels": "tissue=2"}, "'cell' is not among the labels tissue"),
    ({"instances": "a,"}, "has an empty or a repeated name"),
    ({"divisor": 10}, "--divisor belongs to --instances"),
    ({"instances": "a", "regions": "whole=1+2"}, "which --regions cannot have"),
    ({"instances": "a", "labels": "a=#ff0000"}, "which labels given by colour cannot have"),
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused(dataset, options, what):
    with pytest.raises(UsageError, match=what):
        discover(dataset, parse_options(**options))


def test_a_thing_that_no_file_contains_is_an_error(dataset):
    with pytest.raises(DataError, match="no label file contains an object of cell"):
        discover(dataset, parse_options(labels="cell=40,tissue=41", instances="cell"))


def test_sizes_gaps_and_contacts_of_a_map():
    picture = np.zeros((1, 20, 40), np.int32)
    picture[0, 5:15, 2:8], picture[0, 5:15, 8:14], picture[0, 5:15, 17:20] = 4, 7, 9
    found = measure_map(picture, (1.0, 1.0, 1.0), tried=True)
    assert found.volumes.tolist() == [60, 60, 30]
    assert found.extents.tolist() == [10, 10, 10]
    assert found.touching == 2
    assert found.gaps.tolist() == [3]  # three voxels between
    assert found.matched[0] == (1, 1, 2)  # as components, the two that touch are one, which matches neither
    assert found.matched[1] == (3, 0, 0)
    wide = measure_map(picture, (1.0, 2.0, 0.5), tried=False)
    assert (wide.volumes.tolist(), wide.gaps.tolist(), wide.voxel) == ([60, 60, 30], [1.5], 0.5)


def test_the_widest_border_that_preserves_almost_all_is_taken(dataset):
    found, _ = discover(dataset)
    measured = found.objects["object"]
    assert measured.kept["0"] < measured.kept["1"] == 1.0
    assert border_width(measured) == max(int(w) for w, kept in measured.kept.items() if kept >= 0.99)
    assert found.labels.things["object"].border_mm == border_width(measured)
    assert "components alone" in describe_objects("object", measured)
    assert "voxels apart" in describe_objects("object", measured)


def test_files_that_cannot_be_read_are_left_to_check(dataset):
    (dataset / "labels" / "c0.png").write_bytes(b"no picture")
    found, _ = discover(dataset)
    assert found.objects["object"].images == 4
    assert measure_objects([case.label for case in found.cases], found.labels, "object", workers=0).count == 80


def test_objects_that_look_like_mistakes_are_reported(dataset):
    labels = cells(12)
    labels[labels == 3] = 1  # far from it
    labels[0, 0] = 40
    write(dataset, "c0", labels)
    _, problems = discover(dataset, parse_options(instances="disc"))
    said = [problem.what for problem in problems]
    assert any(what.startswith("1 object of disc (of 92) in several pieces, for instance in c0.png") for what in said)
    assert any(what.startswith("1 object of disc (of 92) of 3 voxels or fewer") for what in said)
    assert all(problem.severity == "warning" for problem in problems)
