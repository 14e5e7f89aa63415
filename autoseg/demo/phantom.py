"""A synthetic dataset made of formulas: CT-like volumes with labels, in nnU-Net's layout, byte-identical.

A *patient* is an anatomy: a body with skin, fat and muscle, a spine, a liver, two kidneys, a spleen that has no label,
and in most patients a lesion in the liver. A *scan* looks at a patient on a grid of its own, after a small rigid
motion, with new noise; some patients are scanned twice. Liver, kidneys, spleen and muscle look nearly alike, so that a
network has to learn shape and position. Points are world (x, y, z) in mm, to the Left, Posterior and Superior.
"""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from autoseg.imaging.geometry import Geometry, Vector3, Volume
from autoseg.workspace import write_atomically, write_text

SEED = 20
LABELS = {"background": 0, "liver": 1, "kidney": 2, "lesion": 3}
ORIENTATIONS = ("LPS", "RAS", "PIR")  # nibabel's letters; the last is stored slice by slice from left to right
HELD_OUT = 101  # number of the first patient of imagesTs, above all others
HOUNSFIELD = {
    "air": -1000.0, "skin": 10.0, "fat": -100.0, "muscle": 52.0, "bowel": 30.0, "cortical bone": 420.0,
    "spongy bone": 190.0, "spinal canal": 30.0, "liver": 64.0, "kidney": 50.0, "spleen": 56.0,
}  # fmt: skip
SOFT = ("muscle", "bowel", "liver", "kidney", "spleen")  # tissues whose values differ from patient to patient
NOISE = 10.0  # standard deviation, HU
BIAS = 0.012  # relative amplitude of each wave of the bias field
FIELD_OF_VIEW: Vector3 = (84.0, 76.0, 90.0)  # mm, (Z, Y, X), as far as 24 to 44 voxels reach
IN_PLANE, BETWEEN_SLICES = (2.2, 3.0), (2.4, 3.6)  # mm: coarse, so that a step is cheap on any CPU
CAPSULE = 1.0  # mm of fat around an organ


@dataclass(frozen=True)
class Ellipsoid:
    """A body in space: centre and radii in mm; the rows of `axes` are its own three unit vectors."""

    centre: np.ndarray
    radii: np.ndarray
    axes: np.ndarray

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance in mm to first order, negative inside; points (3, ...) -> (...)."""
        local = _turn(self.axes / self.radii[:, None], points - _column(self.centre, points.ndim))
        square = local * local
        radius = np.maximum(np.sqrt(square[0] + square[1] + square[2]), 1e-6)
        a, b, c = (self.radii**-2).tolist()
        slope = np.sqrt(a * square[0] + b * square[1] + c * square[2])
        return radius * (radius - 1) / np.maximum(slope, 1e-9)


@dataclass(frozen=True)
class Wave:
    """A plane wave sin(vector . point + phase); sums of a few make every smooth variation here."""

    vector: np.ndarray  # radians per mm
    phase: float
    displacement: np.ndarray  # mm along (x, y, z), for waves that deform

    def on_grid(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values at all points of a grid, (Z, Y, X) float32."""
        across = (self.vector[2] * z + self.phase)[:, None] + self.vector[1] * y
        along = self.vector[0] * x
        across, along = across.astype(np.float32), along.astype(np.float32)
        return np.sin(across)[..., None] * np.cos(along) + np.cos(across)[..., None] * np.sin(along)

    def moved(self, rotation: np.ndarray, shift: np.ndarray) -> "Wave":
        """The same wave as a function of p, where the original is one of q = rotation p + shift."""
        return replace(self, vector=rotation.T @ self.vector, phase=self.phase + float(self.vector @ shift))


Organ = tuple[str, int, tuple[Ellipsoid, ...], Ellipsoid | None]  # tissue, label, parts, hollow


@dataclass(frozen=True)
class Anatomy:
    """What one patient looks like, in coordinates of their own."""

    body: Ellipsoid
    fat: float  # mm under the skin
    vertebra: Ellipsoid
    canal: Ellipsoid
    organs: tuple[Organ, ...]  # the later ones lie over the earlier ones
    lesion: Ellipsoid | None
    hounsfield: dict[str, float]
    deformation: tuple[Wave, ...]
    bowel: tuple[Wave, ...]  # where their sum is large there is fat between the loops


