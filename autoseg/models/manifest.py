"""What an exported model holds, as the record `manifest.json` that its archive begins with.

    manifest.json                          this record: what the model is, and size and sha256 of every other file
    README.md                              the model card
    fingerprint.json                       the training data, measured; not of a model that was imported without them
    models/3d_fullres-unet/
      plan.json                            what its folds were trained under; plan-fold_2.json where fold 2 differs
      fold_0.safetensors ...               the weights each fold predicts with
      crossval.json speeds.json expected_dice.json agreements.json     what was measured with it, where it was
      decision.json                        what was chosen on its held-out cases, which predict applies, where it was
    models/3d_lowres-unet/ ...             the previous stage of a cascade

The manifest is read strictly: an unknown, missing or ill-typed key is refused, and so is another version.
"""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from autoseg.errors import StateError
from autoseg.planning.plan_fields import Count, Edge, Millimetres, Text
from autoseg.rules import MAX_SECONDS, Rule, at_least, entries, exactly, file_path, one_of
from autoseg.workspace import FoldName

VERSION = 1
MANIFEST, CARD, FINGERPRINT, PLAN, AGREEMENTS = (
    "manifest.json", "README.md", "fingerprint.json", "plan.json", "agreements.json"
)  # fmt: skip
Sha256 = Annotated[str, Rule(lambda text: bool(re.fullmatch("[0-9a-f]{64}", text)), "64 hexadecimal digits")]
Path = Annotated[str, file_path()]
DTYPE_NAMES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class File:
    """One file of the archive."""

    name: Path
    size: Count  # bytes
    sha256: Sha256


@dataclass(frozen=True)
class NeededPlugin:
    """A Python file that a fold was trained with; the archive does not hold it."""

    name: Text
    sha256: Sha256


@dataclass(frozen=True)
class ArchivedFold:
    """One trained network."""

    fold: FoldName
    weights: Path  # name of its file
    plan: Path
    dtype: Annotated[str, one_of(DTYPE_NAMES)]  # of the convolutions, as chosen in training; weights are float32
    forward_seconds: Annotated[float, at_least(0, MAX_SECONDS)]  # of one patch, measured in training
    epochs: Count
    steps: Count
    cases: Count  # that it was trained on
    plugins: tuple[NeededPlugin, ...] = ()


@dataclass(frozen=True)
class ArchivedModel:
    """The folds of one configuration and network."""

    configuration: Text
    network: Text
    spacing: tuple[Millimetres, ...]  # mm, in the axis order of the plan
    patch_size: tuple[Edge, ...]
    parameters: Count  # of one fold
    folds: Annotated[tuple[ArchivedFold, ...], entries(1)]
    previous: Text | None = None  # the model whose segmentation is a further input, in a cascade


@dataclass(frozen=True)
class Manifest:
    """An exported model."""

    format: Literal["autoseg model"]
    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of exported models that this autoseg reads")]
    dataset: Text
    channels: Annotated[tuple[Text, ...], entries(1)]
    labels: dict[Text, Annotated[int, at_least(1, 2**31 - 1)]]  # name -> value in the files
    regions: dict[Text, tuple[Annotated[int, at_least(1, 2**31 - 1)], ...]]
    predicts: Annotated[tuple[Text, ...], entries(1, distinct=True)]  # the models that segment together by default
    models: Annotated[dict[Text, ArchivedModel], entries(1)]  # also the previous stages
    case_ids_kept: bool  # whether names of cases are in it
    left_out: tuple[Text, ...]  # what of the workspace is not in it, because it could identify somebody
    made_with: dict[Text, Text]  # library -> version
    files: tuple[File, ...]  # all but the manifest

    REMEDY_FOR_OTHER_VERSIONS: ClassVar[str] = "export the model again with this autoseg, or use the one that wrote it"

    def check_agreement(self) -> None:
        """Raise StateError where the manifest refers to what it does not hold."""
        listed = {file.name for file in self.files}
        if len(listed) != len(self.files):
            raise StateError("files: a name occurs twice", remedy="get the file again")
        for name, model in self.models.items():
            for fold in model.folds:
                if missing := {fold.weights, fold.plan} - listed:
                    raise StateError(f"models.{name}: its file {min(missing)!r} is not listed in files")
            if len({fold.fold for fold in model.folds}) != len(model.folds):
                raise StateError(f"models.{name}.folds: a fold occurs twice")
            if model.previous is None:
                continue
            if model.previous not in self.models:
                raise StateError(f"models.{name}.previous: there is no model {model.previous!r}")
            if self.models[model.previous].previous is not None:
                raise StateError(f"models.{name}.previous: {model.previous!r} has a previous stage itself")
        if unknown := [name for name in self.predicts if name not in self.models]:
            raise StateError(f"predicts: there is no model {unknown[0]!r}")
