"""From one case as read to the case as the network sees it: crop, normalise, resample. Only arrays, no files.

Training and prediction use the same `prepare`, so both see the same image. The order is nnU-Net v2's: crop to the
nonzero region, normalise, resample. Its `Placement` holds the inverse.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoseg.errors import OutOfMemory
from autoseg.imaging.components import bounding_box, nonzero_mask
from autoseg.imaging.geometry import Axes3, Vector3
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.low_pass import LowPass
from autoseg.imaging.normalize import normalize
from autoseg.imaging.placement import Placement, place
from autoseg.imaging.resample import resample_image
from autoseg.planning.plan import Configuration, Plan
from autoseg.processes import free_memory


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it, and its place in the image. Spatial tuples are in permuted order."""

    image: np.ndarray  # (C, Z, Y, X) float32, normalised, at the configuration's spacing
    target: np.ndarray | None  # (Z, Y, X) int16 class indices, OUTSIDE where the body ends
    placement: Placement


def prepare(
    image: np.ndarray,
    target: np.ndarray | None,
    spacing: Vector3,
    plan: Plan,
    configuration: Configuration,
    name: str = "the image",
) -> Prepared:
    """Crop, normalise and resample one case.

    Args:
        image: (C, Z, Y, X) float32 in the plan's axis order.
        target: (Z, Y, X) class indices, or None.
        spacing: mm, (Z, Y, X) in the same order.
        name: of its file, for messages.

    Raises:
        DataError: at the configuration's spacing, an axis would vanish or the image would be absurdly large; or the
            intensities do not fit the plan's normalisation.
        OutOfMemory: the result exceeds the free memory.
    """
    inside = nonzero_mask(image)
    z, y, x = image.shape[1:]
    placement = place((z, y, x), bounding_box(inside), spacing, target_spacing(configuration, spacing), name)
    _require_memory(placement.shape, len(image) + 1, name)
    inside, rules = placement.crop(inside), plan.resampling
    resampled = resample_image(
        _normalized(placement.crop(image), inside, plan), spacing, placement.target_spacing, placement.shape,
        order=rules.image_order, coarse_axis_order=rules.coarse_axis_order,
        anisotropy_threshold=rules.anisotropy_threshold, low_pass=LowPass(rules.filter, rules.antialias_factor),
    )  # fmt: skip
    if target is None:
        return Prepared(resampled, None, placement)
    indices = placement.crop(target).astype(np.int16)
    indices[~inside & (indices == 0)] = OUTSIDE
    return Prepared(resampled, placement.labels_to_grid(indices, rules), placement)


def target_spacing(configuration: Configuration, spacing: Vector3) -> Vector3:
    """Spacing a case is resampled to: a 2-D configuration keeps the case's distance between slices."""
    if configuration.dims == 2:
        return (spacing[0], *configuration.spacing)  # type: ignore[return-value]
    return configuration.spacing  # type: ignore[return-value]


def _normalized(cropped: np.ndarray, inside: np.ndarray, plan: Plan) -> np.ndarray:
    """Channels (C, Z, Y, X) float32, each by its own scheme; `inside` bool (Z, Y, X) is the imaged body."""
    channels = [
        normalize(channel, planned.scheme, mask=inside if planned.inside_mask else None, statistics=planned)
        for channel, planned in zip(cropped, plan.normalization, strict=True)
    ]
    return np.stack(channels)


def _require_memory(shape: Axes3, arrays: int, name: str) -> None:
    """Refuse arrays that do not fit into memory: `count` float32 arrays, a lower bound of what resampling takes."""
    needed, free = 4 * arrays * math.prod(shape), free_memory()
    if needed > free:
        raise OutOfMemory(
            f"{name}: at the plan's spacing it has {shape} voxels, which need at least {needed / 1e9:.3g} GB; "
            f"{free / 1e9:.3g} GB are free",
            remedy="use a machine with more memory, or a configuration with a lower resolution",
        )
