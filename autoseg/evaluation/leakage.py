"""Nearly identical images on both sides of a fold, or in the training and the test set: WORKSPACE/leakage.json.

A score says something about new patients only if the fold has not seen their images. Folds are made by patient, so the
leak that remains is one person under two names. Images are compared as `check` compares them
(`datasets/checks/likeness.py`); here their folds are known, and what the pair does to the scores.

Each image is read once, in worker processes; of each a small thumbnail is kept. The pairs are read from leakage.json
where it is of the same files (path, size, time), so that `evaluate` compares images only once; the folds of the pairs
are always those of splits.json.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from autoseg.datasets.checks.likeness import alike, describe_likeness, thumbnail
from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.loading import workers_for
from autoseg.datasets.splits import Splits
from autoseg.errors import AutosegError
from autoseg.imaging.formats.readers import files_of, read_image
from autoseg.lines import LOG
from autoseg.messages import ANY_DATASET, counted, some, suggest
from autoseg.processes import map_in_processes
from autoseg.records import load, save
from autoseg.rules import anything, at_least, between, exactly
from autoseg.workspace import Workspace

VERSION = 1
SHOWN = 3  # pairs in the lines of `evaluate`
Text = Annotated[str, anything("any text")]
Similarity = Annotated[float, between(-1, 1)]


@dataclass(frozen=True)
class LikePair:
    """Two cases of different patients whose images are nearly the same."""

    first: Text
    second: Text
    patients: tuple[Text, Text]
    folds: tuple[Text, Text]  # which fold holds each out: "0"; "test"; "": none
    similarity: Similarity
    identical: bool  # voxel by voxel, in the first channel
    leaks: bool  # a fold trains on one and validates on the other, or one of them is a test case


@dataclass(frozen=True)
class Leakage:
    """`leakage.json`: what a comparison of all images found."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    files: Text  # digest of the names, sizes and times of the images that were compared
    cases: Annotated[int, at_least(0, 10**9)]
    limit: Similarity  # similarity that different images of this dataset do not reach
    pairs: tuple[LikePair, ...]
    unreadable: tuple[Text, ...] = ()  # cases that were not compared

    @property
    def leaks(self) -> tuple[LikePair, ...]:
        """The pairs that the scores suffer from."""
        return tuple(pair for pair in self.pairs if pair.leaks)


def check_leakage(workspace: Workspace, dataset: Dataset, splits: Splits, *, workers: int | None = None) -> Leakage:
    """Compare all images, write leakage.json, and say in a few lines which folds have seen what they are scored on.

    Args:
        workers: processes; 0: none but this one; None: as cores and memory allow.
    """
    found = find_leakage(dataset, splits, _known(workspace.leakage), workers=workers)
    save(workspace.leakage, found)
    for line in describe(found, workspace):
        LOG.warning(line)
    return found


def find_leakage(
    dataset: Dataset, splits: Splits, known: Leakage | None = None, *, workers: int | None = None
) -> Leakage:
    """Find nearly identical images of different patients, and the folds they are in.

    Args:
        known: of an earlier comparison: its pairs are taken over where it is of the same files.
    """
    cases = [*dataset.cases, *dataset.test_cases]
    files = _state_of(cases)
    if known is None or known.files != files:
        files_read = [case.images[0] for case in cases]
        looked = map_in_processes(_look, cases, title="leakage", workers=workers_for(files_read, workers))
        seen = {case.id: image for case, image in zip(cases, looked, strict=True) if image is not None}
        unreadable = tuple(case.id for case in cases if case.id not in seen)
        patients = {case.id: case.patient for case in cases}
        found = alike({name: image.thumbnail for name, image in seen.items()}, patients)
        pairs = [(p.first, p.second, p.similarity, seen[p.first].digest == seen[p.second].digest) for p in found.pairs]
        limit = found.limit
    else:
        pairs = [(p.first, p.second, p.similarity, p.identical) for p in known.pairs]
        limit, unreadable = known.limit, known.unreadable
    return Leakage(VERSION, files, len(cases), limit, _with_folds(pairs, cases, dataset, splits), unreadable)


