"""Islands, holes and jumps of a label map: what a slip of the mouse leaves behind, and what no organ has.

    shape_of    one label map -> facts of each label: pieces, enclosed voxels, the largest change between two slices
    odd_shapes  the facts of all cases -> what is odd about each

What is odd depends on the label: a lesion has many pieces, a liver one. So islands and holes are reported of labels
that have none in 4 of 5 cases; and a jump where the change between neighbouring slices lies 5 robust standard
deviations above the median of the label's cases. Fewer than 10 cases say nothing about what is usual.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.imaging.components import as_slices, bounding_box
from autoseg.messages import counted

USUAL = 0.8  # share of the cases that have one piece, or no hole, where others are odd
DEVIATIONS, LEAST_SPREAD = 5.0, 0.05
LEAST_CASES = 10
TOUCHING = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Shape:
    """Facts of one label in one case."""

    islands: tuple[int, ...] = ()  # voxels of each piece but the largest
    holes: int = 0  # voxels that no label has and that the label encloses
    jumps: tuple[float, float, float] = (0, 0, 0)  # along each axis: largest change between slices / largest slice
    jump_slices: tuple[int, int, int] = (0, 0, 0)  # the slice (from 0) before each of these


def shape_of(target: np.ndarray, scored: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Measure every label or region that occurs in a label map (Z, Y, X) of class indices.

    Args:
        scored: `LabelSet.scored`: name -> class indices.
    """
    found = {}
    for name, indices in scored.items():
        mask = np.isin(target, indices)
        if not mask.any():
            continue
        box = bounding_box(mask)
        inside = mask[as_slices(box)]
        pieces, _ = ndimage.label(inside, structure=TOUCHING)
        sizes = sorted(np.bincount(pieces[inside])[1:].tolist(), reverse=True)
        enclosed = _filled(inside) & (target[as_slices(box)] == 0)
        jumps = [_jump(inside, axis) for axis in range(3)]
        found[name] = Shape(
            islands=tuple(sizes[1:]),
            holes=int(enclosed.sum()),
            jumps=(jumps[0][0], jumps[1][0], jumps[2][0]),
            jump_slices=tuple(box[axis][0] + jumps[axis][1] for axis in range(3)),  # type: ignore[arg-type]
        )
    return found


def odd_shapes(shapes: Mapping[str, Mapping[str, Shape]]) -> dict[str, list[str]]:
    """What is odd about the labels of each case, in words; cases of which nothing is are left out.

    Args:
        shapes: case -> label -> facts.
    """
    odd: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for shape in shapes.values() for name in shape):
        cases = {case: shape[name] for case, shape in shapes.items() if name in shape}
        if len(cases) < LEAST_CASES:
            continue
        in_one_piece = np.mean([not shape.islands for shape in cases.values()]) >= USUAL
        solid = np.mean([not shape.holes for shape in cases.values()]) >= USUAL
        limits = [_limit([shape.jumps[axis] for shape in cases.values()]) for axis in range(3)]
        for case, shape in cases.items():
            remarks = []
            if in_one_piece and shape.islands:
                sizes = counted(sum(shape.islands), "voxel")
                remarks.append(f"{name}: {counted(len(shape.islands), 'island')} ({sizes})")
            if solid and shape.holes:
                remarks.append(f"{name}: a hole ({counted(shape.holes, 'voxel')})")
            over = [shape.jumps[axis] / limits[axis] if limits[axis] else 0 for axis in range(3)]
            if max(over) > 1:
                axis = int(np.argmax(over))
                at = shape.jump_slices[axis]
                remarks.append(
                    f"{name}: a jump between slices {at} and {at + 1} of axis {axis} ({shape.jumps[axis]:.0%} of its "
                    f"largest slice changes, usually less than {limits[axis]:.0%})"
                )
            if remarks:
                odd.setdefault(case, []).extend(remarks)
    return odd


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes filled: voxels that no path over faces leads out of; in the plane where it is flat."""
    if 1 in mask.shape:
        axis = mask.shape.index(1)
        return np.expand_dims(ndimage.binary_fill_holes(mask.take(0, axis)), axis)
    return ndimage.binary_fill_holes(mask)


def _jump(mask: np.ndarray, axis: int) -> tuple[float, int]:
    """Largest share of the largest slice that differs between neighbours, and the first slice of the two.

    Neighbours within the mask's box: where a label begins and ends, it may do so at once.
    """
    slices = np.moveaxis(mask, axis, 0)
    if len(slices) < 2:
        return 0.0, 0
    changed = (slices[1:] != slices[:-1]).sum(axis=(1, 2))
    at = int(np.argmax(changed))
    return float(changed[at] / slices.sum(axis=(1, 2)).max()), at


def _limit(values: Sequence[float]) -> float:
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(np.array(values) - centre)))
    return centre + DEVIATIONS * max(spread, LEAST_SPREAD)
