"""Checkpoints: what goes in comes out, nothing is executed, damage is named, and a failed write costs nothing."""

import contextlib
import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoseg.errors import StateError, StorageError
from autoseg.models import checkpoint
from autoseg.models.checkpoint import (
    CheckpointWriter,
    load_checkpoint,
    load_newest,
    remove_leftovers,
    save_checkpoint,
    save_generation,
)


def state_of_a_fold(seed=0):
    """What training stores: tensors of several dtypes, nested plain data, an optimiser's state."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "version": 1,
        "finished": False,
        "plan": {"channels": ["CT"], "spacing": [1.0, 0.5, 0.5], "nothing": None, "name": "Häßlich"},
        "position": {"epoch": 3, "seconds": 1.25},
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": [torch.randn(4, 5, generator=generator), torch.randn(2, generator=generator).bfloat16()],
        "counts": torch.arange(4, dtype=torch.int64),
        "history": [{"loss": -0.5, "dice": [None, 0.25]}, {"loss": float("inf"), "dice": []}],
    }


def same(a, b):
    """Whether two states are equal to the bit, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "last.pt"  # the folder is made
    state = state_of_a_fold()
    save_checkpoint(path, state)
    assert same(load_checkpoint(path), state)
    assert names_in(path.parent) == ["last.pt"]  # nothing is left over


def test_round_trip_notices_a_difference():
    state = state_of_a_fold()
    assert same(state, state_of_a_fold() | {k: state[k] for k in ("network", "optimizer")})
    for changed in (
        state | {"finished": 0},
        state | {"counts": state["counts"].int()},
        state | {"history": state["history"][:1]},
        state | {"average": [state["average"][0] + 1e-6, state["average"][1]]},
    ):
        assert not same(state, changed)


def test_loads_onto_the_device_asked_for(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weight": torch.ones(3)})
    assert load_checkpoint(path, "meta")["weight"].device.type == "meta"
    assert load_checkpoint(path)["weight"].device.type == "cpu"


# ---- nothing is executed ----


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious_files(tmp_path):
    """The same attack as a checkpoint of today, as one of torch's old format, and as a plain pickle."""
    state = {"network": {"weight": torch.ones(2)}, "history": [Canary(tmp_path / "canary")]}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(state["history"]))
    return [tmp_path / name for name in ("zip.pt", "legacy.pt", "pickle.pt")]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    canary = tmp_path / "canary"
    for path in malicious_files(tmp_path):
        with pytest.raises(StateError) as error:
            load_checkpoint(path)
        assert str(path) in error.value.what
        assert "can still be loaded" not in error.value.what  # torch's advice for trusted files
        assert not canary.exists(), path.name


def test_objects_are_refused_in_plain_words(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"network": nn.Linear(1, 1)})
    with pytest.raises(StateError, match=r"last\.pt cannot be read .*: it holds other objects than plain data"):
        load_checkpoint(path)


def test_the_canary_would_sing(tmp_path):
    # the attack works on an unsafe reader: the test above can fail
    canary = tmp_path / "canary"
    for path in malicious_files(tmp_path)[:2]:
        torch.load(path, weights_only=False)
        assert canary.is_dir()
        canary.rmdir()


# ---- damage ----


def assert_refused(path):
    with pytest.raises(StateError) as error:
        load_checkpoint(path)
    assert str(path) in error.value.what
    assert error.value.remedy


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(StateError, match=r"last\.pt does not exist") as error:
        load_checkpoint(tmp_path / "last.pt")
    assert "autoseg train" in error.value.remedy


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state_of_a_fold())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n",
        b"<!DOCTYPE html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        bytes(1000),
        pickle.dumps({"version": 1}),
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert_refused(path)


