"""Where models looked, as a folder of maps on the grid of the image: an extra of `predict_cases`.

    OUT/saliency/CASE/saliency.json                  what each file shows
                      1_liver.nii                    values from 0 to 1, see imaging/formats/unit_maps.py
                      1_liver_at_10_200_180.nii      --saliency liver@10,200,180
                      1_liver_attention_encoder_2.nii
                      gate_0.nii

How maps are made: `autoseg.inference.saliency`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from autoseg.datasets.dataset import LoadedCase
from autoseg.imaging.formats.unit_maps import UnitMap
from autoseg.inference.extras import Member
from autoseg.inference.member import Preparations
from autoseg.inference.on_image import OnImage
from autoseg.inference.options import InferenceOptions
from autoseg.inference.probabilities import move_into_place, plain, require_space, staging_of
from autoseg.inference.saliency import GATE, METHODS, Asked, Explained, How, MadeMap, explain, head_of, voxel_of
from autoseg.lines import LOG
from autoseg.models.model import Model
from autoseg.nn.saliency import Saliency
from autoseg.records import save
from autoseg.rules import anything, at_least, between, exactly, file_name, one_of

VERSION = 1
INDEX = "saliency.json"
FOLDER = "saliency"

Text = Annotated[str, anything("any text")]
Voxel = Annotated[int, between(0, 2**31 - 1)]


@dataclass(frozen=True)
class SaliencyFile:
    """One map."""

    file: Annotated[str, file_name()]
    shows: Text  # "saliency"; "gate_0" and so on: coefficients of attention gates; "attention_...": attention rollout
    model: Text
    label: Text
    place: tuple[Voxel, ...] | None  # of the file, from 0; None: all voxels that were given the label
    voxels: Annotated[int, at_least(0, 2**53)]  # of the image that were given the label
    largest: Annotated[float, at_least(0, 1e300)]  # what the value 1 stands for
    inside: Annotated[float, between(0, 1)] | None  # share of the map's sum in the label; None: it is 0 everywhere
    note: Text = ""


@dataclass(frozen=True)
class SaliencyIndex:
    """`saliency.json`: what each file of the folder shows."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    case: Annotated[str, file_name()]
    stage: Text
    method: Annotated[str, one_of(METHODS)]
    maps: tuple[SaliencyFile, ...]


class SaliencyOutput:
    """Explains every case.

    Args:
        out: folder of the segmentations.
        models: that segment, each with all of its folds.
        asked: what to explain.
        options: as the models are run.

    Raises:
        UsageError: a label that the models do not have, or a stage that a network does not have.
    """

    def __init__(
        self, out: Path, models: Sequence[Model], asked: Sequence[Asked], how: How, options: InferenceOptions
    ) -> None:
        for one in asked:
            head = head_of(one, models[0].plan.heads)
            for model in models:
                Saliency(model.networks[0], head, how.stage, method=how.method)
        self.asked = tuple(dict.fromkeys(asked))
        self.out, self.models, self.how, self.options = out, models, how, options
        self.name = f"saliency {' '.join(map(str, self.asked))} by {how.chosen} at {how.stage}"
        self._loaded: LoadedCase | None = None
        self._preparations: Preparations | None = None

    def begin(self, loaded: LoadedCase, members: Sequence[Member], path: Path) -> None:
        """Start a case. Raises DataError where a place lies outside the image."""
        for one in self.asked:
            voxel_of(one, loaded)
        self._loaded = loaded
        self._preparations = getattr(members[0], "preparations", None) if members else None

    def finish(self, labels: np.ndarray) -> None:
        """Explain and write a case; labels (Z, Y, X) are class indices in the axis order of its arrays."""
        assert self._loaded is not None, "begin comes first"
        write_saliency(
            self.out / FOLDER / self._loaded.id, self._loaded, self.how,
            [
                explain(self.models, self._loaded, labels, one, self.how, self.options, self._preparations)
                for one in self.asked
            ],
        )  # fmt: skip
        self.close()

    def close(self) -> None:
        """Let go of a case."""
        self._loaded = self._preparations = None


def write_saliency(folder: Path, loaded: LoadedCase, how: How, found: Sequence[Explained]) -> SaliencyIndex:
    """Write what was found for one case; its folder appears when it is complete, and replaces an earlier one.

    Raises:
        UsageError: the folder exists and holds something else. StorageError: the disk is full.
    """
    staging = staging_of(folder, INDEX)
    try:
        files: list[SaliencyFile] = []
        for one in found:
            if one.note:
                LOG.info(f"note: saliency of {one.asked} in {loaded.id}: {one.note}")
            place = OnImage.of(loaded, one.box)
            require_space(folder, place, len(one.maps))
            own = [made for made in one.maps if one is found[0] or not made.name.startswith(GATE)]
            files += [_write(staging, place, loaded, one, made) for made in own]
        index = SaliencyIndex(VERSION, loaded.id, how.stage, how.chosen, tuple(files))
        save(staging / INDEX, index)
        move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return index


def _write(staging: Path, place: OnImage, loaded: LoadedCase, one: Explained, made: MadeMap) -> SaliencyFile:
    """Write one map, row by row."""
    written = UnitMap(staging / _stem(one, made), place.geometry, Path(loaded.file))
    try:
        view = place.inside(written.stored)
        for row, values in enumerate(made.values):
            if values.any():  # the others are 0 already
                view[row] = written.encode(values)
        del view
    finally:
        written.close()
    return SaliencyFile(
        file=written.path.name,
        shows=made.name,
        model=made.model,
        label=one.asked.label,
        place=one.asked.place,
        voxels=one.voxels,
        largest=made.largest,
        inside=made.inside,
        note=one.note,
    )


def _stem(one: Explained, made: MadeMap) -> str:
    """Name of a map's file, without extension."""
    at = "" if one.asked.place is None else "_at_" + "_".join(map(str, one.asked.place))
    own = f"{one.head}_{plain(one.asked.label)}{at}"
    if made.name == FOLDER:
        return own
    models = {other.model for other in one.maps if other.name != FOLDER}
    what = made.name + (f"_{made.model}" if len(models) > 1 else "")
    return what if made.name.startswith(GATE) else f"{own}_{what}"
