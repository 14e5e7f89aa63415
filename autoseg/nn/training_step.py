"""The arithmetic of one training step, in pieces that ask no value of the device.

`within_memory.TrainingStep` puts them together and looks at the loss between them; `memory.model` runs the same pieces
on tensors without content, which have no values to look at. So what is predicted is what is trained. Besides: what an
error says when there was no memory for a step.
"""

import torch
from torch import Tensor, nn

from autoseg.nn.precision import autocast

OUT_OF_MEMORY = (  # in the words of CPUs, of CUDA and its libraries, of MPS
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)  # fmt: skip


def loss_of(
    network: nn.Module,
    criterion: nn.Module,
    image: Tensor,
    target: Tensor,
    voxel_weights: Tensor | None = None,
    *,
    dtype: str,
) -> Tensor:
    """Loss of a batch: the network under autocast, the criterion in float32.

    Args:
        image: (B, C, *patch) float32.
        target: (B, *patch) class indices.
        voxel_weights: (B, *patch) float32, of the voxels in the loss's cross-entropy, or None.
        dtype: of the convolutions, a key of `precision.DTYPES`.

    Logits that the backward pass does not need are freed on return.
    """
    with autocast(image.device, dtype):
        logits = network(image)
    return criterion(logits, target) if voxel_weights is None else criterion(logits, target, voxel_weights)


def clipped_gradients(
    loss: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    gradient_clip: float,
) -> Tensor:
    """Fill the gradients of `network`, no longer than `gradient_clip` together, and return their length before."""
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Move the weights along their gradients; a scaler in use skips gradients that are not finite."""
    scaler.step(optimizer)
    scaler.update()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch often says so by an error of no class of its own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in OUT_OF_MEMORY)
