"""What `check` says of a dataset beside its problems: what it is, and what may be done about them."""

import json
from pathlib import Path

import pytest

import tiny
from autoseg.commands.check import MENDED, check_dataset, understood
from autoseg.datasets.dataset import IntakeOptions, discover
from autoseg.errors import UsageError
from commands import run


def checked(root: Path) -> bool:
    return check_dataset(root, IntakeOptions(), workers=0).usable


def test_one_case_is_not_called_cases(tmp_path):
    one, three = (discover(tiny.nnunet(tmp_path / name, ids=name))[0] for name in ("a", "abc"))
    assert understood(one)[0] == "a: 1 case of 1 patient, 0 test cases (nnU-Net layout)"
    assert understood(three)[0] == "abc: 3 cases of 3 patients, 0 test cases (nnU-Net layout)"


def test_a_copy_is_offered_where_it_can_be_sound(tmp_path, said):
    root = tiny.nnunet(tmp_path / "data", ids="abc")
    assert checked(root)
    assert MENDED not in said
    (root / "labelsTr" / "b.nii.gz").unlink()
    assert not checked(root)
    assert said[-1] == MENDED


def test_no_copy_is_offered_where_it_would_keep_every_fault(tmp_path, said):
    """Folds that train on all cases and hold none out are given: no case can be left out to mend them."""
    root = tiny.nnunet(tmp_path / "data", ids="abc")
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b", "c"], "val": []}]))
    assert not checked(root)
    assert MENDED not in said


def test_a_workspace_is_not_a_dataset(tmp_path):
    root, workspace = tiny.nnunet(tmp_path / "data", ids="abcdef"), tmp_path / "my work"
    run("plan", root, "-w", workspace, "--no-preprocess", "--workers", 0)
    with pytest.raises(UsageError, match="my work is a workspace of autoseg, expected a dataset") as caught:
        check_dataset(workspace, IntakeOptions())
    assert str(root) in caught.value.remedy
    assert f"autoseg status -w '{workspace}'" in caught.value.remedy