def test_other_archives_and_folders_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "folder").mkdir()
    assert_refused(tmp_path / "other.zip")
    assert_refused(tmp_path / "folder")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A checkpoint, its state, and the bytes of its file."""
    path = tmp_path_factory.mktemp("damage") / "last.pt"
    state = {"weights": torch.arange(300.0), "epoch": 3, "name": "3d_fullres"}
    save_checkpoint(path, state)
    return path, state, path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_is_noticed_or_harmless(intact, share, change):
    # bytes of padding and dates are harmless; a weight, a name or a number is not
    path, state, whole = intact
    content = bytearray(whole)
    content[int(share * len(content))] ^= change
    path.write_bytes(content)
    with contextlib.suppress(StateError):
        assert same(load_checkpoint(path), state)


def test_every_changed_weight_is_noticed(intact):
    path, state, whole = intact
    start = whole.index(state["weights"].numpy().tobytes())
    for offset in range(0, 1200, 50):
        content = bytearray(whole)
        content[start + offset] ^= 1
        path.write_bytes(content)
        assert_refused(path)


def test_lack_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        load_checkpoint(path)


# ---- failed writes ----


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    old = state_of_a_fold(seed=1)
    save_checkpoint(path, old)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"last\.pt cannot be written: No space left"):
        save_checkpoint(path, state_of_a_fold(seed=2))
    assert same(load_checkpoint(path), old)
    assert names_in(tmp_path) == ["last.pt"]


def test_a_state_that_cannot_be_stored_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": 2, "schedule": lambda progress: 1 - progress})
    assert load_checkpoint(path) == {"epoch": 1}
    assert names_in(tmp_path) == ["last.pt"]


def test_a_new_checkpoint_replaces_the_old_one(tmp_path):
    path = tmp_path / "last.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch})
        assert load_checkpoint(path) == {"epoch": epoch}


def test_a_disk_that_is_full_when_the_digests_are_written_leaves_no_file_behind(tmp_path, monkeypatch):
    for epoch in (1, 2):
        save_generation(tmp_path, {"epoch": epoch})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size < 1000:  # the list, not a checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"checkpoints\.sha256 cannot be written: .*: it needs 0\.0 MiB there"):
        save_generation(tmp_path, {"epoch": 3})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    save_generation(tmp_path, {"epoch": 3})
    assert epoch_of(tmp_path) == (3, "")
    assert load_checkpoint(tmp_path / "previous.pt") == {"epoch": 2}


# ---- generations ----


def epoch_of(folder):
    state, warning = load_newest(folder)
    return None if state is None else state["epoch"], warning


def test_the_newest_and_the_one_before_are_kept(tmp_path):
    assert epoch_of(tmp_path) == (None, "")
    for epoch in (1, 2, 3):
        save_generation(tmp_path, {"epoch": epoch})
        assert epoch_of(tmp_path) == (epoch, "")
    assert load_checkpoint(tmp_path / "previous.pt") == {"epoch": 2}
    assert names_in(tmp_path) == ["checkpoints.sha256", "last.pt", "previous.pt"]


def test_the_digests_are_those_of_the_files(tmp_path):
    for epoch in (1, 2):
        save_generation(tmp_path, {"epoch": epoch})
    expected = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}" for name in ("last.pt", "previous.pt")
    ]
    assert (tmp_path / "checkpoints.sha256").read_text().splitlines() == expected


def test_a_damaged_newest_is_set_aside_and_the_one_before_used(tmp_path):
    for epoch in (1, 2):
        save_generation(tmp_path, {"epoch": epoch})
    newest = tmp_path / "last.pt"
    newest.write_bytes(newest.read_bytes()[:-7])
    epoch, warning = epoch_of(tmp_path)
    assert epoch == 1
    assert "last.pt cannot be read" in warning
    assert "sha256" in warning
    save_generation(tmp_path, {"epoch": 3})  # must not push the good one out
    assert epoch_of(tmp_path) == (3, "")
    assert load_checkpoint(tmp_path / "previous.pt") == {"epoch": 1}


def test_a_whole_checkpoint_of_another_fold_is_not_taken_for_ours(tmp_path):
    save_generation(tmp_path, {"epoch": 1})
    save_checkpoint(tmp_path / "last.pt", {"epoch": 7})
    with pytest.raises(StateError, match="sha256 is not among those"):
        load_newest(tmp_path)


def test_without_digests_the_archive_vouches_for_itself(tmp_path):
    save_checkpoint(tmp_path / "last.pt", {"epoch": 4})  # and no list beside it
    assert epoch_of(tmp_path) == (4, "")


class Killed(BaseException):
    """Nothing after this runs, as after SIGKILL."""


def save_and_die(folder, monkeypatch, epoch, call):
    """Save, and die just before the `call`-th change of the folder; returns the number of changes that were begun."""
    count = 0

    def dying(function):
        def run(*arguments):
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            return function(*arguments)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync))  # every change goes through one of these
        patch.setattr(Path, "replace", dying(Path.replace))
        with contextlib.suppress(Killed):
            save_generation(folder, {"epoch": epoch})
    return count


CHANGES = 6  # two files written and renamed, two generations renamed


@pytest.mark.parametrize("first", range(1, CHANGES + 2))
@pytest.mark.parametrize("second", range(1, CHANGES + 2))
def test_killed_between_any_two_steps_of_saving_one_checkpoint_is_whole(tmp_path, monkeypatch, first, second):
    save_generation(tmp_path, {"epoch": 1})
    save_generation(tmp_path, {"epoch": 2})
    least = 2
    for epoch, call in ((3, first), (4, second)):
        count = save_and_die(tmp_path, monkeypatch, epoch, call)
        assert count == min(call, CHANGES)
        reached, warning = epoch_of(tmp_path)
        assert least <= reached <= epoch
        assert reached == epoch or call <= CHANGES
        assert not warning
        least = reached
    save_generation(tmp_path, {"epoch": 5})
    assert epoch_of(tmp_path) == (5, "")
    listed = [line.partition("  ")[::2] for line in (tmp_path / "checkpoints.sha256").read_text().splitlines()]
    assert listed == [(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), name) for _, name in listed]
    assert [name for _, name in listed] == ["last.pt", "previous.pt"]
    assert load_checkpoint(tmp_path / "previous.pt") == {"epoch": least}


def test_one_damaged_file_never_costs_all_wherever_saving_was_killed(tmp_path, monkeypatch):
    """Newest and previous may be two names of one file then, which is damaged under both."""
    shared = 0
    for call in range(1, CHANGES + 2):
        folder = tmp_path / str(call)
        folder.mkdir()
        save_generation(folder, {"epoch": 1})
        save_generation(folder, {"epoch": 2})
        save_and_die(folder, monkeypatch, 3, call)
        newest, previous = folder / "last.pt", folder / "previous.pt"
        shared += newest.samefile(previous)
        newest.write_bytes(newest.read_bytes()[:-7])
        reached, warning = epoch_of(folder)
        assert reached in (1, 2, 3)
        assert "it is renamed, and the" in warning
        save_generation(folder, {"epoch": 4})
        assert epoch_of(folder) == (4, "")
    assert shared == 1


def test_without_links_the_generations_are_kept_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    for epoch in (1, 2, 3):
        save_generation(tmp_path, {"epoch": epoch})
    assert epoch_of(tmp_path) == (3, "")
    assert load_checkpoint(tmp_path / "previous.pt") == {"epoch": 2}


def test_a_reader_always_finds_a_newest(tmp_path, monkeypatch):
    save_generation(tmp_path, {"epoch": 1})
    real, seen = Path.replace, []

    def look(source, target):
        result = real(source, target)
        seen.append(load_checkpoint(tmp_path / "last.pt")["epoch"])
        return result

    monkeypatch.setattr(Path, "replace", look)
    save_generation(tmp_path, {"epoch": 2})
    assert seen == [1, 1, 1, 2]


def test_bytes_that_come_back_changed_are_noticed(tmp_path, monkeypatch):
    save_generation(tmp_path, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("autoseg.models.checkpoint.sha256", lambda path: "0" * 64)
        with pytest.raises(StorageError, match="the bytes read back differ"):
            save_generation(tmp_path, {"epoch": 2})
    assert epoch_of(tmp_path) == (1, "")
    assert names_in(tmp_path) == ["checkpoints.sha256", "last.pt"]


# ---- written beside the training


def test_a_state_is_saved_as_it_was(tmp_path):
    """The training continues changing it in place, while it is written."""
    weights, history = torch.ones(3), [{"epoch": 1, "pseudo_dice": [0.5]}]
    state = {"network": {"w": weights}, "history": history, "average": [weights], "position": (1, 2.5)}
    begun = threading.Event()

    def late(folder, what):
        begun.wait(10)
        save_generation(folder, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_generation", late)
        writer = CheckpointWriter(tmp_path)
        writer.save(state)
        weights.zero_()
        history[0]["pseudo_dice"].append(0.7)
        history.append({"epoch": 2})
        begun.set()
        writer.wait()
    saved, _ = load_newest(tmp_path)
    assert saved["network"]["w"].tolist() == saved["average"][0].tolist() == [1, 1, 1]
    assert saved["history"] == [{"epoch": 1, "pseudo_dice": [0.5]}]
    assert saved["position"] == (1, 2.5)


def test_states_are_saved_one_after_the_other(tmp_path, monkeypatch):
    order, gate = [], threading.Event()

    def slow(folder, state):
        gate.wait(10)
        order.append(state["step"])

    monkeypatch.setattr(checkpoint, "save_generation", slow)
    writer = CheckpointWriter(tmp_path)
    writer.save({"step": 1})
    assert order == []  # the training continues
    threading.Timer(0.2, gate.set).start()
    writer.save({"step": 2})
    assert order[0] == 1
    writer.wait()
    writer.wait()
    assert order == [1, 2]


def full(folder, state):
    raise StorageError("the disk is full")


def test_what_could_not_be_saved_is_told_once(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_generation", full)
        writer.save({"step": 1})
        with pytest.raises(StorageError, match="the disk is full"):
            writer.wait()
        writer.wait()
        writer.save({"step": 2})
        writer.settle()
        assert writer.failed == "the disk is full"
        with pytest.raises(StorageError, match="the disk is full"):
            writer.save({"step": 3})
    writer.save({"step": 4})
    writer.wait()
    assert load_newest(tmp_path)[0] == {"step": 4}


def test_after_a_state_that_could_not_be_saved_the_next_one_is(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_generation", full)
        writer.save({"step": 1})
        writer.settle()
    writer.save({"step": 2})
    assert load_newest(tmp_path)[0] == {"step": 2}  # at once
    assert not writer.failed
    writer.wait()


def test_want_of_memory_is_a_failure_too(tmp_path, monkeypatch):
    """A MemoryError has no text of its own."""
    monkeypatch.setattr(checkpoint, "save_generation", lambda *_: (_ for _ in ()).throw(MemoryError()))
    writer = CheckpointWriter(tmp_path)
    assert writer.failed == ""
    writer.save({"step": 1})
    writer.settle()
    assert writer.failed == "MemoryError"


def test_no_process_is_forked_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """It would keep a copy of the state in its memory for as long as it lives."""
    order, gate = [], threading.Event()

    def slow(folder, state):
        gate.wait(10)
        order.append("written")

    monkeypatch.setattr(checkpoint, "save_generation", slow)
    writer = CheckpointWriter(tmp_path)
    writer.save({"step": 1})
    threading.Timer(0.2, gate.set).start()
    process = multiprocessing.get_context("fork").Process(target=order.append, args=("in the child",))
    process.start()
    order.append("forked")
    process.join()
    assert order == ["written", "forked"]


def test_an_interrupted_wait_can_be_repeated(tmp_path, monkeypatch):
    """Ctrl-C while it waits, once; the lock of the fold must not be given up before the checkpoint is there."""
    gate = threading.Event()
    monkeypatch.setattr(checkpoint, "save_generation", lambda folder, state: gate.wait(60))
    writer = CheckpointWriter(tmp_path)
    writer.save({"step": 1})
    main = threading.main_thread().ident
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    try:
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not gate.is_set()
    threading.Timer(0.2, gate.set).start()  # it is still being written when the second wait begins
    writer.wait()
    assert gate.is_set()


def test_what_killed_writers_left_is_removed(tmp_path):
    save_generation(tmp_path, {"step": 1})
    (tmp_path / ".last.pt.new.12-34.part").write_bytes(b"half")
    (tmp_path / "..last.pt.new.12-35.part").write_bytes(b"half")
    kept = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".part")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert load_newest(tmp_path)[0] == {"step": 1}


def test_a_refusing_file_system_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "sha256", refuse)
    with pytest.raises(StorageError, match=f"cannot write a checkpoint to {tmp_path}: Input/output error"):
        save_generation(tmp_path, {"step": 1})
