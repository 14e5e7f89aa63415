"""What Dice a model loses on images that differ from its training data in a known way.

    measure_shifts   folds and their held-out cases -> ShiftTable
    describe         ShiftTable -> lines

Each held-out case is segmented by the fold that did not train on it: as it is, and under noise, blur, a bias field,
another contrast and a lower resolution, at three strengths each (`corruptions`). A loss is the Dice of the unchanged
image less that of the changed one, case by case; its interval is that of `intervals`, over patients. Reference and grid
stay, so that a loss is that of the model alone. What is not measured: how common such images are where the model is
used.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from autoseg.datasets.dataset import Case, LoadedCase, load_case
from autoseg.evaluation.corruptions import SHIFTS, corrupted
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.evaluation.metrics import confusion_matrix, dice, overlap_counts
from autoseg.imaging.labels import LabelSet
from autoseg.messages import counted, ruled
from autoseg.progress import Progress
from autoseg.rules import anything, exactly
from autoseg.workspace import FoldName

if TYPE_CHECKING:
    from autoseg.inference.member import EnsembleMember
    from autoseg.models.model import Model

VERSION = 1
SEED = 1234
NOTABLE = 0.05  # a loss of this much is named in words
Text = Annotated[str, anything("any text")]
DiceOfLabels = dict[str, float]  # label or region -> Dice; those that are empty in both maps are left out


@dataclass(frozen=True)
class Loss:
    """Mean loss of Dice over cases, with its interval."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, over patients; None for fewer than two


@dataclass(frozen=True)
class MeasuredShift:
    """One kind of shift at one strength."""

    name: Text  # a key of `corruptions.SHIFTS`
    strength: float
    dice: float | None  # mean over labels, then cases; None: no case has a Dice
    loss: Loss | None  # against the unchanged image, case by case
    labels: dict[Text, float]  # mean loss of each label


