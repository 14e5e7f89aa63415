"""Where the networks looked, in the report of a workspace."""

import pytest

from autoseg.commands.looked import explain_held_out
from autoseg.errors import StateError
from autoseg.inference.saliency_files import SaliencyIndex
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import SHORT, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow


def test_the_report_shows_where_the_fold_looked_that_held_a_case_out(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=6, orientations=("LPS", "RAS"))
    workspace = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess")
    with pytest.raises(StateError, match="no scored case"):
        explain_held_out(workspace, None, None, "organ_1")
    run("train", "-f", "0..4", "--epochs", 2, "-w", workspace.root, *SHORT)
    run("evaluate", "-w", workspace.root)
    run("report", "-w", workspace.root, "--saliency", "organ_1")
    page = workspace.report.read_text()
    assert page.count("organ_1: Grad-CAM, bottleneck") == 3
    folders = sorted((workspace.model("3d_fullres", "unet") / "saliency").iterdir())
    assert len(folders) == 3
    for folder in folders:
        index = load(SaliencyIndex, folder / "saliency.json")
        assert [one.file for one in index.maps] == ["1_organ_1.nii"]
    run("report", "-w", workspace.root)
    assert "Where the network looked" in workspace.report.read_text()
