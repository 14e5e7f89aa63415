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
  command. Memory is the proportional share (PSS) of its process tree, sampled five times a second.
- `--cases 1` predicts one image: what a cold start costs.

The table has the best and the median of the rounds; labels are compared voxel by voxel, Dice is that of `autoseg
evaluate`.
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
TORCH = {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False}


@dataclass
class Measured:
    """All runs of one side."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall seconds of a command and the peak memory (MB, PSS) of its process tree."""
    peak, done = 0.0, threading.Event()
    began = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while not done.wait(1 / SAMPLES_PER_SECOND):
            peak = max(peak, memory_of(process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    code = process.wait()
    seconds = time.perf_counter() - began
    done.set()
    watching.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, peak


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
    theirs = options.out / f"peer_{folds}" / options.model.name
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
        words = [str(options.peer / "bin" / "nnUNetv2_predict_from_modelfolder"), "-i", str(images), "-o", str(out)]
        words += ["-m", str(model), "-f", *names.split(","), "-device", "cpu", *PROCESSES[number]]
        nowhere = {name: str(options.out) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        commands[f"nnU-Net {number}"] = (words, nowhere | {"nnUNet_compile": "f"}, out)
    measured = {name: Measured() for name in commands}
    for number in range(options.rounds):
        for name, (command, environment, out) in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            seconds, megabytes = run(command, environment)
            measured[name].seconds.append(seconds)
            measured[name].megabytes.append(megabytes)
            print(f"round {number + 1}, {folds} fold(s), {name}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    best = min((name for name in commands if name.startswith("nnU-Net")), key=lambda name: min(measured[name].seconds))
    rows = []
    for name, (_, _, out) in commands.items():
        seconds, megabytes = measured[name].seconds, max(measured[name].megabytes)
        share, differ = agreement(out, commands[best][2])
        rows.append(
            f"| {folds} | {name} | {min(seconds):.1f} | {statistics.median(seconds):.1f} | {megabytes:.0f} | "
            f"{min(seconds) / min(measured[best].seconds):.2f} | {megabytes / max(measured[best].megabytes):.2f} | "
            f"{mean_dice(options, out, workspace):.4f} | {100 * share:.3f} % ({differ}) |"
        )
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
        "| folds | side | s, best | s, median | MB | wall, ratio | memory, ratio | Dice | labels as the peer's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for folds in map(int, options.folds.split(",")):
        lines += compare(options, folds)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
