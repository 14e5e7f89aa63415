"""What losses ask of logits and targets: softmax heads of labels that exclude each other, sigmoid heads of regions.

Both return `Terms`: the cross-entropy of every voxel, and per sample and head the three sums that make an overlap.
Losses are plain arithmetic on these. Nothing of the size of the logits is kept for the backward pass but the logits
themselves, in their own dtype: probabilities are computed again, and their gradients have a closed form. All arithmetic
is float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Terms(NamedTuple):
    """What a loss is made of. H are the heads with an overlap: those of the foreground labels, or all regions."""

    cross_entropy: Tensor  # -log of the probability of what is there: softmax (B, 1, *s), sigmoid (B, R, *s)
    intersection: Tensor  # (B, H) sum of the probabilities over the voxels of the head
    predicted: Tensor  # (B, H) sum of the probabilities over all voxels
    reference: Tensor  # (B, H) number of the voxels of the head


class SoftmaxHeads(nn.Module):
    """One head per class index, of which one is right: 0 is the background, which has no overlap.

    Args:
        class_weights: weight of each head (K) in the cross-entropy, or None.

    Targets (B, *s) hold 0 where `annotated` (B, *s) is False; None annotates all. Overlaps leave ignored voxels out; of
    their cross-entropy the caller takes care.
    """

    def __init__(self, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(class_weights))

    def terms(self, logits: Tensor, target: Tensor, annotated: Tensor | None) -> Terms:
        cross_entropy, *sums = _SoftmaxTerms.apply(logits, target, annotated)
        return Terms(cross_entropy, *(per_head[:, 1:] for per_head in sums))

    def cross_entropy_weights(self, target: Tensor) -> Tensor | None:
        """(B, 1, *s) or None."""
        return None if self.weights is None else self.weights[target.long()][:, None]

    def masks(self, logits: Tensor, target: Tensor) -> Tensor:
        """Voxels of each foreground label, bool (B, K - 1, *s)."""
        return _one_hot(target, logits.shape[1])[:, 1:]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each foreground label, (B, K - 1, *s)."""
        return logits.float().softmax(1)[:, 1:]


class SigmoidHeads(nn.Module):
    """One head per region; a voxel may belong to several or to none.

    Args:
        regions: for each head the class indices it unites.
        class_weights: weight of each head (R) in the cross-entropy, or None.
    """

    def __init__(self, regions: Sequence[Sequence[int]], class_weights: Sequence[float] | None) -> None:
        super().__init__()
        highest = max(index for union in regions for index in union)
        # the last column stands for every index above: labels that belong to no region
        table = torch.zeros(len(regions), highest + 2, dtype=torch.bool)
        for head, union in enumerate(regions):
            table[head, list(union)] = True
        self.table: Tensor
        self.register_buffer("table", table)
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(class_weights))

    def terms(self, logits: Tensor, target: Tensor, annotated: Tensor | None) -> Terms:
        return Terms(*_SigmoidTerms.apply(logits, self.masks(logits, target), annotated))

    def cross_entropy_weights(self, target: Tensor) -> Tensor | None:
        """(1, R, 1 ...) or None."""
        return None if self.weights is None else _per_head(self.weights[None], target.ndim + 1)

    def masks(self, logits: Tensor, target: Tensor) -> Tensor:
        """Voxels of each region, bool (B, R, *s)."""
        return self.table[:, target.long().clamp_max(self.table.shape[1] - 1)].movedim(0, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each region, (B, R, *s)."""
        return logits.float().sigmoid()


class _SoftmaxTerms(torch.autograd.Function):
    """Logits (B, K, *s), target (B, *s) -> cross-entropy (B, 1, *s); common, predicted and present (B, K).

    With p the probabilities, t the target, and u_k = dL/dpredicted_k + [k = t] dL/dcommon_k the gradient of the sums
    for p_k, that for the logits is p_k (u_k - sum_j p_j u_j) + dL/dentropy (p_k - [k = t]).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, annotated: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, target, annotated)
        logs = F.log_softmax(logits.float(), dim=1)
        cross_entropy = -logs.gather(1, target.long()[:, None])
        sums = _sums(logs.exp_(), _one_hot(target, logits.shape[1]), annotated)
        ctx.mark_non_differentiable(sums[2])
        return cross_entropy, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_cross_entropy: Tensor, of_common: Tensor, of_predicted: Tensor, _: Tensor) -> Any:
        logits, target, annotated = ctx.saved_tensors
        inside = of_predicted.new_ones(()) if annotated is None else annotated[:, None]
        probabilities = logits.float().softmax(1)
        index = target.long()[:, None]
        own = probabilities.gather(1, index).mul_(inside)
        own.mul_(of_common.gather(1, index.flatten(1)).view_as(index))
        of_predicted = _per_head(of_predicted, logits.ndim)
        mean = (probabilities * of_predicted).sum(1, keepdim=True).mul_(inside).add_(own)  # sum_j p_j u_j
        probabilities.mul_(torch.addcmul(of_cross_entropy - mean, of_predicted, inside))
        return probabilities.scatter_add_(1, index, own.sub_(of_cross_entropy)).to(logits.dtype), None, None


class _SigmoidTerms(torch.autograd.Function):
    """Logits (B, R, *s), masks (B, R, *s) -> cross-entropy (B, R, *s); common, predicted and present (B, R).

    The gradient for the logits is dL/dentropy (p - mask) + p (1 - p) (dL/dpredicted + mask dL/dcommon).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, annotated: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, masks, annotated)
        sums = _sums(logits.float().sigmoid(), masks.clone(), annotated)
        ctx.mark_non_differentiable(sums[2])
        return F.softplus(logits.where(~masks, -logits).float()), *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_cross_entropy: Tensor, of_common: Tensor, of_predicted: Tensor, _: Tensor) -> Any:
        logits, masks, annotated = ctx.saved_tensors
        probabilities = logits.float().sigmoid()
        gradient = masks * _per_head(of_common, logits.ndim)
        gradient.add_(_per_head(of_predicted, logits.ndim))
        if annotated is not None:
            gradient.mul_(annotated[:, None])
        gradient.mul_(probabilities).addcmul_(gradient, probabilities, value=-1)
        gradient.addcmul_(of_cross_entropy, probabilities.sub_(masks.view(torch.uint8)))
        return gradient.to(logits.dtype), None, None


def _sums(probabilities: Tensor, masks: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Common, predicted and present (B, H) of maps (B, H, *s), which are overwritten."""
    if annotated is not None:
        probabilities.mul_(annotated[:, None])
        masks.logical_and_(annotated[:, None])
    axes = list(range(2, probabilities.ndim))
    predicted = probabilities.sum(axes)
    present = masks.sum(axes).float()
    return probabilities.mul_(masks).sum(axes), predicted, present


def _one_hot(target: Tensor, heads: int) -> Tensor:
    return target[:, None] == _per_head(torch.arange(heads, device=target.device)[None], target.ndim + 1)


def _per_head(values: Tensor, dims: int) -> Tensor:
    """View (B, H) so that it broadcasts to maps (B, H, *s) with `dims` dimensions."""
    return values.reshape(*values.shape, *[1] * (dims - 2))


def _weights(class_weights: Sequence[float] | None) -> Tensor | None:
    return None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
