"""Cases through one server against as many cold starts of `autoseg predict`: wall time of both, labels compared.

    python benchmarks/serve.py -w WORKSPACE --data DIR [--cases 41] [--speed accurate]

The images are the test cases of `hippocampus`. The server is a process of its own, and its start counts: until the
models are loaded and the address is printed. The client is `autoseg/serve/client.py`: it uploads each image, has it
segmented and saves the segmentation. The other side is one `autoseg predict` per image, and for orientation one for
all of them together.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from autoseg.imaging.formats.readers import read_labels
from autoseg.serve.client import Client

AUTOSEG = [sys.executable, "-m", "autoseg"]


def served(workspace: Path, images: list[Path], out: Path, speed: str) -> tuple[float, float]:
    """Seconds until the server was ready, and of all cases after that."""
    began = time.monotonic()
    words = ["serve", "-w", str(workspace), "--port", "0", "--no-browser", "--speed", speed]
    server = subprocess.Popen([*AUTOSEG, *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = next(line.split()[1] for line in server.stdout if line.startswith("open "))
        ready = time.monotonic()
        client = Client(address)
        for image in images:
            client.open(image)
            client.segment()
            client.save(out / image.name.replace("_0000", ""))
            client._send("DELETE", client.case)
        return ready - began, time.monotonic() - ready
    finally:
        server.terminate()
        server.wait()


def predicted(workspace: Path, images: list[Path], out: Path, speed: str) -> float:
    """Seconds of one `autoseg predict`."""
    began = time.monotonic()
    words = ["predict", "-w", str(workspace), "-i", *map(str, images), "-o", str(out), "--speed", speed]
    subprocess.run([*AUTOSEG, *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=41)
    parser.add_argument("--speed", default="accurate")
    options = parser.parse_args()
    images = sorted((options.data / "hippocampus" / "imagesTs").glob("*.nii.gz"))[: options.cases]
    with tempfile.TemporaryDirectory() as folder:
        by_server, cold, together = (Path(folder) / name for name in ("server", "cold", "together"))
        by_server.mkdir()
        start, rest = served(options.workspace, images, by_server, options.speed)
        print(f"server: start {start:.1f} s, {len(images)} cases {rest:.1f} s, {rest / len(images):.2f} s a case")
        seconds = [predicted(options.workspace, [image], cold, options.speed) for image in images]
        print(f"cold starts: {sum(seconds):.1f} s, {np.mean(seconds):.2f} s a case")
        print(f"one predict for all: {predicted(options.workspace, images, together, options.speed):.1f} s")
        print(f"cold starts / server: {sum(seconds) / (start + rest):.2f}")
        differ = 0
        for path in sorted(cold.glob("*.nii.gz")):
            differ += int((read_labels(path).array != read_labels(by_server / path.name).array).sum())
        print(f"voxels whose labels differ: {differ} in {len([*cold.glob('*.nii.gz')])} cases")


if __name__ == "__main__":
    main()
