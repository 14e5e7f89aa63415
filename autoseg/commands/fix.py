"""`autoseg check DATASET --fix OUT`: a corrected copy of a data set, and every change listed.

    fix_dataset   copy -> repair file by file -> repair case by case -> check the copy -> leave out what is faulty

The original is read and never written. What has one right answer is repaired (`copying`, `lists` and `repair` in
`datasets.fixing`); a value is changed only on request (`--map`, `--nan-to`). A case whose fault cannot be repaired
without a guess is *left out* of the copy, with all its files and its entries in the lists, and named with its fault: so
checking the copy finds no error. Only faults of the data set as a whole (a label that is in no file) stay in the copy,
and are named. `FixReport.complete` says whether everything was repaired.

While the work lasts the copy holds a mark that names the original. The same command then starts from scratch; other
commands refuse such a copy.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.commands.check import describe_dataset
from autoseg.datasets.checks.duplicates import as_one_patient
from autoseg.datasets.checks.problems import check, problem_table
from autoseg.datasets.dataset import Dataset, IntakeOptions, discover
from autoseg.datasets.fixing.changes import LEFT_OUT, NOT_MENDED, Change, change_csv, change_table
from autoseg.datasets.fixing.copying import MARK, CopyPlan, Placed, begin, copy_file, plan_copy, source_of
from autoseg.datasets.fixing.leaving_out import leave_out
from autoseg.datasets.fixing.lists import (
    DESCRIPTION,
    JSON_FILES,
    declared_ending,
    mend_json,
    named,
    read_lenient,
    relocate,
    set_ending,
    set_num_training,
)  # fmt: skip
from autoseg.datasets.fixing.repair import Wishes, mend_cases
from autoseg.datasets.loading import workers_for
from autoseg.datasets.outlined import COCO
from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats.readers import ending_of
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.processes import map_in_processes
from autoseg.workspace import lock, write_text

GUARD = ".autoseg-fix.lock"
DEFAULTS = IntakeOptions()
ROUNDS = 8  # of checking the copy and leaving out what is faulty
ROOM = 1.1  # free bytes per byte to copy: a file is written beside itself while it is repaired


@dataclass(frozen=True)
class FixReport:
    """A corrected copy of a data set: what is different in it, and what is still wrong with it."""

    folder: Path  # the copy
    changes: tuple[Change, ...]  # as listed in changes.csv; what was not repaired or left out at the end
    problems: tuple[Problem, ...]  # that a check of the copy finds

    @property
    def complete(self) -> bool:
        """Whether the copy is sound and holds every case."""
        mended = not any(change.method in (LEFT_OUT, NOT_MENDED) for change in self.changes)
        return mended and not any(problem.severity == "error" for problem in self.problems)


def fix_dataset(
    root: Path,
    out: Path,
    intake: IntakeOptions = DEFAULTS,
    *,
    mapping: Mapping[int, int] | None = None,
    non_finite_to: float | None = None,
    workers: int | None = None,
) -> FixReport:
    """Write a corrected copy of a data set, list every change (in OUT/changes.csv, too), and check the copy.

    Args:
        root: a folder, or a table of images.
        out: the folder to write; new, or empty, or what an interrupted run over the same data set left.
        mapping: value in label files -> the value to write instead, all at once.
        non_finite_to: what NaN and infinity in images become; None leaves such cases out.

    Raises:
        UsageError: `out` is not empty, or lies in the data set, or the reverse; an option does not fit the data set.
        DataError: no layout fits, or no sound case remains.
        StorageError: there is no room, or the disk refused. StateError: another process writes this copy.
    """
    root, out = Path(root).expanduser().absolute(), Path(out).expanduser().absolute()
    wishes = Wishes(dict(mapping or {}), non_finite_to)
    _understood(root, intake)
    _refuse_occupied(root, out)
    plan = plan_copy(root, out)
    _refuse_overlap(root, out, plan)
    _refuse_little_room(plan, out)
    with lock(out / GUARD, f"writing a copy to {out}"):
        begin(root, out, GUARD)
        LOG.info(f"copying {len(plan.jobs)} files ({plan.bytes / 2**20:.1f} MiB) of {root} to {out}")
        try:
            changes = [*plan.left_out, *_copy(plan, root, out, workers), *_mend(out, intake, wishes, workers)]
            dataset, problems, more = _sound(out, intake, workers)
        except DataError as error:
            what = error.what.replace(str(out), str(root.parent if root.is_file() else root))
            raise DataError(what, remedy=error.remedy) from None
        changes = _told(out, dataset, [*changes, *more])
        listed = _report(out, dataset, changes, problems)
        write_text(listed, change_csv(changes))
        (out / MARK).unlink()
    (out / GUARD).unlink(missing_ok=True)
    return FixReport(out, tuple(changes), tuple(problems))


def _understood(root: Path, intake: IntakeOptions) -> None:
    """Refuse what is not a data set before anything is copied, but not for a JSON file that can be repaired.

    Raises:
        UsageError, DataError: as `discover`.
    """
    try:
        dataset, _ = discover(root, _structure(intake))
    except DataError:
        folder = root if root.is_dir() else root.parent
        if not any(read_lenient(path).faults for path in _json_files(folder)):
            raise
        return
    if dataset.layout == COCO:
        raise UsageError(
            f"{root}: its labels are in a COCO file of many images, which is never rewritten",
            remedy="correct it in the program that wrote it; to leave faulty cases out of a plan, pass --skip-bad",
        )


def _json_files(folder: Path) -> list[Path]:
    return [path for name in JSON_FILES if (path := named(folder, name)) is not None]


def _structure(intake: IntakeOptions) -> IntakeOptions:
    """Options under which `discover` finds the files of each case, and reads no label for its values."""
    return replace(intake, labels=intake.labels or {"any": 1}, regions=None, ignore=None)


def _refuse_occupied(root: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", remedy="choose a new folder for the copy")
    inside = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if inside - {GUARD} and source_of(out) != str(root):
        what = f"a copy of {source_of(out)}, not finished" if MARK in inside else f"{len(inside)} entries"
        raise UsageError(f"{out} is not empty: it holds {what}", remedy="choose a new folder, or empty this one")


def _refuse_overlap(root: Path, out: Path, plan: CopyPlan) -> None:
    true_root, true_out = root.resolve(), out.resolve()
    inside = next((job.source for job in plan.jobs if job.source.resolve().is_relative_to(true_out)), None)
    if true_out.is_relative_to(true_root) or true_root.is_relative_to(true_out) or inside is not None:
        what = f"{out} and {inside or root} overlap"
        raise UsageError(what, remedy="write the copy to a folder that is neither inside the data set nor contains it")


def _refuse_little_room(plan: CopyPlan, out: Path) -> None:
    place = next(folder for folder in (out, *out.parents) if folder.is_dir())
    free, needed = shutil.disk_usage(place).free, int(plan.bytes * ROOM)
    if needed > free:
        what = f"the copy needs about {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB free"
        raise StorageError(what, remedy="free some space, or write the copy to another disk")


def _copy(plan: CopyPlan, root: Path, out: Path, workers: int | None) -> list[Change]:
    """Copy every file, correct file extensions and lists; the lists then name files of the copy."""
    processes = workers_for([str(job.source) for job in plan.jobs], workers)
    copied = map_in_processes(copy_file, plan.jobs, title="copy", workers=processes)
    changes = [change for one in copied for change in one.changes]
    for path in _json_files(out):
        mended = mend_json(path)
        changes += [Change("", str(path), was, now, "JSON corrected") for was, now in mended.faults]
        why = "unchanged: no file shows which of them is meant"
        changes += [Change("", str(path), was, why, NOT_MENDED) for was in mended.doubtful]
    targets = {one.job.source: one.target for one in copied if one.target is not None}
    placed = Placed(root if root.is_dir() else root.parent, out, targets)
    for name, was, now in relocate(out, placed.translate):
        changes.append(Change("", str(out / name), f"the path {was}", now, "path corrected"))
    if any(one.target != one.job.target for one in copied):
        changes += _ending_declared(out)
    return changes


def _ending_declared(out: Path) -> list[Change]:
    """Correct `file_ending` of dataset.json after files were renamed: it would hide those with another extension."""
    declared = declared_ending(out)
    endings = Counter(ending for file in out.glob("*/*") if file.is_file() and (ending := ending_of(file)))
    if not declared or set(endings) <= {declared}:
        return []
    (usual, _), *others = endings.most_common()
    set_ending(out, None if others else usual)
    now = "not declared: the files have several extensions" if others else usual
    return [Change("", str(out / DESCRIPTION), f"file_ending {declared}", now, "extension corrected")]


def _mend(out: Path, intake: IntakeOptions, wishes: Wishes, workers: int | None) -> list[Change]:
    """Repair the copy case by case, in processes."""
    dataset, _ = discover(out, _structure(intake))
    wishes = replace(wishes, colours=dict(dataset.labels.colours))
    groups = sharing_files((*dataset.cases, *dataset.test_cases))
    files = [file for group in groups for case in group for file in (*case.images, case.label) if file]
    mended = map_in_processes(
        partial(mend_cases, wishes=wishes), groups, title="repair", workers=workers_for(files, workers)
    )
    changes = [change for changes in mended for change in changes]
    for value in wishes.mapping:
        if not any(f"value {value} in " in change.what_was for change in changes):
            was = f"value {value} of --map is in no label file"
            changes.append(Change("", str(out), was, "nothing to map", "values mapped on request"))
    return changes


def sharing_files(cases: Iterable[Case]) -> list[list[Case]]:
    """Sort cases into groups of which no two use the same file: each is repaired by one process."""
    group_of: dict[str, list[Case]] = {}
    groups: list[list[Case]] = []
    for case in cases:
        files = [file for file in (*case.images, case.label) if file]
        joined = [case]
        for group in {id(group_of[file]): group_of[file] for file in files if file in group_of}.values():
            joined = [*group, *joined]
            groups = [other for other in groups if other is not group]
        groups.append(joined)
        for member in joined:
            group_of |= {file: joined for file in (*member.images, member.label) if file}
    return groups


def _sound(out: Path, intake: IntakeOptions, workers: int | None) -> tuple[Dataset, list[Problem], list[Change]]:
    """Check the copy and leave out what has errors, until nothing more can be left out.

    Raises:
        DataError: no case remains.
    """
    changes = _leave_out_by_name(out, intake)
    declared: int | None = None
    for _ in range(ROUNDS):
        dataset, problems = discover(out, intake)
        if (was := set_num_training(out, len(dataset.cases))) is not None:
            declared = was if declared is None else declared
            dataset, problems = discover(out, intake)
        problems, _ = check(dataset, known=problems, workers=workers)
        bad = {problem.case for problem in problems if problem.severity == "error"}
        if bad >= {case.id for case in dataset.cases}:
            listing = problem_table(problems)
            what = f"every case has a fault that cannot be repaired: {listing}"
            raise DataError(what, remedy="correct some by hand, then repeat the command")
        if not (more := leave_out(out, dataset, problems)):
            break
        changes += more
    if declared is not None and declared != len(dataset.cases):
        now = f"numTraining {len(dataset.cases)}"
        changes.append(Change("", str(out / DESCRIPTION), f"numTraining {declared}", now, "number corrected"))
    return dataset, problems, changes


def _leave_out_by_name(out: Path, intake: IntakeOptions) -> list[Change]:
    """Leave out what names alone show to be faulty, before every file is read."""
    changes: list[Change] = []
    while True:
        dataset, problems = discover(out, _structure(intake))
        bad = {problem.case for problem in problems if problem.severity == "error"}
        if bad >= {case.id for case in dataset.cases} or not (more := leave_out(out, dataset, problems)):
            return changes
        changes += more


def _told(out: Path, dataset: Dataset, changes: Sequence[Change]) -> list[Change]:
    """Changes as they are listed: paths relative to the copy, the case named, what was not repaired at the end.

    Why a repair was not made is listed with the fault for which its case was left out.
    """
    why = {(change.case, change.file): change.what_is for change in changes if change.method == NOT_MENDED}
    cases = {file: c.id for c in (*dataset.cases, *dataset.test_cases) for file in (*c.images, c.label) if file}
    listed = []
    for change in changes:
        if change.method == NOT_MENDED and change.case:
            continue  # listed with the fault it could not repair
        if change.method == LEFT_OUT and (reason := why.get((change.case, change.file))):
            change = replace(change, what_is=f"{change.what_is}: {reason}")
        path = Path(change.file)
        file = path.relative_to(out).as_posix() if path.is_relative_to(out) else change.file
        listed.append(replace(change, case=change.case or cases.get(change.file, ""), file=file))
    return sorted(listed, key=lambda change: change.method in (LEFT_OUT, NOT_MENDED))


def _report(out: Path, dataset: Dataset, changes: Sequence[Change], problems: Sequence[Problem]) -> Path:
    """Say what was understood, changed, left out and remains; returns the file for the list of changes."""
    made = [change for change in changes if change.method not in (LEFT_OUT, NOT_MENDED)]
    rest = [change for change in changes if change.method in (LEFT_OUT, NOT_MENDED)]
    names = ("changes.csv", *(f"changes_{number}.csv" for number in range(2, 1000)))
    listed = next(out / name for name in names if not (out / name).exists())
    LOG.info(describe_dataset(as_one_patient(dataset, problems)))
    LOG.info(f"{counted(len(made), 'change')} in {out}, also listed in {listed.name}")
    if made:
        LOG.info(change_table(made))
    if rest:
        LOG.info("not repaired:")
        LOG.info(change_table(rest))
    LOG.info(f"the copy: {problem_table(problems)}")
    return listed
