"""One model of an ensemble, ready to run: it prepares the image, computes logits, and returns them to the image's grid.

The members of an ensemble process the same image one after the other. Those with the same spacing, normalisation and
resampling share one prepared image; so does a cascade with its previous stage.
"""

from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.dataloading.previous_stage import one_hot
from autoseg.datasets.dataset import LoadedCase
from autoseg.imaging.placement import Placement
from autoseg.inference.options import InferenceOptions
from autoseg.models.build import configuration_mirror_axes, head_probabilities, tile_growth, tile_size
from autoseg.models.model import Model
from autoseg.nn.precision import autocast
from autoseg.nn.sliding_window import mirrored, predict_logits
from autoseg.planning.plan import Plan
from autoseg.preprocessing.prepare import Prepared, prepare, target_spacing


class Preparations:
    """The current image, prepared in every way that a model has requested."""

    def __init__(self) -> None:
        self._loaded: LoadedCase | None = None
        self._made: dict[Hashable, Prepared] = {}

    def of(self, loaded: LoadedCase, model: Model) -> Prepared:
        """The image as a model sees it. Another image replaces the current one."""
        if loaded is not self._loaded:
            self.forget()
            self._loaded = loaded
        plan, configuration = model.plan, model.configuration
        key = (plan.normalization, plan.resampling, target_spacing(configuration, loaded.spacing))
        if key not in self._made:
            name = loaded.file or loaded.id
            self._made[key] = prepare(loaded.image, None, loaded.spacing, plan, configuration, name)
        return self._made[key]

    def forget(self) -> None:
        """Release the current image and its memory."""
        self._loaded = None
        self._made.clear()


class EnsembleMember:
    """One model of an ensemble, and its previous stage, if it is a cascade.

    Args:
        options: tiles and mirroring; None in them is as planned, and as suits the device.
        preparations: shared by the members of an ensemble; None: not shared.
    """

    def __init__(
        self,
        model: Model,
        options: InferenceOptions = InferenceOptions(),
        preparations: Preparations | None = None,
    ) -> None:
        plan, configuration = model.plan, model.configuration
        self.model = model
        self.preparations = Preparations() if preparations is None else preparations
        self.previous: EnsembleMember | None = None
        if model.previous:
            self.previous = EnsembleMember(model.previous, options, self.preparations)
        mirroring = plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
        axes = configuration_mirror_axes(plan, configuration, options.mirror_axes) if mirroring else ()
        self._networks = [mirrored(partial(_finest_logits, network, model), axes) for network in model.networks]
        planned = configuration.cost.tile_batch if configuration.cost else 4
        self._tile_batch = options.tile_batch or (1 if model.device.type == "cpu" else planned)
        self._growth = options.tile or tile_growth(model.device.type)
        self._step = options.step

    def prepare(self, loaded: LoadedCase) -> Prepared:
        """An image as the model sees it, without the segmentation of its previous stage."""
        return self.preparations.of(loaded, self.model)

    def logits(self, image: np.ndarray) -> Tensor:
        """Mean logits (K, Z, Y, X) float32 of all folds and mirrorings for a prepared image (C, Z, Y, X)."""
        tile = tile_size(self.model.configuration, image.shape[1:], growth=self._growth, step=self._step)
        return predict_logits(
            torch.from_numpy(np.ascontiguousarray(image)).to(self.model.device), self._networks,
            out_channels=self.model.plan.heads.num_heads, tile=tile, step=self._step, tile_batch=self._tile_batch,
        )  # fmt: skip

    def probabilities(self, loaded: LoadedCase) -> np.ndarray:
        """Probabilities (K, Z, Y, X) float32 on the grid of the image, in its cropped box."""
        plan, prepared = self.model.plan, self.prepare(loaded)
        image = prepared.image
        if self.previous:
            before = previous_channels(decide([self.previous], loaded), prepared.placement, plan)
            image = np.concatenate([image, before])
        probabilities = head_probabilities(self.logits(image)[None], plan.heads.has_regions)[0].cpu().numpy()
        return prepared.placement.back(probabilities, plan.resampling)


def decide(members: Sequence[EnsembleMember], loaded: LoadedCase) -> np.ndarray:
    """Class indices (Z, Y, X) of the whole image by the mean of the members' probabilities, in the plan's axis order.

    Every member crops to the same box, which depends only on the image.
    """
    total = members[0].probabilities(loaded)
    for member in members[1:]:
        total += member.probabilities(loaded)
    total /= len(members)
    decided = members[0].model.plan.heads.decide(total)
    return members[0].prepare(loaded).placement.uncrop(decided)


def previous_channels(indices: np.ndarray, placement: Placement, plan: Plan) -> np.ndarray:
    """A segmentation of the whole image as channels (n, Z, Y, X) on the grid of a prepared one, as in training."""
    return one_hot(placement.to_grid(indices, plan.resampling), plan.labels.num_labels)


def _finest_logits(network: nn.Module, model: Model, image: Tensor) -> Tensor:
    """Logits at full resolution of a network that returns those of all stages; float32."""
    with autocast(model.device, model.dtype):
        return network(image)[0].float()
