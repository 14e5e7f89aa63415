"""What the scripts beside it share: commands of autoseg, what they wrote, and means with their spread."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def autoseg(*arguments: object) -> None:
    """Run a command; print it and its wall time."""
    words = [str(word) for word in arguments]
    print(f"\n$ autoseg {' '.join(words)}", flush=True)
    began = time.perf_counter()
    subprocess.run([str(Path(sys.executable).parent / "autoseg"), *words], check=True)
    print(f"({time.perf_counter() - began:.1f} s)", flush=True)


def dice_per_label(table: Path) -> dict[str, float]:
    """Mean Dice over cases of each label, of a table that `autoseg evaluate --csv` wrote."""
    return {label: float(np.mean([*found.values()])) for label, found in dice_per_case(table).items()}


def dice_per_case(table: Path) -> dict[str, dict[str, float]]:
    """Dice of each label in each case where it is defined: label -> case -> Dice; of the same kind of table."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["dice"]]
    return {
        label: {row["case"]: float(row["dice"]) for row in rows if row["label"] == label}
        for label in sorted({row["label"] for row in rows})
    }


def steps_done(fold: Path) -> int:
    """Optimiser steps of a fold's training, from its history."""
    return json.loads((fold / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]


def mean_dice(runs: Sequence[dict[str, float]]) -> str:
    """Mean over labels, then mean and standard deviation over runs (seeds)."""
    means = [float(np.mean(list(dice.values()))) for dice in runs]
    return f"{np.mean(means):.4f}" + (f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else "")


def each_label(runs: Sequence[dict[str, float]], digits: int = 4) -> str:
    """Mean over runs of every label, by name."""
    return ", ".join(f"{label} {np.mean([dice[label] for dice in runs]):.{digits}f}" for label in runs[0])
