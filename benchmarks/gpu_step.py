"""A training step on a GPU: with and without augmentation on the device, and by dtype, memory layout and compiling.

    python benchmarks/gpu_step.py [--device cuda] [--out gpu_step.md] [--minutes 7] [--dry-run]

The network is nnU-Net's plain 3-D U-Net of 31.20 M parameters, patch 128 x 128 x 128, batch 2, Dice and cross-entropy
with deep supervision, SGD.

1. Augmentation. Both kinds of steps begin with batches in pinned memory, as workers deliver them: without augmentation
   the patches as the network sees them, with it raw patches with the margins that were drawn (the recipe
   "default"), which the device chain augments. The two take turns, blocks of steps at a time. Some batches are deformed
   and some are not: an epoch is as long as the mean step. Exits 1 where augmentation makes it over 5 % longer.
2. The table: seconds and memory of a step by dtype, layout and compiling, and the difference of the logits from
   float32 in their standard deviations. What fails, or for which no time is left, is named. `chosen` is what
   `autoseg.nn.precision` would take, by its margin and tolerance.

`--dry-run` does the same on the CPU with a tiny network, in seconds; nothing is compiled or judged.

Needs torch and numpy alone, and no installation of autoseg: it imports autoseg.nn and autoseg.augmentation.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor

from autoseg.augmentation.chain import DeviceChain, Draw
from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.nn.memory.calibration import NNUNET_3D, Trial
from autoseg.nn.optimization import OPTIMIZERS
from autoseg.nn.precision import DTYPES, PrecisionTrial, autocast, candidates, choose, timed, to_channels_last
from autoseg.nn.training_step import clipped_gradients, loss_of, update

PLAIN = Trial("unet", NNUNET_3D, 3, (128, 128, 128), 2)
PARAMETERS = 31.20e6
TINY = Trial("unet", (4, 8), 3, (16, 16, 16), 2)
LIMIT = 1.05  # a step with augmentation over one without
GIB = 2**30

Batch = tuple[Tensor, Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is done."""

    trial: Trial
    batches: int  # kept in memory, used in turn
    block: int  # steps at a time
    blocks: int  # of either kind
    timed: int  # steps of each row of the table, after three


REAL, DRY = Size(PLAIN, 24, 24, 6, 10), Size(TINY, 4, 2, 2, 2)


@dataclass(frozen=True)
class Raw:
    """A batch as workers deliver it under the chain on the device."""

    images: list[Tensor]  # of each sample (C, *patch grown by its margin) float32
    targets: list[Tensor]
    draws: list[Draw]


