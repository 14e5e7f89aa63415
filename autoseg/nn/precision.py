"""Which dtype the convolutions should run in here: measured on the network itself, and checked against float32.

Half precision is faster on some machines and up to a hundred times slower on others, and some library versions compute
it wrongly. So a few real steps decide: a dtype is chosen only if it is faster than float32 by a margin and its logits
agree.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MARGIN = 0.9  # a dtype must need less than this share of float32's time
TOLERANCE = 0.2  # of the logits' standard deviation: root mean square difference to float32; eight stages give 0.1


@dataclass(frozen=True)
class PrecisionTrial:
    """What was measured for one dtype."""

    dtype: str
    seconds: float  # forward and backward of one batch
    forward_seconds: float  # forward alone, without gradients
    difference: float  # root mean square difference of the logits to float32, in their standard deviations


def candidates(device: torch.device) -> tuple[str, ...]:
    """Dtypes worth trying on a device, float32 first."""
    if device.type == "cuda":
        return ("float32", "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16")
    return ("float32", "bfloat16") if device.type == "cpu" else ("float32",)


def measure(network: nn.Module, image: Tensor, dtypes: Sequence[str], repeats: int = 2) -> list[PrecisionTrial]:
    """Time one training step's forward and backward pass per dtype; weights and gradients are left as they were.

    Args:
        network: maps `image` (B, C, *patch) to a list of logits.
        dtypes: keys of DTYPES; the first must be float32, the reference.
    """
    trials = []
    reference: Tensor | None = None
    parameters = [p for p in network.parameters() if p.requires_grad]
    for dtype in dtypes:
        best, best_forward = float("inf"), float("inf")
        for _ in range(repeats):
            start = _now(image.device)
            with autocast(image.device, dtype):
                logits = network(image)
            forward_done = _now(image.device)
            loss = torch.stack([stage.float().square().mean() for stage in logits]).sum()
            torch.autograd.grad(loss, parameters, allow_unused=True)  # leaves the .grad of the parameters alone
            best = min(best, _now(image.device) - start)
            best_forward = min(best_forward, forward_done - start)
        finest = logits[0].detach().float()
        if reference is None:
            reference = finest
        difference = float((finest - reference).square().mean().sqrt() / reference.std().clamp_min(1e-8))
        trials.append(PrecisionTrial(dtype, best, best_forward, difference))
    return trials


def choose(trials: Sequence[PrecisionTrial]) -> PrecisionTrial:
    """The fastest trial that agrees with float32 and beats it by the margin, otherwise float32's (the first)."""
    reference = trials[0]
    right = [t for t in trials[1:] if t.difference < TOLERANCE and t.seconds < MARGIN * reference.seconds]
    return min(right, key=lambda trial: trial.seconds, default=reference)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Autocast context of that dtype; switched off for float32."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
