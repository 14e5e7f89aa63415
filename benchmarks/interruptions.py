"""Random kills: does a training that is killed twenty times end with the weights of one that was left alone?

    python benchmarks/interruptions.py [--kills 20] [--steps 400] [--workers 0,1,2] [--seed 0] [--out DIR]

One fold of the demo's dataset is trained for a number of steps, once without interruption and once for each number of
workers with SIGKILL at random moments: while it starts, in the middle of a step, while it validates or writes a
checkpoint. What is compared is the sha256 of all weights, averages and optimiser states, and of the history without its
times. Threads are fixed at one: another number adds up in another order.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from autoseg.models.checkpoint import load_checkpoint
from autoseg.workspace import Workspace

AUTOSEG = (sys.executable, "-m", "autoseg")
FIXED = ("training.iterations_per_epoch=40", "training.chain=worker", "training.autocast=float32")


def digest(value: Any) -> str:
    """sha256 of tensors and plain data, without times."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if key != "seconds":
                    found.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            found.update(json.dumps(value).encode())

    add(value)
    return found.hexdigest()[:16]


def run(workspace: Path, steps: int, workers: int) -> subprocess.Popen:
    settings = [word for setting in (*FIXED, f"training.workers={workers}") for word in ("--set", setting)]
    length = ("--steps", str(steps), "--checkpoint-every", "1s")
    return subprocess.Popen(
        [*AUTOSEG, "train", "-f", "0", *length, *settings, "-w", str(workspace)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def newest(workspace: Path) -> Path:
    """The fold's checkpoint."""
    (model,) = Workspace(workspace).models() or [("3d_fullres", "unet")]
    return Workspace(workspace).fold(*model, 0) / "last.pt"


def train_under_fire(
    workspace: Path, steps: int, workers: int, kills: int, chance: random.Random
) -> tuple[list[int], dict[str, str]]:
    """Train; returns the steps at which it was resumed after each kill, and the digests of the outcome."""
    resumed: list[int] = []
    longest = 8.0  # seconds until a kill; half of them come before a second of training
    while True:
        process = run(workspace, steps, workers)
        if len(resumed) < kills:
            try:
                process.wait(chance.uniform(1.0, longest))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                path = newest(workspace)
                resumed.append(load_checkpoint(path)["position"]["step"] if path.exists() else 0)
                stuck = len(resumed) > 1 and resumed[-1] == resumed[-2]
                longest = longest * 1.5 if stuck else longest
                continue
        if code := process.wait():
            raise SystemExit(f"training ended with {code}")
        state = load_checkpoint(newest(workspace))
        parts = ("network", "average", "optimizer", "history")
        return resumed, {part: digest(state[part]) for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("interruptions_run"))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    subprocess.run([*AUTOSEG, "demo", "--data-only", "-o", str(options.out)], check=True)
    print("| workers | kills | resumed at steps | seconds | network | averages | optimiser | history |")
    print("|---|---|---|---|---|---|---|---|")
    outcomes = set()
    for workers, kills in [(0, 0), *((int(n), options.kills) for n in options.workers.split(","))]:
        workspace = options.out / f"workers_{workers}_kills_{kills}"
        plan = ("plan", str(options.out / "dataset"), "--preset", "s", "-w", str(workspace))
        subprocess.run([*AUTOSEG, *plan], check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        resumed, digests = train_under_fire(workspace, options.steps, workers, kills, chance)
        seconds = time.perf_counter() - began
        outcomes.add(tuple(digests.values()))
        steps = " ".join(map(str, resumed)) or "-"
        print(f"| {workers} | {len(resumed)} | {steps} | {seconds:.0f} | {' | '.join(digests.values())} |", flush=True)
    if len(outcomes) > 1:
        raise SystemExit("the outcomes differ")


if __name__ == "__main__":
    main()
