"""Segmenting a volume on a GPU, streamed: seconds, memory, what is left to the host, and that nothing changes.

    python benchmarks/gpu_predict.py [--device cuda] [--out gpu_predict.md] [--minutes 7] [--dry-run]

The network is nnU-Net's plain 3-D U-Net of 31 M parameters with random weights, under the autocast that training would
choose; patch 128 x 128 x 128, tiles half a patch apart, no mirroring. An image of noise is segmented on the grid of the
network and on one that is twice as fine along every axis:

1. Rows of the table: classes, slices, and whether the grid changes. `networks` is the time of the forward passes alone,
   `all` that from the image in the host's memory to labels there; memory is the peak of torch's allocator.
2. Agreement: labels against those of one dense accumulator, resampled as a whole by torch, with the voxels that differ
   and the largest difference of the two logits between which they chose.
3. Recovery: memory is limited to less than a batch of tiles takes; the labels must be those of before.

Exits 1 where labels differ by more than rounding, or memory is not recovered from. `--dry-run` does the same with a
tiny network in seconds; `--device cpu --dry-run` does it without a GPU.

Needs torch and numpy alone, and no installation of autoseg: it imports autoseg.nn, which reads two modules of numpy
from autoseg.imaging.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.imaging.taps import taps
from autoseg.nn.label_rows import LabelRows
from autoseg.nn.memory.calibration import NNUNET_3D, Trial
from autoseg.nn.precision import autocast, candidates
from autoseg.nn.sliding_window import Network, Tiling, predict_logits, stream_logits

GIB = 2**30
SURE = 1e-3  # difference of two logits below which rounding may choose


@dataclass(frozen=True)
class Size:
    """How much is done."""

    features: tuple[int, ...]
    patch: tuple[int, int, int]
    rows: tuple[tuple[int, tuple[int, int, int]], ...]  # classes, and shape of the network's grid
    compared: tuple[int, tuple[int, int, int]]  # the same of the volume that is compared with a dense one
    batch: int


REAL = Size(
    NNUNET_3D, (128, 128, 128), ((3, (256, 256, 256)), (32, (256, 256, 256)), (32, (512, 256, 256)),
    (105, (256, 256, 256))), (32, (192, 192, 192)), 4,
)  # fmt: skip
DRY = Size((4, 8), (16, 16, 16), ((3, (40, 32, 24)), (8, (80, 32, 24))), (8, (40, 32, 24)), 4)


def network_of(size: Size, classes: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    network = Trial("unet", size.features, classes, size.patch, 1).build().to(device).eval()
    network.deep_supervision = False  # type: ignore[assignment]
    return network


def finest(network: nn.Module, device: torch.device, dtype: str, tiles: Tensor) -> Tensor:
    with autocast(device, dtype):
        return network(tiles)[0].float()


def labels_of(
    image: Tensor, networks: list[Network], size: Size, classes: int, device: torch.device, finer: int
) -> np.ndarray:
    """Segment an image as `predict` does."""
    shape = tuple(image.shape[1:])
    labels = np.zeros([finer * edge for edge in shape], np.uint8)
    z, y, x = (taps(edge, finer * edge) for edge in shape)
    with LabelRows((z, y, x), None, labels) as rows:
        tiling = Tiling(size.patch, batch=size.batch)
        for block in stream_logits(image, networks, tiling, out_channels=classes, device=device):
            rows.take(block)
    return labels


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed_network(network: Network, device: torch.device, spent: list[float]) -> Network:
    def run(tiles: Tensor) -> Tensor:
        began = wait(device)
        logits = network(tiles)
        spent.append(wait(device) - began)
        return logits

    return run


def table(size: Size, device: torch.device, dtype: str, out_of_time: Callable[[], bool], say: Callable) -> None:
    say("| classes | grid | image | networks, s | all, s | peak GiB | of it logits of the image, dense |")
    say("|---|---|---|---|---|---|---|")
    for classes, shape in size.rows:
        network = partial(finest, network_of(size, classes, device), device, dtype)
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        labels_of(image[:, : size.patch[0]], [network], size, classes, device, 1)  # warms up
        for finer in (1, 2):
            if out_of_time():
                say("| no time left | | | | | | |")
                return
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            spent: list[float] = []
            began = wait(device)
            labels_of(image, [timed_network(network, device, spent)], size, classes, device, finer)
            seconds = wait(device) - began
            peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0
            grid, whole = ("x".join(map(str, edges)) for edges in (shape, [finer * edge for edge in shape]))
            dense = 4 * classes * finer**3 * float(np.prod(shape)) / GIB
            say(f"| {classes} | {grid} | {whole} | {sum(spent):.2f} | {seconds:.2f} | {peak:.2f} | {dense:.2f} |")


def agreement(size: Size, device: torch.device, dtype: str, say: Callable) -> bool:
    """Whether streamed labels are those of a dense accumulator up to rounding."""
    classes, shape = size.compared
    network = partial(finest, network_of(size, classes, device), device, dtype)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    logits = predict_logits(
        image.to(device), [network], out_channels=classes, tile=size.patch, tile_batch=size.batch
    ).cpu()
    good = True
    say("| image | voxels | that differ | largest difference of the two logits |")
    say("|---|---|---|---|")
    for finer in (1, 2):
        found = torch.from_numpy(labels_of(image, [network], size, classes, device, finer)).long()
        if finer > 1:
            logits = torch.nn.functional.interpolate(logits[None], scale_factor=finer, mode="trilinear")[0]
        best, expected = logits.max(dim=0)
        differ = found != expected
        off = (best - logits.gather(0, found[None])[0])[differ]
        largest = float(off.max()) if len(off) else 0.0
        good &= largest < SURE
        say(f"| {'x'.join(map(str, found.shape))} | {found.numel()} | {int(differ.sum())} | {largest:.2g} |")
    return good


def recovery(size: Size, device: torch.device, dtype: str, say: Callable) -> bool:
    """Whether an image is segmented all the same where there is memory for half a batch of tiles alone."""
    classes, shape = size.compared
    network = partial(finest, network_of(size, classes, device), device, dtype)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    expected = labels_of(image, [network], size, classes, device, 1)
    most = size.batch // 2

    def limited(tiles: Tensor) -> Tensor:
        if len(tiles) > most:
            if device.type == "cuda":  # what is asked for is more than there is
                torch.empty(2 * torch.cuda.get_device_properties(device).total_memory, dtype=torch.uint8, device=device)
            raise MemoryError
        return network(tiles)

    found = labels_of(image, [limited], size, classes, device, 1)
    same = float((found == expected).mean())
    say(f"out of memory with {size.batch} tiles at once: {same:.6f} of the labels are those of before")
    return same > 0.999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_predict.md"))
    parser.add_argument("--minutes", type=float, default=7, help="begin no further row after so long")
    parser.add_argument("--dry-run", action="store_true", help="a tiny network")
    options = parser.parse_args()
    began, device = time.perf_counter(), torch.device(options.device)
    size, dtype = DRY if options.dry_run else REAL, candidates(device)[-1]
    lines: list[str] = []

    def say(line: str = "") -> None:
        lines.append(line)
        print(line, flush=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # what there is, should a later step fail

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    say(f"- {name}; torch {torch.__version__}; {dtype}; patch {size.patch}, {size.batch} tiles at once")
    say()
    good = agreement(size, device, dtype, say)
    say()
    good &= recovery(size, device, dtype, say)
    say()
    table(size, device, dtype, lambda: time.perf_counter() - began > 60 * options.minutes, say)
    say()
    say(f"- {time.perf_counter() - began:.0f} s in all; {'as expected' if good else 'NOT as expected'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
