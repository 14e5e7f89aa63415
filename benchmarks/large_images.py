"""Memory of segmenting images that are not held: a large TIFF, a large volume, each stored in two ways.

    python benchmarks/large_images.py [--edge 20000] [--slices 600] [--kinds tiff,tiff-deflate,nii,nii.gz]
        [--features 8 16 32] [--step 1.0] [--out TABLE.md]

A picture has EDGE x EDGE pixels of 8 bits, a volume SLICES slices of 1024 x 1024 voxels of 16 bits; both hold smooth
noise, and lie in a temporary folder. The networks are U-Nets of these features with random weights and 3 classes; the
patch has 512 x 512 or 32 x 128 x 128 voxels, tiles are STEP of their edge apart, without mirroring. Each image is
segmented by `predict_cases` in a process of its own. `peak` is the highest resident memory of that process while it is
read, segmented and written; `imports` what it had before, with the model.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
from export import resident_kib, start_memory

PLANE, EDGE = 1024, 512  # of a volume's slices; of the blocks that a picture is made of
PATCH = {2: (512, 512), 3: (32, 128, 128)}
KINDS = {"tiff": 2, "tiff-deflate": 2, "nii": 3, "nii.gz": 3}  # -> axes of the network


def write_picture(path: Path, edge: int, *, packed: bool) -> None:
    """A TIFF of edge x edge pixels, tile by tile."""
    import tifffile

    block = noise((EDGE, EDGE)).astype(np.uint8)
    tiles = (np.roll(block, 37 * number, axis=1) for number in range(math.ceil(edge / EDGE) ** 2))
    if packed:
        tifffile.imwrite(path, tiles, shape=(edge, edge), dtype=np.uint8, tile=(EDGE, EDGE), compression="zlib")
        return
    mapped = tifffile.memmap(path, shape=(edge, edge), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        y, x = (EDGE * n for n in divmod(number, math.ceil(edge / EDGE)))
        mapped[y : y + EDGE, x : x + EDGE] = tile[: edge - y, : edge - x]
    mapped.flush()


def write_volume(path: Path, slices: int) -> None:
    """A NIfTI volume, slice by slice, compressed where it is called .gz."""
    import gzip

    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape((PLANE, PLANE, slices))
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code="scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    plane = noise((PLANE, PLANE)).astype(np.int16)
    with gzip.open(path, "wb", 1) if path.name.endswith(".gz") else open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for z in range(slices):
            file.write(np.roll(plane, 3 * z, axis=0).tobytes())


def noise(shape: Sequence[int]) -> np.ndarray:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 6, mode="wrap")
    return 1 + 199 * (smooth - smooth.min()) / np.ptp(smooth)


def segmented(path: Path, dims: int, features: Sequence[int], step: float) -> dict:
    """Segment one image; seconds and bytes."""
    import torch

    from autoseg.datasets.dataset import Case
    from autoseg.imaging.labels import LabelSet
    from autoseg.inference.options import InferenceOptions
    from autoseg.inference.predict import predict_cases
    from autoseg.models.build import build_plan_network
    from autoseg.models.model import Model, ready
    from autoseg.planning.plan import ChannelNormalization, NetworkSpec
    from plans import plan_of

    torch.manual_seed(0)
    plan = plan_of(LabelSet({"a": 1, "b": 2}), ("MR",), normalization=(ChannelNormalization("zscore"),), grids=None)
    name, stages = {2: "2d", 3: "3d_fullres"}[dims], len(features)
    network = NetworkSpec(
        name="unet", features=tuple(features), strides=((1,) * dims, *[(2,) * dims] * (stages - 1)),
        kernel_sizes=((3,) * dims,) * stages, blocks=(1,) * stages, decoder_blocks=(1,) * (stages - 1),
    )  # fmt: skip
    configuration = replace(
        plan.configurations[name], spacing=(1.0,) * dims, patch_size=PATCH[dims], network=network, cost=None
    )
    plan = replace(plan, configurations=plan.configurations | {name: configuration})
    made = ready(build_plan_network(plan, configuration))
    model = Model(plan, name, (0,), (made,), "float32", 0.0, torch.device("cpu"))
    with torch.inference_mode():
        made(torch.zeros(1, 1, *PATCH[dims]))  # what the first pass allocates
    case = Case("a", "a", (str(path),), None)
    imports = 1024 * start_memory()
    began = time.perf_counter()
    (done,) = predict_cases([model], [case], path.parent / "out", InferenceOptions(step=step, mirroring=False))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "imports": imports, "peak": 1024 * resident_kib("VmHWM"), "file": str(done.path)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=20_000)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--step", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--segment", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if options.segment:
        print(json.dumps(segmented(options.segment, KINDS[kinds[0]], options.features, options.step)))
        return
    lines = [
        "| image | as float32 | file | imports | peak | above imports | seconds |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    print("\n".join(lines))
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            if KINDS[kind] == 2:
                path, shape = Path(folder) / "a.tif", (options.edge, options.edge)
                write_picture(path, options.edge, packed=kind != "tiff")
            else:
                path, shape = Path(folder) / f"a.{kind}", (options.slices, PLANE, PLANE)
                write_volume(path, options.slices)
            words = [
                __file__,
                "--segment",
                path,
                "--kinds",
                kind,
                "--step",
                options.step,
                "--features",
                *options.features,
            ]
            done = subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True, text=True)
            found, size = json.loads(done.stdout.splitlines()[-1]), path.stat().st_size
        gigabytes = [4 * math.prod(shape), size, found["imports"], found["peak"], found["peak"] - found["imports"]]
        row = " | ".join(f"{n / 1e9:.2f} GB" for n in gigabytes)
        lines.append(f"| {kind}, {' x '.join(map(str, shape))} | {row} | {found['seconds']:.0f} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
