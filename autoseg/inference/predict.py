"""Segment images with trained models, on the images' own grid.

Each case is read, brought to canonical orientation, cropped and resampled as in training, and segmented by a sliding
window with all folds. The probabilities of all models are averaged at the original spacing in the cropped box, the
label of each voxel is decided, and the result is written in the image's orientation with its header. A cascade first
runs its previous stage in the same way.

While a case is computed, the next one is read and prepared, and the one before is written (`pipeline`).
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from autoseg.datasets.dataset import Case, LoadedCase, Problem, load_case
from autoseg.errors import DataError, OutOfMemory, StorageError
from autoseg.imaging.formats.readers import read_geometry
from autoseg.imaging.geometry import Remark
from autoseg.inference.by_rows import LargeImage, is_large, open_large, segment_large
from autoseg.inference.ensemble import Ensemble, split
from autoseg.inference.finished import Ledger
from autoseg.inference.label_files import Output
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.pipeline import Ahead, Writer
from autoseg.inference.streaming import Consumer
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model, require_common
from autoseg.nn.training_step import is_out_of_memory
from autoseg.planning.foreign_grids import require_like
from autoseg.planning.foreign_images import foreign_extent, foreign_intensities
from autoseg.planning.plan import Plan
from autoseg.processes import free_memory
from autoseg.progress import Progress
from autoseg.training.validation_budget import Inference

ARRAYS_AHEAD = 4  # float32 arrays of an image's size that reading and preparing it takes
SHARE_AHEAD = 0.25  # of the free memory that the case which is read ahead may take; larger ones are read when due


def options_for(way: Inference | None) -> InferenceOptions:
    """How the validation cases of a fold are segmented; None: by default."""
    if way is None:
        return InferenceOptions()
    return InferenceOptions(way.step, mirroring=bool(way.mirror_axes), tile=way.tile, mirror_axes=way.mirror_axes)


Remarks = tuple[tuple[str, str, Remark], ...]  # case id, file, what is odd about it though it is used


class Extra(Protocol):
    """What is made of every case in addition to its label file, such as probabilities or statistics.

    One object serves all cases of a call, one after the other: `begin` and `finish` of a case are called before those
    of the next, in the thread that computes. The label file is written after `finish`, so that it is the last file of
    its case: where it exists, the others do. What these methods raise counts as raised for the image.
    """

    def begin(self, loaded: LoadedCase, members: Sequence[EnsembleMember], path: Path) -> Consumer | None:
        """Start a case.

        Args:
            loaded: the image (C, Z, Y, X) in the plan's axis order; `loaded.to_stored` brings arrays to that of files.
            members: the ensemble that is about to segment it.
            path: of the label file that follows.

        Returns:
            What is to see the logits, row by row (`autoseg.inference.streaming`); None: nothing.
        """

    def finish(self, labels: np.ndarray) -> None:
        """End a case.

        Args:
            labels: class indices (Z, Y, X) of the whole image, in the axis order of `loaded`; not to be changed.
        """


@dataclass(frozen=True)
class Prediction:
    """One case's segmentation, as written."""

    case: str
    path: Path
    remarks: Remarks = ()


def predict_cases(
    models: Sequence[Model] | Ensemble,
    cases: Sequence[Case],
    out: Path | Output,
    options: InferenceOptions = InferenceOptions(),
    *,
    title: str = "predict",
    faults: list[Problem] | None = None,
    extras: Sequence[Extra] = (),
    ledger: Ledger | None = None,
) -> list[Prediction]:
    """Segment cases and write one label file per case, named after it.

    Args:
        models: the mean of their probabilities decides; or an ensemble that was taken apart, which has its own options.
        out: a folder, where formats are those of the images; or with a format.
        faults: problems of single images are added to it, and the others are segmented; None: they are raised.
        extras: what else is made of every case.
        ledger: where finished cases are recorded; None: nowhere.

    Raises:
        DataError: an image cannot be read, or differs too much from the training data, and `faults` is None.
        StateError: the models were trained on different channels, labels or orientations.
        StorageError: a segmentation cannot be written; those before are.
        UsageError: a segmentation would overwrite an image.
    """
    ensemble, output = _in_full(models, out, options)
    require_common({model.name: model.plan for model in ensemble.models})
    paths = output.paths(cases, ensemble.labels)
    held = "other files are written with it, or another format" if extras or output.format else ""
    ensembles = [_Prepared(ensemble, held) for _ in range(2)]  # one has the current case, the other the next one
    written: list[Prediction] = []

    def write(case: Case, values: np.ndarray | None, like: str, remarks: Remarks) -> None:
        if values is not None:
            output.write(paths[case.id], values, Path(like), ensemble.labels)
        written.append(Prediction(case.id, paths[case.id], remarks))
        if ledger:
            ledger.add(case, paths[case.id])

    with ExitStack() as stack:
        if ledger:
            stack.callback(ledger.save)
        writer = stack.enter_context(Writer())
        ahead = stack.enter_context(Ahead(lambda case, slot: ensembles[slot].read(case), cases, _fits_ahead))
        bar = stack.enter_context(Progress(len(cases), title))
        for number, (case, read) in enumerate(ahead):
            writer.check()
            try:
                values, like, remarks = _segmented(case, read, ensembles[number % 2], paths[case.id], extras)
            except Exception as error:
                if faults is None or (fault := _fault_of_image(case, error)) is None:
                    raise
                faults.append(fault)
            else:
                writer.put(write, case, values, like, remarks)
                del values
            bar.update()
    return written


