"""Messages of commands as a notebook types them: calls and keywords instead of commands and options.

    in_python   "set --vram 8: autoseg plan data -w ws" -> 'set vram_gb=8: autoseg.plan_dataset("data", workspace="ws")'
    as_call     a command -> the call that does the same
    keyword     "--time-budget", "90s" -> "time_budget_seconds=90"

What is an option, a value or prose is decided by the command line's own parser. What Python has no word for
(`--gpus`, `autoseg env`) stays as it is.
"""

import argparse
import contextlib
import io
import json
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from autoseg.commands.parser import build_parser

KEYWORDS = {  # of options that are named differently when they are typed
    "fix": "out", "map": "mapping", "nan_to": "non_finite_to", "vram": "vram_gb", "time_budget": "time_budget_seconds",
    "no_preprocess": "preprocess", "stop_after": "stop_after_seconds", "checkpoint_every": "checkpoint_seconds",
    "no_mirroring": "mirroring", "no_report": "report", "no_decision": "decision",
}  # fmt: skip
FUNCTIONS = {  # command -> function, and the options that come first, in their order
    "check": ("check_dataset", ("dataset",)),
    "check --fix": ("fix_dataset", ("dataset", "fix")),
    "plan": ("plan_dataset", ("dataset",)),
    "floor": ("measure_floor", ("dataset",)),
    "train": ("train_folds", ("workspace",)),
    "evaluate": ("cross_validate", ("workspace",)),
    "evaluate --choose": ("choose_decision", ("workspace",)),
    "evaluate --test": ("score_test_set", ("workspace",)),
    "evaluate --speeds": ("measure_speeds", ("workspace",)),
    "evaluate --shifts": ("measure_shifts", ("workspace",)),
    "evaluate --calibration": ("measure_calibration", ("workspace",)),
    "evaluate --expected-dice": ("learn_expected_dice", ("workspace",)),
    "evaluate --predictions": ("evaluate_folders", ("predictions", "references")),
    "compare": ("compare", ("a", "b")),
    "learning-curve": ("learning_curve", ("workspace",)),
    "report": ("write_report", ("workspace",)),
    "predict": ("predict_images", ("workspace", "images", "out")),
    "evaluate --clicks": ("measure_clicks", ("workspace",)),
    "refine": ("refine_image", ("workspace", "images", "out")),
    "rank": ("rank_cases", ("workspace",)),
    "rank --images": ("rank_images", ("workspace", "images")),
    "export": ("export_model", ("workspace", "out")),
    "export --onnx": ("export_onnx", ("workspace", "onnx")),
    "info": ("describe_model", ("path",)),
    "import-nnunet": ("import_nnunet", ("folder", "model")),
    "status": ("status", ("workspace",)),
    "calibrate": ("calibrate_device", ()),
}
NOT_GIVEN = (None, False)
MODES = (  # options that have a function of their own
    *(
        "fix",
        "test",
        "predictions",
        "images",
        "choose",
        "speeds",
        "shifts",
        "calibration",
        "clicks",
        "expected-dice",
        "onnx",
    ),
)
TYPED_ONLY = {  # options without a keyword
    *("command", "plugins", "gpus", "slurm", "test", "speeds", "shifts", "calibration", "expected_dice", "json"),
}
WORD = re.compile(r" (?P<word>(?:'[^']*'|[^\s'])+?)(?P<end>[,;.)]?)(?=\s|$)")
OPTION = re.compile(r"(?<![\w=\-'\"])(?P<option>--[a-z][a-z-]+|-[a-z])(?![\w-])")
VALUE = re.compile(r"[ =](?P<value>\"[^\"]*\"|'[^']*'|[^\s,;()]*\.\.\.|[^\s,;()]+?)(?=[,;:.)]*(?:\s|$))")
PROSE = {  # words that follow an option without being its value
    "to", "and", "or", "with", "works", "gives", "names", "takes", "includes", "excludes", "cannot", "is", "are", "for",
    "if", "in", "into", "on", "as", "again", "instead", "where", "that", "which", "has", "have", "needs", "of",
}  # fmt: skip


def in_python(text: str) -> str:
    """A message whose commands are calls, and whose options are keywords."""
    parts, done = [], 0
    for match in re.finditer(r"\bautoseg (?=[a-z-]+\b)", text):
        if match.start() < done:
            continue
        call, end = _longest_call(text, match.end())
        if call:
            parts += [_with_keywords(text[done : match.start()]), call]
            done = end
    return "".join([*parts, _with_keywords(text[done:])])


