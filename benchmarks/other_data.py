"""Two-dimensional and multi-channel data through plan, one fold and predict; outputs compared with their inputs.

    python benchmarks/other_data.py --data DIR [--time-budget 3m] [--out FOLDER]

DIR holds `axon_sem` (PNG of different sizes) and `ms_lesion_mni` (four channels, three patients). Every segmentation
must have its image's id, size and, for NIfTI, the same affine, codes, spacing and units.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

DATASETS = {
    "axon_sem": ["--labels", "myelin=1,axon=2"],
    "ms_lesion_mni": ["--channels", "FLAIR,T1,T1Gd,T2", "--labels", "lesion=1"],
}
HEADER_FIELDS = ("sform_code", "qform_code", "pixdim", "xyzt_units", "dim")


def same_grid(image: Path, segmentation: Path) -> bool:
    """Whether a segmentation has the size, and for NIfTI the header's geometry, of its image."""
    if image.suffix == ".png":
        return Image.open(image).size == Image.open(segmentation).size
    a, b = nibabel.load(image), nibabel.load(segmentation)
    fields = all(np.array_equal(a.header[field], b.header[field]) for field in HEADER_FIELDS)
    return fields and np.array_equal(a.affine, b.affine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time-budget", default="3m")
    parser.add_argument("--out", type=Path, default=Path("other_data_run"))
    options = parser.parse_args()
    autoseg = str(Path(sys.executable).parent / "autoseg")
    failures = 0
    for name, intake in DATASETS.items():
        data, workspace, out = (
            options.data / name,
            options.out / name / "workspace",
            options.out / name / "segmentations",
        )
        for arguments in (
            ["plan", data, *intake, "-w", workspace],
            ["train", "-f", "0", "--time-budget", options.time_budget, "-w", workspace],
            ["evaluate", "-w", workspace],
            ["predict", "-i", data / "images", "-o", out, "-w", workspace],
        ):
            words = [str(word) for word in arguments]
            print(f"\n$ autoseg {' '.join(words)}", flush=True)
            began = time.perf_counter()
            subprocess.run([autoseg, *words], check=True)
            print(f"({time.perf_counter() - began:.1f} s)", flush=True)
        images = {path.name.replace("_0000", ""): path for path in sorted((data / "images").iterdir())
                  if not any(f"_000{channel}." in path.name for channel in (1, 2, 3))}  # fmt: skip
        written = {path.name for path in out.iterdir() if not path.name.lstrip(".").startswith("autoseg_")}
        right = [image for image, path in images.items() if image in written and same_grid(path, out / image)]
        print(
            f"{name}: {len(written)} outputs for {len(images)} images, {len(right)} with the id and grid of their image"
        )
        failures += len(right) != len(images) or written != set(images)
    return int(failures)


if __name__ == "__main__":
    raise SystemExit(main())
