"""One list of options: the Python interface, the records and the command line have the same names and defaults."""

import argparse
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields

import pytest

import autoseg
from autoseg.api.keywords import READ, intake_of
from autoseg.api.spelling import FUNCTIONS as CALLS
from autoseg.api.spelling import KEYWORDS
from autoseg.commands import (
    calibrate,
    calibration,
    choose,
    clicks,
    evaluate,
    expected_dice,
    fix,
    groups,
    rank,
    report,
    shifts,
    speeds,
)
from autoseg.commands.compare import CompareOptions
from autoseg.commands.export import ExportOptions
from autoseg.commands.floor import FloorOptions
from autoseg.commands.folds import TrainOptions
from autoseg.commands.learning_curve import LearningCurveOptions
from autoseg.commands.parser import build_parser
from autoseg.commands.plan import PlanOptions
from autoseg.commands.predict import PredictOptions
from autoseg.datasets.dataset import parse_options

FUNCTIONS = [name for name, module in autoseg.PUBLIC.items() if module.startswith("autoseg.api")]
RECORDS = {
    "plan_dataset": PlanOptions,
    "measure_floor": FloorOptions,
    "train_folds": TrainOptions,
    "predict_images": PredictOptions,
    "compare": CompareOptions,
    "learning_curve": LearningCurveOptions,
    "cross_validate": evaluate.ScoringOptions,
    "export_model": ExportOptions,
    "export_onnx": ExportOptions,
}
BELOW = {  # what is called with keywords, and the parameters of it that have another form here
    "fix_dataset": (fix.fix_dataset, {"root", "intake"}),
    "score_test_set": (evaluate.score_test_set, set()),
    "measure_speeds": (speeds.measure_speeds, set()),
    "measure_shifts": (shifts.measure_shifts, set()),
    "measure_calibration": (calibration.measure_calibration, set()),
    "measure_clicks": (clicks.measure_clicks, set()),
    "compare_groups": (groups.compare_groups, {"options"}),
    "learn_expected_dice": (expected_dice.learn_expected_dice, {"options"}),
    "choose_decision": (choose.choose_decision, {"options"}),
    "evaluate_folders": (evaluate.evaluate_folders, {"measures", "intake"}),
    "rank_cases": (rank.rank_cases, set()),
    "write_report": (report.write_report, set()),
    "calibrate_device": (calibrate.calibrate_device, set()),
}
INTAKE = ("channels", "labels", "regions", "ignore", "patient_regex", "instances", "divisor")
OF_COMMAND = {
    "check": ("check_dataset", "fix_dataset"),
    "plan": ("plan_dataset",),
    "floor": ("measure_floor",),
    "train": ("train_folds",),
    "evaluate": (
        *("cross_validate", "score_test_set", "measure_speeds", "measure_shifts", "measure_calibration"),
        *("measure_clicks", "compare_groups"),
        *("learn_expected_dice", "choose_decision", "evaluate_folders"),
    ),
    "compare": ("compare",),
    "learning-curve": ("learning_curve",),
    "report": ("write_report",),
    "predict": ("predict_images", "Predictor"),
    "refine": ("refine_image",),
    "rank": ("rank_cases", "rank_images"),
    "export": ("export_model", "export_onnx"),
    "info": ("describe_model",),
    "import-nnunet": ("import_nnunet",),
    "status": ("status",),
    "calibrate": ("calibrate_device",),
}
TYPED_ONLY = {
    "check": {"skip_bad"},  # does nothing there
    "train": {"gpus", "slurm"},  # start other processes of the command line
    "evaluate": {"test", "speeds", "shifts", "calibration", "expected_dice"},  # functions of their own
}
CALLED_ONLY = {"plan": {"seed"}, "evaluate": {"device"}, "predict": {"path"}}


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", RECORDS)
def test_keywords_are_the_fields_of_the_record(name):
    """Named, typed and defaulted alike; only what the interface reads in several forms has another type."""
    record = RECORDS[name]
    given = parameters(getattr(autoseg, name))
    positional = {key for key, one in given.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY}
    others = {"say"} | (set(INTAKE) if name in ("plan_dataset", "measure_floor") else set())
    hints = typing.get_type_hints(record)
    declared = {field.name: field for field in fields(record) if field.name != "intake"}
    assert set(given) - positional - others == set(declared)
    for key, field in declared.items():
        assert given[key].default == field.default != MISSING, key
        if key not in READ:
            assert given[key].annotation == hints[key], key


