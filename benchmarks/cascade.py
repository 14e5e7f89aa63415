"""The cascade from end to end on synthetic volumes large enough to need it, beside 3d_fullres alone.

    python benchmarks/cascade.py [--time-budget 60s] [--out FOLDER]

The phantoms of `autoseg demo` on a grid about as fine as that of a clinical CT: 12 patients to train on, 4 held out.
One command trains the five folds of 3d_lowres, brings their held-out segmentations to full resolution and trains fold 0
of 3d_cascade; then fold 0 of 3d_fullres gets the same time. Everything is trained on a CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from autoseg.demo.phantom import FIELD_OF_VIEW, LABELS, NOISE, make_anatomy, render, write_nifti
from autoseg.imaging.geometry import Geometry, Volume

SPACING = (1.0, 0.7, 0.7)  # mm
TRAINING, HELD_OUT = range(12), range(101, 105)  # patients


def write_dataset(folder: Path) -> None:
    """nnU-Net's layout, one scan per patient."""
    edges = [round(extent / step) for extent, step in zip(FIELD_OF_VIEW, SPACING, strict=True)]
    geometry = Geometry(shape=(edges[0], edges[1], edges[2]), spacing=SPACING)
    for patient in (*TRAINING, *HELD_OUT):
        image, labels = render(make_anatomy(patient), geometry)
        noise = np.random.default_rng(patient).normal(0, NOISE, image.shape)
        subset = "Ts" if patient in HELD_OUT else "Tr"
        scan = Volume(np.rint(image + noise).clip(-1024, 3071).astype(np.float32)[None], geometry)
        write_nifti(folder / f"images{subset}" / f"phantom_{patient:03d}_0000.nii.gz", scan, "LPS")
        write_nifti(folder / f"labels{subset}" / f"phantom_{patient:03d}.nii.gz", Volume(labels, geometry), "LPS")
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(
        json.dumps(description | {"numTraining": len(TRAINING), "name": "Large phantom"})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-budget", default="60s", help="per fold")
    parser.add_argument("--out", type=Path, default=Path("cascade_run"))
    options = parser.parse_args()
    autoseg = str(Path(sys.executable).parent / "autoseg")
    data, workspace = options.out / "dataset", options.out / "workspace"
    if not (data / "dataset.json").exists():
        write_dataset(data)
    train = ["train", "-f", "0", "--time-budget", options.time_budget, "--device", "cpu"]
    for arguments in (
        ["plan", data, "--preset", "s", "-c", "3d_fullres,3d_lowres"],
        [*train, "-c", "3d_cascade"],
        ["evaluate", "-c", "3d_lowres"],
        ["evaluate", "-c", "3d_cascade"],
        [*train, "-c", "3d_fullres"],
        ["evaluate", "-c", "3d_fullres"],
        *(
            ["predict", "-i", data / "imagesTs", "-o", options.out / name, "-c", name, "-f", "0"]
            for name in ("3d_cascade", "3d_fullres")
        ),
        *(
            ["evaluate", "--predictions", options.out / name, "--references", data / "labelsTs"]
            for name in ("3d_cascade", "3d_fullres")
        ),
    ):
        words = [str(word) for word in [*arguments, "-w", workspace]]
        print(f"\n$ autoseg {' '.join(words)}", flush=True)
        began = time.perf_counter()
        subprocess.run([autoseg, *words], check=True)
        print(f"({time.perf_counter() - began:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
