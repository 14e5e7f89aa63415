"""What clicks bring: a simulated person corrects held-out cases, each by the fold that did not train on it.

    correct        one case, click after click -> ClickedCase
    measure_clicks folds and their held-out cases -> ClickTable
    describe       ClickTable -> lines

The protocol is the usual one of interactive segmentation (Sofiiuk et al., ICIP 2022): the person compares the mask with
the reference on the grid of the image, clicks on the deepest voxel (in mm) of the largest connected error, of whatever
label, and says what is there; the model answers; and so on, MOST clicks at most. The Dice of a case is the mean over
its labels, those that neither the reference nor the mask has left out. NoC at a Dice is the mean number of clicks until
it is reached; a case that does not reach it counts MOST.

The person knows the reference and never errs: these are the fewest clicks, and a real person needs more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from autoseg.datasets.dataset import Case, load_case
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.imaging.prompts import Click, Prompt, next_prompt
from autoseg.messages import counted, ruled
from autoseg.progress import Progress
from autoseg.rules import anything, at_least, between, exactly
from autoseg.workspace import FoldName

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.models.model import Model

VERSION = 1
MOST = 20  # clicks on a case
SHOWN = (0, 1, 2, 3, 5, 10, 20)  # clicks after which the table shows the Dice
TARGETS = (0.90, 0.92)  # of NoC
HEADER = ("clicks", "Dice", "gain", "95 % over patients", "smallest Dice")

Text = Annotated[str, anything("any text")]
Share = Annotated[float, between(0, 1)]
Seconds = Annotated[float, at_least(0, 1e9)]
Answer = Callable[[Prompt], np.ndarray]  # the mask (class indices) after a prompt


@dataclass(frozen=True)
class ClickedCase:
    """One case, click by click."""

    case: Text
    patient: Text
    dice: tuple[Share, ...]  # before the first click, after the first, ...; ends where nothing is wrong any more
    seconds: tuple[Seconds, ...]  # of each answer

    def after(self, clicks: int) -> float:
        """Dice after so many clicks, or after the last one."""
        return self.dice[min(clicks, len(self.dice) - 1)]

    def clicks_to(self, target: float, most: int) -> int:
        """How many clicks reach a Dice; `most` where none does."""
        return next((n for n, dice in enumerate(self.dice) if dice >= target), most)


@dataclass(frozen=True)
class ClickTable:
    """`clicks.json` of a model's folder."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    configuration: Text
    network: Text
    weights: dict[Text, Text]  # fold -> digest of its weights
    most: Annotated[int, at_least(1, 1000)]  # clicks on a case
    cases: tuple[ClickedCase, ...]

    def mean_after(self, clicks: int) -> float:
        """Mean Dice after so many clicks."""
        return float(np.mean([case.after(clicks) for case in self.cases]))

    def gain_after(self, clicks: int) -> tuple[float, tuple[float, float] | None]:
        """Mean gain over no click at all, case by case, and its 95 % interval over patients."""
        gains = [case.after(clicks) - case.after(0) for case in self.cases]
        return float(np.mean(gains)), interval_of_mean(gains, [case.patient for case in self.cases])

    def noc(self, target: float) -> tuple[float, int]:
        """Mean number of clicks that reach a Dice, and how many cases never do."""
        counts = [case.clicks_to(target, self.most) for case in self.cases]
        return float(np.mean(counts)), sum(max(case.dice) < target for case in self.cases)


def correct(
    mask: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    answer: Answer,
    scored: Mapping[str, tuple[int, ...]],
    *,
    ignored: int | None = None,
    most: int = MOST,
) -> tuple[list[float], list[float]]:
    """Click on one case until nothing is wrong or `most` clicks are done.

    Args:
        mask, reference: (Z, Y, X) class indices on one grid.
        spacing: mm.
        answer: what a click makes of the mask.
        scored: label or region -> class indices, as `LabelSet.scored`.
        ignored: class index of the reference that nobody annotated.

    Returns:
        Dice before and after each click, and the seconds of each answer.
    """
    dice = [mean_dice(mask, reference, scored, ignored)]
    seconds: list[float] = []
    while len(seconds) < most:
        click = next_prompt(reference, mask, spacing, ignored=ignored)
        if click is None:
            break
        assert isinstance(click, Click)
        began = time.perf_counter()
        mask = answer(click)
        seconds.append(time.perf_counter() - began)
        dice.append(mean_dice(mask, reference, scored, ignored))
    return dice, seconds


