"""How many bytes live while operations run, and how many floating-point operations they are.

`LiveBytes` works below autograd and autocast and sees every operation, on fake tensors and on real ones. The identity
of a storage decides: views and in-place operations share one and so add nothing; a weak reference reports when it is
freed.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

FLOPS = {  # what torch counts, and the CPU's attention, which it does not
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}


def _group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _scatter_add(into: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    return torch.scatter_add(into, dim, index, source) if torch.is_grad_enabled() else into


# Where fake tensors part from what both devices do with real ones: they would return the gradient of a half-precision
# map in float32, and the backward pass of `gather`, which adds to zeros in place, makes a copy for any subclass.
AS_KERNELS_DO: dict[Any, Callable[..., Any]] = {
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.scatter_add.default: _scatter_add,
}


@dataclass(frozen=True)
class Timeline:
    """What a step was seen to do."""

    live: np.ndarray  # bytes that lived, at its start and after each operation that allocated, int64
    flops: int


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the storages that live, and the floating-point operations, while it is entered.

    It watches fake tensors and real ones alike. A storage counts from the operation that returned it until it is freed,
    also where that happens outside of the mode.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.live = 0
        self.flops = 0
        self.timeline: list[int] = []
        self._block = block
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fake = any(isinstance(argument, FakeTensor) for argument in args)
        result = (AS_KERNELS_DO.get(func, func) if fake else func)(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # by far the most frequent question of fake tensors
            return result
        before = self.live
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        if self.live > before:
            self.timeline.append(self.live)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result

    def start(self) -> None:
        """Begin a new timeline with what lives now."""
        self.timeline, self.flops = [self.live], 0

    def read(self) -> Timeline:
        """What happened since `start`."""
        return Timeline(np.array(self.timeline, np.int64), self.flops)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # of the storage itself; its Python objects come and go
        if key in self._storages:
            return
        size = -(-storage.nbytes() // self._block) * self._block

        def freed(_: weakref.ref) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
