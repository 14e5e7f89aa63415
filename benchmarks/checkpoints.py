"""How long a training waits for a checkpoint: written before the next step, or beside the steps that follow.

    python benchmarks/checkpoints.py [--device cpu] [--repeats 5] [--out FOLDER]

The state is that of nnU-Net's plain 3-D U-Net (31.20 M parameters) after a step of SGD with momentum: weights and
momentum, 250 MB. Either way takes its turn; the table shows the seconds until the call returns, and until the
checkpoint is on disk, in the middle of the repeats.

Needs torch and numpy alone, and no installation of autoseg: it imports autoseg.nn.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from autoseg.models.checkpoint import NEWEST, CheckpointWriter, save_generation
from autoseg.nn.memory.calibration import NNUNET_3D, Trial
from autoseg.nn.optimization import OPTIMIZERS


def state_of_training(device: torch.device) -> dict[str, Any]:
    """Weights, and the momentum of one step."""
    network = Trial("unet", NNUNET_3D, 3, (128, 128, 128), 2).build().to(device)
    optimizer = OPTIMIZERS["sgd"](network.parameters(), 1e-3, 1e-5)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict()}


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="on the disk that is to be measured")
    options = parser.parse_args()
    state = state_of_training(torch.device(options.device))
    before: list[float] = []
    beside: list[tuple[float, float]] = []
    with TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        writer = CheckpointWriter(folder)
        for _ in range(options.repeats + 1):  # the first warms up
            before.append(seconds_of(lambda: save_generation(folder, state)))
            returned = seconds_of(lambda: writer.save(state))
            beside.append((returned, returned + seconds_of(writer.wait)))
        megabytes = (folder / NEWEST).stat().st_size / 1e6
    waited, saved = (statistics.median(column) for column in zip(*beside[1:], strict=True))
    print(f"{megabytes:.0f} MB, {options.device}, {options.repeats} repeats")
    print("| written | the training waits, s | on disk after, s |")
    print("|---|---|---|")
    print(f"| before the next step | {statistics.median(before[1:]):.2f} | {statistics.median(before[1:]):.2f} |")
    print(f"| beside the steps that follow | {waited:.2f} | {saved:.2f} |")


if __name__ == "__main__":
    main()
