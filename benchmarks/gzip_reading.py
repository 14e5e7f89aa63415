"""Seconds to read a packed NIfTI file: autoseg's own stream, and one on Python's `gzip.open`, by turns.

    python benchmarks/gzip_reading.py [--turns 9]

The file is a synthetic CT of 80 MB, 59 MB packed, in a temporary folder.
"""

import argparse
import gzip
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from autoseg.errors import DataError
from autoseg.imaging.formats import nifti
from autoseg.imaging.formats.signatures import COPY_AGAIN

CHUNK = 1 << 20


class LibraryStream:
    """What `nifti._GzipStream` does, by the library: it refuses a file with other bytes after its end."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, gzip.open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        self.position = 0
        self.largest_content = path.stat().st_size * 1032

    def __enter__(self) -> "LibraryStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def readinto(self, target: memoryview) -> int:
        filled = 0
        try:
            while filled < len(target) and (got := self._file.readinto(target[filled : filled + CHUNK])):
                filled += got
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self._path} is damaged ({error})", remedy=COPY_AGAIN) from error
        self.position += filled
        return filled

    def skip(self, count: int) -> None:
        self.readinto(memoryview(bytearray(count)))

    def finish(self) -> None:
        while self._file.read(CHUNK):
            pass


def synthetic_ct(path: Path) -> None:
    """Smooth tissue and noise, int16."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal((160, 500, 500)).astype(np.float32), 4)
    voxels = smooth / smooth.std() * 300 + rng.normal(0, 6, smooth.shape)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), path)
    print(f"{voxels.size * 2 / 1e6:.1f} MB, {path.stat().st_size / 1e6:.1f} MB packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    streams = {"own": nifti._GzipStream, "gzip.open": LibraryStream}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        synthetic_ct(path)
        for _ in range(turns):
            for name, stream in streams.items():
                nifti._GzipStream = stream  # type: ignore[assignment,misc]
                began, processor = time.perf_counter(), time.process_time()
                nifti.load(path)
                seconds[name].append((time.perf_counter() - began, time.process_time() - processor))
    for name, measured in seconds.items():
        wall, processor_time = zip(*measured, strict=True)
        print(
            f"{name:10} wall: median {statistics.median(wall):.3f} s, least {min(wall):.3f} s; "
            f"processor: median {statistics.median(processor_time):.3f} s, least {min(processor_time):.3f} s"
        )


if __name__ == "__main__":
    main()
