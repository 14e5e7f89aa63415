"""Losses: an overlap of each structure, a cross-entropy of each voxel, a boundary term; with deep supervision.

    dice_ce, dice_bce   soft Dice + cross-entropy, of softmax labels or of sigmoid regions
    dice_focal          soft Dice + focal loss: voxels that are right already weigh little
    dice_topk           soft Dice + cross-entropy of the hardest voxels
    tversky             Tversky index alone: missed and wrong voxels weigh differently
    mask_classification soft Dice + cross-entropy, and the queries of a network matched to segments

Heads are sigmoid where there are regions and softmax otherwise; dice_ce and dice_bce are one of the two by name. A
boundary term may be added to any of them.

A new loss is one function and one line in LOSSES. It takes the keywords of GIVEN and returns a module that maps logits,
target and, optionally, weights of the voxels to a scalar (see `SegmentationLoss`). Further keywords are its options: a
plan may set them, in `training.loss_options`, within what their annotations say.

Targets are class indices (B, *spatial): 0 background, 1..n labels, `ignore_index` (n + 1) where nobody annotated. All
arithmetic is float32. A loss near -1 is a perfect segmentation: the overlap term is -Dice, the
cross-entropy tends to 0. Where several ranks train together, each computes the loss of the whole batch (see
`distributed`).

Sources: nnU-Net v2 (soft Dice without background, smoothing 1e-5, plus cross-entropy, weighted 1 : 1; stage weights 1,
1/2, 1/4 ..., none for the coarsest); focal loss: Lin et al., ICCV 2017; hardest voxels: Wu et al., arXiv 1605.06885;
Tversky: Salehi et al., MLMI 2017.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from autoseg.nn.deep_supervision import stage_weights
from autoseg.nn.distributed import mean_over_ranks, sum_over_ranks
from autoseg.nn.losses.boundary import boundary_term
from autoseg.nn.losses.matched_queries import MaskClassification
from autoseg.nn.losses.terms import SigmoidHeads, SoftmaxHeads, Terms
from autoseg.nn.traits import Traits, with_traits
from autoseg.rules import above, at_least, between, entries

SMOOTH = 1e-5


def traits_of(name: str) -> Traits:
    """What a plan must know of the loss called `name`."""
    return getattr(LOSSES[name], "traits", Traits())


BoundaryWeight = Annotated[float, at_least(0, 1000)]  # of a boundary term beside the rest; 0 leaves it out


@with_traits(Traits(predicts="labels"))
def dice_ce(*, boundary_weight: BoundaryWeight = 0.0, **given: Any) -> nn.Module:
    """Soft Dice of the foreground labels plus cross-entropy, for softmax heads."""
    return SegmentationLoss(weighted_mean, boundary_weight=boundary_weight, **given | {"regions": ()})


@with_traits(Traits(predicts="regions"))
def dice_bce(*, regions: Sequence[Sequence[int]], boundary_weight: BoundaryWeight = 0.0, **given: Any) -> nn.Module:
    """Soft Dice plus binary cross-entropy of every region, for sigmoid heads."""
    assert regions, "sigmoid heads are made of regions"
    return SegmentationLoss(weighted_mean, regions=regions, boundary_weight=boundary_weight, **given)


def dice_focal(
    *, focal_gamma: Annotated[float, at_least(0, 100)] = 2.0, boundary_weight: BoundaryWeight = 0.0, **given: Any
) -> nn.Module:
    """Soft Dice plus focal loss: the larger gamma, the less voxels weigh that are right; 0 is the cross-entropy."""
    return SegmentationLoss(partial(focal_mean, gamma=focal_gamma), boundary_weight=boundary_weight, **given)


def dice_topk(
    *, topk_share: Annotated[float, above(0, 1)] = 0.1, boundary_weight: BoundaryWeight = 0.0, **given: Any
) -> nn.Module:
    """Soft Dice plus cross-entropy of the hardest share of a batch's voxels, which alone count."""
    return SegmentationLoss(partial(hardest_mean, share=topk_share), boundary_weight=boundary_weight, **given)


@with_traits(Traits(cross_entropy=False))
def tversky(
    *,
    tversky_alpha: Annotated[float, at_least(0, 1000)] = 0.3,
    tversky_beta: Annotated[float, above(0, 1000)] = 0.7,
    boundary_weight: BoundaryWeight = 0.0,
    **given: Any,
) -> nn.Module:
    """Tversky index, with alpha for false positives and beta for false negatives; 0.5 and 0.5 make it the Dice.

    It has no cross-entropy, so that class weights and voxel weights mean nothing to it.
    """
    return SegmentationLoss(None, alpha=tversky_alpha, beta=tversky_beta, boundary_weight=boundary_weight, **given)


