"""The rows of a fold's history: what a line holds, rounding, what is not finite, there and back, what is refused."""

import json
import math

import numpy as np
import pytest

from autoseg.errors import StateError
from autoseg.training.history import EpochRow, read_history, rows_of, write_history

FIGURES = {
    "epoch": 2, "step": 50, "seconds": 61.239, "loss": -0.1234567, "training_dice": (0.85239, None),
    "validation_loss": 0.5, "pseudo_dice": (0.81239, None), "learning_rate": 0.012345678, "skipped": 3,
    "progress": 0.123456,
}  # fmt: skip


def row(**changes) -> EpochRow:
    return EpochRow(**(FIGURES | changes))


def test_a_line_of_the_file():
    """The keys in their order; figures rounded, but not the learning rate."""
    assert json.dumps(row().to_plain()) == (
        '{"epoch": 2, "step": 50, "seconds": 61.24, "loss": -0.12346, "training_dice": [0.8524, null], '
        '"validation_loss": 0.5, "pseudo_dice": [0.8124, null], "learning_rate": 0.012345678, "skipped": 3, '
        '"progress": 0.1235}'
    )
    assert row(unseen=(1,)).to_plain() == row().to_plain() | {"unseen": [1]}
    alone = row(validation_loss=None, pseudo_dice=None).to_plain()  # no case is held out
    assert alone.keys() == row().to_plain().keys() - {"validation_loss", "pseudo_dice"}


def test_what_is_not_finite_is_none():
    made = row(loss=math.nan, validation_loss=math.inf, training_dice=(math.nan, np.float64(0.5)))
    assert (made.loss, made.validation_loss, made.training_dice) == (None, None, (None, 0.5))
    assert made.to_plain()["validation_loss"] is None  # it was measured, and is not a number
    assert type(row(loss=np.float64(0.25)).loss) is float


def test_mean_dice_by_hand():
    assert row(pseudo_dice=(0.5, None, 0.75)).mean_dice == 0.625
    assert row(pseudo_dice=(None,)).mean_dice is None
    assert row(pseudo_dice=None).mean_dice is None


def test_there_and_back_through_a_file(tmp_path):
    rows = [row(), row(epoch=3, loss=None, unseen=(0, 1)), row(epoch=4, validation_loss=None, pseudo_dice=None)]
    assert read_history(tmp_path) == []
    write_history(tmp_path, rows)
    assert read_history(tmp_path) == rows
    assert rows_of([each.to_plain() for each in rows], tmp_path) == rows
    write_history(tmp_path, rows[:1])
    assert read_history(tmp_path) == rows[:1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"history\.jsonl, line 2 is not valid JSON"),
        ("{}", r"history\.jsonl, line 2: missing key 'epoch'"),
        (json.dumps(FIGURES | {"dice": 1}), r"history\.jsonl, line 2: unknown key 'dice'"),
        (json.dumps(FIGURES | {"loss": 10**400}), r"history\.jsonl, line 2\.loss: expected a finite number"),
        (json.dumps(FIGURES | {"loss": "low"}), r"history\.jsonl, line 2\.loss: expected"),
        (json.dumps(FIGURES | {"pseudo_dice": [0.5, "x"]}), r"history\.jsonl, line 2\.pseudo_dice\[1\]: expected"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line, said):
    write_history(tmp_path, [row()])
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(StateError, match=said) as caught:
        read_history(tmp_path)
    assert "delete the file" in caught.value.remedy
