"""What every object measures, by hand."""

import csv

import numpy as np
import pytest

from autoseg.imaging.geometry import Geometry
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.inference.object_statistics import collect_objects, object_rows, write_objects

NUCLEI = LabelSet({"n core": 1, "n border": 2}, things={"n": Thing(1, 2, 1.0)})
PANOPTIC = LabelSet({"n core": 1, "b": 2, "n border": 3}, things={"n": Thing(1, 3, 1.0)}, divisor=1000)


def grid(shape, spacing=(2.0, 1.0, 0.5), **more) -> Geometry:
    identity = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Geometry(shape, spacing, (0.0, 0.0, 0.0), identity, **more)


def test_objects_are_measured_by_hand():
    values = np.zeros((3, 4, 6), int)
    values[0, 0, 0:2], values[1:3, 2, 3] = 5, 9
    image = np.arange(72, dtype=np.float32).reshape(1, 3, 4, 6)
    first, second = object_rows(values, image, grid(values.shape), NUCLEI, ["MR"])
    assert (first["object"], first["kind"], first["voxels"]) == (5, "n", 2)
    assert first["size"] == pytest.approx(2 * 2.0 * 1.0 * 0.5 / 1000)
    assert [first[f"centroid_{axis}"] for axis in "zyx"] == [0, 0, 0.5]
    assert [first[f"box_{end}"] for end in ("z0", "z1", "y0", "y1", "x0", "x1")] == [0, 1, 0, 1, 0, 2]
    assert (first["MR_mean"], first["MR_std"]) == (0.5, 0.5)
    assert (second["object"], second["voxels"]) == (9, 2)
    assert [second[f"centroid_{axis}_mm"] for axis in "xyz"] == [1.5, 2.0, 3.0]
    assert (second["MR_mean"], second["MR_std"]) == (51.0, 12.0)  # voxels 39 and 63


def test_kinds_keep_their_numbers_and_stuff_is_no_object():
    values = np.zeros((1, 4, 9), int)
    values[0, 1, 1:3], values[0, 2, 5], values[0, 3] = 1001, 1007, 2
    rows = object_rows(values, np.zeros((1, 1, 4, 9)), grid(values.shape), PANOPTIC, ["grey"])
    assert [(row["object"], row["voxels"]) for row in rows] == [(1001, 2), (1007, 1)]


def test_all_cases_of_a_folder_are_put_together(tmp_path):
    values = np.zeros((1, 4, 4), int)
    values[0, 1, 1] = 3
    rows = object_rows(values, np.ones((1, 1, 4, 4)), grid(values.shape), NUCLEI, ["grey"])
    for case, found in (("a", rows), ("b", []), ("c", rows)):
        write_objects(tmp_path, case, found, ["grey"])
    collect_objects(tmp_path)
    with open(tmp_path / "objects.csv", newline="") as file:
        assert [(row["case"], row["object"], row["grey_mean"]) for row in csv.DictReader(file)] == [
            ("a", "3", "1"), ("c", "3", "1"),
        ]  # fmt: skip


def test_a_folder_without_objects_gets_no_table(tmp_path):
    collect_objects(tmp_path)
    assert not (tmp_path / "objects.csv").exists()
