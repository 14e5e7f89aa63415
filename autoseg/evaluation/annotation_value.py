"""Unlabelled images by the expected benefit of annotating them: those that the ensemble is least sure of come first.

Uncertainty is counted label by label, and then averaged over the labels: over all voxels, an image would be the surer
the more background it shows, and a small label would not count (class-stratified, as in Nath et al. 2022,
arXiv 2206.12284). A voxel belongs to a label by its probability, so that a label that is nearly found counts as well.

    entropy       of a label: mean entropy of the ensemble (0 to 1), weighted by the label's probability
    disagreement  the same of the mutual information of class and member (`inference/uncertainty.py`)
    pairwise      1 - mean Dice over pairs of members (`inference/agreement.py`)

Where `evaluate --expected-dice` was run, the images are ordered by the mean Dice that is expected of them, the lowest
first; elsewhere by entropy. Only sums are kept of a case.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.datasets.dataset import Case, Problem, load_case
from autoseg.errors import DataError
from autoseg.imaging.labels import LabelSet
from autoseg.inference.agreement import Agreement, AgreementCounter
from autoseg.inference.ensemble import Ensemble, probabilities
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.statistics import ExpectedDice
from autoseg.inference.uncertainty import entropy_and_disagreement
from autoseg.messages import aligned
from autoseg.workspace import write_text

LEAST_VOXELS = 1.0  # expected size of a label that counts; a smaller one is not in the image as far as anybody knows
Expecting = Callable[[Agreement], tuple[Mapping[str, ExpectedDice], ExpectedDice | None]]


@dataclass(frozen=True)
class LabelUncertainty:
    """One label or region of an image."""

    entropy: float
    disagreement: float
    pairwise: float | None  # 1 - mean Dice of pairs of members; None: there is one member, or none finds the label
    expected_dice: float | None  # None: not learnt
    voxels: float  # expected size: sum of its probability


@dataclass(frozen=True)
class WorthOfImage:
    """What annotating an image would teach."""

    case: str
    entropy: float  # mean over its labels; 0: none is in it
    disagreement: float
    expected_dice: float | None  # of the mean over labels; None: not learnt
    labels: dict[str, LabelUncertainty]
    most_uncertain: str  # label; empty: none is in the image
    image: str


@dataclass(frozen=True)
class AnnotationOrder:
    """Images, the most beneficial first."""

    by: Literal["expected_dice", "entropy"]
    cases: tuple[WorthOfImage, ...]
    failed: tuple[Problem, ...] = ()  # images that could not be read


class UncertaintySums:
    """Sums of entropy and disagreement, weighted by the probability of each label. A consumer of rows."""

    def __init__(self, heads: LabelSet, model_of: Sequence[int], weights: Sequence[float]) -> None:
        """Start a case.

        Args:
            heads: `Plan.heads`.
            model_of, weights: of each member (`Ensemble`).
        """
        self.heads, self.model_of, self.weights = heads, tuple(model_of), tuple(weights)
        self._sums = np.zeros((3, len(heads.scored)))  # of probability, and of it times entropy and disagreement

    def take(self, rows: slice, logits: Sequence) -> None:
        """Count rows of the box: one tensor (K, n, Y, X) per member."""
        maps = entropy_and_disagreement(logits, self.weights, self.heads.has_regions)
        found = probabilities(logits, self.model_of, self.heads.has_regions)
        weights = (found if self.heads.has_regions else found[1:]).flatten(1).double()
        self._sums[0] += weights.sum(dim=1).cpu().numpy()
        for total, values in zip(self._sums[1:], maps, strict=True):
            total += (weights @ values.flatten().double()).cpu().numpy()

    def result(self) -> dict[str, tuple[float, float, float]]:
        """Label -> entropy, disagreement, expected voxels; labels that are not in the image are left out."""
        sizes, entropy, disagreement = self._sums
        return {
            name: (float(entropy[i] / sizes[i]), float(disagreement[i] / sizes[i]), float(sizes[i]))
            for i, name in enumerate(self.heads.scored)
            if sizes[i] >= LEAST_VOXELS
        }


def look(
    ensemble: Ensemble, cases: Sequence[Case], expected: Expecting | None = None, failed: list[Problem] | None = None
) -> Iterator[WorthOfImage]:
    """Measure how sure an ensemble is of each image.

    Args:
        ensemble: taken apart into folds or flips (`inference/ensemble.py`).
        expected: agreement -> expected Dice of each label, and of their mean; None: not learnt.
        failed: images that cannot be read are added to it.
    """
    shared = Preparations()
    members = [
        EnsembleMember(model, ensemble.options, shared, part_of)
        for model, part_of in zip(ensemble.models, ensemble.model_of, strict=True)
    ]
    plan = ensemble.models[0].plan
    for case in cases:
        try:
            loaded = load_case(
                case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
            )
            if len(loaded.image) != len(plan.channels):
                raise DataError(
                    f"{case.images[0]}: {len(loaded.image)} channels, but the model was trained on "
                    f"{len(plan.channels)}: {', '.join(plan.channels)}",
                    remedy="give images with the same channels as the training data",
                )
        except DataError as error:
            if failed is None:
                raise
            failed.append(Problem(case.id, case.images[0], error.what, error.remedy))
            continue
        sums = UncertaintySums(plan.heads, ensemble.model_of, ensemble.weights)
        counter = AgreementCounter(plan.heads, ensemble.fold_of)
        decide(members, loaded, consumers=[sums, counter])
        shared.forget()
        yield worth(case, sums.result(), counter.result(), expected)


def worth(
    case: Case,
    found: Mapping[str, tuple[float, float, float]],
    agreement: Agreement,
    expected: Expecting | None = None,
) -> WorthOfImage:
    """Put together what was measured of one image."""
    dice, mean = expected(agreement) if expected else ({}, None)
    labels = {}
    for name, (entropy, disagreement, voxels) in found.items():
        pairs = agreement.pairwise_dice.get(name)
        labels[name] = LabelUncertainty(
            entropy=entropy,
            disagreement=disagreement,
            pairwise=None if pairs is None else 1 - pairs,
            expected_dice=dice[name].dice if name in dice else None,
            voxels=voxels,
        )
    return WorthOfImage(
        case=case.id,
        entropy=float(np.mean([one.entropy for one in labels.values()])) if labels else 0.0,
        disagreement=float(np.mean([one.disagreement for one in labels.values()])) if labels else 0.0,
        expected_dice=None if mean is None else mean.dice,
        labels=labels,
        most_uncertain=max(labels, key=lambda name: labels[name].entropy, default=""),
        image=case.images[0],
    )


def ordered(cases: Sequence[WorthOfImage], failed: Sequence[Problem] = ()) -> AnnotationOrder:
    """Order images: by expected Dice where it is known of all in which something is found, otherwise by entropy."""
    known = [case.expected_dice is not None for case in cases if case.labels]
    if known and all(known):
        chosen = sorted(cases, key=lambda case: (1 if case.expected_dice is None else case.expected_dice, case.case))
        return AnnotationOrder("expected_dice", tuple(chosen), tuple(failed))
    return AnnotationOrder("entropy", tuple(sorted(cases, key=lambda case: (-case.entropy, case.case))), tuple(failed))


def describe(found: AnnotationOrder, top: int) -> str:
    """The most beneficial images as a table."""
    rows = [("", "image", "entropy", "disagreement", "expected Dice", "least sure of", "its entropy")]
    for number, case in enumerate(found.cases[:top], start=1):
        expected = "-" if case.expected_dice is None else f"{case.expected_dice:.3f}"
        label = case.labels.get(case.most_uncertain)
        rows.append(
            (
                f"{number}", case.case, f"{case.entropy:.3f}", f"{case.disagreement:.3f}", expected,
                case.most_uncertain or "nothing was found", f"{label.entropy:.3f}" if label else "-",
            )
        )  # fmt: skip
    lines = aligned(rows, right=(0, 2, 3, 4, 6))
    if len(found.cases) > top:
        lines.append(f"... and {len(found.cases) - top} more images")
    how = "the Dice expected of them, the lowest first" if found.by == "expected_dice" else "entropy, the highest first"
    lines.append(f"ordered by {how}; entropy and disagreement (0 to 1) are means over labels, not over voxels")
    return "\n".join(lines)


def to_csv(found: AnnotationOrder, path: Path) -> None:
    """Write one row per image and label, in the order of the images; an image without any label has one row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["rank", "case", "entropy", "disagreement", "expected_dice", "label"]
    writer.writerow([*columns, "label_entropy", "label_disagreement", "label_expected_dice", "voxels", "image"])
    for number, case in enumerate(found.cases, start=1):
        whole = [number, case.case, f"{case.entropy:.6f}", f"{case.disagreement:.6f}", _cell(case.expected_dice)]
        for name, label in case.labels.items():
            own = [name, f"{label.entropy:.6f}", f"{label.disagreement:.6f}", _cell(label.expected_dice)]
            writer.writerow([*whole, *own, f"{label.voxels:.1f}", case.image])
        if not case.labels:
            writer.writerow([*whole, "", "", "", "", "", case.image])
    write_text(path, text.getvalue())


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
