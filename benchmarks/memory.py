"""The memory model against a real training step on the CPU: traced bytes, the allocator's count, resident memory.

    python benchmarks/memory.py [--out TABLE.md]

Each configuration runs in a process of its own. `allocator` is the peak of torch's CPU allocator in the second step, as
torch.profiler reports every block it hands out and takes back, without the blocks that one operation takes and gives
back before it returns; with them it is `+ scratch` (casts inside of a kernel, unrolled convolutions). `resident` is how
far the peak of the process's memory rises above a process that has trained a tiny network: it also holds what oneDNN
takes past the allocator, and fragmentation. The trace follows the rules of the CPU.

Then errors are planted in the model: the comparison must notice each. Exits 1 where a trace misses the allocator by
more than 1 %, or a planted error passes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from autoseg.nn.memory import model
from autoseg.nn.memory.calibration import NNUNET_3D, Trial, steps_in_this_process
from autoseg.nn.training_step import loss_of

MIB = 2**20
TOLERANCE = 0.01
CPU = torch.device("cpu")
PLANE = (32, 64, 128, 256, 512, 512)
SMALL = (16, 32, 64, 128, 256, 256)

# network, features, heads, patch and batch on a GPU, flat stages, patch and batch on a CPU, dtype on the CPU, options
ROWS: list[tuple[str, tuple[int, ...], int, tuple[int, ...], int, int, tuple[int, ...], int, str, dict]] = [
    ("unet", PLANE, 2, (512, 512), 8, 0, (256, 256), 8, "float32", {}),
    ("unet", PLANE, 2, (512, 512), 8, 0, (256, 256), 8, "bfloat16", {}),
    ("unet", PLANE, 4, (640, 512), 6, 0, (320, 256), 6, "bfloat16", {"in_channels": 3}),
    ("unet", PLANE, 20, (512, 512), 4, 0, (256, 256), 4, "bfloat16", {}),
    ("unet", PLANE, 105, (384, 384), 4, 0, (192, 192), 4, "bfloat16", {}),
    ("unet", PLANE, 3, (1024, 768), 2, 0, (384, 384), 2, "float32", {"optimizer": "adamw"}),
    ("unet", SMALL, 2, (512, 512), 8, 0, (256, 256), 8, "bfloat16", {}),
    ("unet", SMALL, 50, (512, 512), 5, 0, (256, 256), 5, "float32", {}),
    ("residual_unet", PLANE, 2, (512, 512), 6, 0, (256, 256), 6, "bfloat16", {}),
    ("residual_unet", PLANE, 25, (512, 384), 4, 0, (256, 192), 4, "float32", {}),
    ("attention_unet", PLANE, 3, (512, 512), 6, 0, (256, 256), 6, "bfloat16", {}),
    ("attention_unet", PLANE, 13, (512, 512), 3, 0, (256, 256), 3, "float32", {"optimizer": "adamw"}),
    ("unet_plusplus", SMALL, 4, (512, 512), 4, 0, (256, 256), 4, "bfloat16", {}),
    ("unet", NNUNET_3D, 3, (128, 128, 128), 1, 0, (64, 64, 64), 1, "bfloat16", {}),
    ("unet", NNUNET_3D, 3, (160, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("unet", NNUNET_3D, 3, (96, 96, 96), 4, 0, (64, 64, 64), 4, "float32", {}),
    ("unet", NNUNET_3D, 2, (96, 96, 96), 8, 0, (64, 64, 64), 8, "bfloat16", {}),
    ("unet", NNUNET_3D, 14, (128, 128, 96), 2, 0, (64, 64, 32), 2, "bfloat16", {"in_channels": 4}),
    ("unet", NNUNET_3D, 25, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("unet", NNUNET_3D, 50, (128, 128, 128), 1, 0, (64, 64, 64), 1, "float32", {}),
    ("unet", NNUNET_3D, 105, (96, 96, 96), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("unet", NNUNET_3D, 3, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {"checkpointing": True}),
    ("unet", NNUNET_3D, 3, (16, 256, 256), 2, 3, (8, 96, 96), 2, "bfloat16", {}),
    ("unet", NNUNET_3D, 5, (24, 256, 192), 3, 3, (16, 128, 96), 3, "float32", {}),
    ("unet", NNUNET_3D, 16, (40, 224, 192), 2, 3, (16, 96, 96), 2, "bfloat16", {"optimizer": "adamw"}),
    ("unet", SMALL, 2, (128, 128, 128), 4, 0, (64, 64, 64), 4, "bfloat16", {}),
    ("residual_unet", NNUNET_3D, 3, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("residual_unet", NNUNET_3D, 25, (96, 96, 96), 2, 0, (64, 64, 64), 2, "float32", {}),
    ("residual_unet", NNUNET_3D, 4, (24, 256, 224), 2, 3, (16, 128, 96), 2, "bfloat16", {}),
    ("residual_unet", NNUNET_3D, 3, (160, 160, 160), 2, 0, (64, 64, 64), 2, "bfloat16", {"checkpointing": True}),
    ("attention_unet", NNUNET_3D, 3, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("attention_unet", NNUNET_3D, 40, (96, 96, 96), 2, 0, (64, 64, 64), 2, "float32", {}),
    ("attention_unet", NNUNET_3D, 2, (20, 256, 256), 2, 4, (8, 96, 96), 2, "bfloat16", {}),
    ("deeplab", NNUNET_3D, 3, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("segformer", SMALL, 3, (128, 128, 128), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("transunet", SMALL, 3, (96, 96, 96), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
    ("mask_transformer", SMALL, 3, (96, 96, 96), 2, 0, (64, 64, 64), 2, "bfloat16", {}),
]


def gpu_trials() -> list[Trial]:
    """The configurations at the size they have on a GPU."""
    return [
        Trial(network, features, heads, patch, batch, flat, **options)
        for network, features, heads, patch, batch, flat, _, _, _, options in ROWS
    ]


def cpu_trials() -> list[tuple[Trial, str]]:
    """The same for a CPU, half as wide and with smaller patches, and the dtype of each."""
    return [
        (replace(trial, features=tuple(f // 2 for f in trial.features), patch_size=row[6], batch_size=row[7]), row[8])
        for trial, row in zip(gpu_trials(), ROWS, strict=True)
    ]


def allocator_peak(trial: Trial, dtype: str) -> tuple[int, int]:
    """Peak bytes of torch's CPU allocator in a trial's second step: without and with the scratch of operations."""
    steps = trial.steps(CPU, dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for name in ("first", "second"):
            with torch.profiler.record_function(f"{name} step"):
                next(steps)
    blocks: list[tuple[int, int, int, tuple | None]] = []  # when, bytes (negative: given back), address, operation
    waiting = list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.name == "[memory]":
            block = event.extra_fields
            blocks.append((event.start_time_ns, block.alloc_size, block.ptr, _operation_around(event)))
        elif event.name == "second step":
            span = event.start_time_ns, event.end_time_ns
    blocks.sort(key=lambda block: block[0])
    scratch = _scratch(blocks)
    live = total = highest = highest_total = 0
    for i, (when, size, _, _) in enumerate(blocks):
        total += size
        live += 0 if i in scratch else size
        if span[0] <= when <= span[1]:
            highest, highest_total = max(highest, live), max(highest_total, total)
    return highest, highest_total


def _operation_around(event) -> tuple[str, int] | None:
    """The outermost operation of torch that ran while a block changed hands: its name and when it began."""
    found = None
    while (event := event.parent) is not None:
        if event.name.startswith("aten::"):
            found = event.name, event.start_time_ns
    return found


def _scratch(blocks: list[tuple[int, int, int, tuple | None]]) -> set[int]:
    """Indices of what is taken and given back within one operation."""
    taken: dict[int, int] = {}
    found: set[int] = set()
    for i, (_, size, address, operation) in enumerate(blocks):
        if size > 0:
            taken[address] = i
        elif (first := taken.pop(address, None)) is None:
            raise RuntimeError("a block was given back that was never seen")
        elif operation is not None and operation == blocks[first][3]:
            found |= {first, i}
    return found


def describe(trial: Trial, dtype: str) -> str:
    """A row's first cells: network, dimensions, classes, patch, batch, options."""
    patch = "x".join(map(str, trial.patch_size))
    options = [dtype]
    options += [trial.optimizer] if trial.optimizer != "sgd" else []
    options += ["checkpointing"] if trial.checkpointing else []
    options += ["anisotropic"] if trial.flat else []
    dims = len(trial.patch_size)
    return f"{trial.network} | {dims}-D | {trial.out_channels} | {patch} | {trial.batch_size} | {', '.join(options)}"


