"""Training cases by likely label error: where a model that never saw a case is sure, and its reference says otherwise.

A fold segments the cases it held out. Where its probability is at least 0.9, it rarely errs as long as most references
are right (the idea of confident learning, Northcutt et al. 2021, arXiv 1911.00068): voxels where it is sure and the
reference contradicts are errors of the one or the other, and worth a look. A label that is a little too large, or a
little off its place, differs mostly at the border, where a network is less sure; there plain Dice sees more. So both
count:

    score of a label  contradicting voxels / mean size of reference and segmentation, plus 1 - Dice
    score of a case   all contradicting voxels / mean size of the foreground of both, plus 1 - mean Dice over labels

Only the map of what the model is sure of is kept of a case, a byte per voxel; the rest is counted from it.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from scipy import ndimage

from autoseg.datasets.checks.shapes import Shape, odd_shapes, shape_of
from autoseg.datasets.dataset import Case, LoadedCase, load_case
from autoseg.imaging.labels import LabelSet
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.messages import aligned
from autoseg.models.build import head_probabilities
from autoseg.models.model import Model
from autoseg.rules import anything, at_least, between, exactly
from autoseg.workspace import write_text

VERSION = 1
SURE = 0.9  # probability

Text = Annotated[str, anything("any text")]
Score = Annotated[float, at_least(0, 1e9)]
Count = Annotated[int, at_least(0, 10**12)]


@dataclass(frozen=True)
class LabelDoubt:
    """One label or region of a case."""

    score: Score
    missing: Count  # voxels that the model is sure belong to the label, and the reference says otherwise
    extra: Count  # voxels of the reference that the model is sure do not belong to it
    dice: Annotated[float, between(0, 1)] | None  # of the model's segmentation; None: neither has the label


@dataclass(frozen=True)
class DoubtfulCase:
    """One training case."""

    case: Text
    patient: Text
    fold: Text  # that held it out
    score: Score
    labels: dict[Text, LabelDoubt]
    worst: Text  # the label with the highest score; empty: none has one
    place: tuple[int, int, int] | None  # voxel of the label file, in its own order (Z, Y, X), amid the largest doubt
    remarks: tuple[Text, ...]  # islands, holes and jumps of the reference
    image: Text
    label: Text


@dataclass(frozen=True)
class LabelErrors:
    """`label_errors.json`: the training cases that were held out by a trained fold, most doubtful first."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    configuration: Text
    network: Text
    sure: Annotated[float, between(0.5, 1)]  # probability from which the model is sure
    cases: tuple[DoubtfulCase, ...]


@dataclass(frozen=True)
class Examined:
    """A case before all cases are known."""

    doubtful: DoubtfulCase
    shapes: dict[str, Shape]


class SureLabels:
    """Keeps what a model is sure of: a label map of the box. A consumer of rows."""

    def __init__(self, heads: LabelSet, shape: Sequence[int]) -> None:
        """Args: heads: `Plan.heads`; shape: (Z, Y, X) of the box."""
        self.heads = heads
        self.unsure = heads.num_labels + 1
        self.sure = np.full(shape, self.unsure, dtype=np.min_scalar_type(self.unsure))

    def take(self, rows: slice, logits: Sequence) -> None:
        """Note some rows: one tensor (K, n, Y, X) of the one member."""
        (mean,) = logits
        found = head_probabilities(mean[None], self.heads.has_regions)[0].numpy()
        decided = self.heads.decide(found).astype(self.sure.dtype)
        is_sure = (np.abs(found - 0.5) >= SURE - 0.5).all(axis=0) if self.heads.has_regions else found.max(0) >= SURE
        self.sure[rows] = np.where(is_sure, decided, self.unsure)


def examine(
    model: Model, cases: Sequence[Case], fold: str, options: InferenceOptions = InferenceOptions()
) -> Iterator[Examined]:
    """Look at the held-out cases of a model of one fold.

    Raises:
        DataError: an image or a label cannot be read.
    """
    plan, shared = model.plan, Preparations()
    member = EnsembleMember(model, options, shared)
    for case in cases:
        loaded = load_case(
            case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )
        assert loaded.target is not None
        placement = member.prepare(loaded).placement
        found = SureLabels(plan.heads, placement.shape_after_crop)
        decided = decide([member], loaded, consumers=[found])
        shared.forget()
        sure = placement.uncrop(found.sure)
        yield examined(case, fold, loaded, sure, decided, plan.labels)


def examined(
    case: Case, fold: str, loaded: LoadedCase, sure: np.ndarray, decided: np.ndarray, labels: LabelSet
) -> Examined:
    """Count the contradictions of one case.

    Args:
        loaded: with its target.
        sure: class indices (Z, Y, X) of the whole image; n + 1 where the model is unsure.
        decided: what it decides everywhere.
    """
    target = loaded.target
    assert target is not None
    unsure = labels.num_labels + 1
    known = target != labels.ignore_index if labels.ignore_index is not None else np.ones(target.shape, dtype=bool)
    all_labels = tuple(range(1, labels.num_labels + 1))
    doubts: dict[str, LabelDoubt] = {}
    for name, indices in labels.scored.items():
        doubts[name] = _doubt(target, sure, decided, known, indices, unsure)
    against = known & (sure != unsure) & (sure != target)
    size = _mean_size(np.isin(target, all_labels) & known, np.isin(decided, all_labels) & known)
    dice = [doubt.dice for doubt in doubts.values() if doubt.dice is not None]
    score = float(against.sum() / size + 1 - np.mean(dice)) if size and dice else 0.0
    worst = max(doubts, key=lambda name: doubts[name].score, default="")
    place = _place(against)
    return Examined(
        DoubtfulCase(
            case=case.id, patient=case.patient, fold=fold, score=score, labels=doubts,
            worst=worst if worst and doubts[worst].score > 0 else "",
            place=None if place is None else _in_file(loaded, target.shape, place),
            remarks=(), image=case.images[0], label=case.label or "",
        ),
        shape_of(np.asarray(loaded.to_stored(np.where(known, target, 0))), labels.scored),
    )  # fmt: skip