def _segmented(
    case: Case, read: "Future[tuple[LoadedCase | LargeImage, Remarks]]", prepared: "_Prepared", path: Path,
    extras: Sequence[Extra],
) -> tuple[np.ndarray | None, str, Remarks]:  # fmt: skip
    """Values to write for an image, or None where they are in the file; the file whose grid they have; remarks."""
    loaded, remarks = read.result()
    if isinstance(loaded, LargeImage):
        odd = segment_large(loaded, prepared.members[0], path)
        return None, case.images[0], tuple((case.id, case.images[0], remark) for remark in odd)
    labels = segment(prepared.members, loaded, extras, path, prepared.rule)
    return prepared.models[0].plan.labels.to_file_values(labels, loaded.geometry.spacing), loaded.file, remarks


def _in_full(
    models: Sequence[Model] | Ensemble, out: Path | Output, options: InferenceOptions
) -> tuple[Ensemble, Output]:
    """What models and a folder stand for."""
    ensemble = models if isinstance(models, Ensemble) else split(models, options, by="models")
    return ensemble, out if isinstance(out, Output) else Output(out)


class _Prepared:
    """An ensemble with room for one image, prepared as each of its members needs it."""

    def __init__(self, ensemble: Ensemble, held: str = "") -> None:
        """Args: held: why an image has to be held, however large it is; "": it need not be."""
        self.models, self.held, self.rule = ensemble.models, held, ensemble.rule
        if ensemble.options.top_k or ensemble.options.skip_empty:
            self.held = "tiles are chosen by what is in all of it"
        elif not ensemble.rule.is_plain:
            self.held = "what evaluate --choose chose is applied to whole images (or add --no-decision)"
        self.preparations = Preparations()
        self.members = [
            EnsembleMember(model, ensemble.options, self.preparations, part_of)
            for model, part_of in zip(ensemble.models, ensemble.model_of, strict=True)
        ]

    def read(self, case: Case) -> tuple[LoadedCase | LargeImage, Remarks]:
        """Read a case, and prepare it for the members; a large one is opened. Raises what is wrong with it."""
        try:
            if is_large(case) and (large := open_large(case, self.members, self.held)):
                return large, ()
            loaded = load_for(self.models[0].plan, case)
            unlike = [(loaded.file, remark) for remark in unlike_training(self.models, loaded)]
            for member in self.members:
                member.prepare(loaded)
        except BaseException:
            self.preparations.forget()
            raise
        return loaded, tuple((case.id, *remark) for remark in (*loaded.remarks, *unlike))


def _fits_ahead(case: Case) -> bool:
    """Whether there is room for a case while another one is computed."""
    voxels = sum(math.prod(read_geometry(Path(file)).shape) for file in case.images)
    return ARRAYS_AHEAD * 4 * voxels <= SHARE_AHEAD * free_memory()


def load_for(plan: Plan, case: Case) -> LoadedCase:
    """Load an image for a plan. Raises DataError where it cannot be read, or has other channels than the plan."""
    loaded = load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
    if len(loaded.image) != len(plan.channels):
        raise DataError(
            f"{', '.join(case.images)}: {len(loaded.image)} channels, but the model was trained on "
            f"{len(plan.channels)}: {', '.join(plan.channels)}",
            remedy="give images with the same channels as the training data",
        )
    return loaded


def _fault_of_image(case: Case, error: Exception) -> Problem | None:
    """The problem of a single image, after which others can be segmented; None for any other error."""
    if isinstance(error, (DataError, StorageError, OutOfMemory)):  # of reading it
        file = next((file for file in case.images if file in error.what), case.images[0])
        what = error.what.removeprefix(f"{file}{os.sep}").removeprefix(file)  # of a series, its slice is named
        return Problem(case.id, file, what.lstrip(": "), error.remedy)
    if is_out_of_memory(error):
        what = f"not enough memory to segment it: {str(error).splitlines()[0][:120]}"
        return Problem(case.id, case.images[0], what, "segment it alone, or on a machine with more memory")
    return None


def unlike_training(models: Sequence[Model], loaded: LoadedCase) -> list[Remark]:
    """Warning about an image that differs from the first model's training data. Raises DataError."""
    plan = models[0].plan
    slices_alone = all(model.configuration.dims == 2 for model in models)
    remarks = require_like(
        loaded.file, loaded.geometry, loaded.spacing, plan.grids, plan.axis_order, slices_alone=slices_alone
    )
    remarks += foreign_intensities(loaded.image, plan.channels, plan.grids, plan.normalization)
    shape = loaded.image.shape[1:]
    return remarks + foreign_extent(shape, loaded.spacing, plan.grids, plan.axis_order, slices_alone=slices_alone)


def segment(
    members: Sequence[EnsembleMember],
    loaded: LoadedCase,
    extras: Sequence[Extra] = (),
    path: Path = Path(),
    rule: Rule = PLAIN,
) -> np.ndarray:
    """Segment one loaded case.

    Args:
        extras: what else is made of it.
        path: of its label file, for the extras.
        rule: by which labels are decided.

    Returns:
        Class indices (Z, Y, X) in the axis order and orientation of the stored image.
    """
    try:
        begun = [extra.begin(loaded, members, path) for extra in extras]
        consumers = [consumer for consumer in begun if consumer is not None]
        labels = decide(members, loaded, consumers, rule)
        for extra in extras:
            extra.finish(labels)
        return loaded.to_stored(labels)
    finally:
        for member in members:
            member.preparations.forget()
