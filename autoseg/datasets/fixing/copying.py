"""Copy a dataset file by file, never by link, and correct the extension and compression of each file.

    plan_copy     folder or table -> the files to copy, what cannot be copied, the bytes needed
    copy_file     one file, with its extension and compression corrected; runs in a worker
    begin, refuse_unfinished    the mark of a copy whose writing was interrupted
    Placed        where each file of the original went: paths of lists -> paths within the copy

The copy has the layout and the names of the original. Links are followed: their targets are copied. Listed files from
outside the folder are copied into `elsewhere/`. Hidden files and folders (`.git`, `._x`, `__MACOSX`) and workspaces of
autoseg are not copied.
"""

import gzip
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from autoseg.datasets.fixing.changes import LEFT_OUT, PASSED_OVER, Change
from autoseg.datasets.fixing.lists import PARTICIPANTS, PATIENTS, SPLITS, listed_files, named
from autoseg.datasets.spelling import find
from autoseg.errors import AutosegError, StateError, StorageError
from autoseg.imaging.formats.readers import READERS, ending_of, is_dicom, stem_of
from autoseg.imaging.formats.rewrite import convert, family_of
from autoseg.imaging.formats.signatures import endings_of_content
from autoseg.messages import counted, suggest
from autoseg.workspace import write_text

ELSEWHERE = "elsewhere"
MOST_LAYERS = 8  # of gzip
_CHUNK = 1 << 20


MARK = ".autoseg-fix.json"  # present in a copy while it is being written; names the original