def ranked(configuration: str, network: str, cases: Sequence[Examined]) -> LabelErrors:
    """Order cases by their score, and add what is odd about the shapes of their references."""
    odd = odd_shapes({one.doubtful.case: one.shapes for one in cases})
    made = [replace(one.doubtful, remarks=tuple(odd.get(one.doubtful.case, ()))) for one in cases]
    return LabelErrors(
        VERSION, configuration, network, SURE, tuple(sorted(made, key=lambda one: (-one.score, one.case)))
    )


def describe(found: LabelErrors, top: int) -> str:
    """The most doubtful cases as a table, and how to look at them."""
    rows = [("", "case", "fold", "score", "label in doubt", "missing", "extra", "Dice", "where (Z, Y, X)", "reference")]
    for number, case in enumerate(found.cases[:top], start=1):
        doubt = case.labels.get(case.worst)
        dice = "-" if doubt is None or doubt.dice is None else f"{doubt.dice:.3f}"
        rows.append(
            (
                f"{number}", case.case, case.fold, f"{case.score:.3f}", case.worst or "-",
                f"{doubt.missing}" if doubt else "-", f"{doubt.extra}" if doubt else "-", dice,
                "-" if case.place is None else ", ".join(map(str, case.place)), "; ".join(case.remarks),
            )
        )  # fmt: skip
    lines = aligned(rows, right=(0, 2, 3, 5, 6, 7))
    if len(found.cases) > top:
        lines.append(f"... and {len(found.cases) - top} more cases")
    lines += [
        f"score: voxels where the model that did not train on a case is sure ({found.sure:.0%}) and the reference says "
        "otherwise,",
        "as a share of the size, plus 1 - Dice; missing from the reference, or extra in it: as the model is sure",
    ]
    return "\n".join(lines)


def to_csv(found: LabelErrors, path: Path) -> None:
    """Write one row per case and label, in the order of the ranking."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["rank", "case", "patient", "fold", "score", "label", "label_score", "missing", "extra", "dice"]
    writer.writerow([*columns, "z", "y", "x", "remarks", "image", "reference"])
    for number, case in enumerate(found.cases, start=1):
        for name, doubt in case.labels.items():
            writer.writerow(
                [
                    number, case.case, case.patient, case.fold, f"{case.score:.6f}", name, f"{doubt.score:.6f}",
                    doubt.missing, doubt.extra, "" if doubt.dice is None else f"{doubt.dice:.6f}",
                    *(case.place or ("", "", "")), "; ".join(case.remarks), case.image, case.label,
                ]
            )  # fmt: skip
    write_text(path, text.getvalue())


def examine_folds(
    models: Callable[[str], Model], cases: Mapping[str, Sequence[Case]], options: InferenceOptions = InferenceOptions()
) -> Iterator[Examined]:
    """Look at all held-out cases, each by its own fold; one model is held at a time.

    Args:
        models: fold -> model of that fold alone.
        cases: fold -> its held-out cases.
    """
    for fold, held_out in cases.items():
        yield from examine(models(fold), held_out, fold, options)


def _doubt(
    target: np.ndarray, sure: np.ndarray, decided: np.ndarray, known: np.ndarray, indices: Sequence[int], unsure: int
) -> LabelDoubt:
    """Count the contradictions of one label or region (class indices)."""
    here, said, found = (np.isin(array, indices) & known for array in (target, decided, sure))
    missing = found & ~here
    extra = here & ~found & (sure != unsure)
    size = _mean_size(here, said)
    dice = float((here & said).sum() / size) if size else None
    counts = int(missing.sum()), int(extra.sum())
    return LabelDoubt(0.0 if dice is None else sum(counts) / size + 1 - dice, *counts, dice)


def _mean_size(reference: np.ndarray, segmentation: np.ndarray) -> float:
    return (int(reference.sum()) + int(segmentation.sum())) / 2


def _place(against: np.ndarray) -> tuple[int, int, int] | None:
    """A voxel of the largest piece of a mask, the one nearest to its middle; None for an empty mask."""
    if not against.any():
        return None
    pieces, _ = ndimage.label(against)
    largest = 1 + int(np.argmax(np.bincount(pieces[against])[1:]))
    voxels = np.argwhere(pieces == largest)
    middle = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    return int(middle[0]), int(middle[1]), int(middle[2])


def _in_file(loaded: LoadedCase, shape: Sequence[int], place: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same voxel in the axis order of the files."""
    flag = np.zeros(shape, dtype=bool)
    flag[place] = True
    z, y, x = np.argwhere(loaded.to_stored(flag))[0]
    return int(z), int(y), int(x)
