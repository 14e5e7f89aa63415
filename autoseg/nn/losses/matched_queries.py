"""The loss of a network of queries: each segment of a patch is matched to one query, which learns its class and mask.

    loss = semantic + mask_weight x mean over layers of (CLASS x class + ENTROPY x cross-entropy + DICE x (1 - Dice))

- *semantic*: Dice and cross-entropy of the logits, as of any network, at every voxel. It alone knows class weights and
  voxel weights.
- *class*: cross-entropy of the class of every query, "no object" for those without a segment. These weigh NO_OBJECT,
  times the annotated share of the patch: what nobody annotated may well hold an object.
- *cross-entropy* and *Dice* of the mask of each matched query, as means over all annotated voxels.

The matching takes the least sum of the last three, with -P(class) for the class (`segments`).

Masks are computed at `points` voxels per patch, not at all of them: half are spread evenly over what is annotated, half
over the segments alike, so that small ones are seen, too. Each voxel is weighted by the reciprocal of how likely it is
to be looked at, and so sums are right on average. A patch with no more voxels than that is seen as a whole. No random
number is drawn: the same patch is seen at the same points.

With several ranks the loss is that of the whole batch, see `distributed`.

Source: Cheng et al. 2022 (Mask2Former), with its weights 2 : 5 : 5 and NO_OBJECT; points of it, drawn another way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nn.distributed import sum_over_ranks
from autoseg.nn.losses.segments import NONE, Segments, segments_of
from autoseg.nn.queries import Queries, QueryLogits

CLASS, ENTROPY, DICE = 0.4, 1.0, 1.0
NO_OBJECT = 0.1
SMOOTH = 1e-6  # of the Dice; the weights of all voxels sum to 1
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, spread evenly


class MaskClassification(nn.Module):
    """Loss of `QueryLogits`.

    Args:
        semantic: loss of logits (B, K, *s), target (B, *s) and, optionally, voxel weights.
        ignore_index: class index without loss, or None.
        things: class indices whose connected components are segments of their own.
        points: voxels of each patch at which masks are computed, at most.
        mask_weight: of what the queries add to the semantic loss.

    Maps `QueryLogits`, target (B, *s) and, optionally, voxel weights (B, *s) to a scalar.
    """

    reads_queries = True

    def __init__(
        self,
        semantic: nn.Module,
        *,
        ignore_index: int | None,
        things: tuple[int, ...],
        points: int,
        most_things: int,
        mask_weight: float,
    ) -> None:
        super().__init__()
        self.semantic = semantic
        self.ignore_index = ignore_index
        self.things, self.most_things = things, most_things
        self.points = points
        self.mask_weight = mask_weight

    def forward(self, logits: list[Tensor], target: Tensor, voxel_weights: Tensor | None = None) -> Tensor:
        if not isinstance(logits, QueryLogits):
            raise TypeError("mask_classification needs the queries of a network such as mask_transformer")
        loss = self.semantic(logits[0], target, voxel_weights)
        return loss + self.mask_weight * self._of_queries(logits.queries, target) if self.mask_weight else loss

    def _of_queries(self, said: Queries, target: Tensor) -> Tensor:
        """Class and mask terms, the mean over layers."""
        no_object = said.classes.shape[-1] - 1
        segments = segments_of(
            target, no_object, ignore_index=self.ignore_index, things=self.things, most=self.most_things
        )
        places, weights = look_at(segments, self.points)
        voxels = said.voxels.flatten(2)
        seen = voxels.gather(2, places[:, None].expand(-1, voxels.shape[1], -1)).float()
        masks = said.embeddings.float() @ seen
        fit = pairwise_terms(masks, weights, segments.slots.gather(1, places), segments.classes.shape[1])
        classes = said.classes.float()
        assigned = self._matched(classes, fit, segments)
        matched = assigned != NONE
        of_segments = fit.gather(2, assigned.clamp_min(0)[:, :, None])[:, :, 0]
        of_masks = _mean_over_ranks(of_segments, matched)
        wanted = wanted_classes(assigned, segments.classes, queries=classes.shape[2], no_object=no_object)
        entropy = F.cross_entropy(classes.flatten(0, 2), wanted.flatten(), reduction="none").view(wanted.shape)
        annotated = (segments.slots != NONE).float().mean(1)[None, :, None]
        return of_masks + CLASS * _mean_over_ranks(
            entropy, torch.where(wanted == no_object, NO_OBJECT * annotated, 1.0)
        )

    def _matched(self, classes: Tensor, fit: Tensor, segments: Segments) -> Tensor:
        """The query of each segment (L, B, S), for each layer on its own."""
        layers = len(classes)
        index = segments.classes.expand(layers, -1, -1)[:, :, None].expand(-1, -1, classes.shape[2], -1)
        cost = fit.detach() - CLASS * classes.detach().softmax(-1).gather(3, index)
        present = segments.present.expand(layers, -1, -1)
        return torch.ops.autoseg.assign(cost.flatten(0, 1), present.flatten(0, 1)).unflatten(0, (layers, -1))


def look_at(segments: Segments, points: int) -> tuple[Tensor, Tensor]:
    """Choose the voxels at which masks are computed.

    Returns:
        (B, P) int64: places of voxels; and their weights (B, P) float32, by which a sum over them stands for the mean
        over all voxels that belong to a segment. P is the number of points, or that of the voxels if these are fewer.
    """
    slots, counts = segments.slots, segments.voxels
    inside = slots != NONE
    annotated = counts.sum(1, keepdim=True).clamp_min(1)
    batch, voxels = slots.shape
    if voxels <= points:
        return torch.arange(voxels, device=slots.device).expand(batch, -1), inside / annotated
    exact = torch.float32 if slots.device.type == "mps" else torch.float64  # MPS has no other
    kinds = segments.present.sum(1, keepdim=True).clamp_min(1)
    own = counts.gather(1, slots.clamp_min(0)).clamp_min(1)
    likely = inside * (0.5 / annotated + 0.5 / (kinds * own)).to(exact)  # sums to 1
    reached = likely.cumsum(1)
    number = torch.arange(points, device=slots.device, dtype=exact)
    steps = (number + (number * GOLDEN) % 1) / points
    places = torch.searchsorted(reached, (steps * reached[:, -1:]).contiguous(), right=True).clamp_max(voxels - 1)
    chance = likely.gather(1, places)
    weights = torch.where(chance > 0, 1 / (points * annotated * chance.clamp_min(1e-30)), 0.0)
    return places, weights.float()


def pairwise_terms(masks: Tensor, weights: Tensor, slots: Tensor, count: int) -> Tensor:
    """ENTROPY x cross-entropy + DICE x (1 - Dice) of every mask for every segment.

    Args:
        masks: (L, B, Q, P) logits.
        weights: (B, P) of the voxels.
        slots: (B, P) of the voxels.
        count: S.

    Returns:
        (L, B, Q, S) float32.
    """
    own = (slots[:, None] == torch.arange(count, device=slots.device)[:, None]) * weights[:, None]  # (B, S, P)
    of_segments = own.transpose(1, 2)
    column = weights[..., None]
    entropy = F.softplus(masks) @ column - masks @ of_segments
    probabilities = masks.sigmoid()
    common = probabilities @ of_segments
    sizes = probabilities @ column + own.sum(2)[:, None]
    return ENTROPY * entropy + DICE * (1 - (2 * common + SMOOTH) / (sizes + SMOOTH))


def wanted_classes(assigned: Tensor, classes: Tensor, *, queries: int, no_object: int) -> Tensor:
    """The class each query should predict, (L, B, Q), from the query of each segment (L, B, S) and its class (B, S)."""
    wanted = torch.full((*assigned.shape[:2], queries + 1), no_object, device=assigned.device)
    index = torch.where(assigned == NONE, queries, assigned)  # segments without a query write into a column beyond
    return wanted.scatter(2, index, classes.expand(len(assigned), -1, -1))[..., :-1]


def _mean_over_ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Mean under weights, over all ranks; 0 where nothing weighs."""
    total = sum_over_ranks(weights.sum(dtype=torch.float32))
    return sum_over_ranks((values * weights).sum()) / total.clamp_min(1e-8)
