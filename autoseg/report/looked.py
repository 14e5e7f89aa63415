"""Where the networks looked in held-out cases: what `report --saliency` left in the model's folder, as pictures.

MODEL/saliency/CASE/    maps and saliency.json, see `autoseg.inference.saliency_files`
"""

from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.imaging.formats.readers import read_image
from autoseg.imaging.geometry import orientation_of, reorient
from autoseg.inference.saliency_files import FOLDER, INDEX, SaliencyFile, SaliencyIndex
from autoseg.records import load
from autoseg.report.gallery import Where, chosen, read_case, segmentation_of
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import case_means
from autoseg.report.stills import Still, stills
from autoseg.workspace import FoldName, Workspace

EACH = 1  # worst, median and best cases
MOST_MAPS = 6  # of one case


@dataclass(frozen=True)
class LookedAt:
    """One map of a case."""

    id: str
    where: Where
    fold: FoldName
    dice: float  # mean over labels
    shows: str  # what the map is, in words
    inside: str  # how much of it lies in the label, in words; "": it is 0 everywhere
    note: str
    stills: tuple[Still, ...]
    problem: str = ""  # why there is no picture


def folder_of(workspace: Workspace, configuration: str, network: str) -> Path:
    """Where the maps of a model's held-out cases are."""
    return workspace.model(configuration, network) / FOLDER


def to_explain(of: Gathered) -> dict[str, Where]:
    """The cases to explain: case id -> "worst", "median" or "best"."""
    return chosen(of.scores.cases, EACH) if of.scores is not None else {}


def looked_at(of: Gathered) -> list[LookedAt]:
    """Draw the maps that exist of the worst, median and best case."""
    if of.scores is None:
        return []
    folds = {case.case: fold.fold for fold in of.scores.folds for case in fold.cases}
    means = case_means(of.scores.cases)
    found: list[LookedAt] = []
    for case, where in to_explain(of).items():
        folder = folder_of(of.workspace, of.configuration, of.network) / case
        if case not in of.cases or not (folder / INDEX).is_file():
            continue
        try:
            index = load(SaliencyIndex, folder / INDEX)
        except AutosegError as error:
            found.append(LookedAt(case, where, folds[case], means[case], "", "", "", (), error.what))
            continue
        for one in index.maps[:MOST_MAPS]:
            drawn, problem = _drawn(of, case, folds[case], folder / one.file)
            inside = f"{100 * one.inside:.0f} % of it lies in the label" if one.inside is not None else ""
            words = in_words(one, index)
            found.append(LookedAt(case, where, folds[case], means[case], words, inside, one.note, drawn, problem))
    return found


def in_words(one: SaliencyFile, index: SaliencyIndex) -> str:
    """What a map is."""
    place = "" if one.place is None else f" at voxel {', '.join(map(str, one.place))}"
    if one.shows == FOLDER:
        method = {"grad_cam": "Grad-CAM", "hires_cam": "HiResCAM"}[index.method]
        stage = f"encoder stage {index.stage}" if index.stage.isdigit() else index.stage
        return f"{one.label}{place}: {method}, {stage}"
    kind = "coefficients of" if one.shows.startswith("gate") else f"{one.label}{place}:"
    return f"{kind} {one.shows.replace('_', ' ')}"


def _drawn(of: Gathered, case: str, fold: FoldName, file: Path) -> tuple[tuple[Still, ...], str]:
    """Planes through the largest value of a map, and why there are none."""
    folder = of.workspace.fold(of.configuration, of.network, fold) / "validation"
    try:
        arrays = read_case(of.cases[case], segmentation_of(folder, case), of.plan)
        read = read_image(file)
        turn = orientation_of(read.geometry) if of.plan.orientation == "canonical" else ((0, 1, 2), (0, 0, 0))
        values = reorient(read.array[0], *turn)
        if values.shape != arrays.image.shape:
            return (), f"{file} is on another grid than the image"
        return tuple(stills(arrays, values)), ""
    except (AutosegError, OSError) as error:
        return (), error.what if isinstance(error, AutosegError) else str(error)