def write_dataset(folder: Path, *, cases: int = 20, seed: int = SEED) -> Path:
    """Write the dataset of the demo in nnU-Net's layout, with `patients.csv`; byte-identical for the same arguments.

    Every third patient is scanned twice, every fourth has no lesion. imagesTs and labelsTs hold one scan each of four
    more patients. Files of the same names are replaced.

    Args:
        folder: where dataset.json, imagesTr, labelsTr, imagesTs and labelsTs go; created if it does not exist.
        cases: number of training cases.
        seed: another seed is another dataset.

    Returns:
        The folder.

    Raises:
        StorageError: the disk refuses.
    """
    scans = [(patient, scan) for patient in range(cases) for scan in range(2 if patient % 3 == 1 else 1)][:cases]
    rows = []
    for number, (patient, scan) in enumerate([*scans, *((HELD_OUT + i, 0) for i in range(4))]):
        held_out = patient >= HELD_OUT
        case = f"phantom_{patient if held_out else number:03d}"
        rows.append((case, f"patient_{patient:03d}"))
        image, labels = make_scan(make_anatomy(patient, seed), patient, scan, seed)
        code = ORIENTATIONS[(patient if held_out else number) % len(ORIENTATIONS)]
        subset = "Ts" if held_out else "Tr"
        write_nifti(folder / f"images{subset}" / f"{case}_0000.nii.gz", image, code)
        write_nifti(folder / f"labels{subset}" / f"{case}.nii.gz", labels, code)
    description: dict[str, Any] = {"name": "Phantom", "channel_names": {"0": "CT"}, "labels": LABELS}
    description |= {"numTraining": cases, "file_ending": ".nii.gz"}
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("case", "patient"), *rows])
    write_text(folder / "patients.csv", table.getvalue())
    return folder


def make_anatomy(patient: int, seed: int = SEED) -> Anatomy:
    """Draw a patient. Every fourth has no lesion; in the others it is brighter than the liver."""
    rng = np.random.default_rng([seed, patient])
    fat = rng.uniform(2.5, 5.5)
    half_width, half_depth = 38 + rng.uniform(-3, 3), 31 + rng.uniform(-2.5, 2.5)
    body = Ellipsoid(np.zeros(3), np.array([half_width, half_depth, 95.0]), _rotation(rng, 3))
    back = half_depth - fat - 14  # y of the vertebrae's centre
    right_lobe = _ellipsoid(rng, (-11, -2, 8), (15, 13.5, 18), jitter=2, degrees=18)
    left_lobe = _ellipsoid(rng, (5, -8, 14), (14, 8, 9.5), jitter=2, degrees=18)
    spleen = _ellipsoid(rng, (18, 0, 10), (6, 8.5, 10), jitter=2, degrees=20)
    organs: list[Organ] = [("spleen", 0, (spleen,), None), ("liver", LABELS["liver"], (right_lobe, left_lobe), None)]
    for side in (-1, 1):
        kidney = _ellipsoid(rng, (side * 16, back - 3, -9 + 2 * side), (8, 7, 13), jitter=1.5, degrees=12)
        hilum = kidney.centre + kidney.axes.T @ np.array([-side * 8, -1.5, 0])
        hollow = Ellipsoid(hilum, np.array([4.0, 4.0, 4.5]), np.eye(3))
        organs.append(("kidney", LABELS["kidney"], (kidney,), hollow))
    hounsfield = HOUNSFIELD | {name: HOUNSFIELD[name] + rng.uniform(-4, 4) for name in SOFT}
    lesion = None
    if patient % 4 != 1:
        direction = rng.normal(size=3)
        inside = right_lobe.radii * direction / np.linalg.norm(direction) * rng.uniform(0.1, 0.5)
        lesion = Ellipsoid(
            right_lobe.centre + right_lobe.axes.T @ inside, rng.uniform(5.5, 9.0, 3), _rotation(rng, 180)
        )
        hounsfield["lesion"] = hounsfield["liver"] + rng.uniform(60, 80)
    return Anatomy(
        body=body,
        fat=fat,
        vertebra=Ellipsoid(np.array([0, back, 0]), np.array([7.0, 6.0, 400.0]), np.eye(3)),
        canal=Ellipsoid(np.array([0, back + 8, 0]), np.array([3.5, 3.0, 400.0]), np.eye(3)),
        organs=tuple(organs),
        lesion=lesion,
        hounsfield=hounsfield,
        deformation=tuple(_wave(rng, (32, 70)) for _ in range(5)),
        bowel=tuple(_wave(rng, (12, 26)) for _ in range(4)),
    )


