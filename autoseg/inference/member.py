"""One model of an ensemble, ready to run: it prepares the image and streams logits, which `decide` turns into labels.

Those with the same spacing, normalisation and resampling share one prepared image; so does a cascade with its previous
stage, of which it keeps the labels and nothing else.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.dataloading.previous_stage import one_hot
from autoseg.datasets.dataset import LoadedCase
from autoseg.errors import UsageError
from autoseg.imaging.components import as_slices
from autoseg.imaging.corrections import correct
from autoseg.imaging.dense_crf import refine
from autoseg.imaging.placement import Placement
from autoseg.inference.empty_tiles import occupied
from autoseg.inference.options import InferenceOptions
from autoseg.inference.rows_on_disk import kept
from autoseg.inference.streaming import Consumer, LabelConsumer, Scores, empty_labels, hand_over
from autoseg.inference.worthwhile import keep_labels, worthwhile
from autoseg.models.build import configuration_mirror_axes, tile_growth, tile_size
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model
from autoseg.nn.label_rows import Axes, LabelRows, resampled_rows
from autoseg.nn.precision import autocast
from autoseg.nn.rolling_sums import Block
from autoseg.nn.sliding_window import (
    Image,
    Progress,
    Tiling,
    Window,
    flip_sets,
    images_at_once,
    mirrored,
    stream_logits,
)  # fmt: skip
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
            made = prepare(loaded.image, None, loaded.spacing, plan, configuration, name)
            self._made[key] = replace(made, image=kept(made.image))  # type: ignore[arg-type]
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
        part_of: number of the model of which it is a part, in an ensemble that was taken apart; None: a whole model.

    Attributes:
        progress: called with (tiles done, tiles in all) of every image that is streamed, where it was set.
    """

    def __init__(
        self,
        model: Model,
        options: InferenceOptions = InferenceOptions(),
        preparations: Preparations | None = None,
        part_of: int | None = None,
    ) -> None:
        plan, configuration = model.plan, model.configuration
        self.model, self.part_of = model, part_of
        self.progress: Progress | None = None
        self.preparations = Preparations() if preparations is None else preparations
        self.previous: EnsembleMember | None = None
        if model.previous:
            self.previous = EnsembleMember(model.previous, replace(options, top_k=None), self.preparations)
        elif options.top_k is not None:
            raise UsageError(
                f"--top-k: {model.name} has no previous stage that says which tiles are worthwhile",
                remedy="predict with 3d_cascade, or without --top-k",
            )
        mirroring = plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
        axes = configuration_mirror_axes(plan, configuration, options.mirror_axes) if mirroring else ()
        self._networks = [
            mirrored(partial(_finest_logits, network, model), axes, even=options.even_flips)
            for network in model.networks
        ]
        planned = configuration.cost.tile_batch if configuration.cost else 4
        self._tile_batch = options.tile_batch or (None if model.device.type == "cpu" else planned)
        self._mirrored = len(flip_sets(axes, even=options.even_flips)) > 1
        self._growth = options.tile or tile_growth(model.device.type)
        self._step, self._top_k = options.step, options.top_k
        self._skip_empty = options.skip_empty

    def prepare(self, loaded: LoadedCase) -> Prepared:
        """An image as the model sees it, without the segmentation of its previous stage."""
        return self.preparations.of(loaded, self.model)

    def logits(self, image: np.ndarray) -> Tensor:
        """Mean logits (K, Z, Y, X) float32 of all folds and mirrorings for a prepared image (C, Z, Y, X)."""
        logits = torch.empty((self.model.plan.heads.num_heads, *image.shape[1:]), device=self.model.device)
        for block in self.stream(image):
            logits[:, block.rows, block.lines] = block.logits
        return logits

    def stream(
        self, image: Image, *, whole_rows: bool = False, chosen: Callable[[Window], bool] | None = None
    ) -> Iterator[Block]:
        """The same, block by block, as soon as they are finished; see `stream_logits`."""
        yield from stream_logits(
            image, self._networks, self.tiling(image.shape), out_channels=self.model.plan.heads.num_heads,
            device=self.model.device, whole_rows=whole_rows, chosen=chosen, progress=self.progress,
        )  # fmt: skip

    def tiling(self, shape: Sequence[int]) -> Tiling:
        """How an image (C, Z, Y, X) of this shape is divided into tiles; or one of (C, Y, X), by a 2-D network."""
        z, y, x = (1,) * (4 - len(shape)) + tuple(shape[1:])
        tile = tile_size(self.model.configuration, (z, y, x), growth=self._growth, step=self._step)
        batch = self._tile_batch or (1 if self._mirrored else images_at_once(self.model.device, tile))
        return Tiling(tile, self._step, batch, reuse_constant=True)

    def blocks(self, loaded: LoadedCase, *, whole_rows: bool = False) -> Iterator[Block]:
        """Mean logits of an image on the grid of the configuration, block by block."""
        plan, before = self.model.plan, self._before(loaded)
        image = self._with_labels(loaded, before)
        chosen = self.chosen(loaded, before)
        if chosen is None:
            yield from self.stream(image, whole_rows=whole_rows)
            return
        for block in self.stream(image, whole_rows=whole_rows, chosen=chosen.__contains__):
            keep_labels(block, before, plan.heads)
            yield block

    def seen(self, loaded: LoadedCase) -> Image:
        """What the networks see of an image: (C, Z, Y, X), and the labels of the previous stage, which is run."""
        return self._with_labels(loaded, self._before(loaded))

    def _before(self, loaded: LoadedCase) -> np.ndarray:
        """Class indices (Z, Y, X) of the previous stage on the grid; background where there is none."""
        placement = self.prepare(loaded).placement
        if self.previous is None:
            return np.broadcast_to(np.uint8(0), placement.shape)  # what is kept where no tile is computed
        return previous_labels(decide([self.previous], loaded), placement, self.model.plan)

    def _with_labels(self, loaded: LoadedCase, before: np.ndarray) -> Image:
        image: Image = self.prepare(loaded).image
        return _WithLabels(image, before, self.model.plan.labels.num_labels) if self.previous else image

    def chosen(self, loaded: LoadedCase, before: np.ndarray) -> set[Window] | None:
        """Which tiles of an image are computed; None: all.

        Args:
            before: (Z, Y, X) class indices of the previous stage on the grid, if there is one.
        """
        prepared = self.prepare(loaded)
        tiling, found = self.tiling(prepared.image.shape), None
        if self._skip_empty:
            found = occupied(prepared.placement.crop(loaded.image), prepared.placement.shape, tiling)
        if self._top_k is not None:
            best = worthwhile(before, tiling, self._top_k)
            found = best if found is None else best & found
        return found

    def axes_back(self, loaded: LoadedCase) -> Axes:
        """How the axes of the grid become those of the image, in its cropped box."""
        return self.prepare(loaded).placement.axes_back(self.model.plan.resampling)


