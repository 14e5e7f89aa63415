"""Whether the probabilities of a model mean what they say, on its held-out cases: calibration, ROC and FROC.

    measure_sureness   folds and their held-out cases -> Sureness
    describe           Sureness -> lines

Each held-out case is segmented by the fold that did not train on it. Far from every object all networks are sure of the
background, and right; counted there, any network is well calibrated. So those voxels count that are within MARGIN
voxels of the reference, or to which the network gives a foreground of LEAST_PROBABILITY or more. Counts are taken while
rows pass by (`calibration`). A FROC curve (`froc`) is made of labels that fall into several components in a quarter of
their cases, such as lesions: an organ cannot be found more or less often.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from scipy import ndimage

from autoseg.datasets.dataset import Case, LoadedCase, load_case
from autoseg.evaluation.calibration import Ranking, Reliability
from autoseg.evaluation.froc import FALSE_ALARMS, LEAST_PROBABILITY, Candidates, candidates, froc
from autoseg.imaging.components import as_slices
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.placement import Placement
from autoseg.messages import counted, ruled
from autoseg.progress import Progress
from autoseg.rules import anything, at_least, between, exactly
from autoseg.workspace import FoldName

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.models.model import Model

VERSION = 1
MARGIN = 2  # voxels about the reference
OFTEN = 0.25  # share of its cases in which a label has several components, from which FROC is measured
Text = Annotated[str, anything("any text")]
Share = Annotated[float, between(0, 1)]
Count = Annotated[int, at_least(0, 10**15)]


@dataclass(frozen=True)
class Bin:
    """Voxels of about one probability."""

    confidence: Share  # mean
    accuracy: Share  # share that is right
    share: Share  # of all voxels


@dataclass(frozen=True)
class LabelSureness:
    """One label or region against everything else."""

    ece: Share | None  # None: no voxel counts
    brier: Annotated[float, between(0, 2)] | None
    auc: Share | None  # of the ROC curve; None: no voxel of it, or no other
    lesions: Count  # components of all references, where FROC is measured
    found: dict[Text, Share]  # false alarms per image -> share of the lesions; empty: FROC is not measured
    froc: Share | None  # mean of these


@dataclass(frozen=True)
class Sureness:
    """`calibration.json` of a model's folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    configuration: Text
    network: Text
    weights: dict[Text, Text]  # fold -> digest of its weights
    cases: tuple[Text, ...]
    voxels: Count  # that count
    ece: Share | None  # of the most probable class; of regions, which do not exclude each other, the mean over them
    brier: Annotated[float, between(0, 2)] | None
    bins: tuple[Bin, ...]  # without empty ones; of regions, over all of them
    labels: dict[Text, LabelSureness]


class ProbabilityCounter:
    """Counts the voxels of one case. A consumer of rows of one member."""

    def __init__(self, heads: LabelSet, target: np.ndarray, spread: Sequence[str] = ()) -> None:
        """Start a case.

        Args:
            heads: `Plan.heads`.
            target: class indices (Z, Y, X) of the box.
            spread: labels whose probability is kept, two bytes a voxel: for FROC.
        """
        self.heads, self.target = heads, target
        known = target > 0 if heads.ignore_index is None else (target > 0) & (target != heads.ignore_index)
        self.near = ndimage.binary_dilation(known, iterations=MARGIN) if known.any() else known
        self.chosen = Reliability.empty()
        self.each = {name: Reliability.empty() for name in heads.scored}
        self.rankings = {name: Ranking.empty() for name in heads.scored}
        self.maps = {name: np.zeros(target.shape, np.float16) for name in spread}

    def take(self, rows: slice, logits: Sequence) -> None:
        """Count some rows: one tensor (K, n, Y, X) of the one member."""
        from autoseg.models.build import head_probabilities

        (mean,) = logits
        found = head_probabilities(mean[None], self.heads.has_regions)[0].cpu().numpy().clip(0, 1)
        target = self.target[rows]
        foreground = found.max(axis=0) if self.heads.has_regions else 1 - found[0]
        counts = self.near[rows] | (foreground >= LEAST_PROBABILITY)
        if self.heads.ignore_index is not None:
            counts &= target != self.heads.ignore_index
        truth, columns = target[counts], found[:, counts]
        if not self.heads.has_regions:
            self.chosen = self.chosen.updated(columns, truth)
        for number, (name, indices) in enumerate(self.heads.scored.items()):
            here = number if self.heads.has_regions else indices[0]
            inside = np.isin(truth, indices)
            self.each[name] = self.each[name].updated(columns[here], inside)
            self.rankings[name] = self.rankings[name].updated(columns[here], inside)
            if name in self.maps:
                self.maps[name][rows] = found[here]

    def candidates(self, placement: Placement, target: np.ndarray) -> dict[str, Candidates]:
        """What the case claims of each label that is kept.

        Args:
            target: class indices of the whole image, which is background beyond the box for the network.
        """
        ignored = None if self.heads.ignore_index is None else target == self.heads.ignore_index
        return {
            name: candidates(placement.uncrop(kept), np.isin(target, self.heads.scored[name]), ignored=ignored)
            for name, kept in self.maps.items()
        }


@dataclass
class _Totals:
    """Sums over cases."""

    chosen: Reliability
    each: dict[str, Reliability]
    rankings: dict[str, Ranking]
    images: dict[str, list[Candidates]]

    def add(self, one: ProbabilityCounter, found: Mapping[str, Candidates]) -> None:
        self.chosen += one.chosen
        for name in self.each:
            self.each[name] += one.each[name]
            self.rankings[name] += one.rankings[name]
        for name, of_image in found.items():
            self.images[name].append(of_image)


