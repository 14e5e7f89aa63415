"""Memory of segmenting a large image into 32 classes, and of one with twice as many slices.

    python benchmarks/predict_memory.py --data DIR [--classes 32] [--features 8 16 32 64] [--out TABLE.md]

DIR holds `ct_head_phantom`, 512 x 512 x 140 voxels. The network is a U-Net of so many features with random weights; the
patch has 48 x 128 x 128 voxels, tiles are half a patch apart, without mirroring, at the image's own spacing. Each image
is segmented in a process of its own. `peak` is the highest resident memory of that process, imports included, minus the
image as it is read (float32), while the case is segmented. The second image is the first one twice, one behind the
other.
"""

import argparse
import json
import os
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

PATCH = (48, 128, 128)


def segmented(path: Path, classes: int, features: Sequence[int]) -> dict:
    """Segment one image; seconds and bytes."""
    import torch

    from autoseg.datasets.dataset import Case, load_case
    from autoseg.imaging.labels import LabelSet
    from autoseg.inference.member import EnsembleMember
    from autoseg.inference.options import InferenceOptions
    from autoseg.inference.predict import segment
    from autoseg.models.build import build_plan_network
    from autoseg.models.model import Model
    from autoseg.nn.precision import to_channels_last
    from autoseg.planning.plan import ChannelNormalization, NetworkSpec
    from plans import plan_of

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    loaded = load_case(Case("head", "head", (str(path),), None), None)
    labels = LabelSet({f"organ {n}": n for n in range(1, classes)})
    plan = plan_of(labels, ("CT",), normalization=(ChannelNormalization("zscore"),))
    stages = len(features)
    network = NetworkSpec(
        name="unet", features=tuple(features), strides=((1,) * 3, *[(2,) * 3] * (stages - 1)),
        kernel_sizes=((3,) * 3,) * stages, blocks=(2,) * stages, decoder_blocks=(2,) * (stages - 1),
    )  # fmt: skip
    name = "3d_fullres"
    configuration = replace(
        plan.configurations[name], spacing=loaded.spacing, patch_size=PATCH, network=network, cost=None
    )
    plan = replace(plan, configurations=plan.configurations | {name: configuration})
    made = to_channels_last(build_plan_network(plan, configuration).eval())  # as a model is opened on a CPU
    made.deep_supervision = False
    model = Model(plan, name, (0,), (made,), "float32", 0.0, torch.device("cpu"))
    member = EnsembleMember(model, InferenceOptions(mirroring=False))
    start_memory()
    began = time.perf_counter()
    found = segment([member], loaded)
    return {
        "seconds": time.perf_counter() - began,
        "peak": 1024 * resident_kib("VmHWM") - loaded.image.nbytes,
        "image": loaded.image.nbytes,
        "shape": loaded.image.shape[1:],
        "labels": len(np.unique(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--classes", type=int, default=32)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(segmented(options.one, options.classes, options.features)))
        return
    import nibabel

    (path,) = sorted((options.data / "ct_head_phantom" / "images").iterdir())
    rows = ["| image | classes | seconds | image, GB | peak above it, GB |", "|---|---|---|---|---|"]
    print("\n".join(rows), flush=True)
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "long_0000.nii"
        image = nibabel.load(path)
        array = np.asarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.concatenate([array, array], axis=2), image.affine), long)
        for file in (path, long):
            command = [sys.executable, __file__, "--one", str(file), "--classes", str(options.classes), "--features"]
            command += map(str, options.features)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seen = json.loads(done.stdout.splitlines()[-1])
            peaks.append(seen["peak"])
            shape = " x ".join(map(str, reversed(seen["shape"])))
            row = f"| {shape} | {options.classes} | {seen['seconds']:.1f} | {seen['image'] / 1e9:.3f} | "
            rows.append(row + f"{seen['peak'] / 1e9:.3f} |")
            print(rows[-1], flush=True)
    rows += ["", f"twice as many slices: {peaks[1] / peaks[0] - 1:+.1%}"]
    print("\n".join(rows[-2:]))
    if options.out:
        options.out.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
