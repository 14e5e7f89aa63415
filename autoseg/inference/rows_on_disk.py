"""A large prepared image in a temporary file: rows are read as tiles need them.

Beside the image as it was read, the one that the network sees would be held a second time while it is segmented.
"""

import tempfile

import numpy as np

LARGE = 2**27  # bytes, from which an image is put into a file


class RowsOnDisk:
    """An image (C, Z, Y, X) float32, read by rows along its second axis: `image[:, first:stop]`."""

    def __init__(self, image: np.ndarray) -> None:
        self.shape, self.dtype = image.shape, image.dtype
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 it lasts as long as this object
        for channel in image:
            self._file.write(np.ascontiguousarray(channel).data)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        channels, rows = index
        first, stop, step = rows.indices(self.shape[1])
        assert step == 1, "rows are read as they follow each other"
        row = int(np.prod(self.shape[2:])) * self.dtype.itemsize
        numbers = range(*channels.indices(self.shape[0]))
        found = np.empty((len(numbers), stop - first, *self.shape[2:]), dtype=self.dtype)
        for part, channel in zip(found, numbers, strict=True):
            self._file.seek((channel * self.shape[1] + first) * row)
            if self._file.readinto(part.reshape(-1).view(np.uint8)) != part.nbytes:
                raise OSError("a temporary file ended early: the disk is full, or the file was changed")
        return found


def kept(image: np.ndarray) -> np.ndarray | RowsOnDisk:
    """An image as it is, or from a temporary file where it is large and there is room for it."""
    if image.nbytes <= LARGE:
        return image
    try:
        return RowsOnDisk(image)
    except OSError:  # no room on the disk, or no place for temporary files
        return image
