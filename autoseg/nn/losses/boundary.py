"""The boundary term: probability in the wrong place costs more the farther it lies from the surface of the structure.

The distance maps are made of the integer target, on its device, in passes of shifted minima whose number is fixed.

Sources: Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019; for the separable transform,
Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", Theory of Computing 2012.
"""

import torch
from torch import Tensor

from autoseg.nn.distributed import mean_over_ranks, sum_over_ranks

RADIUS = 10  # voxels; what is farther counts as so far. Squares of it and their sums fit uint8


def boundary_term(probabilities: Tensor, masks: Tensor, annotated: Tensor | None) -> Tensor:
    """Mean over voxels and heads of probability x signed distance: in [-1, 1], the lower the better.

    Args:
        probabilities, masks: (B, H, *s) float32 and bool.
        annotated: (B, *s) bool, voxels that count; None: all.
    """
    weighted = probabilities * signed_distances(masks, annotated)
    if annotated is None:
        return mean_over_ranks(weighted.mean())
    voxels = sum_over_ranks(annotated.sum() * masks.shape[1])
    return sum_over_ranks(weighted.masked_fill(~annotated[:, None], 0).sum()) / voxels.clamp_min(1)


def signed_distances(masks: Tensor, annotated: Tensor | None) -> Tensor:
    """Distance of each voxel's centre to the surface of each structure, negative inside, as a share of RADIUS.

    Args:
        masks: bool (B, H, *s).
        annotated: bool (B, *s); the others belong neither to a structure nor to what is outside of it. None: all.

    Returns:
        float32 (B, H, *s) in [-1, 1]. Steps along all axes count alike, whatever the spacing. The surface lies half a
        voxel before the nearest voxel of the other side, which is exact where it is flat. A structure that the patch
        lacks is far from everywhere. Beyond the border nothing is known, so that nothing there is near.
    """
    outside = ~masks
    if annotated is not None:
        masks = masks & annotated[:, None]
        outside = outside & annotated[:, None]
    there = squared_distances(masks).float().sqrt_().sub_(0.5).clamp_min_(0)
    there.sub_(squared_distances(outside).float().sqrt_().sub_(0.5).clamp_min_(0))
    return there.div_(RADIUS - 0.5)


def squared_distances(masks: Tensor) -> Tensor:
    """Squared Euclidean distance in voxels to the nearest voxel of a mask: exact, but never more than RADIUS squared.

    Maps bool (B, H, *s) to uint8 (B, H, *s). Takes three maps of a byte per voxel and 4 RADIUS passes per axis.
    """
    squares = (~masks).to(torch.uint8).mul_(RADIUS**2)
    for axis in range(2, masks.ndim):
        nearest = squares.clone()
        shifted = torch.empty_like(squares)
        for step in range(1, RADIUS):
            length = max(masks.shape[axis] - step, 0)
            first, last = (0, length), (masks.shape[axis] - length, length)
            for here, there in ((first, last), (last, first)):
                moved = torch.add(squares.narrow(axis, *there), step**2, out=shifted.narrow(axis, *here))
                place = nearest.narrow(axis, *here)
                torch.minimum(place, moved, out=place)
        squares = nearest
    return squares
