"""An open image and its labels as NIfTI files for a viewer, all on one grid.

Whatever the format of the image was, the file is made of the voxels that were read and of where they lie, so that a
place in the viewer (mm, towards right, anterior and superior) names one voxel of the image, by the inverse of `affine`.
"""

import gzip
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoseg.imaging.formats.nifti import new_header
from autoseg.imaging.geometry import Axes3, Geometry

SAMPLES = 2**20  # of which the window of grey values is measured
WINDOW = (0.5, 99.5)  # percentiles
LEVEL = 1  # of compression: the files go to the same machine


def nifti_bytes(array: np.ndarray, geometry: Geometry, window: tuple[float, float] | None = None) -> bytes:
    """A compressed NIfTI file.

    Args:
        array: (Z, Y, X) in stored order, any real dtype; values keep theirs, in a narrow type where they are whole.
        window: grey values that are black and white; None: not stated.
    """
    values = narrowed(array)
    header = new_header(replace(geometry, flat=False, shape=_axes(array.shape)), None, values.dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    if window is not None:
        header["cal_min"], header["cal_max"] = window
    file = io.BytesIO()
    header.write_to(file)
    file.write(np.ascontiguousarray(values).tobytes())
    return gzip.compress(file.getvalue(), LEVEL, mtime=0)


def affine(geometry: Geometry) -> list[list[float]]:
    """(4, 4): voxel (x, y, z) of the file to mm towards right, anterior, superior, as the header states it."""
    header = new_header(replace(geometry, flat=False), None, np.dtype(np.uint8))
    return [[float(value) for value in row] for row in header.get_best_affine()]


def narrowed(array: np.ndarray) -> np.ndarray:
    """The same values as uint8, int16 or uint16 where they are whole and fit; otherwise as float32."""
    if array.dtype.kind == "f":
        whole = bool(np.isfinite(array).all()) and bool((array == np.rint(array)).all())
        if not whole:
            return array.astype(np.float32, copy=False)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    for kind in (np.uint8, np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.float32)


def window_of(array: np.ndarray) -> tuple[float, float]:
    """Grey values to show as black and white: percentiles of the image, apart by more than 0."""
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLES)]
    low, high = (float(value) for value in np.percentile(sample, WINDOW))
    if high <= low:
        low, high = float(flat.min()), float(flat.max())
    return (low, high) if high > low else (low, low + 1.0)


def steps_for(shape: Sequence[int], most: int) -> Axes3:
    """Every how manyeth voxel along each axis is shown, so that no axis has more than `most`."""
    z, y, x = (-(-size // most) for size in shape)
    return z, y, x


def thinned(array: np.ndarray, geometry: Geometry, steps: Axes3) -> tuple[np.ndarray, Geometry]:
    """Every so manyeth voxel (Z, Y, X), where it lies."""
    z, y, x = steps
    thin = array[::z, ::y, ::x]
    spacing = (geometry.spacing[0] * z, geometry.spacing[1] * y, geometry.spacing[2] * x)
    return thin, replace(geometry, shape=_axes(thin.shape), spacing=spacing)


def _axes(shape: Sequence[int]) -> Axes3:
    z, y, x = shape
    return int(z), int(y), int(x)
