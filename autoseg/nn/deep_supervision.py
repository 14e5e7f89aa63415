"""Deep supervision: how much each stage's logits weigh in the loss, and the heads whose logits it never asks for."""

from torch import nn


def stage_weights(stages: int) -> list[float]:
    """Weights of the stages in the loss, finest first: 1, 1/2, ..., the coarsest of several 0, normalised to sum 1."""
    raw = [2.0**-i for i in range(stages)]
    if stages > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


def rest_idle_heads(network: nn.Module) -> None:
    """Let those heads of a network learn that the loss asks for logits: `heads`, finest first, where it has several.

    The others, which get no gradient either way, no longer want one.
    """
    heads = getattr(network, "heads", None)
    if not isinstance(heads, nn.ModuleList):
        return
    weights = stage_weights(len(heads)) if network.deep_supervision else [1.0] + [0.0] * (len(heads) - 1)
    for head, weight in zip(heads, weights, strict=True):
        head.requires_grad_(weight > 0)
