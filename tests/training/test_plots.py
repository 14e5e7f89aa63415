"""The picture of a fold's history: what is drawn where, gaps, many labels, odd names."""

import math
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from autoseg.errors import StorageError
from autoseg.training.history import EpochRow
from autoseg.training.plots import draw_progress


def row(epoch: int, **changes) -> EpochRow:
    told = {
        "epoch": epoch, "step": 25 * epoch, "seconds": 9.0, "loss": 0.5 - 0.1 * epoch,
        "training_dice": (0.9, 0.5), "validation_loss": 0.4 - 0.05 * epoch, "pseudo_dice": (0.8, None),
        "learning_rate": 0.01 / epoch, "skipped": 0, "progress": 0.5,
    }  # fmt: skip
    return EpochRow(**(told | changes))


@pytest.fixture
def figures(monkeypatch) -> list:
    """Figures that are saved."""
    saved: list = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **options):
        saved.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return saved


def drawn(panel) -> list[tuple[list, list, str]]:
    return [(list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle()) for line in panel.lines]


def test_what_is_drawn(tmp_path, figures):
    history = [row(1), row(2, loss=None), row(4, training_dice=(0.95, 0.6), pseudo_dice=(0.7, 0.1))]
    draw_progress(tmp_path / "new" / "progress.png", history, ["liver", "tumour"], "fold 2")
    with Image.open(tmp_path / "new" / "progress.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (1000, 1000)
        assert np.asarray(picture.convert("L")).std() > 10  # not blank
    (figure,) = figures
    losses, dice, rate = figure.axes
    assert figure.get_suptitle() == "fold 2"
    x = [1, 2, 4]
    training, validation = drawn(losses)
    assert training[0] == validation[0] == x
    np.testing.assert_allclose(training[1], [0.4, math.nan, 0.1])  # a gap where there was no loss
    np.testing.assert_allclose(validation[1], [0.35, 0.3, 0.2])
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["training", "validation"]
    assert [style for _, _, style in drawn(dice)] == [":", "-", ":", "-"]
    np.testing.assert_allclose(
        [values for _, values, _ in drawn(dice)],
        [[0.9, 0.9, 0.95], [0.8, 0.8, 0.7], [0.5, 0.5, 0.6], [math.nan, math.nan, 0.1]],
    )
    colours = [line.get_color() for line in dice.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]  # one per label
    assert [line.get_color() for line in dice.get_legend().get_lines()] == [colours[0], colours[2]]
    np.testing.assert_allclose(drawn(rate)[0][1], [0.01, 0.005, 0.0025])


def test_a_fold_that_holds_no_case_out(tmp_path, figures):
    history = [row(i, validation_loss=None, pseudo_dice=None) for i in (1, 2)]
    draw_progress(tmp_path / "progress.png", history, ["liver", "tumour"], "fold 0")
    training, validation, _, _ = drawn(figures[0].axes[1])
    assert training[1] == [0.9, 0.9]
    assert np.isnan(validation[1]).all()


def test_a_single_epoch_is_seen(tmp_path, figures):
    """A line through one point shows nothing: it needs a mark."""
    draw_progress(tmp_path / "one.png", [row(1)], ["liver", "tumour"], "fold 0")
    draw_progress(tmp_path / "many.png", [row(i) for i in range(1, 100)], ["liver", "tumour"], "fold 0")
    one, many = ({line.get_marker() for panel in figure.axes for line in panel.lines} for figure in figures)
    assert (one, many) == ({"."}, {""})


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 10, 11, 48, 49])
def test_labels_have_colours_and_names_of_their_own(tmp_path, figures, count):
    names = ["_hidden", "$x^", "$\\frac$", *(f"label {i}" for i in range(count))][:count]
    told = [row(i, training_dice=count * (0.5,), pseudo_dice=count * (0.4,)) for i in (1, 2)]
    draw_progress(tmp_path / "progress.png", told, names, "fold 0, $\\broken$")
    panel = figures[0].axes[1]
    assert len({line.get_color() for line in panel.lines}) == count
    legend = panel.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == names if count <= 48 else legend is None


def test_a_disk_that_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        draw_progress(tmp_path / "file" / "progress.png", [row(1)], ["liver", "tumour"], "fold 0")


@pytest.mark.thorough
def test_nothing_global_of_matplotlib_is_touched(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom autoseg.training.history import EpochRow\n"
        "from autoseg.training.plots import draw_progress\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"row = {row(1)!r}\ndraw_progress(Path({str(tmp_path / 'a.png')!r}), [row], ['liver', 'tumour'], 'fold 0')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.png").exists()
