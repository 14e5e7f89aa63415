"""Images and models to segmentations on the images' own grid.

One case goes: read, canonical orientation, crop and resample as in training, sliding window over all folds, back to the
spacing and the crop it came with; there the probabilities of all models are averaged, the label of each voxel decided,
and taken back to the orientation and the header. A cascade first goes this way with its previous stage.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoseg.dataloading.previous_stage import one_hot
from autoseg.datasets.dataset import Case, LoadedCase, Problem, load_case
from autoseg.errors import DataError, OutOfMemory, StorageError, UsageError
from autoseg.imaging.formats.readers import ending_of, write_labels
from autoseg.imaging.geometry import Remark
from autoseg.imaging.placement import Placement
from autoseg.models.build import MOST_GROWTH, configuration_mirror_axes, head_probabilities, tile_growth, tile_size
from autoseg.models.model import Model, require_common
from autoseg.nn.precision import autocast
from autoseg.nn.sliding_window import mirrored, predict_logits
from autoseg.nn.training_step import is_out_of_memory
from autoseg.planning.foreign_grids import require_like
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import Prepared, prepare, target_spacing
from autoseg.training.validation_budget import Inference

LOSSY_ENDINGS = (".jpg", ".jpeg")  # never written: a label map must come back as it was


@dataclass(frozen=True)
class PredictOptions:
    """How to predict."""

    step: float = 0.5  # distance of neighbouring tiles as a share of the tile
    mirroring: bool | None = None  # average over flips; None: as the plan says
    tile_batch: int | None = None  # tiles per forward pass; None: 1 on a CPU, elsewhere as planned
    tile: float | None = None  # longest tile edges as a multiple of the patch's; None: TILE_GROWTH of the device
    mirror_axes: tuple[int, ...] | None = None  # of those the plan mirrors, (Z, Y, X), the ones to use; None: all

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise UsageError(f"--step {self.step} leaves gaps between tiles", remedy="give a share above 0, at most 1")
        if self.tile is not None and not 1 <= self.tile <= MOST_GROWTH:
            raise UsageError(
                f"--tile {self.tile} is not a multiple that tiles can have of the training patch",
                remedy=f"give a number from 1 to {MOST_GROWTH:g}",
            )


def options_for(way: Inference | None) -> PredictOptions:
    """How the validation cases of a fold are segmented; None: by default."""
    if way is None:
        return PredictOptions()
    return PredictOptions(way.step, mirroring=bool(way.mirror_axes), tile=way.tile, mirror_axes=way.mirror_axes)


@dataclass(frozen=True)
class Prediction:
    """One case's segmentation, as written."""

    case: str
    path: Path
    remarks: tuple[tuple[str, str, Remark], ...] = ()  # case id, file, what is odd about it though it is used


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, ready to run."""

    model: Model
    run: Callable[[np.ndarray], Tensor]  # prepared image (C, Z, Y, X) -> mean logits of the folds (K, Z, Y, X)
    previous: "Member | None"  # the stage before, in a cascade


def predict_cases(
    models: Sequence[Model],
    cases: Sequence[Case],
    out: Path,
    options: PredictOptions = PredictOptions(),
    *,
    title: str = "predict",
    faults: list[Problem] | None = None,
) -> list[Prediction]:
    """Segment cases and write one label file per case, named after it, in the format of its image.

    Args:
        models: they vote together: the mean of their probabilities decides.
        faults: what is wrong with single images is added to it, and the others are segmented; None: it is raised.

    Raises:
        DataError: an image cannot be read, or has other channels than the model, or is unlike its training
            data, and `faults` is None.
        StateError: the models were trained on different channels, labels or orientations.
        UsageError: a segmentation would be written over an image.
    """
    require_common({model.name: model.plan for model in models})
    plan = models[0].plan
    paths = [out / f"{case.id}{output_ending(case)}" for case in cases]
    images = {Path(file).resolve() for case in cases for file in case.images}
    if over := [path for path in paths if path.resolve() in images]:
        raise UsageError(f"{over[0]} is an image to segment, and would be overwritten", remedy="choose another folder")
    members = [member_of(model, options) for model in models]
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
    """An image as the plan wants it. Raises DataError where it cannot be read, or has other channels than the plan."""
    loaded = load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
    if len(loaded.image) != len(plan.channels):
        raise DataError(
            f"{', '.join(case.images)}: {len(loaded.image)} channels, the model was trained on "
            f"{len(plan.channels)}: {', '.join(plan.channels)}",
            remedy="give images of the kind the model was trained on",
        )
    return loaded


def _fault_of_image(case: Case, error: Exception) -> Problem | None:
    """What went wrong with one image alone, so that others may be segmented; None for anything else."""
    if isinstance(error, (DataError, StorageError, OutOfMemory)):  # of reading it
        file = next((file for file in case.images if file in error.what), case.images[0])
        return Problem(case.id, file, error.what.removeprefix(file).lstrip(": "), error.remedy)
    if is_out_of_memory(error):
        what = f"segmenting it takes more memory than there is: {str(error).splitlines()[0][:120]}"
        return Problem(case.id, case.images[0], what, "segment it alone, or on a machine with more memory")
    return None


def _unlike_training(models: Sequence[Model], loaded: LoadedCase) -> list[Remark]:
    """What is worth a warning about an image, by the first model's training data. Raises DataError."""
    plan = models[0].plan
    slices_alone = all(model.configuration.dims == 2 for model in models)
    return require_like(
        loaded.file, loaded.geometry, loaded.spacing, plan.grids, plan.axis_order, slices_alone=slices_alone
    )


