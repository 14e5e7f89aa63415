"""Stored cases to batches, in this process or in workers: the same batches either way.

A sample is known by its index, counted from the beginning of the training. Its case, its place and its augmentation
follow from (seed, index) alone. So the number of workers changes nothing, and a training resumed at step s starts with
exactly the batch that would have come. The stream has no epochs: it does not pause or restart between them.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from autoseg.augmentation import Augmentation
from autoseg.data.augment import HostChain, build_chain
from autoseg.data.previous_stage import PreviousStage
from autoseg.data.sampling import PatchSampler, cut_patch, sample_generator
from autoseg.data.store import CaseStore, StoredCase
from autoseg.imaging.labels import OUTSIDE

MEMORY_SHARE = 0.25  # of the free memory: what the cases may occupy to be held in it
OPEN_CASES = 64  # otherwise mapped at a time, per process; each holds three file descriptors
FORKS = sys.platform == "linux"  # shares the cases held in memory; safe, as torch starts no threads in a worker
CONTROL_GROUPS = Path("/sys/fs/cgroup")
PREFETCHED = 4  # batches ready per worker: evens out slow samples


class PatchDataset(Dataset):
    """Sample index -> augmented patch.

    Args:
        store: the preprocessed cases.
        sampler: chooses case and place; its cases must be in the store.
        chain: augments; of the same patch size.
        previous: the segmentations that a cascade sees beside the image, or None.
        in_memory: read all cases now and keep them. Processes forked from this one share the memory.
    """

    def __init__(
        self,
        store: CaseStore,
        sampler: PatchSampler,
        chain: HostChain,
        previous: PreviousStage | None = None,
        *,
        in_memory: bool,
    ) -> None:
        self.store = store
        self.sampler = sampler
        self.chain = chain
        self.previous = previous
        self.in_memory = in_memory
        self.cases: dict[str, StoredCase] = {}
        if in_memory:
            self.cases = {case: store.open(case).in_memory() for case in sampler.cases}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image (C, *patch) float32, target (*patch) uint8 or int16 without OUTSIDE, and the case's id.

        In a cascade, the channels of the image are followed by one per label of the previous stage.
        """
        rng = sample_generator(self.sampler.seed, index)
        case = self._open(self.sampler.case_of(index))
        lower = self.sampler.choose(index, case, rng).lower
        deformation = self.chain.draw(rng)
        margin = deformation.margin
        size = [length + 2 * m for length, m in zip(self.chain.patch_size, margin, strict=True)]
        lower = tuple(first - m for first, m in zip(lower, (0, *margin)[-3:], strict=True))  # type: ignore[assignment]
        image = cut_patch(case.image, lower, size, self.chain.border)
        target = cut_patch(case.target, lower, size, OUTSIDE)
        if self.previous is None:
            image, target = self.chain(image, target, rng, deformation)
        else:  # the chain moves both label maps alike, and makes 0 of OUTSIDE
            before = cut_patch(self.previous.open(case.info.id), lower, size, OUTSIDE)
            image, (target, before) = self.chain(image, np.stack([target, before]), rng, deformation)
            image = np.concatenate([image, self.previous.channels(before, rng)])
        target = target.astype(np.uint8 if target.dtype == np.int8 else np.int16, copy=False)
        return {"image": torch.from_numpy(image), "target": torch.from_numpy(target), "case": case.info.id}

    def __getstate__(self) -> dict[str, Any]:
        """Mapped files are not sent to a new process: it opens its own."""
        return self.__dict__ | ({} if self.in_memory else {"cases": {}})

    def _open(self, case_id: str) -> StoredCase:
        if case_id not in self.cases:
            if len(self.cases) >= OPEN_CASES:
                self.cases.pop(next(iter(self.cases)))
            self.cases[case_id] = self.store.open(case_id)
        return self.cases[case_id]


class Steps(Sampler[list[int]]):
    """Sample indices of step `start`, `start + 1`, ... up to `stop` (exclusive), or without end."""

    def __init__(self, batch_size: int, start: int, stop: int | None) -> None:
        self.batch_size = batch_size
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start) if self.stop is None else range(self.start, self.stop):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("a stream of batches without end has no length")
        return max(self.stop - self.start, 0)


