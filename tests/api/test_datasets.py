"""Datasets checked and corrected from Python: records come back, nothing is shown unless it is asked for."""

import numpy as np
import pytest

import autoseg
from files import nifti
from phantom import tiny_dataset


def test_a_report_says_what_a_dataset_is_and_what_is_wrong(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data", cases=3)
    report = autoseg.check_dataset(str(data), workers=0, say=None)
    assert report.usable
    assert report.errors == ()
    assert [case.id for case in report.dataset.cases] == ["case_00", "case_01", "case_02"]
    nifti(data / "labelsTr" / "case_01.nii.gz", np.zeros((2, 2, 2), np.uint8))
    report = autoseg.check_dataset(data, workers=0, say=None)
    assert not report.usable
    assert {problem.case for problem in report.errors} == {"case_01"}
    assert capsys.readouterr() == ("", "")
    with pytest.raises(autoseg.AutosegError, match=r"has \d errors?"):
        autoseg.plan_dataset(data, tmp_path / "ws", workers=0, say=None)
    lines: list[str] = []
    fixed = autoseg.fix_dataset(data, tmp_path / "fixed", workers=0, say=lines.append)
    assert not fixed.complete  # without the case that nobody can mend
    assert fixed.folder == tmp_path / "fixed"
    assert [change.case for change in fixed.changes if change.method == "left out"][:1] == ["case_01"]
    assert autoseg.check_dataset(fixed.folder, workers=0, say=None).usable
    assert lines[0].startswith("copying ")
    assert capsys.readouterr() == ("", "")


def test_what_is_not_a_dataset_is_an_error_and_no_exit(tmp_path):
    with pytest.raises(autoseg.AutosegError, match="does not exist"):
        autoseg.check_dataset(tmp_path / "nowhere")
