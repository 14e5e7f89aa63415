"""The volumes of one case, small enough to be part of a page: cropped, shrunk, uint8, as compressed NIfTI in base64."""

import base64
import gzip
import math
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.geometry import Vector3
from autoseg.report.stills import CaseArrays, around, grey_levels

MOST_VOXELS = 1_500_000
TRIES = 6  # of shrinking
SHRUNK = 0.6  # of the voxels before, where they are too many bytes
RIGHT, MISSED, EXTRA, CONFUSED = 1, 2, 3, 4  # values of the map of errors


@dataclass(frozen=True)
class Volumes:
    """What the viewer shows of a case: base64 of NIfTI files of equal grid."""

    image: str
    reference: str
    segmentation: str
    errors: str
    spacing: Vector3  # mm, after shrinking
    at: Vector3  # of the largest error: shares of the extent to the right, to the front and upwards

    @property
    def nbytes(self) -> int:
        return len(self.image) + len(self.reference) + len(self.segmentation) + len(self.errors)


def volumes_of(case: CaseArrays, most_bytes: int) -> Volumes | None:
    """Crop a case to its labels and shrink it until it fits; None where it cannot.

    Args:
        most_bytes: of all four volumes, in base64.
    """
    box = around(case)
    voxels = MOST_VOXELS
    for _ in range(TRIES):
        found = _shrunk(case, box, voxels)
        if found.nbytes <= most_bytes:
            return found
        voxels = int(SHRUNK * voxels * min(1.0, most_bytes / found.nbytes)) + 1
    return None


def errors_of(reference: np.ndarray, segmentation: np.ndarray) -> np.ndarray:
    """Map of right, missed, extra and confused voxels, uint8; 0 where both are background."""
    found = np.zeros(reference.shape, np.uint8)
    there, given = reference > 0, segmentation > 0
    found[there & given] = CONFUSED
    found[there & (reference == segmentation)] = RIGHT
    found[there & ~given] = MISSED
    found[~there & given] = EXTRA
    return found


def factors_for(shape: tuple[int, ...], spacing: Vector3, voxels: int) -> tuple[int, int, int]:
    """By how much to shrink each axis: the finest first, until no more than so many voxels are left."""
    factors = [1, 1, 1]
    while math.prod(-(-extent // factor) for extent, factor in zip(shape, factors, strict=True)) > voxels:
        steps = [step * factor if extent > factor else math.inf
                 for step, factor, extent in zip(spacing, factors, shape, strict=True)]  # fmt: skip
        factors[int(np.argmin(steps))] += 1
    return (factors[0], factors[1], factors[2])


def _shrunk(case: CaseArrays, box: tuple[slice, slice, slice], voxels: int) -> Volumes:
    image = grey_levels(case.image[box])
    factors = factors_for(image.shape, case.spacing, voxels)
    z, y, x = (step * factor for step, factor in zip(case.spacing, factors, strict=True))
    centre = tuple(slice(factor // 2 if extent > factor // 2 else 0, None, factor)
                   for factor, extent in zip(factors, image.shape, strict=True))  # fmt: skip
    classes = [array[box][centre] for array in (case.reference, case.segmentation)]
    kind = np.uint8 if max(int(one.max(initial=0)) for one in classes) < 256 else np.uint16
    small = _mean(image, factors)[tuple(slice(0, extent) for extent in classes[0].shape)]
    spacing = (z, y, x)
    at = [(index + 0.5 - axis.start) / (axis.stop - axis.start) for index, axis in zip(case.at, box, strict=True)]
    reference, segmentation = (one.astype(kind) for one in classes)
    return Volumes(
        _nifti(small, spacing),
        _nifti(reference, spacing),
        _nifti(segmentation, spacing),
        _nifti(errors_of(*classes), spacing),
        spacing,
        (1 - at[2], 1 - at[1], at[0]),
    )


def _mean(image: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Means of blocks of an image (Z, Y, X), uint8; those at the end are filled with their edge."""
    if factors == (1, 1, 1):
        return image
    missing = [(0, -extent % factor) for extent, factor in zip(image.shape, factors, strict=True)]
    padded = np.pad(image, missing, mode="edge")
    blocks = [edge for extent, factor in zip(padded.shape, factors, strict=True) for edge in (extent // factor, factor)]
    return padded.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32).round().astype(np.uint8)


def _nifti(array: np.ndarray, spacing: Vector3) -> str:
    """An array (Z, Y, X) that grows towards S, P, L as base64 of a compressed NIfTI file."""
    import nibabel

    z, y, x = spacing
    placed = nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0]))
    return base64.b64encode(gzip.compress(placed.to_bytes(), 9, mtime=0)).decode()