def measure_sureness(
    models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], spread: Sequence[str] = ()
) -> Sureness:
    """Segment every fold's held-out cases by that fold, and count how right it is where it is how sure.

    Args:
        models: one per fold, of that fold alone.
        cases: with labels, by fold.
        spread: labels to measure FROC of, see `spread_labels`.

    Raises:
        DataError: an image or a label cannot be read.
    """
    from autoseg.models.identity import weights_digest

    first = next(iter(models.values()))
    heads = first.plan.heads
    totals = _Totals(
        Reliability.empty(),
        {name: Reliability.empty() for name in heads.scored},
        {name: Ranking.empty() for name in heads.scored},
        {name: [] for name in spread},
    )
    seen: list[str] = []
    with Progress(sum(map(len, cases.values())), "calibration") as progress:
        for fold, model in models.items():
            for case, counter, found in _counted(model, cases[fold], spread):
                totals.add(counter, found)
                seen.append(case)
                progress.update()
    weights = {str(fold): weights_digest(model.networks[0]) for fold, model in models.items()}
    return _made(first.configuration_name, first.configuration.network.name, weights, seen, totals)


def spread_labels(components: Sequence[Mapping[str, int]]) -> list[str]:
    """The labels that fall into several components in many of the cases that hold them.

    Args:
        components: of each case, label -> components of its reference.
    """
    counts: dict[str, list[int]] = {}
    for case in components:
        for name, count in case.items():
            counts.setdefault(name, []).append(count)
    return [name for name, found in counts.items() if np.mean(np.array(found) > 1) >= OFTEN]


def describe(found: Sureness) -> str:
    """Bins of confidence, and one row per label."""
    rows = [["probability", "right", "share of voxels"]]
    rows += [[f"{one.confidence:.3f}", f"{one.accuracy:.3f}", f"{one.share:.1%}"] for one in found.bins]
    titles = [f"{number:g}" for number in FALSE_ALARMS]
    lesions = any(label.found for label in found.labels.values())
    header = ["label", "ECE", "Brier", "AUC", *(["lesions", *titles, "FROC"] if lesions else [])]
    table = [header]
    for name, label in found.labels.items():
        row = [name, *map(_number, (label.ece, label.brier, label.auc))]
        if lesions:
            shares = [_number(label.found.get(title), 2) for title in titles]
            row += [f"{label.lesions}" if label.found else "-", *shares, _number(label.froc, 2)]
        table.append(row)
    mean = "of the most probable class" if found.brier is not None else "mean over regions"
    lines = [
        f"{found.configuration}, {found.network}: probabilities of {counted(len(found.cases), 'held-out case')}, "
        f"{found.voxels} voxels within {MARGIN} of the reference or with {LEAST_PROBABILITY:.0%} of foreground",
        "",
        ruled(rows),
        "",
        f"expected calibration error, {mean}: {_number(found.ece)}",
        "",
        ruled(table),
    ]
    if lesions:
        lines.append("1/8 to 8: share of the lesions found at so many false alarms per image; FROC is their mean")
    return "\n".join(lines)


def _counted(
    model: "Model", cases: Sequence[Case], spread: Sequence[str]
) -> Iterator[tuple[str, ProbabilityCounter, dict[str, Candidates]]]:
    """The counts of each held-out case of a model of one fold, and its candidates."""
    from autoseg.inference.member import EnsembleMember, Preparations, decide
    from autoseg.inference.options import InferenceOptions

    plan, shared = model.plan, Preparations()
    member = EnsembleMember(model, InferenceOptions(), shared)
    for case in cases:
        loaded: LoadedCase = load_case(
            case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )
        assert loaded.target is not None
        placement = member.prepare(loaded).placement
        counter = ProbabilityCounter(plan.heads, loaded.target[as_slices(placement.box)], spread)
        decide([member], loaded, consumers=[counter])
        shared.forget()
        yield case.id, counter, counter.candidates(placement, loaded.target)


def _made(configuration: str, network: str, weights: dict[str, str], cases: Sequence[str], totals: _Totals) -> Sureness:
    """The record of the sums."""
    several = totals.chosen.voxels.sum() == 0  # regions, or no voxel at all
    whole = sum(totals.each.values(), Reliability.empty()) if several else totals.chosen
    labels = {name: _label(totals, name) for name in totals.each}
    known = [label.ece for label in labels.values() if label.ece is not None]
    ece = (float(np.mean(known)) if known else None) if several else _known(whole.ece)
    confidence, accuracy = whole.curve()
    bins = tuple(
        Bin(float(confidence[i]), float(accuracy[i]), float(whole.voxels[i] / whole.voxels.sum()))
        for i in np.flatnonzero(whole.voxels)
    )
    voxels = int(next(iter(totals.each.values())).voxels.sum())
    brier = None if several else _known(whole.brier)
    return Sureness(VERSION, configuration, network, weights, tuple(cases), voxels, ece, brier, bins, labels)


def _label(totals: _Totals, name: str) -> LabelSureness:
    one, images = totals.each[name], totals.images.get(name, [])
    lesions = sum(image.lesions for image in images)
    curve = froc(images) if lesions else None
    found = {f"{number:g}": curve.at(number) for number in FALSE_ALARMS} if curve else {}
    auc = _known(totals.rankings[name].auc)
    return LabelSureness(_known(one.ece), _known(one.brier), auc, lesions, found, curve.score if curve else None)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
