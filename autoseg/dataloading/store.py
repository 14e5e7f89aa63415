"""Preprocessed cases on disk: written whole or not at all, read by memory map.

    FOLDER/ <case>.image.npy      (C, Z, Y, X) float16 or float32
            <case>.target.npy     (Z, Y, X) int8 or int16 class indices, OUTSIDE (-1) kept
            <case>.locations.npy  (N, 3) uint16 or int32: voxels of class 1, then class 2, ... then annotated voxels
            <case>.json           CaseInfo, the commit marker: written last
            manifest.sha256       hashes of everything above, in the format of `sha256sum -c`: written by `seal`

**What a killed process can leave.** Every file is written under a temporary name beside its destination. When all are
complete, the old marker is removed, the arrays are renamed, and the new marker is renamed last. A process that dies
anywhere in between leaves either the old case or a case without a marker, and a case without a marker does not exist.
A reader that still maps the old arrays keeps them: a rename replaces the name, not the bytes.

**What a power cut can leave.** Renames reach the disk in any order, so a marker may survive without its arrays. To
flush every file of every case would prevent it, and cost ten times as much as a small case itself. Instead `seal`
flushes once for all, then writes the manifest, which the next commit removes. Without it (the run was cut short),
`complete` believes a case only after its bytes have been hashed and compared with its marker.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.errors import DataError, StateError, StorageError
from autoseg.imaging.geometry import Axes3
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.placement import Placement
from autoseg.messages import ANY_DATASET, suggest
from autoseg.records import from_plain, to_plain
from autoseg.workspace import refusal, sha256, write_text

VERSION = 1
FLOAT16_TOLERANCE = 0.01  # largest rounding error, as a share of the channel's standard deviation
MAX_LOCATIONS = 10_000  # voxels remembered per class
LOCATION_SEED = 1234
VOXELS_AT_ONCE = 2**22  # a label map is searched in pieces of this size, so that huge ones need little memory
MANIFEST = "manifest.sha256"
ARRAYS = ("image", "target", "locations")


@dataclass(frozen=True)
class CaseInfo:
    """What preprocessing knows about a case, and what the store measured. Spatial tuples are in permuted order."""

    id: str
    key: str  # hash of everything that decides the content: plan settings, size and time of the source files
    placement: Placement  # how it lies in its image
    num_labels: int  # foreground classes 1..n
    ignore_index: int | None = None  # n + 1 in data sets with an ignore label
    content: tuple[str, str] = ("", "")  # digests of the image and of the label as they were read, whatever the files
    # measured by CaseStore.commit
    channels: int = 0
    image_dtype: str = ""  # float16 or float32
    target_dtype: str = ""  # int8 or int16
    class_voxels: tuple[int, ...] = ()  # voxels of class 0..n, then ignored ones; OUTSIDE is in none
    locations: tuple[
        int, ...
    ] = ()  # rows of the locations file: of class 1..n, then annotated voxels if there is an ignore label
    sha256: tuple[str, ...] = ()  # of the files of image, target and locations
    version: int = VERSION

    @property
    def shape(self) -> Axes3:
        """As stored, after resampling."""
        return self.placement.shape


@dataclass(frozen=True)
class StoredCase:
    """One case, its arrays mapped from disk (or held in memory): read only."""

    image: np.ndarray  # (C, Z, Y, X) float16 or float32
    target: np.ndarray  # (Z, Y, X) int8 or int16 class indices, OUTSIDE = -1
    locations: dict[
        int, np.ndarray
    ]  # class 1..n -> (k, 3) voxels, k <= MAX_LOCATIONS; classes the case has not map to (0, 3)
    annotated: np.ndarray | None  # (k, 3) voxels of class 0..n, in data sets with an ignore label
    info: CaseInfo

    def in_memory(self) -> "StoredCase":
        """The same case with its arrays read into memory."""
        annotated = None if self.annotated is None else np.array(self.annotated)
        locations = {index: np.array(rows) for index, rows in self.locations.items()}
        return StoredCase(np.array(self.image), np.array(self.target), locations, annotated, self.info)


class CaseStore:
    """The preprocessed cases in one folder. Processes may commit different cases at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def ids(self) -> tuple[str, ...]:
        """Ids of the committed cases, sorted."""
        return tuple(sorted(path.name[: -len(".json")] for path in self.folder.glob("*.json") if path.name[0] != "."))

    def path(self, case_id: str, part: str) -> Path:
        """File of a case; `part` is image, target, locations or json."""
        assert Path(case_id).name == case_id, f"no file name: {case_id!r}"
        assert case_id[:1] not in ("", "."), f"no file name that shows: {case_id!r}"
        return self.folder / (f"{case_id}.json" if part == "json" else f"{case_id}.{part}.npy")

    def info(self, case_id: str) -> CaseInfo:
        """Read the marker of a case.

        Raises:
            StateError: the case was never committed, or its marker is damaged.
        """
        path = self.path(case_id, "json")
        try:
            return from_plain(CaseInfo, json.loads(path.read_bytes()), path.name)
        except FileNotFoundError:
            problem = f"case {case_id!r} is not preprocessed ({path} does not exist)"
        except (ValueError, StateError) as error:
            problem = f"{path} cannot be read: {error}"
        raise StateError(problem, remedy="preprocess it: " + suggest("plan", ANY_DATASET))

    def open(self, case_id: str) -> StoredCase:
        """Map the arrays of a case. Raises StateError if it is missing or its files do not fit its marker."""
        info = self.info(case_id)
        try:
            image, target, rows = (np.load(self.path(case_id, part), mmap_mode="r") for part in ARRAYS)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(self.folder, case_id, str(error)) from error
        if image.shape != (info.channels, *info.shape) or target.shape != info.shape:
            raise _damaged(self.folder, case_id, f"shapes {image.shape} and {target.shape}, expected {info.shape}")
        ends = np.cumsum(info.locations)
        lists = np.split(rows, ends[:-1])
        annotated = lists.pop() if info.ignore_index is not None else None
        return StoredCase(image, target, dict(enumerate(lists, start=1)), annotated, info)

    def classes_in(self, ids: Iterable[str]) -> set[int]:
        """Class indices 1..n that at least one of the cases holds. Raises StateError if one is missing."""
        infos = [self.info(case_id) for case_id in ids]
        return {
            i for info in infos for i, voxels in enumerate(info.class_voxels[: info.num_labels + 1]) if i and voxels
        }

    def nbytes(self, case_id: str) -> int:
        """Bytes of a case's arrays."""
        return sum(self.path(case_id, part).stat().st_size for part in ARRAYS)

    def commit(self, case_id: str, image: np.ndarray, target: np.ndarray, info: CaseInfo) -> CaseInfo:
        """Store a case, whole or not at all, replacing one of the same id.

        Args:
            case_id: names the files.
            image: (C, Z, Y, X) float32, normalised. Stored as float16 if `float16_suffices`.
            target: (Z, Y, X) integer class indices, OUTSIDE = -1.
            info: what preprocessing knows; the measured fields are filled in here.

        Returns:
            The info as stored.

        Raises:
            DataError: the image holds NaN or infinity.
            StorageError: the disk is full or refuses; the case as it was before is untouched or gone, never mixed.
        """
        assert image.ndim == 4
        assert target.shape == image.shape[1:]
        assert info.id == case_id
        assert info.shape == target.shape, "the case lies on another grid than it says"
        if not np.isfinite(image).all():
            raise DataError(
                f"case {case_id!r}: the preprocessed image holds NaN or infinity",
                remedy=f"see {suggest('check', ANY_DATASET, workspace=None)}; repair or leave out this image",
            )
        classes = info.num_labels + (1 if info.ignore_index is None else 2)
        target = np.ascontiguousarray(target, dtype=np.int8 if classes <= 127 else np.int16)
        image = np.ascontiguousarray(image, dtype=np.float16 if float16_suffices(image) else np.float32)
        class_voxels, lists = class_locations(target, info.num_labels, info.ignore_index)
        arrays = dict(zip(ARRAYS, (image, target, np.concatenate(lists)), strict=True))
        measured = replace(
            info, channels=len(image), image_dtype=image.dtype.name, target_dtype=target.dtype.name,
            class_voxels=class_voxels, locations=tuple(map(len, lists)), version=VERSION,
        )  # fmt: skip
        nbytes = sum(array.nbytes for array in arrays.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = {part: self.folder / f".{case_id}.{part}.part" for part in (*ARRAYS, "json")}
        try:
            digests = tuple(_write_npy(temporary[part], array) for part, array in arrays.items())
            measured = replace(measured, sha256=digests)
            temporary["json"].write_text(json.dumps(to_plain(measured)) + "\n", encoding="utf-8")
            (self.folder / MANIFEST).unlink(missing_ok=True)  # it cannot vouch for what comes now
            self.path(case_id, "json").unlink(missing_ok=True)
            for part, path in temporary.items():  # the marker is the last
                path.replace(self.path(case_id, part))
        except OSError as error:
            raise StorageError(
                f"case {case_id!r} cannot be stored in {self.folder}: {refusal(error, self.folder, nbytes)}",
                remedy="free some disk space, or choose another folder with -w",
            ) from error
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)
        return measured

    def discard(self, case_id: str) -> None:
        """Remove a case, marker first. Removing one that does not exist is not an error."""
        for part in ("json", *ARRAYS):
            self.path(case_id, part).unlink(missing_ok=True)

    def complete(self, ids: Iterable[str], key: str | Mapping[str, str]) -> tuple[str, ...]:
        """Say what is still missing before all `ids` are stored under their key.

        Args:
            ids: the cases wanted.
            key: one key for all cases, or one per case. A case stored under another key counts as missing.

        Returns:
            The ids to preprocess, in the order given. Cases that `seal` vouches for are checked by the presence and
            length of their files; others are hashed.
        """
        sealed = self._sealed()
        return tuple(i for i in ids if not self._stands(i, key if isinstance(key, str) else key[i], sealed))

    def verify(self, case_id: str) -> bool:
        """Hash the files of a case again: are they what was committed? False for a missing or damaged case."""
        try:
            info = self.info(case_id)
            return info.sha256 == tuple(sha256(self.path(case_id, part)) for part in ARRAYS)
        except (StateError, OSError):
            return False

    def seal(self) -> None:
        """Flush all cases to disk and vouch for them in the manifest; also removes what killed runs left behind.

        A store that is sealed as it stands is left alone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        markers = {self.path(case_id, "json").name for case_id in self.ids()}
        if markers and markers == {name for name in self._sealed() if name.endswith(".json")}:
            return
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        lines = []
        for case_id in self.ids():
            marker = self.path(case_id, "json")
            digests = (*self.info(case_id).sha256, sha256(marker))
            paths = (*(self.path(case_id, part) for part in ARRAYS), marker)
            lines += [f"{digest}  {path.name}" for digest, path in zip(digests, paths, strict=True)]
        _flush(self.folder)
        write_text(self.folder / MANIFEST, "".join(line + "\n" for line in lines))

    def _sealed(self) -> dict[str, str]:
        """File name -> sha256, as the manifest has it; empty if there is none."""
        with suppress(OSError):
            lines = (self.folder / MANIFEST).read_text(encoding="utf-8").splitlines()
            return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return {}

    def _stands(self, case_id: str, key: str, sealed: Mapping[str, str]) -> bool:
        try:
            info = self.info(case_id)
            if (info.version, info.key) != (VERSION, key):
                return False
            marker = self.path(case_id, "json")
            if sealed.get(marker.name) != sha256(marker):
                return self.verify(case_id)
            self.open(case_id)  # raises where a file is missing or short
        except StateError:
            return False
        return True


def float16_suffices(image: np.ndarray) -> bool:
    """Say whether float16 loses nothing that matters: measured, per channel, as the largest rounding error.

    The error must stay below FLOAT16_TOLERANCE standard deviations of the channel, ten times below the strongest noise
    of the augmentation. For z-scores that means: no value beyond 32 in size; a value beyond 65504 never passes.

    Args:
        image: (C, Z, Y, X) float32.
    """
    for channel in image:
        with np.errstate(over="ignore"):
            half = channel.astype(np.float16)
        error = np.abs(half.astype(np.float32) - channel).max(initial=0.0)
        if not error <= FLOAT16_TOLERANCE * channel.std(dtype=np.float64):
            return False
    return True


def class_locations(
    target: np.ndarray, num_labels: int, ignore_index: int | None
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Count the voxels of each class and draw up to MAX_LOCATIONS of each, evenly and always the same ones.

    nnU-Net v2 keeps at least 1 % of a class, millions of voxels for a large organ; 10,000 spread over it show as
    well where it lies.

    Args:
        target: (Z, Y, X) integer class indices, contiguous, OUTSIDE = -1.
        num_labels: number of foreground classes n.
        ignore_index: class index of ignored voxels, or None.

    Returns:
        Voxels of class 0..n (and ignored ones), and one list (k, 3) of uint16 (int32 beyond 65536 voxels per axis)
        coordinates per class 1..n, followed by one of annotated voxels (class 0..n) if there is an ignore label.
    """
    classes = num_labels + (1 if ignore_index is None else 2)
    flat = target.reshape(-1)
    pieces = [flat[start : start + VOXELS_AT_ONCE] for start in range(0, flat.size, VOXELS_AT_ONCE)]
    counts = [np.bincount(piece.astype(np.intp) - OUTSIDE, minlength=classes + 1)[1:] for piece in pieces]
    assert all(len(count) == classes for count in counts), f"class indices beyond {classes - 1}"
    total = np.stack(counts).sum(axis=0)
    annotated = [] if ignore_index is None else [int(total[: num_labels + 1].sum())]
    generator = np.random.default_rng(LOCATION_SEED)
    ranks = [_even_ranks(int(n), generator) for n in (*total[1 : num_labels + 1], *annotated)]

    found: list[list[np.ndarray]] = [[] for _ in ranks]
    seen = np.zeros(len(ranks), dtype=np.int64)
    for number, piece in enumerate(pieces):
        for index, places in enumerate(_places(piece, num_labels, ignore_index)):
            first, last = np.searchsorted(ranks[index], (seen[index], seen[index] + len(places)))
            found[index].append(places[ranks[index][first:last] - seen[index]] + number * VOXELS_AT_ONCE)
            seen[index] += len(places)
    dtype = np.uint16 if max(target.shape) <= 2**16 else np.int32
    lists = [np.stack(np.unravel_index(np.concatenate(f), target.shape), axis=1).astype(dtype) for f in found]
    return tuple(total.tolist()), lists


