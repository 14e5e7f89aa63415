"""From a plan to the batches of a training: the one place where a plan is unpacked for `dataloading`.

Every part is built here and handed to the next, which is independent of the plan:

    sampler    which case, and which place in it          SAMPLERS, the labels, the seed
    reader     the voxels there                           the store, the previous stage of a cascade
    chain      how they are augmented, and where          AUGMENTATIONS; it alone holds the patch size
    shard      which samples of a step are this process's
    batches    step -> batch                              all of the above, and the weights of components
    stream     batches in order, prepared by workers
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoseg.augmentation import host_chain
from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.batches import ChainName, HostBatches, Shard, TorchBatches
from autoseg.dataloading.patches import PatchReader
from autoseg.dataloading.previous_stage import PreviousStage
from autoseg.dataloading.sampling import PatchSampler
from autoseg.dataloading.shared_memory import FORKS
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from autoseg.dataloading.workers import HELD, PREFETCHED
from autoseg.imaging.components import component_weights
from autoseg.lines import LOG
from autoseg.models.build import configuration_mirror_axes
from autoseg.planning.plan import Configuration, Plan
from autoseg.processes import free_memory

MEMORY_SHARE = 0.25  # of the free memory: what the cases may occupy to be held in it
BATCHES_SHARE = 0.5  # of what is free then: what batches may occupy that workers have prepared


@dataclass(frozen=True)
class TrainingBatches:
    """What the batches of a fold follow from; `stream` opens them, as often as you like, at any step."""

    store: CaseStore
    cases: Sequence[str]  # ids to draw from
    plan: Plan
    configuration: Configuration
    previous: Path | None = None  # of a cascade: the folder of the previous stage's segmentations, see `open_previous`
    rank: int = 0  # of `ranks` processes that train together, which must divide the batch
    ranks: int = 1

    def __post_init__(self) -> None:
        assert (self.previous is None) == (self.configuration.cascade_from is None)

    def stream(
        self,
        chain: ChainName,
        *,
        start_step: int = 0,
        stop_step: int | None = None,
        worker_count: int = 0,
        pin_memory: bool = False,
        memory_limit: int | None = None,
    ) -> BatchStream:
        """Open the stream of batches; see `BatchStream`, also for `pin_memory`.

        Args:
            chain: what augments, and where: the host chain, or the device chain in the workers or on the device.
            start_step, stop_step: the first step to deliver, and the one after the last; None: a stream without end.
            worker_count: processes that prepare batches, fewer if memory is short; 0 prepares them here.
            memory_limit: bytes the cases may occupy in memory; None: a quarter of what is free. For a few batches it is
                not worth while to read them all: 0.
        """
        free = free_memory() // self.ranks  # of which each takes its share
        limit = int(free * MEMORY_SHARE) if memory_limit is None else memory_limit
        shared = FORKS or not worker_count  # other processes would each read them again
        in_memory = shared and sum(map(self.store.nbytes, self.cases)) <= limit
        batches = self.batches(chain, in_memory=in_memory)
        return BatchStream(
            batches, start_step=start_step, stop_step=stop_step, pin_memory=pin_memory,
            worker_count=affordable_workers(worker_count, batches.nbytes, free),
        )  # fmt: skip

    def batches(self, chain: ChainName, *, in_memory: bool) -> HostBatches | TorchBatches:
        """What prepares and finishes the batch of any step; `in_memory`: read all cases now and keep them."""
        plan, previous = self.plan, None
        if self.previous:
            previous = PreviousStage(self.previous, plan.labels.num_labels, AUGMENTATIONS[plan.training.augmentation])
        sampler = build_sampler(self.store, self.cases, plan, plan.training.seed)
        reader = PatchReader(self.store, sampler, previous, in_memory=in_memory)
        shard = Shard(self.configuration.batch_size, self.rank, self.ranks)
        weigh, power = None, plan.training.component_weight
        if power:
            weigh = partial(component_weights, power=power, ignore_index=plan.labels.ignore_index)
        if chain == "host":
            return HostBatches(reader, build_host_chain(plan, self.configuration), shard, weigh)
        device_chain = build_device_chain(plan, self.configuration)
        return TorchBatches(reader, device_chain, shard, chain == "device", weigh)


def build_sampler(store: CaseStore, cases: Sequence[str], plan: Plan, seed: int) -> PatchSampler:
    """Draw from these cases as the plan says. Give patches to validate on another seed than those to train on."""
    training = plan.training
    return PatchSampler(
        {case: store.info(case) for case in cases}, labels=list(plan.labels.scored.values()),
        foreground_fraction=training.foreground_fraction, case_sampling=training.case_sampling,
        class_sampling=training.class_sampling, seed=seed,
    )  # fmt: skip


def build_host_chain(plan: Plan, configuration: Configuration) -> host_chain.HostChain:
    """The plan's augmentation of one patch at a time, in numpy."""
    return host_chain.build_chain(AUGMENTATIONS[plan.training.augmentation], **_chain_settings(plan, configuration))


def build_device_chain(plan: Plan, configuration: Configuration) -> DeviceChain:
    """The plan's augmentation of whole batches, in torch; of a cascade it sees the images alone."""
    return DeviceChain(
        AUGMENTATIONS[plan.training.augmentation], channels=len(plan.channels), ignore_index=plan.labels.ignore_index,
        **_chain_settings(plan, configuration),
    )  # fmt: skip


def _chain_settings(plan: Plan, configuration: Configuration) -> dict[str, Any]:
    """Return the settings that both chains take from a plan."""
    return {
        "patch_size": configuration.patch_size,
        "mirror_axes": configuration_mirror_axes(plan, configuration),
        "masked_channels": [i for i, n in enumerate(plan.normalization) if n.inside_mask],
        "rgb": len(plan.channels) == 3 and all(n.scheme == "rgb_to_0_1" for n in plan.normalization),
    }


def affordable_workers(wanted: int, nbytes: int, free: int) -> int:
    """As many workers as there is memory for their batches, each of `nbytes`; `free` is in bytes, too."""
    count = min(wanted, max(int((free * BATCHES_SHARE / nbytes - HELD) // PREFETCHED), 0))
    if count < wanted:
        LOG.warning(
            f"not enough memory for {wanted} workers ({free / 2**20:.0f} MB free, batches of {nbytes / 2**20:.0f} MB): "
            f"using {count}; for more, end other programs"
        )
    return count
