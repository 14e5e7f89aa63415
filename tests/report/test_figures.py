"""What charts show, by their numbers and their text; not by their pixels."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from autoseg.report.data_figures import bins_of, constant
from autoseg.report.gathered import GatheredFold
from autoseg.report.reliability import binned, summary
from autoseg.report.score_figures import confusion, percent, reliability, thinned
from autoseg.report.svg import ROLES, chart, inline
from autoseg.report.training_figures import curve, events_of, training_figures
from reported import history, row


def fold(number: int, rows, folder: Path = Path("nowhere")) -> GatheredFold:
    return GatheredFold(number, folder, tuple(rows), None, 0, False)


def texts(svg: str) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_a_chart_has_the_colours_of_the_page_and_text_as_text():
    with chart() as (figure, axes):
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("a $name_1$ <b>&")
        svg = inline(figure, "one", "A <title>")
    assert "currentColor" in svg
    assert not any(stand_in in svg for stand_in in ROLES)
    assert "a $name_1$ &lt;b&gt;&amp;" in texts(svg)
    assert 'aria-label="A &lt;title&gt;"' in svg
    assert not re.search("https?:", svg)
    ElementTree.fromstring(svg)


def test_charts_of_a_page_share_no_identifier():
    found = []
    for name in ("one", "two"):
        with chart() as (figure, axes):
            axes.plot([0, 1], [0, 1], "o")
            found.append(str(inline(figure, name, name)))
    identifiers = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in found]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]
    for svg, known in zip(found, identifiers, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= known


def test_bins_hold_every_value():
    for values in ([1.0, 1.5, 7.25], [3, 3, 3], [1, 2, 9], [1e-3, 1.0, 5e4]):
        edges, log = bins_of(values)
        assert np.histogram(values, edges)[0].sum() == len(values)
        assert log == (max(values) / min(values) >= 30)
    assert constant({"z": [1.0, 1.0], "y": [2.0, 2.0]})
    assert not constant({"z": [1.0, 1.0], "y": [2.0, 2.1]})


def test_a_repeated_epoch_counts_once():
    rows = [row(1, 4, (0.1, 0.1)), row(2, 4, (0.2, 0.2)), row(2, 4, (0.3, 0.3))]
    assert curve(rows, lambda one: one.mean_dice) == ([25, 50], [0.1, 0.3])


def test_events_are_read_from_history_and_log(tmp_path):
    (tmp_path / "log.txt").write_text(
        "fold 0  epoch   1  step    10  loss\nfold 0  resumed after epoch 1, step 10\n"
        "fold 0  step 12: non-finite loss, step skipped (cases a)\nfold 0  step 13: non-finite loss, step skipped\n"
        "fold 0  epoch   2  step    20  loss\nfold 0  --finish: cooling down the learning rate, then training ends\n"
    )
    rows = [row(1, 4, (0.5, 0.5)), row(2, 4, (0.8, 0.8)), row(3, 4, (0.7, 0.7))]
    found = [(event.epoch, event.what) for event in events_of(fold(0, rows, tmp_path), ["x", "y"])]
    assert sorted(found) == [
        (1, "resumed"),
        (1, "step skipped (2 times)"),
        (2, "best validation Dice, 0.800"),
        (2, "cool-down began"),
    ]


def test_a_finding_is_an_event_of_the_epoch_at_which_it_appears():
    """Validation stagnates at 0.5 from the first epoch on, while the training patches are learnt by heart."""
    rows = [row(i, 20, (0.5, 0.5), training=min(0.49, 0.03 * i)) for i in range(1, 21)]
    found = [event for event in events_of(fold(0, rows), ["x", "y"]) if event.what.startswith("overfit")]
    assert len(found) == 1
    assert 6 < found[0].epoch <= 20


@pytest.mark.thorough
def test_curves_of_a_training():
    figures = training_figures([fold(0, history()), fold(1, history(best=0.8))], ["liver", "a <b>"])
    assert [figure.title for figure in figures] == [
        "Loss",
        "Dice while training",
        "Dice of each label",
        "Learning rate",
    ]
    assert "mean of 2 folds" in figures[0].caption
    assert "a &lt;b&gt;" in texts(figures[2].svg)
    assert training_figures([fold(0, [])], ["liver"]) == []
    assert len(training_figures([fold(0, history()[:1])], ["liver", "b"])) == 4  # one epoch


def test_a_fold_that_holds_nothing_out_has_curves():
    from dataclasses import replace

    rows = [replace(one, pseudo_dice=None, validation_loss=None) for one in history()]
    titles = [figure.title for figure in training_figures([fold("full", rows)], ["liver", "b"])]
    assert titles == ["Loss", "Dice while training", "Learning rate"]


def test_confusion_shows_shares_of_each_row():
    figure = confusion(np.array([[90, 10], [1, 3]]), ["background", "liver"])
    shown = texts(figure.svg)
    for cell in ("90.0", "10.0", "25.0", "75.0", "background", "liver"):
        assert cell in shown


def test_of_many_labels_the_most_missed_are_shown():
    counts = np.diag([100] * 30)
    counts[7, 7], counts[7, 0] = 10, 90
    figure = confusion(counts, ["background", *(f"label {i}" for i in range(1, 30))])
    assert "label 7" in texts(figure.svg)
    assert "11 labels that are missed most, of 29" in figure.caption


def test_shares_never_read_as_all_or_nothing_where_they_are_not():
    assert [percent(share) for share in (0.0, 0.0004, 0.5, 0.9999, 1.0)] == ["0", "<0.1", "50.0", ">99.9", "100"]


def test_points_are_thinned_evenly():
    assert thinned(list(range(11)), 3) == [0, 5, 10]
    assert thinned([1, 2], 3) == [1, 2]


def test_expected_calibration_error_by_hand():
    """Two voxels of confidence 0.9, one of them right; two of 0.6, both right: 0.5 * 0.4 + 0.5 * 0.4."""
    probabilities = np.array([[[[0.1, 0.9, 0.6, 0.4]]], [[[0.9, 0.1, 0.4, 0.6]]]])
    reference = np.array([[[1, 1, 0, 1]]])
    found = summary(binned(probabilities, reference, np.ones((1, 1, 4), bool)), cases=1)
    assert found.error == pytest.approx(0.4)
    assert [one["accuracy"] for one in found.bins] == [1.0, 0.5]
    assert [one["share"] for one in found.bins] == [0.5, 0.5]
    assert "0.400" in reliability(found.bins, found.error, 1).caption
