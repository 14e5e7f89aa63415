"""What is measured when a fold begins, and what is chosen by it: how the network runs, and what augments.

Machines, libraries and networks differ too much for rules: half precision may be twice as fast or 88 times as slow,
channels that lie last in memory 40 % faster or 24 % slower, and some versions compute wrongly. So a few real steps
decide, and everything that is chosen must agree with float32 and be faster by a margin (`autoseg.nn.precision`):

    dtype                   of the convolutions, on the whole network
    memory layout           first on one stage of the network; what gains there is verified on the whole network
    compiled code           likewise, where the training is long enough to win back what compiling costs
    augmentation chain      by the seconds it takes for real batches (`autoseg.training.chain_choice`)

Of each way the best of several trials counts, and the ways take turns: other work on the machine, which comes and goes,
meets them all. The settings go into the checkpoint: a fold that resumes keeps those it began with. Besides: how many
processes prepare batches.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from autoseg.dataloading.batches import ChainName
from autoseg.dataloading.stream import BatchStream
from autoseg.lines import LOG
from autoseg.models.versions import RuntimeSettings
from autoseg.nn import precision
from autoseg.nn.blocks import Stage
from autoseg.nn.precision import MARGIN, PrecisionTrial, beside, candidates, first_stage, measure
from autoseg.nn.training_step import is_out_of_memory
from autoseg.planning.plan import Configuration, Plan, Training
from autoseg.processes import available_cores
from autoseg.training.chain_choice import choose_chain, require_chain

MAX_WORKERS = 12
COMPILE_SECONDS = 300.0  # compiling a stage, then the network to train and to validate
SHORTEST_COMPILED_ON_CPU = 3600.0  # seconds of a training
COMPILERS = ("c++", "g++", "clang++", "cl")  # one of them makes compiled code for a CPU, and starts that for a GPU


def choose(
    network: nn.Module,
    plan: Plan,
    configuration: Configuration,
    stream_of: Callable[[ChainName], BatchStream],
    image: Tensor,
    *,
    workers: int,
    seconds: float | None,
) -> RuntimeSettings:
    """Measure what is fastest and right on this machine; weights, gradients and generators stay unchanged.

    Two lines are logged: what was measured and what was chosen.

    Args:
        network: on the device, as it is trained.
        stream_of: a training stream of that chain, without workers.
        image: a batch (B, C, *patch) on the device.
        workers: processes that will prepare batches.
        seconds: expected length of the training; None: the measured step times the plan's steps.

    Raises:
        UsageError: the plan names a chain that cannot do what it asks for.
    """
    training, device = plan.training, image.device
    if not training.autotune:
        return fixed_choices(network, training, image)
    # the plan fills the device with a batch in half precision: in float32 it would not fit
    sample = image if device.type == "cpu" else image[:1]
    trial, told = choose_dtype(network, sample, training.autocast)
    remarks = [told]
    dtype, forward_seconds = trial.dtype, trial.forward_seconds / len(sample)
    stage = first_stage(network, sample)

    way = network
    if stage:
        trial, faster, told = improve(network, stage, sample, trial, "channels last", precision.channels_last)
        way = faster or network
        remarks.append(told)
    sample_seconds = seconds_per_sample(way, image, trial, len(sample))
    if seconds is None:
        assert training.total_steps is not None, "the length is given in seconds, which were not passed"
        seconds = sample_seconds * configuration.batch_size * training.total_steps
    compiled = None
    reason = why_not_compile(seconds, device.type)
    if stage and not reason:
        before = trial.seconds
        trial, compiled, told = improve(way, stage, sample, trial, "compiled", precision.compiled)
        sample_seconds *= trial.seconds / before
        remarks.append(told)
    elif reason:
        remarks.append(f"not compiled: {reason}")
    LOG.info(f"{device.type}, forward and backward: {'; '.join(remarks)}")
    chain = choose_chain(training, stream_of, device, workers, sample_seconds, seconds)
    return RuntimeSettings(dtype, way is not network, compiled is not None, chain, forward_seconds)


def fixed_choices(network: nn.Module, training: Training, image: Tensor) -> RuntimeSettings:
    """What a training without autotuning uses: the same on every machine, and nothing that was timed decides.

    float32 unless the plan names a dtype; the usual layout; not compiled; on a CPU the chain of the worker processes,
    on other devices the one there, unless the plan names one. One forward pass is timed, for the estimate of what comes
    after the last step.
    """
    dtype = "float32" if training.autocast == "auto" else training.autocast
    chain = training.chain
    if chain == "auto":
        chain = "worker" if image.device.type == "cpu" or training.component_weight > 0 else "device"
    sample = image[:1]
    trial = measure(network, sample, (dtype,), repeats=2)[0]
    LOG.info(f"not autotuned: {dtype}, augmentation by the {chain} chain")
    return RuntimeSettings(dtype, False, False, require_chain(training, chain), trial.forward_seconds)


def apply(runtime: RuntimeSettings, network: nn.Module, image: Tensor | None = None) -> None:
    """Let a network run as it was chosen, in place: parameters and the keys of its state stay what they are.

    Where compiling fails, the network runs uncompiled, and training continues.

    Args:
        image: a batch (B, C, *patch) on the device, on which compiled code is tried at once; None leaves that to the
            first step.
    """
    if runtime.channels_last:
        precision.to_channels_last(network)
    if not runtime.compiled:
        return
    device = next(network.parameters()).device
    if not has_compiler(device.type):
        LOG.warning("not compiled, although the fold started compiled: no compiler found")
        return
    network.compile(dynamic=False)
    if image is not None:
        try:
            measure(network, image, (runtime.dtype,), repeats=1)
        except Exception as error:  # whatever a compiler may raise
            network.compile(disable=True)
            LOG.warning(f"not compiled: {_in_short(error)}")


# ---- how the network runs


def choose_dtype(network: nn.Module, sample: Tensor, wanted: str) -> tuple[PrecisionTrial, str]:
    """The dtype of the convolutions on the whole network, as it was measured, and a line about it.

    `wanted` is "auto" (measure and choose) or a dtype to use as it is.
    """
    tried = candidates(sample.device) if wanted == "auto" else tuple(dict.fromkeys(("float32", wanted)))
    trials = _measured(network, sample, tried)
    if not trials:  # no memory for float32; what the plan was made for must do, though nothing can be compared
        trials = measure(network, sample, tried[-1:])
        return trials[0], f"float32 does not fit the memory -> {trials[0].dtype}"
    chosen = precision.choose(trials) if wanted == "auto" else trials[-1]
    shown = ", ".join(f"{t.dtype} {1000 * t.seconds:.0f} ms (off by {t.difference:.1%})" for t in trials)
    return chosen, f"{shown} -> {chosen.dtype}"


def _measured(network: nn.Module, sample: Tensor, dtypes: Sequence[str]) -> list[PrecisionTrial]:
    """Trials of these dtypes; none where memory runs out, and there are others than the first to try."""
    try:
        return measure(network, sample, dtypes)
    except (RuntimeError, MemoryError) as error:
        if len(dtypes) == 1 or not is_out_of_memory(error):
            raise
    return []


def improve(
    network: nn.Module,
    stage: tuple[Stage, Tensor],
    sample: Tensor,
    trial: PrecisionTrial,
    name: str,
    vary: Callable[[nn.Module], nn.Module],
) -> tuple[PrecisionTrial, nn.Module | None, str]:
    """Try another way to run a network: on one stage, and where that gains by the margin, on the whole.

    Args:
        stage: of the network, and what it sees.
        trial: of the network as it is.
        vary: makes the network, or the stage, run the other way.

    Returns:
        The trial of what is chosen, the network in the new way if it is that one, and what to report.
    """
    block, seen = stage
    try:
        for what, one, image in (("a stage", block, seen), ("the network", network, sample)):
            way = vary(one)
            before, after = beside(one, way, image, trial.dtype)
            timing = f"{name} {1000 * after.seconds:.0f} ms against {1000 * before.seconds:.0f} for {what}"
            if precision.choose((before, after)) is not after:
                off = "" if after.difference < precision.TOLERANCE else f", off by {after.difference:.1%}"
                return trial, None, f"{timing}{off} -> not {name}"
    except Exception as error:  # whatever a compiler may raise, or a device that runs out of memory
        return trial, None, f"not {name}: {_in_short(error)}"
    return after, way, f"{timing} -> {name}"


def seconds_per_sample(network: nn.Module, image: Tensor, trial: PrecisionTrial, tried: int) -> float:
    """Seconds of a step per sample of a whole batch (B, C, *patch), of which `tried` samples were tried before."""
    if tried < len(image):
        try:
            whole = measure(network, image, (trial.dtype,))[0]
            return whole.seconds / len(image)
        except (RuntimeError, MemoryError) as error:  # the training will divide the batch
            if not is_out_of_memory(error):
                raise
    return trial.seconds / tried


def why_not_compile(seconds: float, device_type: str) -> str:
    """Return why a training of `seconds` is not compiled; "" where compiling is tried.

    It must pay already with the smallest gain that is adopted. On CPUs, where compiled code gains less and takes
    longer to make, trainings of less than an hour are left alone.
    """
    shortest = COMPILE_SECONDS / (1 - MARGIN)
    if device_type == "cpu":
        shortest = max(shortest, SHORTEST_COMPILED_ON_CPU)
    if seconds < shortest:
        return f"{seconds / 60:.0f} min of training are too few, {shortest / 60:.0f} needed"
    return "" if has_compiler(device_type) else "no compiler found"


def has_compiler(device_type: str) -> bool:
    """Whether code can be compiled for a device: for a GPU it takes triton, and on either a C++ compiler."""
    found = any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS)))
    if device_type == "cuda":
        return found and importlib.util.find_spec("triton") is not None
    return found and device_type == "cpu"


def _in_short(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {''.join(first)[:200]}"


def worker_count(wanted: int | None, device: torch.device, trainings: int = 1) -> int:
    """Processes that prepare patches: as asked for, otherwise all cores but one beside a GPU, one beside a CPU.

    Args:
        trainings: processes on this machine that train together, and share its cores.
    """
    if wanted is not None:
        return wanted
    return max(1, min(available_cores() // trainings - 1, MAX_WORKERS)) if device.type != "cpu" else 1
