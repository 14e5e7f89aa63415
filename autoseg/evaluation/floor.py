"""What a dataset scores without a network: the classical methods, tuned on training cases, scored on held-out ones.

    tried_cases    the few images on which numbers are tuned
    object_floor   instances: average precision of every method, and of the one that tuning prefers
    label_floor    labels: Dice of every method likewise

The numbers of a method (channel, bright or dark, smoothing, distances, least size) are chosen fold by fold, on at most
TRIED images of all folds together, without those that the fold holds out. The method `chosen` is the one that scores
best on these images: what somebody would take who never saw the held-out cases.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TypeVar

import numpy as np

from autoseg.datasets.splits import Split, Splits
from autoseg.evaluation.classical import OBJECT_METHODS, Classical, ObjectRecipe, otsu, typical_radius
from autoseg.evaluation.classical_labels import (
    LABEL_METHODS,
    MOST_CLASSES,
    LabelRecipe,
    Parts,
    confusion_of,
    cut,
    dice_of,
    learn_meaning,
)
from autoseg.evaluation.evaluate import Summary, summary_of
from autoseg.evaluation.object_scores import ObjectCounts, ObjectSummary, count_objects, summarise_objects
from autoseg.evaluation.objects import IOU_THRESHOLDS, PANOPTIC_IOU
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.processes import map_in_processes
from autoseg.workspace import FoldName

TRIED = 40  # images
CHOSEN = "chosen"  # the method that tuning prefers, fold by fold
MOST_CHANNELS = 4  # that are tried
RADIUS_STEP = 1.1  # radii are rounded to powers of it, so that folds try the same recipes
SMALLEST = (0.05, 0.2, 0.4)  # of objects, that are tried
_THING = LabelSet({"object core": 1, "object border": 2}, things={"object": Thing(1, 2)})
Read = Callable[[str], "Loaded"]
Recipe = TypeVar("Recipe", ObjectRecipe, LabelRecipe)


@dataclass(frozen=True)
class Loaded:
    """An image and what it is compared with, in one order of axes."""

    image: np.ndarray  # (C, Z, Y, X) float
    reference: np.ndarray  # (Z, Y, X): instance map, or class indices
    spacing: tuple[float, ...]  # mm
    ignored: np.ndarray | None = None  # bool (Z, Y, X), voxels that count in neither map


@dataclass(frozen=True)
class MethodOnObjects:
    """What one method reaches on the objects of held-out cases."""

    scores: ObjectSummary
    recipes: dict[str, ObjectRecipe]  # fold -> its numbers


@dataclass(frozen=True)
class MethodOnLabels:
    """What one method reaches on the labels of held-out cases."""

    dice: dict[str, Summary]  # label or region, and "mean" over them
    recipes: dict[str, LabelRecipe]  # fold -> its numbers


@dataclass(frozen=True)
class Beside:
    """A trained model beside the floor, on the same held-out cases."""

    model: str
    score: str  # in words, such as "Dice of liver"
    network: float
    interval: tuple[float, float] | None
    floor: float
    verdict: str  # in words


@dataclass(frozen=True)
class Floor:
    """What a dataset scores without a network."""

    dataset: str
    cases: int  # held out and scored
    tried: int  # images on which numbers were tuned
    objects: dict[str, dict[str, MethodOnObjects]] = field(default_factory=dict)  # thing -> method
    labels: dict[str, MethodOnLabels] = field(default_factory=dict)  # method
    networks: tuple[Beside, ...] = ()


def tried_cases(splits: Splits, most: int = TRIED) -> dict[FoldName, tuple[str, ...]]:
    """The images on which each fold tunes: evenly spaced ones of all training cases, without those it holds out."""
    training = sorted({case for split in splits.splits for case in split.train})
    spaced = [training[i] for i in np.unique(np.linspace(0, len(training) - 1, min(most, len(training))).astype(int))]
    return {split.fold: tuple(_of_fold(split, spaced, most)) for split in splits.splits}


def object_floor(
    read: Read, splits: Splits, patients: Mapping[str, Hashable], *, workers: int | None = None, most: int = TRIED
) -> dict[str, MethodOnObjects]:
    """Score every method on the objects of held-out cases.

    Args:
        read: case -> image and instance map; it is called in other processes.
        patients: case -> patient, for intervals.

    Raises:
        Whatever `read` raises, such as DataError.
    """
    tuned_on = tried_cases(splits, most)
    cases = sorted({case for cases in tuned_on.values() for case in cases})
    looks = dict(
        zip(cases, map_in_processes(partial(_look, read), cases, title="intensities", workers=workers), strict=True)
    )
    recipes = {fold: object_recipes([looks[case] for case in own]) for fold, own in tuned_on.items()}
    tried = _counted(read, _jobs(tuned_on, recipes), "tuning", workers)
    chosen = {
        fold: _best_objects(recipes[fold], [tried[case] for case in tuned_on[fold]]) for fold in recipes
    }  # fold -> method -> recipe
    held = {split.fold: split.validation for split in splits.splits}
    scored = _counted(read, _jobs(held, {f: [*of.values()] for f, of in chosen.items()}), "held-out cases", workers)
    found = {}
    for method in (*OBJECT_METHODS, CHOSEN):
        held_out = [(case, chosen[split.fold][method]) for split in splits.splits for case in split.validation]
        summary = summarise_objects(
            [scored[case][recipe] for case, recipe in held_out], [patients.get(case, case) for case, _ in held_out]
        )
        found[method] = MethodOnObjects(summary, {str(fold): of[method] for fold, of in chosen.items()})
    return found


def label_floor(
    read: Read,
    splits: Splits,
    patients: Mapping[str, Hashable],
    scored: Mapping[str, Sequence[int]],
    labels: int,
    *,
    workers: int | None = None,
    most: int = TRIED,
) -> dict[str, MethodOnLabels]:
    """Score every method on the labels of held-out cases.

    Args:
        read: case -> image and class indices; it is called in other processes.
        scored: label or region -> its class indices; labels: the number of labels.
    """
    tuned_on = tried_cases(splits, most)
    cases = sorted({case for cases in tuned_on.values() for case in cases})
    work = partial(_cut_all, read, labels)
    parts = dict(
        zip(
            cases,
            map_in_processes(work, [(case, None) for case in cases], title="tuning", workers=workers),
            strict=True,
        )
    )
    chosen: dict[FoldName, dict[str, tuple[LabelRecipe, np.ndarray]]] = {
        fold: _best_labels([parts[case] for case in own], scored) for fold, own in tuned_on.items()
    }
    held = {split.fold: split.validation for split in splits.splits}
    jobs = _jobs(held, {fold: [recipe for recipe, _ in of.values()] for fold, of in chosen.items()})
    done = dict(
        zip(jobs, map_in_processes(work, [*jobs.items()], title="held-out cases", workers=workers), strict=True)
    )
    found = {}
    for method in (*LABEL_METHODS, CHOSEN):
        rows, groups = [], []
        for split in splits.splits:
            recipe, meaning = chosen[split.fold][method]
            for case in split.validation:
                rows.append(_with_mean(dice_of(confusion_of(recipe, done[case][recipe], meaning), scored)))
                groups.append(patients.get(case, case))
        dice = {name: summary_of([row[name] for row in rows], groups) for name in (*scored, "mean")}
        found[method] = MethodOnLabels(dice, {str(fold): of[method][0] for fold, of in chosen.items()})
    return found


@dataclass(frozen=True)
class _Look:
    """What an image shows before anything is tuned."""

    overlap: dict[tuple[int, bool], float]  # channel, bright -> IoU of Otsu's class with the reference's foreground
    volumes: tuple[float, ...]  # mm3 or mm2, of objects
    dims: int


def _look(read: Read, case: str) -> _Look:
    loaded = read(case)
    inside = loaded.reference > 0
    overlap = {}
    for channel, values in enumerate(loaded.image[:MOST_CHANNELS]):
        for bright in (True, False):
            signed = values if bright else -values
            found = signed > otsu(signed)
            union = np.count_nonzero(found | inside)
            overlap[channel, bright] = np.count_nonzero(found & inside) / union if union else 0.0
    flat = inside.shape[0] == 1
    voxel = float(np.prod(loaded.spacing[1:] if flat else loaded.spacing))
    sizes = np.unique(loaded.reference[inside], return_counts=True)[1]
    return _Look(overlap, tuple((sizes * voxel).tolist()), 2 if flat else 3)


def object_recipes(looks: Sequence["_Look"]) -> list[ObjectRecipe]:
    """The grid of recipes for a fold: channel and polarity of its training images, their radius, a few numbers."""
    if not looks:
        return [ObjectRecipe(method) for method in OBJECT_METHODS]
    channel, bright = max(
        looks[0].overlap, key=lambda key: float(np.mean([look.overlap.get(key, 0) for look in looks]))
    )
    radius = typical_radius([volume for look in looks for volume in look.volumes], looks[0].dims)
    radius = float(RADIUS_STEP ** np.round(np.log(radius) / np.log(RADIUS_STEP)))
    common = ObjectRecipe("otsu_components", channel, bright, radius_mm=radius)
    made = [replace(common, smoothing=s, smallest=v) for s, v in product((0.0, 1.0, 2.0), SMALLEST)]
    for method in OBJECT_METHODS[1:]:
        smoothings = (1.0, 2.0) if method == "otsu_watershed" else (1.0,)
        contrasts = (0.05, 0.15, 0.3) if method == "local_watershed" else (common.contrast,)
        for s, c, r, apart, v in product(smoothings, contrasts, (radius, None), (0.6, 0.9, 1.2), SMALLEST):
            made.append(replace(common, method=method, smoothing=s, contrast=c, radius_mm=r, apart=apart, smallest=v))
    return made


def label_recipes(image: np.ndarray) -> list[LabelRecipe]:
    """The grid of recipes for the labels of an image (C, Z, Y, X)."""
    channels = range(min(len(image), MOST_CHANNELS))
    made = [
        LabelRecipe("otsu", channel, smoothing, classes)
        for channel, smoothing, classes in product(channels, (0.5, 1.5), range(2, MOST_CLASSES + 1))
    ]
    return [*made, *(LabelRecipe("superpixels", smoothing=smoothing) for smoothing in (0.5, 1.5))]


def _of_fold(split: Split, spaced: Sequence[str], most: int) -> list[str]:
    own, held_out = set(split.train), set(split.validation)
    if own == held_out:  # one patient alone: scores say nothing about others, as the folds' notes explain
        return [case for case in spaced if case in own]
    return [case for case in spaced if case in own] or sorted(own)[:most]


def _jobs(
    cases: Mapping[FoldName, Sequence[str]], recipes: Mapping[FoldName, Sequence[Recipe]]
) -> dict[str, list[Recipe]]:
    """Case -> the recipes of all folds that name it, each once."""
    wanted: dict[str, dict[Recipe, None]] = {}
    for fold, named in cases.items():
        for case in named:
            wanted.setdefault(case, {}).update(dict.fromkeys(recipes[fold]))
    return {case: list(found) for case, found in wanted.items()}


def _counted(
    read: Read, jobs: Mapping[str, Sequence[ObjectRecipe]], title: str, workers: int | None
) -> dict[str, dict[ObjectRecipe, ObjectCounts]]:
    """Objects of each case by each of its recipes."""
    counts = map_in_processes(partial(_count_case, read), [*jobs.items()], title=title, workers=workers)
    return dict(zip(jobs, counts, strict=True))


def _count_case(read: Read, job: tuple[str, Sequence[ObjectRecipe]]) -> dict[ObjectRecipe, ObjectCounts]:
    case, recipes = job
    loaded = read(case)
    tried = Classical(loaded.image, loaded.spacing)
    return {
        recipe: count_objects(_THING, loaded.reference, tried.objects(recipe), loaded.ignored)["object"]
        for recipe in recipes
    }


def _best_objects(
    recipes: Sequence[ObjectRecipe], tried: Sequence[Mapping[ObjectRecipe, ObjectCounts]]
) -> dict[str, ObjectRecipe]:
    """Each method's recipe with the highest average precision at an IoU of 0.5 over these images; and the best one."""
    at = IOU_THRESHOLDS.index(PANOPTIC_IOU)

    def worth(recipe: ObjectRecipe) -> float:
        counts = [case[recipe] for case in tried]
        matched = sum(one.matched[at] for one in counts)
        return matched / max(1, sum(one.reference + one.segmentation for one in counts) - matched)

    best = {
        method: max((recipe for recipe in recipes if recipe.method == method), key=worth) for method in OBJECT_METHODS
    }
    return best | {CHOSEN: max(best.values(), key=worth)}