def _even_ranks(count: int, generator: np.random.Generator) -> np.ndarray:
    """Which of `count` voxels to keep, ascending."""
    if count <= MAX_LOCATIONS:
        return np.arange(count)
    return np.sort(generator.choice(count, MAX_LOCATIONS, replace=False, shuffle=False))


def _places(piece: np.ndarray, num_labels: int, ignore_index: int | None) -> list[np.ndarray]:
    """Flat positions of class 1..n in a piece of a label map, then those of annotated voxels; each ascending."""
    foreground = np.flatnonzero(piece > 0)
    values = piece[foreground]
    order = np.argsort(values, kind="stable")  # a radix sort for these dtypes: linear, whatever the number of classes
    ends = np.cumsum(np.bincount(values, minlength=num_labels + 2)[1 : num_labels + 1])
    places = np.split(foreground[order], ends)[:-1]  # the rest is the ignore label
    if ignore_index is not None:
        places.append(np.flatnonzero((piece >= 0) & (piece != ignore_index)))
    return places


def _write_npy(path: Path, array: np.ndarray) -> str:
    """Write a contiguous array as .npy and return the sha256 of the file, without reading it again."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (header.getvalue(), array.reshape(-1).view(np.uint8).data):
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _flush(folder: Path) -> None:
    """Wait until what was written is on the disk: one call where the kernel promises that, else file by file."""
    if sys.platform == "linux":
        os.sync()
        return
    for path in folder.iterdir():  # elsewhere sync() does not wait
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _damaged(folder: Path, case_id: str, why: str) -> StateError:
    return StateError(
        f"the preprocessed case {case_id!r} in {folder} is damaged: {why}",
        remedy="preprocess damaged cases again: " + suggest("plan", ANY_DATASET),
    )
