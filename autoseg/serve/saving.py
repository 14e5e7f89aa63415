"""Where corrected labels go: next to the image, into a download, or with the image into the data set that trains.

Nothing is overwritten unless that was asked for, and nothing at all of a data set.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.datasets.dataset import LAYOUTS, Case
from autoseg.datasets.inputs import FileNames
from autoseg.errors import AutosegError, DataError, StateError
from autoseg.imaging.formats.readers import ending_of, write_labels
from autoseg.messages import suggest
from autoseg.planning.plan import Plan
from autoseg.serve.cases import OpenCase
from autoseg.serve.folder import SAVED, ending_for
from autoseg.serve.refusals import Refused
from autoseg.serve.uploads import safe_name
from autoseg.workspace import is_workspace

IMAGES, LABELS = ("images", "imagesTr"), ("labels", "labelsTr", "masks", "segmentations")
LAYOUTS_TO_ADD_TO = ("plain", "nnunet")
ANOTHER_SET = "name another folder with images/ and labels/: --training-set DIR"


@dataclass(frozen=True)
class Added:
    """A case of a data set."""

    images: tuple[Path, ...]
    label: Path
    command: str  # that trains on it


def save_beside(case: OpenCase, *, overwrite: bool) -> Path:
    """Write the labels of a case next to its image.

    Raises:
        Refused: it is not from the folder, or the file exists.
        StorageError: it cannot be written.
    """
    case.require_labels()
    if case.beside is None:
        raise Refused(
            409, f"{case.case.id} has no place of its own in the folder that is served",
            remedy="download the segmentation, or add it to the training set",
        )  # fmt: skip
    taken = case.beside.exists() or case.beside.is_symlink()
    if taken and (not overwrite or case.beside.is_symlink() or not case.beside.is_file()):
        raise Refused(
            409, f"{case.beside.name} exists", remedy='overwrite it: "overwrite": true; or download it', exists=True
        )
    _write(case, case.beside)
    return case.beside


def download(case: OpenCase, folder: Path, name: str = "") -> tuple[str, bytes]:
    """The name and the bytes of a label file.

    Args:
        folder: for a temporary file.
        name: instead of the id of the case.
    """
    case.require_labels()
    ending = ending_for(case.case)
    called = f"{safe_name(name) or safe_name(case.case.id) or 'case'}{SAVED}{ending}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"download-{case.id}{ending}"
    try:
        _write(case, path)
        return called, path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


class TrainingSet:
    """A data set with images/ next to labels/ that cases are added to.

    Args:
        root: its folder.
        workspace: that trains on it, for the command that is suggested.

    Raises:
        StateError: it has another layout.
    """

    def __init__(self, root: Path, plan: Plan, workspace: Path) -> None:
        self.root, self.plan, self.workspace = root, plan, workspace
        found = _layout_of(root)
        self.images, self.labels = (_folder(root, names) for names in (IMAGES, LABELS))
        if found not in LAYOUTS_TO_ADD_TO or not self.images or not self.labels:
            raise StateError(f"{root} does not hold images/ next to labels/", remedy=ANOTHER_SET)
        if plan.labels.colours:
            raise StateError(f"the labels of {root} are colours, which are not written", remedy=ANOTHER_SET)
        self.layout = found

    def add(self, case: OpenCase, name: str = "") -> Added:
        """Copy the images of a case, and write its labels.

        Args:
            name: instead of its id.

        Raises:
            Refused: there is a case of this name, or the data set would not be understood with it.
        """
        case.require_labels()
        called = safe_name(name) or safe_name(case.case.id)
        if not called:
            raise Refused(400, "the case needs a name", remedy='give one: "name": "patient7"')
        targets = self._targets(called, case.case)
        assert self.labels is not None
        label = self.labels / f"{called}{ending_for(case.case)}"
        known = {found.id.casefold() for found in self._cases()}
        taken = [path for path in (*targets, label) if path.exists() or path.is_symlink()]
        if taken or called.casefold() in known:
            raise Refused(
                409, f"{self.root.name} already holds a case {called}", remedy='give another name: "name": "..."',
                exists=True,
            )  # fmt: skip
        made: list[Path] = []
        try:
            _write(case, label)
            made.append(label)
            for source, target in zip(case.case.images, targets, strict=True):
                made.append(target)
                _copy(Path(source), target)
            self._require_known(called, len(targets))
        except BaseException:
            for path in made:
                _remove(path)
            raise
        return Added(tuple(targets), label, suggest("plan", self.root, workspace=self.workspace))

    def _targets(self, name: str, case: Case) -> list[Path]:
        """Where its images go, named as those of the training were."""
        assert self.images is not None
        rule: FileNames | None = self.plan.file_names
        endings = ["" if Path(file).is_dir() else (ending_of(file) or "") for file in case.images]
        suffixes: Sequence[str]
        if rule is not None and len(rule.channels) == len(case.images):
            suffixes = rule.channels
        else:
            suffixes = [f"_{n:04d}" for n in range(len(case.images))] if len(case.images) > 1 else [""]
        if rule is not None and rule.kind == "folder":
            return [self.images / name / f"{channel}{end}" for channel, end in zip(suffixes, endings, strict=True)]
        return [self.images / f"{name}{suffix}{end}" for suffix, end in zip(suffixes, endings, strict=True)]

    def _cases(self) -> list[Case]:
        found = LAYOUTS[self.layout](self.root, self.plan.channels if self.layout == "plain" else None)
        return [] if found is None else found.cases

    def _require_known(self, name: str, images: int) -> None:
        """Raises Refused where the data set is not read with this case in it."""
        try:
            found = [case for case in self._cases() if case.id == name]
        except AutosegError as error:
            raise Refused(409, error.what, remedy=error.remedy) from None
        if not found or found[0].label is None or len(found[0].images) != images:
            raise Refused(
                409, f"the images of {self.root.name} are named, or stored, in another way than {name} would be",
                remedy="download the segmentation and add the case by hand, as the others are",
            )  # fmt: skip


def _layout_of(root: Path) -> str | None:
    """Which layout a folder has, by the rule of `plan`; None: there is none, or it cannot be read."""
    if not root.is_dir() or is_workspace(root):
        return None
    with suppress(AutosegError):
        return next((name for name, layout in LAYOUTS.items() if layout(root, None)), None)
    return None


def _write(case: OpenCase, path: Path) -> None:
    assert case.loaded is not None
    values = np.ascontiguousarray(case.values())
    try:
        write_labels(path, values, like=case.loaded.file)
    except DataError:
        raise StateError(f"{case.case.id}: its image has changed or is gone", remedy="open it again") from None


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or the folder of a series; complete, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.part")
    try:
        if source.is_dir():
            shutil.copytree(source, staging, symlinks=False)
        else:
            shutil.copyfile(source, staging)
        staging.rename(target)
    finally:
        _remove(staging)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