@pytest.mark.parametrize("name", BELOW)
def test_keywords_are_those_of_the_function_below(name):
    function, others = BELOW[name]
    here, below = parameters(getattr(autoseg, name)), parameters(function)
    intake = {"dataset", *INTAKE} if others == {"root", "intake"} else set()
    if "measures" in others:
        intake = {"tolerance", "tubes", "labels", "instances", "divisor"}
    if "options" in others:
        intake = {field.name for field in fields(evaluate.ScoringOptions)} & set(here)
        defaults = evaluate.ScoringOptions()
        assert "network" in intake
        assert all(here[key].default == getattr(defaults, key) for key in intake)
    assert set(here) - intake - {"say"} == set(below) - others
    for key in set(below) - others:
        assert here[key].default == below[key].default, key


def test_a_predictor_takes_what_predict_takes():
    """But for what concerns files: which of them, and where to."""
    files = {"images", "out", "shard", "resume", "workspace", "format", "probabilities", "uncertainty", "statistics"}
    files |= {"patients", "coco", "saliency", "saliency_stage", "saliency_method"}
    here, there = parameters(autoseg.Predictor), parameters(autoseg.predict_images)
    assert set(here) - {"path"} == set(there) - files
    for key in set(here) - {"path"}:
        assert (here[key].default, here[key].annotation) == (there[key].default, there[key].annotation), key


def test_what_a_dataset_cannot_say_itself_is_one_list():
    assert tuple(parameters(parse_options)) == tuple(parameters(intake_of)) == INTAKE
    for name in ("check_dataset", "fix_dataset", "plan_dataset"):
        assert [key for key in parameters(getattr(autoseg, name)) if key in INTAKE] == list(INTAKE)


@pytest.mark.parametrize("command", OF_COMMAND)
def test_every_option_that_can_be_typed_can_be_called(command):
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    typed = {action.dest for action in commands.choices[command]._actions} - {"help", "plugins", "json"}
    called = {key for name in OF_COMMAND[command] for key in parameters(getattr(autoseg, name))} - {"say"}
    assert TYPED_ONLY.get(command, set()) <= typed, "not an exception any more"
    typed = {KEYWORDS.get(dest, dest) for dest in typed - TYPED_ONLY.get(command, set())}
    assert typed == called - CALLED_ONLY.get(command, set())


def test_every_command_has_a_function():
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(commands.choices) - set(OF_COMMAND) == {"demo", "env", "serve"}  # of the installation, and of a server
    assert sorted(name for names in OF_COMMAND.values() for name in names) == sorted(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_documented(name):
    function = getattr(autoseg, name)
    text = inspect.getdoc(function) or ""
    summary, arguments = text.split("\n\nArgs:\n")
    assert summary.splitlines()[0].endswith(".")
    for section in ("Raises:", "Example:\n    >>> "):
        assert f"\n{section}" in text, section
    assert ("\nReturns:\n" in text) == (inspect.signature(function).return_annotation not in (None, str))
    listed = arguments.partition("\n\n")[0]
    names = [
        name for line in listed.splitlines() if line[4] != " " for name in line.strip().partition(":")[0].split(", ")
    ]
    assert set(names) == set(parameters(function)), "an argument is not explained, or does not exist"
    assert sum(line.strip().startswith(">>> ") for line in text.splitlines()) == 2


def test_editors_see_the_names_that_are_loaded_late():
    source = inspect.getsource(autoseg)
    for name, module in autoseg.PUBLIC.items():
        assert f"    from {module} import {name} as {name}\n" in source


def test_messages_know_the_function_of_every_command():
    assert {command.split()[0] for command in CALLS} == set(OF_COMMAND)
    for command, (name, first) in CALLS.items():
        assert name in OF_COMMAND[command.split()[0]]
        assert list(parameters(getattr(autoseg, name)))[: len(first)] == [KEYWORDS.get(key, key) for key in first]