def make_loader(
    store: CaseStore,
    cases: Sequence[str],
    *,
    patch_size: Sequence[int],
    batch_size: int,
    labels: Sequence[Sequence[int]],
    augmentation: Augmentation,
    mirror_axes: Sequence[int],
    masked_channels: Sequence[int] = (),
    rgb: bool = False,
    anisotropic: bool | None = None,
    border: float = 0.0,
    previous: Path | None = None,
    num_labels: int = 0,
    foreground_fraction: float,
    case_sampling: Literal["uniform", "presence"] = "uniform",
    class_sampling: Literal["uniform", "inverse_frequency"] = "uniform",
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    worker_count: int = 0,
    pin_memory: bool = False,
    memory_limit: int | None = None,
) -> DataLoader:
    """Make the stream of batches of a training.

    Args:
        store, cases: the preprocessed cases, and the ids to draw from.
        patch_size: (Z, Y, X), or (Y, X) for slices.
        batch_size: samples per step.
        labels: what foreground patches are aimed at, as class indices; see `PatchSampler`, also for
            foreground_fraction, case_sampling and class_sampling.
        augmentation: the table; see `build_chain`, also for mirror_axes, masked_channels, rgb, anisotropic and border.
        previous, num_labels: a folder with the segmentation of a previous stage of every case, on the grid of the
            store (<case>.npy, class indices), and the number of its labels: they become further channels.
        seed: not negative. Give validation patches another seed than training.
        start_step, stop_step: the first step to deliver, and the one after the last; None: a stream without end.
        worker_count: processes that prepare batches; 0 prepares them here.
        pin_memory: for copies to CUDA.
        memory_limit: bytes the cases may occupy in memory (0: never held); None: a quarter of what is free.

    Returns:
        Iterable of {"image": float32 (B, C, *patch), "target": uint8 or int16 (B, *patch), "cases": list of ids}, with
        C + num_labels channels in a cascade.
    """
    sampler = PatchSampler(
        {case: store.info(case) for case in cases}, patch_size=patch_size, labels=labels, seed=seed,
        foreground_fraction=foreground_fraction, case_sampling=case_sampling, class_sampling=class_sampling,
    )  # fmt: skip
    chain = build_chain(
        augmentation, patch_size=patch_size, mirror_axes=mirror_axes, anisotropic=anisotropic,
        masked_channels=masked_channels, rgb=rgb, border=border,
    )  # fmt: skip
    stage = PreviousStage(previous, num_labels, augmentation) if previous else None
    limit = int(free_memory() * MEMORY_SHARE) if memory_limit is None else memory_limit
    in_memory = (FORKS or not worker_count) and sum(map(store.nbytes, cases)) <= limit
    return DataLoader(
        PatchDataset(store, sampler, chain, stage, in_memory=in_memory),
        batch_sampler=Steps(batch_size, start_step, stop_step),
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # otherwise it draws from the global one, which the training uses
        **_process_options(worker_count),
    )


def _process_options(worker_count: int) -> dict[str, Any]:
    if not worker_count:
        return {}
    return {
        "num_workers": worker_count,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": "fork" if FORKS else None,
        "prefetch_factor": PREFETCHED,
        "persistent_workers": True,
    }


def free_memory() -> int:
    """Bytes this process may still use: of the machine, or of its control group (containers, batch systems)."""
    free = psutil.virtual_memory().available
    for limit, used in (  # version 2, version 1
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            group = [(CONTROL_GROUPS / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if group[0].isdigit():
            free = min(free, int(group[0]) - int(group[1]))
    return max(free, 0)


def _collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "target": torch.stack([sample["target"] for sample in samples]),
        "cases": [sample["case"] for sample in samples],
    }


def _start_worker(_: int) -> None:
    """Leave the process group, so that its signals reach the parent alone.

    Ctrl-C and the signals of batch systems go to the whole group. A worker that died of one would end the training at
    once, before the parent has come to a safe point and written its checkpoint. Workers end with their parent all the
    same: it tells them to, and they look whether it is still there.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
