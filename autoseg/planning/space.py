"""The grid a dataset is resampled to: its spacing, and which axis comes first.

Section 1 of the planning rules (`planner.py` prints them). Axis numbers in reasons are those of the stored images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoseg.planning import sparsity
from autoseg.planning.fingerprint import Fingerprint

ANISOTROPY = 3.0  # an axis more than this many times coarser than the others is treated separately (nnU-Net v2)
SAME_SPACING = 1e-3  # relative: closer spacings differ only by rounding in file headers

Choice = tuple[str, object, str]  # step, value, reason


@dataclass(frozen=True)
class Space:
    """A dataset on its target grid, in the plan's axis order."""

    spacing: np.ndarray  # (3,) mm: the target
    case_spacings: np.ndarray  # (cases, 3) mm, before resampling
    case_shapes: np.ndarray  # (cases, 3) voxels, after crop, before resampling
    shapes: np.ndarray  # (cases, 3) voxels, after resampling
    median_shape: np.ndarray  # (3,) of `shapes`; may hold halves
    axis_order: tuple[int, int, int]  # axis_order[i] is the stored axis that becomes axis i
    table: sparsity.ComponentTable

    @property
    def anisotropy(self) -> float:
        """Thickness of a slice relative to the width of its voxels."""
        return float(self.spacing[0] / self.spacing[1:].max())

    def at(self, spacing: Sequence[float]) -> "Space":
        """The same dataset on another target grid: spacing in mm, in the plan's axis order."""
        new = np.array(spacing, dtype=np.float64)
        return replace(
            self,
            spacing=new,
            shapes=np.maximum(1, np.round(self.case_spacings / new * self.case_shapes)),
            median_shape=np.maximum(1, np.round(self.median_shape * self.spacing / new)),
        )

    @property
    def slices_stay(self) -> bool:
        """Whether no case is resampled across its slices."""
        same = np.abs(self.case_spacings[:, 0] - self.spacing[0]) <= SAME_SPACING * self.spacing[0]
        return bool(same.all() and (self.shapes[:, 0] == self.case_shapes[:, 0]).all())


def plan_space(fingerprint: Fingerprint, override: Sequence[float] | None, ours: bool) -> tuple[Space, list[Choice]]:
    """Choose target spacing and axis order; returns them with the choices made.

    `override` gives the spacing in mm, in stored order. `ours` adds the rules that nnU-Net does not have.
    """
    spacings = np.array([case.spacing for case in fingerprint.cases], dtype=np.float64)
    shapes = np.array([case.shape_after_crop for case in fingerprint.cases], dtype=np.float64)
    target, reason = target_spacing(spacings, shapes)
    if override is not None:
        target, reason = np.array(override, dtype=np.float64), "given"
    # single slices are never resampled across: their thickness, often a default, is not used
    single = np.median(shapes, axis=0) <= 1
    target[single] = np.median(spacings[:, single], axis=0)
    table = sparsity.component_table(fingerprint)
    thicker = np.where(single, target / spacings, 1.0)[table.case]
    table = replace(table, extent_mm=table.extent_mm * thicker, volume_mm3=table.volume_mm3 * thicker.prod(axis=1))
    spacings = np.where(single, target, spacings)
    choices: list[Choice] = [("1.1 spacing", tuple(target), reason)]
    if ours and override is None:
        target, reason = sparsity.guard_spacing(table, spacings, target)
        choices.append(("1.2 spacing guard", tuple(target), reason))
    resampled = np.maximum(1, np.round(spacings / target * shapes))
    median = np.median(resampled, axis=0)
    order, reason = axis_order(target, median, SAME_SPACING if ours else 0.0)
    choices.append(("1.3 axis order", ", ".join(map(str, order)), reason))
    at = list(order)
    return Space(
        spacing=target[at],
        case_spacings=spacings[:, at],
        case_shapes=shapes[:, at],
        shapes=resampled[:, at],
        median_shape=median[at],
        axis_order=order,
        table=replace(table, extent_mm=table.extent_mm[:, at]),
    ), choices


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, str]:
    """Median spacing of the cases (3,), a 10th percentile along an axis of few thick slices: nnU-Net v2's rule."""
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > ANISOTROPY * target[others].max() and shape[worst] * ANISOTROPY < shape[others].min():
        fine = float(np.percentile(spacings[:, worst], sparsity.FINE_PERCENTILE))
        plane = float(target[others].max())
        target[worst] = fine if fine >= plane else plane + 1e-5  # never finer than the plane
        return target, f"median of {len(spacings)} cases; axis {worst} has few thick slices, hence its 10th percentile"
    return target, f"median of {len(spacings)} cases"


def axis_order(spacing: np.ndarray, median_shape: np.ndarray, tolerance: float) -> tuple[tuple[int, int, int], str]:
    """Put the coarsest axis first, or before it one of a single voxel; the others keep their order.

    nnU-Net v2 uses only the spacing, and never ends where a single voxel is left in the plane.
    """
    singles = np.flatnonzero(median_shape <= 1)
    coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - tolerance))
    first = int(singles[0]) if len(singles) else int(coarsest[0])
    second, third = (axis for axis in range(3) if axis != first)
    why = "a single voxel" if len(singles) else "the coarsest spacing, or an equal one"
    return (first, second, third), f"axis {first} goes first: it has {why}"
