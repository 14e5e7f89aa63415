"""Predicted cost of a configuration: the device's memory in training and prediction, main memory, disk and time.

The planner gets the bytes of a training step from a `Memory`. By default that is `TracedMemory`: real steps of the
real network, run on tensors without content (`autoseg.nn.memory.model`), plus the terms that a trace cannot see
(context, workspace, fragmentation), measured on this device or conservative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autoseg.imaging.labels import LabelSet
from autoseg.planning.build import build_loss, build_network
from autoseg.planning.pace import Pace
from autoseg.planning.plan import Cost, NetworkSpec, Training

if TYPE_CHECKING:  # torch is imported when the first step is traced
    from torch import nn

    from autoseg.nn.memory.model import DeviceTerms, StepMemory

HOST_PROCESS_BYTES = 600 * 2**20  # the training process with its libraries, before it loads any data
HOST_WORKER_BYTES = 120 * 2**20  # private memory of one process that prepares batches
BATCHES_IN_WAITING = 4  # per worker
WORKERS = {"gpu": 12, "cpu": 1}
TILE_BATCHES = {"gpu": (4, 2, 1), "cpu": (1,)}  # from the fastest to the smallest
STORED_BYTES = {"image": 2, "target": 1}  # per voxel; images are kept in half precision where that is exact enough
TRAINED_DTYPE = "bfloat16"  # or float16, which takes as much


@dataclass(frozen=True)
class Step:
    """The properties of a training step that determine its size."""

    network: NetworkSpec
    in_channels: int
    patch_size: tuple[int, ...]
    batch_size: int
    checkpointing: bool = False


@dataclass(frozen=True)
class Figures:
    """Measured or predicted cost of a step."""

    device_bytes: int
    parameters: int
    flops: int
    seconds: float | None


class Memory(Protocol):
    """Predicts the cost of steps, one at a time; it may cache results."""

    source: str  # the source of its figures, in words
    measured: bool  # whether they were measured on the device

    def train(self, step: Step) -> Figures:
        """One training step."""

    def predict_bytes(self, step: Step, tile_batch: int, shape: Sequence[int]) -> int:
        """Bytes of the device while an image (Z, Y, X) is segmented in tiles of the step's patch size."""


class TracedMemory:
    """Steps traced with the project's own networks, loss and optimisers.

    Args:
        labels: as the network predicts them.
        training: the recipe: its loss, optimiser, deep supervision and weight average.
        device: gpu or cpu.
        terms: of the device; None: those measured on this device, otherwise conservative ones.
        pace: of the CPU; None: a step's seconds are those of the terms, if they were measured.
    """

    def __init__(
        self,
        labels: LabelSet,
        training: Training,
        device: str,
        terms: "DeviceTerms | None" = None,
        pace: Pace | None = None,
    ) -> None:
        from autoseg.nn.memory.calibration import load_terms

        self.labels = training.heads(labels)
        self.training = training
        self.rules = "cuda" if device == "gpu" else "cpu"
        self.terms = terms or load_terms(device)
        self.source = self.terms.describe()
        self.measured = self.terms.measured
        self.pace = pace
        self._models: dict[tuple, StepMemory] = {}

    def train(self, step: Step) -> Figures:
        from autoseg.nn.memory.model import StepKind, StepMemory

        training, network = self.training, step.network
        key = (repr(network), step.in_channels, step.checkpointing)
        if key not in self._models:
            self._models[key] = StepMemory(
                lambda: self._build(step),
                build_loss(training, self.labels, batch_dice=False, class_weights=None),
                StepKind(
                    step.in_channels, training.optimizer, TRAINED_DTYPE, step.checkpointing, training.deep_supervision,
                    averaged=bool(training.weight_average), rules=self.rules,
                ),
                strides=network.strides,
            )  # fmt: skip
        cost = self._models[key](step.patch_size, step.batch_size)
        seconds = self.terms.seconds(cost.flops)
        if self.pace is not None:
            seconds = self.pace.step_seconds(len(step.patch_size), cost.flops)
        return Figures(self.terms.device_bytes(cost.peak), cost.parameters, cost.flops, seconds)

    def predict_bytes(self, step: Step, tile_batch: int, shape: Sequence[int]) -> int:
        from autoseg.nn.memory.model import inference_bytes, trace_forward

        forward = trace_forward(
            lambda: self._build(step), in_channels=step.in_channels, patch_size=step.patch_size,
            batch_size=tile_batch, dtype=TRAINED_DTYPE, rules=self.rules,
        )  # fmt: skip
        dims = len(step.patch_size)
        padded = [max(extent, edge) for extent, edge in zip(shape[-dims:], step.patch_size, strict=True)]
        peak = inference_bytes(
            forward.peak, out_channels=self.labels.num_heads, channels=step.in_channels, shape=[*shape[:-dims], *padded]
        )
        return self.terms.device_bytes(peak)

    def _build(self, step: Step) -> "nn.Module":
        return build_network(step.network, in_channels=step.in_channels, out_channels=self.labels.num_heads)


def cost_of(
    memory: Memory,
    step: Step,
    *,
    device: str,
    limit: float,
    shape: Sequence[int],
    shapes: Sequence[Sequence[int]],
    channels: int,
    pace: Pace | None = None,
) -> Cost:
    """Predict the complete cost of a configuration.

    Args:
        limit: bytes of the device that prediction should not exceed.
        shape: (Z, Y, X) of the median image, after resampling.
        shapes: of all images, after resampling.
        channels: of the images.
        pace: of the CPU planned for.
    """
    figures = memory.train(step)
    voxel = channels * STORED_BYTES["image"] + STORED_BYTES["target"]
    disk = int(sum(math.prod(map(int, s)) for s in shapes) * voxel)
    batch = step.batch_size * math.prod(step.patch_size) * (4 * step.in_channels + 2)
    workers = WORKERS[device]
    edges = [math.ceil(extent) for extent in shape]
    for tile_batch in TILE_BATCHES[device]:
        predict_bytes = memory.predict_bytes(step, tile_batch, edges)
        if predict_bytes <= limit:
            break
    return Cost(
        parameters=figures.parameters,
        train_bytes=figures.device_bytes,
        predict_bytes=predict_bytes,
        tile_batch=tile_batch,
        host_bytes=HOST_PROCESS_BYTES + workers * (HOST_WORKER_BYTES + BATCHES_IN_WAITING * batch),
        disk_bytes=disk,
        flops=figures.flops,
        seconds_per_step=figures.seconds,
        flops_per_second=pace.flops_per_second[len(step.patch_size)] if pace else None,
    )