def as_call(words: Sequence[str]) -> str:
    """A command (without `autoseg`) as a call of the function that does the same; "" where it cannot be parsed."""
    options = _parsed(words)
    if options is None:
        return ""
    given = vars(options)
    more = next((flag for flag in MODES if given.get(flag.replace("-", "_")) not in NOT_GIVEN), None)
    name, first = FUNCTIONS.get(f"{options.command} --{more}", FUNCTIONS.get(options.command, ("", ())))
    if not name:
        return ""
    default = vars(_parsed(_least(options.command)) or argparse.Namespace())
    arguments = [_literal(given[key]) for key in first]
    arguments += [
        _assigned(key, value)
        for key, value in given.items()
        if key not in (*first, *TYPED_ONLY) and value != [] and (value != default.get(key) or key == "workspace")
    ]
    return f"autoseg.{name}({', '.join(arguments)})"


def keyword(option: str, value: str | None) -> str:
    """An option as a keyword, with the value that stands behind it, if one does; itself if Python has none."""
    action = _options()[option]
    if action.dest in TYPED_ONLY:
        return option if value is None else f"{option} {value}"
    if action.nargs == 0:
        return _assigned(action.dest, True)
    if value is None:
        return KEYWORDS.get(action.dest, action.dest)
    if action.dest == "settings":
        return _assigned("settings", [value])
    with contextlib.suppress(argparse.ArgumentTypeError, ValueError, TypeError):
        kind: Any = action.type
        return _assigned(action.dest, kind(value) if callable(kind) else value)
    return f"{KEYWORDS.get(action.dest, action.dest)}={value}"  # a placeholder: GB


def _assigned(dest: str, value: Any) -> str:
    """`keyword=value` of an option as it was parsed."""
    if dest == "settings" and all("=" in setting for setting in value):
        pairs = dict(setting.split("=", 1) for setting in value)
        return f"settings={{{', '.join(f'{json.dumps(key)}: {_setting(text)}' for key, text in pairs.items())}}}"
    if dest.startswith("no_"):
        value = not value
    return f"{KEYWORDS.get(dest, dest)}={_literal(value)}"


def _setting(text: str) -> str:
    """A value behind `--set KEY=` as Python has it."""
    try:
        return repr(json.loads(text))
    except ValueError:
        return text if text == "..." else json.dumps(text)


def _literal(value: Any) -> str:
    if isinstance(value, (str, Path)):
        text = str(value)
        return text if text.isdecimal() or text == "..." else json.dumps(text, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return _literal(value[0]) if len(value) == 1 else f"[{', '.join(map(_literal, value))}]"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _longest_call(text: str, begin: int) -> tuple[str, int]:
    """The call for the command that begins here, as many words as make one; and where its words end."""
    words: list[tuple[str, int]] = []
    place = begin - 1
    while match := WORD.match(text, place):
        words.append((match["word"], match.end("word")))
        place = match.end()
        if match["end"]:
            break
    for count in range(len(words), 0, -1):
        try:
            typed = shlex.split(" ".join(word for word, _ in words[:count]))
        except ValueError:  # a quote that is not closed
            continue
        if call := as_call(typed):
            return call, words[count - 1][1]
    return "", begin


def _with_keywords(text: str) -> str:
    """Text without commands, its options as keywords."""
    parts, done = [], 0
    for match in OPTION.finditer(text):
        option = match["option"]
        if match.start() < done or option not in _options():
            continue
        action, end = _options()[option], match.end()
        behind = VALUE.match(text, end) if action.nargs != 0 else None
        value = behind["value"] if behind else None
        if value in PROSE:
            value = None
        if value is not None and behind:
            end = behind.end("value")
        parts += [text[done : match.start()], keyword(option, _unquoted(value))]
        done = end
    return "".join([*parts, text[done:]])


def _unquoted(value: str | None) -> str | None:
    """A value without the quotation marks that a message or a shell put around it."""
    quoted = value is not None and len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if value is not None and quoted else value


@cache
def _options() -> dict[str, argparse.Action]:
    """Options of all commands -> what the parser knows of them: of one name, those of commands that have a function."""
    found: dict[str, argparse.Action] = {}
    known = {command.split()[0] for command in FUNCTIONS}
    order = {"export": 1}  # its -c takes several names: that of the other commands has precedence
    for _, parser in sorted(_commands().items(), key=lambda item: order.get(item[0], 2 * (item[0] in known))):
        for action in parser._actions:
            found |= {name: action for name in action.option_strings if name not in ("-h", "--help")}
    return found


@cache
def _commands() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def _parsed(words: Sequence[str]) -> argparse.Namespace | None:
    """The options of a command; None where it is none."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return build_parser().parse_args(list(words))
        except SystemExit:
            return None


def _least(command: str) -> list[str]:
    """A command with the options it cannot do without."""
    needed = {"predict": ["-i", "x", "-o", "y"], "check": ["x"], "plan": ["x"], "info": ["x"], "compare": ["x", "y"]}
    return [command, *needed.get(command, [])]
