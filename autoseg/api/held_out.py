"""What the held-out cases of a trained model teach: its speeds, the Dice to expect, what to decide by."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autoseg.api.keywords import File, Say, checked, in_workspace

if TYPE_CHECKING:  # imported when they are made
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
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
    from autoseg.commands.evaluate import ScoringOptions
    from autoseg.commands.expected_dice import learn_expected_dice

    scoring = ScoringOptions(network)
    return learn_expected_dice(in_workspace(workspace), configuration, scoring, device=device)


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
        choose: which choices: "model" (or two together), "thresholds", "components"; and "crf", which takes long.
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
    from autoseg.commands.evaluate import ScoringOptions

    scoring = ScoringOptions(network, workers=workers)
    return choose_decision(in_workspace(workspace), configuration, scoring, choose=choose, recall=recall, device=device)
