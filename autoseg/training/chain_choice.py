"""What augments the batches of a fold, and where: measured when it begins.

The chains take turns in several short trials on real batches, and for each the best trial counts: other work on the
machine comes and goes, and one stall must not decide. What becomes of a training step beside the preparation of the
batches to come follows from the two times that were measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.batches import ChainName
from autoseg.dataloading.stream import BatchStream
from autoseg.errors import UsageError
from autoseg.lines import LOG
from autoseg.nn.precision import timed
from autoseg.planning.plan import Training
from autoseg.processes import available_cores

CHAIN_SHARE = 0.002  # of the training, spent on measuring a chain,
CHAIN_SECONDS = (0.5, 5.0)  # but so many seconds at least and at most,
CHAIN_TRIALS = 3  # and in so many trials, each of one batch at least


@dataclass(frozen=True)
class ChainTrial:
    """What was measured for one chain: means over the batches of its best trial."""

    chain: ChainName
    samples: int  # of a batch
    preparation: float  # seconds to prepare a batch, in one process with one thread
    finishing: float  # seconds until it lies on the device, augmented


def choose_chain(
    training: Training,
    stream_of: Callable[[ChainName], BatchStream],
    device: torch.device,
    workers: int,
    sample_seconds: float,
    seconds: float,
) -> ChainName:
    """The chain with which a step takes least: what the plan names, or measured.

    Args:
        sample_seconds: of a step of the network, per sample.
        seconds: expected length of the training.
    """
    possible = possible_chains(training)
    if training.chain != "auto":
        return require_chain(training, training.chain)
    if len(possible) == 1:
        return possible[0]
    spent = min(max(CHAIN_SHARE * seconds, CHAIN_SECONDS[0]), CHAIN_SECONDS[1])
    trials = measure_chains({chain: stream_of(chain) for chain in possible}, device, spent)
    expected = {
        t.chain: step_seconds(
            sample_seconds * t.samples, t.preparation, t.finishing,
            workers=workers, cores=available_cores(), device_type=device.type,
        )
        for t in trials
    }  # fmt: skip
    chosen = min(possible, key=lambda chain: expected[chain])
    shown = ", ".join(
        f"{t.chain} {1000 * t.preparation:.0f} + {1000 * t.finishing:.0f} -> {1000 * expected[t.chain]:.0f}"
        for t in trials
    )
    LOG.info(f"augmentation, ms to prepare + finish a batch -> per step with {workers} worker(s): {shown} -> {chosen}")
    return chosen


def require_chain(training: Training, chain: ChainName) -> ChainName:
    """The chain itself. Raises UsageError where it cannot do what a plan asks for."""
    possible = possible_chains(training)
    if chain not in possible:
        raise UsageError(
            f"training.chain={chain} does not support what the plan asks for (component_weight "
            f"{training.component_weight}, augmentation {training.augmentation!r})",
            remedy=f"--set training.chain=auto, or {' or '.join(possible)}",
        )
    return chain


def possible_chains(training: Training) -> tuple[ChainName, ...]:
    """The chains that can do what a plan asks for.

    Weights of components need the target where batches are prepared; only the chains in torch mix samples.
    """
    augmentation = AUGMENTATIONS[training.augmentation]
    mixes = max(augmentation.cutmix, augmentation.mixup, augmentation.paste) > 0
    able: dict[ChainName, bool] = {"host": not mixes, "worker": True, "device": training.component_weight == 0}
    return tuple(chain for chain, can in able.items() if can)


def measure_chains(streams: Mapping[ChainName, BatchStream], device: torch.device, seconds: float) -> list[ChainTrial]:
    """Time real batches of each chain, after one that opens files, and close the streams.

    Args:
        streams: at the same step, so that all prepare the same samples.
        seconds: for each chain, spread over CHAIN_TRIALS trials in which the chains take turns.

    Within a trial it is the mean that counts: many samples are left alone and some are deformed. Of the trials it is
    the best.
    """
    found: dict[ChainName, list[tuple[float, float]]] = {chain: [] for chain in streams}
    samples: dict[ChainName, int] = {}
    try:
        for chain, stream in streams.items():
            batch = next(stream)
            samples[chain] = len(batch["cases"])
            stream.finish(batch, device)
        for _ in range(CHAIN_TRIALS):
            for chain, stream in streams.items():
                found[chain].append(_mean_batch(stream, device, seconds / CHAIN_TRIALS))
    finally:
        for stream in streams.values():
            stream.close()
    return [ChainTrial(chain, samples[chain], *min(found[chain], key=sum)) for chain in streams]


def _mean_batch(stream: BatchStream, device: torch.device, seconds: float) -> tuple[float, float]:
    """Mean seconds to prepare a batch and to finish it, over so many seconds, or one batch."""
    spent: list[tuple[float, float]] = []
    while not spent or sum(map(sum, spent)) < seconds:
        batch, preparation = timed(lambda: next(stream), device)
        _, finishing = timed(lambda raw=batch: stream.finish(raw, device), device)  # type: ignore[misc]
        spent.append((preparation, finishing))
    preparation, finishing = (sum(column) / len(spent) for column in zip(*spent, strict=True))
    return preparation, finishing


def step_seconds(
    network: float, preparation: float, finishing: float, *, workers: int, cores: int, device_type: str
) -> float:
    """Predict the seconds of a training step beside the preparation of the batches to come.

    Args:
        network: seconds of the network's part of the step, alone on the device.
        preparation: seconds of one process, with one core, for a batch.
        finishing: seconds on the device until a batch is augmented.
        workers: processes that prepare batches; 0: the training process does, in between.
        cores: of the processor that this process may use.
        device_type: of the training.

    The slower sets the pace: the training, or the workers, of which no more work at a time than there are cores. Beside
    an accelerator the training process hardly needs a core. On a CPU the network uses them all, and what the workers
    work is lost to it: `preparation / cores`, if no core ever waits for another.
    """
    training = network + finishing
    if workers == 0:
        return training + preparation
    if device_type == "cpu":
        training += preparation / cores
    return max(training, preparation / min(workers, cores))
