"""What a trace of memory cannot see, measured on the device at hand: context, workspace, fragmentation, speed.

A handful of real training steps (`TRIALS`) is taken; what the device held of memory beyond its context is set against
the traced bytes, and a line through the points gives workspace and fragmentation. An underestimate is worse than an
overestimate, as training would break off, and weighs more. The result is kept in the user's cache, one entry per
device, torch and cuDNN, since each of them changes it.

On CUDA the memory held is what torch's allocator reserved. On a CPU it is the peak of the resident memory of a process
of its own, which Linux and macOS tell.
"""

import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.lines import LOG
from autoseg.nn.blocks import set_checkpointing
from autoseg.nn.losses import LOSSES, DeepSupervision
from autoseg.nn.memory.model import DEFAULT_TERMS, MIB, DeviceTerms, StepCost, StepKind, trace_step
from autoseg.nn.networks import build_network
from autoseg.nn.optimization import OPTIMIZERS
from autoseg.nn.precision import candidates, choose, measure
from autoseg.nn.training_step import clipped_gradients, loss_of, update

CACHE_VERSION = 1
KINDS = ("devices", "rates")  # what the cache holds: terms, and rates of CPUs
UNDERESTIMATE = 10.0  # weight of an underestimate in the fit; an overestimate weighs 1
LARGEST_CONTEXT = 2 * 2**30  # memory beyond is held by other processes
SHARE_OF_FREE = 0.6  # of a GPU's free memory, that the largest trial may take
STEPS = 3  # per trial: the first allocates and warms up, the fastest of the others counts


