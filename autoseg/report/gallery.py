"""The worst, median and best held-out cases: pictures of their largest error, and volumes for the viewer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.datasets.dataset import Case, load_case
from autoseg.datasets.loading import read_label
from autoseg.errors import AutosegError, DataError
from autoseg.evaluation.evaluate import CaseScore
from autoseg.evaluation.object_scores import share_found
from autoseg.imaging.formats.readers import is_dicom, read_labels_as, stem_of
from autoseg.imaging.geometry import reorient
from autoseg.planning.plan import Plan
from autoseg.processes import map_in_processes
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import case_means
from autoseg.report.small_volumes import Volumes, volumes_of
from autoseg.report.stills import CaseArrays, Still, stills
from autoseg.workspace import FoldName

EACH = 3  # worst, median and best cases
VOLUME_BYTES = 5_400_000  # of all volumes of a page, in base64
LIGHT_BYTES = 48 * 2**20  # files of the cases below this are read by this process alone
Where = str  # "worst", "median" or "best"


@dataclass(frozen=True)
class Shown:
    """One case of the gallery."""

    id: str
    where: Where
    fold: FoldName
    dice: float  # mean over labels
    by_label: dict[str, float]  # those that have a Dice
    error: str  # of the largest error: what it is, in words
    stills: tuple[Still, ...]
    volumes: Volumes | None  # None: too large, or the picture is flat
    problem: str = ""  # why there is no picture


@dataclass(frozen=True)
class _Job:
    """What a worker process needs to draw one case."""

    case: Case
    segmentation: Path
    plan: Plan
    shown: Shown
    most_bytes: int


def chosen(cases: Sequence[CaseScore], each: int = EACH) -> dict[str, Where]:
    """Case id -> "worst", "median" or "best", each case once, the worst first.

    By the mean Dice over labels; where there are things, by the average precision of their objects at an IoU of 0.5.
    """
    means = {case.case: share for case in cases if (share := share_found(case.objects)) is not None}
    means = means or case_means(cases)
    ordered = sorted(means, key=lambda case: (means[case], case))
    worst = ordered[:each]
    best = [case for case in ordered[::-1][:each] if case not in worst]
    rest = [case for case in ordered if case not in worst and case not in best]
    start = max(0, (len(rest) - each + 1) // 2)
    median = rest[start : start + each]
    return dict.fromkeys(worst, "worst") | dict.fromkeys(median, "median") | dict.fromkeys(best, "best")


def gallery(of: Gathered, *, volume_bytes: int = VOLUME_BYTES, each: int = EACH) -> list[Shown]:
    """Draw the chosen cases; one whose files cannot be read says why."""
    if of.scores is None:
        return []
    folds = {case.case: fold.fold for fold in of.scores.folds for case in fold.cases}
    by_id = {case.case: case for case in of.scores.cases}
    places = chosen(of.scores.cases, each)
    jobs = []
    for case_id, where in places.items():
        dice = {name: v for name, one in by_id[case_id].scores.items() if (v := one.get("dice")) is not None}
        shown = Shown(case_id, where, folds[case_id], float(np.mean(list(dice.values()))), dice, "", (), None)
        case = of.cases.get(case_id)
        if case is None:
            continue
        folder = of.workspace.fold(of.configuration, of.network, folds[case_id]) / "validation"
        jobs.append(_Job(case, segmentation_of(folder, case_id), of.plan, shown, volume_bytes // max(1, len(places))))
    workers = 0 if _nbytes(jobs) < LIGHT_BYTES else None
    return map_in_processes(draw, jobs, title="gallery", workers=workers)


def draw(job: _Job) -> Shown:
    """Draw one case."""
    try:
        arrays = read_case(job.case, job.segmentation, job.plan)
    except (AutosegError, OSError) as error:
        return replace(job.shown, problem=error.what if isinstance(error, AutosegError) else str(error))
    volumes = volumes_of(arrays, job.most_bytes) if arrays.image.shape[0] > 1 else None
    largest = _in_words(arrays, ["background", *job.plan.labels.values])
    return replace(job.shown, error=largest, stills=tuple(stills(arrays)), volumes=volumes)


def read_case(case: Case, segmentation: Path, plan: Plan) -> CaseArrays:
    """Read image, reference and segmentation of a case, all in one order of axes.

    Raises:
        AutosegError: a file is missing or damaged, or they are on different grids.
    """
    loaded = load_case(case, plan.labels, channels=plan.channels, orientation=plan.orientation)
    like = case.images[0] if is_dicom(segmentation) else None
    found = read_labels_as(plan.labels, segmentation, like)
    classes = reorient(plan.labels.to_indices(found.array, found.geometry.spacing), *loaded.orientation)
    if loaded.target is None or classes.shape != loaded.target.shape:
        raise DataError(f"{segmentation} is on another grid than the reference", remedy="segment the case again")
    hidden = loaded.target == plan.labels.ignore_index if plan.labels.ignore_index is not None else None
    reference = loaded.target if hidden is None else np.where(hidden, 0, loaded.target)
    segmented = classes if hidden is None else np.where(hidden, 0, classes)
    objects = None
    if plan.labels.things:
        label = read_label(case, plan.labels)
        numbers = [reorient(volume.array, *loaded.orientation) for volume in (label, found)]
        objects = (np.where(reference > 0, numbers[0], 0), np.where(segmented > 0, numbers[1], 0))
    return CaseArrays(
        case.id, loaded.image[0], reference.clip(min=0), segmented.clip(min=0), loaded.spacing,
        canonical=plan.orientation == "canonical", objects=objects,
    )  # fmt: skip


def _in_words(case: CaseArrays, names: Sequence[str]) -> str:
    """What the largest error is: which label was taken for which."""
    z, y, x = case.at
    there, given = int(case.reference[z, y, x]), int(case.segmentation[z, y, x])
    if there == given:
        return "no voxel is wrong"
    if there == 0:
        return f"{names[given]} where the reference has background"
    return f"{names[there]} segmented as {names[given]}"


def segmentation_of(folder: Path, case_id: str) -> Path:
    """The segmentation of a case, with any extension."""
    found = sorted(path for path in folder.glob("*") if path.name[0] != "." and stem_of(path) == case_id)
    return found[0] if found else folder / f"{case_id}.nii.gz"


def _nbytes(jobs: Sequence[_Job]) -> int:
    named = [(*job.case.images, job.case.label or "", str(job.segmentation)) for job in jobs]
    files = [Path(file) for names in named for file in names]
    return sum(file.stat().st_size for file in files if file.is_file())


def by_place(shown: Sequence[Shown]) -> Mapping[Where, list[Shown]]:
    """The gallery in groups, in the order of the page."""
    return {where: [one for one in shown if one.where == where] for where in ("worst", "median", "best")}
