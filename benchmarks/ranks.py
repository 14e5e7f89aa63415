"""One training in two processes beside the same in one: the curves must be equal but for the order of additions.

    python benchmarks/ranks.py --data DIR [--steps 100] [--out FOLDER]

DIR holds `hippocampus`. Its fold 0 is trained three times in float32, with batches of 4 and Dice summed over the batch:
by one process, by two that torchrun starts (gloo, two samples each), and by one with another seed, as a measure of what
a difference would look like. The table shows loss, validation loss and mean pseudo Dice after every epoch. Exits 1
where the curves of one and of two processes are farther apart than a tenth of what another seed makes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import autoseg

CONFIGURATION = "3d_fullres"
SETTINGS = (
    f"configurations.{CONFIGURATION}.batch_size=4", f"configurations.{CONFIGURATION}.batch_dice=true",
    "training.chain=host", "training.autocast=float32", "training.workers=0",
)  # fmt: skip
FIGURES = ("loss", "validation_loss", "pseudo_dice")


def train(dataset: Path, workspace: Path, steps: int, processes: int, *settings: str) -> np.ndarray:
    """Curves (epochs, FIGURES) of fold 0; what is trained already is only read."""
    history = workspace / "models" / f"{CONFIGURATION}-unet" / "fold_0" / "history.jsonl"
    if not history.exists():
        autoseg("plan", dataset, "-c", CONFIGURATION, "--preset", "s", "-w", workspace)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        options = [option for setting in (*SETTINGS, *settings) for option in ("--set", setting)]
        words = ["train", "-f", "0", "-c", CONFIGURATION, "--device", "cpu", "--steps", str(steps), *options]
        module = [*(launcher if processes > 1 else []), "autoseg"]
        command = [sys.executable, "-m", *module, *words, "-w", str(workspace)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = map(json.loads, history.read_text(encoding="utf-8").splitlines())
    return np.array([[np.mean(row[key]) for key in FIGURES] for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("ranks_run"))
    options = parser.parse_args()
    dataset, steps = options.data / "hippocampus", options.steps
    one = train(dataset, options.out / "one", steps, 1)
    two = train(dataset, options.out / "two", steps, 2)
    other = train(dataset, options.out / "other", steps, 1, "training.seed=3")
    print("\n| epoch | loss: one process | two | validation loss: one | two | pseudo Dice: one | two |")
    print("|---|---|---|---|---|---|---|")
    for epoch, (a, b) in enumerate(zip(one, two, strict=True), start=1):
        pairs = " | ".join(f"{x:.5f} | {y:.5f}" for x, y in zip(a, b, strict=True))
        print(f"| {epoch} | {pairs} |")
    apart, usual = (np.abs(curve - one).max(axis=0) for curve in (two, other))
    print("\nlargest difference, of two processes / of another seed:")
    for name, a, b in zip(FIGURES, apart, usual, strict=True):
        print(f"  {name} {a:.5f} / {b:.5f}")
    return int((apart > usual / 10).any())


if __name__ == "__main__":
    sys.exit(main())
