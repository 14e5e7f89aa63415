"""The demo on several kinds of machine and with several seeds: how long it takes, and what every label reaches.

    python benchmarks/demo.py [--seeds 0,1,2] [--machines idle,avx2,busy] [--out FOLDER]

- idle: this machine as it is.
- avx2: without AVX-512, AMX and bfloat16, as oneDNN and torch are told.
- busy: beside another program that keeps one core busy.

Exit code 1 where a run fails, warns that a fold overfits, collapses or diverges, or misses what the demo states.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

OLD_MACHINE = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
MACHINES = ("idle", "avx2", "busy")
WARNINGS = re.compile(r"(overfits|collapses|diverges|cannot learn)")


def run_demo(machine: str, seed: int, out: Path) -> tuple[str, bool]:
    """Run the demo once; a row of the table, and whether all is as stated."""
    environment = os.environ | (OLD_MACHINE if machine == "avx2" else {})
    spinning = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(spinning) if machine == "busy" else None
    command = [sys.executable, "-m", "autoseg", "demo", "--seed", str(seed), "-o", str(out / f"{machine}_{seed}")]
    began = time.perf_counter()
    try:
        found = subprocess.run(command, env=environment, text=True, capture_output=True)
    finally:
        if other:
            other.kill()
    seconds = time.perf_counter() - began
    (out / f"{machine}_{seed}.txt").write_text(found.stdout + found.stderr, encoding="utf-8")
    warnings = len(WARNINGS.findall(found.stdout + found.stderr))
    verdict = (found.stdout.strip().splitlines() or ["nothing was printed"])[-1]
    dice = " | ".join(re.findall(r"(?:mean|liver|kidney|lesion) (\d\.\d+)", verdict)[:4]) or verdict
    return f"| {machine} | {seed} | {seconds:.0f} s | {dice} | {warnings} | {found.returncode} |", (
        found.returncode == 0 and warnings == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--out", type=Path, default=Path("demo_runs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("| machine | seed | time | mean Dice | liver | kidney | lesion | warnings | exit code |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    sound = True
    for seed in map(int, options.seeds.split(",")):
        for machine in options.machines.split(","):
            row, fine = run_demo(machine, seed, options.out.resolve())
            print(row, flush=True)
            sound = sound and fine
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
