"""What reading ahead and writing behind save: `autoseg predict` with both, and one case strictly after the other.

    python benchmarks/predict_pipeline.py --workspace DIR --images DIR [--rounds 3] [--out FOLDER]

Both ways are whole commands in processes of their own, which alternate; the segmentations are compared byte for byte.
Without them, a case is read when it is due, and written before the next one is read.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

STRICT = """
import sys
from autoseg.cli import main
from autoseg.inference import pipeline, predict

class Strict(pipeline.Writer):
    def put(self, write, *arguments):
        super().put(write, *arguments)
        self.settle()

predict.Writer = Strict
predict._fits_ahead = lambda case: False
sys.exit(main(sys.argv[1:]))
"""
WAYS = {"in a pipeline": ["-m", "autoseg"], "one after the other": ["-c", STRICT]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("predict_pipeline"))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, start in WAYS.items():
            out = options.out / way.replace(" ", "_")
            shutil.rmtree(out, ignore_errors=True)
            words = ["predict", "-i", options.images, "-o", out, "-w", options.workspace, "--device", "cpu"]
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, *start, *map(str, words)], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"predict ended with status {status}")
            found[way].append((time.perf_counter() - began, used.ru_utime + used.ru_stime))
            print(f"{way}: {found[way][-1][0]:.1f} s, CPU {found[way][-1][1]:.1f} s", flush=True)
    one, other = (options.out / way.replace(" ", "_") for way in WAYS)
    files = sorted(path.name for path in one.glob("*.nii.gz"))
    same = sum((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    print(f"\n{same} of {len(files)} segmentations are equal\n")
    print("| way | s, best | s, all | CPU s, best |\n|---|---|---|---|")
    for way, runs in found.items():
        seconds = ", ".join(f"{wall:.1f}" for wall, _ in runs)
        print(f"| {way} | {min(wall for wall, _ in runs):.1f} | {seconds} | {min(cpu for _, cpu in runs):.1f} |")


if __name__ == "__main__":
    main()