@dataclass(frozen=True)
class ShiftTable:
    """All shifts of one model; shifts.json in the model's folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of shift tables that this autoseg reads")]
    configuration: Text
    network: Text
    weights: dict[Text, Text]  # fold -> digest of its weights
    cases: tuple[Text, ...]
    held_out: int  # cases there are; those above may be some of them
    dice: float | None  # of the unchanged images
    shifts: tuple[MeasuredShift, ...]


def chosen_cases(cases: Mapping[FoldName, Sequence[Case]], most: int | None) -> dict[FoldName, list[Case]]:
    """At most so many cases of each fold, drawn at random, the same at every call; in their order."""
    chosen = {}
    for fold, held_out in cases.items():
        drawn = np.random.default_rng(SEED).permutation(len(held_out))[:most]
        chosen[fold] = [held_out[i] for i in sorted(drawn)]
    return chosen


def measure_shifts(
    models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], *, held_out: int
) -> ShiftTable:
    """Segment every fold's cases as they are and under all shifts.

    Args:
        models: one per fold, of that fold alone.
        cases: with labels, by fold.
        held_out: number of cases that these were drawn from.

    Raises:
        DataError: an image or a label cannot be read.
    """
    from autoseg.models.identity import weights_digest

    first = next(iter(models.values()))
    found: dict[tuple[str, float], dict[str, DiceOfLabels]] = {}
    patients: dict[str, Hashable] = {}
    total = sum(map(len, cases.values())) * (1 + sum(len(shift.strengths) for shift in SHIFTS.values()))
    with Progress(total, "shifts") as bar:
        for fold, model in models.items():
            for case in cases[fold]:
                patients[case.id] = case.patient
                for name, strength, values in _dice_under_shifts(model, case):
                    found.setdefault((name, strength), {})[case.id] = values
                    bar.update()
    unchanged = found.pop(("", 0.0))
    return ShiftTable(
        VERSION, first.configuration_name, first.configuration.network.name,
        {str(fold): weights_digest(model.networks[0]) for fold, model in models.items()}, tuple(patients), held_out,
        _mean([_over_labels(values) for values in unchanged.values()]),
        tuple(_measured(*key, unchanged, changed, patients) for key, changed in found.items()),
    )  # fmt: skip


def _dice_under_shifts(model: "Model", case: Case) -> Iterator[tuple[str, float, DiceOfLabels]]:
    """Name, strength and Dice of one case: as it is (no name), then under each shift."""
    from autoseg.inference.member import EnsembleMember

    plan, member = model.plan, EnsembleMember(model)
    loaded = load_case(
        case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    yield "", 0.0, _dice_of(member, loaded, plan.labels)
    for name, shift in SHIFTS.items():
        for strength in shift.strengths:
            image = corrupted(loaded.image, loaded.spacing, name, strength, case.id)
            yield name, strength, _dice_of(member, replace(loaded, image=image), plan.labels)


def _dice_of(member: "EnsembleMember", loaded: LoadedCase, labels: LabelSet) -> DiceOfLabels:
    """Dice of each label or region of a segmentation of the image against the target."""
    from autoseg.inference.member import decide

    assert loaded.target is not None
    indices = decide([member], loaded)
    member.preparations.forget()
    return dice_of_labels(loaded.target, indices, labels)


def dice_of_labels(target: np.ndarray, indices: np.ndarray, labels: LabelSet) -> DiceOfLabels:
    """Dice of class indices (Z, Y, X) against others: label or region -> Dice; without those empty in both."""
    confusion = confusion_matrix(target, indices, labels.num_labels + 1, ignore_index=labels.ignore_index)
    found = {name: dice(overlap_counts(confusion, classes)) for name, classes in labels.scored.items()}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _measured(
    name: str,
    strength: float,
    unchanged: Mapping[str, DiceOfLabels],
    changed: Mapping[str, DiceOfLabels],
    patients: Mapping[str, Hashable],
) -> MeasuredShift:
    """Mean Dice and losses of one shift, of labels that have a Dice before and after."""
    losses: dict[str, float] = {}
    of_labels: dict[str, list[float]] = {}
    for case, before in unchanged.items():
        both = {label: before[label] - changed[case][label] for label in before if label in changed[case]}
        if both:
            losses[case] = float(np.mean([*both.values()]))
        for label, difference in both.items():
            of_labels.setdefault(label, []).append(difference)
    owners = [patients[case] for case in losses]
    values = [*losses.values()]
    loss = Loss(float(np.mean(values)), interval_of_mean(values, owners)) if values else None
    return MeasuredShift(
        name, strength, _mean([_over_labels(one) for one in changed.values()]), loss,
        {label: float(np.mean(found)) for label, found in of_labels.items()},
    )  # fmt: skip


def _over_labels(values: DiceOfLabels) -> float | None:
    return float(np.mean([*values.values()])) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def describe(table: ShiftTable) -> str:
    """A line for each shift and strength, and the worst in words."""
    cases = counted(len(table.cases), "held-out case")
    if len(table.cases) < table.held_out:
        cases += f" of {table.held_out}"
    lines = [f"{table.configuration}, {table.network}: {cases}, Dice {_shown(table.dice)} on unchanged images", ""]
    rows = [["shift", "strength", "Dice", "loss", "95 % interval"]]
    for shift in table.shifts:
        low, high = shift.loss.interval or (None, None) if shift.loss else (None, None)
        rows.append([
            shift.name.replace("_", " "), f"{shift.strength:g} {SHIFTS[shift.name].unit}" if shift.name in SHIFTS else
            f"{shift.strength:g}", _shown(shift.dice), f"{shift.loss.mean:+.4f}" if shift.loss else "-",
            "-" if low is None or high is None else f"{low:+.4f} to {high:+.4f}",
        ])  # fmt: skip
    return "\n".join([*lines, ruled(rows), "", _worst(table)])


def _worst(table: ShiftTable) -> str:
    """What the model does not withstand, in a sentence: kinds of shifts whose loss is notable beyond doubt."""
    named: dict[str, MeasuredShift] = {}
    for shift in table.shifts:
        if shift.loss and shift.loss.mean >= NOTABLE and (shift.loss.interval or (0.0, 0.0))[0] > 0:
            named.setdefault(shift.name, shift)
    if not named:
        return f"no shift costs {NOTABLE:g} of Dice"
    from_where = [f"{name.replace('_', ' ')} from strength {shift.strength:g}" for name, shift in named.items()]
    return f"{NOTABLE:g} of Dice or more is lost under {', '.join(from_where)}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