def make_scan(anatomy: Anatomy, patient: int, scan: int, seed: int = SEED) -> tuple[Volume, Volume]:
    """Scan a patient: image (1, Z, Y, X) float32 in whole Hounsfield units, and labels (Z, Y, X) uint8, canonical."""
    rng = np.random.default_rng([seed, patient, scan + 1])
    geometry = _draw_geometry(rng)
    image, labels = render(anatomy, geometry, _rotation(rng, 4), rng.uniform(-2.5, 2.5, 3))
    z, y, x = _coordinates(geometry, 1)
    for wave in [_wave(rng, (80, 160)) for _ in range(3)]:
        image = (image + 1000) * (1 + BIAS * wave.on_grid(z, y, x)) - 1000
    image = np.rint(image + rng.normal(0, NOISE, image.shape)).clip(-1024, 3071).astype(np.float32)
    return Volume(image[None], geometry), Volume(labels, geometry)


def render(
    anatomy: Anatomy, geometry: Geometry, rotation: np.ndarray | None = None, shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Voxel values without noise: float32 Hounsfield units and uint8 labels, both (Z, Y, X).

    Each voxel is the mean of 2 x 2 x 2 samples, hence partial volume at every border, and has the label of most of them
    (the lower one where two are equal). `rotation` and `shift` (mm) move the grid in the patient, about the grid's
    centre.
    """
    rotation = np.eye(3) if rotation is None else rotation
    shift = np.zeros(3) if shift is None else shift
    deformation = [wave.moved(rotation, shift) for wave in anatomy.deformation]
    bowel = [wave.moved(rotation, shift) for wave in anatomy.bowel]
    heights, y, x = _coordinates(geometry, 2)
    slabs = []
    for z in np.split(heights, range(8, len(heights), 8)):  # a slab's arrays stay in the cache
        points = np.stack(np.broadcast_arrays(x, y[:, None], z[:, None, None]))
        points = _turn(rotation, points) + _column(shift)
        for wave in deformation:
            points += _column(wave.displacement) * wave.on_grid(z, y, x)
        slabs.append(_pool(*_paint(anatomy, points, reduce(np.add, (wave.on_grid(z, y, x) for wave in bowel)))))
    images, labels = zip(*slabs, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def write_nifti(path: Path, volume: Volume, code: str) -> None:
    """Write a canonical volume of one channel as int16 NIfTI, or a label map, stored along the axes of `code`.

    A label map is stored as uint16 if it comes so, and as uint8 otherwise. `code` is three letters in nibabel's sense:
    the directions in which the first, second and third index grow.
    """
    array = volume.array[0] if volume.array.ndim == 4 else volume.array
    affine = np.diag([*volume.geometry.spacing[::-1], 1.0])
    affine[:3, 3] = volume.geometry.origin
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # NIfTI's world is to the Right, Anterior, Superior
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(code)))
    labels = array.dtype if array.dtype == np.uint16 else np.uint8
    stored = apply_orientation(array.T, turn).astype(np.int16 if volume.array.ndim == 4 else labels)
    image = nibabel.Nifti1Image(stored, affine @ inv_ornt_aff(turn, array.T.shape))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    data = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
    write_atomically(path, lambda file: file.write(data))


def _paint(anatomy: Anatomy, points: np.ndarray, loops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tissue values and labels of points (3, Z, Y, X), outer structures first, each over the ones before."""
    tissue = anatomy.hounsfield
    depth = -anatomy.body.distance(points)
    image = np.full(depth.shape, tissue["air"], np.float32)
    labels = np.zeros(depth.shape, np.uint8)
    wall = 2 + anatomy.fat
    free = depth > wall + 4  # where organs may lie: inside the muscles, outside the spine
    np.copyto(image, tissue["skin"], where=depth > 0)
    np.copyto(image, tissue["fat"], where=depth > 2)
    np.copyto(image, tissue["muscle"], where=depth > wall)
    np.copyto(image, np.where(loops > 1.0, tissue["fat"], tissue["bowel"]).astype(np.float32), where=free)
    around = _box([anatomy.vertebra, anatomy.canal], points)
    spine, canal = (body.distance(points[:, *around]) for body in (anatomy.vertebra, anatomy.canal))
    np.copyto(image[around], tissue["cortical bone"], where=np.minimum(spine, canal - 2) < 0)
    np.copyto(image[around], tissue["spongy bone"], where=spine < -1.5)
    np.copyto(image[around], tissue["spinal canal"], where=canal < 0)
    free[around] &= np.minimum(spine, canal - 2) > 1
    for name, label, parts, hollow in anatomy.organs:
        around = _box(parts, points)
        distance = reduce(_smooth_minimum, (part.distance(points[:, *around]) for part in parts))
        if hollow is not None:
            distance = np.maximum(distance, -hollow.distance(points[:, *around]))
        distance = np.where(free[around], distance, np.inf)
        np.copyto(image[around], tissue["fat"], where=distance < CAPSULE)
        np.copyto(image[around], tissue[name], where=distance < 0)
        np.copyto(labels[around], 0, where=distance < CAPSULE)
        np.copyto(labels[around], label, where=distance < 0)
    if anatomy.lesion is not None:
        around = _box([anatomy.lesion], points)
        inside = (anatomy.lesion.distance(points[:, *around]) < 0) & (labels[around] == LABELS["liver"])
        np.copyto(image[around], tissue["lesion"], where=inside)
        np.copyto(labels[around], LABELS["lesion"], where=inside)
    return image, labels


def _box(bodies: Sequence[Ellipsoid], points: np.ndarray, margin: float = 8.0) -> tuple[slice, ...]:
    """The part of the grid where points (3, Z, Y, X) can lie within `margin` mm of a body: most are small."""
    step = 4
    coarse = points[:, ::step, ::step, ::step]
    near = np.zeros(coarse.shape[1:], bool)
    for body in bodies:
        reach = np.sqrt(((body.axes * body.radii[:, None]) ** 2).sum(0)) + margin
        near |= (np.abs(coarse - body.centre.reshape(3, 1, 1, 1)) < reach.reshape(3, 1, 1, 1)).all(0)
    found = [np.flatnonzero(near.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(max(0, (f[0] - 1) * step), (f[-1] + 1) * step + 1) if f.size else slice(0, 0) for f in found)


def _pool(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean value and most frequent label of each block of 2 x 2 x 2 samples."""
    corners = [
        (slice(i, None, 2), slice(j, None, 2), slice(k, None, 2)) for i in (0, 1) for j in (0, 1) for k in (0, 1)
    ]
    mean = reduce(np.add, (image[corner] for corner in corners)) / 8
    votes = [
        reduce(np.add, ((labels[corner] == label).astype(np.uint8) for corner in corners)) for label in LABELS.values()
    ]
    return mean, np.argmax(votes, axis=0).astype(np.uint8)


def _turn(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Multiply points (3, ...) by a 3 x 3 matrix; without BLAS, whose last bits depend on the number of threads."""
    x, y, z = points
    return np.stack([a * x + b * y + c * z for a, b, c in matrix.tolist()])


def _column(vector: np.ndarray, ndim: int = 4) -> np.ndarray:
    """A vector (3,) as float32 that broadcasts against points (3, ...)."""
    return vector.astype(np.float32).reshape(3, *[1] * (ndim - 1))


def _smooth_minimum(a: np.ndarray, b: np.ndarray, width: float = 4.0) -> np.ndarray:
    """Union of two bodies whose seam is rounded over `width` mm."""
    overlap = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - overlap * overlap * (width / 4)


def _draw_geometry(rng: np.random.Generator) -> Geometry:
    in_plane = round(rng.uniform(*IN_PLANE), 2)
    spacing = (round(rng.uniform(*BETWEEN_SLICES), 2), in_plane, in_plane)
    lengths = [int(np.clip(round(f / s), 24, 44)) for f, s in zip(FIELD_OF_VIEW, spacing, strict=True)]
    x, y, z = np.round(rng.uniform(-60, 60, 3), 1).tolist()
    return Geometry(shape=(lengths[0], lengths[1], lengths[2]), spacing=spacing, origin=(x, y, z))


def _coordinates(geometry: Geometry, samples: int) -> list[np.ndarray]:
    """Along Z, Y and X: mm from the grid's centre, `samples` evenly spaced per voxel; float32."""
    axes = zip(geometry.shape, geometry.spacing, strict=True)
    return [((np.arange(n * samples) + 0.5) / samples - n / 2).astype(np.float32) * np.float32(s) for n, s in axes]


def _rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """A rotation about a random axis by at most the given angle (Rodrigues' formula)."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _ellipsoid(
    rng: np.random.Generator, centre: Vector3, radii: Vector3, *, jitter: float, degrees: float
) -> Ellipsoid:
    middle = np.array(centre) + rng.uniform(-jitter, jitter, 3)
    return Ellipsoid(middle, np.array(radii) * rng.uniform(0.85, 1.15, 3), _rotation(rng, degrees))


def _wave(rng: np.random.Generator, wavelengths: tuple[float, float]) -> Wave:
    direction = rng.normal(size=3)
    vector = direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(*wavelengths)
    return Wave(vector, rng.uniform(0, 2 * np.pi), rng.uniform(-1.6, 1.6, 3))
