"""From logits on the network's grid to labels on the image's grid: 32 classes, 70x171x171 to 140x512x512 voxels.

    python benchmarks/export.py --peer PYTHON --data DIR [--rounds 3] [--sides autoseg torch default]
        [--kinds smooth organs] [--out TABLE.md]

PYTHON is the interpreter of an environment with nnunetv2; DIR holds `ct_ts_512x512x20`. Three sides take turns, each in
a process of its own that reads the logits before the clock starts: autoseg (the streamed engine, as `predict` uses it),
and nnU-Net's export with its default resampling and with `resample_torch_fornnunet`, the one it recommends, both from a
torch tensor and with as many threads as there are cores. What is timed is resampling and the largest logit, by the
clock and by the processor, which other programs disturb less. Memory is the peak of resident memory above what the
process held with its imports and the logits.

Two kinds of logits: `smooth`, independent noise of each class, smoothed by a Gaussian of 2 voxels; and `organs`, the
labels of a CT as one-hot logits of 10, smoothed by a Gaussian of 1 voxel, with noise of 0.5.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, GRID, IMAGE = 32, (70, 171, 171), (140, 512, 512)
SPACING, TARGET = (1.0, 0.75, 0.75), (0.5, 0.75 * 171 / 512, 0.75 * 171 / 512)
SIDES = {"autoseg": "autoseg", "torch": "nnU-Net, torch", "default": "nnU-Net, default"}


def resident_kib(field: str) -> int:
    """A line of this process's memory, in KiB: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def start_memory() -> int:
    """Begin to count the peak of resident memory here; returns what is resident, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_kib("VmRSS")


def clock() -> np.ndarray:
    """Seconds of the clock, and of the processor in all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def by_autoseg(logits: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from autoseg.imaging.taps import taps
    from autoseg.nn.label_rows import LabelRows
    from autoseg.nn.rolling_sums import Block

    torch.set_num_threads(os.cpu_count() or 1)
    source = torch.from_numpy(logits)
    before, began = start_memory(), clock()
    z, y, x = (taps(a, b) for a, b in zip(GRID, IMAGE, strict=True))
    labels = np.zeros(IMAGE, np.uint8)
    with LabelRows((z, y, x), None, labels) as rows:
        for row in range(GRID[0]):
            block = source[:, row : row + 1]
            rows.take(Block(slice(row, row + 1), slice(0, GRID[1]), block, block[0]))
    return clock() - began, before, labels


def by_nnunet(logits: np.ndarray, *, default: bool) -> tuple[np.ndarray, int, np.ndarray]:
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    source = torch.from_numpy(logits)
    before, began = start_memory(), clock()
    if default:
        resampled = resample_data_or_seg_to_shape(source, IMAGE, SPACING, TARGET, order=1, order_z=0)
    else:
        resampled = resample_torch_fornnunet(source, IMAGE, SPACING, TARGET, num_threads=threads)
    labels = resampled.argmax(0)
    return clock() - began, before, np.asarray(labels)


def one(side: str, path: Path, labels: Path) -> None:
    """One run of one side; prints seconds and bytes as JSON."""
    logits = np.load(path)
    if side == "autoseg":
        seconds, before, found = by_autoseg(logits)
    else:
        seconds, before, found = by_nnunet(logits, default=side.endswith("default"))
    peak = 1024 * (resident_kib("VmHWM") - before)
    np.save(labels, found.astype(np.uint8))
    print(json.dumps({"seconds": seconds[0], "processor": seconds[1], "bytes": peak}))


def smooth(rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    logits = rng.standard_normal((CLASSES, *GRID), dtype=np.float32)
    for one_class in logits:
        one_class[...] = ndimage.gaussian_filter(one_class, 2.0)
        one_class /= one_class.std()
    return logits


def organs(rng: np.random.Generator, data: Path) -> np.ndarray:
    import nibabel
    from scipy import ndimage

    (path,) = sorted((data / "ct_ts_512x512x20" / "labels").iterdir())
    labels = np.asarray(nibabel.load(path).dataobj).T
    index = [np.arange(n) * size // n for n, size in zip(GRID, labels.shape, strict=True)]
    labels = labels[np.ix_(*index)]
    values = np.unique(labels)[:CLASSES]
    logits = np.zeros((CLASSES, *GRID), np.float32)
    for one_class, value in zip(logits, values, strict=False):
        one_class[...] = 10 * ndimage.gaussian_filter((labels == value).astype(np.float32), 1.0)
    logits += 0.5 * rng.standard_normal(logits.shape, dtype=np.float32)
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter of an environment with nnunetv2")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=("smooth", "organs"), default=["smooth", "organs"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), Path(options.one[2]))
        return
    sides = [SIDES[name] for name in options.sides if options.peer or name == "autoseg"]
    rows = ["| logits | side | s, median (least) | times autoseg | of the processor | memory, GB | as autoseg's |"]
    rows.append("|---|---|---|---|---|---|---|")
    print("\n".join(rows), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"smooth": smooth} | ({"organs": lambda rng: organs(rng, options.data)} if options.data else {})
        for kind, make in kinds.items():
            if kind not in options.kinds:
                continue
            logits, labels = Path(folder) / "logits.npy", Path(folder) / "labels.npy"
            np.save(logits, make(np.random.default_rng(0)))
            found: dict[str, list[dict]] = {side: [] for side in sides}
            result: dict[str, np.ndarray] = {}
            for _ in range(options.rounds):
                for side in sides:
                    python = sys.executable if side == "autoseg" else options.peer
                    command = [python, __file__, "--one", side, str(logits), str(labels)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    found[side].append(json.loads(done.stdout.splitlines()[-1]))
                    result[side] = np.load(labels)
            own = statistics.median(run["seconds"] for run in found["autoseg"])
            for side in sides:
                seconds = [run["seconds"] for run in found[side]]
                busy = statistics.median(run["processor"] for run in found[side])
                memory = statistics.median(run["bytes"] for run in found[side])
                same = float((result[side] == result["autoseg"]).mean())
                row = (
                    f"| {kind} | {side} | {statistics.median(seconds):.2f} ({min(seconds):.2f}) | "
                    f"{statistics.median(seconds) / own:.1f} | {busy:.2f} | {memory / 1e9:.3f} | {same:.7f} |"
                )
                rows.append(row)
                print(row, flush=True)
    if options.out:
        options.out.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