def decide(
    members: Sequence[EnsembleMember],
    loaded: LoadedCase,
    consumers: Sequence[Consumer] = (),
    rule: Rule = PLAIN,
) -> np.ndarray:
    """Class indices (Z, Y, X) of the whole image, in the plan's axis order; background beyond the cropped box.

    The logits of each member are resampled to the image's grid. A single member decides by them: the largest, or the
    regions above 0; several by the mean of their probabilities. Parts of one model decide as the whole does, by their
    mean logits. Never are logits of the whole image held.

    Every member crops to the same box, which depends only on the image.

    Args:
        consumers: are given the logits of all members on the image's grid, too. Blocks are then whole rows, for which
            more memory is needed.
        rule: what is added to logits before they decide, and how boundaries and components are corrected then;
            consumers see the logits as they are.
    """
    heads = members[0].model.plan.heads
    if rule.crf is None or heads.has_regions:
        whole = _decided(members, loaded, consumers, rule.logit_offsets(heads))
    else:
        placement, offsets = members[0].prepare(loaded).placement, rule.logit_offsets(heads)
        scores = Scores(heads, placement.shape_after_crop, parts_of(members), offsets)
        whole = _decided(members, loaded, [*consumers, scores], offsets)
        refine(whole[as_slices(placement.box)], scores.values, placement.crop(loaded.image), loaded.spacing, rule.crf)
    if rule.components:
        volume = math.prod(loaded.spacing)
        correct(whole, rule.corrections(members[0].model.plan.labels, volume))
    return whole


def _decided(
    members: Sequence[EnsembleMember],
    loaded: LoadedCase,
    consumers: Sequence[Consumer],
    offsets: np.ndarray | None,
) -> np.ndarray:
    plan, placement = members[0].model.plan, members[0].prepare(loaded).placement
    heads, shape = plan.heads, placement.shape_after_crop
    whole = empty_labels(placement.shape_before_crop, heads)
    labels = whole[as_slices(placement.box)]
    if len(members) == 1 and not consumers:
        regions = heads.region_indices if heads.has_regions else None
        with LabelRows(members[0].axes_back(loaded), regions, labels, offsets) as rows:
            for block in members[0].blocks(loaded):
                rows.take(block)
        return whole
    rows_of = [resampled_rows(m.blocks(loaded, whole_rows=True), m.axes_back(loaded)) for m in members]
    hand_over(rows_of, (LabelConsumer(heads, labels, parts_of(members), offsets), *consumers), shape)
    return whole


def parts_of(members: Sequence[EnsembleMember]) -> list[int]:
    """Of each member, the model it is a part of."""
    return [number if m.part_of is None else m.part_of for number, m in enumerate(members)]


class _WithLabels:
    """A prepared image with the labels of a previous stage as further channels, made of the rows that are asked for."""

    def __init__(self, image: Image, labels: np.ndarray, num_labels: int) -> None:
        self._image, self._labels, self._num_labels = image, labels, num_labels
        self.shape = (image.shape[0] + num_labels, *image.shape[1:])

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        channels, rows = index
        return np.concatenate([self._image[:, rows], one_hot(self._labels[rows], self._num_labels)])[channels]


def previous_labels(indices: np.ndarray, placement: Placement, plan: Plan) -> np.ndarray:
    """A segmentation of the whole image as class indices (Z, Y, X) on the grid of a prepared one, as in training."""
    return placement.to_grid(indices, plan.resampling)


def _finest_logits(network: nn.Module, model: Model, image: Tensor) -> Tensor:
    """Logits at full resolution of a network that returns those of all stages; float32."""
    with autocast(model.device, model.dtype):
        return network(image)[0].float()
