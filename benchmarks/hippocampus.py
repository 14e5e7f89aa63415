"""The whole run on hippocampus: plan, five folds, cross-validation, the ensemble on the held-out test cases.

    python benchmarks/hippocampus.py --data DIR [--time-budget 4m] [--out FOLDER]

DIR holds `hippocampus` (Medical Segmentation Decathlon, task 4) in nnU-Net's layout with 160 training and 41 test
cases; `benchmarks/hippocampus_cases.txt` lists their ids. The labels of the test cases are read once, by the last
command. Prints every command and its wall time.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time-budget", default="4m")
    parser.add_argument("--out", type=Path, default=Path("hippocampus_run"))
    options = parser.parse_args()
    data, workspace, segmentations = (
        options.data / "hippocampus",
        options.out / "workspace",
        options.out / "segmentations",
    )
    autoseg = str(Path(sys.executable).parent / "autoseg")
    for arguments in (
        ["plan", data, "-w", workspace],
        ["train", "-f", "0..4", "--time-budget", options.time_budget, "-w", workspace],
        ["evaluate", "-w", workspace],
        ["predict", "-i", data / "imagesTs", "-o", segmentations, "-w", workspace],
        ["evaluate", "--predictions", segmentations, "--references", data / "labelsTs", "-w", workspace],
    ):
        words = [str(word) for word in arguments]
        print(f"\n$ autoseg {' '.join(words)}", flush=True)
        began = time.perf_counter()
        subprocess.run([autoseg, *words], check=True)
        print(f"({time.perf_counter() - began:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
