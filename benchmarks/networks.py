"""Every network on equal time: one fold, several seeds, the Dice of its held-out cases with its spread.

    python benchmarks/networks.py --data DIR [--time-budget 6m] [--seeds 0,1,2] [--networks unet,fcn] [--core 0]

DIR holds `hippocampus` and `axon_sem`. Each run plans for its network on a CPU (preset s) and trains fold 0; `--core`
keeps it to one core, so that runs beside each other do not disturb each other. Finished runs stand in runs.jsonl in the
folder `--out`, one line each, and are not repeated: the work may be cut into several calls. The table is printed at the
end, over whatever runs are there.

The figures compare recipes under a small budget on two small datasets. They say nothing about what a network can reach.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import dice_per_label, each_label, mean_dice, steps_done

DATASETS: dict[str, list[str]] = {"hippocampus": [], "axon_sem": ["--labels", "myelin=1,axon=2"]}
NETWORKS = (
    "unet", "residual_unet", "attention_unet", "unet_plusplus", "deeplab", "segformer", "swin_unet", "transunet", "fcn",
    "mask_transformer",
)  # fmt: skip


def run(data: Path, dataset: str, network: str, seed: int, budget: str, out: Path) -> dict:
    """Plan, train fold 0 and score it; returns the row of the table."""
    workspace, scores = out / f"{dataset}-{network}-{seed}", out / f"{dataset}-{network}-{seed}.csv"
    autoseg = [str(Path(sys.executable).parent / "autoseg")]
    given = ["-w", str(workspace)]
    plan = ["plan", str(data / dataset), *DATASETS[dataset], "--network", network, "--preset", "s", *given]
    train = ["train", "-f", "0", "--time-budget", budget, "--device", "cpu", "--set", f"training.seed={seed}", *given]
    began = time.perf_counter()
    for arguments in (plan, train, ["evaluate", "--csv", str(scores), *given]):
        subprocess.run([*autoseg, *arguments], check=True)
        if arguments is plan:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    planned = json.loads((workspace / "plan.json").read_text(encoding="utf-8"))
    configuration = planned["configurations"][planned["recommended"]]
    return {
        "dataset": dataset,
        "network": network,
        "seed": seed,
        "budget": budget,
        "cores": len(os.sched_getaffinity(0)),
        "dice": dice_per_label(scores),
        "steps": steps_done(next((workspace / "models").glob("*/fold_0"))),
        "seconds": round(seconds, 1),
        "patch": configuration["patch_size"],
        "batch": configuration["batch_size"],
        "parameters": configuration["cost"]["parameters"],
    }


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds, one row per network."""
    lines = [
        "| dataset | network | parameters | patch | steps | Dice per label | mean Dice | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset in DATASETS:
        for network in NETWORKS:
            found = [row for row in rows if (row["dataset"], row["network"]) == (dataset, network)]
            if not found:
                continue
            dice = [row["dice"] for row in found]
            patch, steps = "×".join(map(str, found[0]["patch"])), np.mean([row["steps"] for row in found])
            parameters = f"{found[0]['parameters'] / 1e6:.2f} M"
            lines.append(
                f"| {dataset} | {network} | {parameters} | {patch} | {steps:.0f} | {each_label(dice, 3)} "
                f"| {mean_dice(dice)} | {len(found)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time-budget", default="6m")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--core", type=int, default=None, help="run on this core alone")
    parser.add_argument("--out", type=Path, default=Path("networks_run"))
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "runs.jsonl"
    for seed in map(int, options.seeds.split(",")):
        for network in options.networks.split(","):
            for dataset in options.datasets.split(","):
                done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
                if any((row["dataset"], row["network"], row["seed"]) == (dataset, network, seed) for row in done):
                    continue
                row = run(options.data, dataset, network, seed, options.time_budget, options.out)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(table([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
