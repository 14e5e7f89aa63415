"""Models that are loaded once and segment arrays: no files, no processes, one case after the other.

An array is segmented as `predict` segments a file that holds it: the same checks, the same preparation, the same
ensemble. `autoseg.Predictor` opens the models and passes its keywords on.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.datasets.dataset import LoadedCase
from autoseg.errors import UsageError
from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Remark
from autoseg.inference.arrays import CANONICAL, case_of_array
from autoseg.inference.ensemble import probabilities as mean_probabilities
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import unlike_training
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model, require_common


@dataclass(frozen=True)
class SegmentedArray:
    """What was made of an array; spatial axes in the order of the array."""

    labels: np.ndarray  # values as in label files, of the array's spatial shape
    probabilities: np.ndarray | None  # (K, *spatial) float32, one per head, where they were asked for
    remarks: tuple[Remark, ...]  # how the image differs from the training data


class ArrayPredictor:
    """An ensemble in memory. One call at a time computes; others, of other threads, wait for it.

    Args:
        models: an ensemble: the mean of their probabilities decides.
        options: tiles and mirroring.
        rule: by which labels are decided.

    Raises:
        StateError: the models were trained on different channels, labels or orientations.
    """

    def __init__(
        self, models: Sequence[Model], options: InferenceOptions = InferenceOptions(), rule: Rule = PLAIN
    ) -> None:
        require_common({model.name: model.plan for model in models})
        self.models: tuple[Model, ...] = tuple(models)
        self.plan = models[0].plan
        self.rule = rule
        self._lock = threading.Lock()
        self._preparations = Preparations()
        self._members = [EnsembleMember(model, options, self._preparations) for model in models]

    def segment(
        self,
        array: np.ndarray,
        spacing: Sequence[float] | None,
        orientation: str = CANONICAL,
        *,
        probabilities: bool = False,
    ) -> SegmentedArray:
        """Segment one array; see `case_of_array` for its form, its spacing and its orientation.

        Raises:
            UsageError: the array, its spacing or its orientation cannot be used, or the models were released.
            DataError: NaN, infinity or extreme outliers, or the image differs too much from the training data.
            OutOfMemory: the memory does not suffice.
        """
        self._require_open()
        loaded = case_of_array(array, self.plan, spacing, orientation)
        remarks = unlike_training(self.models, loaded)
        with self._lock:
            self._require_open()  # it may have been released while this call waited
            try:
                indices, shares = self._decide(loaded, probabilities)
            finally:
                self._preparations.forget()
        labels = self.plan.labels.to_file_values(loaded.to_stored(indices), loaded.geometry.spacing)
        without_z = loaded.geometry.flat and np.ndim(array) < 4  # then the array has no such axis
        if without_z:
            labels = labels[0]
        if shares is not None:
            shares = np.ascontiguousarray(loaded.to_stored(shares)[:, 0] if without_z else loaded.to_stored(shares))
        return SegmentedArray(np.ascontiguousarray(labels), shares, tuple(remarks))

    def release(self) -> None:
        """Release the models and their memory, after the call that is being computed; nothing is segmented then."""
        with self._lock:
            cuda = any(model.device.type == "cuda" for model in self.models)
            self.models, self._members = (), []
            if cuda:
                torch.cuda.empty_cache()

    def _require_open(self) -> None:
        if not self._members:
            raise UsageError("this predictor was closed, its models are released", remedy="make another one")

    def _decide(self, loaded: LoadedCase, probabilities: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Class indices (Z, Y, X) and probabilities (K, Z, Y, X), in the axis order of the case."""
        if not probabilities:
            return decide(self._members, loaded, (), self.rule), None
        gathered = Probabilities(loaded, self._members)
        return decide(self._members, loaded, [gathered], self.rule), gathered.whole()


class Probabilities:
    """Gathers the mean probabilities of an ensemble; a consumer of logits (`autoseg.inference.streaming`)."""

    def __init__(self, loaded: LoadedCase, members: Sequence[EnsembleMember]) -> None:
        self._placement = members[0].prepare(loaded).placement
        self._heads = members[0].model.plan.heads
        self._gathered = np.zeros((self._heads.num_heads, *self._placement.shape_after_crop), np.float32)

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Add rows of the cropped box: logits (K, n, Y, X) float32, one tensor per member."""
        self._gathered[:, rows] = mean_probabilities(logits, range(len(logits)), self._heads.has_regions).numpy()

    def whole(self) -> np.ndarray:
        """Probabilities (K, Z, Y, X) of the whole image, which is background beyond the box."""
        whole = np.zeros((len(self._gathered), *self._placement.shape_before_crop), np.float32)
        if not self._heads.has_regions:
            whole[0] = 1.0
        whole[(slice(None), *as_slices(self._placement.box))] = self._gathered
        return whole
