"""The grids a plan was made for, and images that differ from all of them.

    training_grids   fingerprint -> TrainingGrids, stored in the plan
    require_like     compare an image to predict with them: refuse it, or return a warning

An image is refused where the result cannot be useful: voxels more than `FAR` times larger or smaller, on the geometric
mean of the axes, than in any training case (or `IMPOSSIBLE` times along one axis); a flat image for a model of volumes;
an image that states no voxel size for a model whose training data did. From `WORTH_A_WORD` along one axis on, it is a
warning. The factors are relative to the range of the training data, so a varied dataset allows more.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from autoseg.errors import DataError
from autoseg.imaging.geometry import Axes3, Geometry, Remark, Vector3
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.foreign_images import intensity_ranges
from autoseg.planning.plan import TrainingGrids

FAR = 5.0
IMPOSSIBLE = 50.0
WORTH_A_WORD = 2.0


def training_grids(fingerprint: Fingerprint) -> TrainingGrids:
    """The range of voxel sizes, shapes and intensities over the cases of a fingerprint."""
    spacings = [case.spacing for case in fingerprint.cases]
    shapes = [case.shape for case in fingerprint.cases]
    return TrainingGrids(
        spacing_min=_each(min, spacings), spacing_max=_each(max, spacings),
        shape_min=_each(min, shapes), shape_max=_each(max, shapes), intensities=intensity_ranges(fingerprint),
    )  # fmt: skip


def require_like(
    file: str, grid: Geometry, spacing: Vector3, seen: TrainingGrids | None, axis_order: Axes3, *, slices_alone: bool
) -> list[Remark]:
    """Refuse an image that differs too much from all training cases; return what is worth a warning.

    Args:
        file: name for messages.
        grid: as stored.
        spacing: mm, in the plan's axis order.
        seen: of the training cases; None: not known, nothing is compared.
        slices_alone: only 2-D configurations are used, for which the distance between slices does not matter.

    Raises:
        DataError: see the module's docstring.
    """
    if seen is None:
        return []
    if grid.flat and min(seen.shape_min) > 1:
        raise DataError(
            f"{file}: a flat (2-D) image, but the model was trained on volumes ({seen.shape_min[axis_order[0]]} slices "
            "or more)",
            remedy="give whole volumes",
        )
    low = [seen.spacing_min[axis] for axis in axis_order]
    high = [seen.spacing_max[axis] for axis in axis_order]
    single = [seen.shape_max[axis] == 1 for axis in axis_order]
    used = [axis for axis in range(3) if not (single[axis] or (axis == 0 and (grid.flat or slices_alone)))]
    trained = f"{_range(low, high, used)} mm"
    unit_voxels = all(low[axis] == high[axis] == 1.0 for axis in used)
    if not grid.sized:
        if unit_voxels:
            return []
        raise DataError(
            f"{file}: does not state its voxel size, but the model was trained on voxels of {trained}",
            remedy="write it into the file (or, for a TIFF image, into a .json file of the same name: "
            '{"spacing": [z, y, x]} in mm)',
        )
    factors = {a: max(spacing[a] / high[a], 1.0) * min(spacing[a] / low[a], 1.0) for a in used}
    logs = [math.log(factor) for factor in factors.values()]
    if not logs:
        return []
    mean = sum(logs) / len(logs)
    worst = max(logs, key=abs)
    found = f"voxels of {' x '.join(f'{spacing[a]:.4g}' for a in used)} mm, the model was trained on {trained}"
    if abs(mean) >= math.log(FAR) or abs(worst) >= math.log(IMPOSSIBLE):
        remedy = "correct the voxel size in its header if its unit is wrong; otherwise train on similar images"
        if unit_voxels:
            remedy += " (training images that state no voxel size count as 1 mm)"
        raise DataError(f"{file}: {found}: {_times(mean if abs(mean) >= math.log(FAR) else worst)}", remedy=remedy)
    if abs(worst) > math.log(WORTH_A_WORD):
        what = f"{found}: {_times(worst)} along one axis; expect a poorer segmentation"
        return [Remark("unlike training", what, "check the voxel size in its header, and the result")]
    return []


def _each(choose: Callable[..., Any], values: Sequence[tuple]) -> tuple:
    return tuple(choose(value[axis] for value in values) for axis in range(3))


def _times(log: float) -> str:
    factor = float(f"{math.exp(abs(log)):.3g}")
    return f"{factor:g} times {'larger' if log > 0 else 'smaller'} than any"


def _range(low: Sequence[float], high: Sequence[float], axes: Sequence[int]) -> str:
    return " x ".join(
        f"{low[a]:.4g}" if math.isclose(low[a], high[a], rel_tol=1e-3) else f"{low[a]:.4g} to {high[a]:.4g}"
        for a in axes
    )
