"""What can be compared: models of workspaces, folders, tables; and what is refused, with the reason."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.commands.compare import CompareOptions, compare
from autoseg.commands.evaluate import evaluate_folders
from autoseg.commands.sides import read_scores
from autoseg.datasets.dataset import Case, Dataset, parse_options
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import DataError, StateError, UsageError
from autoseg.records import load, save
from autoseg.workspace import Workspace
from commands import outcome
from exported import IDS, PATIENTS, workspace_of
from files import nifti
from plans import THREE

HELD_OUT = IDS[:4]
GRID = np.diag([-1.0, -1.0, 2.0, 1.0])
SMALL = (4, 10, 10)

pytestmark = pytest.mark.usefixtures("in_this_process")


def reference(number: int) -> np.ndarray:
    """Two bars, of labels 1 and 2."""
    array = np.zeros(SMALL, np.uint8)
    array[1:3, 1:4, 1 : 5 + number % 2] = 1
    array[1:3, 5:9, 2:8] = 2
    return array


def worse(array: np.ndarray, voxels: int) -> np.ndarray:
    """The same, with that many voxels of each label lost."""
    array = array.copy()
    for value in np.unique(array[array > 0]):
        array.reshape(-1)[np.flatnonzero(array == value)[:voxels]] = 0
    return array


def files(folder: Path, lost: int, ids: tuple[str, ...] = HELD_OUT) -> Path:
    """Segmentations of these cases, or with `lost=0` their references."""
    for i, name in enumerate(ids):
        nifti(folder / f"{name}.nii.gz", worse(reference(i), lost and lost + i), GRID)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A workspace of two models whose fold 0 holds four cases out, and folders of segmentations of them."""
    root = tmp_path_factory.mktemp("compare")
    references = files(root / "labels", 0, IDS)
    sides = {"train": IDS[4:], "validation": HELD_OUT}
    workspace = workspace_of(root / "ws", configurations=("3d_fullres", "2d"), folds=(0,), **sides)
    for configuration, lost in (("3d_fullres", 1), ("2d", 3)):
        files(workspace.fold(configuration, "unet", 0) / "validation", lost)
    rows = tuple(
        Case(i, p, (str(references / f"{i}.nii.gz"),), str(references / f"{i}.nii.gz"))
        for i, p in zip(IDS, PATIENTS, strict=True)
    )
    save(workspace.dataset, replace(load(Dataset, workspace.dataset), root=str(root), cases=rows, labels=THREE))
    save(workspace.splits, Splits(1, 1, (Split(0, *sides.values()),), (), ()))
    files(root / "better", 1)
    files(root / "worse", 4)
    return root


def test_two_models_of_a_workspace(shared, said):
    workspace = Workspace(shared / "ws")
    result = compare(f"{workspace.root}:2d-unet", str(workspace.root), workspace)
    assert result.cases == tuple(sorted(HELD_OUT))
    assert (result.patients, result.patients_known) == (4, True)
    assert result.what_a == "2d-unet, 4 held-out cases of 1 fold"
    assert result.what_b == "3d_fullres-unet, 4 held-out cases of 1 fold"
    assert result.mean["dice"].won_b == 4
    assert any("4 patients can never show a difference" in text for text in said)
    same = compare("2d-unet", "3d_fullres-unet", workspace)
    assert same.mean == result.mean
    assert same.labels == result.labels


def test_dice_by_hand(shared):
    """Label 1 of case 0 has 24 voxels: one lost gives 46/47, three lost 42/45."""
    result = compare("2d-unet", "3d_fullres-unet", Workspace(shared / "ws"))
    name = HELD_OUT[0]
    (found,) = (d for d in result.largest if d.case == name and d.label == next(iter(result.labels)))
    assert (found.a, found.b) == (pytest.approx(42 / 45), pytest.approx(46 / 47))


def test_a_folder_against_a_workspace_uses_its_references(shared):
    workspace = Workspace(shared / "ws")
    result = compare(str(shared / "worse"), str(workspace.root), workspace)
    assert result.mean["dice"].won_b == 4
    assert "4 segmentations, scored against the references of test" in result.what_a
    again = compare(str(shared / "worse"), str(workspace.root), workspace, CompareOptions(references=shared / "labels"))
    assert again.mean == result.mean


def test_folders_and_tables(shared, tmp_path, said):
    nowhere, labels = Workspace(tmp_path / "none"), "label1=1,label2=2"
    given = CompareOptions(references=shared / "labels", labels=labels, csv=tmp_path / "cases.csv")
    result = compare(str(shared / "worse"), str(shared / "better"), nowhere, given)
    assert result.mean["dice"].won_b == 4
    assert not result.patients_known
    assert "reference without a segmentation" in result.what_a  # the fifth
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == set(HELD_OUT)
    assert all(row["better"] == "B" for row in rows if row["metric"] == "dice")
    shutil.copytree(shared / "labels", tmp_path / "four")
    (tmp_path / "four" / f"{IDS[4]}.nii.gz").unlink()
    evaluate_folders(
        shared / "worse", tmp_path / "four", intake=parse_options(labels=labels), csv=tmp_path / "worse.csv"
    )
    table = compare(str(tmp_path / "worse.csv"), str(shared / "better"), nowhere, given)
    assert table.mean["dice"] == result.mean["dice"]
    assert "does not record its references" in table.notes[0]
    assert any(text.startswith("A: ") and "note: " in text for text in said)


