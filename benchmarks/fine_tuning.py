"""Fine-tuning: steps to a Dice on hippocampus, from the start and from a model of other patients.

    python benchmarks/fine_tuning.py --data DIR [--steps 100,200,400,800] [--seeds 0,1,2] [--core 0] [--out FOLDER]

DIR holds `hippocampus`. A copy of it (links) keeps half of its training patients, none of them held out by fold 0 of
the whole; fold 0 of that copy is trained with `--source-steps`. Then fold 0 of the whole is trained anew for every
length, once from random weights and once with `--init-from` that model, each time under the whole schedule of that
length and the plan's own recipe. Scored are the cases that fold 0 of the whole holds out, none of whose patients any of
these trainings has seen; the row of 0 steps is the model of the half, as it is.

Finished runs stand in runs.jsonl in the folder `--out`, one line each, and are not repeated: the work may be cut into
several calls. The table is printed at the end, over whatever runs are there.
"""

import argparse
import csv
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import autoseg, dice_per_label, mean_dice

SHARE = 0.5  # of the training patients
STARTS = ("fresh", "tuned")


def plan(dataset: Path, workspace: Path) -> None:
    """Plan once; what is planned is left alone."""
    if not (workspace / "plan.json").exists():
        autoseg("plan", dataset, "--preset", "s", "-w", workspace)


def held_out(workspace: Path) -> list[str]:
    """Cases that fold 0 validates with."""
    splits = json.loads((workspace / "splits.json").read_text(encoding="utf-8"))["splits"]
    return next(split["validation"] for split in splits if split["fold"] == 0)


def patients_of(dataset: Path) -> dict[str, str]:
    with open(dataset / "patients.csv", newline="", encoding="utf-8") as file:
        return {row["case"]: row["patient"] for row in csv.DictReader(file)}


def write_half(dataset: Path, copy: Path, kept_out: Sequence[str]) -> None:
    """Link the cases of half of the patients, by a fixed draw from those without a case in `kept_out`."""
    patients = patients_of(dataset)
    everyone, others = set(patients.values()), {patients[case] for case in kept_out}
    half = set(random.Random(0).sample(sorted(everyone - others), round(SHARE * len(everyone))))
    cases = [case for case, patient in patients.items() if patient in half]
    description = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    for folder in ("imagesTr", "labelsTr"):
        (copy / folder).mkdir(parents=True, exist_ok=True)
        for file in (dataset / folder).iterdir():
            if any(file.name.startswith(case) for case in cases) and not (copy / folder / file.name).exists():
                (copy / folder / file.name).symlink_to(file.resolve())
    rows = "".join(f"{case},{patients[case]}\n" for case in cases)
    (copy / "patients.csv").write_text(f"case,patient\n{rows}", encoding="utf-8")
    (copy / "dataset.json").write_text(json.dumps(description | {"numTraining": len(cases)}), encoding="utf-8")
    assert not others & set(patients_of(copy).values())
    print(f"{len(cases)} cases of {len(half)} patients, of {len(patients)} of {len(everyone)}")


def train(workspace: Path, steps: int, seed: int, *more: object) -> float:
    """Train fold 0 for so many steps, whatever plateau there is; returns wall seconds, validation included."""
    began = time.perf_counter()
    autoseg(
        "train", "-f", 0, "--steps", steps, "--device", "cpu", "-w", workspace,
        "--set", f"training.seed={seed}", "--set", "training.patience=0", *more,
    )  # fmt: skip
    return time.perf_counter() - began


def run(dataset: Path, out: Path, source: Path, start: str, steps: int, seed: int) -> dict:
    """Train and score fold 0 of the whole in a workspace of its own; returns the row of the table."""
    workspace, table = out / f"{start}-{steps}-{seed}", out / f"{start}-{steps}-{seed}.csv"
    plan(dataset, workspace)
    assert held_out(workspace) == held_out(out / "whole"), "the folds differ"
    seconds = train(workspace, steps, seed, *(["--init-from", source] if start == "tuned" else []))
    autoseg("evaluate", "--csv", table, "-w", workspace)
    return {"start": start, "steps": steps, "seed": seed, "dice": dice_per_label(table), "seconds": round(seconds, 1)}


def score_source(dataset: Path, out: Path, source: Path) -> dict:
    """The model of the half on the same cases, without any further step."""
    segmentations, references, table = out / "source", out / "references", out / "source.csv"
    references.mkdir(exist_ok=True)
    images = []
    for case in held_out(out / "whole"):
        images.append(dataset / "imagesTr" / f"{case}_0000.nii.gz")
        if not (references / f"{case}.nii.gz").exists():
            (references / f"{case}.nii.gz").symlink_to((dataset / "labelsTr" / f"{case}.nii.gz").resolve())
    autoseg("predict", "-i", *images, "-o", segmentations, "-f", 0, "--device", "cpu", "-w", source)
    autoseg("evaluate", "--predictions", segmentations, "--references", references, "--csv", table, "-w", source)
    return {"start": "tuned", "steps": 0, "seed": 0, "dice": dice_per_label(table), "seconds": 0.0}


def dice_of(rows: list[dict], start: str, steps: int) -> list[dict[str, float]]:
    """Dice per label of every seed."""
    return [row["dice"] for row in rows if (row["start"], row["steps"]) == (start, steps)]


def mean(runs: list[dict[str, float]]) -> float:
    """Over seeds and labels; not a number where there is no run."""
    return float(np.mean([list(dice.values()) for dice in runs])) if runs else float("nan")


def report(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds by steps, and how many steps the tuned model needs for a fresh one's."""
    lines = ["| steps | from random weights | from the model of the half | seeds |", "|---|---|---|---|"]
    lengths = sorted({row["steps"] for row in rows})
    for steps in lengths:
        found = {start: dice_of(rows, start, steps) for start in STARTS}
        spread = {start: mean_dice(runs) if runs else "" for start, runs in found.items()}
        lines.append(f"| {steps} | {spread['fresh']} | {spread['tuned']} | {max(map(len, found.values()))} |")
    for steps in lengths:
        fresh = mean(dice_of(rows, "fresh", steps))
        enough = [n for n in lengths if mean(dice_of(rows, "tuned", n)) >= fresh]
        if not np.isnan(fresh):
            reached = f"{enough[0]} steps" if enough else f"more than {lengths[-1]} steps"
            lines.append(f"What {steps} steps from random weights reach, the other start reaches in {reached}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", default="100,200,400,800", help="lengths of the training on the whole")
    parser.add_argument("--source-steps", type=int, default=800, help="length of the training on the half")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--core", type=int, default=None, help="run on this core alone")
    parser.add_argument("--out", type=Path, default=Path("fine_tuning_run"))
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    dataset, out, source = options.data / "hippocampus", options.out, options.out / "half"
    log = out / "runs.jsonl"

    def rows() -> list[dict]:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    def note(row: dict) -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    plan(dataset, out / "whole")
    if not any(row["steps"] == 0 for row in rows()):
        write_half(dataset, out / "half_data", held_out(out / "whole"))
        plan(out / "half_data", source)
        train(source, options.source_steps, 0)
        note(score_source(dataset, out, source))
    for seed in map(int, options.seeds.split(",")):
        for steps in map(int, options.steps.split(",")):
            for start in STARTS:
                if not any((row["start"], row["steps"], row["seed"]) == (start, steps, seed) for row in rows()):
                    note(run(dataset, out, source, start, steps, seed))
    print(report(rows()))


if __name__ == "__main__":
    main()