@dataclass(frozen=True)
class Job:
    """A file to copy."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Copied:
    """A file that was copied."""

    job: Job
    target: Path | None  # where it is now, perhaps with another extension; None: it could not be read
    changes: tuple[Change, ...] = ()


@dataclass
class CopyPlan:
    """What is to be copied."""

    jobs: list[Job] = field(default_factory=list)
    left_out: list[Change] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(job.source.stat().st_size for job in self.jobs)

    def leave(self, place: Path, why: str, method: str = "") -> None:
        """Record what is not copied; a missing image is a loss, unless another method is named."""
        method = method or (LEFT_OUT if ending_of(place) else PASSED_OVER)
        case = re.sub(r"_\d{4}$", "", stem_of(place)) if method == LEFT_OUT else ""
        self.left_out.append(Change(case, str(place), why, "not in the copy", method))


@dataclass
class Placed:
    """Where the files of a dataset were copied to."""

    folder: Path  # of the original, absolute
    copy: Path
    targets: dict[Path, Path] = field(default_factory=dict)  # normalised source -> target

    def translate(self, text: str) -> str:
        """The path in the copy, relative to its folder, of what a list of the original names."""
        path = find(Path(os.path.normpath(self.folder / Path(os.path.expandvars(text)).expanduser())))
        if path in self.targets:
            new = self.targets[path].relative_to(self.copy)
        elif path.is_relative_to(self.folder):
            new = path.relative_to(self.folder)
        else:
            return text
        return text if os.path.normpath(text) == str(new) else new.as_posix()


def refuse_unfinished(root: Path) -> None:
    """Refuse a copy whose writing was interrupted. Raises StateError."""
    if (Path(root) / MARK).is_file():
        source = source_of(Path(root))
        command = suggest("check", Path(source), "--fix", Path(root), workspace=None)
        raise StateError(f"{root} is a copy of {source} whose writing was interrupted", remedy=f"run again: {command}")


def source_of(copy: Path) -> str:
    """The original of a copy whose writing was interrupted; empty where there is no such mark."""
    try:
        return str(json.loads((copy / MARK).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def begin(root: Path, out: Path, keep: str) -> None:
    """Put the mark into the folder of a copy, and remove what an interrupted run left there, except one name.

    Raises:
        StorageError: the folder cannot be emptied or written.
    """
    write_text(out / MARK, json.dumps({"source": str(root)}) + "\n")
    try:
        for entry in out.iterdir():
            if entry.name in (MARK, keep):
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be removed: {error.strerror}", remedy="remove it") from error


def plan_copy(root: Path, out: Path) -> CopyPlan:
    """List what to copy of a folder (all of it) or of a table (the table, and the files it names).

    Raises:
        DataError: a list cannot be read.
    """
    plan = CopyPlan()
    folder = root if root.is_dir() else root.parent
    if root.is_dir():
        _add_folder(plan, root, out, ancestors=(root.resolve(),))
    else:
        besides = [file for name in (PATIENTS, PARTICIPANTS, SPLITS) if (file := named(folder, name)) is not None]
        plan.jobs += [Job(file, out / file.name) for file in (root, *besides)]
    known = {job.source for job in plan.jobs}
    listed = {path for _, named in listed_files(root) for path in with_companions(named)} - known
    outside = sorted(path for path in listed if not path.is_relative_to(folder))
    shared = Path(os.path.commonpath([path.parent for path in outside])) if outside else folder
    for path in sorted(listed):
        place = path.relative_to(folder) if path not in outside else Path(ELSEWHERE) / path.relative_to(shared)
        plan.jobs.append(Job(path, out / place))
    return plan


def copy_file(job: Job) -> Copied:
    """Copy one file, with its times; then decompress, compress, convert or rename it where its name does not match.

    Raises:
        StorageError: the copy cannot be written.
    """
    try:
        with open(job.source, "rb"):
            pass
    except OSError as error:
        why = f"cannot be opened: {error.strerror}"
        return Copied(job, None, (Change("", str(job.target), why, "not in the copy", LEFT_OUT),))
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(job.source, job.target)
        job.target.chmod(job.target.stat().st_mode | stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        raise StorageError(
            f"{job.source} cannot be copied to {job.target}: {error.strerror or error}",
            remedy="check free space and permissions there, or choose another folder",
        ) from error
    try:
        target, changes = mend_ending(job.target)
    except AutosegError as error:
        if isinstance(error, StorageError):
            raise
        return Copied(job, job.target)  # damaged: `check` reports it
    return Copied(job, target, changes)


def mend_ending(path: Path) -> tuple[Path, tuple[Change, ...]]:
    """Make a file match its name, judged by its first bytes: compressed only if it ends in `.gz`, in its own format.

    NIfTI, NRRD and MetaImage keep their name, so that lists remain valid; a picture gets the extension of its format.

    Returns:
        Where the file is now, and what was changed.
    """
    ending = ending_of(path)
    if ending is None:
        return path, ()
    layers, head = _look_inside(path)
    inner, own = endings_of_content(head), ".nii" if ending == ".nii.gz" else ending
    wanted = 1 if ending == ".nii.gz" else 0
    if not inner or ".nii.gz" in inner:
        return path, ()  # an unknown format, or compressed endlessly
    if own in inner:
        if layers == wanted:
            return path, ()
        if not _repack(path, layers, wanted):
            return path, ()
        was = {0: "not compressed"}.get(layers, f"compressed {counted(layers, 'time')}")
        now = "compressed once by gzip" if wanted else "decompressed"
        method = "double compression undone" if layers > 1 else "compression corrected"
        return path, (Change("", str(path), f"{was}; its extension is {ending}", now, method),)
    what = f"content of a {inner[0]} file; its extension is {ending}"
    if layers and not _repack(path, layers, 0):
        return path, ()
    if family_of(path) != "natural" and READERS[inner[0]].family != "natural":
        convert(path, inner[0])
        return path, (Change("", str(path), what, f"converted to {ending}, values unchanged", "extension corrected"),)
    renamed = path.with_name(stem_of(path) + inner[0])
    if renamed.exists():
        return path, ()
    path.rename(renamed)
    return renamed, (
        Change("", str(renamed), f"{path.name}: {what}", f"renamed to {renamed.name}", "extension corrected"),
    )


def _add_folder(plan: CopyPlan, folder: Path, target: Path, ancestors: tuple[Path, ...]) -> None:
    for entry in sorted(folder.iterdir()):
        place = target / entry.name
        if entry.name.startswith(".") and entry.name.endswith(".icloud"):
            plan.leave(place.with_name(entry.name[1:-7]), "a file in iCloud, not on this machine")
            continue
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            if entry.resolve() in ancestors:
                plan.leave(place, "a link to a folder that holds it", PASSED_OVER)
            elif ending_of(entry) and not any(entry.iterdir()):
                plan.leave(place, "an empty folder, expected a file")
            elif (entry / "plan.json").is_file() and (entry / "fingerprint.json").is_file():
                plan.leave(place, "a workspace of autoseg", PASSED_OVER)
            else:
                _add_folder(plan, entry, place, (*ancestors, entry.resolve()))
        elif entry.is_file():
            plan.jobs.append(Job(entry, place))
        elif entry.is_symlink() and "annex/objects" in str(entry.readlink()):
            plan.leave(place, "a git-annex link whose content is not on this machine (datalad get fetches it)")
        elif entry.is_symlink():
            plan.leave(place, f"a link to {entry.readlink()}, which does not exist")
        else:
            plan.leave(place, "neither a file nor a folder")


def with_companions(path: Path) -> Iterator[Path]:
    """A listed file and those that belong to it: detached voxels, a file with its spacing, the channels of its stem."""
    ending = ending_of(path) or path.suffix
    stem = stem_of(path)
    if is_dicom(path):
        yield path
        return
    if not path.is_file():
        siblings = path.parent.glob("*") if path.parent.is_dir() else ()
        pattern = re.compile(re.escape(stem) + r"_\d{4}" + re.escape(ending))
        yield from (sibling for sibling in siblings if pattern.fullmatch(sibling.name))
        return
    yield path
    notes = {f"{stem}.json", re.sub(r"_\d{4}$", "", stem) + ".json"} if ending in (".tif", ".tiff") else set()
    yield from (path.with_name(name) for name in sorted(notes) if path.with_name(name).is_file())
    if ending in (".mhd", ".nrrd"):
        with open(path, "rb") as file:
            head = file.read(1 << 16).decode("latin-1")
        found = re.search(r"^(?:ElementDataFile\s*=|data ?file:)\s*([^\r\n]+)", head, re.MULTILINE | re.IGNORECASE)
        if found and (detached := path.parent / found[1].strip()).is_file():
            yield detached


def _look_inside(path: Path) -> tuple[int, bytes]:
    """How many times a file is compressed by gzip, and the first bytes inside; fewer where it is damaged."""
    with open(path, "rb") as file:
        stream: IO[bytes] = file
        for layers in range(MOST_LAYERS):
            try:
                head = stream.read(512)
                stream.seek(0)
            except (OSError, EOFError, zlib.error):
                return layers, b""
            if not head.startswith(b"\x1f\x8b\x08"):
                return layers, head
            stream = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[assignment]
    return MOST_LAYERS, b""


def _repack(path: Path, layers: int, wanted: int) -> bool:
    """Remove the outer layers of gzip, or add one; returns False, and leaves the file unchanged, if it is damaged."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(path, "rb") as file, open(staging, "wb") as target:
            stream: IO[bytes] = file
            for _ in range(max(layers - wanted, 0)):
                stream = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[assignment]
            if wanted > layers:
                with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=target, mtime=0) as packed:
                    shutil.copyfileobj(stream, packed, _CHUNK)
            else:
                shutil.copyfileobj(stream, target, _CHUNK)
        staging.replace(path)
        return True
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False  # `check` reports it
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}", remedy="free some disk space"
        ) from error
    finally:
        staging.unlink(missing_ok=True)
