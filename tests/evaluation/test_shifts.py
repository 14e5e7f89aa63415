"""Losses under shifts: by a model that thresholds, whose segmentations numpy makes as well; pairs by hand."""

import numpy as np
import pytest

from autoseg.datasets.dataset import Case, load_case
from autoseg.evaluation.corruptions import SHIFTS, corrupted
from autoseg.evaluation.shifts import (
    Loss,
    MeasuredShift,
    ShiftTable,
    _measured,
    chosen_cases,
    describe,
    dice_of_labels,
    measure_shifts,
)
from autoseg.imaging.labels import LabelSet
from autoseg.records import load, save
from bright import ORGAN, THRESHOLD, model_of, picture, plan_of
from files import nifti


@pytest.fixture
def held_out(tmp_path) -> dict[int, list[Case]]:
    cases = []
    for seed, name in enumerate("abc"):
        image = picture((8, 9, 10), seed)
        label = np.where(image > THRESHOLD, 7, 0).astype(np.uint8)
        if name == "b":
            label[:4] = 0  # half of what is found is not there
        files = [
            nifti(tmp_path / folder / f"{name}.nii", array, np.eye(4))
            for folder, array in (("in", image), ("labels", label))
        ]
        cases.append(Case(name, f"patient of {name}", (str(files[0]),), str(files[1])))
    return {0: cases[:2], 3: cases[2:]}


def test_losses_are_those_of_the_same_threshold_in_numpy(tmp_path, held_out):
    plan = plan_of(mirror_axes=(0, 2))
    models = {fold: model_of((1.0,) * 3, plan=plan, patch=(8, 10, 12)) for fold in held_out}
    table = measure_shifts(models, held_out, held_out=5)
    assert (table.cases, table.held_out, set(table.weights)) == (("a", "b", "c"), 5, {"0", "3"})
    assert [(s.name, s.strength) for s in table.shifts] == [(n, v) for n, s in SHIFTS.items() for v in s.strengths]
    cases = [
        load_case(case, ORGAN, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
        for cases in held_out.values()
        for case in cases
    ]

    def dice(case, image):
        found, wanted = image[0] > THRESHOLD, case.target == 1
        return 2 * (found & wanted).sum() / (found.sum() + wanted.sum())

    before = [dice(case, case.image) for case in cases]
    assert before[0] == before[2] == 1 > before[1]
    assert table.dice == pytest.approx(np.mean(before))
    for shift in table.shifts:
        after = [dice(c, corrupted(c.image, c.spacing, shift.name, shift.strength, c.id)) for c in cases]
        assert shift.dice == pytest.approx(np.mean(after), abs=1e-9), (shift.name, shift.strength)
        assert shift.loss.mean == pytest.approx(np.mean(np.subtract(before, after)), abs=1e-9)
        assert shift.labels == {"organ": pytest.approx(shift.loss.mean)}
    worst = {shift.name: shift.loss.mean for shift in table.shifts}
    assert worst["contrast"] == 0  # 50 of 150 stays below the threshold at any of its powers
    assert worst["noise"] > 0.01
    save(tmp_path / "shifts.json", table)
    assert load(ShiftTable, tmp_path / "shifts.json") == table


def test_pairs_by_hand():
    """Of a: organ 0.9 to 0.5, lesion only before; of b: both, 0.2 and 0.4. Losses 0.4 and 0.3; Dice 0.5 and 0.35."""
    before = {"a": {"organ": 0.9, "lesion": 0.8}, "b": {"organ": 0.6, "lesion": 0.7}, "c": {}}
    after = {"a": {"organ": 0.5}, "b": {"organ": 0.4, "lesion": 0.3}, "c": {"organ": 0.0}}
    found = _measured("noise", 0.1, before, after, {"a": "p", "b": "q", "c": "r"})
    assert found.dice == pytest.approx((0.5 + 0.35 + 0.0) / 3)
    assert found.loss.mean == pytest.approx(0.35)
    assert found.loss.interval == pytest.approx((0.3, 0.4))
    assert found.labels == pytest.approx({"organ": 0.3, "lesion": 0.4})
    alone = _measured("noise", 0.1, before, after, dict.fromkeys("abc", "p"))
    assert alone.loss.interval is None
    nothing = _measured("noise", 0.1, {"c": {}}, {"c": {}}, {"c": "r"})
    assert (nothing.dice, nothing.loss, nothing.labels) == (None, None, {})


def test_dice_leaves_out_what_nobody_annotated_and_what_is_nowhere():
    labels = LabelSet({"organ": 1, "lesion": 2, "rare": 3}, ignore=9)
    target = np.array([[[1, 1, 2, 0, 4]]])  # 4: the index of the ignore label
    indices = np.array([[[1, 0, 2, 2, 1]]])
    assert dice_of_labels(target, indices, labels) == pytest.approx({"organ": 2 / 3, "lesion": 2 / 3})


def test_fewer_cases_are_drawn_alike_each_time(held_out):
    cases = {0: [Case(f"c{i:02d}", "p", ("f",), None) for i in range(20)], 1: held_out[3]}
    drawn = chosen_cases(cases, 5)
    assert drawn == chosen_cases(cases, 5)
    assert len(drawn[0]) == 5
    assert [case.id for case in drawn[0]] == sorted(case.id for case in drawn[0])
    assert [case.id for case in drawn[0]] != [f"c{i:02d}" for i in range(5)]
    assert drawn[1] == held_out[3]
    assert chosen_cases(cases, None) == cases


def test_the_table_is_shown_with_the_worst_in_words():
    shifts = (
        MeasuredShift("noise", 0.1, 0.88, Loss(0.01, (0.0, 0.02)), {"organ": 0.01}),
        MeasuredShift("noise", 0.25, 0.80, Loss(0.09, (0.07, 0.11)), {"organ": 0.09}),
        MeasuredShift("bias_field", 0.2, 0.79, Loss(0.1, (-0.01, 0.2)), {"organ": 0.1}),
        MeasuredShift("blur", 0.5, None, None, {}),
    )
    table = ShiftTable(1, "2d", "unet", {"0": "a" * 64}, ("a", "b"), 32, 0.89, shifts)
    lines = describe(table).splitlines()
    assert lines[0] == "2d, unet: 2 held-out cases of 32, Dice 0.8900 on unchanged images"
    assert lines[2].split() == ["shift", "strength", "Dice", "loss", "95", "%", "interval"]
    assert lines[5].split()[:3] == ["noise", "0.25", "of"]
    assert lines[5].split()[-5:] == ["0.8000", "+0.0900", "+0.0700", "to", "+0.1100"]
    assert lines[6].startswith("bias field")
    assert lines[7].split()[-3:] == ["-", "-", "-"]
    assert lines[-1] == "0.05 of Dice or more is lost under noise from strength 0.25"
