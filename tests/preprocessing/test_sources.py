"""Files of a dataset since it was planned: unchanged, copied, corrected, gone, moved."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from autoseg.commands.parser import build_parser
from autoseg.datasets.dataset import Dataset, discover
from autoseg.errors import StateError
from autoseg.preprocessing import sources
from autoseg.preprocessing.sources import Sources, changed_lists, changed_since, measure, require_unchanged
from autoseg.records import load, save
from autoseg.workspace import Workspace


@pytest.fixture
def planned(tmp_path) -> tuple[Dataset, Workspace]:
    dataset, _ = discover(tiny.nnunet(tmp_path / "my data", ids=("a", "b", "c")))
    workspace = Workspace(tmp_path / "my work")
    save(workspace.sources, measure(dataset, ("--labels", "one=1,two=2"), workers=0))
    return dataset, workspace


def label_of(dataset: Dataset, number: int) -> Path:
    return Path(dataset.cases[number].label)


def test_files_as_they_were_are_not_read_again(planned, monkeypatch):
    dataset, workspace = planned
    monkeypatch.setattr(sources, "sha256", lambda path: pytest.fail(f"{path} was read"))
    require_unchanged(workspace, dataset, dataset.cases)


def test_a_copy_with_other_times_is_the_same_and_is_read_once(planned, monkeypatch):
    dataset, workspace = planned
    os.utime(label_of(dataset, 1), ns=(1, 1))
    require_unchanged(workspace, dataset, dataset.cases)
    monkeypatch.setattr(sources, "sha256", lambda path: pytest.fail(f"{path} was read"))
    require_unchanged(workspace, dataset, dataset.cases)


def test_a_corrected_label_is_named_with_the_command_that_plans_again(planned):
    dataset, workspace = planned
    tiny.nifti(label_of(dataset, 1), tiny.label(1, 2, 2))
    assert changed_since(workspace, dataset.cases) == [str(label_of(dataset, 1))]
    assert changed_since(workspace, dataset.cases[:1]) == []
    with pytest.raises(StateError, match=r"b\.nii\.gz is no longer as planned") as caught:
        require_unchanged(workspace, dataset, dataset.cases)
    assert caught.value.exit_code == 4
    typed = shlex.split(caught.value.remedy.removeprefix("plan again: ").partition(" (it lists")[0])
    options = build_parser().parse_args(typed[1:])
    assert (options.dataset, options.workspace) == (Path(dataset.root), workspace.root)
    assert options.labels == "one=1,two=2"


def test_the_same_size_and_time_are_not_asked_twice_but_another_size_is(planned):
    """A file of another size is another one, whatever its time says."""
    dataset, workspace = planned
    path = label_of(dataset, 0)
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed_since(workspace, dataset.cases) == [str(path)]


def test_a_moved_dataset_is_to_be_planned_in_its_new_place(planned, tmp_path):
    dataset, workspace = planned
    Path(dataset.root).rename(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"my data does not exist") as caught:
        require_unchanged(workspace, dataset, dataset.cases)
    expected = shlex.join(["autoseg", "plan", "NEWPLACE", "--labels", "one=1,two=2", "-w", str(workspace.root)])
    assert expected in caught.value.remedy


def test_a_file_that_is_gone_is_named(planned):
    dataset, workspace = planned
    label_of(dataset, 2).unlink()
    with pytest.raises(StateError, match=r"c\.nii\.gz is missing"):
        require_unchanged(workspace, dataset, dataset.cases)


def test_workspaces_of_older_versions_know_no_files(planned):
    dataset, workspace = planned
    workspace.sources.unlink()
    tiny.nifti(label_of(dataset, 1), tiny.label(1, 2, 2))
    require_unchanged(workspace, dataset, dataset.cases)
    assert changed_since(workspace, dataset.cases) == []


def test_the_record_survives_its_file(planned):
    dataset, workspace = planned
    known = load(Sources, workspace.sources)
    assert set(known.files) == {path for case in dataset.cases for path in (*case.images, case.label)}
    assert known == measure(dataset, ("--labels", "one=1,two=2"), workers=0)


# Lists of patients and folds


def test_a_list_of_patients_that_is_new_changed_or_gone_is_noticed(planned):
    """The folds were made from what it said; other columns, such as ages, say nothing about them."""
    dataset, workspace = planned
    path = Path(dataset.root) / "patients.csv"
    assert changed_lists(workspace) == []
    tiny.text(path, "case,patient,age\na,x,40\nb,x,41\n")
    assert changed_lists(workspace) == [str(path)]
    with pytest.raises(StateError, match=r"patients\.csv is no longer as planned: the folds were made from") as caught:
        require_unchanged(workspace, dataset, dataset.cases)
    assert "autoseg plan" in caught.value.remedy
    save(workspace.sources, measure(dataset, workers=0))
    tiny.text(path, "age;case;patient\n50;a;x\n51;b;x\n")  # the same patients
    require_unchanged(workspace, dataset, dataset.cases)
    tiny.text(path, "case,patient,age\na,x,40\nb,y,41\n")
    assert changed_lists(workspace) == [str(path)]
    path.unlink()
    assert changed_lists(workspace) == [str(path)]


def test_other_folds_are_noticed(planned):
    dataset, workspace = planned
    path = tiny.text(Path(dataset.root) / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}])
    assert changed_lists(workspace) == [str(path)]


def test_patients_that_a_pattern_names_follow_from_no_list(planned):
    dataset, workspace = planned
    save(workspace.sources, measure(dataset, ("--patient-regex", "(.)"), workers=0))
    tiny.text(Path(dataset.root) / "patients.csv", "case,patient\na,x\nb,x\n")
    assert changed_lists(workspace) == []


def test_of_a_table_of_images_every_byte_counts(planned, tmp_path):
    folder = Path(planned[0].root)
    rows = [f"imagesTr/{i}_0000.nii.gz,labelsTr/{i}.nii.gz,{i}" for i in "abc"]
    path = tiny.text(folder / "cases.csv", "\n".join(["image,label,patient", *rows]))
    dataset, workspace = discover(path)[0], Workspace(tmp_path / "of a table")
    save(workspace.sources, measure(dataset, workers=0))
    assert changed_lists(workspace) == []
    tiny.text(path, path.read_text().replace(",c\n", ",a\n").replace("gz,c", "gz,a"))
    assert changed_lists(workspace) == [str(path)]


def test_workspaces_planned_before_know_no_lists(planned):
    dataset, workspace = planned
    save(workspace.sources, replace(load(Sources, workspace.sources), lists={}))
    tiny.text(Path(dataset.root) / "patients.csv", "case,patient\na,x\nb,x\n")
    assert changed_lists(workspace) == []
