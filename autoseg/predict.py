"""Images and a model to segmentations on the images' own grid.

One case goes: read, canonical orientation, crop and resample as in training, sliding window over all folds, back to the
spacing, the crop, the orientation and the header it came with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoseg.dataset import Case, LoadedCase, load_case
from autoseg.errors import DataError, UsageError
from autoseg.from_plan import configuration_mirror_axes, head_probabilities
from autoseg.imaging.readers import ending_of, write_labels
from autoseg.imaging.resample import resample_probabilities
from autoseg.model import Model
from autoseg.nn.precision import autocast
from autoseg.nn.sliding_window import mirrored, predict_logits
from autoseg.preprocess import Prepared, prepare

LOSSY_ENDINGS = (".jpg", ".jpeg")  # never written: a label map must come back as it was


@dataclass(frozen=True)
class PredictOptions:
    """How to predict."""

    step: float = 0.5  # distance of neighbouring tiles as a share of the tile
    mirroring: bool | None = None  # average over flips; None: as the plan says
    tile_batch: int | None = None  # tiles per forward pass; None: 1 on a CPU, 4 elsewhere

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise UsageError(f"--step {self.step} leaves gaps between tiles", remedy="give a share above 0, at most 1")


@dataclass(frozen=True)
class Prediction:
    """One case's segmentation, as written."""

    case: str
    path: Path


def predict_cases(
    model: Model,
    cases: Sequence[Case],
    out: Path,
    options: PredictOptions = PredictOptions(),
    *,
    title: str = "predict",
) -> list[Prediction]:
    """Segment cases and write one label file per case, named after it, in the format of its image.

    Raises:
        DataError: an image cannot be read, or has another number of channels than the model.
        UsageError: a segmentation would be written over an image.
    """
    paths = [out / f"{case.id}{output_ending(case)}" for case in cases]
    images = {Path(file).resolve() for case in cases for file in case.images}
    if over := [path for path in paths if path.resolve() in images]:
        raise UsageError(f"{over[0]} is an image to segment, and would be overwritten", remedy="choose another folder")
    run = window_runner(model, options)
    predictions = []
    for case, path in zip(tqdm(cases, desc=title, disable=None, leave=False), paths, strict=True):
        loaded = load_case(case, None, orientation=model.plan.orientation, axis_order=model.plan.axis_order)
        if len(loaded.image) != len(model.plan.channels):
            raise DataError(
                f"{', '.join(case.images)}: {len(loaded.image)} channels, the model was trained on "
                f"{len(model.plan.channels)}: {', '.join(model.plan.channels)}",
                remedy="give images of the kind the model was trained on",
            )
        indices = segment(model, loaded, run)
        write_labels(path, model.plan.labels.to_file_values(indices), like=Path(case.images[0]))
        predictions.append(Prediction(case.id, path))
    return predictions


def output_ending(case: Case) -> str:
    """Ending of a case's segmentation: that of its image, or .png where that would lose information."""
    ending = ending_of(Path(case.images[0])) or ".nii.gz"
    return ".png" if ending in LOSSY_ENDINGS else ending


def window_runner(model: Model, options: PredictOptions) -> Callable[[np.ndarray], Tensor]:
    """A function from a prepared image (C, Z, Y, X) to the ensemble's mean logits (K, Z, Y, X)."""
    configuration = model.configuration
    use_mirroring = model.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
    axes = configuration_mirror_axes(model.plan, configuration) if use_mirroring else ()
    networks = [mirrored(_finest(network, model), axes) for network in model.networks]
    tile_batch = options.tile_batch or (1 if model.device.type == "cpu" else 4)

    def run(image: np.ndarray) -> Tensor:
        return predict_logits(
            torch.from_numpy(np.ascontiguousarray(image)).to(model.device), networks,
            num_heads=model.plan.heads.num_heads, tile=configuration.patch_size, step=options.step,
            tile_batch=tile_batch,
        )  # fmt: skip

    return run


def segment(model: Model, loaded: LoadedCase, run: Callable[[np.ndarray], Tensor]) -> np.ndarray:
    """Segment one loaded case.

    Returns:
        Class indices (Z, Y, X) in the axis order and orientation the image is stored in.
    """
    prepared = prepare(loaded.image, None, loaded.spacing, model.plan, model.configuration)
    heads = model.plan.heads
    probabilities = head_probabilities(run(prepared.image)[None], heads.has_regions)[0].cpu().numpy()
    back = _to_crop(probabilities, prepared, model.plan.resampling.anisotropy_threshold)
    decided = heads.decide(back)
    full = np.zeros(prepared.shape_before_crop, dtype=decided.dtype)
    full[tuple(slice(start, stop) for start, stop in prepared.box)] = decided
    return loaded.to_stored(full)


def _to_crop(probabilities: np.ndarray, prepared: Prepared, anisotropy_threshold: float) -> np.ndarray:
    return resample_probabilities(
        probabilities, prepared.target_spacing, prepared.spacing, prepared.shape_after_crop,
        anisotropy_threshold=anisotropy_threshold,
    )  # fmt: skip


def _finest(network: nn.Module, model: Model) -> Callable[[Tensor], Tensor]:
    def finest(image: Tensor) -> Tensor:
        with autocast(model.device, model.dtype):
            return network(image)[0].float()

    return finest