def _cut_all(read: Read, labels: int, job: tuple[str, Sequence[LabelRecipe] | None]) -> dict[LabelRecipe, Parts]:
    case, recipes = job
    loaded = read(case)
    target = loaded.reference if loaded.ignored is None else np.where(loaded.ignored, -1, loaded.reference)
    return {
        recipe: cut(loaded.image, target, loaded.spacing, recipe, labels)
        for recipe in (label_recipes(loaded.image) if recipes is None else recipes)
    }


def _best_labels(
    training: Sequence[Mapping[LabelRecipe, Parts]], scored: Mapping[str, Sequence[int]]
) -> dict[str, tuple[LabelRecipe, np.ndarray]]:
    """Each method's recipe with the highest mean Dice over these images, with its meaning; and the best one."""
    worth: dict[LabelRecipe, float] = {}
    meanings: dict[LabelRecipe, np.ndarray] = {}
    for recipe in training[0]:
        if not all(recipe in case for case in training):
            continue
        meanings[recipe] = learn_meaning(recipe, [case[recipe] for case in training], scored)
        found = [
            _with_mean(dice_of(confusion_of(recipe, c[recipe], meanings[recipe]), scored))["mean"] for c in training
        ]
        worth[recipe] = float(np.mean([dice for dice in found if dice is not None] or [0.0]))
    best = {
        method: max((recipe for recipe in worth if recipe.method == method), key=worth.__getitem__)
        for method in LABEL_METHODS
    }
    best[CHOSEN] = max(best.values(), key=worth.__getitem__)
    return {method: (recipe, meanings[recipe]) for method, recipe in best.items()}


def _with_mean(dice: Mapping[str, float | None]) -> dict[str, float | None]:
    known = [value for value in dice.values() if value is not None]
    return {**dice, "mean": float(np.mean(known)) if known else None}
