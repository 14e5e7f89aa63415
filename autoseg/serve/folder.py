"""The folder of images that a page may choose from: what `predict -i FOLDER` would segment, and nothing outside of it.

A visitor names a case by its id, never a path. A file that leads out of the folder through a link is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.datasets.dataset import Case, Problem, images_in
from autoseg.datasets.inputs import FileNames
from autoseg.imaging.formats.readers import files_of
from autoseg.inference.label_files import output_ending
from autoseg.messages import some
from autoseg.planning.plan import Plan
from autoseg.serve.refusals import Refused

SAVED = "_seg"  # after the id, in the name of what is saved beside an image


class Folder:
    """Images on this machine.

    Args:
        root: the folder.
        plan: of the model, which says how images are named and how many channels they have.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root.resolve(), plan

    def listing(self) -> dict[str, Any]:
        """Its cases, and what is not one."""
        cases, problems = self._found()
        listed = [
            {"name": case_id, "files": [file.name for file in files], "saved": beside(case_id, files).exists()}
            for case_id, files in cases
        ]
        return {"folder": self.root.name, "images": listed, "problems": problem_texts(problems)}

    def case(self, name: str) -> tuple[Case, Path | None]:
        """A case by its id, and where its segmentation can be written; None: that would be outside of the folder.

        Raises:
            Refused: there is none of this name, or it leads out of the folder.
            DataError: it cannot be used.
        """
        cases, problems = self._found()
        files = dict(cases).get(name)
        if files is None:
            of_it = [problem for problem in problems if problem.case == name]
            if of_it:
                raise Refused(422, f"{of_it[0].file}: {of_it[0].what}", remedy=of_it[0].remedy)
            raise Refused(404, f"the folder holds no image {name[:80]!r}", remedy="list them: GET /api/folder")
        for file in files:
            for part in (file, *(files_of(file) if file.is_dir() else ())):
                if not self.holds(part):
                    raise Refused(403, f"{name}: {part.name} leads out of the folder", remedy="copy it into the folder")
        case = case_of(name, files)
        target = beside(name, files)
        return case, target if self.holds(target.parent) else None

    def holds(self, path: Path) -> bool:
        """Whether a path, its links followed, lies in the folder."""
        return path.resolve().is_relative_to(self.root)

    def _found(self) -> tuple[list[tuple[str, tuple[Path, ...]]], list[Problem]]:
        cases, problems = understood([self.root], self.plan)
        ids = {case_id for case_id, _ in cases}
        ours = {f"{case_id}{SAVED}" for case_id in ids}  # what was saved here is not an image to segment
        return (
            [(case_id, files) for case_id, files in cases if case_id not in ours],
            [problem for problem in problems if problem.case not in ours],
        )


def understood(paths: Sequence[Path], plan: Plan) -> tuple[list[tuple[str, tuple[Path, ...]]], list[Problem]]:
    """The cases among files and folders, as `predict` finds them."""
    rule: FileNames | None = plan.file_names
    return images_in(paths, len(plan.channels), plan.channels, rule)


def case_of(name: str, files: Sequence[Path]) -> Case:
    """Files as a case without a label."""
    return Case(name, name, tuple(map(str, files)), None)


def beside(name: str, files: Sequence[Path]) -> Path:
    """The file next to an image that its segmentation is saved as; next to the folder of a DICOM series."""
    return files[0].parent / f"{name}{SAVED}{ending_for(case_of(name, files))}"


def ending_for(case: Case) -> str:
    """The extension of a segmentation that is one file."""
    ending = output_ending(case)
    return ".mha" if ending == ".mhd" else ending


def problem_texts(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems as a page shows them."""
    return [
        {"file": Path(one.file).name, "error": one.what, "remedy": one.remedy, "severity": one.severity}
        for one in problems
    ]


def no_case(problems: Sequence[Problem]) -> Refused:
    """What is answered where files hold no case: their first problem, with its remedy."""
    if not problems:
        return Refused(422, "there is no image among these files", remedy="give NIfTI, DICOM, NRRD, TIFF or PNG files")
    first, names = problems[0], some([Path(problem.file).name for problem in problems[1:]])
    more = f"; also {names}" if names else ""
    return Refused(422, f"{Path(first.file).name}: {first.what}{more}", remedy=first.remedy)
