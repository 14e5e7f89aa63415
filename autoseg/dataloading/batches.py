"""Batches of augmented patches, by step: three ways to the same thing.

- The host chain (`autoseg.augmentation.host_chain`) augments sample by sample, in numpy.
- A chain in torch augments a whole batch, either where it is prepared,
- or on the device of the training: then batches are prepared raw, of patches in the dtype they are stored in.

In a cascade, the segmentation of the previous stage moves with the target as a second label map, and becomes one
channel per label at the end. The host chain damages it after it moved, in the patch that the network sees; a chain in
torch has no tool for that, so it is damaged before, in the patch as it was cut.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from autoseg.dataloading.patches import Chain, PatchReader
from autoseg.dataloading.shared_memory import Batch, for_tensors
from autoseg.dataloading.store import CaseInfo

if TYPE_CHECKING:  # it imports batchgenerators, which prediction does without
    from autoseg.augmentation.host_chain import HostChain

RAW_ROOM = 4  # times a raw batch is larger than its patches: 1.5 on average, 1 of 50 batches of two exceeds 4

ChainName = Literal["host", "worker", "device"]
Weigh = Callable[[np.ndarray], np.ndarray]  # target (*patch) -> weights (*patch) float32


class TorchChain(Chain, Protocol):
    """A chain that augments a batch in torch: `autoseg.augmentation.chain.DeviceChain`."""

    def __call__(
        self, images: Sequence[Tensor], targets: Sequence[Tensor], draws: Sequence[Any], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Augment raw patches on a device.

        Args:
            images: of each sample (C, *size) float16 or float32, grown by its draw's margin; on any device.
            targets: of each sample (*size) class indices, OUTSIDE = -1; or (n, *size), moved alike, the target first.
            draws: what `draw` gave for each sample; can be sent to other processes.

        Returns:
            Images (B, C, *patch_size) float32 and targets (B, *patch_size) or (B, n, *patch_size), OUTSIDE made 0, in
            the dtype that came; on the device.
        """


@dataclass(frozen=True)
class Shard:
    """Which samples of a step one of several processes that train together delivers."""

    batch_size: int  # of all together
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.ranks
        assert self.batch_size % self.ranks == 0, f"{self.batch_size} samples for {self.ranks} processes"

    @property
    def size(self) -> int:
        """Samples per step."""
        return self.batch_size // self.ranks

    def indices(self, step: int) -> range:
        """The samples of a step."""
        first = step * self.batch_size + self.rank * self.size
        return range(first, first + self.size)


