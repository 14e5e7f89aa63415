"""Likely label errors: contradictions counted by hand, planted errors first, the place in the file's own order."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.datasets.dataset import Case, LoadedCase
from autoseg.evaluation.label_errors import (
    LabelErrors,
    SureLabels,
    describe,
    examined,
    ranked,
    to_csv,
)
from autoseg.imaging.geometry import Geometry
from autoseg.imaging.labels import LabelSet
from autoseg.records import load, save

LABELS = LabelSet({"one": 1, "two": 2})
UNSURE = 3
SHAPE = (8, 10, 12)


def loaded(target: np.ndarray, turn=((0, 1, 2), (0, 0, 0))) -> LoadedCase:
    geometry = Geometry(target.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    image = np.zeros((1, *target.shape), dtype=np.float32)
    return LoadedCase("c", image, target.astype(np.int16), (1, 1, 1), geometry, turn, (0, 1, 2))


def case(name: str = "c") -> Case:
    return Case(name, f"patient of {name}", (f"/data/{name}_0000.nii.gz",), f"/data/{name}.nii.gz")


def block(z0: int, z1: int, value: int = 1) -> np.ndarray:
    target = np.zeros(SHAPE, dtype=np.int16)
    target[z0:z1, 2:6, 2:6] = value
    return target


def look(reference, decided, sure=None, labels=LABELS, **more):
    return examined(case(**more), "0", loaded(reference), decided if sure is None else sure, decided, labels)


def test_agreement_is_no_doubt():
    found = look(block(2, 6), block(2, 6)).doubtful
    assert (found.score, found.worst, found.place) == (0, "", None)
    assert found.labels["one"].dice == 1
    assert found.labels["two"].dice is None


def test_contradictions_are_counted_as_a_share_of_the_size_and_added_to_one_minus_dice():
    """Of a block of 4x4x4 the reference lacks two slices: 32 voxels of a mean size of (32 + 64) / 2 = 48, Dice 2/3."""
    found = look(block(2, 4), block(2, 6)).doubtful
    assert found.score == found.labels["one"].score == pytest.approx(32 / 48 + 1 / 3)
    assert (found.labels["one"].missing, found.labels["one"].extra) == (32, 0)
    assert found.labels["one"].dice == pytest.approx(2 * 32 / 96)
    thin = look(block(2, 5), block(2, 6)).doubtful  # a slice: 16 voxels of (48 + 64) / 2, Dice 48 / 56
    assert thin.score == pytest.approx(16 / 56 + 8 / 56)
    assert look(block(2, 6), block(2, 5)).doubtful.labels["one"].extra == 16


def test_where_the_model_is_unsure_only_dice_counts():
    sure = block(2, 6)
    sure[4:6] = UNSURE
    found = look(block(2, 4), block(2, 6), sure).doubtful
    assert (found.labels["one"].missing, found.labels["one"].extra) == (0, 0)
    assert found.score == pytest.approx(1 / 3)


def test_two_labels_swapped_are_in_doubt_both():
    found = look(block(2, 6, 1), block(2, 6, 2)).doubtful
    assert found.score == pytest.approx(1 + 1)
    assert (found.labels["one"].score, found.labels["two"].score) == (pytest.approx(2 + 1), pytest.approx(2 + 1))
    assert (found.labels["one"].extra, found.labels["two"].missing) == (64, 64)


def test_what_nobody_annotated_is_not_counted():
    labels = replace(LABELS, ignore=9)
    reference = block(2, 6)
    reference[4:6] = labels.ignore_index
    assert look(reference, block(2, 6), labels=labels).doubtful.score == 0


def test_regions_are_judged_as_unions():
    labels = LabelSet({"one": 1, "two": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
    found = look(block(2, 6, 1), block(2, 6, 2), labels=labels).doubtful
    assert (found.labels["whole"].score, found.labels["core"].score) == (0, pytest.approx(3))
    assert found.worst == "core"


def test_the_place_is_amid_the_largest_doubt_in_the_order_of_the_file():
    sure = np.zeros(SHAPE, dtype=np.int16)
    sure[1:4, 2:5, 6:9] = 1
    sure[7, 9, 11] = 1
    turned = loaded(np.zeros(SHAPE), ((0, 1, 2), (1, 0, 1)))  # Z and X are stored the other way round
    found = examined(case(), "0", turned, sure, sure, LABELS).doubtful
    assert found.place == (SHAPE[0] - 1 - 2, 3, SHAPE[2] - 1 - 7)


def test_sure_is_a_probability_of_ninety_percent():
    heads = LABELS
    probabilities = torch.tensor([[0.04, 0.05, 0.95], [0.92, 0.85, 0.03], [0.04, 0.10, 0.02]])
    consumer = SureLabels(heads, (1, 1, 3))
    consumer.take(slice(0, 1), [probabilities.log().reshape(3, 1, 1, 3)])
    assert consumer.sure.ravel().tolist() == [1, UNSURE, 0]
    regions = LabelSet({"one": 1, "two": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
    consumer = SureLabels(regions, (1, 1, 3))
    logits = torch.tensor([0.95, 0.95, 0.01, 0.93, 0.5, 0.02]).logit().reshape(2, 1, 1, 3)
    consumer.take(slice(0, 1), [logits])
    assert consumer.sure.ravel().tolist() == [2, UNSURE, 0]


def population(count: int = 20):
    """Cases whose model is a little off their references, each by another slice; and four with planted errors."""
    cases = []
    for number in range(count):
        decided = block(2, 6)
        decided[3, 2:6, 2 + number % 4] = 0  # a thin error
        cases.append(look(block(2, 6), decided, name=f"c{number:02d}"))
    shifted = np.roll(block(2, 6), 2, axis=1)
    erased = block(2, 4)
    island = block(2, 6)
    island[0, 0, 9:11] = 1
    planted = {"swapped": block(2, 6, 2), "shifted": shifted, "erased": erased, "island": island}
    return [*cases, *(look(reference, block(2, 6), name=name) for name, reference in planted.items())]


def test_planted_errors_come_first_and_are_described(tmp_path):
    found = ranked("3d_fullres", "unet", population())
    assert [one.case for one in found.cases[:3]] == ["swapped", "shifted", "erased"]
    remarks = {one.case: one.remarks for one in found.cases if one.remarks}
    assert remarks["island"][0] == "one: 1 island (2 voxels)"
    assert "a jump between slices 1 and 2 of axis 0" in remarks["island"][1]  # from the island to nothing
    assert set(remarks) == {"island"}
    lines = describe(found, 3).splitlines()
    assert "label in doubt" in lines[0]
    assert lines[1].split()[:4] == ["1", "swapped", "0", "2.000"]
    assert "and 21 more cases" in lines[4]
    save(tmp_path / "label_errors.json", found)
    assert load(LabelErrors, tmp_path / "label_errors.json") == found
    to_csv(found, tmp_path / "order.csv")
    with open(tmp_path / "order.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2 * 24
    assert (rows[0]["rank"], rows[0]["case"], rows[0]["label"]) == ("1", "swapped", "one")
    assert rows[0]["reference"] == "/data/swapped.nii.gz"
