"""Connected components, the imaged body and boxes: what scipy.ndimage knows about masks.

Components are 26-connected: voxels that share a face, an edge or a corner belong together. Everything works inside the
mask's bounding box, because masks are small and volumes are not.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.imaging.geometry import Box

LIGHTEST, HEAVIEST = 0.05, 20.0  # limits of the weights of components: none is forgotten, and no single voxel dominates


@dataclass(frozen=True)
class Components:
    """The n connected components of a mask, largest first."""

    sizes: np.ndarray  # (n,) int64 voxel counts
    extents: np.ndarray  # (n, 3) int64 voxels (Z, Y, X) of each component's bounding box


def components(mask: np.ndarray) -> Components:
    """Measure the 26-connected components of a mask (Z, Y, X), largest first; no component in an empty mask."""
    inside = mask[as_slices(bounding_box(mask))]
    labelled, count = ndimage.label(inside, structure=np.ones((3, 3, 3), dtype=bool))
    sizes = np.bincount(labelled[labelled > 0], minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labelled)
    extents = np.array([[s.stop - s.start for s in box] for box in boxes], dtype=np.int64).reshape(-1, 3)
    order = np.argsort(-sizes, kind="stable")
    return Components(sizes[order], extents[order])


def component_sizes(mask: np.ndarray) -> np.ndarray:
    """Voxel counts (n,) int64 of the 26-connected components of a mask (Z, Y, X), largest first."""
    return components(mask).sizes


def component_weights(target: np.ndarray, power: float, ignore_index: int | None = None) -> np.ndarray:
    """Weights float32 (*s) of voxels by the size of the component they belong to, so that small ones count.

    A component of a label weighs (mean size of the label's components / its own size) ** power, at least LIGHTEST and
    at most HEAVIEST. With a power of 1, all components of a label weigh the same together, whatever their sizes.

    Args:
        target: (*s) class indices of 2 or 3 axes, none negative. Background and ignored voxels weigh 1. Components
            are connected over faces, edges or corners, and end where the array ends.
        power: 0 weighs all voxels alike.
        ignore_index: class index of voxels that are not annotated, or None.
    """
    weights = np.ones(target.shape, dtype=np.float32)
    for label, box in enumerate(ndimage.find_objects(target), start=1):
        if box is None or label == ignore_index:
            continue
        mask = target[box] == label
        labelled, _ = ndimage.label(mask, structure=np.ones((3,) * target.ndim, dtype=bool))
        sizes = np.bincount(labelled[mask])[1:]
        of_components = np.clip((sizes.mean() / sizes) ** power, LIGHTEST, HEAVIEST)
        weights[box][mask] = of_components[labelled[mask] - 1]
    return weights


def nonzero_mask(array: np.ndarray) -> np.ndarray:
    """Mask bool (Z, Y, X) of the imaged body: voxels of (C, Z, Y, X) where any channel is not 0, with holes filled.

    A hole is a set of zeros that no path over voxel faces leads out of (nnU-Net v2's rule). An axis of extent 1 offers
    no path: holes of a flat image are holes in its plane.
    """
    mask = array[0] != 0
    for channel in array[1:]:
        mask |= channel != 0
    box = as_slices(bounding_box(mask))
    inside = mask[box]  # zeros outside the box have a straight path out
    if inside.all() or not inside.any():
        return mask
    zeros, count = ndimage.label(~inside)  # connected over faces
    is_hole = np.ones(count + 1, dtype=bool)
    for axis, extent in enumerate(mask.shape):
        if extent > 1:
            is_hole[zeros.take(0, axis=axis)] = False
            is_hole[zeros.take(-1, axis=axis)] = False
    is_hole[0] = True  # not zeros at all: the body itself
    mask[box] = is_hole[zeros]
    return mask


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds a mask (Z, Y, X); the whole array if the mask is empty."""
    z0, z1 = _span(np.any(mask, axis=(1, 2)))
    y0, y1 = _span(np.any(mask[z0:z1], axis=(0, 2)))
    x0, x1 = _span(np.any(mask[z0:z1, y0:y1], axis=(0, 1)))
    return (z0, z1), (y0, y1), (x0, x1)


def as_slices(box: Box) -> tuple[slice, slice, slice]:
    """Index an array (Z, Y, X) with a box."""
    z, y, x = (slice(start, stop) for start, stop in box)
    return z, y, x


def _span(occupied: np.ndarray) -> tuple[int, int]:
    """First and one past the last True; the whole line if there is none."""
    where = np.flatnonzero(occupied)
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, len(occupied))