def output_ending(case: Case) -> str:
    """Ending of a case's segmentation: that of its image, or .png where that would lose information."""
    ending = ending_of(Path(case.images[0])) or ".nii.gz"
    return ".png" if ending in LOSSY_ENDINGS else ending


def window_runner(model: Model, options: PredictOptions) -> Callable[[np.ndarray], Tensor]:
    """A function from a prepared image (C, Z, Y, X) to the ensemble's mean logits (K, Z, Y, X)."""
    configuration = model.configuration
    use_mirroring = model.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
    axes = configuration_mirror_axes(model.plan, configuration, options.mirror_axes) if use_mirroring else ()
    networks = [mirrored(_finest(network, model), axes) for network in model.networks]
    planned = configuration.cost.tile_batch if configuration.cost else 4
    tile_batch = options.tile_batch or (1 if model.device.type == "cpu" else planned)
    growth = options.tile or tile_growth(model.device.type)

    def run(image: np.ndarray) -> Tensor:
        tile = tile_size(configuration, image.shape[1:], growth=growth, step=options.step)
        return predict_logits(
            torch.from_numpy(np.ascontiguousarray(image)).to(model.device), networks,
            num_heads=model.plan.heads.num_heads, tile=tile, step=options.step, tile_batch=tile_batch,
        )  # fmt: skip

    return run


def member_of(model: Model, options: PredictOptions) -> Member:
    """A model with its sliding window, and the same of its previous stage."""
    previous = member_of(model.previous, options) if model.previous else None
    return Member(model, window_runner(model, options), previous)


def segment(members: Sequence[Member], loaded: LoadedCase) -> np.ndarray:
    """Segment one loaded case.

    Returns:
        Class indices (Z, Y, X) in the axis order and orientation the image is stored in.
    """
    return loaded.to_stored(_decide(members, loaded, {}))


# What decides how an image is prepared -> the image prepared in that way
Preparations = dict[Hashable, Prepared]


def _decide(members: Sequence[Member], loaded: LoadedCase, made: Preparations) -> np.ndarray:
    """Class indices (Z, Y, X) of the whole image by the mean of the members' probabilities, in its own axis order."""
    total = _probabilities(members[0], loaded, made)
    for member in members[1:]:
        total += _probabilities(member, loaded, made)
    total /= len(members)
    decided = members[0].model.plan.heads.decide(total)
    prepared = _prepared(members[0].model, loaded, made)  # every preparation crops alike: by the image alone
    return prepared.placement.uncrop(decided)


def _probabilities(member: Member, loaded: LoadedCase, made: Preparations) -> np.ndarray:
    """Probabilities (K, Z, Y, X) float32 of one model on the image's cropped grid."""
    plan = member.model.plan
    prepared = _prepared(member.model, loaded, made)
    image = prepared.image
    if member.previous:
        before = _decide([member.previous], loaded, made)
        image = np.concatenate([image, _previous_channels(before, prepared.placement, plan)])
    probabilities = head_probabilities(member.run(image)[None], plan.heads.has_regions)[0].cpu().numpy()
    return prepared.placement.back(probabilities, plan.resampling)


def _prepared(model: Model, loaded: LoadedCase, made: Preparations) -> Prepared:
    """The image as a model sees it; models that see it alike share one."""
    plan, configuration = model.plan, model.configuration
    key = (plan.normalization, plan.resampling, target_spacing(configuration, loaded.spacing))
    if key not in made:
        made[key] = prepare(loaded.image, None, loaded.spacing, plan, configuration, loaded.file or loaded.id)
    return made[key]


def _previous_channels(indices: np.ndarray, placement: Placement, plan: Plan) -> np.ndarray:
    """A segmentation of the whole image as channels (n, Z, Y, X) on the grid of a prepared one, as in training."""
    return one_hot(placement.to_grid(indices, plan.resampling), plan.labels.num_labels)


def _finest(network: nn.Module, model: Model) -> Callable[[Tensor], Tensor]:
    def finest(image: Tensor) -> Tensor:
        with autocast(model.device, model.dtype):
            return network(image)[0].float()

    return finest