@with_traits(Traits(predicts="labels", queries=True))
def mask_classification(
    *,
    things: Annotated[tuple[Annotated[int, between(1, 65535)], ...], entries(0, 256)] = (),
    most_things: Annotated[int, between(1, 4096)] = 100,
    points: Annotated[int, between(16, 2**20)] = 4096,
    mask_weight: Annotated[float, at_least(0, 1000)] = 1.0,
    boundary_weight: BoundaryWeight = 0.0,
    **given: Any,
) -> nn.Module:
    """dice_ce of the logits, and class and mask of every query of a network that has queries.

    Each class of a patch is a segment, which one query learns; of the class indices in `things` each connected
    component, the largest `most_things` of a patch.
    """
    return MaskClassification(
        dice_ce(boundary_weight=boundary_weight, **given), ignore_index=given["ignore_index"], things=tuple(things),
        points=points, most_things=most_things, mask_weight=mask_weight,
    )  # fmt: skip


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice_ce": dice_ce,
    "dice_bce": dice_bce,
    "dice_focal": dice_focal,
    "dice_topk": dice_topk,
    "tversky": tversky,
    "mask_classification": mask_classification,
}
GIVEN = ("regions", "ignore_index", "class_weights", "batch_dice")  # what every loss is built with: `SegmentationLoss`


