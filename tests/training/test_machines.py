"""`machines.json` of a fold: what steps were made with, also after a resume elsewhere or from an older file."""

import json

import pytest
import torch

from autoseg.errors import StateError
from autoseg.records import load, save
from autoseg.training.machines import FILE, Machine, Session, Sessions, machine_here, note_machine, sessions_of

CPU = torch.device("cpu")


@pytest.fixture
def elsewhere(monkeypatch):
    """A function that moves to a machine with another torch."""

    def move(torch_version: str) -> None:
        machine = Machine({"torch": torch_version}, {"cores": "2"})
        monkeypatch.setattr("autoseg.training.machines.machine_here", lambda device=None: machine)

    return move


def torches(folder) -> list[tuple[int, str]]:
    return [(one.after, one.machine.versions["torch"]) for one in sessions_of(folder)]


def test_this_machine_is_described():
    here = machine_here(CPU)
    assert here.versions["torch"] == torch.__version__
    assert set(here.versions) >= {"autoseg", "Python", "numpy"}
    assert f"threads: {torch.get_num_threads()}" in here.hardware["device"]
    assert set(machine_here().hardware) >= {"system", "cores", "memory"}


def test_a_resume_adds_a_machine_only_where_it_is_another(tmp_path, elsewhere):
    assert sessions_of(tmp_path) == ()
    for step, version in ((0, "1"), (10, "1"), (20, "2"), (30, "2")):
        elsewhere(version)
        note_machine(tmp_path, step, CPU)
    assert torches(tmp_path) == [(0, "1"), (20, "2")]
    elsewhere("3")
    note_machine(tmp_path, 15, CPU)  # from a checkpoint of before the move: those steps were made again
    assert torches(tmp_path) == [(0, "1"), (15, "3")]
    note_machine(tmp_path, 0, CPU)  # from scratch
    assert torches(tmp_path) == [(0, "3")]


def test_a_damaged_file_is_replaced_and_a_full_disk_is_a_warning(tmp_path, elsewhere, said, monkeypatch):
    elsewhere("1")
    (tmp_path / FILE).write_text("{")
    note_machine(tmp_path, 5, CPU)
    assert torches(tmp_path) == [(5, "1")]

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("autoseg.training.machines.save", full)
    elsewhere("2")
    note_machine(tmp_path, 9, CPU)
    assert said == [f"cannot write {tmp_path / FILE}: disk full"]
    assert torches(tmp_path) == [(5, "1")]


def test_the_record_comes_back(tmp_path):
    found = Sessions(1, (Session(0, machine_here(CPU)),))
    save(tmp_path / FILE, found)
    assert load(Sessions, tmp_path / FILE) == found
    plain = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(plain | {"version": 2}))
    with pytest.raises(StateError, match="version"):
        load(Sessions, tmp_path / FILE)
