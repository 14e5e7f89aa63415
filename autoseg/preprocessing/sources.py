"""The files of a dataset when it was planned, and how they have changed since.

`plan` checks every file; a later change was never checked, and the plan was not made from it. So `plan` stores size,
time and sha256 of every image and label in `sources.json`. `train` and `evaluate` compare sizes and times, which is
fast, and read only files whose size or time differ: a copy has other times and the same bytes. Of the lists that decide
patients and folds, it stores what they say, and that they are absent.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.tables import lists_of
from autoseg.errors import StateError, StorageError
from autoseg.messages import some, suggest
from autoseg.processes import map_in_processes
from autoseg.records import load, save
from autoseg.workspace import Workspace, sha256

VERSION = 1
NAMED = 3  # files of a message
PATIENTS_BY_NAME = "--patient-regex"  # then no table of patients is read


@dataclass(frozen=True)
class SourceFile:
    """One file when the dataset was planned."""

    size: int  # bytes
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Sources:
    """The files of a dataset when it was planned."""

    version: int
    root: str  # of the dataset
    files: dict[str, SourceFile]  # by path, as the cases name them
    planned_with: tuple[str, ...] = ()  # further options of `autoseg plan`, to repeat the plan
    lists: dict[str, str] = field(default_factory=dict)  # of patients and folds: path -> digest, see `tables.lists_of`


def measure(dataset: Dataset, planned_with: Sequence[str] = (), *, workers: int | None = None) -> Sources:
    """Measure all images and labels of the training cases; they exist."""
    paths = sorted({path for case in dataset.cases for path in _files(case)})
    measured = map_in_processes(_measured, paths, title="digests", workers=workers)
    return Sources(
        VERSION, dataset.root, dict(zip(paths, measured, strict=True)), tuple(planned_with),
        lists_of(Path(dataset.root), patients=PATIENTS_BY_NAME not in planned_with),
    )  # fmt: skip


def plan_again(workspace: Workspace, root: str | None = None) -> str:
    """The command that repeats the plan of a workspace's dataset; `root`: its new path."""
    known = load(Sources, workspace.sources) if workspace.sources.exists() else None
    where = root or (known.root if known else "DATASET")
    return suggest("plan", Path(where), *(known.planned_with if known else ()), workspace=workspace.root)


def require_in_place(workspace: Workspace, dataset: Dataset, cases: Sequence[Case]) -> None:
    """Raise StateError where files of these cases are not where they were planned."""
    paths = [path for case in cases for path in _files(case)]
    missing = [path for path in paths if not Path(path).exists()]
    if not missing:
        return
    if not Path(dataset.root).exists():
        raise StateError(
            f"the dataset is not where it was planned: {dataset.root} does not exist",
            remedy="if it was moved or renamed, plan it with its new path (finished folds stay valid): "
            + plan_again(workspace, "NEWPLACE"),
        )
    raise StateError(
        f"{_some(missing)} missing",
        remedy=f"restore the missing files, or plan again: {plan_again(workspace)}",
    )


def changed_since(workspace: Workspace, cases: Sequence[Case]) -> list[str]:
    """Files of these cases whose bytes have changed since they were planned; none where that was not recorded.

    New times of files with the same bytes are stored, so that they are read again only once.
    """
    if not workspace.sources.exists():
        return []
    known = load(Sources, workspace.sources)
    renewed, changed = {}, []
    for path in {path for case in cases for path in _files(case)}:
        before = known.files.get(path)
        if before is None or not Path(path).exists():
            continue
        stat = Path(path).stat()
        if (stat.st_size, stat.st_mtime_ns) == (before.size, before.mtime_ns):
            continue
        if stat.st_size == before.size and sha256(Path(path)) == before.sha256:
            renewed[path] = replace(before, mtime_ns=stat.st_mtime_ns)
        else:
            changed.append(path)
    if renewed:
        with suppress(StorageError):  # without write permission, they are read again next time
            save(workspace.sources, replace(known, files=known.files | renewed))
    return sorted(changed)


def changed_lists(workspace: Workspace) -> list[str]:
    """Lists of patients and folds that are other than when they were planned, that are new or gone."""
    if not workspace.sources.exists():
        return []
    known = load(Sources, workspace.sources)
    if not known.lists or not Path(known.root).exists():
        return []
    now = lists_of(Path(known.root), patients=PATIENTS_BY_NAME not in known.planned_with)
    return sorted(path for path, before in known.lists.items() if now.get(path, "") != before)


def require_unchanged(workspace: Workspace, dataset: Dataset, cases: Sequence[Case]) -> None:
    """Refuse to train on files that were never checked: those that changed since they were planned.

    Raises:
        StateError: names them, or the path where the dataset is missing.
    """
    require_in_place(workspace, dataset, cases)
    if lists := changed_lists(workspace):
        raise StateError(
            f"{_some(lists)} no longer as planned: the folds were made from the old content",
            remedy=f"plan again: {plan_again(workspace)} (it lists the folds that stay valid), or restore the "
            "original files",
        )
    if changed := changed_since(workspace, cases):
        raise StateError(
            f"{_some(changed)} no longer as planned: the new content was never checked, and the plan was made from the "
            "old one",
            remedy=f"plan again: {plan_again(workspace)} (it lists the folds that stay valid), or restore the "
            "original files",
        )


def _files(case: Case) -> list[str]:
    return [*case.images, *([case.label] if case.label else [])]


def _measured(path: str) -> SourceFile:
    stat = Path(path).stat()
    return SourceFile(stat.st_size, stat.st_mtime_ns, sha256(Path(path)))


def _some(paths: Sequence[str]) -> str:
    """ "a.nii.gz is", "a.nii.gz, b.nii.gz, c.nii.gz and 5 more are"."""
    return f"{some(paths, NAMED)} {'is' if len(paths) == 1 else 'are'}"
