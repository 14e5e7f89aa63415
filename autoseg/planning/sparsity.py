"""Planning rules for sparse labels, from the sizes, counts and presence of connected components.

Functions take arrays in the plan's axis order and return a value with the reason for it; `planner.py` numbers them. A
component's extent is the edge lengths of its bounding box. None of these rules is nnU-Net's.

    foreground_fraction  how often patches must be centred on foreground
    case_sampling, class_sampling  whether rare labels are drawn more often
    wanted_extent        what a patch should cover
    guard_spacing        a spacing at which small components survive
    class_weights, batch_dice      the loss where labels are small or often absent
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import CaseFingerprint, Fingerprint

# nnU-Net centres a third of the patches; with three of four or more, a network expects foreground everywhere.
FOREGROUND_FRACTION = (0.33, 0.67)
PATCHES_WITH_FOREGROUND = 2 / 3  # wanted among all patches
RARE_LABEL = 0.5  # a label in fewer of the cases is drawn less than every second time: draw its cases more often
FREQUENCY_RATIO = 10.0  # beyond it the rarest label gets under 10 % of the voxels of the most common one
CONTEXT = 2.0  # a patch should be this many times longer than the component it shows
TYPICAL_QUANTILE = 0.75  # of the extents of a label's components: larger than most, yet no outlier
VANISHING_SHARE = 0.05  # of a label's components: losing one in twenty costs more than the label noise does
FINE_PERCENTILE = 10  # of the cases' spacings: finer would invent detail for nine cases in ten
GROWTH_LIMIT = 2.0  # of the median voxel count when spacing is refined: the patch sees half as much
LITTLE = 5e-3  # share of a patch: below it the Dice of one patch is mostly noise, and the label trains slowly
ABSENT_SHARE = 0.25  # of the cases: Dice per sample is then often that of an absent label
MAX_CLASS_WEIGHT = 10.0  # before normalisation: larger weights make false positives cheap


@dataclass(frozen=True)
class ComponentTable:
    """Components of all cases as columns; `weight` is the number of real ones that a described one represents."""

    labels: tuple[str, ...]
    case: np.ndarray  # (n,) index into the fingerprint's cases
    label: np.ndarray  # (n,) index into labels
    weight: np.ndarray  # (n,)
    volume_mm3: np.ndarray  # (n,)
    extent_mm: np.ndarray  # (n, 3) in the plan's axis order


def component_table(fingerprint: Fingerprint, axis_order: Sequence[int] = (0, 1, 2)) -> ComponentTable:
    """Collect the components of a fingerprint, their axes permuted."""
    rows = [
        (i, j, sizes.count / len(sizes.volumes_mm3), volume, *extent)
        for i, case in enumerate(fingerprint.cases)
        for j, name in enumerate(fingerprint.labels)
        if (sizes := case.components.get(name)) is not None
        for volume, extent in zip(sizes.volumes_mm3, sizes.extents_mm, strict=True)
    ]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    return ComponentTable(
        labels=fingerprint.labels,
        case=table[:, 0].astype(int),
        label=table[:, 1].astype(int),
        weight=table[:, 2],
        volume_mm3=table[:, 3],
        extent_mm=table[:, 4:][:, list(axis_order)],
    )


def weighted_quantile(values: np.ndarray, weights: np.ndarray, quantile: float) -> float:
    """Smallest value that has at least the given share of the weight at or below it; `values` (n,), n > 0."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, quantile * cumulative[-1] * (1 - 1e-12))])


