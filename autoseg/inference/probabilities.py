"""Probabilities of the ensemble, as a folder of one file per head, on the grid of the image.

    OUT/probabilities/CASE/probabilities.json   what each file shows
                           0_background.nii     values from 0 to 1, see imaging/formats/unit_maps.py
                           1_liver.nii

A viewer overlays each file on the image, because it has the image's grid; in Python, nibabel maps it into memory. Rows
are written as they are computed: at no time are the classes of a whole volume in memory. Beyond the box of the imaged
body the segmentation is background by definition, so the probability of background is 1 there, and of all others 0.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from torch import Tensor

from autoseg.errors import StorageError, UsageError
from autoseg.imaging.formats.unit_maps import UnitMap
from autoseg.imaging.labels import LabelSet
from autoseg.inference.ensemble import probabilities
from autoseg.inference.on_image import OnImage
from autoseg.records import save
from autoseg.rules import anything, exactly, file_name

VERSION = 1
INDEX = "probabilities.json"
SLACK_BYTES = 2**20  # of headers, per file

Text = Annotated[str, anything("any text")]


@dataclass(frozen=True)
class HeadFile:
    """One file of probabilities."""

    file: Annotated[str, file_name()]
    name: Text  # of the label or region
    values: tuple[Annotated[int, anything("any label value")], ...]  # in the segmentation; several of a region


@dataclass(frozen=True)
class ProbabilityIndex:
    """`probabilities.json`: what each file of the folder shows."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    case: Annotated[str, file_name()]
    kind: Literal["softmax", "sigmoid"]  # softmax: they add up to 1; sigmoid: each head by itself
    heads: tuple[HeadFile, ...]


class ProbabilityWriter:
    """Writes the probabilities of one case while it is segmented. A consumer of rows.

    The folder appears under its name when it is complete; one of an earlier prediction is replaced.
    """

    def __init__(
        self,
        folder: Path,
        case: str,
        heads: LabelSet,
        place: OnImage,
        like: Path,
        model_of: Sequence[int] = (0,),
    ) -> None:
        """Create the files, with what is beyond the box of the image.

        Args:
            folder: of this case.
            heads: `Plan.heads`.
            like: file of the image.
            model_of: of each member, the model it is a part of (`Ensemble.model_of`).

        Raises:
            UsageError: the folder exists and holds something else.
            StorageError: the disk has less space than the files may take.
        """
        self.folder, self.model_of, self.has_regions = folder, tuple(model_of), heads.has_regions
        self._staging = staging_of(folder, INDEX)
        named = _named(heads)
        require_space(folder, place, len(named))
        files, self._maps = [], []
        for number, (name, values) in enumerate(named):
            made = UnitMap(self._staging / f"{number}_{plain(name)}", place.geometry, like)
            self._maps.append(made)
            files.append(HeadFile(made.path.name, name, values))
        if not self.has_regions:
            one = self._maps[0].encode(np.ones(1, dtype=np.float32))[0]
            for plane in self._maps[0].stored:
                plane[...] = one
        self._views = [place.inside(made.stored) for made in self._maps]
        self._index = ProbabilityIndex(VERSION, case, "sigmoid" if self.has_regions else "softmax", tuple(files))

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Write rows of the box: one tensor (K, n, Y, X) float32 per member."""
        found = probabilities(logits, self.model_of, self.has_regions).cpu().numpy()
        for number, (made, view, values) in enumerate(zip(self._maps, self._views, found, strict=True)):
            stored = made.encode(values)
            if (number == 0 and not self.has_regions) or stored.any():  # the others are 0 already
                view[rows] = stored

    def finish(self) -> Path:
        """Complete the folder and return it."""
        self._views.clear()
        for made in self._maps:
            made.close()
        save(self._staging / INDEX, self._index)
        move_into_place(self._staging, self.folder)
        return self.folder

    def abandon(self) -> None:
        """Delete what was written of a case that could not be segmented."""
        self._views.clear()
        for made in self._maps:
            made.close()
        shutil.rmtree(self._staging, ignore_errors=True)


def _named(heads: LabelSet) -> list[tuple[str, tuple[int, ...]]]:
    """Name and label values of each output channel."""
    if heads.has_regions:
        return [(name, tuple(union)) for name, union in heads.regions.items()]
    return [("background", (0,)), *((name, (value,)) for name, value in heads.values.items())]


def plain(name: str) -> str:
    """A label's name as part of a file name on any system."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or "label"


def staging_of(folder: Path, index: str) -> Path:
    """Create the folder that is renamed to `folder` when it is complete.

    Args:
        index: the file by which a folder of an earlier prediction is recognised.

    Raises:
        UsageError: `folder` exists, and was not written by an earlier prediction.
    """
    if folder.exists() and not (folder / index).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and has no {index}: it is not replaced", remedy="move or rename it")
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as error:
        raise StorageError(
            f"{staging} cannot be made: {error.strerror or error}", remedy="choose another folder with -o"
        ) from error
    return staging


def move_into_place(staging: Path, folder: Path) -> None:
    """Rename a complete folder; one that was there is deleted."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror or error}", remedy="choose another folder with -o"
        ) from error


def require_space(folder: Path, place: OnImage, files: int) -> None:
    """Refuse to begin maps that the disk cannot hold. Raises StorageError."""
    values = int(np.prod(place.geometry.shape, dtype=np.int64))
    needed = files * (values * (4 if place.geometry.flat else 2) + SLACK_BYTES)
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StorageError(
            f"{folder}: {files} maps of this case may take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            remedy="free some disk space, or choose another folder with -o",
        )
