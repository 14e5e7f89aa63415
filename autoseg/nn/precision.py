"""How the convolutions should run here: in which dtype, in which memory layout, compiled or not.

Half precision is faster on some machines and up to a hundred times slower on others, and some library versions compute
it wrongly; channels that lie last in memory speed up one network and slow down the next. So a few real steps decide: a
dtype is chosen only if it is faster than float32 by a margin and its logits agree (`measure`, `choose`). Another layout
and compiled code are set beside the network as it is, on one of its stages or as a whole (`beside`), by the same rule.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from autoseg.nn.blocks import Stage

Module = TypeVar("Module", bound=nn.Module)
Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MARGIN = 0.9  # a dtype must need less than this share of float32's time
TOLERANCE = 0.2  # of the logits' standard deviation: root mean square difference to float32; eight stages give 0.1
REPEATS = 3  # passes of each way at least, in turns: the first warms up, and compiles; the fastest counts
MOST_REPEATS = 10  # and at most,
TRIAL_SECONDS = 3.0  # as long as all ways together have taken no more than so many seconds
HOPELESS = 5.0  # a dtype whose best of two passes takes so many seconds, and so many passes of float32, gets no third,
HOPELESS_AT_ONCE = 30.0  # and no second one if the first takes so many times as long: a stall is hardly ever as bad
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a convolution's weights


@dataclass(frozen=True)
class PrecisionTrial:
    """What was measured for one dtype, or for one way to run the network in it."""

    dtype: str
    seconds: float  # forward and backward of one batch
    forward_seconds: float  # forward alone, without gradients
    difference: float  # root mean square difference of the logits to float32, in their standard deviations


def candidates(device: torch.device) -> tuple[str, ...]:
    """Dtypes worth trying on a device, float32 first."""
    if device.type == "cuda":
        return ("float32", "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16")
    return ("float32", "bfloat16") if device.type == "cpu" else ("float32",)


def measure(
    network: nn.Module, image: Tensor, dtypes: Sequence[str], repeats: int | None = None
) -> list[PrecisionTrial]:
    """Time one training step's forward and backward pass per dtype; weights and gradients stay unchanged.

    The dtypes take turns, so that other work on the machine, which comes and goes, meets them all; the best pass of
    each counts, so that a stall spoils nothing.

    Args:
        network: maps `image` (B, C, *patch) to a list of logits.
        dtypes: keys of DTYPES; the first must be float32, the reference.
        repeats: passes of each dtype; None: REPEATS, and more while TRIAL_SECONDS are not spent.
    """
    seconds: dict[str, list[list[float]]] = {dtype: [] for dtype in dtypes}
    finest: dict[str, Tensor] = {}
    with _without_dropout(network):
        for _ in _rounds(repeats, seconds.values()):
            for dtype in dtypes:
                if not _is_hopeless(seconds[dtype], seconds[dtypes[0]]):
                    finest[dtype], *taken = _one_pass(network, image, dtype)
                    seconds[dtype].append(taken)
    return [_trial(dtype, seconds[dtype], finest[dtype], finest[dtypes[0]]) for dtype in dtypes]


def beside(
    one: nn.Module, other: nn.Module, image: Tensor, dtype: str, repeats: int | None = None
) -> tuple[PrecisionTrial, PrecisionTrial]:
    """Time two ways to run the same network, or one stage of it, in turns; both are compared with `one` in float32.

    Args:
        one, other: with equal weights; map `image` (B, C, *patch) to a list of logits or to one map.
        dtype: of both.
        repeats: passes of each; None: REPEATS, and more while TRIAL_SECONDS are not spent.
    """
    seconds: tuple[list[list[float]], list[list[float]]] = ([], [])
    with _without_dropout(one), _without_dropout(other):
        with torch.no_grad():
            reference = _finest(one(image))
        for _ in _rounds(repeats, seconds):
            finest, *taken = _one_pass(one, image, dtype)
            other_finest, *other_taken = _one_pass(other, image, dtype)
            seconds[0].append(taken)
            seconds[1].append(other_taken)
    return _trial(dtype, seconds[0], finest, reference), _trial(dtype, seconds[1], other_finest, reference)


def choose(trials: Sequence[PrecisionTrial]) -> PrecisionTrial:
    """The fastest trial that agrees with float32 and beats it by the margin, otherwise float32's (the first)."""
    reference = trials[0]
    right = [t for t in trials[1:] if t.difference < TOLERANCE and t.seconds < MARGIN * reference.seconds]
    return min(right, key=lambda trial: trial.seconds, default=reference)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Autocast context of that dtype; switched off for float32."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `work` returns, and the seconds until the device has done it."""
    began = _now(device)
    result = work()
    return result, _now(device) - began


