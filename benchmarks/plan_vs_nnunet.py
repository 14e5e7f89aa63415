"""Planning and preprocessing, autoseg beside nnU-Net v2: wall time and peak memory of the whole process tree.

Both plan 2d and 3d_fullres and preprocess both, with two processes, from the same files on the same disk; they run in
turn (A B A B ...), each time from an empty output folder. Memory is the sum of the proportional set sizes (PSS) of the
process and all its descendants, sampled 20 times a second: pages shared by several processes count once.

    python benchmarks/plan_vs_nnunet.py --data DIR --peer PEER_VENV [--runs 3]

DIR holds `hippocampus` in nnU-Net's layout; PEER_VENV is a virtual environment with nnunetv2==2.8.1.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return wall seconds and the peak PSS of its process tree in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    root = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_pss(root))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()[-3000:]}")
    return seconds, peak / 2**20


def tree_pss(root: psutil.Process) -> int:
    """Bytes of the process and all its descendants that still live."""
    total = 0
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {"autoseg": [], "nnU-Net": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw = folder / "raw" / "Dataset005_Hippocampus"
        shutil.copytree(options.data / "hippocampus", raw)
        for run in range(options.runs + 1):  # the first warms the file cache and is not counted
            workspace, preprocessed = folder / "workspace", folder / "preprocessed"
            ours = [str(Path(sys.executable).parent / "autoseg"), "plan", str(raw), "-w", str(workspace)]
            ours += ["-c", "2d,3d_fullres", "--vram", "8", "--workers", "2"]
            theirs = [str(options.peer / "bin" / "nnUNetv2_plan_and_preprocess"), "-d", "5"]
            theirs += ["-c", "2d", "3d_fullres", "-np", "2", "-npfp", "2"]
            paths = {"nnUNet_raw": folder / "raw", "nnUNet_preprocessed": preprocessed, "nnUNet_results": folder / "r"}
            environment = os.environ | {name: str(path) for name, path in paths.items()}
            for name, command in (("autoseg", ours), ("nnU-Net", theirs)):
                seconds, mib = measure(command, environment)
                print(f"run {run}  {name:8s} {seconds:6.2f} s  {mib:7.0f} MiB", flush=True)
                if run:
                    results[name].append((seconds, mib))
            shutil.rmtree(workspace)
            shutil.rmtree(preprocessed)
    print("\n|  | wall, s (median) | peak PSS of the tree, MiB (median) |\n|---|---|---|")
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for name, rows in results.items()
    }
    for name, (seconds, mib) in medians.items():
        print(f"| {name} | {seconds:.2f} | {mib:.0f} |")
    (a, b), (c, d) = medians["autoseg"], medians["nnU-Net"]
    print(f"| ratio | {a / c:.3f} | {b / d:.3f} |")


if __name__ == "__main__":
    main()
