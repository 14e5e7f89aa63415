"""An ensemble taken apart into members that can be compared, and its mean.

One member per model is enough to segment: it averages its folds and flips. To measure how much they disagree, the
members are the folds, or every flip of every fold:

    split          models -> Ensemble, whose models have one network each
    probabilities  logits of the members -> probabilities of the ensemble, the same however it was taken apart

The networks of one model are averaged as logits, models as probabilities, so that what is decided does not depend on
what is measured beside it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from autoseg.imaging.labels import LabelSet
from autoseg.inference.options import InferenceOptions
from autoseg.models.build import configuration_mirror_axes, head_probabilities
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model
from autoseg.nn.sliding_window import flip_sets

By = Literal["models", "folds", "flips"]
SMALLEST = 1e-7  # probability whose logit is distinguished from that of smaller ones


@dataclass(frozen=True)
class Ensemble:
    """Models that are run side by side, and what they are parts of."""

    models: tuple[Model, ...]  # one per member
    options: InferenceOptions  # to run them with
    model_of: tuple[int, ...]  # of each member: the model it is a part of, by number
    fold_of: tuple[int, ...]  # of each member: the network it is a part of, counted over all models
    rule: Rule = PLAIN  # by which labels are decided

    @property
    def labels(self) -> LabelSet:
        """What is segmented: the same for all models."""
        return self.models[0].plan.labels

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each member in the ensemble; they add up to 1."""
        models = len(set(self.model_of))
        return tuple(1 / (models * self.model_of.count(model)) for model in self.model_of)


def split(models: Sequence[Model], options: InferenceOptions = InferenceOptions(), by: By = "folds") -> Ensemble:
    """Take models apart into members: one per model, per fold, or per flip of each fold.

    Args:
        by: "flips": the members of a fold are its network on the image and on each of its mirror images; only one
            where the plan or the options allow no mirroring.
    """
    parts: list[Model] = []
    model_of: list[int] = []
    fold_of: list[int] = []
    folds = itertools.count()
    for number, model in enumerate(models):
        if by == "models":
            parts, model_of, fold_of = [*parts, model], [*model_of, number], [*fold_of, next(folds)]
            continue
        flips = _flips(model, options) if by == "flips" else [()]
        for fold, network in zip(model.folds, model.networks, strict=True):
            which = next(folds)
            for axes in flips:
                flipped = Flipped(network, axes) if axes else network
                parts.append(replace(model, folds=(fold,), networks=(flipped,)))
                model_of.append(number)
                fold_of.append(which)
    if by == "flips":
        options = replace(options, mirroring=False)
    return Ensemble(tuple(parts), options, tuple(model_of), tuple(fold_of))


def probabilities(logits: Sequence[Tensor], model_of: Sequence[int], has_regions: bool) -> Tensor:
    """Probabilities (K, ...) of the ensemble from the logits (K, ...) of its members.

    Args:
        model_of: of each member, the model it is a part of: the logits of one model are averaged, models are averaged
            as probabilities.
    """
    total: Tensor | None = None
    models = dict.fromkeys(model_of)
    for model in models:
        own = [part for part, of in zip(logits, model_of, strict=True) if of == model]
        mean = own[0] if len(own) == 1 else torch.stack(tuple(own)).mean(dim=0)
        found = head_probabilities(mean[None], has_regions)[0]
        total = found if total is None else total.add_(found)
    assert total is not None, "an ensemble has a member"
    return total if len(models) == 1 else total.div_(len(models))


def ensemble_logits(logits: Sequence[Tensor], model_of: Sequence[int], has_regions: bool) -> Tensor:
    """What decides in place of logits (K, ...): of one model their mean, of several that of their mean probabilities.

    The result is a tensor of its own, which may be changed. Arguments as for `probabilities`.
    """
    if len(set(model_of)) == 1:
        return logits[0].clone() if len(logits) == 1 else torch.stack(tuple(logits)).mean(dim=0)
    mean = probabilities(logits, model_of, has_regions)
    return torch.logit(mean, eps=SMALLEST) if has_regions else mean.clamp(min=SMALLEST).log()


class Flipped(nn.Module):
    """A network on the mirror image: its input and the logits of all its stages are flipped along the same axes."""

    def __init__(self, network: nn.Module, axes: Sequence[int]) -> None:
        """Args: axes: spatial axes, counted from 0."""
        super().__init__()
        self.network = network
        self.axes = tuple(axis + 2 for axis in axes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of all stages, the finest first, for an image (B, C, *s)."""
        return [logits.flip(self.axes) for logits in self.network(image.flip(self.axes))]


def _flips(model: Model, options: InferenceOptions) -> list[tuple[int, ...]]:
    """Every set of axes that a model is flipped along at once, the empty one first."""
    mirroring = model.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
    if not mirroring:
        return [()]
    axes = configuration_mirror_axes(model.plan, model.configuration, options.mirror_axes)
    return flip_sets(axes, even=options.even_flips)
