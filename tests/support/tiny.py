"""Tiny datasets for tests of the intake, of files with a few voxels."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

import files

SHAPE = (3, 4, 5)


def nifti(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), axes="LPS") -> Path:
    """Write an array (Z, Y, X), or (C, Z, Y, X), as NIfTI placed by its sform alone; see `files.affine_along`."""
    return files.nifti(path, array, files.affine_along(axes, spacing, origin), qform=0, sform=2)


def unplaced(path: Path) -> Path:
    """Set both form codes of a NIfTI file to 0, in place: it does not say any more where its voxels lie."""
    image = nibabel.load(path)
    fresh = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    fresh.header["qform_code"] = fresh.header["sform_code"] = 0
    content = fresh.to_bytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def image(seed: int, shape=SHAPE) -> np.ndarray:
    """An image that no other seed has, float32."""
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label(*values: int, shape=SHAPE) -> np.ndarray:
    """A label map whose first voxels hold the values, uint8; the rest is background."""
    array = np.zeros(shape, dtype=np.uint8)
    array.flat[: len(values)] = values
    return array


def picture(path: Path, array: np.ndarray) -> Path:
    """Write an array (Y, X) or (Y, X, 3) of uint8 as the picture its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def text(path: Path, content: object) -> Path:
    """Write text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def nnunet(root: Path, ids=("a", "b"), channels=("MRI",), labels=None, **more) -> Path:
    """Write a sound dataset in nnU-Net's layout; every case holds labels 1 and 2."""
    for number, case_id in enumerate(ids):
        for channel in range(len(channels)):
            nifti(root / f"imagesTr/{case_id}_{channel:04d}.nii.gz", image(100 * number + channel))
        nifti(root / f"labelsTr/{case_id}.nii.gz", label(1, 2))
    names = {str(number): name for number, name in enumerate(channels)}
    labels = {"background": 0, "one": 1, "two": 2} if labels is None else labels
    text(root / "dataset.json", {"channel_names": names, "labels": labels, "file_ending": ".nii.gz", **more})
    return root


def brats(root: Path, pattern: str, ids=("001", "002", "003")) -> Path:
    """Write cases of three channels and a label, one file each, named by the pattern of `id` and `name`."""
    for case_id in ids:
        for seed, channel in enumerate(("t1", "flair", "t1ce")):
            nifti(root / pattern.format(id=case_id, name=channel), image(seed + 10 * int(case_id)))
        nifti(root / pattern.format(id=case_id, name="seg"), label(1, 2, 4))
    return root
