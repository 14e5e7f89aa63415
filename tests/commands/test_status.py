"""What status says of a dataset that changed, and of the model of all cases: as typed, its next command works."""

import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.cli import main
from autoseg.commands.status import status
from autoseg.workspace import FULL, Workspace
from commands import SHORT, copy_of, run
from phantom import tiny_dataset

MODEL = ("3d_fullres", "unet")


@pytest.fixture(scope="module")
def source(tmp_path_factory, in_this_process) -> tuple[Path, Workspace]:
    """Planned, and one model of all cases trained."""
    folder = tmp_path_factory.mktemp("all of them")
    dataset, workspace = tiny_dataset(folder / "my data", cases=6), Workspace(folder / "my work")
    run("plan", dataset, "-w", workspace.root)
    run("train", "-f", "full", "--steps", 2, "-w", workspace.root, *SHORT)
    return dataset, workspace


@pytest.fixture
def planned(source, tmp_path) -> tuple[Path, Workspace]:
    """A copy of its own, planned again in its new place."""
    dataset = shutil.copytree(source[0], tmp_path / "my data")
    workspace = copy_of(source[1], tmp_path / "my work")
    run("plan", dataset, "-w", workspace.root)
    return dataset, workspace


def line_of_full(workspace: Workspace) -> str:
    return next(line for line in status(workspace).splitlines() if line.startswith("  full: "))


def next_command(workspace: Workspace) -> list[str]:
    """The words of the last line, without `next: autoseg`."""
    words = shlex.split(status(workspace).splitlines()[-1])
    assert words[:2] == ["next:", "autoseg"]
    return words[2:]


def correct(label: Path) -> None:
    """One voxel more of label 1."""
    image = nib.load(label)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(array, image.affine, image.header), label)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["corrected", "removed", "moved"])
def test_the_next_command_after_a_change_is_to_plan_again(planned, what):
    """`train` refuses such a dataset, so that it must not be what is advised."""
    dataset, workspace = planned
    assert next_command(workspace)[0] == "train"
    if what == "corrected":
        correct(sorted((dataset / "labelsTr").iterdir())[0])
    elif what == "removed":
        for folder in ("imagesTr", "labelsTr"):
            sorted((dataset / folder).iterdir())[0].unlink()
    else:
        dataset = dataset.rename(dataset.with_name("elsewhere"))
    typed = [str(dataset) if word == "NEWPLACE" else word for word in next_command(workspace)]
    assert typed[:2] == ["plan", str(dataset)]
    assert main([*typed, "--cpu-rate", "reference"]) == 0
    assert next_command(workspace)[0] == "train"


@pytest.mark.slow
def test_the_model_of_all_cases_is_compared_with_those_of_today(planned):
    dataset, workspace = planned
    assert line_of_full(workspace).endswith("; trained on all cases, none is held out")
    correct(sorted((dataset / "labelsTr").iterdir())[0])
    run("plan", dataset, "-w", workspace.root)
    assert "; since it was trained, the label of " in line_of_full(workspace)
    for folder in ("imagesTr", "labelsTr"):
        sorted((dataset / folder).iterdir())[0].unlink()
    run("plan", dataset, "-w", workspace.root)
    told = line_of_full(workspace)
    assert "; trained with other cases: the fold now lists others to train on (1 differ, " in told
    assert told.endswith("; -f full --restart retrains it from scratch")


@pytest.mark.slow
def test_a_damaged_model_of_all_cases_is_named(planned):
    _, workspace = planned
    (workspace.fold(*MODEL, FULL) / "last.pt").write_bytes(b"torn")
    assert "last.pt" in line_of_full(workspace)


@pytest.mark.slow
def test_planning_again_advises_what_status_does(planned, capsys):
    """`autoseg train` for all folds would refuse fold 0, which was trained with another length."""
    dataset, workspace = planned
    run("train", "-f", 0, "--steps", 2, "-w", workspace.root, *SHORT)
    capsys.readouterr()
    run("plan", dataset, "-w", workspace.root)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next: autoseg train -f 1,2,3,4 -w '{workspace.root}'"
    assert last == status(workspace).splitlines()[-1]


@pytest.mark.thorough
def test_a_damaged_history_is_reported_and_the_other_folds_are_shown(tmp_path):
    workspace = Workspace(tmp_path / "my work")
    run("plan", tiny_dataset(tmp_path / "data", cases=5), "-w", workspace.root, "--no-preprocess")
    before = status(workspace).splitlines()
    path = workspace.fold(*MODEL, 1) / "history.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("no row\n")
    after = status(workspace).splitlines()
    (n,) = (n for n, line in enumerate(before) if line != after[n])
    assert after[n].startswith(f"  fold 1: {path}, line 1 is not valid JSON: ")
    assert "delete the file" in after[n]
    assert after[n].endswith("; 0 of 1 validation cases predicted")
    assert len(after) == len(before)


@pytest.mark.thorough
def test_a_list_of_patients_that_came_later_is_named(tmp_path):
    dataset, workspace = tiny_dataset(tmp_path / "data", cases=5), Workspace(tmp_path / "my work")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess")
    (dataset / "patients.csv").write_text("case,patient\ncase_00,x\ncase_01,x\n")
    assert f"changed since it was planned: {dataset / 'patients.csv'}; plan again: autoseg plan" in status(workspace)
    assert next_command(workspace)[0] == "plan"