def mean_dice(
    mask: np.ndarray, reference: np.ndarray, scored: Mapping[str, tuple[int, ...]], ignored: int | None = None
) -> float:
    """Mean Dice over the labels that the reference or the mask has; 1 where neither has any."""
    known = np.ones(reference.shape, bool) if ignored is None else reference != ignored
    found = []
    for indices in scored.values():
        there, here = np.isin(reference, indices) & known, np.isin(mask, indices) & known
        if voxels := int(there.sum()) + int(here.sum()):
            found.append(2 * int((there & here).sum()) / voxels)
    return float(np.mean(found)) if found else 1.0


def measure_clicks(
    models: "Mapping[FoldName, Model]", cases: Mapping[FoldName, Sequence[Case]], *, most: int = MOST
) -> ClickTable:
    """Correct every fold's held-out cases by that fold.

    Args:
        models: one per fold, of that fold alone, trained with prompts.
        cases: with labels, by fold.
        most: clicks on a case.

    Raises:
        DataError: an image or a label cannot be read.
        UsageError: the models take no prompts.
    """
    from autoseg.inference.interactive import Refinement
    from autoseg.models.identity import weights_digest

    first = next(iter(models.values()))
    labels, clicked = first.plan.labels, []
    with Progress(sum(map(len, cases.values())), "clicks") as bar:
        for fold, model in models.items():
            for case in cases[fold]:
                plan = model.plan
                loaded = load_case(
                    case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
                )
                assert loaded.target is not None
                refinement, reference = Refinement(model, loaded), loaded.to_stored(loaded.target)

                def answer(prompt: Prompt, refinement: Refinement = refinement) -> np.ndarray:
                    refinement.add(prompt)
                    return refinement.labels

                dice, seconds = correct(
                    refinement.labels, reference, loaded.geometry.spacing, answer, labels.scored,
                    ignored=labels.ignore_index, most=most,
                )  # fmt: skip
                clicked.append(ClickedCase(case.id, case.patient, tuple(dice), tuple(seconds)))
                bar.update()
    weights = {str(fold): weights_digest(model.networks[0]) for fold, model in models.items()}
    network = first.configuration.network.name
    return ClickTable(VERSION, first.configuration_name, network, weights, most, tuple(clicked))


def rows_of(table: ClickTable) -> list[tuple[str, ...]]:
    """A row of HEADER for each number of clicks that is shown."""
    rows: list[tuple[str, ...]] = []
    for clicks in [n for n in SHOWN if n <= table.most]:
        gain, interval = table.gain_after(clicks)
        shown = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval and clicks else "-"
        smallest = min(case.after(clicks) for case in table.cases)
        mean, gained = f"{table.mean_after(clicks):.4f}", f"{gain:+.4f}" if clicks else "-"
        rows.append((str(clicks), mean, gained, shown, f"{smallest:.4f}"))
    return rows


def describe(table: ClickTable) -> str:
    """The table in words."""
    patients = len({case.patient for case in table.cases})
    lines = [
        f"{counted(len(table.cases), 'held-out case')} of {counted(patients, 'patient')}, corrected by a simulated "
        "person who clicks on the deepest voxel of the largest error",
        "",
    ]
    lines += [ruled([HEADER, *rows_of(table)]), ""]
    for target in TARGETS:
        mean, missed = table.noc(target)
        lines.append(
            f"clicks to a Dice of {target:.2f} (NoC, {table.most} at most): {mean:.2f}; "
            f"{counted(missed, 'case')} did not reach it"
        )
    seconds = [second for case in table.cases for second in case.seconds]
    if seconds:
        lines.append(
            f"seconds a click: {np.median(seconds):.2g} (median), {np.quantile(seconds, 0.95):.2g} (95 %), "
            f"{max(seconds):.2g} (longest)"
        )
    return "\n".join(lines)
