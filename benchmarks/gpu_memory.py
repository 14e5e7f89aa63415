"""The memory model against a CUDA device: predicted bytes and the bytes that torch's allocator reserved.

    python benchmarks/gpu_memory.py [--device cuda] [--out gpu_memory.md] [--minutes 7]

Calibrates the device on its own five configurations (`autoseg.nn.memory.calibration.TRIALS`), predicts those of
benchmarks/memory.py at the size they have on a GPU, takes a few steps of each and prints the table. `held` is
torch.cuda.max_memory_reserved; the context, which it does not hold, is left out of the prediction. `before` is the
error without calibration. What does not fit into the device is named. Exits 1 where the mean relative error is above
5 %, an underestimate beyond 10 %, or fewer than 30 configurations were compared.

`--device cpu` is a dry run: patches and batches for a CPU, resident memory in place of reserved, and nothing is judged.

Needs torch and numpy alone, and no installation of autoseg.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from memory import cpu_trials, describe, gpu_trials  # beside this file

from autoseg.lines import shown_by
from autoseg.nn.memory.calibration import TRIALS, Trial, calibrate, observe, trained_dtype
from autoseg.nn.memory.model import DEFAULT_TERMS, DeviceTerms

MIB = 2**20
MEAN, UNDERESTIMATE = 0.05, -0.10
ENOUGH = 30  # configurations
FITS = 0.9  # share of the free memory that a prediction may take to be tried


@dataclass(frozen=True)
class Outcome:
    """One configuration: its row of the table, and its relative error (-1 where memory ran out)."""

    row: str
    error: float


def compare(trial: Trial, terms: DeviceTerms, device: torch.device, dtype: str) -> Outcome | None:
    """Predict a configuration and take its steps; None where it would not fit into the device."""
    cost = trial.trace(dtype, device.type)
    name = describe(trial, dtype)
    predicted, before = (t.device_bytes(cost.peak) - t.context_bytes for t in (terms, DEFAULT_TERMS))
    if device.type == "cuda" and predicted > FITS * torch.cuda.mem_get_info(device)[0]:
        return None
    try:
        seen = observe(trial, cost, device, dtype)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Outcome(f"| {name} | {cost.peak / MIB:.0f} | {predicted / MIB:.0f} | out of memory | | | |", -1.0)
    error = predicted / seen.used - 1
    sizes = " | ".join(f"{size / MIB:.0f}" for size in (cost.peak, predicted, seen.used))
    seconds = f"{seen.seconds:.3f} s ({terms.seconds(cost.flops):.3f} predicted)"
    return Outcome(f"| {name} | {sizes} | {error:+.1%} | {before / seen.used - 1:+.1%} | {seconds} |", error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_memory.md"))
    parser.add_argument("--minutes", type=float, default=7, help="begin no further configuration after so long")
    options = parser.parse_args()
    began = time.perf_counter()
    device = torch.device(options.device)
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # what there is, should a later step fail

    with shown_by(lambda line: say(f"- {line}")):
        terms = calibrate(device)
    say(f"- calibrated in {time.perf_counter() - began:.0f} s; torch {torch.__version__}, cuDNN {terms.cudnn}")
    dtype = trained_dtype(device)
    trials = gpu_trials() if device.type == "cuda" else [trial for trial, _ in cpu_trials()]
    say()
    say("| network | dims | classes | patch | batch | kind | tensors MiB | predicted | held | error | before | time |")
    say("|---|---|---|---|---|---|---|---|---|---|---|---|")
    errors: list[float] = []
    left_out: list[str] = []
    for trial in dict.fromkeys(trials):
        if trial in TRIALS[device.type]:
            continue  # held apart: the terms come from it
        if time.perf_counter() - began > 60 * options.minutes:
            left_out.append(f"{describe(trial, dtype)}: no time left")
        elif outcome := compare(trial, terms, device, dtype):
            say(outcome.row)
            errors.append(outcome.error)
        else:
            left_out.append(f"{describe(trial, dtype)}: would not fit")
    mean = sum(map(abs, errors)) / len(errors)
    say()
    extremes = f"lowest {min(errors):+.1%}, highest {max(errors):+.1%}"
    say(f"{len(errors)} configurations, mean relative error {mean:.2%}, {extremes}")
    for line in left_out:
        say(f"- left out: {line}")
    say(f"- {time.perf_counter() - began:.0f} s in all")
    good = len(errors) >= ENOUGH and mean <= MEAN and min(errors) >= UNDERESTIMATE
    return 0 if good or device.type == "cpu" else 1


if __name__ == "__main__":
    sys.exit(main())