# ---- errors to plant


def _forget_gradients(loss: Tensor, network: nn.Module, *_, **__) -> None:
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    loss.backward()


def _without_momentum(parameters, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, learning_rate, weight_decay=weight_decay)


def _one_head_less(network: nn.Module, criterion: nn.Module, *arguments, dtype: str) -> Tensor:
    return loss_of(network, lambda logits, target: criterion(logits[1:], target), *arguments, dtype=dtype)  # type: ignore[arg-type]


@contextmanager
def _planted(name: str, replacement: Callable) -> Iterator[None]:
    with mock.patch.object(model, name, replacement):
        yield


PLANTED: dict[str, Callable] = {
    "the gradients": lambda: _planted("clipped_gradients", _forget_gradients),
    "the optimiser's momentum": lambda: mock.patch.dict(model.OPTIMIZERS, sgd=_without_momentum),
    "the finest head's loss": lambda: _planted("loss_of", _one_head_less),
}
PLANTED_INTO = (
    Trial("unet", SMALL, 20, (64, 64), 4),
    Trial("unet", (16, 32, 64), 20, (16, 16, 16), 2),
)


def planted_errors() -> tuple[list[str], bool]:
    """Rows that say how far each planted error leads away from the allocator; and whether all were noticed.

    An error is noticed where one configuration shows it: what is forgotten may be gone at the peak of another.
    """
    errors: dict[str, list[float]] = {"nothing": [], **{name: [] for name in PLANTED}}
    for trial in PLANTED_INTO:
        real, _ = allocator_peak(trial, "float32")
        for name in errors:
            with PLANTED.get(name, nullcontext)():
                errors[name].append(trial.trace("float32", "cpu").peak / real - 1)
    rows = [f"| {name} | {' | '.join(f'{error:+.2%}' for error in found)} |" for name, found in errors.items()]
    worst = {name: max(map(abs, found)) for name, found in errors.items()}
    return rows, worst.pop("nothing") <= TOLERANCE < min(worst.values())