def describe(found: Leakage, workspace: Workspace) -> list[str]:
    """Lines for the user: none where all images were compared and nothing leaks."""
    unread = f"not compared across folds, because they cannot be read: {some(found.unreadable)}"
    if not found.leaks:
        return [f"note: images {unread}"] if found.unreadable else []
    lines = [
        f"WARNING: {counted(len(found.leaks), 'pair')} of cases of different patients "
        f"{'has' if len(found.leaks) == 1 else 'have'} nearly the same image on both sides of a fold: the scores of "
        f"these folds are too good if they show one patient"
    ]
    for pair in found.leaks[:SHOWN]:
        where = " and ".join(
            f"{case} ({'test set' if fold == 'test' else f'held out by fold {fold}' if fold else 'only trained on'})"
            for case, fold in zip((pair.first, pair.second), pair.folds, strict=True)
        )
        how = "identical" if pair.identical else describe_likeness(pair.similarity, found.limit)
        lines.append(f"  {where}: {how}")
    first = found.leaks[0]
    others = len(found.leaks) - SHOWN
    again = suggest("plan", ANY_DATASET, workspace=workspace.root)
    lines.append(
        (f"  and {others} more, in {workspace.leakage}; " if others > 0 else "  ")
        + f"list cases of one person under one name in the dataset's patients.csv (columns case, patient, such as "
        f"{first.first},{first.patients[0]} and {first.second},{first.patients[0]}) or pass --patient-regex, and plan "
        f"again: {again}"
    )
    if found.unreadable:
        lines.append(f"  {unread}")
    return lines


@dataclass(frozen=True)
class _Image:
    thumbnail: np.ndarray
    digest: str


def _look(case: Case) -> _Image | None:
    """Thumbnail and digest of a case's first channel; None where it cannot be read. Runs in a worker."""
    try:
        volume = read_image(Path(case.images[0]))
    except (AutosegError, OSError):
        return None
    channel = np.ascontiguousarray(volume.array[0])
    digest = hashlib.sha1(f"{channel.shape} {channel.dtype}".encode(), usedforsecurity=False)
    digest.update(channel.data)
    return _Image(thumbnail(channel, volume.geometry), digest.hexdigest())


def _with_folds(
    pairs: Sequence[tuple[str, str, float, bool]], cases: Sequence[Case], dataset: Dataset, splits: Splits
) -> tuple[LikePair, ...]:
    """The pairs with the folds they are in."""
    patients = {case.id: case.patient for case in cases}
    testing = {case.id for case in dataset.test_cases} | set(splits.test)
    held_out = {case: str(split.fold) for split in splits.splits for case in split.validation}
    sides = [(set(split.train), set(split.validation)) for split in splits.splits]
    trained: set[str] = set().union(*(train for train, _ in sides))
    made = []
    for a, b, similarity, identical in pairs:
        crosses = any((a in train and b in out) or (b in train and a in out) for train, out in sides)
        tested = (a in testing and b in trained) or (b in testing and a in trained)
        folds = tuple("test" if case in testing else held_out.get(case, "") for case in (a, b))
        made.append(
            LikePair(
                a, b, (patients[a], patients[b]), (folds[0], folds[1]), similarity, identical, bool(crosses or tested)
            )
        )
    return tuple(made)


def _state_of(cases: Sequence[Case]) -> str:
    """Digest of the cases with their patients, and of names, sizes and times of their first files."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"{case.id}\0{case.patient}\0{case.images[0]}".encode())
        with suppress(OSError):
            for file in files_of(case.images[0]):
                stat = file.stat()
                digest.update(f"\0{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _known(path: Path) -> Leakage | None:
    with suppress(AutosegError):
        return load(Leakage, path) if path.exists() else None
    return None
