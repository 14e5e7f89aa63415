"""Islands, holes and jumps: counted by hand in masks of a few voxels, and named only where they are rare."""

import numpy as np
import pytest

from autoseg.datasets.checks.shapes import LEAST_CASES, Shape, odd_shapes, shape_of

LABELS = {"one": (1,), "both": (1, 2)}


def block(shape=(9, 9, 9)) -> np.ndarray:
    """A cuboid of label 1 of 5x5x5 voxels from 2 to 6."""
    target = np.zeros(shape, dtype=np.int16)
    target[2:7, 2:7, 2:7] = 1
    return target


def test_a_block_is_whole():
    assert shape_of(block(), LABELS) == dict.fromkeys(LABELS, Shape(jump_slices=(2, 2, 2)))
    assert shape_of(np.zeros((3, 3, 3), dtype=np.int16), LABELS) == {}


def test_islands_are_the_pieces_but_the_largest():
    target = block()
    target[0, 0, 0] = 1
    target[8, 8, 7:] = 1
    target[7, 7, 7] = 1  # touches the block at a corner
    assert shape_of(target, LABELS)["one"].islands == (1,)  # the two voxels touch the block by that corner
    target[7, 7, 7] = 0
    assert shape_of(target, LABELS)["one"].islands == (2, 1)


def test_a_hole_is_enclosed_background_and_no_other_label():
    target = block()
    target[4, 4, 4] = 0
    target[3, 4, 4] = 2
    assert (shape_of(target, LABELS)["one"].holes, shape_of(target, LABELS)["both"].holes) == (1, 1)
    target[2:4, 4, 4] = 0  # it opens to the outside
    assert shape_of(target, LABELS)["one"].holes == 0
    flat = block()[4:5].copy()
    flat[0, 4, 4] = 0
    assert shape_of(flat, LABELS)["one"].holes == 1


def test_a_jump_is_the_largest_change_between_slices():
    """Of the five slices of 25 voxels, the third loses 20: to slice 4, 20 of 25 change."""
    target = block()
    target[4, 2:6, 2:7] = 0
    shape = shape_of(target, LABELS)["one"]
    assert shape.jumps == pytest.approx((20 / 25, 5 / 25, 0))  # along Y, slices of 25 - 5 voxels; the last has them all
    assert shape.jump_slices[0] == 3


def many(**odd: np.ndarray) -> dict[str, dict[str, Shape]]:
    cases = {f"c{number}": shape_of(block(), LABELS) for number in range(19)}
    return cases | {name: shape_of(target, LABELS) for name, target in odd.items()}


def test_what_is_rare_is_named_with_its_case():
    island, hole, erased = block(), block(), block()
    island[0, 0, 0] = 1
    hole[4, 4, 4] = 0
    erased[4, 2:6] = 0
    odd = odd_shapes(many(island=island, hole=hole, erased=erased))
    assert set(odd) == {"island", "hole", "erased"}
    assert odd["island"][0] == "one: 1 island (1 voxel)"
    assert odd["hole"][0] == "one: a hole (1 voxel)"
    assert odd["erased"][0].startswith("one: a jump between slices 3 and 4 of axis 0 (80% of its largest slice changes")


def test_what_is_usual_is_not():
    scattered = block()
    scattered[0, 0, 0] = 1
    assert odd_shapes({f"c{n}": shape_of(scattered if n % 3 else block(), LABELS) for n in range(20)}) == {}


def test_few_cases_say_nothing():
    scattered = block()
    scattered[0, 0, 0] = 1
    cases = {f"c{n}": shape_of(block(), LABELS) for n in range(LEAST_CASES - 2)}
    assert odd_shapes(cases | {"odd": shape_of(scattered, LABELS)}) == {}
