"""Segment images with trained models, on the images' own grid.

Each case is read, brought to canonical orientation, cropped and resampled as in training, and segmented by a sliding
window with all folds. The probabilities of all models are averaged at the original spacing in the cropped box, the
label of each voxel is decided, and the result is written in the image's orientation with its header. A cascade first
runs its previous stage in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoseg.datasets.dataset import Case, LoadedCase, Problem, load_case
from autoseg.errors import DataError, OutOfMemory, StorageError, UsageError
from autoseg.imaging.formats.readers import READERS, ending_of, write_labels
from autoseg.imaging.geometry import Remark
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.models.model import Model, require_common
from autoseg.nn.training_step import is_out_of_memory
from autoseg.planning.foreign_grids import require_like
from autoseg.planning.plan import Plan
from autoseg.training.validation_budget import Inference


def options_for(way: Inference | None) -> InferenceOptions:
    """How the validation cases of a fold are segmented; None: by default."""
    if way is None:
        return InferenceOptions()
    return InferenceOptions(way.step, mirroring=bool(way.mirror_axes), tile=way.tile, mirror_axes=way.mirror_axes)


@dataclass(frozen=True)
class Prediction:
    """One case's segmentation, as written."""

    case: str
    path: Path
    remarks: tuple[tuple[str, str, Remark], ...] = ()  # case id, file, what is odd about it though it is used


def predict_cases(
    models: Sequence[Model],
    cases: Sequence[Case],
    out: Path,
    options: InferenceOptions = InferenceOptions(),
    *,
    title: str = "predict",
    faults: list[Problem] | None = None,
) -> list[Prediction]:
    """Segment cases and write one label file per case, named after it, in the format of its image.

    Args:
        models: an ensemble: the mean of their probabilities decides.
        faults: problems of single images are added to it, and the others are segmented; None: they are raised.

    Raises:
        DataError: an image cannot be read, has other channels than the model, or differs too much from its training
            data, and `faults` is None.
        StateError: the models were trained on different channels, labels or orientations.
        UsageError: a segmentation would overwrite an image.
    """
    require_common({model.name: model.plan for model in models})
    plan = models[0].plan
    paths = [out / f"{case.id}{output_ending(case)}" for case in cases]
    images = {Path(file).resolve() for case in cases for file in case.images}
    if over := [path for path in paths if path.resolve() in images]:
        raise UsageError(f"{over[0]} is an image to segment, and would be overwritten", remedy="choose another folder")
    shared = Preparations()
    members = [EnsembleMember(model, options, shared) for model in models]
    predictions = []
    for case, path in zip(tqdm(cases, desc=title, disable=None, leave=False), paths, strict=True):
        try:
            loaded = _load(case, plan)
            remarks = [(case.id, *remark) for remark in loaded.remarks]
            remarks += [(case.id, loaded.file, remark) for remark in _unlike_training(models, loaded)]
            indices = segment(members, loaded)
        except Exception as error:
            fault = _fault_of_image(case, error)
            if faults is None or fault is None:
                raise
            faults.append(fault)
            continue
        write_labels(path, plan.labels.to_file_values(indices), like=Path(loaded.file))
        predictions.append(Prediction(case.id, path, tuple(remarks)))
    return predictions


def _load(case: Case, plan: Plan) -> LoadedCase:
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
        return Problem(case.id, file, error.what.removeprefix(file).lstrip(": "), error.remedy)
    if is_out_of_memory(error):
        what = f"not enough memory to segment it: {str(error).splitlines()[0][:120]}"
        return Problem(case.id, case.images[0], what, "segment it alone, or on a machine with more memory")
    return None


def _unlike_training(models: Sequence[Model], loaded: LoadedCase) -> list[Remark]:
    """Warning about an image that differs from the first model's training data. Raises DataError."""
    plan = models[0].plan
    slices_alone = all(model.configuration.dims == 2 for model in models)
    return require_like(
        loaded.file, loaded.geometry, loaded.spacing, plan.grids, plan.axis_order, slices_alone=slices_alone
    )


def output_ending(case: Case) -> str:
    """Extension of a case's segmentation: that of its image, or .png where that would lose information."""
    ending = ending_of(Path(case.images[0])) or ".nii.gz"
    return ".png" if READERS[ending].write is None else ending


def segment(members: Sequence[EnsembleMember], loaded: LoadedCase) -> np.ndarray:
    """Segment one loaded case.

    Returns:
        Class indices (Z, Y, X) in the axis order and orientation of the stored image.
    """
    try:
        return loaded.to_stored(decide(members, loaded))
    finally:
        for member in members:
            member.preparations.forget()
