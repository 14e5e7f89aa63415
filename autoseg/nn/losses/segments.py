"""The segments of a patch that queries are matched to, and the matching.

A class that occurs is one segment, the background among them: the logits of every class are made of masks. Of a class
of things every connected component is a segment of its own. What nobody annotated belongs to none.

The matching and the components need values, on the CPU. Both are operators of torch, so that a step can also run on
tensors without content, whose results they know by their shapes.

Sources: Carion et al., "End-to-End Object Detection with Transformers", 2020 (the matching); Kuhn 1955.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NONE = -1  # slot of a voxel that belongs to no segment, and query of a segment without one


class Segments(NamedTuple):
    """The segments of a batch of patches, in S slots of which not all are taken."""

    slots: Tensor  # (B, N) int64: the segment of each voxel, or NONE
    classes: Tensor  # (B, S) int64: class index of each slot
    voxels: Tensor  # (B, S) int64: voxels of each segment; 0: the slot is empty

    @property
    def present(self) -> Tensor:
        """Whether each slot holds a segment, (B, S) bool."""
        return self.voxels > 0


def segments_of(
    target: Tensor, classes: int, *, ignore_index: int | None, things: Sequence[int], most: int
) -> Segments:
    """Find the segments of a batch.

    Args:
        target: (B, *s) class indices of any integer dtype.
        classes: K, with the background; each has the slot of its index.
        things: class indices whose components are segments, in the slots from K on.
        most: components per patch; what is beyond the largest belongs to none.
    """
    slots = target.long().flatten(1)
    if ignore_index is not None:
        slots = slots.masked_fill(slots == ignore_index, NONE)
    of_slots = torch.arange(classes, device=target.device).expand(len(target), -1)
    if things:
        components, of_components = torch.ops.autoseg.components(target, list(things), most)
        slots = torch.where(components.flatten(1) == 0, slots, components.flatten(1) + (classes - 1))
        slots = slots.masked_fill(components.flatten(1) == NONE, NONE)
        of_slots = torch.cat((of_slots, of_components), 1)
    counts = torch.zeros(len(target), of_slots.shape[1] + 1, dtype=torch.int64, device=target.device)
    counts.scatter_add_(1, slots + 1, torch.ones_like(slots))
    return Segments(slots, of_slots, counts[:, 1:])


@torch.library.custom_op("autoseg::components", mutates_args=())
def components(target: Tensor, things: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Number the components of classes of things, faces touching, the largest `most` of each patch.

    Args:
        target: (B, *s) class indices.

    Returns:
        (B, *s) int64: 0 outside of things, 1 ... most, NONE in components beyond; and the class of each number,
        (B, most) int64, 0 where there are fewer.
    """
    from scipy import ndimage

    found = np.zeros(target.shape, np.int64)
    classes = np.zeros((len(target), most), np.int64)
    for patch, numbered, of_numbers in zip(target.cpu().numpy(), found, classes, strict=True):
        maps = {thing: ndimage.label(patch == thing)[0] for thing in things}
        sizes = [
            (int(size), thing, number)
            for thing, labelled in maps.items()
            for number, size in enumerate(np.bincount(labelled.ravel())[1:], start=1)
        ]
        new = {thing: np.full(labelled.max() + 1, NONE) for thing, labelled in maps.items()}
        for rank, (_, thing, number) in enumerate(sorted(sizes, key=lambda one: -one[0])[:most]):
            new[thing][number], of_numbers[rank] = rank + 1, thing
        for thing, labelled in maps.items():
            np.copyto(numbered, new[thing][labelled], where=labelled > 0)
    return torch.from_numpy(found).to(target.device), torch.from_numpy(classes).to(target.device)


@components.register_fake
def _(target: Tensor, things: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    return target.new_empty(target.shape, dtype=torch.int64), target.new_empty((len(target), most), dtype=torch.int64)


@torch.library.custom_op("autoseg::assign", mutates_args=())
def assign(cost: Tensor, present: Tensor) -> Tensor:
    """Give each segment a query of its own at the least total cost (Hungarian matching).

    Args:
        cost: (N, Q, S) float of each query for each segment; what is not finite is replaced by a number.
        present: (N, S) bool: the segments there are.

    Returns:
        (N, S) int64: the query of each segment; NONE where there is no segment, or no query is left for it.
    """
    from scipy.optimize import linear_sum_assignment

    known = cost.detach().nan_to_num().cpu().double().numpy()
    there = present.cpu().numpy()
    found = np.full(there.shape, NONE, np.int64)
    for costs, slots, queries in zip(known, there, found, strict=True):
        (taken,) = np.nonzero(slots)
        rows, columns = linear_sum_assignment(costs[:, taken])
        queries[taken[columns]] = rows
    return torch.from_numpy(found).to(cost.device)


@assign.register_fake
def _(cost: Tensor, present: Tensor) -> Tensor:
    return present.new_empty(present.shape, dtype=torch.int64)
