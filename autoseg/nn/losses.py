"""Losses: soft Dice plus cross-entropy, over softmax labels or sigmoid regions, with deep supervision.

Targets are class indices (B, *spatial): 0 background, 1..n labels, `ignore_index` (n + 1) where nobody annotated. All
arithmetic is float32. A loss near -1 is a perfect segmentation: the Dice term is -Dice, the cross-entropy tends to 0.

Source: nnU-Net v2 (soft Dice without background, smoothing 1e-5, plus cross-entropy, weighted 1 : 1; stage weights
1, 1/2, 1/4 ..., none for the coarsest).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1e-5


class DiceCE(nn.Module):
    """Soft Dice of the foreground labels plus cross-entropy, for softmax heads.

    Args:
        ignore_index: class index without loss, or None.
        class_weights: weight of each head (K) in the cross-entropy, or None.
        batch_dice: sum over the batch before dividing, instead of one Dice per sample.

    Maps logits (B, K, *s) and target (B, *s) to a scalar.
    """

    def __init__(
        self, *, ignore_index: int | None, class_weights: Sequence[float] | None, batch_dice: bool, **_: object
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.batch_dice = batch_dice
        self.weights: Tensor | None
        self.register_buffer("weights", None if class_weights is None else torch.tensor(class_weights))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        target = target.long()
        annotated = None if self.ignore_index is None else target != self.ignore_index
        if annotated is not None:
            target = target.where(annotated, 0)
        nll = -log_probabilities.gather(1, target[:, None])[:, 0]
        weight = torch.ones_like(nll) if self.weights is None else self.weights[target]
        if annotated is not None:
            weight = weight * annotated
        cross_entropy = (nll * weight).sum() / weight.sum().clamp_min(1e-8)
        heads = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (target.ndim - 1))
        one_hot = target[:, None] == heads
        return cross_entropy - _mean_dice(log_probabilities[:, 1:].exp(), one_hot, annotated, self.batch_dice)


class DiceBCE(nn.Module):
    """Soft Dice plus binary cross-entropy of every region, for sigmoid heads (B, R, *s).

    Args:
        regions: for each head the class indices it unites.
        class_weights: weight of each head (R) in the cross-entropy, or None.
        ignore_index, batch_dice: as in `DiceCE`.
    """

    def __init__(
        self,
        *,
        regions: Sequence[Sequence[int]],
        ignore_index: int | None,
        class_weights: Sequence[float] | None,
        batch_dice: bool,
    ) -> None:
        super().__init__()
        highest = max(index for union in regions for index in union)
        # the last row stands for every index above: labels that belong to no region, and the ignore label
        table = torch.zeros(highest + 2, len(regions), dtype=torch.bool)
        for head, union in enumerate(regions):
            table[list(union), head] = True
        self.table: Tensor
        self.register_buffer("table", table)
        self.ignore_index = ignore_index
        self.batch_dice = batch_dice
        self.weights: Tensor | None
        self.register_buffer("weights", None if class_weights is None else torch.tensor(class_weights))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        target = target.long()
        annotated = None if self.ignore_index is None else target != self.ignore_index
        masks = self.table[target.clamp_max(len(self.table) - 1)].movedim(-1, 1)
        entropy = F.binary_cross_entropy_with_logits(logits, masks.float(), reduction="none")
        weight = torch.ones_like(entropy)
        if self.weights is not None:
            weight = weight * self.weights.view(1, -1, *[1] * (target.ndim - 1))
        if annotated is not None:
            weight = weight * annotated[:, None]
        cross_entropy = (entropy * weight).sum() / weight.sum().clamp_min(1e-8)
        return cross_entropy - _mean_dice(logits.sigmoid(), masks, annotated, self.batch_dice)


LOSSES: dict[str, type[nn.Module]] = {
    "dice_ce": DiceCE,
    "dice_bce": DiceBCE,
}


class DeepSupervision(nn.Module):
    """Weighted sum of one loss over all stages; targets are taken at the centre voxel of each coarse one.

    Maps a list of logits, finest first, and the finest target (B, *patch) to a scalar. Stage i weighs 2^-i; the
    coarsest of several weighs 0; the weights sum to 1.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        total = torch.zeros((), device=target.device)
        for stage, weight in zip(logits, stage_weights(len(logits)), strict=True):
            if weight > 0:
                total = total + weight * self.loss(stage, _shrink(target, stage.shape[2:]))
        return total


def stage_weights(stages: int) -> list[float]:
    """Weights of the stages, finest first: 1, 1/2, ..., the coarsest of several 0, normalised to sum 1."""
    raw = [2.0**-i for i in range(stages)]
    if stages > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


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


def _mean_dice(probabilities: Tensor, masks: Tensor, annotated: Tensor | None, batch_dice: bool) -> Tensor:
    """Soft Dice (2 TP + s) / (P + G + s) averaged over heads (and samples). Both inputs (B, H, *s)."""
    if annotated is not None:
        probabilities = probabilities * annotated[:, None]
        masks = masks & annotated[:, None]
    axes = ([0] if batch_dice else []) + list(range(2, probabilities.ndim))
    true_positive = (probabilities * masks).sum(axes)
    size = probabilities.sum(axes) + masks.sum(axes)
    return ((2 * true_positive + SMOOTH) / (size + SMOOTH).clamp_min(1e-8)).mean()
