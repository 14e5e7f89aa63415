"""What `evaluate` can be asked to do, one function per option: the held-out cases scored where it is none of them.

The ways exclude each other; each is imported when it is asked for.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autoseg.errors import UsageError
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.commands.evaluate import ScoringOptions


def evaluate_as_asked(options: argparse.Namespace) -> Any:
    """Run the way that the options of the command name; its record.

    Raises:
        UsageError: two ways are named, or an option without the one it belongs to.
    """
    if (options.predictions is None) != (options.references is None):
        raise UsageError("--predictions and --references need each other", remedy="give both, or neither")
    if options.cases is not None and not options.shifts:
        raise UsageError("--cases limits the cases of --shifts", remedy="add --shifts, or omit it")
    named = [way for way, given in _given(options).items() if given]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other", remedy="run one after the other")
    if named and named[0] in WITHOUT_SCORES:
        _require_unused(options, named[0])
    run = WAYS[named[0]] if named else _cross_validate
    if options.model is not None and run not in (_test_set, _folders):
        if run in (_shifts, _calibration, _clicks, _groups, _choose):
            raise UsageError(
                f"{named[0]} needs the held-out cases of a workspace, which an exported model does not hold",
                remedy="leave out -m, and name the workspace by -w",
            )
        return _carried(options)
    return run(Workspace(options.workspace), options)


def _require_unused(options: argparse.Namespace, way: str) -> None:
    """Refuse options of scores where a way has none that they could change. Raises UsageError."""
    given = {"--csv": options.csv is not None, "--tolerance": options.tolerance is not None, "--tubes": options.tubes}
    if unused := [option for option, used in given.items() if used]:
        raise UsageError(f"{unused[0]} does nothing with {way}", remedy="omit it, or run evaluate once more without it")


def _given(options: argparse.Namespace) -> dict[str, bool]:
    return {
        "--test": options.test,
        "--speeds": options.speeds,
        "--expected-dice": options.expected_dice,
        "--shifts": options.shifts,
        "--calibration": options.calibration,
        "--clicks": options.clicks is not None,
        "--predictions": options.predictions is not None,
        "--group": bool(options.groups),
        "--choose": options.choose is not None or bool(options.recall),
    }


def _cross_validate(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.evaluate import cross_validate

    return cross_validate(workspace, options.configuration, _scoring(options))


def _scoring(options: argparse.Namespace) -> "ScoringOptions":
    from autoseg.commands.evaluate import ScoringOptions

    return ScoringOptions(
        network=options.network, tolerance=options.tolerance, tubes=options.tubes, csv=options.csv, good=options.good,
        poor=options.poor, workers=options.workers, report=not options.no_report,
    )  # fmt: skip


def _carried(options: argparse.Namespace) -> Any:
    """What an exported model carries of its own evaluation."""
    from autoseg.commands.evaluate_exported import Measured, carried

    what: Measured = "expected Dice" if options.expected_dice else "speeds" if options.speeds else "scores"
    return carried(options.model, what, options.configuration, options.network, options.csv)


def _test_set(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.evaluate import score_test_set

    return score_test_set(workspace, options.configuration, network=options.network, model=options.model)


def _speeds(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.speeds import measure_speeds

    return measure_speeds(workspace, options.configuration, network=options.network)


def _expected_dice(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.expected_dice import learn_expected_dice

    return learn_expected_dice(workspace, options.configuration, _scoring(options))


def _shifts(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.shifts import measure_shifts

    return measure_shifts(workspace, options.configuration, network=options.network, cases=options.cases)


def _calibration(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.calibration import measure_calibration

    return measure_calibration(workspace, options.configuration, network=options.network)


def _clicks(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.clicks import measure_clicks

    return measure_clicks(workspace, options.configuration, network=options.network, clicks=options.clicks)


def _folders(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.evaluate import evaluate_folders
    from autoseg.datasets.intake import parse_options

    intake = parse_options(labels=options.labels, instances=options.instances, divisor=options.divisor)
    return evaluate_folders(
        options.predictions, options.references, workspace, intake=intake, csv=options.csv,
        measures=(options.tolerance, options.tubes), workers=options.workers, model=options.model,
    )  # fmt: skip


def _groups(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.groups import compare_groups

    return compare_groups(workspace, options.configuration, _scoring(options), groups=tuple(options.groups))


def _choose(workspace: Workspace, options: argparse.Namespace) -> Any:
    from autoseg.commands.choose import choose_decision

    return choose_decision(
        workspace, options.configuration, _scoring(options), choose=options.choose or (), recall=dict(options.recall)
    )


WAYS: dict[str, Callable[[Workspace, argparse.Namespace], Any]] = {
    "--test": _test_set,
    "--speeds": _speeds,
    "--expected-dice": _expected_dice,
    "--shifts": _shifts,
    "--calibration": _calibration,
    "--clicks": _clicks,
    "--predictions": _folders,
    "--group": _groups,
    "--choose": _choose,
}
# their result is not changed by --csv, --tolerance and --tubes
WITHOUT_SCORES = ("--test", "--speeds", "--shifts", "--calibration", "--clicks")
