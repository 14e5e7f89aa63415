"""Maps of values from 0 to 1 on the grid of an image, such as probabilities: files that are filled in any order.

A map is a file on the disk that is mapped into memory, so that no volume of it is held: parts are written as they are
computed, in whatever order of axes. Volumes become NIfTI, which every viewer opens, with 16-bit integers that the
header scales by 2**-15: programs show 0 to 1. NIfTI has no 16-bit floating-point numbers; these integers take the same
space, hold 0, 0.5 and 1 exactly, and differ by at most 1.6e-5 from what was computed (float16: 2.4e-4). The file is not
compressed, because compressed data can be neither filled in any order nor mapped into memory. Parts that hold nothing
but 0 need not be written: where the file system allows it, they take no space.

Pictures without a third axis become TIFF with 32-bit floating-point numbers.
"""

from pathlib import Path

import numpy as np

from autoseg.imaging.formats import nifti
from autoseg.imaging.formats.readers import READERS, ending_of
from autoseg.imaging.formats.tiff_spacing import written_size
from autoseg.imaging.geometry import Geometry

LEVELS = 2**15  # value of the integer that means 1


class UnitMap:
    """A map that is being written; 0 everywhere at first.

    Attributes:
        path: the file.
        stored: (Z, Y, X) in stored order, mapped into memory: what `encode` returns is assigned to parts of it.
    """

    stored: np.ndarray
    _mapped: np.memmap | None

    def __init__(self, stem: Path, geometry: Geometry, like: Path) -> None:
        """Create the file.

        Args:
            stem: its path without extension.
            geometry: of the image.
            like: the image: the fields of its grid are copied bit for bit where it is NIfTI.
        """
        family = READERS[ending_of(like) or ".nii"].family
        if geometry.flat and family == "natural":
            import tifffile

            self.path = stem.with_name(stem.name + ".tif")
            self._mapped = tifffile.memmap(
                self.path, shape=geometry.shape[1:], dtype=np.float32, photometric="minisblack", software=False,
                metadata=written_size(geometry),
            )  # fmt: skip
            self.stored = self._mapped[None]
            return
        self.path = stem.with_name(stem.name + ".nii")
        header = nifti.new_header(geometry, like if family == "nifti" else None, np.dtype(np.uint16))
        header["scl_slope"], header["scl_inter"] = 1 / LEVELS, 0
        header["cal_min"], header["cal_max"] = 0, 1  # what viewers show from black to white
        dtype = header.get_data_dtype()
        with open(self.path, "wb") as file:
            header.write_to(file)
            offset = file.tell()
            file.truncate(offset + dtype.itemsize * int(np.prod(geometry.shape, dtype=np.int64)))
        self._mapped = np.memmap(self.path, dtype=dtype, mode="r+", offset=offset, shape=geometry.shape)
        self.stored = self._mapped

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Values from 0 to 1 (float32) as the file stores them; those beyond become 0 and 1."""
        clipped = values.clip(0, 1)
        return clipped if self.stored.dtype.kind == "f" else np.rint(clipped * LEVELS).astype(self.stored.dtype)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Values (float32) of a part of `stored`."""
        return stored.astype(np.float32) if stored.dtype.kind == "f" else stored.astype(np.float32) / LEVELS

    def close(self) -> None:
        """Flush the file and release its memory. Nothing can be written afterwards."""
        if self._mapped is not None:
            self._mapped.flush()
        self._mapped, self.stored = None, np.empty((0, 0, 0), dtype=np.float32)
