"""Seconds per augmented patch on one core: both chains of autoseg, batchgenerators and batchgeneratorsv2.

    python benchmarks/augmentation.py [--peer VENV] [--size 128] [--rounds 5] [--patches 24] [--core 0]

All four do nnU-Net's default training transforms for a 3-D patch (`AUGMENTATIONS["nnunet"]`), one channel, three
labels, float32, mirroring on all axes. They take turns, a round of patches each, on the same core with one thread. Most
patches are quick and some, which are rotated or scaled, are slow: what a training waits for is the mean, and that is
compared; its standard error says how well it is known. Seconds are those the core worked for the process, which with
one thread is the wall time on a machine that does nothing else.

- What is read with a patch is counted as each chain reads it: autoseg a margin as large as the deformation drawn needs,
  the other two nnU-Net's fixed larger patch. Cutting it out of the case is counted for autoseg only; the others start
  from the larger patch, copied beforehand.
- batchgeneratorsv2 runs in an interpreter of its own, VENV/bin/python, where it and nnunetv2 are installed: the
  transforms are those that nnU-Net's trainer builds. Without --peer it is left out.
- batchgenerators: the same transforms by their names there, in nnU-Net v1's way.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CENTRE = 160  # of the case; no margin reaches its border
GROWTH = 205 / 128  # the larger patch over the patch, for +-30 degrees about each axis and a scale of 0.85


def a_case(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, size, size, size) float32 and labels int8: noise, and three ellipsoids of different sizes."""
    image = np.random.default_rng(0).standard_normal((1, size, size, size), dtype=np.float32)
    mesh = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    labels = np.zeros((size,) * 3, np.int8)
    for label, (centre, radius) in enumerate([((0, 0, 0), 0.5), ((0.1, 0.1, 0), 0.2), ((-0.2, 0, 0.1), 0.1)], start=1):
        labels[((mesh - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) < radius**2] = label
    return image, labels


def autoseg_host(size: int) -> Callable[[int], None]:
    from autoseg.augmentation.host_chain import build_chain
    from autoseg.augmentation.presets import AUGMENTATIONS

    image, labels = a_case(2 * CENTRE)
    chain = build_chain(AUGMENTATIONS["nnunet"], patch_size=(size,) * 3, mirror_axes=(0, 1, 2))

    def once(seed: int) -> None:
        rng = np.random.default_rng(seed)
        deformation = chain.draw(rng)
        box = tuple(slice(CENTRE - size // 2 - m, CENTRE + size // 2 + m) for m in deformation.margin)
        chain(image[:, *box].copy(), labels[box].copy(), rng, deformation)

    return once


def autoseg_device(size: int) -> Callable[[int], None]:
    import torch

    from autoseg.augmentation.chain import DeviceChain
    from autoseg.augmentation.presets import AUGMENTATIONS

    torch.set_num_threads(1)
    image, labels = (torch.from_numpy(array) for array in a_case(2 * CENTRE))
    chain = DeviceChain(AUGMENTATIONS["nnunet"], channels=1, patch_size=(size,) * 3, mirror_axes=(0, 1, 2))

    def once(seed: int) -> None:
        draw = chain.draw(np.random.default_rng(seed))
        box = tuple(slice(CENTRE - size // 2 - m, CENTRE + size // 2 + m) for m in draw.margin)
        chain([image[:, *box].clone()], [labels[box].clone()], [draw], torch.device("cpu"))

    return once


def batchgenerators(size: int) -> Callable[[int], None]:
    import random

    from batchgenerators.transforms.abstract_transforms import Compose
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    angle = (-np.pi / 6, np.pi / 6)
    transform = Compose(
        [
            SpatialTransform(
                (size,) * 3, patch_center_dist_from_border=None, do_elastic_deform=False, do_rotation=True,
                angle_x=angle, angle_y=angle, angle_z=angle, do_scale=True, scale=(0.7, 1.4),
                border_mode_data="constant", border_cval_data=0, order_data=1, border_mode_seg="constant",
                border_cval_seg=-1, order_seg=1, random_crop=False, p_rot_per_sample=0.2, p_scale_per_sample=0.2,
            ),
            GaussianNoiseTransform(p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), different_sigma_per_axis=True, p_per_sample=0.2, p_per_channel=0.5),
            BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.15),
            ContrastAugmentationTransform(p_per_sample=0.15),
            SimulateLowResolutionTransform(
                (0.5, 1), per_channel=True, p_per_channel=0.5, order_downsample=0, order_upsample=1, p_per_sample=0.25
            ),
            GammaTransform((0.7, 1.5), invert_image=True, per_channel=True, retain_stats=True, p_per_sample=0.1),
            GammaTransform((0.7, 1.5), invert_image=False, per_channel=True, retain_stats=True, p_per_sample=0.3),
            MirrorTransform((0, 1, 2)),
        ]
    )  # fmt: skip
    image, labels = a_case(round(size * GROWTH))

    def once(seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generators)
        random.seed(seed)
        transform(data=image[None].copy(), seg=labels[None, None].astype(np.float32))

    return once


def batchgeneratorsv2(size: int) -> Callable[[int], None]:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    transform = nnUNetTrainer.get_training_transforms(
        (size,) * 3, (-np.pi / 6, np.pi / 6), None, (0, 1, 2), False, use_mask_for_norm=[False],
        foreground_labels=[1, 2, 3],
    )  # fmt: skip
    image, labels = (torch.from_numpy(array) for array in a_case(round(size * GROWTH)))
    labels = labels[None].to(torch.int16)

    def once(seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        transform(image=image.clone(), segmentation=labels.clone())

    return once


CHAINS = {
    "batchgeneratorsv2": batchgeneratorsv2,
    "batchgenerators": batchgenerators,
    "autoseg host chain": autoseg_host,
    "autoseg device chain": autoseg_device,
}


def serve(name: str, size: int) -> None:
    """Answer each line of seeds on the standard input with the seconds of each, in a process of its own."""
    once = CHAINS[name](size)
    for seed in range(10_000, 10_040):  # warm: caches, and what batchgeneratorsv2 tries out when it first blurs
        once(seed)
    for line in sys.stdin:
        marks = [time.process_time()]
        for seed in json.loads(line):
            once(seed)
            marks.append(time.process_time())
        print(json.dumps([after - before for before, after in itertools.pairwise(marks)]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="environment with batchgeneratorsv2 and nnunetv2")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=24)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size)
        return
    os.sched_setaffinity(0, {options.core})  # inherited by the processes below, of which one works at a time
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    servers = {}
    for name in CHAINS:
        python = sys.executable
        if name == "batchgeneratorsv2":
            if options.peer is None:
                continue
            python = str(options.peer / "bin" / "python")
        command = [python, __file__, "--serve", name, "--size", str(options.size)]
        servers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(name: str, seeds: list[int]) -> list[float]:
        process = servers[name]
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(seeds) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    seconds: dict[str, list[float]] = {name: [] for name in servers}
    for name in servers:  # until all are warm
        ask(name, [0])
    for number in range(options.rounds):
        for name in servers:
            seconds[name] += ask(name, [number * options.patches + i for i in range(options.patches)])
    for process in servers.values():
        assert process.stdin
        process.stdin.close()
        process.wait()
    base = next(iter(servers))
    print(f"| chain | ms per patch of {options.size}^3: mean ± standard error | median | per second | {base} takes |")
    print("|---|---|---|---|---|")
    for name, measured in seconds.items():
        mean, error = 1000 * np.mean(measured), 1000 * np.std(measured) / np.sqrt(len(measured))
        ratio = np.mean(seconds[base]) / np.mean(measured)
        print(
            f"| {name} | {mean:.1f} ± {error:.1f} | {1000 * np.median(measured):.1f} | {1000 / mean:.1f} "
            f"| {ratio:.1f} times |"
        )


if __name__ == "__main__":
    main()