def build_loss(
    name: str,
    *,
    regions: Sequence[Sequence[int]],
    ignore_index: int | None,
    class_weights: Sequence[float] | None,
    batch_dice: bool,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the loss called `name`. Raises KeyError listing the names that exist."""
    if name not in LOSSES:
        raise KeyError(f"no loss {name!r}; there are: {', '.join(LOSSES)}")
    return LOSSES[name](
        regions=regions,
        ignore_index=ignore_index,
        class_weights=class_weights,
        batch_dice=batch_dice,
        **(options or {}),
    )


class SegmentationLoss(nn.Module):
    """Mean cross-entropy of the voxels minus mean overlap of the structures, plus a boundary term.

    Args:
        voxel_term: mean of a cross-entropy map under weights, such as `weighted_mean`; None: overlap alone.
        ignore_index: class index without loss, or None.
        class_weights: weight of each head in the cross-entropy, or None.
        batch_dice: overlap over the batch as a whole, instead of one per sample.
        regions: for each sigmoid head the class indices it unites; empty for softmax heads.
        alpha, beta: weights of false positives and false negatives in the overlap; both 0.5 make it the Dice.
        boundary_weight: of the boundary term (see `boundary`); 0 leaves it out.

    Maps logits (B, K, *s), target (B, *s) and, optionally, voxel weights (B, *s) of the cross-entropy to a scalar.
    """

    def __init__(
        self,
        voxel_term: Callable[[Tensor, Tensor | None], Tensor] | None,
        *,
        ignore_index: int | None,
        class_weights: Sequence[float] | None,
        batch_dice: bool,
        regions: Sequence[Sequence[int]] = (),
        alpha: float = 0.5,
        beta: float = 0.5,
        boundary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.voxel_term = voxel_term
        self.heads = SigmoidHeads(regions, class_weights) if regions else SoftmaxHeads(class_weights)
        self.ignore_index = ignore_index
        self.batch_dice = batch_dice
        self.alpha, self.beta = alpha, beta
        self.boundary_weight = boundary_weight

    def forward(self, logits: Tensor, target: Tensor, voxel_weights: Tensor | None = None) -> Tensor:
        annotated = None if self.ignore_index is None else target != self.ignore_index
        if annotated is not None:
            target = target.where(annotated, 0)
        terms = self.heads.terms(logits, target, annotated)
        loss = -self._overlap(terms)
        if self.voxel_term:
            maps = (self.heads.cross_entropy_weights(target), *(_with_heads(m) for m in (annotated, voxel_weights)))
            loss = loss + self.voxel_term(terms.cross_entropy, _product(maps))
        if self.boundary_weight:
            masks = self.heads.masks(logits, target)
            loss = loss + self.boundary_weight * boundary_term(self.heads.probabilities(logits), masks, annotated)
        return loss

    def _overlap(self, terms: Terms) -> Tensor:
        """Smoothed Tversky index TP / (TP + alpha FP + beta FN), averaged over heads (and samples)."""
        if self.batch_dice:
            return self._index(*sum_over_ranks(torch.stack([s.sum(0) for s in terms[1:]])))
        return mean_over_ranks(self._index(*terms[1:]))

    def _index(self, intersection: Tensor, predicted: Tensor, reference: Tensor) -> Tensor:
        counted = 2 * (self.alpha * predicted + self.beta * reference + (1 - self.alpha - self.beta) * intersection)
        return ((2 * intersection + SMOOTH) / (counted + SMOOTH).clamp_min(1e-8)).mean()


def weighted_mean(cross_entropy: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of a map (B, H, *s) under a weight that broadcasts to it; 0 where nothing weighs. None: all weigh alike.

    Ranks may hold unequal weights: the mean is over the weights of all.
    """
    if weight is None:
        return mean_over_ranks(cross_entropy.mean())
    total = sum_over_ranks(weight.expand_as(cross_entropy).sum(dtype=torch.float32))
    return sum_over_ranks((cross_entropy * weight).sum()) / total.clamp_min(1e-8)


def focal_mean(cross_entropy: Tensor, weight: Tensor | None, gamma: float) -> Tensor:
    """Mean of (1 - p)^gamma x cross-entropy, with p the probability of what is there."""
    wrong = (-torch.expm1(-cross_entropy)).clamp_min(1e-8)  # a power below 1 has no finite slope at 0
    return weighted_mean(cross_entropy * wrong**gamma, weight)


def hardest_mean(cross_entropy: Tensor, weight: Tensor | None, share: float) -> Tensor:
    """Mean over the given share of those values of the map that weigh anything: the largest, at least one.

    With several ranks the share is of all their values together, exactly.
    """
    values = cross_entropy.detach()
    counted = torch.ones_like(values, dtype=torch.bool) if weight is None else (weight > 0).expand_as(values)
    wanted = (share * sum_over_ranks(counted.sum())).ceil().clamp_min(1)
    hardest = counted & (values >= _least_of_largest(values.masked_fill(~counted, -1), wanted))
    return weighted_mean(cross_entropy, hardest if weight is None else hardest * weight)


def _least_of_largest(values: Tensor, wanted: Tensor) -> Tensor:
    """The last of the `wanted` largest values, float32, over all ranks; 0 where fewer are positive.

    Found one bit at a time, from the highest: as integers, the bits of positive numbers have their order, and those of
    negative ones are below all. It takes 31 counts, each of which the ranks add up; to sort would need all values in
    one place.
    """
    bits = values.view(torch.int32)
    least = torch.zeros((), dtype=torch.int32, device=values.device)
    for place in reversed(range(31)):
        raised = least | (1 << place)
        least = raised.where(sum_over_ranks((bits >= raised).sum()) >= wanted, least)
    return least.view(torch.float32)


def _with_heads(voxels: Tensor | None) -> Tensor | None:
    return None if voxels is None else voxels[:, None]


def _product(factors: Iterable[Tensor | None]) -> Tensor | None:
    """Of those that are there; None of none."""
    there = [factor for factor in factors if factor is not None]
    return reduce(operator.mul, there) if there else None


class DeepSupervision(nn.Module):
    """Weighted sum of one loss over all stages; targets are taken at the centre voxel of each coarse one.

    Maps a list of logits, finest first, the finest target (B, *patch) and, optionally, the weights of its voxels to a
    scalar. Stage i weighs 2^-i; the coarsest of several weighs 0; the weights sum to 1. A loss that reads queries gets
    the network's result as a whole: its stages are the layers of the queries.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], target: Tensor, voxel_weights: Tensor | None = None) -> Tensor:
        if getattr(self.loss, "reads_queries", False):
            return self.loss(logits, target, voxel_weights)
        maps = [target] if voxel_weights is None else [target, voxel_weights]
        total = torch.zeros((), device=target.device)
        for stage, weight in zip(logits, stage_weights(len(logits)), strict=True):
            if weight > 0:
                total = total + weight * self.loss(stage, *(_shrink(m, stage.shape[2:]) for m in maps))
        return total


def _shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Take one voxel for each coarse one, the one just past its centre, or the last where that lies outside.

    A coarse voxel covers `step` voxels; the last of an axis may reach beyond the image, as ceil(edge / step) counts it.
    """
    for axis, coarse in enumerate(shape, start=1):
        edge = target.shape[axis]
        if coarse != edge:
            step = -(-edge // coarse)
            centres = torch.arange(step // 2, coarse * step, step, device=target.device).clamp_max(edge - 1)
            target = target.index_select(axis, centres)
    return target
