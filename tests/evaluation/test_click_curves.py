"""Click curves by hand: a person who is answered by painting, and what is made of the Dice."""

import numpy as np
import pytest

from autoseg.evaluation.click_curves import ClickedCase, ClickTable, correct, describe, mean_dice
from autoseg.imaging.prompts import Click

SCORED = {"a": (1,), "b": (2,)}


def squares():
    reference = np.zeros((1, 8, 20), int)
    reference[0, 1:6, 1:6] = 1  # 25 voxels
    reference[0, 1:5, 10:14] = 2  # 16 voxels
    return reference


def painter(mask, reference):
    """Paints the connected voxels of the label that was clicked."""
    from scipy import ndimage

    mask = mask.copy()

    def answer(click: Click) -> np.ndarray:
        labelled, _ = ndimage.label(reference == click.index)
        mask[(labelled == labelled[click.at]) & (mask != click.index)] = click.index
        return mask

    return answer


def test_each_click_repairs_the_largest_error_until_nothing_is_wrong():
    """Nothing is found: Dice 0; the larger square first, (1 + 0) / 2; then all of it."""
    reference, mask = squares(), np.zeros((1, 8, 20), int)
    dice, seconds = correct(mask, reference, (1.0, 1.0, 1.0), painter(mask, reference), SCORED)
    assert dice == [0.0, 0.5, 1.0]
    assert len(seconds) == 2
    assert all(second >= 0 for second in seconds)


def test_no_more_clicks_than_asked_for():
    reference, mask = squares(), np.zeros((1, 8, 20), int)
    dice, _ = correct(mask, reference, (1.0, 1.0, 1.0), painter(mask, reference), SCORED, most=1)
    assert dice == [0.0, 0.5]


def test_a_mask_that_is_right_is_not_clicked():
    reference = squares()
    assert correct(reference, reference, (1.0,) * 3, lambda click: pytest.fail("clicked"), SCORED) == ([1.0], [])


def test_voxels_that_nobody_annotated_do_not_count():
    """Square b is ignored in the reference, but for 4 of 16 voxels, which the mask has with 4 more outside: 8 / 12."""
    reference, mask = squares(), squares()
    reference[0, 1:5, 11:14] = 9
    mask[0, 1:5, 9] = 2
    assert mean_dice(mask, reference, SCORED, ignored=9) == pytest.approx((1 + 8 / 12) / 2)


def test_a_label_that_neither_has_is_left_out():
    mask = squares()
    mask[mask == 2] = 0
    assert mean_dice(mask, mask, SCORED) == 1.0
    assert mean_dice(np.zeros_like(mask), np.zeros_like(mask), SCORED) == 1.0
    assert mean_dice(mask, squares(), SCORED) == 0.5  # b is missed


def table() -> ClickTable:
    cases = (
        ClickedCase("x", "p", (0.80, 0.88, 0.91, 0.93), (0.1, 0.2, 0.3)),
        ClickedCase("y", "q", (0.90, 0.90, 0.91), (0.4, 0.5)),
        ClickedCase("z", "q", (0.70, 0.80), (0.6,)),
    )
    return ClickTable(1, "3d_fullres_prompts", "unet", {"0": "abc"}, 5, cases)


def test_dice_gain_and_clicks_of_a_table():
    """After two clicks 0.91, 0.91 and 0.80, which ends after one; to 0.90: 2, 0 and never, which counts 5."""
    found = table()
    assert found.mean_after(0) == pytest.approx(0.8)
    assert found.mean_after(2) == pytest.approx((0.91 + 0.91 + 0.80) / 3)
    gain, interval = found.gain_after(2)
    assert gain == pytest.approx((0.11 + 0.01 + 0.10) / 3)
    assert interval is not None
    assert interval[0] <= gain <= interval[1]
    assert found.noc(0.90) == (pytest.approx((2 + 0 + 5) / 3), 1)
    assert found.noc(0.92) == (pytest.approx((3 + 5 + 5) / 3), 2)


def test_the_table_in_words():
    lines = describe(table())
    assert lines.startswith("3 held-out cases of 2 patients")
    assert "NoC, 5 at most): 2.33; 1 case did not reach it" in lines
    assert [line.split()[0] for line in lines.splitlines()[4:9]] == ["0", "1", "2", "3", "5"]
    assert "seconds a click: 0.35 (median)" in lines
