"""Models from Python: how they do at each site, on images unlike those of their training, and how sure they are."""

from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Names, Say, as_path, checked, in_workspace, names_of

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.groups import GroupScores
    from autoseg.evaluation.shifts import ShiftTable
    from autoseg.evaluation.sureness import Sureness


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
    from autoseg.commands.evaluate import ScoringOptions
    from autoseg.commands.groups import compare_groups

    scoring = ScoringOptions(network, csv=None if csv is None else as_path(csv), workers=workers)
    return compare_groups(in_workspace(workspace), configuration, scoring, groups=names_of(groups))


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


@checked
def measure_calibration(
    workspace: File,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    say: Say | None = print,
) -> "Sureness":
    """Segment held-out cases, and count how right the model is where it is how sure.

    Args:
        workspace, configuration, network, say: as for `cross_validate`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        `ece`, `brier` and `bins` of the most probable class, and `labels` (label -> `ece`, `auc`, and for lesions
        `found`, the share of them at each number of false alarms per image).

    Raises:
        AutosegError: no fold is trained, or a file cannot be read.

    Example:
        >>> found = autoseg.measure_calibration("ws")
        >>> found.ece, found.labels["lesion"].froc
    """
    from autoseg.commands.calibration import measure_calibration

    return measure_calibration(in_workspace(workspace), configuration, network=network, device=device)
