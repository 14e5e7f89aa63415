"""Which segmentations of a folder are finished, by which model, of which images: `predict --resume` verifies them.

    OUT/ autoseg_predictions.json            cases of a plain `predict`
         autoseg_predictions_2_of_8.json     cases of `predict --shard 2/8`

A process writes its own file alone, and a lock guards each, so that shards that end at the same moment lose nothing. An
entry is made after its label file was written and read back; where there is none, the case is segmented again.
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from autoseg.datasets.dataset import Case
from autoseg.errors import AutosegError, StateError
from autoseg.imaging.formats.readers import READERS, ending_of, is_dicom, read_geometry
from autoseg.imaging.geometry import corner_distance_voxels
from autoseg.inference.options import InferenceOptions
from autoseg.inference.shards import Shard
from autoseg.records import load, save
from autoseg.rules import anything, exactly
from autoseg.workspace import lock, sha256

VERSION = 1
STEM = "autoseg_predictions"
SECONDS_BETWEEN_SAVES = 2.0  # of the record: what a killed process finished since is segmented again
SAME_PLACE = 1e-3  # voxels by which corners may differ
Text = Annotated[str, anything("any text")]


@dataclass(frozen=True)
class FileState:
    """What a file was."""

    name: Text
    size: int  # bytes
    modified_ns: int  # as the file system says
    sha256: Text

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of a file, or of all files in a folder of slices: of all their bytes."""
        return cls(path.name, *_size_and_time(path), _digest(path))

    def holds_for(self, path: Path) -> bool:
        """Whether a file still has these bytes; they are read where its time differs."""
        with suppress(OSError):
            size, modified_ns = _size_and_time(path)
            return size == self.size and (modified_ns == self.modified_ns or _digest(path) == self.sha256)
        return False


@dataclass(frozen=True)
class Made:
    """What decides the voxels of a segmentation beside its image."""

    model: Text  # digest of the ensemble, `autoseg.models.identity`
    step: float
    mirror_axes: tuple[int, ...]  # (Z, Y, X) as the plan counts them
    tile: float
    top_k: float | None = None  # share of a cascade's tiles that were computed
    even_flips: bool = False  # of these axes, an even number at a time
    extras: tuple[Text, ...] = ()  # what else was written for each case

    def difference(self, other: "Made") -> str:
        """What differs, in words; empty if nothing does."""
        if self.model != other.model:
            return "another model made it"
        if self.extras != other.extras:
            return "other files were written with it"
        return "" if self == other else "other options made it"


@dataclass(frozen=True)
class Finished:
    """One segmentation that is complete."""

    output: FileState
    images: tuple[FileState, ...]  # one per channel
    made: Made


@dataclass(frozen=True)
class Predictions:
    """The segmentations of a folder that one process, or several after each other, finished."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of these records that this autoseg reads")]
    cases: dict[Text, Finished] = field(default_factory=dict)


class Ledger:
    """The record of an output folder: what is finished in it, and what this process finishes.

    Args:
        out: the folder; it may not exist yet.
        made: how this process makes segmentations.
        shard: whose part of the cases this process has.

    `unreadable` says which records of the folder cannot be read: their cases count as not finished.
    """

    def __init__(self, out: Path, made: Made, shard: Shard | None = None) -> None:
        name = STEM if shard is None else f"{STEM}_{shard.number}_of_{shard.count}"
        self.out, self.made, self.path = out, made, out / f"{name}.json"
        self.unreadable: list[str] = []
        self._known: dict[str, Finished] = {}
        self._new: dict[str, Finished] = {}
        self._saved = time.monotonic()
        paths = sorted(out.glob(f"{STEM}*.json"), key=lambda path: path.stat().st_mtime_ns) if out.is_dir() else []
        for path in paths:
            self._known |= self._read(path)

    def doubt(self, case: Case, path: Path) -> str | None:
        """Why the segmentation of a case cannot be kept; "" where it was never made, None where it is verified.

        It is kept where it has the bytes that were written, lies on the grid of its image, and was made of the same
        image by the same model with the same options.
        """
        entry = self._known.get(case.id)
        if not path.exists():
            return ""
        if entry is None:
            return "there is no record of what made it"
        if different := self.made.difference(entry.made):
            return different
        if entry.output.name != path.name or not entry.output.holds_for(path):
            return "it is not what was written"
        images = [Path(file) for file in case.images]
        if len(images) != len(entry.images) or not all(map(FileState.holds_for, entry.images, images)):
            return "its image changed"
        return _misplaced(path, images[0])

    def add(self, case: Case, path: Path) -> None:
        """Record a case whose label file is written; see `save`."""
        images = tuple(FileState.of(Path(file)) for file in case.images)
        self._new[case.id] = Finished(FileState.of(path), images, self.made)
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write what was added, beside what other processes wrote into the same file meanwhile."""
        if not self._new:
            return
        with lock(self.out / f".{self.path.name}.lock", "writing this record", wait=True):
            there = self._read(self.path) if self.path.exists() else {}
            save(self.path, Predictions(VERSION, there | self._new))
        self._saved = time.monotonic()

    def _read(self, path: Path) -> dict[str, Finished]:
        try:
            return load(Predictions, path).cases
        except StateError as error:
            self.unreadable.append(error.what)
            return {}


def recorded(out: Path) -> dict[str, Finished]:
    """Case -> its newest entry in the records of a folder; those that cannot be read are left out."""
    found: dict[str, Finished] = {}
    paths = sorted(out.glob(f"{STEM}*.json"), key=lambda path: path.stat().st_mtime_ns) if out.is_dir() else []
    for path in paths:
        with suppress(StateError):
            found |= load(Predictions, path).cases
    return found


def made_by(
    model: str, options: InferenceOptions, mirror_axes: Sequence[int], tile: float, extras: Sequence[object] = ()
) -> Made:
    """How segmentations are made: with every option that was left open filled in.

    Args:
        model: digest of the ensemble.
        mirror_axes: the axes that are mirrored.
        tile: longest tile edges as a multiple of the patch's, by default on this device.
        extras: what is made of every case in addition.
    """
    names = tuple(sorted(str(getattr(extra, "name", type(extra).__name__)) for extra in extras))
    return Made(model, options.step, tuple(mirror_axes), options.tile or tile, options.top_k, options.even_flips, names)


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder of slices, sorted."""
    return sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change (ns); of all files of a folder together."""
    states = [file.stat() for file in _files(path)]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


def _digest(path: Path) -> str:
    """Sha256 of a file; of a folder, of its files' names and digests."""
    if not path.is_dir():
        return sha256(path)
    listed = "".join(f"{sha256(file)}  {file.name}\n" for file in _files(path))
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def _misplaced(path: Path, image: Path) -> str | None:
    """What is wrong with the grid of a segmentation; None if nothing is. DICOM is not read for it."""
    if is_dicom(image):
        return None
    try:
        here, there = read_geometry(path), read_geometry(image)
    except AutosegError:
        return "it cannot be read"
    ending = ending_of(path)
    if ending and READERS[ending].family == "natural":
        return None if here.shape == there.shape else "its grid is not that of its image"
    return None if corner_distance_voxels(here, there) < SAME_PLACE else "its grid is not that of its image"
