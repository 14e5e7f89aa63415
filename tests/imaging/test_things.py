"""Labels of which some are things: instance maps in files, cores and borders inside."""

import numpy as np
import pytest

from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.records import from_plain, to_plain

NUCLEI = LabelSet({"nuclei core": 1, "nuclei border": 2}, things={"nuclei": Thing(1, 2, 4.0)}, ignore=255)
PANOPTIC = LabelSet({"cell core": 1, "tissue": 2, "cell border": 3}, things={"cell": Thing(1, 3, 3.0)}, divisor=1000)


def squares(*values: int) -> np.ndarray:
    """A picture (1, 10, 10 n) with a square of 8 x 8 of each value; neighbours are two voxels apart."""
    picture = np.zeros((1, 10, 10 * len(values)), np.int32)
    for i, value in enumerate(values):
        picture[0, 1:9, 10 * i + 1 : 10 * i + 9] = value
    return picture


def test_every_value_is_an_object_but_for_background_and_the_ignore_value():
    indices = NUCLEI.to_indices(squares(7, 900, 255))
    assert [int(indices[0, 5, 10 * i + 5]) for i in range(3)] == [1, 1, 3]
    assert indices[0, 1, 6:14].tolist() == [1, 2, 2, 0, 0, 2, 2, 1]  # 3 and 4 voxels from the other one
    assert indices[0, 1, 18] == 1  # nor is what nobody annotated another object
    assert indices.dtype == np.int16
    assert NUCLEI.unexpected(squares(7, 900, 255)) == {}
    assert NUCLEI.unexpected(squares(-4)) == {-4: 64}


def test_the_border_is_measured_in_millimetres():
    """Objects are 1.5 mm apart and reach 5 mm away from each other: 2.5 mm may be border, which are three columns."""
    indices = NUCLEI.to_indices(squares(7, 8), (1.0, 1.0, 0.5))
    assert (indices == 2).sum() == 2 * 3 * 8


def test_with_a_divisor_values_are_kinds_and_objects():
    values = squares(1001, 1002, 2, 1)
    indices = PANOPTIC.to_indices(values)
    assert [int(indices[0, 5, 10 * i + 5]) for i in range(4)] == [1, 1, 2, 1]
    assert [int(indices[0, 1, column]) for column in (7, 8, 11, 12, 28, 31)] == [1, 3, 3, 1, 2, 1]
    assert PANOPTIC.unexpected(squares(3, 4001, 2007)) == {3: 64, 4001: 64}  # a border is in no file
    assert PANOPTIC.declared([0, 1001, 1002]) == {1, 3}
    assert PANOPTIC.declared([0, 2]) == {2}
    assert PANOPTIC.objects("cell", values)[0, 5].tolist()[::5] == [0, 1001, 0, 1002, 0, 0, 0, 1]
    assert PANOPTIC.stuff == {"tissue": 2}
    assert NUCLEI.stuff == {}
    assert (NUCLEI.core_indices, PANOPTIC.core_indices) == ([1], [1])


@pytest.mark.parametrize(("labels", "values", "written"), [
    (NUCLEI, squares(9, 4, 6), squares(1, 2, 3)),
    (PANOPTIC, squares(1040, 2, 1007), squares(1001, 2, 1002)),
])  # fmt: skip
def test_there_and_back_only_the_numbers_differ(labels, values, written):
    found = labels.to_file_values(labels.to_indices(values))
    assert (found == written).all()
    assert found.dtype == (np.uint8 if labels is NUCLEI else np.uint16)


def test_more_objects_than_the_divisor_leaves_numbers_for_are_refused():
    few = LabelSet({"cell core": 1, "tissue": 2, "cell border": 3}, things={"cell": Thing(1, 3, 1.0)}, divisor=4)
    assert few.to_file_values(few.to_indices(squares(5, 6, 7))).max() == 7
    with pytest.raises(DataError, match="4 objects of cell, but the divisor 4 leaves numbers for 3") as caught:
        few.to_file_values(np.where(squares(1, 1, 1, 1) > 0, 1, 0))
    assert "--divisor 10," in str(caught.value)


def test_no_object_is_given_the_ignore_value():
    labels = LabelSet({"a core": 1, "a border": 2}, things={"a": Thing(1, 2, 1.0)}, ignore=3)
    written = labels.to_file_values(np.array([[[1, 0, 1, 0, 1]]]))
    assert written.ravel().tolist() == [1, 0, 2, 0, 4]
    assert labels.to_indices(written.astype(int)).ravel().tolist() == [1, 0, 1, 0, 1]


def test_small_objects_are_not_written():
    labels = LabelSet({"a core": 1, "a border": 2}, things={"a": Thing(1, 2, 1.0, smallest_mm3=3.0)})
    indices = np.zeros((1, 4, 9), int)
    indices[0, 1:3, 1], indices[0, 1:3, 4:7] = 1, 1
    assert labels.to_file_values(indices).max() == 1


def test_scores_are_of_the_whole_and_of_the_cores():
    assert NUCLEI.scored == {"nuclei": (1, 2), "nuclei core": (1,)}
    assert PANOPTIC.scored == {"cell": (1, 3), "cell core": (1,), "tissue": (2,)}


def test_they_are_stored_and_read():
    for labels in (NUCLEI, PANOPTIC):
        assert from_plain(LabelSet, to_plain(labels), "labels") == labels


@pytest.mark.parametrize(("arguments", "what"), [
    ({"values": {"a core": 1}, "things": {"a": Thing(1, 2)}}, "border of 'a' is not among"),
    ({"values": {"a core": 1, "a border": 2, "b": 3}, "things": {"a": Thing(1, 2)}}, "without a divisor"),
    ({"values": {"a core": 1, "a border": 12}, "things": {"a": Thing(1, 12)}, "divisor": 10}, "does not exceed"),
    ({"values": {"a core": 1, "a border": 2}, "things": {"a": Thing(1, 2)}, "regions": {"r": (1,)},
      "region_values": (1,)}, "cannot be separated in regions"),
])  # fmt: skip
def test_contradictions_are_refused(arguments, what):
    with pytest.raises(UsageError, match=what):
        LabelSet(**arguments)
