"""The label files that `predict` writes: where each lies, in which format, and with what in it.

The format is that of the image, or the one that was asked for: the extension of a reader that writes, or one of the
kinds of DICOM file, which refer to the series that was segmented.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.datasets.dataset import Case
from autoseg.errors import UsageError
from autoseg.imaging.formats import dicom_output
from autoseg.imaging.formats.readers import READERS, ending_of, is_dicom, write_labels
from autoseg.imaging.formats.segments import segments_of
from autoseg.imaging.labels import LabelSet

DICOM = tuple(dicom_output.WRITERS)
KNOWN = (*(ending[1:] for ending, reader in READERS.items() if reader.write), *DICOM)  # formats to ask for


@dataclass(frozen=True)
class Output:
    """Where segmentations are written, and in which format.

    Raises:
        UsageError: a format that cannot be written.
    """

    folder: Path
    format: str | None = None  # one of `KNOWN`, with names and colours where it has a place for them; None: the image's

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in KNOWN:
            raise UsageError(f"--format {self.format!r} cannot be written", remedy=f"choose one of {', '.join(KNOWN)}")

    def path(self, case: Case) -> Path:
        """The label file of a case."""
        ending = output_ending(case) if self.format is None else ".dcm" if self.format in DICOM else f".{self.format}"
        return self.folder / f"{case.id}{ending}"

    def paths(self, cases: Sequence[Case], labels: LabelSet | None = None) -> dict[str, Path]:
        """The label file of each case, by its id.

        Args:
            labels: that are written.

        Raises:
            UsageError: one of them is an image, or a DICOM file is asked for and one of the images is not DICOM, or
                objects are numbered.
        """
        if labels and labels.things and self.format in DICOM:
            raise UsageError(
                f"--format {self.format} holds a few named structures, not a number for each object of "
                f"{', '.join(labels.things)}",
                remedy="omit --format, or choose nii.gz",
            )
        found = {case.id: self.path(case) for case in cases}
        images = {Path(file).resolve() for case in cases for file in case.images}
        if over := [path for path in found.values() if path.resolve() in images]:
            raise UsageError(
                f"{over[0]} is an image to segment, and would be overwritten", remedy="choose another folder"
            )
        other = [file for case in cases for file in case.images if self.format in DICOM and not is_dicom(file)]
        if other:
            raise UsageError(
                f"{other[0]} is not DICOM, and a {self.format} file has to refer to a DICOM series",
                remedy="omit --format, or give the folders of the series as images",
            )
        return found

    def write(self, path: Path, values: np.ndarray, like: Path, labels: LabelSet) -> None:
        """Write the values of one case (Z, Y, X) on the grid of its image; see the writers for what is raised."""
        segments = segments_of(labels) if self.format and not labels.things else ()
        if self.format in DICOM:
            colours = {one.value: (one.red, one.green, one.blue) for one in segments}
            dicom_output.write(path, str(self.format), values, like, labels.values, colours)
        else:
            write_labels(path, values, like=like, segments=segments)


def output_ending(case: Case) -> str:
    """Extension of a case's segmentation: that of its image, or .png where that would lose information."""
    ending = ending_of(Path(case.images[0])) or ".nii.gz"
    return ".png" if READERS[ending].write is None else ending
