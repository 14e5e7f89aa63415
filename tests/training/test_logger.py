"""The clock of a schedule under a clock of our own, and what stands in a fold's log."""

import json
import math
import subprocess
import sys

import pytest

from autoseg.errors import Stopped, StorageError
from autoseg.lines import LOG, show, shown_by
from autoseg.training import logger
from autoseg.training.diagnosis import Finding, diagnose
from autoseg.training.history import EpochRow
from autoseg.training.logger import PICTURE_SECONDS, FoldLog, warning, warning_of_fold
from made_up_time import Time


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(logger, "time", time)
    return time


def row(number: int, **changes) -> EpochRow:
    told = {
        "epoch": number, "step": 25 * number, "seconds": 61.239 * number, "loss": -0.1234567, "validation_loss": 0.5,
        "training_dice": (0.85239, None), "pseudo_dice": (0.81239, None), "learning_rate": 0.012345678,
        "progress": 0.25, "skipped": 0,
    }  # fmt: skip
    return EpochRow(**(told | changes))


def epoch(log: FoldLog, number: int, **changes) -> None:
    log.epoch(row(number, **changes))


def read_lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def read_log(folder) -> list[str]:
    return (folder / "log.txt").read_text().splitlines()


@pytest.fixture
def bare(monkeypatch) -> None:
    """A machine without TensorBoard, where nothing is drawn."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(logger, "draw_progress", lambda *_: None)


def test_lines_are_shown_where_they_are_asked_for(tmp_path, capsys, bare):
    shown: list[str] = []
    with shown_by(shown.append), FoldLog(tmp_path / "fold_2", 2, ["liver", "tumour"], []) as log:
        LOG.info("begins")
        epoch(log, 1)
    assert shown[0] == "fold 2  begins"
    assert shown == read_log(tmp_path / "fold_2")
    assert len(shown) > 1
    assert capsys.readouterr() == ("", "")


def test_history_and_log(tmp_path, capsys, bare):
    with shown_by(show), FoldLog(tmp_path / "fold_2", 2, ["liver", "tumour"], []) as log:
        log.step(0.5, 0.01)  # before there is any history
        epoch(log, 1)
        log.step(-0.2, 0.26)
        epoch(log, 60, pseudo_dice=[0.9, 0.25], training_dice=[0.92, 0.33], progress=0.5, skipped=3)
        LOG.info("the end")
    rows = read_lines(tmp_path / "fold_2")
    assert rows[0] == {
        "epoch": 1,
        "step": 25,
        "seconds": 61.24,
        "loss": -0.12346,
        "validation_loss": 0.5,
        "training_dice": [0.8524, None],
        "pseudo_dice": [0.8124, None],
        "learning_rate": 0.012345678,
        "progress": 0.25,
        "skipped": 0,
    }
    assert [row["epoch"] for row in rows] == [1, 60]
    assert [row.to_plain() for row in log.history] == rows
    lines = read_log(tmp_path / "fold_2")
    # a quarter took 61 s, the rest takes three times as long; half took 61 min 14 s, so does the rest
    assert lines == [
        "fold 2  epoch   1  step    25  loss -0.123 / +0.500  pseudo Dice liver 0.812  tumour   -  (training +0.040)  "
        "1m01s, 3m04s to go",
        "fold 2  epoch  60  step  1500  loss -0.123 / +0.500  pseudo Dice liver 0.900  tumour 0.250 (training +0.050)  "
        "3 steps skipped  1h01m, 1h01m to go",
        "fold 2  the end",
    ]
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line] == lines  # without a terminal: the lines, no bar
    assert shown.err == ""


def test_an_epoch_without_a_finite_step(tmp_path, bare):
    """JSON knows no NaN."""
    with FoldLog(tmp_path, 0, ["liver"], []) as log:
        log.step(math.nan, 0.1)
        epoch(log, 1, loss=None, validation_loss=math.nan, training_dice=[math.inf], pseudo_dice=[0.5], skipped=25)
    (written,) = read_lines(tmp_path)
    assert (written["loss"], written["validation_loss"], written["training_dice"]) == (None, None, [None])
    assert read_log(tmp_path)[0].startswith(
        "fold 0  epoch   1  step    25  loss   -  /   -   pseudo Dice liver 0.500  25 steps skipped"
    )


def test_a_resumed_fold_keeps_its_history(tmp_path, bare):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
    before = log.history
    with FoldLog(tmp_path, 0, ["liver", "tumour"], before) as log:
        assert log.bar.n == 250  # of 1000
        epoch(log, 2)
    assert [row["epoch"] for row in read_lines(tmp_path)] == [1, 2]
    assert len(read_log(tmp_path)) == 2
    assert len(before) == 1  # the checkpoint's own list is not written into


def test_as_many_scores_as_labels(tmp_path, bare):
    with FoldLog(tmp_path, 0, ["liver"], []) as log, pytest.raises(ValueError, match="zip"):
        epoch(log, 1)


def test_quiet(tmp_path, capsys):
    with shown_by(None), FoldLog(tmp_path / "fold_0", 0, ["liver", "tumour"], [], quiet=True) as log:
        LOG.info("hello")
        log.step(0.5, 0.1)
        epoch(log, 1, loss=None)
    assert not (tmp_path / "fold_0").exists()
    assert capsys.readouterr() == ("", "")
    assert len(log.history) == 1  # what the processes of a training decide upon is the same in all
    assert [finding.kind for finding in log.findings] == ["diverge"]


# Findings


def never_learnt(number: int) -> EpochRow:
    """The epochs of a fold of 20 in which the second label has no Dice."""
    return row(number, training_dice=[0.9, 0.0], pseudo_dice=[0.9, 0.0], progress=number / 20)


def write(log: FoldLog, numbers) -> None:
    for number in numbers:
        log.epoch(never_learnt(number))


def named(folder) -> list[str]:
    return [line for line in read_log(folder) if "tumour is not learnt" in line]


def test_a_finding_is_told_once_when_it_appears(tmp_path, bare):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        write(log, range(1, 12))
        assert log.findings == []
        write(log, [12])
        after = read_log(tmp_path)
        write(log, range(13, 21))
    assert after[-2] == "fold 0  collapses: tumour is not learnt: its Dice is 0.000 after 60% of the training"
    assert after[-1].startswith("  -> ")
    assert "--set training.class_sampling=inverse_frequency" in after[-1]
    assert len(named(tmp_path)) == 1
    assert log.findings == diagnose(log.history, ["liver", "tumour"]) != []


@pytest.mark.parametrize("resumed_after", [11, 12, 15])
def test_a_resumed_fold_repeats_no_finding(tmp_path, bare, resumed_after):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        write(log, range(1, resumed_after + 1))
    with FoldLog(tmp_path, 0, ["liver", "tumour"], log.history) as log:
        assert bool(log.findings) == (resumed_after >= 12)
        write(log, range(resumed_after + 1, 21))
    assert len(named(tmp_path)) == 1


def test_what_was_said_of_the_whole_fold_is_not_said_of_a_label(tmp_path, bare):
    """Nothing was learnt after 12 epochs; then the first label is."""
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number in range(1, 21):
            first = 0.0 if number < 15 else 0.5
            epoch(log, number, training_dice=[first, 0.0], pseudo_dice=[first, 0.0], progress=number / 20)
    assert sum("collapses: " in line for line in read_log(tmp_path)) == 1
    assert [finding.label for finding in log.findings] == ["tumour"]


@pytest.mark.thorough
def test_lines_of_many_labels_stay_short(tmp_path, bare):
    label_names = [f"label_{i}" for i in range(300)]
    with FoldLog(tmp_path, 0, label_names, []) as log:
        for number in range(1, 21):
            epoch(log, number, pseudo_dice=[0.5] * 7 + [0.0] * 293, training_dice=[0.0] * 300, progress=number / 20)
        told = read_log(tmp_path)
        log.summarise()
    summary = read_log(tmp_path)[len(told) :]
    assert "label_19 0.000  and 280 more, mean of all 0.012 (training -0.012)" in told[0]
    assert "label_20" not in told[0]
    assert len(told) == 20 + 2  # each epoch, and once what is wrong with what to do
    assert max(map(len, [*told, *summary])) < 600
    assert "293 of 300 labels (" in told[12]


def test_a_label_without_a_training_case_is_told_once(tmp_path, bare):
    with FoldLog(tmp_path, 1, ["liver", "tumour"], [], unseen=["tumour"]) as log:
        for number in range(1, 21):
            epoch(log, number, pseudo_dice=[0.9, 0.0], training_dice=[0.9, None], progress=number / 20)
    told = [line for line in read_log(tmp_path) if "epoch" not in line]
    assert told[0] == "fold 1  cannot learn a label: tumour is in none of the fold's training cases"
    assert len(told) == 2
    assert all(row["unseen"] == [1] for row in read_lines(tmp_path))
    model = warning_of_fold(log.findings[0], 1, "2d", "unet")
    assert model.startswith("fold 1 of 2d (unet)  cannot learn a label: tumour")


def test_summary(tmp_path, bare):
    with FoldLog(tmp_path, 3, ["liver", "tumour"], []) as log:
        log.summarise()
        assert not (tmp_path / "log.txt").exists()  # nothing was trained
        write(log, range(1, 21))
        before = len(read_log(tmp_path))
        log.summarise()
    came_to, collapse, _ = read_log(tmp_path)[before:]
    assert came_to == "fold 3  500 steps in 20m25s  pseudo Dice liver 0.900  tumour 0.000 (training +0.000)"
    assert collapse.startswith("fold 3  collapses: tumour is not learnt: its Dice is 0.000 after 100% of the training")


# The picture


@pytest.fixture
def drawn(monkeypatch, bare) -> list[int]:
    """Epochs of each picture that is drawn."""
    drawn: list[int] = []
    monkeypatch.setattr(logger, "draw_progress", lambda path, history, *_: drawn.append(len(history)))
    return drawn


def test_pictures_are_a_minute_apart_and_one_is_of_the_end(tmp_path, time, drawn):
    assert PICTURE_SECONDS == 60
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number in range(1, 7):  # after 25, 50, 75, ... seconds
            time.now += 25
            epoch(log, number)
        assert drawn == [3, 6]
        time.now += 25
        epoch(log, 7)
    assert drawn == [3, 6, 7]
    log.close()
    assert drawn == [3, 6, 7]  # nothing is new
    with FoldLog(tmp_path, 0, ["liver", "tumour"], log.history):
        pass
    assert drawn == [3, 6, 7]


def test_pictures_take_a_hundredth_of_the_time(tmp_path, time, monkeypatch, bare):
    """One that takes 2 s is not drawn again for 200 s."""
    drawn = []

    def draw(path, history, *_):
        time.now += 2
        drawn.append(len(history))

    monkeypatch.setattr(logger, "draw_progress", draw)
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number in range(1, 8):
            time.now += 60
            epoch(log, number)
    assert drawn == [1, 5, 7]


def test_the_picture_is_a_png(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_rewritten_after_five_minutes_and_takes_a_hundredth_of_the_time(tmp_path, time, drawn):
    pages = []

    def page() -> None:
        pages.append(len(read_lines(tmp_path)))
        time.now += 2

    with FoldLog(tmp_path, 0, ["liver", "tumour"], [], page=page) as log:
        for number in range(1, 12):
            time.now += 60
            epoch(log, number)
    assert pages == [5, 9]  # after 300 s, and then 2 s of 200


def test_a_report_that_fails_ends_no_training(tmp_path, time, drawn):
    def page() -> None:
        raise RuntimeError("a template is missing")

    with FoldLog(tmp_path, 0, ["liver", "tumour"], [], page=page) as log:
        for number in range(1, 4):
            time.now += 300
            epoch(log, number)
    assert len(read_lines(tmp_path)) == 3
    complaints = [line for line in read_log(tmp_path) if "report.html" in line]
    assert complaints == ["fold 0  cannot write report.html, training continues: RuntimeError: a template is missing"]


def test_a_picture_that_fails_ends_no_training(tmp_path, time, monkeypatch, bare):
    def fail(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(logger, "draw_progress", fail)
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number in range(1, 4):
            time.now += 60
            epoch(log, number)
        epoch(log, 4)
    assert len(read_lines(tmp_path)) == 4
    complaints = [line for line in read_log(tmp_path) if "progress.png" in line]
    assert complaints == ["fold 0  cannot write progress.png, training continues: StorageError: the disk is full"]


def test_a_log_that_cannot_be_written_ends_no_training(tmp_path, capsys, bare):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with shown_by(show), FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
        epoch(log, 2)
    assert len(read_lines(tmp_path)) == 2
    assert capsys.readouterr().out.count("cannot write log.txt, training continues: OSError: [Errno 28]") == 1


def test_a_warning_says_which_fold_to_begin_anew():
    finding = Finding("collapse", "liver", "liver is lost", "retrain from scratch (--restart) with more epochs")
    again = "retrain from scratch (--restart) with more epochs"
    assert warning(finding) == f"collapses: liver is lost\n  -> {again}"
    assert warning_of_fold(finding, 1, "3d_lowres", "fcn") == (
        "fold 1 of 3d_lowres (fcn)  collapses: liver is lost\n"
        "  -> retrain from scratch (-c 3d_lowres --network fcn -f 1 --restart) with more epochs"
    )


def test_a_stop_that_comes_while_drawing_is_heard(tmp_path, monkeypatch, bare):
    def stopped(*_):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(logger, "draw_progress", stopped)
    with pytest.raises(Stopped), FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)


# TensorBoard


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: step and value of each point."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def undrawn(monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(logger, "draw_progress", lambda *_: None)


def test_curves(tmp_path, undrawn):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
        epoch(log, 2, loss=None, pseudo_dice=[0.9, 0.1])
    assert curves(tmp_path) == {
        "loss/training": [(25, -0.1235)],  # no point where there was no loss
        "loss/validation": [(25, 0.5), (50, 0.5)],
        "learning_rate": [(25, 0.0123), (50, 0.0123)],
        "training_dice/liver": [(25, 0.8524), (50, 0.8524)],
        "pseudo_dice/liver": [(25, 0.8124), (50, 0.9)],
        "pseudo_dice/tumour": [(50, 0.1)],
    }


def test_a_resumed_fold_draws_no_double_curves(tmp_path, undrawn):
    """Killed after epoch 3, with a checkpoint of epoch 1: epochs 2 and 3 come again."""
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
            epoch(log, number, loss=loss)
    with FoldLog(tmp_path, 0, ["liver", "tumour"], log.history[:1]) as log:
        epoch(log, 2, loss=0.25)
    assert curves(tmp_path)["loss/training"] == [(25, 0.1), (50, 0.25)]
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:  # killed before its first checkpoint
        epoch(log, 1, loss=0.15)
    assert curves(tmp_path)["loss/training"] == [(25, 0.15)]


def test_a_fold_that_goes_back_draws_no_double_curves(tmp_path, undrawn):
    """Its history is cut where it stands, by the training itself."""
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number, loss in ((1, 0.1), (2, 0.2), (3, 9.0)):
            epoch(log, number, loss=loss)
        log.history[:] = log.history[:1]
        epoch(log, 2, loss=0.25)
        epoch(log, 3, loss=0.35)
    assert curves(tmp_path)["loss/training"] == [(25, 0.1), (50, 0.25), (75, 0.35)]
    assert [written["loss"] for written in read_lines(tmp_path)] == [0.1, 0.25, 0.35]


def test_without_tensorboard_there_are_no_curves(tmp_path, bare):
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        epoch(log, 1)
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_log(tmp_path)) == 1


def test_a_broken_tensorboard_ends_no_training(tmp_path, undrawn):
    obstacle = tmp_path / "tensorboard"
    obstacle.write_text("a file where the folder should be")
    with FoldLog(tmp_path, 0, ["liver", "tumour"], []) as log:
        for number in (1, 2):
            epoch(log, number)
        obstacle.unlink()
        epoch(log, 3)
    assert len(read_lines(tmp_path)) == 3
    assert [line.split(":")[0] for line in read_log(tmp_path) if "epoch" not in line] == [
        "fold 0  cannot write tensorboard, training continues"
    ]
    assert curves(tmp_path)["loss/training"] == [(75, -0.1235)]


def test_the_log_is_light():
    """What draws is imported when there is something to draw."""
    code = "import sys, autoseg.training.logger; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "autoseg.training.logger" in loaded
    assert not {"torch", "matplotlib", "tensorboard", "scipy"} & set(loaded)