def meeting_chance(shape: np.ndarray, patch: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Probability that a patch meets a box, both placed uniformly and independently in an image; arrays (..., axes).

    Along one axis of free lengths a = shape - patch and b = shape - extent the lower corners are uniform in [0, a] and
    [0, b]. Each of the two ways to miss has the area (shape - patch - extent)^2 / 2 of the rectangle a * b.
    """
    patch, extent = np.minimum(patch, shape), np.minimum(extent, shape)
    gap = np.maximum(0.0, shape - patch - extent)
    free = np.maximum((shape - patch) * (shape - extent), 1e-12)
    return np.prod(1.0 - gap**2 / free, axis=-1)


def foreground_chance(table: ComponentTable, shapes: np.ndarray, spacings: np.ndarray, patch: Sequence[int]) -> float:
    """Probability that a uniformly placed patch meets any component: the median over cases.

    `shapes` and `spacings` (cases, 3) are those after resampling, in voxels and mm; `patch` (3,) in voxels.
    """
    if len(shapes) == 0:
        return 0.0
    extents = table.extent_mm / spacings[table.case]
    met = meeting_chance(shapes[table.case].astype(float), np.asarray(patch, dtype=float), extents)
    log_missed = np.zeros(len(shapes))
    np.add.at(log_missed, table.case, table.weight * np.log(np.maximum(1.0 - met, 1e-12)))
    return float(np.median(1.0 - np.exp(log_missed)))


def foreground_fraction(chance: float) -> tuple[float, str]:
    """Share of patches to centre on foreground so that PATCHES_WITH_FOREGROUND of all meet some: f + (1 - f) p."""
    low, high = FOREGROUND_FRACTION
    wanted = (PATCHES_WITH_FOREGROUND - chance) / (1 - chance) if chance < 1 else low
    fraction = round(min(high, max(low, wanted)), 2)
    seen = fraction + (1 - fraction) * chance
    return fraction, (
        f"a uniformly placed patch meets foreground with probability {chance:.2g} (median over cases, by the boxes of "
        f"components): {seen:.0%} of all patches show some; wanted {PATCHES_WITH_FOREGROUND:.0%}, by {low} to {high}"
    )


def presence(fingerprint: Fingerprint) -> dict[str, float]:
    """Share of the cases in which each label occurs."""
    return {
        name: sum(case.class_voxels.get(name, 0) > 0 for case in fingerprint.cases) / max(1, len(fingerprint.cases))
        for name in fingerprint.labels
    }


def case_sampling(fingerprint: Fingerprint) -> tuple[Literal["uniform", "presence"], str]:
    """Draw cases of rare labels more often where a label occurs in some, but fewer than RARE_LABEL of the cases."""
    rare = {name: share for name, share in presence(fingerprint).items() if 0 < share < RARE_LABEL}
    if rare:
        return "presence", f"in fewer than {RARE_LABEL:.0%} of the cases: {_shares(rare)}"
    return "uniform", f"every label that occurs is in at least {RARE_LABEL:.0%} of the cases"


def class_sampling(fingerprint: Fingerprint) -> tuple[Literal["uniform", "inverse_frequency"], str]:
    """Centre patches on rare labels more often where voxel counts differ by more than FREQUENCY_RATIO."""
    voxels = {name: count for name, count in _voxels(fingerprint).items() if count > 0}
    if len(voxels) < 2:
        return "uniform", "there are fewer than two labels to choose from"
    most, least = max(voxels, key=lambda n: voxels[n]), min(voxels, key=lambda n: voxels[n])
    ratio = voxels[most] / voxels[least]
    reason = f"{most} has {ratio:.3g} times the voxels of {least}; the limit is {FREQUENCY_RATIO:.0f}"
    return ("inverse_frequency" if ratio > FREQUENCY_RATIO else "uniform"), reason


def wanted_extent(table: ComponentTable) -> np.ndarray:
    """Extent in mm (3,) that a patch should cover: CONTEXT times the typical component of the label that needs most."""
    wanted = np.zeros(3)
    for label in np.unique(table.label):
        rows = table.label == label
        for axis in range(3):
            typical = weighted_quantile(table.extent_mm[rows, axis], table.weight[rows], TYPICAL_QUANTILE)
            wanted[axis] = max(wanted[axis], CONTEXT * typical)
    return wanted


def vanishing(table: ComponentTable, case_spacings: np.ndarray, target: np.ndarray) -> dict[str, tuple[float, float]]:
    """Per label that occurs: how many components a target spacing (mm) loses, and how many there are.

    A component is lost if its volume is less than half a voxel, or if it is shorter than half a voxel along an axis
    that becomes coarser than it is stored. `case_spacings` is (cases, 3).
    """
    lost = _guilty_axes(table, case_spacings, target).any(axis=1)
    return {
        name: (float(table.weight[rows & lost].sum()), float(table.weight[rows].sum()))
        for j, name in enumerate(table.labels)
        if (rows := table.label == j).any()
    }


def guard_spacing(table: ComponentTable, case_spacings: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, str]:
    """Refine a target spacing (3,) at which more than VANISHING_SHARE of some label's components would vanish.

    The axes at fault are refined towards the FINE_PERCENTILE of the cases, the worst first, while the voxel count grows
    by no more than GROWTH_LIMIT, and only if that preserves some.
    """
    before = vanishing(table, case_spacings, target)
    if all(lost <= VANISHING_SHARE * total for lost, total in before.values()):
        return target, f"components that vanish at this spacing: {_losses(before)}"
    fine = np.percentile(case_spacings, FINE_PERCENTILE, axis=0)
    guilty = np.flatnonzero(_guilty_axes(table, case_spacings, target).any(axis=0))
    refined, left = target.copy(), GROWTH_LIMIT
    for axis in sorted(guilty.tolist(), key=lambda d: fine[d] / target[d]):
        factor = min(left, max(1.0, target[axis] / fine[axis]))
        refined[axis], left = target[axis] / factor, left / factor
    after = vanishing(table, case_spacings, refined)
    if sum(lost for lost, _ in after.values()) >= sum(lost for lost, _ in before.values()):
        return target, (
            f"components that vanish at this spacing: {_losses(before)}; no spacing saves any within {GROWTH_LIMIT:g} "
            f"times the voxels and no finer than the {FINE_PERCENTILE}th percentile of the cases"
        )
    return refined, (
        f"refined towards the {FINE_PERCENTILE}th percentile of the cases ({GROWTH_LIMIT / left:.2f} times the voxels, "
        f"at most {GROWTH_LIMIT:g}): components that vanish: {_losses(before)} before, {_losses(after)} after"
    )


def filled_share(table: ComponentTable, patch: Sequence[int], spacing: Sequence[float]) -> dict[str, float]:
    """Share of a patch (voxels) that the component around a random voxel of each label fills: the median over voxels.

    With two entries in `patch` and `spacing` (mm), a component counts with its mean area across the first axis.
    """
    content = table.volume_mm3 if len(patch) == 3 else table.volume_mm3 / table.extent_mm[:, 0]
    share = content / (math.prod(spacing) * math.prod(patch))
    return {
        name: weighted_quantile(share[rows], table.weight[rows] * table.volume_mm3[rows], 0.5)
        for j, name in enumerate(table.labels)
        if (rows := table.label == j).any()
    }


def class_weights(
    fingerprint: Fingerprint, labels: LabelSet, filled: Mapping[str, float]
) -> tuple[tuple[float, ...] | None, str]:
    """Weigh the cross-entropy by the root of inverse frequency where even foreground-centred patches hold little.

    Background weighs 1, the others up to MAX_CLASS_WEIGHT; all are divided by their mean. One weight per head: labels
    after background, or regions. A label that never occurs is weighted like background.
    """
    little = {name: share for name, share in filled.items() if share < LITTLE}
    if not little:
        return None, f"every label fills at least {LITTLE:g} of a patch centred on it"
    voxels = list(_voxels(fingerprint).values())
    total = sum(math.prod(case.shape_after_crop) - case.ignored_voxels for case in fingerprint.cases)
    heads = labels.regions_as_indices if labels.has_regions else tuple((i,) for i in range(1, labels.num_labels + 1))
    background = max(1, total - sum(voxels))
    weights = [] if labels.has_regions else [1.0]
    for indices in heads:
        count = sum(voxels[i - 1] for i in indices)
        weights.append(min(MAX_CLASS_WEIGHT, max(1.0, math.sqrt(background / count))) if count else 1.0)
    mean = sum(weights) / len(weights)
    return tuple(round(w / mean, 4) for w in weights), (
        f"labels that fill less than {LITTLE:g} of a patch centred on them: {_shares(little)}; weights "
        f"are the root of inverse frequency, at most {MAX_CLASS_WEIGHT:g} times background's, mean 1"
    )


def batch_dice(fingerprint: Fingerprint, filled: Mapping[str, float]) -> tuple[bool, str]:
    """Sum Dice over the batch where a label is often absent or tiny: alone in a sample its Dice is noise."""
    absent = {name: share for name, share in presence(fingerprint).items() if 0 < share < 1 - ABSENT_SHARE}
    little = {name: share for name, share in filled.items() if share < LITTLE}
    if absent:
        return True, f"labels absent from more than {ABSENT_SHARE:.0%} of the cases; they occur in {_shares(absent)}"
    if little:
        return True, f"labels that fill less than {LITTLE:g} of a patch: {_shares(little)}"
    return False, "every label is in most cases, and none is tiny"


def _voxels(fingerprint: Fingerprint) -> dict[str, int]:
    return {name: sum(_count(case, name) for case in fingerprint.cases) for name in fingerprint.labels}


def _count(case: CaseFingerprint, name: str) -> int:
    return case.class_voxels.get(name, 0)


def _guilty_axes(table: ComponentTable, case_spacings: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(components, 3): the axes along which a target spacing is too coarse for a component to survive."""
    coarser = target > case_spacings[table.case] * (1 + 1e-6)
    small = table.volume_mm3 < 0.5 * math.prod(target)
    return coarser & ((table.extent_mm < 0.5 * target) | small[:, None])


def _losses(losses: Mapping[str, tuple[float, float]]) -> str:
    return _first([f"{name} {lost:.0f} of {total:.0f}" for name, (lost, total) in losses.items()]) or "no components"


def _shares(shares: Mapping[str, float]) -> str:
    return _first([f"{name} {share:.2g}" for name, share in sorted(shares.items(), key=lambda item: item[1])])


def _first(parts: Sequence[str], shown: int = 6) -> str:
    return ", ".join(parts[:shown]) + (f" and {len(parts) - shown} more" if len(parts) > shown else "")