@dataclass(frozen=True)
class Trial:
    """A training step that can be traced, and taken for real: a network, a batch, an optimiser.

    Every stage halves its map, has two blocks (residual encoders one) and kernels three voxels wide; only the first
    axis is neither halved nor convolved in the first `flat` stages, as for thick slices.
    """

    network: str
    features: tuple[int, ...]
    out_channels: int
    patch_size: tuple[int, ...]
    batch_size: int
    flat: int = 0
    in_channels: int = 1
    optimizer: str = "sgd"
    checkpointing: bool = False

    @cached_property
    def strides(self) -> list[tuple[int, ...]]:
        return [self._along_axes(stage, 1 if stage == 0 else 2) for stage in range(len(self.features))]

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        stages = len(self.features)
        return build_network(
            self.network, in_channels=self.in_channels, out_channels=self.out_channels, features=self.features,
            strides=self.strides, kernel_sizes=[self._along_axes(stage, 3) for stage in range(stages)],
            blocks=[1 if self.network == "residual_unet" else 2] * stages, decoder_blocks=[2] * (stages - 1),
        )  # fmt: skip

    def criterion(self) -> nn.Module:
        """Dice and cross-entropy under deep supervision."""
        return DeepSupervision(LOSSES["dice_ce"](regions=[], ignore_index=None, class_weights=None, batch_dice=False))

    def trace(self, dtype: str, rules: str) -> StepCost:
        """What the step takes by the memory model."""
        kind = StepKind(self.in_channels, self.optimizer, dtype, self.checkpointing, rules=rules)
        return trace_step(self.build, self.criterion(), kind, self.patch_size, self.batch_size)

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A random image (B, C, *patch) and target (B, *patch)."""
        image = torch.randn(self.batch_size, self.in_channels, *self.patch_size, device=device)
        shape = (self.batch_size, *self.patch_size)
        return image, torch.randint(0, self.out_channels, shape, dtype=torch.uint8, device=device)

    def steps(
        self, device: torch.device, dtype: str, clock: Callable[[], float] = time.perf_counter
    ) -> Iterator[float]:
        """Take real steps without end; yield the seconds of each, by that clock."""
        network, criterion = self.build().to(device), self.criterion().to(device)
        set_checkpointing(network, self.checkpointing)
        optimizer = OPTIMIZERS[self.optimizer](network.parameters(), 1e-2, 1e-5)
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        image, target = self.batch(device)
        while True:
            began = clock()
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network, criterion, image, target, dtype=dtype)
            clipped_gradients(loss, network, optimizer, scaler, 12.0)
            del loss
            update(optimizer, scaler)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield clock() - began

    def run(self, device: torch.device, dtype: str, steps: int = STEPS) -> float:
        """Take real steps; return the seconds of the fastest after the first."""
        return min(list(itertools.islice(self.steps(device, dtype), steps))[1:])

    def _along_axes(self, stage: int, size: int) -> tuple[int, ...]:
        first = 1 if stage < self.flat else size
        return (first, *[size] * (len(self.patch_size) - 1))


NNUNET_3D = (32, 64, 128, 256, 320, 320)
TRIALS: dict[str, tuple[Trial, ...]] = {
    "cuda": (
        Trial("unet", (32, 64, 128, 256, 512, 512), 2, (256, 256), 8),
        Trial("unet", NNUNET_3D, 3, (64, 64, 64), 2),
        Trial("unet", NNUNET_3D, 50, (20, 256, 224), 2, flat=4),
        Trial("residual_unet", NNUNET_3D, 3, (96, 96, 96), 2),
        Trial("unet", NNUNET_3D, 3, (128, 128, 128), 2),
    ),
    "cpu": (
        Trial("unet", (32, 64, 128, 256), 2, (128, 128), 4),
        Trial("unet", (16, 32, 64, 128), 3, (32, 32, 32), 4),
        Trial("unet", (16, 32, 64), 20, (48, 48, 48), 1),
        Trial("residual_unet", (32, 64, 128, 256), 3, (192, 192), 4),
        Trial("unet", (16, 32, 64, 128), 3, (64, 64, 64), 1),
    ),
}


@dataclass(frozen=True)
class Observation:
    """What one trial was traced and seen to take."""

    live: int  # bytes, traced
    context: int  # bytes held without any tensor
    used: int  # bytes held at the peak, beyond the context
    flops: int
    seconds: float


def calibrate(device: torch.device | str) -> DeviceTerms:
    """Measure the terms of a device; takes under a minute. What was measured is logged.

    Args:
        device: cuda or cpu.

    Raises:
        ValueError: the device is of another kind.
    """
    device = torch.device(device)
    if device.type not in TRIALS:
        raise ValueError(f"only {' and '.join(TRIALS)} can be calibrated, not {device.type}")
    observations = []
    dtype = trained_dtype(device)
    for trial in TRIALS[device.type]:
        cost = trial.trace(dtype, device.type)
        if device.type == "cuda" and cost.peak > SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]:
            continue
        seen = observe(trial, cost, device, dtype)
        observations.append(seen)
        LOG.info(
            f"{trial.network} {'x'.join(map(str, trial.patch_size))}, batch {trial.batch_size}, {dtype}: "
            f"tensors {seen.live / MIB:.0f} MiB, held {seen.used / MIB:.0f} MiB, {seen.seconds:.3f} s per step"
        )
    terms = terms_of(observations, device)
    LOG.info(terms.describe())
    return terms


def trained_dtype(device: torch.device) -> str:
    """The dtype that training would choose: half precision on CUDA, what is faster and right on a CPU."""
    if device.type == "cuda":
        return candidates(device)[-1]
    trial = TRIALS["cpu"][0]
    return choose(measure(trial.build(), trial.batch(device)[0], candidates(device))).dtype


def terms_of(observations: Sequence[Observation], device: torch.device) -> DeviceTerms:
    """The terms that explain what was observed, rather too large than too small."""
    workspace, share = fit([o.live for o in observations], [o.used for o in observations])
    return DeviceTerms(
        context_bytes=max(o.context for o in observations),
        workspace_bytes=workspace,
        fragmentation=share,
        flops_per_second=statistics.median(o.flops / o.seconds for o in observations),
        device=device_name(device),
        torch=torch.__version__,
        cudnn=cudnn_version(device),
        measured=True,
    )


def fit(live: Sequence[int], used: Sequence[int]) -> tuple[int, float]:
    """Workspace w and share f, neither negative, with used ~ w + (1 + f) live: least squares of the relative errors.

    An underestimate weighs UNDERESTIMATE times as much as an overestimate of its size.
    """
    x, y = np.asarray(live, float), np.asarray(used, float)
    best, lowest = np.zeros(2), math.inf
    for columns in ([0, 1], [0], [1]):  # without the bound, and with either term at it
        terms = _fit_asymmetric(np.stack((np.ones_like(x), x), axis=1), y - x, y, columns)
        loss = _asymmetric_loss((terms[0] + (1 + terms[1]) * x - y) / y)
        if (terms >= 0).all() and loss < lowest:
            best, lowest = terms, loss
    return math.ceil(best[0]), float(best[1])


def _fit_asymmetric(design: np.ndarray, excess: np.ndarray, used: np.ndarray, columns: list[int]) -> np.ndarray:
    """Expectile regression by reweighted least squares: it settles as soon as no point changes its side."""
    terms, weights = np.zeros(2), np.ones(len(used))
    for _ in range(50):
        scale = np.sqrt(weights) / used
        terms = np.zeros(2)
        terms[columns] = np.linalg.lstsq(design[:, columns] * scale[:, None], excess * scale, rcond=None)[0]
        weights = np.where(design @ terms < excess, UNDERESTIMATE, 1.0)
    return terms


def _asymmetric_loss(errors: np.ndarray) -> float:
    return float((np.where(errors < 0, UNDERESTIMATE, 1.0) * errors**2).sum())


def observe(trial: Trial, cost: StepCost, device: torch.device, dtype: str) -> Observation:
    """Take the steps of a trial that `cost` predicts, and see what they use."""
    look = _on_cuda if device.type == "cuda" else _on_cpu
    context, used, seconds = look(trial, device, dtype)
    return Observation(cost.peak, context, used, cost.flops, seconds)


def _on_cuda(trial: Trial, device: torch.device, dtype: str) -> tuple[int, int, float]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    seconds = trial.run(device, dtype)
    used = torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    torch.cuda.empty_cache()
    return (context if context < LARGEST_CONTEXT else DEFAULT_TERMS.context_bytes), used, seconds


def _on_cpu(trial: Trial, device: torch.device, dtype: str) -> tuple[int, int, float]:
    from autoseg.processes import main_kept_out  # here: the benchmarks of GPUs need torch and numpy alone

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with main_kept_out():
            measured = pool.submit(steps_in_this_process, trial, dtype, torch.get_num_threads())
        return measured.result()


def steps_in_this_process(trial: Trial, dtype: str, threads: int) -> tuple[int, int, float]:
    """Resident bytes before the steps of a trial, how much higher they rose, and the seconds of a step."""
    torch.set_num_threads(threads)
    Trial("unet", (4, 8), 2, (8, 8), 1).run(torch.device("cpu"), dtype, steps=2)  # loads the libraries
    before, _ = resident_bytes()
    seconds = trial.run(torch.device("cpu"), dtype)
    _, peak = resident_bytes()
    return before, peak - before, seconds


def resident_bytes() -> tuple[int, int]:
    """Bytes of this process in main memory: now, and at most since it began. Without /proc both are the peak."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def device_name(device: torch.device) -> str:
    """The device as its maker calls it; of a CPU with the threads and instructions that torch uses.

    They set its speed: instructions that were forbidden to torch or to oneDNN make another machine of it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    instructions = torch.backends.cpu.get_cpu_capability()
    if forbidden := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        instructions += f", oneDNN up to {forbidden}"
    return f"{models[0] if models else platform.machine()} (threads: {torch.get_num_threads()}, {instructions})"


def cudnn_version(device: torch.device) -> str | None:
    return str(torch.backends.cudnn.version()) if device.type == "cuda" else None


def cache_path() -> Path:
    """Where measured terms are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoseg" / "calibration.json"


