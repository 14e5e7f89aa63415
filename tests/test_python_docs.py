"""What the documentation shows in Python works: its lines are run as they stand, on a tiny dataset."""

import re
import shutil
from pathlib import Path

import pytest

import autoseg
from phantom import tiny_dataset

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = PYTHON.findall(PAGE)
CALLS = re.compile(r"autoseg\.(\w+)")


@pytest.mark.slow
def test_the_lines_run(tmp_path, monkeypatch, capsys):
    data = tiny_dataset(tmp_path / "data", cases=5)
    shutil.copytree(data / "imagesTr", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    exec(BLOCKS[0], names)
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
    for block in BLOCKS[1:]:
        exec(block, names)
    assert names["text"].startswith("ws3: Tiny, 5 cases")
    assert capsys.readouterr().out.endswith("there is no fold 7\n  -> the folds are 0, 1, 2, 3, 4, and full\n")


def test_every_function_has_a_row_and_every_name_exists():
    rows = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert set(rows) | {"AutosegError", "Stopped"} == set(autoseg.PUBLIC)
    for text in (PAGE, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert {name for block in PYTHON.findall(text) for name in CALLS.findall(block)} <= set(autoseg.PUBLIC)
