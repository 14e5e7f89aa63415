"""What the held-out cases of a trained model teach: speeds, groups, shifts, the Dice to expect, what to decide by."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Names, Say, as_path, checked, in_workspace, names_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
    from autoseg.evaluation.groups import GroupScores
    from autoseg.evaluation.shifts import ShiftTable
    from autoseg.evaluation.speeds import SpeedTable
    from autoseg.models.decision import Decision


@checked
def measure_speeds(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    say: Say | None = print,
) -> "SpeedTable":
    """Segment the held-out cases of every trained fold at each speed of `predict_images`.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        `speeds`, each with `name`, `dice`, `change` against the accurate one, and `seconds_per_case`.

    Raises:
        AutosegError: no fold is trained, or a file cannot be read.

    Example:
        >>> table = autoseg.measure_speeds("ws")
        >>> [(speed.name, speed.dice.mean, speed.seconds_per_case) for speed in table.speeds]
    """
    from autoseg.commands.speeds import measure_speeds

    return measure_speeds(in_workspace(workspace), configuration, network=network, device=device)


@checked
def learn_expected_dice(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    say: Say | None = print,
) -> "ExpectedDiceRecord":
    """Learn from the held-out cases what Dice `predict_images(uncertainty=True)` may expect of new ones.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        `labels` (label -> line with its measured coverage and error), `mean` of the mean over labels, and `cases`.

    Raises:
        AutosegError: no fold is trained, or fewer than 20 cases are held out.

    Example:
        >>> record = autoseg.learn_expected_dice("ws")
        >>> record.labels["liver"].measured_coverage
    """
    from autoseg.commands.expected_dice import learn_expected_dice

    return learn_expected_dice(in_workspace(workspace), configuration, network=network, device=device)


@checked
def choose_decision(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    choose: Sequence[str] = ("model", "thresholds", "components"),
    recall: Mapping[str, float] | None = None,
    device: str = "auto",
    workers: int | None = None,
    say: Say | None = print,
) -> "Decision":
    """Choose on the held-out cases what `predict_images` then applies; each choice only where it helps beyond chance.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        choose: which choices: "model" (or two together), "thresholds", "components".
        recall: label -> recall that it must reach: {"lesion": 0.95}.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        workers: processes; 0: none but this one; None: as cores and memory allow.

    Returns:
        `predicts` (models), `rule` (offsets of logits, corrections of components) and `choices`: all that was tried,
        accepted or not, each with its figures.

    Raises:
        AutosegError: no fold is trained, one saw a patient whose cases it holds out, or there is no such label.

    Example:
        >>> decision = autoseg.choose_decision("ws", recall={"lesion": 0.95})
        >>> [(choice.candidate, choice.accepted, choice.reason) for choice in decision.choices]
    """
    from autoseg.commands.choose import choose_decision

    return choose_decision(
        in_workspace(workspace), configuration, network=network, choose=choose, recall=recall, device=device,
        workers=workers,
    )  # fmt: skip


@checked
def compare_groups(
    workspace: File,
    configuration: str | None = None,
    *,
    groups: Names,
    network: str | None = None,
    csv: File | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "GroupScores":
    """Score the held-out segmentations of one model, and compare groups of cases: of a site, a scanner, a sex.

    Args:
        workspace, configuration, network, csv, workers, say: as for `cross_validate`.
        groups: columns of the table of patients: "site" or ["site", "sex"].

    Returns:
        `tables`, one per column, each with `labels` (label -> means with their intervals) and `gaps` (label -> the
        largest difference, with `p` and `beyond_chance`).

    Raises:
        AutosegError: there is no such column, it forms fewer than two groups, or no fold is trained.

    Example:
        >>> scores = autoseg.compare_groups("ws", groups="site")
        >>> scores.tables[0].gaps["liver"].beyond_chance
    """
    from autoseg.commands.groups import compare_groups

    return compare_groups(
        in_workspace(workspace), configuration, network=network, groups=names_of(groups),
        csv=None if csv is None else as_path(csv), workers=workers,
    )  # fmt: skip


@checked
def measure_shifts(
    workspace: File,
    configuration: str | None = None,
    *,
    cases: int | None = None,
    network: str | None = None,
    device: str = "auto",
    say: Say | None = print,
) -> "ShiftTable":
    """Segment held-out cases under noise, blur, bias field, contrast and resolution shifts, each at three strengths.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        cases: of each fold, at most; None: all that it holds out.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        `shifts`, each with `name`, `strength`, `dice` and `loss` against the unchanged images, case by case.

    Raises:
        AutosegError: no fold is trained, or a file cannot be read.

    Example:
        >>> table = autoseg.measure_shifts("ws", cases=5)
        >>> [(shift.name, shift.strength, shift.loss.mean) for shift in table.shifts]
    """
    from autoseg.commands.shifts import measure_shifts

    return measure_shifts(in_workspace(workspace), configuration, network=network, cases=cases, device=device)
