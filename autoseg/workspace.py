"""Every path autoseg writes, and how it writes: whole files or none.

    WORKSPACE/ dataset.json sources.json fingerprint.json plan.json plan-<network>.json splits.json test.json
      leakage.json report.html
      preprocessed/<data>/<case>.{image.npy,target.npy,locations.npy,json} manifest.sha256
      preprocessed/<cascade>-<network>/<case>.{npy,json}
      models/<configuration>-<network>/ crossval.json crossval.csv decision.json speeds.json expected_dice.json
        groups.json shifts.json calibration.json label_errors.json
        fold_<k>/{last.pt,previous.pt,checkpoints.sha256,history.jsonl,log.txt,progress.png,tensorboard/,validation/,
          inference.json,machines.json}; fold_full/ of the model that trains on all cases
      learning_curve.json learning_curve/share_<percent>/models/<configuration>-<network>/fold_<k>/

A file appears under its final name only when it is complete: it is written beside its destination (never in /tmp, which
may be another file system), flushed to disk, and renamed. A lock is a kernel lock, so a dead process never blocks.
"""

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from filelock import FileLock, Timeout

from autoseg.errors import StateError, StorageError

FULL: Literal["full"] = "full"  # the fold that trains on all cases and holds none out
FoldName = int | Literal["full"]  # one of the partitions, counted from 0, or FULL


@dataclass(frozen=True)
class Workspace:
    """The folder of one dataset: where each stage puts its results."""

    root: Path
    share: str | None = None  # percent of the patients, whose models are kept apart from those of all: see `of_share`

    def of_share(self, share: str) -> "Workspace":
        """The same dataset, plan and preprocessed cases; models that are trained on a share of the patients."""
        return Workspace(self.root, share)

    @property
    def trained(self) -> Path:
        """Folder that holds `models`."""
        return self.root if self.share is None else self.root / "learning_curve" / f"share_{self.share}"

    @property
    def learning_curve(self) -> Path:
        """Dice by the number of patients trained on."""
        return self.root / "learning_curve.json"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def sources(self) -> Path:
        """Size, time and digest of the dataset's files, as they were when it was planned."""
        return self.root / "sources.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    def plan_for(self, network: str) -> Path:
        """The plan for another network than the one of `plan`."""
        return self.root / f"plan-{network}.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def test(self) -> Path:
        """Scores of the held-out test set by the one model that was asked to; written once."""
        return self.root / "test.json"

    @property
    def leakage(self) -> Path:
        """Nearly identical images of different patients, and the folds they are in."""
        return self.root / "leakage.json"

    @property
    def report(self) -> Path:
        """The page about everything that is in the workspace."""
        return self.root / "report.html"

    def preprocessed(self, data: str) -> Path:
        """Folder of one preprocessed copy of the data; configurations that need the same copy share it."""
        return self.root / "preprocessed" / data

    def previous_stage(self, configuration: str, network: str) -> Path:
        """Folder of what a cascade reads beside its data: its previous stage's segmentations of the training cases."""
        return self.root / "preprocessed" / f"{configuration}-{network}"

    def models(self) -> tuple[tuple[str, str], ...]:
        """Configuration and network of every model with a fold that was begun, sorted."""
        begun = {path.parent.parent.name for path in self.trained.glob("models/*-*/fold_*/last.pt")}
        names = (name.rpartition("-") for name in sorted(begun))
        return tuple((configuration, network) for configuration, _, network in names)

    def model(self, configuration: str, network: str) -> Path:
        return self.trained / "models" / f"{configuration}-{network}"

    def expected_dice(self, configuration: str, network: str) -> Path:
        """What Dice a model's segmentations are expected to have, learnt from its held-out predictions."""
        return self.model(configuration, network) / "expected_dice.json"

    def crossval(self, configuration: str, network: str) -> Path:
        """Scores of a model's held-out predictions."""
        return self.model(configuration, network) / "crossval.json"

    def label_errors(self, configuration: str, network: str) -> Path:
        """Training cases by likely label error, according to a model's held-out predictions."""
        return self.model(configuration, network) / "label_errors.json"

    def statistics(self, configuration: str, network: str) -> Path:
        """Statistics of the same scores as a table: a row per label and metric, over all cases and per fold."""
        return self.model(configuration, network) / "crossval.csv"

    def decision(self, configuration: str, network: str) -> Path:
        """What was chosen on held-out cases: which models predict, by which decision rule, what is corrected after."""
        return self.model(configuration, network) / "decision.json"

    def speeds(self, configuration: str, network: str) -> Path:
        """What each speed of `predict` costs and loses with a model."""
        return self.model(configuration, network) / "speeds.json"

    def calibration(self, configuration: str, network: str) -> Path:
        """How right a model is on held-out cases where it is how sure."""
        return self.model(configuration, network) / "calibration.json"

    def clicks(self, configuration: str, network: str) -> Path:
        """What clicks bring on held-out cases of a model with prompts."""
        return self.model(configuration, network) / "clicks.json"

    def groups(self, configuration: str, network: str) -> Path:
        """Scores of a model's held-out predictions by group, such as the site of a case."""
        return self.model(configuration, network) / "groups.json"

    def shifts(self, configuration: str, network: str) -> Path:
        """What a model's Dice loses under noise, blur and other changes of the images."""
        return self.model(configuration, network) / "shifts.json"

    def fold(self, configuration: str, network: str, fold: FoldName) -> Path:
        return self.model(configuration, network) / f"fold_{fold}"


