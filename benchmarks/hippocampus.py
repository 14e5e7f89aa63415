"""The whole run on hippocampus: plan, train, cross-validate, predict the held-out test cases; several seeds.

    python benchmarks/hippocampus.py --data DIR [--runs 5m:0 15m:0..4] [--seeds 0,1,2] [--core 0] [--test]
        [--out FOLDER]

DIR holds `hippocampus` (Medical Segmentation Decathlon, task 4) in nnU-Net's layout with 160 training and 41 test
cases; `benchmarks/hippocampus_cases.txt` lists their ids. A run is a length per fold, as a time budget or a number of
steps, and the folds to train; each seed of it has a workspace of its own. What is trained already is left alone, so the
work may be cut into several calls. Runs of a number of steps may share a machine (`--core` keeps a call to one core):
how long they take does not change what they learn.

The table at the end gives the Dice of the cases that the folds held out. With `--test`, and only then, the labels of
the test cases are read: each fold 0 is scored alone, and the five folds of a run, where it has them, as an ensemble.
"""

import argparse
import os
import shutil
from pathlib import Path

from common import autoseg, dice_per_label, each_label, mean_dice, steps_done

FOLDS = 5


def train(dataset: Path, workspace: Path, length: str, folds: str, seed: int) -> None:
    """Plan and train what is missing."""
    if not (workspace / "plan.json").exists():
        autoseg("plan", dataset, "-w", workspace)
    given = ["--steps", length] if length.isdecimal() else ["--time-budget", length]
    autoseg("train", "-f", folds, *given, "--set", f"training.seed={seed}", "-w", workspace)


def held_out(workspace: Path) -> dict[str, float]:
    """Dice of the cases that the trained folds held out."""
    table = workspace / "held_out.csv"
    autoseg("evaluate", "--csv", table, "-w", workspace)
    return dice_per_label(table)


def test(dataset: Path, workspace: Path, folds: str) -> dict[str, float]:
    """Dice of the test cases, segmented by these folds; the labels are read here and nowhere else."""
    name = f"test_{folds.replace('..', '-')}"
    segmentations, table = workspace.with_name(f"{workspace.name}_{name}"), workspace / f"{name}.csv"
    shutil.rmtree(segmentations, ignore_errors=True)
    autoseg("predict", "-i", dataset / "imagesTs", "-o", segmentations, "-f", folds, "-w", workspace)
    references = dataset / "labelsTs"
    autoseg("evaluate", "--predictions", segmentations, "--references", references, "--csv", table, "-w", workspace)
    return dice_per_label(table)


def steps_of(workspace: Path) -> list[int]:
    """Steps of each trained fold."""
    return [steps_done(fold) for fold in sorted((workspace / "models").glob("*/fold_*"))]


def row(name: str, seeds: list[dict[str, float]], steps: list[int]) -> str:
    """A line of the table: mean over seeds, its spread, the seeds one by one."""
    each = " ".join(mean_dice([dice]) for dice in seeds)
    return f"| {name} | {min(steps)} to {max(steps)} | {each_label(seeds)} | {mean_dice(seeds)} | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=["5m:0", "15m:0..4"], help="length of a fold : folds")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--core", type=int, default=None, help="run on this core alone")
    parser.add_argument("--test", action="store_true", help="also score the test cases; to be done once, at the end")
    parser.add_argument("--out", type=Path, default=Path("hippocampus_run"))
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    dataset, seeds = options.data / "hippocampus", list(map(int, options.seeds.split(",")))
    runs = [tuple(run.split(":")) for run in options.runs]
    workspaces = {(length, seed): options.out / f"{length}_{seed}" for seed in seeds for length, _ in runs}
    for seed in seeds:
        for length, folds in runs:
            train(dataset, workspaces[length, seed], length, folds, seed)
    table = ["| run | steps | Dice per label | mean Dice | each seed |", "|---|---|---|---|---|"]
    for length, _ in runs:
        trained = [workspaces[length, seed] for seed in seeds]
        steps = [steps_of(workspace) for workspace in trained]
        every, first = [step for folds in steps for step in folds], [folds[0] for folds in steps]
        counts = "/".join(map(str, sorted({len(folds) for folds in steps})))
        table.append(row(f"{length}, folds: {counts}, held-out cases", list(map(held_out, trained)), every))
        if options.test:
            singles = [test(dataset, workspace, "0") for workspace in trained]
            table.append(row(f"{length}, fold 0, test cases", singles, first))
            if all(len(folds) == FOLDS for folds in steps):
                ensembles = [test(dataset, workspace, f"0..{FOLDS - 1}") for workspace in trained]
                table.append(row(f"{length}, ensemble, test cases", ensembles, every))
    print("\n" + "\n".join(table))


if __name__ == "__main__":
    main()
