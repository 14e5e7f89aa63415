"""A segmentation that a person corrects prompt by prompt: each is answered by a tile about it.

    case, and a mask or the automatic segmentation
      -> prompt -> window about it -> network (image, all prompts, present mask) -> labels there -> undo, or next prompt

The window has the size of the training patch, so that a prompt costs a pass of the network whatever the size of the
image. Labels change in the window alone, and not in its outermost EDGE, where a network sees too little around. The
network sees the present mask, so that what it leaves alone and what it changes fit together. A voxel that a person
clicked has the label that the person gave, whatever the network makes of it.

The mask is kept twice: on the grid of the image, which is what is saved, and on that of the network. What a prompt
replaced is kept, too, for `undo`. Nothing else grows with the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.datasets.dataset import LoadedCase
from autoseg.errors import UsageError
from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Axes3, Box
from autoseg.imaging.logit_rows import decide_row
from autoseg.imaging.prompts import InBox, Place, Prompt, channels_of, line_through, prompt_of, reach_of
from autoseg.imaging.taps import Taps
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.options import InferenceOptions
from autoseg.messages import suggest
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model

EDGE = 1 / 8  # of a window's edge, on either side, where the image continues: not replaced


@dataclass(frozen=True)
class _Replaced:
    """What a prompt replaced."""

    on_image: Box
    labels: np.ndarray
    on_grid: Box
    mask: np.ndarray


class Refinement:
    """One case that is being corrected.

    Args:
        model: trained with prompts (`Configuration.prompts`); all of its folds answer together.
        loaded: the case.
        options: tiles and mirroring.
        rule: by which the automatic segmentation is decided; its offsets hold for answers, too.
        mask: (Z, Y, X) class indices to begin with, in the axis order of the files; None: the automatic segmentation.

    Attributes:
        prompts: those given so far, as they were given.

    Prompts name voxels (z, y, x) in the axis order of the files, which is that of an array; of flat images (y, x), too.

    Raises:
        UsageError: the model takes no prompts.
    """

    def __init__(
        self,
        model: Model,
        loaded: LoadedCase,
        options: InferenceOptions = InferenceOptions(),
        rule: Rule = PLAIN,
        *,
        mask: np.ndarray | None = None,
    ) -> None:
        if model.configuration.prompts is None:
            raise UsageError(
                f"{model.name} was not trained with prompts", remedy=f"train prompts: {suggest('train', '--prompts')}"
            )
        self._model, self._loaded = model, loaded
        self._member = EnsembleMember(model, options)
        self._prepared = self._member.prepare(loaded)
        self._placement = self._prepared.placement
        self._offsets = rule.logit_offsets(model.plan.heads)
        if mask is None:
            self._labels = decide([self._member], loaded, (), rule)  # (Z, Y, X) in the axis order of the case
        else:
            self._labels = np.ascontiguousarray(loaded.from_stored(_checked(mask, model, loaded)))
        self._grid = self._placement.to_grid(self._labels, model.plan.resampling)
        self.prompts: list[Prompt] = []
        self._turned: list[Prompt] = []  # the same in the axis order of the case
        self._drawn: list[Prompt] = []  # and in voxels of the grid
        self._replaced: list[_Replaced] = []

    @property
    def model(self) -> Model:
        return self._model

    @property
    def labels(self) -> np.ndarray:
        """(Z, Y, X) class indices in the axis order of the files: a view, which later prompts change."""
        return self._loaded.to_stored(self._labels)

    def add(self, prompt: Prompt) -> None:
        """Answer a prompt.

        Raises:
            UsageError: a voxel outside the image, or a label that does not exist.
        """
        turned = self._turn(prompt)
        self.prompts.append(prompt)
        self._turned.append(turned)
        self._drawn.append(self._on_grid(turned))
        window = self._window(self._drawn[-1])
        inner = self._inner(window)
        outputs = outputs_within(inner, self._axes)
        on_image = _shifted(outputs, [start for start, _ in self._placement.box])
        spot = _union(on_image, _around(turned))
        self._replaced.append(
            _Replaced(spot, self._labels[as_slices(spot)].copy(), inner, self._grid[as_slices(inner)].copy())
        )
        logits = self._logits(window)
        if all(stop > start for start, stop in outputs):
            self._labels[as_slices(on_image)] = self._decided(resampled(logits, window, outputs, self._axes))
        part = tuple(slice(a - w, b - w) for (a, b), (w, _) in zip(inner, window, strict=True))
        self._grid[as_slices(inner)] = self._decided(logits[(slice(None), *part)])
        self._keep_promises()

    def undo(self) -> bool:
        """Take back the last prompt; returns whether there was one."""
        if not self._replaced:
            return False
        last = self._replaced.pop()
        for prompts in (self.prompts, self._turned, self._drawn):
            prompts.pop()
        self._labels[as_slices(last.on_image)] = last.labels
        self._grid[as_slices(last.on_grid)] = last.mask
        return True

    @property
    def _axes(self) -> tuple[Taps, Taps, Taps]:
        return self._placement.axes_back(self._model.plan.resampling)

    @property
    def _window_size(self) -> Axes3:
        """The patch, with one slice for a 2-D network."""
        patch = self._model.configuration.patch_size
        z, y, x = (1,) * (3 - len(patch)) + tuple(patch)
        return z, y, x

    def _turn(self, prompt: Prompt) -> Prompt:
        """A prompt in the axis order of the case. Raises UsageError where it cannot be."""
        labels = self._model.plan.labels.num_labels
        if not 0 <= prompt.index <= labels:
            raise UsageError(f"there is no label {prompt.index}", remedy=f"labels have the indices 0 to {labels}")
        points = tuple(self._turn_point(point) for point in prompt.points)
        return prompt_of(prompt.kind, points, prompt.index)

    def _turn_point(self, point: Place) -> Axes3:
        geometry = self._loaded.geometry
        stored = (0, *point) if geometry.flat and len(point) == 2 else point
        if len(stored) != 3 or any(not 0 <= i < size for i, size in zip(stored, geometry.shape, strict=True)):
            axes, shape = ("y, x", geometry.shape[1:]) if geometry.flat else ("z, y, x", geometry.shape)
            raise UsageError(
                f"the voxel {tuple(point)} lies outside the image, whose shape is {shape}",
                remedy=f"name {axes} of a voxel, counted from 0",
            )
        return self._loaded.voxel_from_stored(stored)

    def _on_grid(self, prompt: Prompt) -> Prompt:
        """A prompt in voxels of the network's grid; beyond the crop, at its edge."""
        return prompt_of(prompt.kind, tuple(self._to_grid(point) for point in prompt.points), prompt.index)

    def _to_grid(self, point: Place) -> Axes3:
        """The voxel of the grid that holds the centre of a voxel of the image."""
        placement, found = self._placement, []
        for i, (start, stop), size in zip(point, placement.box, placement.shape, strict=True):
            within = min(max(i - start, 0), stop - start - 1)
            found.append(min(int((within + 0.5) * size / (stop - start)), size - 1))
        z, y, x = found
        return z, y, x

    def _window(self, prompt: Prompt) -> Box:
        """The window of the grid that answers a prompt: as large as the patch, about its middle, inside the grid."""
        reach = reach_of(self._radius, self._placement.target_spacing)
        points = prompt.points
        edges = []
        for axis, (edge, size) in enumerate(zip(self._window_size, self._grid.shape, strict=True)):
            low, high = min(p[axis] for p in points), max(p[axis] for p in points)
            if edge == 1:  # a 2-D network sees slice by slice: all that the prompt reaches
                low, high = low - reach[axis], high + reach[axis]
                edges.append((max(low, 0), min(high + 1, size)))
                continue
            edge = max(edge, math.ceil((high - low + 1) / (1 - 2 * EDGE)) + 2)  # of a long scribble, several tiles
            start = min(max((low + high + 1) // 2 - edge // 2, 0), max(size - edge, 0))
            edges.append((start, min(start + edge, size)))
        z, y, x = edges
        return z, y, x

    def _inner(self, window: Box) -> Box:
        """The part of a window that is replaced."""
        edges = []
        for (start, stop), size, edge in zip(window, self._grid.shape, self._window_size, strict=True):
            margin = 0 if edge == 1 else int(EDGE * (stop - start))
            edges.append((start + margin if start else 0, stop - margin if stop < size else size))
        z, y, x = edges
        return z, y, x

    def _logits(self, window: Box) -> np.ndarray:
        """Logits (K, *window) of a window, under all prompts so far and the present mask."""
        spacing = self._placement.target_spacing
        image = self._prepared.image[:, slice(*window[0])][(slice(None), slice(None), *as_slices(window)[1:])]
        prompts = channels_of(
            self._drawn, self._grid[as_slices(window)], spacing, radius_mm=self._radius,
            num_labels=self._model.plan.labels.num_labels, lower=tuple(start for start, _ in window),
        )  # fmt: skip
        return self._member.logits(np.concatenate([image, prompts]).astype(np.float32, copy=False)).cpu().numpy()

    @property
    def _radius(self) -> float:
        assert self._model.configuration.prompts is not None
        return self._model.configuration.prompts.radius_mm

    def _decided(self, logits: np.ndarray) -> np.ndarray:
        """Class indices of logits (K, *s)."""
        heads = self._model.plan.heads
        scores = logits.copy() if self._offsets is None else logits + self._offsets.reshape(-1, 1, 1, 1)
        return decide_row(scores, heads.region_indices if heads.has_regions else None, self._labels.dtype)

    def _keep_promises(self) -> None:
        """Give voxels that a person named the label that was given, the last one last."""
        for prompt in self._turned:
            if not isinstance(prompt, InBox):
                for point in line_through(prompt.points):
                    self._labels[point] = prompt.index
        for drawn in self._drawn:
            if not isinstance(drawn, InBox):
                for point in line_through(drawn.points):
                    self._grid[point] = drawn.index


def outputs_within(inner: Box, axes: Sequence[Taps]) -> Box:
    """The voxels of the cropped image that lie between voxels of a part of the grid."""
    edges = []
    for (start, stop), axis in zip(inner, axes, strict=True):
        first = int(np.searchsorted(axis.low, start))
        edges.append((first, max(first, int(np.searchsorted(axis.high, stop)))))
    z, y, x = edges
    return z, y, x


def resampled(logits: np.ndarray, window: Box, outputs: Box, axes: Sequence[Taps]) -> np.ndarray:
    """Logits of a window of the grid, at some voxels of the cropped image."""
    result = logits
    for axis, ((first, _), (start, stop), taps) in enumerate(zip(window, outputs, axes, strict=True), start=1):
        part = taps.part(slice(start, stop), first, result.shape[axis])
        low, high = result.take(part.low, axis=axis), result.take(part.high, axis=axis)
        share = part.share.reshape((-1,) + (1,) * (result.ndim - axis - 1))
        result = low if part.is_identity else low * (1 - share) + high * share
    return result


def _checked(mask: np.ndarray, model: Model, loaded: LoadedCase) -> np.ndarray:
    """A mask to begin with, in the dtype of labels. Raises UsageError where it does not fit."""
    labels, shape = model.plan.labels.num_labels, loaded.geometry.shape
    if mask.shape != shape:
        raise UsageError(
            f"the mask has the shape {mask.shape}, the image {shape}", remedy="give a mask on the grid of the image"
        )
    if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= labels:
        raise UsageError(
            f"the mask holds class indices {mask.min()} to {mask.max()}", remedy=f"give indices from 0 to {labels}"
        )
    return mask.astype(np.min_scalar_type(labels))


def _around(prompt: Prompt) -> Box:
    """The box of the voxels that a prompt names."""
    points = prompt.points
    z, y, x = ((min(p[a] for p in points), max(p[a] for p in points) + 1) for a in range(3))
    return z, y, x


def _shifted(box: Box, by: Sequence[int]) -> Box:
    z, y, x = ((start + n, stop + n) for (start, stop), n in zip(box, by, strict=True))
    return z, y, x


def _union(box: Box, other: Box) -> Box:
    """The smallest box around two boxes; the first may be empty."""
    if any(stop <= start for start, stop in box):
        return other
    z, y, x = ((min(a, c), max(b, d)) for (a, b), (c, d) in zip(box, other, strict=True))
    return z, y, x
