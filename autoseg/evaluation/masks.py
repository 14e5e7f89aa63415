"""Two masks compared by their shape: the overlap of their boundaries, and of their centre-lines.

A mask metric is one function of MaskPair and one line in MASK_METRICS; one that takes long, or makes sense only for
some labels, is in TUBE_METRICS and is measured where it is asked for. Both are NaN where both masks are empty, and
0 where one is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.imaging.geometry import Vector3

_FEW = 100  # neighbours up to which shifting a mask is faster than a distance map of it
_TOLERANCE_SLACK_MM = 1e-4  # as for surfaces


@dataclass(frozen=True)
class MaskPair:
    """One label in reference and segmentation, cut to a box that holds both."""

    reference: np.ndarray  # bool (Z, Y, X)
    segmentation: np.ndarray  # bool (Z, Y, X)
    spacing: Vector3  # mm
    tolerance_mm: float
    flat: tuple[bool, bool, bool]  # axes along which the image has extent 1

    @property
    def both_empty(self) -> bool:
        return not self.reference.any() and not self.segmentation.any()


def boundary_iou(pair: MaskPair) -> float:
    """IoU of the two masks' rims: their voxels within `tolerance_mm` of a voxel outside, and those that touch one.

    Unlike IoU it does not approach 1 as objects grow. After Cheng et al., "Boundary IoU", CVPR 2021, with a width in mm
    in place of a share of the image's diagonal.
    """
    if pair.both_empty:
        return float("nan")
    reference, segmentation = (rim(mask, pair) for mask in (pair.reference, pair.segmentation))
    both = int(np.count_nonzero(reference & segmentation))
    return both / (int(np.count_nonzero(reference)) + int(np.count_nonzero(segmentation)) - both)


def rim(mask: np.ndarray, pair: MaskPair) -> np.ndarray:
    """The voxels of a mask that lie within the tolerance of one outside, or share a face with one: bool (Z, Y, X)."""
    steps = np.where(pair.flat, 1.0, pair.spacing)
    reach = pair.tolerance_mm + _TOLERANCE_SLACK_MM
    far = np.where(pair.flat, 0, np.maximum(reach // steps, 1)).astype(int)
    padded = np.pad(mask, [(n, n) for n in far])
    offsets = np.indices(2 * np.minimum(far, _FEW) + 1).reshape(3, -1).T - far
    faces = np.abs(offsets).sum(axis=1) == 1
    near = np.linalg.norm(offsets * steps, axis=1) <= reach
    inside = padded
    if np.count_nonzero(near | faces) > _FEW:
        inside = ndimage.distance_transform_edt(padded, sampling=steps) > reach
        near = faces
    core = _shifted(inside, far, mask.shape, (0, 0, 0)).copy()
    for offset in offsets[near | faces]:
        core &= _shifted(padded, far, mask.shape, offset)
    return mask & ~core


def centreline_dice(pair: MaskPair) -> float:
    """Centre-line Dice: harmonic mean of the shares of either mask's centre-line that lie in the other mask.

    For vessels, airways and other tubes: a gap counts by its length, not by its volume. Centre-lines are those of
    scikit-image's `skeletonize`; NaN where one of them is empty, as it can be for a block. After Shit et al.,
    "clDice", CVPR 2021.
    """
    from skimage.morphology import skeletonize

    if pair.both_empty:
        return float("nan")
    if not pair.reference.any() or not pair.segmentation.any():
        return 0.0
    flat = tuple(axis for axis in range(3) if pair.flat[axis])[:1]
    masks = [np.squeeze(mask, axis=flat) for mask in (pair.reference, pair.segmentation)]
    lines = [skeletonize(mask).astype(bool) for mask in masks]
    if not all(line.any() for line in lines):
        return float("nan")
    found, right = ((line & other).sum() / line.sum() for line, other in zip(lines, masks[::-1], strict=True))
    return float(2 * found * right / (found + right)) if found + right else 0.0


MASK_METRICS: dict[str, Callable[[MaskPair], float]] = {"boundary_iou": boundary_iou}
TUBE_METRICS: dict[str, Callable[[MaskPair], float]] = {"centreline_dice": centreline_dice}


def _shifted(padded: np.ndarray, margin: np.ndarray, shape: Sequence[int], offset: Sequence[int]) -> np.ndarray:
    """The neighbours, `offset` away, of the voxels of an array that `margin` was put around."""
    return padded[tuple(slice(n + o, n + o + e) for n, o, e in zip(margin, offset, shape, strict=True))]