def save_terms(terms: DeviceTerms) -> Path:
    """Keep measured terms in the user's cache, in place of older ones of the same device and versions."""
    return save_entry("devices", terms.device, terms.torch, terms.cudnn, asdict(terms))


def load_terms(device: str | None) -> DeviceTerms:
    """The terms measured on a device of this machine with the libraries at hand, or DEFAULT_TERMS.

    Args:
        device: of torch ("cuda:1", "cpu"), or "gpu" for the first one; None for one that is not here.
    """
    here = torch.device("cuda" if device == "gpu" else device) if device else None
    if here is None or (here.type == "cuda" and not torch.cuda.is_available()):
        return DEFAULT_TERMS
    try:
        return DeviceTerms(**load_entry("devices", here))
    except (KeyError, TypeError):  # never measured, or written by another version
        return DEFAULT_TERMS


def save_entry(kind: str, device: str, torch_version: str, cudnn: str | None, entry: dict) -> Path:
    """Keep something measured on a device in the user's cache, beside what else is known of it, and return the file."""
    path = cache_path()
    kept = {one: _entries(path, one) for one in KINDS}
    kept[kind] |= {_key(device, torch_version, cudnn): entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")  # no lock file: nn does without autoseg.workspace
    temporary.write_text(json.dumps({"version": CACHE_VERSION, **kept}, indent=2), encoding="utf-8")
    temporary.replace(path)
    return path


def load_entry(kind: str, device: torch.device) -> dict:
    """What of that kind was measured on a device with the libraries at hand. Raises KeyError where nothing was."""
    return _entries(cache_path(), kind)[_key(device_name(device), torch.__version__, cudnn_version(device))]


def _key(device: str, torch_version: str, cudnn: str | None) -> str:
    return f"{device} | torch {torch_version} | cuDNN {cudnn}"


def _entries(path: Path, kind: str) -> dict:
    """Entries of the cache; none where there is no cache, or a damaged one, or one of another version."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        entries = plain.get(kind, {}) if plain["version"] == CACHE_VERSION else {}
        return entries if isinstance(entries, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
