"""Touching blobs in three dimensions with known answers: a dataset for instances, made of formulas, byte-identical.

Each volume holds ellipsoids of different sizes and brightness on a grid whose slices lie far apart. Most of them touch
another one: they overlap by at most DEEPEST mm, so that no threshold separates them, but their shapes do. The others
keep a gap. Where two overlap, the boundary is the surface of equal distance to both. Images are blurred, more across
slices than within them, lie on a background that varies slowly, and are noisy.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.demo.phantom import Ellipsoid, write_nifti
from autoseg.imaging.geometry import Geometry, Vector3, Volume

SEED = 17
SHAPE: tuple[int, int, int] = (24, 64, 64)  # voxels (Z, Y, X)
SPACING: Vector3 = (2.5, 1.0, 1.0)  # mm
OBJECTS = (18, 26)  # how many a volume holds, at least and at most
RADII = (4.5, 8.5)  # mm, of each axis of an ellipsoid
TOUCHING = 0.6  # share of the objects that are placed against another
SHALLOWEST, DEEPEST = 0.4, 2.0  # mm by which objects that touch overlap
GAP = 4.0  # mm between objects that do not touch: more than between any two voxels with a common corner
BACKGROUND, BRIGHTNESS = 100.0, (60.0, 140.0)  # grey values; of the objects, above the background
WAVE = 15.0  # amplitude of the background's variation
BLUR_MM: Vector3 = (2.0, 1.0, 1.0)  # standard deviation along (Z, Y, X)
NOISE = 12.0  # standard deviation
SMALLEST = 30  # voxels: what the border of the volume cuts to less is left out
TRIES = 400  # random places, after which a volume is full


@dataclass(frozen=True)
class Blobs:
    """A volume of blobs and what is known about it."""

    image: Volume  # (1, Z, Y, X) float32, whole numbers
    labels: Volume  # (Z, Y, X) uint16: 0 background, 1..n objects
    bodies: tuple[Ellipsoid, ...]  # object k is bodies[k - 1]; mm from the grid's centre along (x, y, z)
    touching: tuple[tuple[int, int], ...]  # objects that overlap, the smaller number first


def make_blobs(number: int, seed: int = SEED) -> Blobs:
    """Draw volume `number`: the same for the same arguments, whatever other volumes there are."""
    rng = np.random.default_rng([seed, number])
    geometry = Geometry(shape=SHAPE, spacing=SPACING)
    points = _points(geometry)
    bodies, distances, touching = _place(rng, points)
    depth = np.stack(distances)
    nearest = np.argmin(depth, axis=0)
    labels = np.where(depth.min(axis=0) < 0, nearest + 1, 0).astype(np.uint16)
    brightness = rng.uniform(*BRIGHTNESS, len(bodies))
    occupied = np.clip(0.5 - depth, 0, 1)  # of a voxel, to first order
    image = BACKGROUND + (occupied * brightness[:, None, None, None]).max(axis=0)
    vector, phase = rng.normal(size=3), rng.uniform(0, 2 * np.pi)
    vector *= 2 * np.pi / (90.0 * np.linalg.norm(vector))  # a wavelength of 90 mm
    image = image + WAVE * np.sin(np.tensordot(vector, points, 1) + phase)
    blurred = ndimage.gaussian_filter(image, [mm / s for mm, s in zip(BLUR_MM, SPACING, strict=True)])
    noisy = np.rint(blurred + rng.normal(0, NOISE, image.shape)).clip(0, 1000).astype(np.float32)
    return Blobs(Volume(noisy[None], geometry), Volume(labels, geometry), tuple(bodies), tuple(touching))


def write_blobs(folder: Path, *, cases: int = 20, seed: int = SEED) -> Path:
    """Write volumes as `images/blobs_000.nii.gz` and `labels/blobs_000.nii.gz`, one value per object in the labels.

    Args:
        folder: created if it does not exist; files of the same names are replaced.
        cases: number of volumes.
        seed: another seed is another dataset.

    Returns:
        The folder.

    Raises:
        StorageError: the disk refuses.
    """
    for number in range(cases):
        made = make_blobs(number, seed)
        write_nifti(folder / "images" / f"blobs_{number:03d}.nii.gz", made.image, "LPS")
        write_nifti(folder / "labels" / f"blobs_{number:03d}.nii.gz", made.labels, "LPS")
    return folder


def _place(
    rng: np.random.Generator, points: np.ndarray
) -> tuple[list[Ellipsoid], list[np.ndarray], list[tuple[int, int]]]:
    """Bodies, their signed distances (Z, Y, X) in mm, and which of them touch."""
    wanted = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    half = np.abs(points).max(axis=(1, 2, 3))
    bodies: list[Ellipsoid] = []
    distances: list[np.ndarray] = []
    touching: list[tuple[int, int]] = []
    for _ in range(TRIES):
        if len(bodies) == wanted:
            break
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        radii = rng.uniform(*RADII, 3)
        against = bodies and rng.random() < TOUCHING
        if against:
            other = bodies[int(rng.integers(len(bodies)))]
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            touched = _reach(other, direction) + _reach(Ellipsoid(other.centre, radii, axes), direction)
            centre = other.centre + direction * (touched - rng.uniform(SHALLOWEST, DEEPEST))
        else:
            centre = rng.uniform(-half + 3, half - 3)
        body = Ellipsoid(centre, radii, axes)
        if (np.abs(centre) > half - 3).any() or not all(_allowed(_gap_between_centres(body, b)) for b in bodies):
            continue
        distance = body.distance(points)
        gaps = [float((distance + d).min()) for d in distances]
        if (distance < 0).sum() < SMALLEST or not all(_allowed(gap) for gap in gaps):
            continue
        bodies.append(body)
        distances.append(distance)
        touching += [(i + 1, len(bodies)) for i, gap in enumerate(gaps) if gap < 0]
    return bodies, distances, touching


def _allowed(gap: float) -> bool:
    """Whether two bodies overlap as those that touch do, or keep apart."""
    return -1.5 * DEEPEST <= gap <= -SHALLOWEST or gap >= GAP


def _gap_between_centres(first: Ellipsoid, second: Ellipsoid) -> float:
    """Between two surfaces along the line of their centres, mm: no less than the true gap, and quickly computed."""
    line = second.centre - first.centre
    length = float(np.linalg.norm(line))
    return length - _reach(first, line / length) - _reach(second, line / length)


def _reach(body: Ellipsoid, direction: np.ndarray) -> float:
    """From the centre of an ellipsoid to its surface along a unit vector, mm."""
    return float(1 / np.linalg.norm(body.axes @ direction / body.radii))


def _points(geometry: Geometry) -> np.ndarray:
    """World (x, y, z) of the voxels, mm from the grid's centre, (3, Z, Y, X) float32."""
    along = [
        ((np.arange(n) + 0.5 - n / 2) * s).astype(np.float32)
        for n, s in zip(geometry.shape, geometry.spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*along, indexing="ij")
    return np.stack([x, y, z])
