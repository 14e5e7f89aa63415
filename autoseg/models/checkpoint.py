"""Checkpoints: plain data and tensors, written whole or not at all, loaded without executing anything.

    FOLDER/ last.pt             the newest
            previous.pt         the one before
            checkpoints.sha256  the digests of both, in the format of `sha256sum -c`

A checkpoint is a dict of tensors, scalars, strings, lists and dicts. `torch.load(weights_only=True)` is the only way
to its tensors; there is no fallback. What is plain is in it as JSON, too (`header`).

**What a killed process can leave.** A new checkpoint is written beside the others, read back, entered in the digests,
and only then takes the name of the newest, whose file has got the name of the previous one before. Between any two of
these steps at least one whole checkpoint has a name, and its digest is in the list: `load_newest` finds it. Before the
last step, newest and previous may be two names of one file; if that is damaged, the one still to be renamed is read.

**Who waits.** A checkpoint of 250 MB takes a second or two to write and to read back, a twentieth of an epoch on a fast
GPU. `CheckpointWriter` does it in a thread, in the background of the following steps; they wait for the copy alone.
"""

import hashlib
import io
import os
import threading
import weakref
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from autoseg.errors import StateError, StorageError
from autoseg.messages import suggest
from autoseg.models.header import NEWEST, add_header
from autoseg.workspace import sha256, write_atomically, write_text

PREVIOUS, DIGESTS = "previous.pt", "checkpoints.sha256"
COMING = f".{NEWEST}.new"  # written, but not yet renamed to the newest


def save_checkpoint(path: Path, state: dict[str, Any]) -> str:
    """Write `state` atomically: a reader sees the old checkpoint or the new one, never half of one.

    Returns:
        The sha256 of what was written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    add_header(buffer, state)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), nbytes=buffer.getbuffer().nbytes)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def save_generation(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint of a folder; the one that was it stays as the previous.

    Raises:
        StorageError: the disk is full or refuses, or gives back other bytes than were written; the checkpoints that
            were there are untouched.
    """
    try:
        _save_generation(folder, state)
    except OSError as error:
        raise StorageError(
            f"cannot write a checkpoint to {folder}: {error.strerror or error}",
            remedy="check free space and permissions there, then rerun the same command",
        ) from error


def _save_generation(folder: Path, state: dict[str, Any]) -> None:
    newest, previous, coming = folder / NEWEST, folder / PREVIOUS, folder / COMING
    known = _digests(folder)
    stays = newest if newest.exists() else previous
    kept = known.get(stays.name)
    if stays.exists() and (kept is None or coming.exists()):
        kept = sha256(stays)  # there is no list, or it speaks of what was killed on its way
    digest = save_checkpoint(coming, state)
    if sha256(coming) != digest:
        coming.unlink()
        raise StorageError(f"{coming}: the bytes read back differ from those written", remedy="check the disk")
    try:
        write_text(folder / DIGESTS, f"{digest}  {NEWEST}\n" + (f"{kept}  {PREVIOUS}\n" if kept else ""))
    except StorageError:
        coming.unlink(missing_ok=True)  # on a full disk, nobody needs it
        raise
    if newest.exists():
        _keep(newest, previous)
    coming.replace(newest)


