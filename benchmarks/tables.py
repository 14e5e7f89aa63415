"""What the scripts beside it share: reading what autoseg wrote, and means with their spread."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def dice_per_label(table: Path) -> dict[str, float]:
    """Mean Dice over cases of each label, of a table that `autoseg evaluate --csv` wrote."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["label"] for row in rows})
    return {label: float(np.mean([float(r["dice"]) for r in rows if r["label"] == label])) for label in labels}


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