@dataclass(frozen=True)
class HostBatches:
    """Step -> batch, augmented by the host chain."""

    reader: PatchReader
    chain: "HostChain"
    shard: Shard
    weigh: Weigh | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that a batch takes."""
        return _nbytes(self, raw=False)

    def __call__(self, step: int) -> Batch:
        """Prepare the batch of a step; see `autoseg.dataloading.stream`."""
        names, images, targets = zip(*(self.sample(index) for index in self.shard.indices(step)), strict=True)
        batch = {"image": _stacked(images), "target": _stacked(targets), "cases": list(names)}
        return batch if self.weigh is None else batch | {"weights": _stacked([self.weigh(t) for t in targets])}

    def sample(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Case, image (C, *patch) float32 and target (*patch) uint8 or int16 of one sample.

        In a cascade, the channels of the image are followed by one per label of the previous stage.
        """
        raw = self.reader.read(index, self.chain)
        if raw.previous is None:
            image, target = self.chain(raw.image, raw.target, raw.rng, raw.drawn)
        else:  # the chain moves both label maps alike, and makes 0 of OUTSIDE
            assert self.reader.previous is not None
            maps = np.stack([raw.target, raw.previous])
            image, (target, previous) = self.chain(raw.image, maps, raw.rng, raw.drawn)
            image = np.concatenate([image, self.reader.previous.channels(previous, raw.rng)])
        return raw.case, image, target.astype(np.uint8 if target.dtype == np.int8 else np.int16, copy=False)

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Bring a batch to the device."""
        return moved(batch, device)


@dataclass(frozen=True)
class TorchBatches:
    """Step -> batch, augmented by a chain in torch: where it is prepared, or on the device when it is finished."""

    reader: PatchReader
    chain: TorchChain
    shard: Shard
    on_device: bool
    weigh: Weigh | None = None

    def __post_init__(self) -> None:
        assert self.weigh is None or not self.on_device, "weights of components are made where batches are prepared"

    @property
    def nbytes(self) -> int:
        """Bytes that a batch takes between preparing and finishing it."""
        return _nbytes(self, raw=self.on_device)

    def __call__(self, step: int) -> Batch:
        """Prepare the batch of a step: augmented, or raw for `finish`."""
        raw = self.raw(step)
        return raw if self.on_device else self.augmented(raw, torch.device("cpu"))

    def raw(self, step: int) -> Batch:
        """The patches of a step as they were cut, with what was drawn for them."""
        batch: Batch = {"images": [], "targets": [], "draws": [], "cases": []}
        for index in self.shard.indices(step):
            raw = self.reader.read(index, self.chain)
            maps = raw.target
            if raw.previous is not None:
                assert self.reader.previous is not None
                maps = np.stack([maps, self.reader.previous.damaged(raw.previous, raw.rng)])
            batch["images"].append(torch.from_numpy(raw.image))
            batch["targets"].append(torch.from_numpy(maps))
            batch["draws"].append(raw.drawn)
            batch["cases"].append(raw.case)
        return batch

    def augmented(self, raw: Batch, device: torch.device) -> Batch:
        """Augment a raw batch on a device."""
        image, target = self.chain(raw["images"], raw["targets"], raw["draws"], device)
        if self.reader.previous is not None:
            target, previous = target.unbind(dim=1)
            labels = range(1, self.reader.previous.num_labels + 1)
            image = torch.cat([image, *((previous == label).unsqueeze(1) for label in labels)], dim=1)
        target = target.contiguous()
        if target.dtype == torch.int8:  # nothing below 0 is left
            target = target.view(torch.uint8)
        batch = {"image": image, "target": target, "cases": raw["cases"]}
        return batch if self.weigh is None else batch | {"weights": _stacked([self.weigh(t) for t in target.numpy()])}

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Bring a batch to the device, and augment it there if it is raw."""
        batch = moved(batch, device)
        return self.augmented(batch, device) if self.on_device else batch


def batch_bytes(
    infos: Sequence[CaseInfo], patch_size: Sequence[int], samples: int, num_labels: int, *, raw: bool
) -> int:
    """Bytes that a batch takes between preparing and finishing it.

    Args:
        infos: of the cases it may come from.
        num_labels: of a previous stage; 0 where there is none.
        raw: it holds patches as they are stored, not what the network sees.
    """
    channels, widest = infos[0].channels, max(np.dtype(info.image_dtype).itemsize for info in infos)
    stored = RAW_ROOM * (channels * widest + 2 * 2)  # the image as stored, and two label maps
    augmented = 4 * (channels + num_labels) + 2 + 4  # the image, the target and weights
    per_voxel = stored if raw else augmented
    return samples * (math.prod(patch_size) * per_voxel + 2**10)  # where each array begins, it is aligned


def _nbytes(batches: HostBatches | TorchBatches, *, raw: bool) -> int:
    reader = batches.reader
    num_labels = reader.previous.num_labels if reader.previous else 0
    infos = list(reader.sampler.infos.values())
    return batch_bytes(infos, batches.chain.patch_size, batches.shard.size, num_labels, raw=raw)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on a device.

    From pinned memory, CUDA does not wait for the copy, and keeps the memory until it is done. Others must wait: what
    workers share is written over once the batch is gone.
    """
    return for_tensors(batch, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays])
