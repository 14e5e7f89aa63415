"""Prediction, compared with nnU-Net v2: the same images, the same trained weights, float32 on both sides.

    python benchmarks/predict_peer.py --data DIR --peer PEER_VENV --model FOLDER [--folds 1,5] [--rounds 2] [--cases 41]
        [--ours accurate,balanced,fast] [--theirs default,one,none] [--out FOLDER]

DIR holds the datasets; PEER_VENV is a virtual environment with nnunetv2==2.8.1; FOLDER is a model that it trained on
hippocampus (TRAINER__PLANS__3d_fullres with fold_0, such as `equal_time.py` leaves in results/). `autoseg
import-nnunet` converts it, so that both sides have the same weights, plan and mirroring. With five folds, fold 0 stands
under five names: the work is that of five folds.

- The peer resamples probabilities with torch (its fastest way; here no image is resampled), and its processes for
  reading and writing are tried in three numbers: `default` (3 and 3), `one` (1 and 1) and `none` (`-npp 0 -nps 0`).
- Runs alternate, autoseg and peer, and each of them is a whole command from a cold start. Wall time is that of the
  command, CPU time that of all its processes, which other work on the machine changes less. Memory is the proportional
  share (PSS) of its process tree, sampled five times a second.
- `--cases 1` predicts one image: what a cold start costs.

The table has the best and the median of the rounds. Ratios are to the fastest of the peer's settings, whose labels are
compared voxel by voxel, too; Dice is that of `autoseg evaluate`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from common import autoseg, dice_per_case

SAMPLES_PER_SECOND = 5
PROCESSES = {"default": [], "one": ["-npp", "1", "-nps", "1"], "none": ["-npp", "0", "-nps", "0"]}
DATASET = "Dataset005_Hippocampus"
TORCH = {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False}


@dataclass
class Measured:
    """All runs of one side."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def run(command: list[str], environment: dict[str, str], into: Measured) -> None:
    """Add what a command takes: wall seconds, and CPU seconds and peak memory (MB, PSS) of its process tree."""
    peak, done = 0.0, threading.Event()
    began = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while not done.wait(1 / SAMPLES_PER_SECOND):
            peak = max(peak, memory_of(process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    _, status, used = os.wait4(process.pid, 0)  # with what it waited for itself
    into.seconds.append(time.perf_counter() - began)
    done.set()
    watching.join()
    into.cpu_seconds.append(used.ru_utime + used.ru_stime)
    into.megabytes.append(peak)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")


def memory_of(pid: int) -> float:
    """Proportional memory of a process and all below it, MB: shared pages count once."""
    total = 0
    try:
        tree = [psutil.Process(pid)]
        tree += tree[0].children(recursive=True)
    except psutil.Error:
        return 0.0
    for process in tree:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        except (OSError, psutil.Error):
            continue
    return total * 1024 / 1e6


def prepare(options: argparse.Namespace, folds: int) -> tuple[Path, Path]:
    """The peer's model with so many folds and torch resampling, and the workspace of it."""
    theirs = options.out / f"peer_{folds}" / DATASET / options.model.name
    ours = options.out / f"workspace_{folds}"
    if not ours.exists():
        shutil.rmtree(theirs, ignore_errors=True)
        theirs.mkdir(parents=True)
        for name in ("dataset.json", "dataset_fingerprint.json", "plans.json"):
            if (options.model / name).exists():
                shutil.copy(options.model / name, theirs)
        plans = json.loads((theirs / "plans.json").read_text(encoding="utf-8"))
        for configuration in plans["configurations"].values():
            if "resampling_fn_probabilities" in configuration:
                configuration["resampling_fn_probabilities"] = "resample_torch_fornnunet"
                configuration["resampling_fn_probabilities_kwargs"] = TORCH
        (theirs / "plans.json").write_text(json.dumps(plans, indent=4), encoding="utf-8")
        for fold in range(folds):
            (theirs / f"fold_{fold}").mkdir()
            shutil.copy(options.model / "fold_0" / "checkpoint_final.pth", theirs / f"fold_{fold}")
        autoseg("import-nnunet", theirs, ours)
    return theirs, ours


def images_of(options: argparse.Namespace) -> Path:
    """A folder of the images to segment: links to the first ones of the test set."""
    folder = options.out / f"images_{options.cases}"
    if not folder.exists():
        folder.mkdir(parents=True)
        for path in sorted((options.data / "hippocampus" / "imagesTs").iterdir())[: options.cases]:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def agreement(ours: Path, theirs: Path) -> tuple[float, int]:
    """Share of voxels with equal labels over all cases, and how many differ."""
    differ = total = 0
    for path in sorted(ours.glob("*.nii.gz")):
        one, other = (np.asarray(nib.load(file).dataobj) for file in (path, theirs / path.name))
        differ, total = differ + int((one != other).sum()), total + one.size
    return 1 - differ / total, differ


def mean_dice(options: argparse.Namespace, folder: Path, workspace: Path) -> float:
    """Mean Dice over labels and cases against the references of the test set."""
    references = options.out / f"references_{options.cases}"
    if not references.exists():
        references.mkdir()
        for path in sorted(folder.glob("*.nii.gz")):
            shutil.copy(options.data / "hippocampus" / "labelsTs" / path.name, references)
    table = folder.with_suffix(".csv")
    autoseg("evaluate", "--predictions", folder, "--references", references, "--csv", table, "-w", workspace)
    return float(np.mean([np.mean(list(found.values())) for found in dice_per_case(table).values()]))


def compare(options: argparse.Namespace, folds: int) -> list[str]:
    """Alternating runs of both sides with so many folds; the rows of the table."""
    model, workspace = prepare(options, folds)
    images, names = images_of(options), ",".join(map(str, range(folds)))
    commands: dict[str, tuple[list[str], dict[str, str], Path]] = {}
    for speed in options.ours.split(","):
        out = options.out / f"ours_{folds}_{speed}"
        words = [str(Path(sys.executable).parent / "autoseg"), "predict", "-i", str(images), "-o", str(out)]
        words += ["-w", str(workspace), "-f", names, "--device", "cpu", "--speed", speed]
        commands[f"autoseg {speed}"] = (words, {}, out)
    for number in options.theirs.split(","):
        out = options.out / f"theirs_{folds}_{number}"
        trainer, plans, configuration = model.name.split("__")
        words = [str(options.peer / "bin" / "nnUNetv2_predict"), "-i", str(images), "-o", str(out), "-d", "5"]
        words += ["-c", configuration, "-tr", trainer, "-p", plans, "-f", *names.split(",")]
        words += ["-device", "cpu", *PROCESSES[number]]
        where = {name: str(model.parents[1]) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        where |= {"nnUNet_compile": "f", "nnUNet_extTrainer": str(Path(__file__).parent / "peer")}
        commands[f"nnU-Net {number}"] = (words, where, out)
    measured = {name: Measured() for name in commands}
    for number in range(options.rounds):
        for name, (command, environment, out) in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            run(command, environment, found := measured[name])
            figures = f"{found.seconds[-1]:.1f} s, CPU {found.cpu_seconds[-1]:.1f} s, {found.megabytes[-1]:.0f} MB"
            print(f"round {number + 1}, {folds} fold(s), {name}: {figures}", flush=True)
    best = min((name for name in commands if name.startswith("nnU-Net")), key=lambda name: min(measured[name].seconds))
    rows = []
    for name, (_, _, out) in commands.items():
        found, share = measured[name], agreement(out, commands[best][2])
        wall, memory = min(found.seconds), max(found.megabytes)
        cells = [
            str(folds), name, f"{wall:.1f}", f"{statistics.median(found.seconds):.1f}",
            f"{min(found.cpu_seconds):.1f}", f"{memory:.0f}", f"{wall / min(measured[best].seconds):.2f}",
            f"{memory / max(measured[best].megabytes):.2f}", f"{mean_dice(options, out, workspace):.4f}",
            f"{100 * share[0]:.3f} % ({share[1]})",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folds", default="1,5")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", type=int, default=41)
    parser.add_argument("--ours", default="accurate,balanced,fast")
    parser.add_argument("--theirs", default="default,one,none")
    parser.add_argument("--out", type=Path, default=Path("predict_peer"))
    options = parser.parse_args()
    options.out = options.out.resolve()
    lines = [
        "| folds | side | s, best | s, median | CPU s | MB | wall, ratio | memory, ratio | Dice | equal labels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for folds in map(int, options.folds.split(",")):
        lines += compare(options, folds)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
