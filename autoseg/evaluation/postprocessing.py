"""What removing components and filling holes would do to a held-out segmentation, counted once per case.

Of every component of every label its volume and its voxels by reference class are kept: from these, each candidate is
scored without another look at the label map. What is chosen is then applied by `imaging.corrections`, as predict does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from autoseg.errors import DataError
from autoseg.evaluation.evaluate import ScoreJob
from autoseg.evaluation.metrics import confusion_matrix
from autoseg.imaging.alignment import compare_grids
from autoseg.imaging.corrections import EVERYWHERE, correct
from autoseg.imaging.formats.readers import is_dicom, read_labels_as
from autoseg.imaging.labels import LabelSet
from autoseg.models.decision import ComponentRule, Rule, correction_of
from autoseg.processes import map_in_processes

VOLUMES = 12  # candidates of a smallest volume


@dataclass(frozen=True)
class OfLabel:
    """The components of one label or region in one segmentation.

    Args:
        volumes: (n,) mm³.
        voxels: class index -> (n, C) voxels of that class by reference class.
        holes: (C,) voxels of holes by reference class.
    """

    volumes: np.ndarray
    voxels: dict[int, np.ndarray]
    holes: np.ndarray


@dataclass(frozen=True)
class CaseComponents:
    """One segmentation: its confusion matrix int64 (C, C), [reference, segmentation], and its components."""

    case: str
    confusion: np.ndarray
    labels: dict[str, OfLabel]

    def corrected(self, name: str, rule: ComponentRule, labels: LabelSet) -> np.ndarray:
        """The confusion matrix after one label's components are corrected: islands or holes, not both."""
        own = self.labels[name]
        correction = correction_of(labels, name, rule, 1.0)
        confusion = self.confusion.copy()
        if rule.fill_holes:
            confusion[:, 0] -= own.holes
            confusion[:, correction.filled_with] += own.holes
            return confusion
        removed = own.volumes < rule.min_volume
        if rule.keep_largest and len(removed):
            removed |= np.arange(len(removed)) != int(np.argmax(own.volumes))
        for index, voxels in own.voxels.items():
            moved = voxels[removed].sum(axis=0)
            confusion[:, index] -= moved
            confusion[:, correction.replaced_by] += moved
        return confusion


@dataclass(frozen=True)
class CorrectedJob:
    """One pair of files, and what is done to the segmentation before they are compared."""

    pair: ScoreJob
    rule: Rule


def components_of_cases(jobs: Sequence[ScoreJob], *, workers: int | None = None) -> list[CaseComponents]:
    """Count the components of held-out segmentations, in processes. Raises DataError where a file cannot be used."""
    return map_in_processes(components_of_case, jobs, title="components", workers=workers)


def components_of_case(job: ScoreJob) -> CaseComponents:
    """Count the components of one segmentation."""
    reference, segmentation, volume = read_pair(job)
    classes = job.labels.num_labels + 1
    confusion = confusion_matrix(reference, segmentation, classes, ignore_index=job.labels.ignore_index)
    found = {
        name: _of_label(reference, segmentation, indices, volume, classes)
        for name, indices in job.labels.scored.items()
    }
    return CaseComponents(job.case, confusion, found)


def corrected_confusions(jobs: Sequence[CorrectedJob], *, workers: int | None = None) -> list[np.ndarray]:
    """Confusion matrices of segmentations that are corrected as predict corrects them, in processes."""
    return map_in_processes(corrected_confusion, jobs, title="corrected", workers=workers)


def corrected_confusion(job: CorrectedJob) -> np.ndarray:
    """The same of one segmentation."""
    labels = job.pair.labels
    reference, segmentation, volume = read_pair(job.pair)
    corrected = segmentation.astype(np.min_scalar_type(labels.num_labels))
    correct(corrected, job.rule.corrections(labels, volume))
    return confusion_matrix(reference, corrected, labels.num_labels + 1, ignore_index=labels.ignore_index)


def read_pair(job: ScoreJob) -> tuple[np.ndarray, np.ndarray, float]:
    """Class indices (Z, Y, X) of reference and segmentation on one grid, and the volume of a voxel in mm³.

    Raises:
        DataError: a file cannot be read, or the grids differ.
    """
    maps = []
    for path, other in ((job.reference, job.segmentation), (job.segmentation, job.reference)):
        like = None if is_dicom(other) else other
        maps.append(read_labels_as(job.labels, path, like))
    match = compare_grids(maps[1].geometry, maps[0].geometry, job.reference.name)
    if not match.usable:
        raise DataError(
            f"{job.segmentation} is on another grid than {job.reference}: {'; '.join(match.differences)}",
            remedy="segment the held-out cases again: train with --restart",
        )
    spacing = maps[0].geometry.spacing if maps[0].geometry.sized else maps[1].geometry.spacing
    reference = job.labels.to_indices(maps[0].array, spacing)
    segmentation = job.labels.to_indices(np.ascontiguousarray(match.apply(maps[1].array)), spacing)
    return reference, segmentation, float(np.prod(spacing))


def candidates(cases: Sequence[CaseComponents], name: str) -> list[ComponentRule]:
    """Rules to try for the islands of a label, the mildest first: smallest volumes between those found; the largest."""
    volumes = [case.labels[name].volumes for case in cases]
    smaller = np.concatenate([np.sort(one)[:-1] for one in volumes]) if volumes else np.empty(0)
    if not len(smaller):
        return []
    limits = np.unique(np.quantile(smaller, np.linspace(0, 1, VOLUMES)))
    # just above each: a volume that was found is removed with it
    rounded = dict.fromkeys(float(f"{limit * 1.001:.4g}") for limit in limits)
    return [*(ComponentRule(min_volume=limit) for limit in rounded), ComponentRule(keep_largest=True)]


def combined(rules: Sequence[ComponentRule]) -> ComponentRule:
    """Rules for one label as one."""
    rule = ComponentRule()
    for one in rules:
        rule = replace(
            rule, keep_largest=rule.keep_largest or one.keep_largest, fill_holes=rule.fill_holes or one.fill_holes,
            min_volume=max(rule.min_volume, one.min_volume),
        )  # fmt: skip
    return rule


def _of_label(
    reference: np.ndarray, segmentation: np.ndarray, indices: tuple[int, ...], volume: float, classes: int
) -> OfLabel:
    mask = np.isin(segmentation, indices)
    numbers, count = ndimage.label(mask, structure=EVERYWHERE)
    known = (reference >= 0) & (reference < classes)
    here = mask & known
    voxels = {}
    for index in indices:
        inside = here & (segmentation == index) if len(indices) > 1 else here
        keys = (numbers[inside].astype(np.int64) - 1) * classes + reference[inside]
        voxels[index] = np.bincount(keys, minlength=count * classes).reshape(count, classes)
    volumes = np.bincount(numbers[mask], minlength=count + 1)[1:] * volume
    return OfLabel(volumes, voxels, _holes(reference, segmentation, mask, known, classes))


def _holes(
    reference: np.ndarray, segmentation: np.ndarray, mask: np.ndarray, known: np.ndarray, classes: int
) -> np.ndarray:
    """Voxels (C,) by reference class of background that a label encloses."""
    numbers, count = ndimage.label(~mask)
    inside = np.ones(count + 1, dtype=bool)
    inside[0] = False
    for axis, extent in enumerate(mask.shape):
        if extent > 1:
            inside[numbers.take(0, axis=axis)] = inside[numbers.take(-1, axis=axis)] = False
    return np.bincount(reference[inside[numbers] & (segmentation == 0) & known], minlength=classes)