def forward_seconds(network: nn.Module, tile: Tensor, dtype: str, repeats: int = REPEATS) -> list[float]:
    """Seconds of each of `repeats` forward passes of one tile, as in prediction: without gradients, not compiled.

    Args:
        tile: (1, C, *patch) on the device.
    """
    one = copy.deepcopy(network) if _is_channels_last(network) else network
    if one is not network:  # predictions keep the usual layout
        for parameter in one.parameters():
            parameter.data = parameter.data.contiguous()
    with _without_dropout(one), torch.inference_mode():
        taken = []
        for _ in range(repeats):
            start = _now(tile.device)
            with autocast(tile.device, dtype):
                one.forward(tile)  # what was compiled is compiled for whole batches, and again for any other shape
            taken.append(_now(tile.device) - start)
    return taken


def channels_last(network: Module) -> Module:
    """A copy of a network whose convolutions keep the channels last in memory; its maps follow the weights."""
    return to_channels_last(copy.deepcopy(network))


def to_channels_last(network: Module) -> Module:
    """Lay out the convolutions of a network channels-last, in place: its parameters stay the same objects.

    `nn.Module.to` would refuse a network that has weights of four axes beside those of five.
    """
    for parameter in network.parameters():
        if parameter.ndim in LAYOUTS:
            parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[parameter.ndim])
    return network


def compiled(network: nn.Module) -> nn.Module:
    """The network as compiled code, which is made when it first runs; the network itself stays as it is."""
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


def first_stage(network: nn.Module, image: Tensor) -> tuple[Stage, Tensor] | None:
    """The first `Stage` that an image (B, C, *patch) comes to, and what it sees there; None if the network has none.

    A stem of one convolution says little of the others: the first stage of two or more goes before it.
    """
    found: list[tuple[Stage, Tensor]] = []

    def look(stage: nn.Module, seen: tuple[Tensor, ...]) -> None:
        assert isinstance(stage, Stage)
        if not found or (_convolutions(found[0][0]) < 2 <= _convolutions(stage)):
            found[:] = [(stage, seen[0])]

    hooks = [module.register_forward_pre_hook(look) for module in network.modules() if isinstance(module, Stage)]
    try:
        with torch.no_grad(), _without_dropout(network):
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _one_pass(network: nn.Module, image: Tensor, dtype: str) -> tuple[Tensor, float, float]:
    """Go forward and backward once; the finest logits in float32, the seconds, those of the forward pass."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    start = _now(image.device)
    with autocast(image.device, dtype):
        logits = network(image)
    forward_done = _now(image.device)
    stages = logits if isinstance(logits, list) else [logits]
    loss = torch.stack([stage.float().square().mean() for stage in stages]).sum()
    torch.autograd.grad(loss, parameters, allow_unused=True)  # leaves the .grad of the parameters alone
    return _finest(logits), _now(image.device) - start, forward_done - start


def _trial(dtype: str, seconds: Sequence[Sequence[float]], finest: Tensor, reference: Tensor) -> PrecisionTrial:
    difference = float((finest - reference).square().mean().sqrt() / reference.std().clamp_min(1e-8))
    best, best_forward = (min(column) for column in zip(*seconds, strict=True))
    return PrecisionTrial(dtype, best, best_forward, difference)


def _rounds(repeats: int | None, seconds: Collection[Sequence[Sequence[float]]]) -> Iterator[int]:
    """Count rounds: as many as asked for, or REPEATS and more as long as there is time.

    Args:
        seconds: of each way so far: those of each pass come first in a row.
    """
    for done in range(MOST_REPEATS if repeats is None else repeats):
        if repeats is None and done >= REPEATS and sum(row[0] for way in seconds for row in way) >= TRIAL_SECONDS:
            return
        yield done


def _is_hopeless(seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> bool:
    """Whether a dtype has shown that it is far slower than float32, and costs seconds to show it again.

    One pass does not show it unless it is extreme: another process may have held it up.
    """
    if not seconds:
        return False
    factor = HOPELESS if len(seconds) > 1 else HOPELESS_AT_ONCE
    return min(row[0] for row in seconds) > factor * max(1.0, min(row[0] for row in reference))


def _finest(logits: Tensor | list[Tensor]) -> Tensor:
    return (logits[0] if isinstance(logits, list) else logits).detach().float()


def _is_channels_last(network: nn.Module) -> bool:
    return any(not parameter.is_contiguous() for parameter in network.parameters())


def _convolutions(stage: nn.Module) -> int:
    return sum(isinstance(module, (nn.Conv2d, nn.Conv3d)) for module in stage.modules())


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    """Let results be comparable, and the generator of the training be: nothing is left out at random."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