class Training:
    """A network in training, one step at a time."""

    def __init__(self, trial: Trial, device: torch.device, dtype: str) -> None:
        torch.manual_seed(0)  # the same weights each time
        self.network = trial.build().to(device)
        self.criterion = trial.criterion().to(device)
        self.optimizer = OPTIMIZERS[trial.optimizer](self.network.parameters(), 1e-3, 1e-5)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
        self.dtype = dtype

    def step(self, image: Tensor, target: Tensor) -> float:
        """Do one step as `autoseg.training.within_memory` does it, and wait for its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.network, self.criterion, image, target, dtype=self.dtype)
        norm = clipped_gradients(loss, self.network, self.optimizer, self.scaler, 12.0)
        value, _ = torch.stack([loss.detach().float(), norm.float()]).tolist()
        update(self.optimizer, self.scaler)
        return value


# ---- 1. augmentation


def raw_batches(trial: Trial, chain: DeviceChain, number: int, *, pinned: bool) -> list[Raw]:
    """Batches of noise and boxes, grown by the margins that were drawn."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(number):
        draws = [chain.draw(rng) for _ in range(trial.batch_size)]
        images, targets = [], []
        for draw in draws:
            shape = [edge + 2 * margin for edge, margin in zip(trial.patch_size, draw.margin, strict=True)]
            image = torch.from_numpy(rng.standard_normal((trial.in_channels, *shape), dtype=np.float32))
            target = torch.zeros(shape, dtype=torch.int8)
            for label in range(1, trial.out_channels):
                target[tuple(slice(edge // 3, edge // 2) for edge in shape)] = label
            images.append(image.pin_memory() if pinned else image)
            targets.append(target.pin_memory() if pinned else target)
        batches.append(Raw(images, targets, draws))
    return batches


def compare_augmentation(
    size: Size, device: torch.device, dtype: str, out_of_time: Callable[[], bool], say: Say
) -> float:
    """Mean step with augmentation over that without; two blocks of each at least."""
    trial, pinned = size.trial, device.type == "cuda"
    chain = DeviceChain(
        AUGMENTATIONS["default"], channels=trial.in_channels, patch_size=trial.patch_size,
        mirror_axes=range(len(trial.patch_size)),
    )  # fmt: skip
    raw = raw_batches(trial, chain, size.batches, pinned=pinned)
    plain = [trial.batch(torch.device("cpu")) for _ in range(size.batches)]
    if pinned:
        plain = [(image.pin_memory(), target.pin_memory()) for image, target in plain]
    training = Training(trial, device, dtype)

    def without(number: int) -> Batch:
        image, target = plain[number % size.batches]
        return image.to(device, non_blocking=True), target.to(device, non_blocking=True)

    def with_it(number: int) -> Batch:
        batch = raw[number % size.batches]
        images, targets = ([t.to(device, non_blocking=True) for t in part] for part in (batch.images, batch.targets))
        image, target = chain(images, targets, batch.draws, device)
        return image, target.view(torch.uint8)

    kinds = {"without": without, "with": with_it}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for block in range(size.blocks + 1):  # the first warms up
        if block > 2 and out_of_time():
            break
        for name, deliver in kinds.items():
            for number in range(size.block):
                _, taken = timed(lambda n=number, d=deliver: training.step(*d(n)), device)
                if block:
                    seconds[name].append(taken)
    seconds["the chain alone"] = [timed(lambda n=n: with_it(n), device)[1] for n in range(size.batches)]
    say("| augmentation on the device | ms per step: mean | median | ninth decile |")
    say("|---|---|---|---|")
    for name, values in seconds.items():
        shown = statistics.mean(values), statistics.median(values), float(np.quantile(values, 0.9))
        say(f"| {name} | {' | '.join(f'{1000 * value:.1f}' for value in shown)} |")
    ratio = statistics.mean(seconds["with"]) / statistics.mean(seconds["without"])
    say("")
    say(f"with over without: {ratio:.3f}, at most {LIMIT} is wanted")
    return ratio


# ---- 2. dtype, memory layout, compiling


def ways(device: torch.device) -> Iterator[tuple[bool, bool, str]]:
    """Compiled, channels last, dtype: first everything that is quickly measured; float32 leads."""
    best = candidates(device)[-1]
    dtypes = [dtype for dtype in DTYPES if device.type == "cuda" or dtype != "float16"]
    yield from itertools.product((False,), (False, True), dtypes)
    yield from itertools.product((True,), (False, True), sorted(dtypes, key=lambda dtype: dtype != best))


def measure_way(
    size: Size, device: torch.device, way: tuple[bool, bool, str], reference: Tensor | None, backend: str
) -> tuple[PrecisionTrial, float, Tensor]:
    """The trial of a whole step in some way, its peak of memory in GiB, and the logits of one sample."""
    compiled, channels_last, dtype = way
    training = Training(size.trial, device, dtype)
    if channels_last:
        to_channels_last(training.network)
    if compiled:
        torch._dynamo.reset()  # it gives up on code, silently, that it has compiled in eight ways
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        training.network.compile(dynamic=False, backend=backend)
    image, target = size.trial.batch(device)
    with torch.no_grad(), autocast(device, dtype):
        logits = training.network(image[:1])[0].float()
    reference = logits if reference is None else reference
    difference = float((logits - reference).square().mean().sqrt() / reference.std())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [timed(lambda: training.step(image, target), device)[1] for _ in range(3 + size.timed)][3:]
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0
    return PrecisionTrial(dtype, statistics.median(seconds), 0.0, difference), peak, logits


def compare_ways(size: Size, device: torch.device, out_of_time: Callable[[], bool], say: Say) -> None:
    """Print the table of dtypes, layouts and compiling."""
    backend = "eager" if size is DRY else "inductor"
    reference: Tensor | None = None
    trials: dict[PrecisionTrial, str] = {}
    say("| dtype | channels last | compiled | ms per step | over float32 | off by | peak GiB | first use, s |")
    say("|---|---|---|---|---|---|---|---|")
    for way in ways(device):
        compiled, channels_last, dtype = way
        name = f"{dtype} | {'yes' if channels_last else 'no'} | {'yes' if compiled else 'no'}"
        if out_of_time():
            say(f"| {name} | no time left | | | | |")
            continue
        began = time.perf_counter()
        try:
            torch.manual_seed(1)  # the same batch each time
            trial, peak, logits = measure_way(size, device, way, reference, backend)
        except Exception as error:  # a row of the table, whatever a compiler or an allocator may raise
            say(f"| {name} | {type(error).__name__}: {str(error).strip().splitlines()[:1]} | | | | |")
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        reference = logits if reference is None else reference
        trials[trial] = name
        first = time.perf_counter() - began - (3 + size.timed) * trial.seconds
        share = trial.seconds / next(iter(trials)).seconds
        say(
            f"| {name} | {1000 * trial.seconds:.1f} | {share:.2f} | {trial.difference:.2%} | {peak:.2f} | {first:.1f} |"
        )
    if trials:
        say("")
        say(f"chosen: {trials[choose(list(trials))]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_step.md"))
    parser.add_argument("--minutes", type=float, default=6, help="begin no further row after so long")
    parser.add_argument("--dry-run", action="store_true", help="a tiny network on the CPU")
    options = parser.parse_args()
    began = time.perf_counter()
    size, device = (DRY, torch.device("cpu")) if options.dry_run else (REAL, torch.device(options.device))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # what there is, should a later step fail

    parameters = sum(p.numel() for p in size.trial.build().parameters())
    assert size is DRY or abs(parameters / PARAMETERS - 1) < 1e-3, parameters
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "dry run on the CPU"
    say(f"- {name}; torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    say(f"- {parameters / 1e6:.2f} M parameters, patch {size.trial.patch_size}, batch {size.trial.batch_size}")
    say("")

    def later_than(minutes: float) -> bool:
        return time.perf_counter() - began > 60 * minutes

    ratio = compare_augmentation(size, device, candidates(device)[-1], lambda: later_than(options.minutes / 2), say)
    say("")
    compare_ways(size, device, lambda: later_than(options.minutes), say)
    say(f"- {time.perf_counter() - began:.0f} s in all")
    return 0 if ratio <= LIMIT or size is DRY else 1


if __name__ == "__main__":
    sys.exit(main())
