"""Files of a dataset since it was planned: unchanged, copied, corrected, gone, moved."""

import os
import shlex
from pathlib import Path

import pytest

import tiny
from autoseg.commands.parser import build_parser
from autoseg.datasets.dataset import Dataset, discover
from autoseg.errors import StateError
from autoseg.preprocessing import sources
from autoseg.preprocessing.sources import Sources, changed_since, measure, require_unchanged
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
