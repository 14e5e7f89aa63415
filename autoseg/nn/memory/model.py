"""The memory model: how many bytes a training step or a forward pass takes, found out without taking them.

The real step (`training_step`: network, heads, loss, autocast, gradients, optimiser) runs on fake tensors, which have
shapes and dtypes and no content, while `trace` adds up what lives; the highest sum is the peak.

- `trace_step`, `trace_forward`: the peak of one size.
- `StepMemory`: the peak of any size of one network, from a few traces. For a convolutional network every point of the
  step's timeline is affine in the batch and in batch x voxels; the peak is the highest point. Where that does not hold
  (windows, attention over all tokens, patches that strides do not divide), it traces.
- `DeviceTerms`: what a trace cannot see: context, workspace, fragmentation. `calibration` measures them.

Whose rules a trace follows. Tensors are fake CPU tensors, since a CPU build of torch cannot run fake CUDA ones, and
autocast is the CPU's. Networks and losses state the dtypes in which it would differ from CUDA's (normalisation,
softmax, pooling, interpolation), so that both devices keep the same tensors. What still differs is in `Rules`: CUDA's
allocator hands out blocks of 512 bytes, and its optimisers update all parameters at once, with temporaries of their
size.

Sources: FakeTensorMode and flop_counter of torch; DNNMem (Gao et al. 2020) and xMem (2025) for the division into live
tensors and a device's own terms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoseg.nn.blocks import follow_device, set_checkpointing
from autoseg.nn.memory.trace import LiveBytes, Timeline
from autoseg.nn.optimization import OPTIMIZERS, WeightAverage
from autoseg.nn.precision import autocast
from autoseg.nn.training_step import clipped_gradients, loss_of, update

Size = tuple[tuple[int, ...], int]  # patch and batch

MIB = 2**20
AGREEMENT = 1e-3  # share of the peak by which a fitted timeline may miss a trace


@dataclass(frozen=True)
class Rules:
    """How a device differs in what lives, where the tensors are the same."""

    block: int  # bytes an allocation is rounded up to
    foreach: bool  # optimisers work on all parameters at once


RULES = {"cuda": Rules(block=512, foreach=True), "cpu": Rules(block=1, foreach=False)}


@dataclass(frozen=True)
class StepCost:
    """What one training step or one forward pass needs."""

    peak: int  # bytes that live at the peak, parameters and batch included
    parameters: int  # learnt values
    flops: int  # floating-point operations of convolutions and matrix products, backward pass included


@dataclass(frozen=True)
class StepKind:
    """What a training step does, whatever its network, patch and batch."""

    in_channels: int  # of the image
    optimizer: str  # a key of OPTIMIZERS
    dtype: str = "bfloat16"  # of the convolutions, a key of `precision.DTYPES`
    checkpointing: bool = False  # stages are computed again in the backward pass
    deep_supervision: bool = True  # logits of every decoder stage
    averaged: bool = False  # a moving average of the weights is kept
    rules: str = "cuda"  # a key of RULES


class TracedStep:
    """A network between two training steps, without content: its optimiser has its state, its gradients are free.

    Args:
        build: makes the network.
        criterion: maps the network's logits and a target (B, *patch) to a loss.
        kind: what a step does.
    """

    def __init__(self, build: Callable[[], nn.Module], criterion: nn.Module, kind: StepKind) -> None:
        self.criterion = criterion
        self.in_channels = kind.in_channels
        self.dtype = kind.dtype
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)  # one in use keeps a few scalars more
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)  # the criterion's buffers are real
        self._bytes = LiveBytes(RULES[kind.rules].block)
        with self._fake, self._bytes:
            self.network = build()
            self.network.deep_supervision = kind.deep_supervision  # type: ignore[assignment]
            set_checkpointing(self.network, kind.checkpointing)
            follow_device(self.network, kind.rules)
            self.optimizer = OPTIMIZERS[kind.optimizer](self.network.parameters(), 1e-2, 1e-5)
            for group in self.optimizer.param_groups:
                group["foreach"] = RULES[kind.rules].foreach
            for parameter in self.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()  # momentum exists from the first step on
            self.optimizer.zero_grad(set_to_none=True)
            self.average = WeightAverage(self.network, 0.999) if kind.averaged else None
        self.parameters = sum(p.numel() for p in self.network.parameters())

    def __call__(self, patch_size: Sequence[int], batch_size: int) -> Timeline:
        """Run one step on a batch of that size."""
        with self._fake, self._bytes as watched:
            image = torch.empty(batch_size, self.in_channels, *patch_size)
            target = torch.empty(batch_size, *patch_size, dtype=torch.uint8)
            watched.start()
            loss = loss_of(self.network, self.criterion, image, target, dtype=self.dtype)
            clipped_gradients(loss, self.network, self.optimizer, self.scaler, gradient_clip=1.0)
            update(self.optimizer, self.scaler)
            if self.average:
                self.average.update(self.network)
            self.optimizer.zero_grad(set_to_none=True)
            return watched.read()

    def cost(self, timeline: Timeline) -> StepCost:
        return StepCost(int(timeline.live.max()), self.parameters, timeline.flops)


def trace_step(
    build: Callable[[], nn.Module], criterion: nn.Module, kind: StepKind, patch_size: Sequence[int], batch_size: int
) -> StepCost:
    """Trace one training step later than the first, see `TracedStep`, on a batch of that size."""
    step = TracedStep(build, criterion, kind)
    return step.cost(step(patch_size, batch_size))


def trace_forward(
    build: Callable[[], nn.Module],
    *,
    in_channels: int,
    patch_size: Sequence[int],
    batch_size: int,
    dtype: str = "bfloat16",
    rules: str = "cuda",
) -> StepCost:
    """What a batch of tiles takes in prediction, as `sliding_window` runs one network: finest logits, in float32."""
    with FakeTensorMode(), LiveBytes(RULES[rules].block) as watched, torch.no_grad():
        network = build().eval()
        network.deep_supervision = False  # type: ignore[assignment]
        tiles = torch.empty(batch_size, in_channels, *patch_size)
        watched.start()
        with autocast(tiles.device, dtype):
            logits = network(tiles)[0].float()
        logits = logits / 1  # a mean over networks
        timeline = watched.read()
    return StepCost(int(timeline.live.max()), sum(p.numel() for p in network.parameters()), timeline.flops)


def inference_bytes(forward_peak: int, *, out_channels: int, channels: int, shape: Sequence[int]) -> int:
    """Peak bytes of a sliding window over an image of `shape`, tiles of it running through the network; at most.

    Rows are handed over as they are finished (`sliding_window.stream_logits`): of a long image far less is held.

    Args:
        forward_peak: of one batch of tiles, from `trace_forward`.
        shape: of the whole image, padded to at least the tile.

    The image is held twice (as read and padded), the logits of all heads once, and the sum of the tiles'
    weights; all float32.
    """
    return forward_peak + 4 * math.prod(shape) * (2 * channels + out_channels + 1)


class StepMemory:
    """What training steps of one network take, for any patch and batch: `memory(patch_size, batch_size)`.

    The first size is traced. Another batch of the same patch asks for one more trace, after which all its batches lie
    on a line, point by point of the timeline. Another patch asks for two more: with a neighbour of the first they give
    the timeline as a + b * batch + c * batch * voxels, and the last of them must agree. From then on a size whose patch
    the strides divide costs nothing; any other patch, and every patch of a network that does not agree, is traced.

    Args:
        build, criterion, kind: as `TracedStep` takes them.
        strides: of the network's stages.
    """

    def __init__(
        self, build: Callable[[], nn.Module], criterion: nn.Module, kind: StepKind, *, strides: Sequence[Sequence[int]]
    ) -> None:
        self.traces = 0
        self._step = TracedStep(build, criterion, kind)
        self._unit = np.prod(np.asarray(strides), axis=0)
        self._known: dict[Size, StepCost] = {}
        self._traced: dict[tuple[int, ...], dict[int, Timeline]] = {}  # patch -> batch -> what was seen
        self._base: tuple[Size, Timeline] | None = None  # the first trace whose patch the strides divide
        self._fit: _AffineTimeline | None = None
        self._disagrees = False

    def __call__(self, patch_size: Sequence[int], batch_size: int) -> StepCost:
        size = tuple(int(edge) for edge in patch_size), int(batch_size)
        if size not in self._known:
            self._known[size] = self._step.cost(self._timeline(size))
        return self._known[size]

    def _timeline(self, size: Size) -> Timeline:
        if self._fit is None and size[0] in self._traced:
            return self._along_batch(*size)
        if self._disagrees or np.any(size[0] % self._unit):
            return self._trace(size)
        if self._base is None:
            self._base = size, self._trace(size)
            return self._base[1]
        if self._fit is None:
            self._fit = self._learn(*self._base)
        if self._fit is None:
            self._disagrees = True
            return self._trace(size)
        return self._fit(size)

    def _along_batch(self, patch: tuple[int, ...], batch: int) -> Timeline:
        """Any batch of a patch that was traced with one, or with two."""
        first = min(self._traced[patch])
        one, two = self._traced[patch][first], self._trace((patch, first + 1))
        if len(one.live) != len(two.live):
            return self._trace((patch, batch))
        more = batch - first
        return Timeline(one.live + more * (two.live - one.live), one.flops + more * (two.flops - one.flops))

    def _trace(self, size: Size) -> Timeline:
        patch, batch = size
        timelines = self._traced.setdefault(patch, {})
        if batch not in timelines:
            self.traces += 1
            timelines[batch] = self._step(patch, batch)
        return timelines[batch]

    def _learn(self, base: Size, seen: Timeline) -> "_AffineTimeline | None":
        """Fit the timelines about `base`; None where a further trace disagrees."""
        patch, batch = base
        longer, elsewhere = patch + self._unit, np.asarray(patch)
        elsewhere[-1] += 3 * self._unit[-1]  # steps as a window makes them would show
        neighbours: list[Size] = [(tuple(longer.tolist()), batch), (patch, batch + 1)]
        timelines = [seen, *map(self._trace, neighbours)]
        if len({len(timeline.live) for timeline in timelines}) > 1:
            return None
        fit = _AffineTimeline.through([base, *neighbours], timelines)
        check: Size = tuple(elsewhere.tolist()), batch + 2
        traced, fitted = int(self._trace(check).live.max()), int(fit(check).live.max())
        return fit if abs(traced - fitted) <= AGREEMENT * traced else None


@dataclass(frozen=True)
class _AffineTimeline:
    """A timeline whose points are affine in the batch and in batch x voxels; the operations are, too."""

    coefficients: np.ndarray  # (points + 1, 3): constant, of the batch, of batch x voxels; the last row counts flops

    @classmethod
    def through(cls, sizes: Sequence[Size], timelines: Sequence[Timeline]) -> "_AffineTimeline":
        """The one that passes through three timelines of as many points."""
        system = np.array([_terms(size) for size in sizes])
        values = np.array([[*timeline.live, timeline.flops] for timeline in timelines], np.float64)
        return cls(np.linalg.solve(system, values).T)

    def __call__(self, size: Size) -> Timeline:
        *live, flops = np.rint(self.coefficients @ _terms(size)).astype(np.int64)
        return Timeline(np.array(live), int(flops))


def _terms(size: Size) -> np.ndarray:
    patch_size, batch_size = size
    return np.array([1.0, batch_size, batch_size * math.prod(patch_size)])


@dataclass(frozen=True)
class DeviceTerms:
    """What a device takes beside the tensors that live, and how fast it computes."""

    context_bytes: int  # of the process: driver, libraries, their kernels
    workspace_bytes: int  # of convolutions, whatever their size
    fragmentation: float  # share of the live bytes: gaps between them, and workspaces that grow with them
    flops_per_second: float | None  # of whole training steps; None: not measured
    device: str
    torch: str
    cudnn: str | None
    measured: bool

    def device_bytes(self, peak: int) -> int:
        """Memory of the device while `peak` bytes of tensors live."""
        return self.context_bytes + self.workspace_bytes + round((1 + self.fragmentation) * peak)

    def seconds(self, flops: float) -> float | None:
        """Time of a training step of `flops` operations; None where the device was not measured."""
        return flops / self.flops_per_second if self.flops_per_second else None

    def describe(self) -> str:
        """Where the terms come from, in words."""
        terms = (
            f"context {self.context_bytes / MIB:.0f} MiB, workspace {self.workspace_bytes / MIB:.0f} MiB, "
            f"{self.fragmentation:.0%} of the live bytes"
        )
        where = f"measured on {self.device}, torch {self.torch}" if self.measured else "assumed, not measured here"
        return f"{terms}: {where}"


# nnDetection's reserve: 910 MB of context and 768 MB of safety. The share makes of nnU-Net's 8 GB plan, whose tensors
# come to 4.7 GiB, the 7.7 GB that its documentation reports of an A100.
DEFAULT_TERMS = DeviceTerms(
    context_bytes=910_000_000,
    workspace_bytes=768 * MIB,
    fragmentation=0.2,
    flops_per_second=None,
    device="any",
    torch=torch.__version__,
    cudnn=None,
    measured=False,
)
