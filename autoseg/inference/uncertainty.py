"""How sure an ensemble is, voxel by voxel: entropy of its mean, and disagreement of its members.

    OUT/uncertainty/CASE/uncertainty.json   means over the predicted foreground
                         entropy.nii        0: certain; 1: all classes are equally likely
                         disagreement.nii   0: the members agree; 1: each is certain of another class

Entropy is high wherever the ensemble hesitates, also where the image itself does not decide (the border of a tumour).
Disagreement is high where the members contradict each other, as for an image unlike the training data. It is the mutual
information of the class and the member: the entropy of the mean minus the mean of the entropies (Houlsby et al. 2011,
arXiv 1112.5745; for segmentation Kahl et al. 2024, arXiv 2401.08501). Both are divided by their largest possible value.
Regions, which may overlap, have an entropy each; the most uncertain region counts.

The mean is that of the members' probabilities, by which mutual information is defined. Members are folds, or the flips
of one fold: `ensemble.split`.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from autoseg.imaging.formats.unit_maps import UnitMap
from autoseg.imaging.labels import LabelSet
from autoseg.inference.on_image import OnImage
from autoseg.inference.probabilities import move_into_place, require_space, staging_of
from autoseg.models.build import head_probabilities
from autoseg.records import save
from autoseg.rules import anything, at_least, between, exactly, file_name

VERSION = 1
INDEX = "uncertainty.json"
MAPS = ("entropy", "disagreement")

Share = Annotated[float, between(0, 1)]


@dataclass(frozen=True)
class Uncertainty:
    """Means of the two maps over a set of voxels."""

    entropy: Share
    disagreement: Share


@dataclass(frozen=True)
class CaseUncertainty:
    """`uncertainty.json`: one case."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    case: Annotated[str, file_name()]
    members: Annotated[int, at_least(1, 10**6)]
    foreground: Uncertainty | None  # None: nothing was found
    labels: dict[Annotated[str, anything("any text")], Uncertainty] = field(default_factory=dict)  # those found


def entropy_and_disagreement(
    logits: Sequence[Tensor], weights: Sequence[float], has_regions: bool
) -> tuple[Tensor, Tensor]:
    """Both maps (...) float32, from 0 to 1, of the logits (K, ...) of the members.

    Args:
        weights: share of each member; they add up to 1. One member alone disagrees with nobody: 0.
    """
    mean: Tensor | None = None
    inner: Tensor | None = None  # mean of the members' entropies
    for part, weight in zip(logits, weights, strict=True):
        found = head_probabilities(part[None].float(), has_regions)[0]
        own = _entropy(found, has_regions).mul_(weight)
        found = found.mul_(weight)
        mean = found if mean is None else mean.add_(found)
        inner = own if inner is None else inner.add_(own)
    assert mean is not None
    assert inner is not None
    total = _entropy(mean, has_regions)
    classes = 2 if has_regions else len(mean)
    most = math.log(classes)
    votes = -sum(weight * math.log(weight) for weight in weights if weight > 0)
    apart = (total - inner).div_(min(most, votes) or 1.0) if len(weights) > 1 else torch.zeros_like(total)
    total = total.div_(most)
    if has_regions:
        total, apart = total.amax(dim=0), apart.amax(dim=0)
    return total.clamp_(0, 1), apart.clamp_(0, 1)


class UncertaintyWriter:
    """Writes both maps of one case while it is segmented. A consumer of rows."""

    def __init__(
        self, folder: Path, case: str, heads: LabelSet, place: OnImage, like: Path, weights: Sequence[float]
    ) -> None:
        """Create the files; beyond the box of the image both are 0.

        Args:
            folder: of this case.
            heads: `Plan.heads`.
            like: file of the image.
            weights: share of each member in the ensemble (`Ensemble.weights`).

        Raises:
            UsageError: the folder exists and holds something else. StorageError: the disk is full.
        """
        self.folder, self.case, self.heads, self.weights = folder, case, heads, tuple(weights)
        self._staging = staging_of(folder, INDEX)
        require_space(folder, place, len(MAPS))
        self._maps = [UnitMap(self._staging / name, place.geometry, like) for name in MAPS]
        self._views = [place.inside(made.stored) for made in self._maps]

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        """Write rows of the box: one tensor (K, n, Y, X) float32 per member."""
        found = entropy_and_disagreement(logits, self.weights, self.heads.has_regions)
        for made, view, values in zip(self._maps, self._views, found, strict=True):
            view[rows] = made.encode(values.cpu().numpy())

    def finish(self, indices: np.ndarray) -> CaseUncertainty:
        """Complete the folder, and summarise it over the decided labels.

        Args:
            indices: class indices (Z, Y, X) of the whole image, in stored order.
        """
        count = self.heads.num_labels + 1
        voxels = np.zeros(count)
        sums = np.zeros((len(MAPS), count))
        for z, plane in enumerate(indices):
            flat = plane.ravel()
            if not flat.any():
                continue
            voxels += np.bincount(flat, minlength=count)
            for total, made in zip(sums, self._maps, strict=True):
                total += np.bincount(flat, weights=made.decode(made.stored[z]).ravel(), minlength=count)
        labels = {
            name: Uncertainty(*(float(total[i] / voxels[i]) for total in sums))
            for i, name in enumerate(self.heads.values, start=1)
            if voxels[i]
        }
        inside = voxels[1:].sum()
        foreground = Uncertainty(*(float(total[1:].sum() / inside) for total in sums)) if inside else None
        summary = CaseUncertainty(VERSION, self.case, len(self.weights), foreground, labels)
        self._release()
        save(self._staging / INDEX, summary)
        move_into_place(self._staging, self.folder)
        return summary

    def abandon(self) -> None:
        """Delete what was written of a case that could not be segmented."""
        self._release()
        shutil.rmtree(self._staging, ignore_errors=True)

    def _release(self) -> None:
        self._views.clear()
        for made in self._maps:
            made.close()


def _entropy(probabilities: Tensor, has_regions: bool) -> Tensor:
    """Entropy in nats: (...) of a softmax (K, ...); (K, ...) of sigmoids (K, ...), each for itself."""
    if has_regions:
        return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    return torch.special.entr(probabilities).sum(dim=0)
