"""Arrays in memory as cases to segment, held to the rules that files are held to.

A file says where its voxels lie, an array does not: its spacing is given with it, and so is its orientation, where it
is not the one that networks see (LPS: z, y and x grow towards the head, the back and the left). From there on an array
goes the same way as the same array out of a file.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoseg.datasets.checks.voxels import spoilt
from autoseg.datasets.dataset import LoadedCase
from autoseg.datasets.loading import REPLACE_NON_FINITE, assemble, non_finite
from autoseg.errors import DataError, UsageError
from autoseg.imaging.geometry import Geometry, Vector3, Volume, axes3
from autoseg.planning.plan import Plan

CANONICAL = "LPS"
LETTERS: dict[str, tuple[int, float]] = {  # where an index grows -> axis of the world (x, y, z) and sign on it
    "L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0),
}  # fmt: skip
NUMBERS = "uifb"  # kinds of dtypes that hold intensities


def case_of_array(
    array: np.ndarray,
    plan: Plan,
    spacing: Sequence[float] | None,
    orientation: str = CANONICAL,
    name: str = "the array",
) -> LoadedCase:
    """Make a case of an array, as `load_case` makes one of files.

    Args:
        array: (C, Z, Y, X); of one channel (Z, Y, X), too; for a model of flat images (C, Y, X), of one channel (Y, X).
        plan: of the model.
        spacing: mm, one number per spatial axis in the order of the array; None where training images had none.
        orientation: where the x, y and z indices grow, a letter each, such as "RAS"; flat images have none.
        name: for messages.

    Raises:
        UsageError: the array has another form than the model needs, or spacing or orientation cannot be.
        DataError: NaN, infinity or extreme outliers.
    """
    values = np.asarray(array)
    if values.dtype.kind not in NUMBERS:
        raise UsageError(f"{name} holds {values.dtype}, expected numbers", remedy="convert it: array.astype('float32')")
    channels, flat = _channels_first(values, plan, name)
    if 0 in channels.shape:
        raise UsageError(f"{name} is empty: its shape is {values.shape}", remedy="give an array with voxels")
    with np.errstate(over="ignore", invalid="ignore"):
        image = np.asarray(channels, dtype=np.float32)
    if bad := non_finite(image) or spoilt(image):
        raise DataError(f"{name}: {bad}", remedy=REPLACE_NON_FINITE)
    geometry = _geometry(image.shape[1:], spacing, orientation, flat=flat, name=name)
    if spacing is None and _sized(plan):
        axes = "(Y, X)" if flat else "(Z, Y, X)"
        raise UsageError(
            f"{name}: no spacing is given, but the model was trained on images of known voxel size",
            remedy=f"give spacing={axes} in mm",
        )
    made = assemble(
        name, [Volume(image, geometry)], None, orientation=plan.orientation, axis_order=plan.axis_order
    )  # fmt: skip
    return replace(made, file=name)


def _channels_first(values: np.ndarray, plan: Plan, name: str) -> tuple[np.ndarray, bool]:
    """A view (C, Z, Y, X) of an array, and whether it is a flat image. Raises UsageError for another form."""
    count, grids = len(plan.channels), plan.grids
    slices = grids is not None and grids.shape_max[0] == 1  # the model was trained on flat images alone
    spatial = "Y, X" if slices else "Z, Y, X"
    if values.ndim == 2 and count == 1 and (grids is None or grids.shape_min[0] == 1):
        return values[None, None], True
    if values.ndim == 3 and slices and len(values) == count:
        return values[:, None], True
    if values.ndim == 3 and not slices and count == 1:
        return values[None], False
    if values.ndim == 4 and len(values) == count:
        return values, slices and values.shape[1] == 1
    expected = f"({count}, {spatial})" + (f" or ({spatial})" if count == 1 else "")
    remedy = "give one channel" if count == 1 else f"give the channels {', '.join(plan.channels)} as first axis"
    if values.ndim > 2 and values.shape[-1] == count:
        remedy = "move the channels to the front: numpy.moveaxis(array, -1, 0)"
    elif values.ndim == 2 and not slices:
        remedy = "give whole volumes"
    raise UsageError(f"{name} has the shape {values.shape}, the model expects {expected}", remedy=remedy)


def _geometry(
    shape: Sequence[int], spacing: Sequence[float] | None, orientation: str, *, flat: bool, name: str
) -> Geometry:
    """The grid of an array (Z, Y, X). Raises UsageError."""
    axes = ("Y", "X") if flat else ("Z", "Y", "X")
    steps = [1.0] * len(axes) if spacing is None else _numbers(spacing, axes, name)
    known = isinstance(orientation, str) and [LETTERS.get(letter, (-1, 0.0)) for letter in orientation]
    if not known or sorted(axis for axis, _ in known) != [0, 1, 2]:
        raise UsageError(
            f"orientation {orientation!r}: expected three letters for where x, y and z grow",
            remedy='give one of L, R, one of P, A and one of S, I, such as "LPS" or "RAS"',
        )
    rows = [tuple(sign if axis == world else 0.0 for world in range(3)) for axis, sign in reversed(known)]
    sizes: Vector3 = (1.0, steps[0], steps[1]) if flat else (steps[0], steps[1], steps[2])
    default = Geometry(axes3(shape), sizes, flat=flat, sized=spacing is not None)
    return default if flat else replace(default, direction=(rows[0], rows[1], rows[2]))  # type: ignore[arg-type]


def _numbers(spacing: Sequence[float], axes: Sequence[str], name: str) -> list[float]:
    """A spacing as numbers above 0, one per axis. Raises UsageError."""
    remedy = f"give spacing=({', '.join(axes)}) in mm"
    try:
        given = list(spacing)
    except TypeError:
        raise UsageError(f"spacing {spacing!r}: expected {len(axes)} numbers", remedy=remedy) from None
    if len(given) != len(axes):
        raise UsageError(
            f"spacing has {len(given)} numbers, but {name} has {len(axes)} spatial axes ({', '.join(axes)})",
            remedy=remedy,
        )
    real = [isinstance(one, numbers.Real) and not isinstance(one, bool) for one in given]
    if not all(real) or not all(math.isfinite(one) and one > 0 for one in given):
        raise UsageError(f"spacing {tuple(given)}: expected finite numbers above 0", remedy=remedy)
    return [float(one) for one in given]


def _sized(plan: Plan) -> bool:
    """Whether the training images stated their voxel size: where none did, each counts as 1 mm."""
    if plan.grids is None:
        return False
    low, high = plan.grids.spacing_min, plan.grids.spacing_max
    used = [axis for axis in range(3) if plan.grids.shape_max[axis] > 1]
    return not all(low[axis] == high[axis] == 1.0 for axis in used)
