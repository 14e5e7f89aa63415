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
from autoseg.imaging.prompts import Prompt
from autoseg.inference.arrays import CANONICAL, case_of_array
from autoseg.inference.ensemble import probabilities as mean_probabilities
from autoseg.inference.interactive import Refinement
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import unlike_training
from autoseg.inference.saliency import Asked, How, explain, head_of, voxel_of
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model, require_common


@dataclass(frozen=True)
class SegmentedArray:
    """What was made of an array; spatial axes in the order of the array."""

    labels: np.ndarray  # values as in label files, of the array's spatial shape
    probabilities: np.ndarray | None  # (K, *spatial) float32, one per head, where they were asked for
    remarks: tuple[Remark, ...]  # how the image differs from the training data


@dataclass(frozen=True)
class SaliencyOfArray:
    """Where models looked in an array."""

    maps: dict[str, np.ndarray]  # "saliency" first, then attention: float32 from 0 to 1, of the array's spatial shape
    note: str  # why they are 0, or what should be known of them; "": nothing
    remarks: tuple[Remark, ...]  # how the image differs from the training data


class CorrectedArray:
    """An array that is being corrected; spatial axes in the order of the array, values as in label files."""

    def __init__(self, refinement: Refinement, lock: threading.Lock, *, without_z: bool) -> None:
        self._refinement, self._lock, self._without_z = refinement, lock, without_z

    @property
    def labels(self) -> np.ndarray:
        """The segmentation as it is now: a copy of the array's spatial shape."""
        found = self._refinement.model.plan.labels.to_file_values(self._refinement.labels)
        return np.ascontiguousarray(found[0] if self._without_z else found)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Those given so far."""
        return tuple(self._refinement.prompts)

    def add(self, prompt: Prompt) -> None:
        """Answer a prompt. Raises UsageError: a voxel outside the array."""
        with self._lock:
            self._refinement.add(prompt)

    def undo(self) -> bool:
        """Take back the last prompt; returns whether there was one."""
        with self._lock:
            return self._refinement.undo()


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
        self._options = options
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

    def saliency(
        self,
        array: np.ndarray,
        spacing: Sequence[float] | None,
        orientation: str = CANONICAL,
        *,
        asked: Asked,
        how: How = How(),
    ) -> SaliencyOfArray:
        """Segment one array, and show where the models looked for a label of it; see `explain`.

        Raises:
            UsageError, DataError, OutOfMemory: as `segment`; no such label or stage, or the place lies outside.
        """
        self._require_open()
        loaded = case_of_array(array, self.plan, spacing, orientation)
        remarks = unlike_training(self.models, loaded)
        with self._lock:
            self._require_open()
            try:
                voxel_of(asked, loaded)
                head_of(asked, self.plan.heads)
                indices, _ = self._decide(loaded, False)
                found = explain(self.models, loaded, indices, asked, how, self._options, self._preparations)
            finally:
                self._preparations.forget()
        without_z = loaded.geometry.flat and np.ndim(array) < 4
        maps: dict[str, np.ndarray] = {}
        for made in found.maps:
            whole = np.zeros(loaded.image.shape[1:], np.float32)
            whole[as_slices(found.box)] = made.values
            stored = loaded.to_stored(whole)
            name = made.name if made.name not in maps else f"{made.name}_{made.model}"
            maps[name] = np.ascontiguousarray(stored[0] if without_z else stored)
        return SaliencyOfArray(maps, found.note, tuple(remarks))

    def refine(
        self,
        array: np.ndarray,
        spacing: Sequence[float] | None,
        orientation: str = CANONICAL,
        *,
        mask: np.ndarray | None = None,
    ) -> "CorrectedArray":
        """Begin to correct one array; see `Refinement`.

        Args:
            mask: values as in label files, of the array's spatial shape; None: the automatic segmentation.

        Raises:
            UsageError, DataError, OutOfMemory: as `segment`; the mask does not fit, or the model takes no prompts.
        """
        self._require_open()
        if len(self.models) > 1:
            raise UsageError("several models are averaged here: prompts correct one", remedy="open one model")
        loaded = case_of_array(array, self.plan, spacing, orientation)
        labels, given = self.plan.labels, None
        if mask is not None:
            values = np.asarray(mask)
            if values.dtype.kind not in "biu":
                raise UsageError(f"the mask holds {values.dtype}, expected whole numbers", remedy="convert it")
            values = values.astype(np.int64)
            if strange := labels.unexpected(values):
                raise UsageError(
                    f"the mask holds the values {sorted(strange)}", remedy=f"the labels are {labels.values}"
                )
            given = labels.to_indices(values[None] if loaded.geometry.flat and values.ndim == 2 else values)
        with self._lock:
            self._require_open()
            refinement = Refinement(self.models[0], loaded, self._options, self.rule, mask=given)
        return CorrectedArray(refinement, self._lock, without_z=loaded.geometry.flat and np.ndim(array) < 4)

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