def is_workspace(folder: Path) -> bool:
    """Whether a dataset was planned into this folder."""
    workspace = Workspace(folder)
    return all(path.is_file() for path in (workspace.plan, workspace.splits, workspace.fingerprint))


def fold_of(folder: Path) -> FoldName | None:
    """The fold whose folder this is: 0 of `fold_0`, FULL of `fold_full`; None for `fold_0.before-...` and others."""
    name = folder.name.removeprefix("fold_")
    if name == folder.name:
        return None
    return FULL if name == FULL else int(name) if name.isascii() and name.isdecimal() else None


def fold_order(fold: FoldName) -> tuple[bool, int]:
    """Key that sorts folds: by number, FULL last."""
    return (True, 0) if fold == FULL else (False, fold)


def set_aside_since(fold: Path, began: float) -> bool:
    """Whether a fold of this folder was set aside by --restart since a time (of `time.time`), to the second."""
    earliest = aside_name(fold, began)
    return any(path.name >= earliest for path in fold.parent.glob(f"{fold.name}.before-*"))


def aside_name(fold: Path, when: float | None = None) -> str:
    """The name that the folder of a fold gets when it is set aside, now or at a time (of `time.time`)."""
    return f"{fold.name}.before-{time.strftime('%Y%m%d-%H%M%S', time.localtime(when))}"


def begun_folds(model: Path) -> dict[FoldName, Path]:
    """Folds in the folder of a model that have a checkpoint -> their folders, by number, FULL last."""
    found = {fold_of(path.parent): path.parent for path in model.glob("fold_*/last.pt")}
    return {fold: found[fold] for fold in sorted((f for f in found if f is not None), key=fold_order)}


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, nbytes: int = 0) -> None:
    """Let `write` fill a file beside `path`, flush it to disk and rename it to `path`.

    Args:
        nbytes: how much will be written, for the message of a full disk; 0: not known.

    Raises:
        StorageError: the disk is full or refuses; what stood under `path` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {refusal(error, path.parent, nbytes)}",
            remedy="check free space and permissions there, or choose another folder",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def refusal(error: OSError, folder: Path, nbytes: int = 0) -> str:
    """Why the system does not write a file to a folder; of a full disk, how much it needs and has."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not nbytes:
        return reason
    needs = f"{reason}: it needs {nbytes / 2**20:.1f} MiB there"
    with suppress(OSError):
        return f"{needs}, {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    return needs


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    content = text.encode("utf-8")
    write_atomically(path, lambda file: file.write(content), nbytes=len(content))


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock file while the body runs.

    Args:
        wait: until another process that holds it is done, instead of refusing.

    Raises:
        StateError: another process holds it; the message says what it is doing (`what`).
        StorageError: the lock file cannot be made.
    """
    guard = FileLock(path)
    try:
        guard.acquire(timeout=-1 if wait else 0)  # makes the folder, too
    except Timeout:
        raise StateError(
            f"another process is {what} ({path} is locked)", remedy="wait for it to finish, or stop it"
        ) from None
    except OSError as error:  # Timeout is one too
        raise StorageError(
            f"{path} cannot be made: {error.strerror or error}", remedy="choose a folder you may write to"
        ) from error
    try:
        yield
    finally:
        guard.release()
