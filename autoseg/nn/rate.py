"""How fast this CPU trains: floating-point operations per second of whole training steps, in 2-D and in 3-D.

`measure_rate` takes a few steps of two small networks with one thread and counts the processor's time, not the
clock's: other programs on the machine change it by a few percent, where they make the clock's time of several threads
useless (each waits for the others at every barrier, and all for whatever runs in between). What several threads gain is
assumed. `calibrate_rate` measures it by the clock, which needs a quiet machine. Either takes the best of several steps
and the faster of the dtypes, as training does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import torch
from torch import nn

from autoseg.nn.memory.calibration import Trial, device_name, load_entry, save_entry
from autoseg.nn.precision import MARGIN, autocast

# Two samples each: with one, some libraries compute volumes three times slower.
RATE_TRIALS = {
    2: Trial("unet", (16, 32, 64, 128), 3, (128, 128), 2),
    3: Trial("unet", (16, 32, 64), 3, (24, 24, 24), 2),
}
RATE_FLOPS = {2: 6_904_086_528, 3: 7_780_147_200}  # of a step of these, as traced: a trace takes longer than the steps
STEPS = 9  # of a trial, at most: the first warms up, the fastest of the others counts
SECONDS = 1.5  # by the clock, after which a trial takes no further step
CALIBRATED_SECONDS = 4.0  # of a trial
TURNS = 12  # of the dtypes
THREADS_GAIN = 0.7  # power of the number of threads by which they are assumed to be faster than one: two 1.62 times
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CpuRate:
    """A CPU's rates in operations per second."""

    flops_2d: float
    flops_3d: float
    dtype: str  # the faster one
    device: str
    torch: str
    calibrated: bool  # by the clock, with all threads

    @property
    def by_dims(self) -> dict[int, float]:
        return {2: self.flops_2d, 3: self.flops_3d}

    def describe(self) -> str:
        """Where it comes from, in words."""
        return f"{'calibrated' if self.calibrated else 'measured'} on {self.device}, {self.dtype}"


def measure_rate() -> CpuRate:
    """Take a few steps with one thread, and assume what all threads gain; takes about two seconds."""
    threads = torch.get_num_threads()
    with _threads(1):
        dtype = faster_dtype()
        rates = {dims: _rate(dims, dtype, time.thread_time, SECONDS) for dims in RATE_TRIALS}
    gain = threads**THREADS_GAIN
    return CpuRate(gain * rates[2], gain * rates[3], dtype, device_name(CPU), torch.__version__, calibrated=False)


def calibrate_rate() -> CpuRate:
    """Measure with all threads by the clock; at least what one thread does by its own time; takes about ten seconds."""
    threads = torch.get_num_threads()
    with _threads(1):
        dtype = faster_dtype()
        least = {dims: _rate(dims, dtype, time.thread_time, SECONDS) for dims in RATE_TRIALS}
    with _threads(threads):
        rates = {
            dims: max(least[dims], _rate(dims, dtype, time.perf_counter, CALIBRATED_SECONDS, most=100))
            for dims in RATE_TRIALS
        }
    return CpuRate(rates[2], rates[3], dtype, device_name(CPU), torch.__version__, calibrated=True)


def faster_dtype() -> str:
    """The dtype in which a small convolution takes less of the processor's time: half precision only by a margin.

    Small, because half precision is up to a hundred times slower where the processor has no instructions for it.
    """
    ways = {dtype: _convolutions(dtype) for dtype in ("float32", "bfloat16")}
    spent: dict[str, list[float]] = {dtype: [] for dtype in ways}
    for _ in range(TURNS):
        for dtype, way in ways.items():
            spent[dtype].append(next(way))
    return "bfloat16" if min(spent["bfloat16"]) < MARGIN * min(spent["float32"]) else "float32"


def _convolutions(dtype: str) -> Iterator[float]:
    """Seconds of the processor, of one convolution after the other, forward and backward."""
    layer, image = nn.Conv2d(32, 32, 3, padding=1), torch.randn(2, 32, 64, 64, requires_grad=True)
    while True:
        began = time.thread_time()
        with autocast(CPU, dtype):
            result = layer(image)
        torch.autograd.grad(result.float().sum(), (image, layer.weight))
        yield time.thread_time() - began


def _rate(dims: int, dtype: str, clock: Callable[[], float], limit: float, most: int = STEPS) -> float:
    """Operations per second of the fastest step but the first; two are taken at least."""
    end = time.perf_counter() + limit
    best = float("inf")
    for number, seconds in enumerate(RATE_TRIALS[dims].steps(CPU, dtype, clock), start=1):
        if number > 1:
            best = min(best, seconds)
        if number >= 2 and (number >= most or time.perf_counter() > end):
            break
    return RATE_FLOPS[dims] / best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads; its generator keeps its state."""
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)


def known_rate() -> CpuRate:
    """The rate of this CPU: as it was measured before, or measured now and kept in the user's cache."""
    try:
        return CpuRate(**load_entry("rates", CPU))
    except (KeyError, TypeError):  # never measured, or written by another version
        rate = measure_rate()
        save_rate(rate)
        return rate


def save_rate(rate: CpuRate) -> None:
    """Keep a rate in the user's cache; where that cannot be written, the next plan measures again."""
    with suppress(OSError):
        save_entry("rates", rate.device, rate.torch, None, asdict(rate))