# ---- the table


def measure(index: int) -> dict:
    """One configuration, in a process of its own; resident memory first, before the profiler takes some."""
    trial, dtype = cpu_trials()[index]
    _, resident, seconds = steps_in_this_process(trial, dtype, torch.get_num_threads())
    allocator, with_scratch = allocator_peak(trial, dtype)
    traced = trial.trace(dtype, "cpu").peak
    return {
        "row": describe(trial, dtype), "traced": traced, "allocator": allocator, "with_scratch": with_scratch,
        "resident": resident, "seconds": seconds,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table here, too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return 0
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)

    say("| network | dims | classes | patch | batch | kind | traced MiB | allocator | error | + scratch | resident |")
    say("|---|---|---|---|---|---|---|---|---|---|---|")
    errors = []
    for i in range(len(ROWS)):
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(i)], stdout=subprocess.PIPE, text=True, check=True
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        errors.append(seen["traced"] / seen["allocator"] - 1)
        sizes = [f"{seen[name] / MIB:.1f}" for name in ("traced", "allocator", "with_scratch", "resident")]
        say(f"| {seen['row']} | {sizes[0]} | {sizes[1]} | {errors[-1]:+.3%} | {sizes[2]} | {sizes[3]} |")
    worst = max(map(abs, errors))
    say()
    say(f"{len(errors)} configurations, mean error {sum(map(abs, errors)) / len(errors):.3%}, largest {worst:.3%}")
    say()
    titles = [f"{t.network} {'x'.join(map(str, t.patch_size))}, {t.out_channels} classes" for t in PLANTED_INTO]
    say(f"| left out of the trace | {' | '.join(titles)} |")
    say("|---|---|---|")
    rows, noticed = planted_errors()
    for row in rows:
        say(row)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if worst <= TOLERANCE and noticed else 1


if __name__ == "__main__":
    sys.exit(main())
