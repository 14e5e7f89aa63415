"""Streams of batches composed of their parts, without a plan: `from streams import stream_of`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.host_chain import build_chain
from autoseg.augmentation.presets import Augmentation
from autoseg.dataloading.batches import HostBatches, Shard, TorchBatches
from autoseg.dataloading.patches import PatchReader
from autoseg.dataloading.previous_stage import PreviousStage
from autoseg.dataloading.sampling import PatchSampler
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from autoseg.imaging.components import component_weights

SAMPLED = {"labels": ((1,), (2,)), "foreground_fraction": 0.5, "seed": 3}
CHAINED = {"patch_size": (6, 10, 8), "mirror_axes": (0, 1, 2), "masked_channels": (), "border": 0.0}
SHARED = {"batch_size": 2, "rank": 0, "ranks": 1}
DELIVERED = {"start_step": 0, "stop_step": 8, "worker_count": 0}
OTHERS = {"previous": None, "num_labels": 0, "in_memory": True, "component_weight": 0.0, "ignore_index": None}


def stream_of(
    store: CaseStore, cases: Sequence[str], table: Augmentation, chain: str = "host", **settings: Any
) -> BatchStream:
    """A stream of two samples a batch, half of them on foreground; any entry of the tables above may be changed."""
    sampled, chained, shared, delivered, others = (
        {key: settings.pop(key, value) for key, value in part.items()}
        for part in (SAMPLED, CHAINED, SHARED, DELIVERED, OTHERS)
    )
    assert not settings, f"unknown: {settings}"
    sampler = PatchSampler({case: store.info(case) for case in cases}, **sampled)
    folder = others["previous"]
    previous = PreviousStage(folder, others["num_labels"], table) if folder else None
    reader = PatchReader(store, sampler, previous, in_memory=others["in_memory"])
    power, weigh = others["component_weight"], None
    if power:
        weigh = partial(component_weights, power=power, ignore_index=others["ignore_index"])
    if chain == "host":
        batches: HostBatches | TorchBatches = HostBatches(reader, build_chain(table, **chained), Shard(**shared), weigh)
    else:
        channels = store.info(cases[0]).channels
        device_chain = DeviceChain(table, channels=channels, ignore_index=None, **chained)
        batches = TorchBatches(reader, device_chain, Shard(**shared), chain == "device", weigh)
    return BatchStream(batches, **delivered)
