"""What the documentation shows in Python works: its lines are run as they stand, on a tiny dataset."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import autoseg
from autoseg.commands import train
from phantom import tiny_dataset

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CALLS = re.compile(r"autoseg\.(\w+)")


@pytest.fixture
def run(tmp_path, monkeypatch, in_this_process) -> Callable[[str, dict], None]:
    """Runs lines beside a dataset of five cases and a folder of images; a training without a length has two steps."""
    data = tiny_dataset(tmp_path / "data", cases=5)
    shutil.copytree(data / "imagesTr", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    train_folds = train.train_folds

    def shortened(workspace, options):
        settings = ("training.workers=0", "training.autocast=float32", "training.chain=host")
        return train_folds(workspace, replace(options, steps=options.steps or 2, settings=settings))

    monkeypatch.setattr(train, "train_folds", shortened)

    def execute(lines: str, names: dict) -> None:
        exec(lines, names)

    return execute


@pytest.mark.slow
def test_the_lines_of_the_page_run(run, capsys):
    first, *others = PYTHON.findall(PAGE)
    names: dict = {}
    run(first, names)
    (fold,) = names["folds"]
    assert (fold.fold, fold.steps, fold.folder.parent.parent) == (0, 100, Path("ws/models"))
    assert set(fold.pseudo_dice) == {"organ_1", "organ_2"}
    assert all(dice > 0.5 for dice in fold.pseudo_dice.values())
    assert names["report"].usable
    assert names["plan"].recommended == "3d_fullres"
    assert len(names["result"].cases) == 1
    assert sorted(names["segmented"].files) == [Path(f"out/case_{i:02d}.nii.gz") for i in range(5)]
    assert names["segmented"].failed == ()
    assert "\n{'organ_1': " in capsys.readouterr().out
    for lines in others:
        run(lines, names)
    assert names["text"].startswith("ws3: Tiny, 5 cases")
    shown = capsys.readouterr().out
    (printed,) = re.findall(r"^\{'organ_1': 1, .* uint8 .*$", PAGE, re.MULTILINE)
    assert f"\n{printed}\n" in shown
    assert shown.endswith("there is no fold 7\n  -> the folds are 0, 1, 2, 3, 4, and full\n")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.findall(README), reason="README shows no Python")
def test_the_lines_of_the_readme_run(run):
    names: dict = {}
    for lines in PYTHON.findall(README):
        run(lines, names)
    assert any(isinstance(value, autoseg.api.models.Segmentations) for value in names.values())


def test_every_function_has_a_row_and_every_name_exists():
    rows = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert set(rows) | {"AutosegError", "Stopped"} == set(autoseg.PUBLIC)
    for text in (PAGE, README):
        assert {name for lines in PYTHON.findall(text) for name in CALLS.findall(lines)} <= set(autoseg.PUBLIC)
