"""Stored cases whose every voxel is known, and what batches cut from them are compared by."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.imaging.geometry import Axes3, Vector3
from autoseg.imaging.placement import Placement


def whole(shape: Axes3, spacing: Vector3 = (1.0, 1.0, 1.0)) -> Placement:
    """The placement of a case that is its whole image as it was: nothing was cropped or resampled."""
    z, y, x = shape
    return Placement(spacing, spacing, ((0, z), (0, y), (0, x)), (z, y, x), (z, y, x), (z, y, x))


def commit(store: CaseStore, case: str, image: np.ndarray, target: np.ndarray, labels: int, spacing=(1.0, 1.0, 1.0)):
    """Store an image (C, Z, Y, X) and its target, uncropped and unresampled; returns the entry."""
    return store.commit(case, image, target, CaseInfo(case, "k", whole(target.shape, spacing), labels))


def chequered_corner(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The label at a voxel: 1 and 2 by turns in one corner, background elsewhere."""
    return np.where((z > 8) & (y > 16) & (x > 12), 1 + (x + y) % 2, 0)


def store_of_coordinates(folder: Path, cases: Sequence[str]) -> CaseStore:
    """Cases of three channels that say where a voxel lies (z, y, x), and of labels that follow from them."""
    store = CaseStore(folder)
    for number, case in enumerate(cases):
        image = np.indices((12 + number, 20, 24 - number)).astype(np.float32)
        commit(store, case, image, chequered_corner(*image.astype(int)).astype(np.int16), 3, (2.0, 1.0, 1.0))
    return store


def is_cut_from_its_case(image: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether a patch is a piece of a case of `store_of_coordinates` as it is: not turned, mirrored or changed."""
    z, y, x = image.numpy()
    steps = np.indices(image.shape[1:])
    same = all((c == c.flat[0] + s).all() for c, s in zip((z, y, x), steps, strict=True))
    return same and np.array_equal(target, chequered_corner(z, y, x))


def faultless_previous_stage(folder: Path, store: CaseStore, cases: Sequence[str]) -> Path:
    """A previous stage that made no mistake: its segmentations are the targets."""
    for case in cases:
        np.save(folder / f"{case}.npy", store.open(case).target)
    return folder


def one_hot(target: torch.Tensor, labels: int) -> torch.Tensor:
    """(B, labels, *patch): 1 where the target is that label; background has no channel."""
    return torch.stack([target == label for label in range(1, labels + 1)], dim=1).float()


def digest(batches: Iterable[dict]) -> str:
    """sha256 of images, targets and names, in their order."""
    total = hashlib.sha256()
    for batch in batches:
        total.update(batch["image"].numpy().tobytes() + batch["target"].numpy().tobytes())
        total.update(" ".join(batch["cases"]).encode())
    return total.hexdigest()[:16]
