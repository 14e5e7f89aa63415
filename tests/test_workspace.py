"""Files appear whole or not at all; a lock holds between processes and dies with them."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoseg.errors import StateError, StorageError
from autoseg.workspace import Workspace, lock, sha256, write_atomically, write_text

ROOT = Path(__file__).parents[1]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_path_is_where_the_documentation_says():
    workspace = Workspace(Path("w"))
    assert [
        str(path.as_posix())
        for path in (
            workspace.dataset,
            workspace.fingerprint,
            workspace.plan,
            workspace.splits,
            workspace.test,
            workspace.plan_for("swin_unet"),
            workspace.preprocessed("1mm"),
            workspace.previous_stage("3d_cascade", "unet"),
            workspace.model("3d_fullres", "unet"),
            workspace.fold("3d_fullres", "unet", 3),
            workspace.crossval("3d_fullres", "unet"),
        )
    ] == [
        "w/dataset.json",
        "w/fingerprint.json",
        "w/plan.json",
        "w/splits.json",
        "w/test.json",
        "w/plan-swin_unet.json",
        "w/preprocessed/1mm",
        "w/preprocessed/3d_cascade-unet",
        "w/models/3d_fullres-unet",
        "w/models/3d_fullres-unet/fold_3",
        "w/models/3d_fullres-unet/crossval.json",
    ]


def test_models_are_the_folders_with_a_fold_that_was_begun(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.models() == ()
    for name, network, fold in (("3d_fullres", "unet", 1), ("3d_fullres", "unet", 0), ("2d", "attention_unet", 4)):
        write_text(workspace.fold(name, network, fold) / "last.pt", "")
    (workspace.fold("3d_lowres", "unet", 0)).mkdir(parents=True)  # without a checkpoint
    write_text(tmp_path / "models" / "notes.txt", "")
    assert workspace.models() == (("2d", "attention_unet"), ("3d_fullres", "unet"))


# Writing


def test_written_file_holds_what_was_written_and_nothing_stays_beside_it(tmp_path):
    write_atomically(tmp_path / "deep" / "er" / "a", lambda file: file.write(b"\x00\xff"))
    assert content(tmp_path / "deep" / "er") == {"a": b"\x00\xff"}
    write_text(tmp_path / "deep" / "er" / "a", "grün\n")
    assert content(tmp_path / "deep" / "er") == {"a": "grün\n".encode()}


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_failure_while_writing_leaves_the_old_file(tmp_path, error):
    def fail(file):
        file.write(b"half")
        raise error

    write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", fail)
    assert content(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_disk_that_refuses_leaves_the_old_file(tmp_path, monkeypatch, call):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(call, refuse)
    with pytest.raises(StorageError, match="a cannot be written: No space left on device"):
        write_text(tmp_path / "a", "new")
    monkeypatch.undo()
    assert content(tmp_path) == {"a": b"old"}


def test_of_a_full_disk_it_is_said_how_much_it_needs(tmp_path, monkeypatch):
    def refuse(number):
        def call(*arguments):
            raise OSError(number, os.strerror(number))

        return call

    for number in (errno.ENOSPC, errno.EDQUOT):
        monkeypatch.setattr(os, "fsync", refuse(number))
        with pytest.raises(StorageError, match=r"written: .*: it needs 3\.0 MiB there, \d+\.\d MiB are free"):
            write_text(tmp_path / "a", 3 * 2**20 * "x")
    monkeypatch.setattr(os, "fsync", refuse(errno.EACCES))
    with pytest.raises(StorageError, match=r"a cannot be written: Permission denied\n"):
        write_text(tmp_path / "a", "x")
    assert content(tmp_path) == {}


def test_full_disk_in_the_middle_of_a_file_leaves_the_old_one(tmp_path):
    """The kernel refuses to let the file grow beyond 64 KiB, as a full disk would, after a part of it is written."""
    code = (
        "import resource, signal, sys, pathlib\n"
        "from autoseg.errors import StorageError\n"
        "from autoseg.workspace import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    write_text(pathlib.Path(sys.argv[1]), 'x' * 200000)\n"
        "except StorageError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    write_text(tmp_path / "a", "old")
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT)
    assert result.returncode == 5
    assert content(tmp_path) == {"a": b"old"}


def test_file_is_complete_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        order.append(("synced", os.fstat(descriptor).st_size))
        return fsync(descriptor)

    def replaced(self, target):
        order.append(("renamed", self.stat().st_size, self.parent == target.parent))
        return replace(self, target)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("pathlib.Path.replace", replaced)
    write_text(tmp_path / "a", "x" * 100)
    assert order == [("synced", 100), ("renamed", 100, True)]


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    write_text(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "file" / "a", "x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "file" / "deeper" / "a", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_link_is_replaced_and_its_target_untouched(tmp_path):
    write_text(tmp_path / "target", "precious")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    write_text(tmp_path / "a", "new")
    assert content(tmp_path) == {"target": b"precious", "a": b"new"}
    assert not (tmp_path / "a").is_symlink()


def test_threads_writing_one_path_do_not_mix(tmp_path):
    texts = [str(n) * 20000 for n in range(4)]
    all_open = threading.Barrier(len(texts))

    def fill(file, text):
        file.write(text[:10000].encode())
        all_open.wait(timeout=30)  # all files are half written at once
        file.write(text[10000:].encode())

    with ThreadPoolExecutor(len(texts)) as pool:
        jobs = [
            pool.submit(write_atomically, tmp_path / "a", lambda file, text=text: fill(file, text)) for text in texts
        ]
    assert [job.exception() for job in jobs] == [None] * len(texts)
    assert list(content(tmp_path)) == ["a"]
    assert (tmp_path / "a").read_text() in texts


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100000).hexdigest()
    (tmp_path / "b").write_bytes(b"")
    assert sha256(tmp_path / "b") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# Locks


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `tmp_path/lock` until it is killed."""
    code = (
        "import sys, pathlib\n"
        "from autoseg.workspace import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'holding'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_of_another_process_is_respected_and_dies_with_it(tmp_path, holder):
    with (
        pytest.raises(StateError, match=r"another process is training fold 0 \(.*lock is locked\)"),
        lock(tmp_path / "lock", "training fold 0"),
    ):
        pytest.fail("two processes hold the lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path / "lock", "training fold 0"):
        pass


def test_lock_is_free_again_when_its_holder_leaves(tmp_path, holder):
    holder.communicate("")  # the end of its input
    assert holder.returncode == 0
    with lock(tmp_path / "lock", "x"):
        pass


def test_lock_excludes_the_same_process_and_is_released_by_an_error(tmp_path):
    path = tmp_path / "deep" / "lock"
    with lock(path, "x"), pytest.raises(StateError), lock(path, "x"):
        pytest.fail("the lock is held twice")
    with pytest.raises(ZeroDivisionError), lock(path, "x"), lock(tmp_path / "another", "y"):
        raise ZeroDivisionError
    with lock(path, "x"):
        pass


def test_lock_that_cannot_be_made_is_a_storage_error(tmp_path):
    write_text(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="cannot be made"), lock(tmp_path / "file" / "lock", "x"):
        pytest.fail("there is no such folder")
