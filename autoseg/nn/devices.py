"""The device to compute on, by its name; the memory of the GPU that is here."""

import os
import shutil
from typing import TYPE_CHECKING

from autoseg.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "cpu", "mps")


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Under torchrun, a CUDA device without a number is that of the process's local rank: whoever touches another GPU
    keeps a few hundred megabytes of it. It becomes the current one, for pinned memory and for libraries.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.partition(":")[0] not in DEVICES:
        raise UsageError(f"--device {name!r}: expected one of {', '.join(DEVICES)}", remedy="use --device cpu, or auto")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            rank = int(os.environ.get("LOCAL_RANK", 0))
            number = rank if rank < torch.cuda.device_count() else 0  # Ranks.init reports too few GPUs
            device = torch.device("cuda", number if device.index is None else device.index)
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}", remedy="use --device cpu, or auto"
        ) from None
    return device


def gpu_memory_gb() -> float | None:
    """Memory in GB of the first CUDA device, or None without one. Imports torch only where a driver is installed."""
    if shutil.which("nvidia-smi") is None:
        return None
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None