class CheckpointWriter:
    """Saves states as generations of a folder, each in a thread, one after the other.

    Call `wait` before the checkpoints are read, and before anybody else may write them. No process is forked while one
    is being written: it would keep what is written in its memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._error: Exception | None = None
        self._idle = threading.Event()  # not `Thread.join`: Ctrl-C in it makes Python take the thread for ended
        self._idle.set()
        _WRITERS.add(self)

    @property
    def failed(self) -> str:
        """Why a state could not be saved, or "": the next `save` writes before it returns, or raises."""
        if self._error is None:
            return ""
        return str(self._error).partition("\n")[0] or type(self._error).__name__

    def save(self, state: dict[str, Any]) -> None:
        """Copy a state, and have the copy saved. What becomes of `state` afterwards changes nothing.

        Raises:
            StorageError: the state before could not be saved, nor can this one; see `save_generation`.
        """
        self.settle()
        if self._error:
            self._error = None
            save_generation(self.folder, state)
            return
        copy = copied(state)
        self._idle.clear()
        try:
            threading.Thread(target=self._write, args=(copy,), name="checkpoint").start()
        except RuntimeError:  # there are too many threads
            self._write(copy)

    def wait(self) -> None:
        """Wait until everything is saved.

        Raises:
            StorageError: it could not be saved, see `save_generation`.
        """
        self.settle()
        error, self._error = self._error, None
        if error:
            raise error

    def settle(self) -> None:
        """Wait until nothing is being written, whatever became of it."""
        self._idle.wait()

    def _write(self, state: dict[str, Any]) -> None:
        try:
            save_generation(self.folder, state)
        except Exception as error:
            self._error = error
        finally:
            self._idle.set()


_WRITERS: weakref.WeakSet[CheckpointWriter] = weakref.WeakSet()


def _settle_all() -> None:
    for writer in list(_WRITERS):
        writer.settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_settle_all)


def remove_leftovers(folder: Path) -> None:
    """Delete what writers left behind that were killed; nobody may be writing to the folder."""
    for path in folder.glob(f".*{NEWEST}*.part"):
        path.unlink(missing_ok=True)


def copied(plain: Any) -> Any:
    """Plain data and tensors that share no memory with these; all tensors on the CPU."""
    if isinstance(plain, torch.Tensor):
        return plain.detach().to("cpu", copy=True)
    if isinstance(plain, dict):
        return {key: copied(value) for key, value in plain.items()}
    if isinstance(plain, (list, tuple)):
        return type(plain)(map(copied, plain))
    return plain


def load_newest(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, str]:
    """Read the newest checkpoint of a folder that is whole.

    A damaged one is set aside under another name, so that nothing replaces the good one.

    Returns:
        The state, or None where there is no checkpoint; and what the user should know, or "".

    Raises:
        StateError: there are checkpoints, and all are damaged.
    """
    damaged: list[StateError] = []
    for name in (NEWEST, PREVIOUS, COMING):
        path = folder / name
        if not path.exists() or (name == COMING and not damaged):
            continue
        try:
            _require_known(path)
            state = load_checkpoint(path, device)
        except StateError as error:
            damaged.append(error)
            continue
        if damaged:
            with suppress(FileNotFoundError):  # another rank was faster
                (folder / NEWEST).replace(folder / f"{NEWEST}.damaged")
                if name == COMING:
                    path.replace(folder / NEWEST)
            used = "previous checkpoint" if name == PREVIOUS else "checkpoint that was to replace it"
            return state, f"{damaged[0].what}; it is renamed, and the {used} is used"
        return state, ""
    if damaged:
        raise damaged[0]
    return None, ""


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    """Read one checkpoint file onto `device`.

    Args:
        mapped: leave the tensors in the file until they are used, unverified: for a look at the plain data.

    Raises:
        StateError: the file is missing, damaged, or holds more than plain data and tensors.
    """
    try:
        if mapped:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with zipfile.ZipFile(path) as archive:  # torch ignores the checksums it writes
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise StateError(f"{path} does not exist", remedy="train this fold first: " + suggest("train")) from None
    except (MemoryError, torch.OutOfMemoryError):  # says nothing about the file
        raise
    except Exception as error:  # damage surfaces as almost anything: KeyError, UnicodeDecodeError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch's own words advise to load it all the same
            reason = "it holds other objects than plain data and tensors"
        raise _damaged(path, reason) from error


def _keep(newest: Path, previous: Path) -> None:
    """Give the newest checkpoint the name of the previous one, too; who reads the newest at this moment, finds it."""
    link = previous.with_name(f".{previous.name}.new")
    link.unlink(missing_ok=True)
    try:
        os.link(newest, link)
        link.replace(previous)
    except OSError:  # a file system without links
        newest.replace(previous)


def _require_known(path: Path) -> None:
    """Raise StateError for a file whose digest is in no line of the list; without a list the archive's own must do."""
    known = set(_digests(path.parent).values())
    if known and sha256(path) not in known:
        raise _damaged(path, f"its sha256 is not among those in {DIGESTS}")


def _digests(folder: Path) -> dict[str, str]:
    """File name -> sha256, as listed; empty if there is no list."""
    with suppress(OSError):
        lines = (folder / DIGESTS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return {}


def _damaged(path: Path, reason: str) -> StateError:
    return StateError(
        f"{path} cannot be read as a checkpoint: {reason}",
        remedy="restore it from a copy, or delete it and train the fold again",
    )