def test_patients_of_a_table(shared, tmp_path):
    (tmp_path / "patients.csv").write_text("case,patient\n" + "".join(f"{name},one\n" for name in HELD_OUT[:3]))
    given = CompareOptions(references=shared / "labels", labels="a=1,b=2", patients=tmp_path / "patients.csv")
    result = compare(str(shared / "worse"), str(shared / "better"), Workspace(tmp_path), given)
    assert (result.patients, result.mean["dice"].patients) == (2, 2)


def test_cases_of_one_side_are_named(shared, tmp_path, said):
    files(tmp_path / "three", 1, HELD_OUT[:3])
    result = compare(str(tmp_path / "three"), "2d-unet", Workspace(shared / "ws"))
    assert result.only_b == (HELD_OUT[3],)
    assert any(f"not compared, only in B: 1 case: {HELD_OUT[3]}" in text for text in said)


def test_other_references_are_refused(shared, tmp_path):
    """The same labels in another file are the same; one voxel more is not."""
    shutil.copytree(shared / "labels", tmp_path / "labels")
    again = reference(0)
    nifti(tmp_path / "labels" / f"{IDS[0]}.nii.gz", again.astype(np.int16), GRID)
    given = CompareOptions(references=tmp_path / "labels")
    compare(str(shared / "worse"), "2d-unet", Workspace(shared / "ws"), given)
    again[0, 0, 0] = 1
    nifti(tmp_path / "labels" / f"{IDS[0]}.nii.gz", again, GRID)
    with pytest.raises(DataError, match=f"1 of 4 cases have different references: {IDS[0]}"):
        compare(str(shared / "worse"), "2d-unet", Workspace(shared / "ws"), given)


def test_other_meanings_are_refused(shared):
    workspace = Workspace(shared / "ws")
    first, second, *_ = THREE.values
    given = CompareOptions(labels=f"{first}=2,{second}=1")
    with pytest.raises(DataError, match=f"{second} is 1 in label files of .* and 2 in those of"):
        compare(str(shared / "worse"), "2d-unet", workspace, given)


@pytest.mark.parametrize(
    ("a", "b", "error", "what"),
    [
        ("nowhere", "2d-unet", UsageError, "nowhere does not exist"),
        ("ws:2d-fcn", "2d-unet", StateError, "no model 2d-fcn"),
        ("2d-unet", "2d-unet", UsageError, "A and B are both"),
        ("worse", "better", UsageError, "needs references"),
        ("other.txt", "2d-unet", UsageError, "not a CSV or TSV"),
        ("strange.csv", "2d-unet", DataError, "table of scores"),
        ("others.csv", "2d-unet", DataError, "no case in common: .* has x, "),
        ("labels.csv", "2d-unet", DataError, "no label in common"),
        ("torn.csv", "2d-unet", DataError, "row 3, column dice"),
        ("twice.csv", "2d-unet", DataError, "row 3: case x occurs twice"),
    ],
)
def test_what_cannot_be_compared(shared, monkeypatch, a, b, error, what):
    monkeypatch.chdir(shared)
    Path("other.txt").write_text("")
    Path("strange.csv").write_text("name,value\nx,1\n")
    label = next(iter(THREE.values))
    Path("others.csv").write_text(f"case,label,dice\nx,{label},0.5\n")
    Path("labels.csv").write_text(f"case,label,dice\n{HELD_OUT[0]},heart,0.5\n")
    Path("torn.csv").write_text(f"case,label,dice\nx,{label},0.5\ny,{label},0.5.1\n")
    Path("twice.csv").write_text(f"case,label,dice\nx,{label},0.5\nx,{label},0.6\n")
    workspace = Workspace(Path("nothing")) if (a, b) == ("worse", "better") else Workspace(Path("ws"))
    with pytest.raises(error, match=what):
        compare(a, b, workspace)


def test_an_unknown_metric_is_refused(shared):
    with pytest.raises(UsageError, match="--metric dise") as refused:
        compare("2d-unet", "3d_fullres-unet", Workspace(shared / "ws"), CompareOptions(metric="dise"))
    assert "they have dice, iou" in refused.value.remedy


def test_tables_with_the_columns_of_evaluate(tmp_path):
    (tmp_path / "scores.csv").write_text(
        "case,label,dice,hd95,presence,diagonal_mm\na,l,0,,missed,50.5\nb,l,0.5,1,found,50\n"
    )
    cases, diagonals = read_scores(tmp_path / "scores.csv")
    assert cases == {"a": {"l": {"dice": 0.0, "hd95": None}}, "b": {"l": {"dice": 0.5, "hd95": 1.0}}}
    assert diagonals == {"a": 50.5, "b": 50.0}


def test_on_the_command_line(shared, tmp_path, capsys):
    arguments = (
        "compare",
        "2d-unet",
        "3d_fullres-unet",
        "-w",
        shared / "ws",
        "--csv",
        tmp_path / "a.csv",
        "--workers",
        0,
    )
    code, said = outcome(capsys, *arguments)
    assert code == 0
    assert "mean over labels: no difference shown in Dice; B - A is +0.0" in said
    code, said = outcome(capsys, *arguments, "--references", tmp_path, "--labels", "a=1", "--metric", "iou", "--json")
    assert '"better": null' in said


def test_a_table_of_statistics_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "crossval.csv").write_text("fold,label,metric,mean,std,median\nall,l,dice,0.5,0.1,0.5\n")
    with pytest.raises(DataError, match=r"crossval\.csv holds statistics over all cases") as caught:
        compare(str(tmp_path / "crossval.csv"), "nowhere", Workspace(tmp_path / "none"))
    assert "name the workspace or the model" in caught.value.remedy
