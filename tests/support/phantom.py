"""Tiny images and datasets for tests, written in milliseconds. `from phantom import tiny_dataset`.

sphere, blob    masks of 16 to 32 voxels
tiny_case       an image and its label map with one blob per label, brighter the higher the label
tiny_dataset    a folder of such cases: nnU-Net's layout or plain images/ and labels/, 3-D NIfTI or 2-D PNG
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from autoseg.demo.phantom import Ellipsoid, write_nifti
from autoseg.imaging.geometry import Geometry, Vector3, Volume


def sphere(shape: tuple[int, ...], centre: Sequence[float], radius: float, spacing: Sequence[float] = (1, 1, 1)):
    """Voxels whose centres lie at most `radius` mm from voxel position `centre`; bool of any number of axes."""
    square = sum(((n - c) * s) ** 2 for n, c, s in zip(np.indices(shape), centre, spacing, strict=False))
    return square <= radius**2


def blob(shape: tuple[int, int, int], rng: np.random.Generator, centre: Sequence[float], size: float) -> np.ndarray:
    """A turned ellipsoid about `centre` (voxels), radii of 0.6 to 1 times `size` voxels; bool (Z, Y, X)."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    body = Ellipsoid(np.asarray(centre, dtype=float), size * rng.uniform(0.6, 1.0, 3), axes)
    return body.distance(np.indices(shape).astype(np.float32)) < 0


def tiny_case(
    rng: np.random.Generator, shape: tuple[int, int, int], *, channels: int = 1, labels: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, Z, Y, X) int16 within 0..255 and labels (Z, Y, X) uint8 that holds every label."""
    flat = shape[0] == 1
    target = np.zeros(shape, np.uint8)
    along = max(range(3), key=lambda axis: shape[axis])  # the blobs stand in a row along the longest axis
    room = shape[along] / labels
    size = 0.45 * min(room, *(n for n in shape if n > 1))
    for label in range(1, labels + 1):
        centre = [(n - 1) / 2 + (0 if n == 1 else rng.uniform(-1, 1)) for n in shape]
        centre[along] = (label - 0.5) * room - 0.5
        mask = sphere(shape, centre, 0.8 * size) if flat else blob(shape, rng, centre, size)
        target[mask] = label
        target[tuple(round(c) for c in centre)] = label
    contrast = 120 / labels
    clean = np.stack([60 + contrast * np.where(target, (target + c) % labels + 1, 0) for c in range(channels)])
    return np.clip(np.rint(clean + rng.normal(0, 8, clean.shape)), 0, 255).astype(np.int16), target


def tiny_dataset(
    folder: Path,
    *,
    cases: int = 6,
    channels: int = 1,
    dims: int = 3,
    labels: int = 2,
    patients: Sequence[str] | None = None,
    layout: Literal["nnunet", "plain"] = "nnunet",
    shape: tuple[int, ...] | None = None,
    spacing: Vector3 = (2.0, 1.0, 1.0),
    orientations: Sequence[str] = ("LPS",),
    seed: int = 0,
) -> Path:
    """Write `cases` tiny cases `case_00`, `case_01`, ... and return the folder.

    Args:
        folder: created where it does not exist.
        cases: how many, all of them for training.
        channels: named MR0, MR1, ...; each is a file of its own.
        dims: 3 writes .nii.gz, 2 writes .png of 8 bits.
        labels: values 1..labels, named organ_1, organ_2, ...; each occurs in every case.
        patients: one name per case, written to patients.csv; without it there is no such file.
        layout: nnunet has dataset.json, imagesTr, labelsTr; plain has images and labels, without the channel's number
            in the name where there is one channel.
        shape: (Z, Y, X) or (Y, X) of every case; otherwise about (12, 20, 24) or (40, 32), odd sizes among them.
        spacing: mm, 3-D only.
        orientations: taken in turn, see `autoseg.demo.phantom.write_nifti`; 3-D only.
        seed: another seed gives other images.
    """
    ending = ".nii.gz" if dims == 3 else ".png"
    images, references = ("imagesTr", "labelsTr") if layout == "nnunet" else ("images", "labels")
    for index in range(cases):
        rng = np.random.default_rng([seed, index])
        drawn = tuple(int(n + rng.integers(-1, 2)) for n in ((12, 20, 24) if dims == 3 else (40, 32)))
        extent = tuple(shape or drawn)
        z, y, x = extent if dims == 3 else (1, *extent)
        image, target = tiny_case(rng, (z, y, x), channels=channels, labels=labels)
        geometry = Geometry(shape=(z, y, x), spacing=spacing, origin=(10.0 * index, -20.0, 5.0), flat=dims == 2)
        code = orientations[index % len(orientations)]
        for channel in range(channels):
            number = f"_{channel:04d}" if layout == "nnunet" or channels > 1 else ""
            path = folder / images / f"case_{index:02d}{number}{ending}"
            _write(path, Volume(image[channel : channel + 1].astype(np.float32), geometry), code)
        _write(folder / references / f"case_{index:02d}{ending}", Volume(target, geometry), code)
    if layout == "nnunet":
        description = {
            "name": "Tiny",
            "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
            "labels": {"background": 0} | {f"organ_{label}": label for label in range(1, labels + 1)},
            "numTraining": cases,
            "file_ending": ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description))
    if patients is not None:
        with open(folder / "patients.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("case", "patient"))
            writer.writerows((f"case_{index:02d}", patient) for index, patient in enumerate(patients))
    return folder


def _write(path: Path, volume: Volume, code: str) -> None:
    if not volume.geometry.flat:
        write_nifti(path, volume, code)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(volume.array.reshape(volume.array.shape[-2:]).astype(np.uint8)).save(path)
