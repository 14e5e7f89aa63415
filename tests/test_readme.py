"""README and docs keep their word: the tree lists the files there are, and what they tell to type can be typed."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from autoseg.commands.parser import build_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autoseg"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """What stands between fences."""
    return FENCE.findall(text)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def tree(text: str, top: str) -> dict[str, str]:
    """Paths of an annotated tree below the line `top` -> their annotations; folders end with a slash.

    Depth follows from indentation, drawn with spaces or with lines.
    """
    listed: dict[str, str] = {}
    for block in blocks(text):
        above: list[tuple[int, str]] = []  # indentation and path of the folders a line stands in
        for line in block.splitlines():
            if not (found := re.match(r"([\s│├└─|`]*)(\S+)\s*(.*)", line)):
                continue
            indent, name, annotation = len(found[1]), found[2], found[3]
            above = [(depth, path) for depth, path in above if depth < indent]
            path = (above[-1][1] if above else "") + name
            if name.endswith("/"):
                above.append((indent, path))
            if path.startswith(top):
                assert path not in listed, f"{path} is listed twice"
                listed[path] = annotation
    return listed


def commands(text: str) -> list[str]:
    """Lines of code blocks, and inline code, that call autoseg. Where some lines have a prompt, others are output."""
    found = []
    for block in blocks(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [line for line in prompted or lines if re.match(r"(\S*/)?autoseg\s", line)]
    return found + [code for code in re.findall(r"`([^`\n]+)`", prose(text)) if code.startswith("autoseg ")]


def arguments(command: str) -> list[str]:
    """What follows `autoseg` up to a comment or the next command of the shell."""
    words = shlex.split(command, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", "&&", ";", ">", "&")]
    return words[1 : min(ends, default=len(words))]


def fault_of(command: str, capsys: pytest.CaptureFixture) -> str:
    """What the parser says against a command; empty if nothing."""
    try:
        build_parser().parse_args(arguments(command))
    except SystemExit as ended:
        if ended.code:
            return capsys.readouterr().err
    return ""


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options() -> set[str]:
    """Every option of every command."""
    return {
        option
        for parser in (build_parser(), *subparsers().values())
        for action in parser._actions
        for option in action.option_strings
    }


# ---- the README


def test_the_tree_lists_every_file_of_the_package():
    """A folder's own line stands for its __init__.py."""
    listed = tree(ARCHITECTURE, "autoseg/")
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    wanted = {re.sub(r"(?<=.)/__init__\.py$", "/", path) for path in files}
    assert "autoseg/nn/" in wanted
    assert wanted - set(listed) == set(), "not in the tree"
    assert {path for path in listed if not (ROOT / path).exists()} == set(), "in the tree and nowhere else"


def test_every_file_of_the_tree_is_explained():
    listed = tree(ARCHITECTURE, "autoseg/")
    assert [path for path, annotation in listed.items() if not annotation and path != "autoseg/"] == []


@pytest.mark.parametrize("name", subparsers())
def test_every_command_is_mentioned(name):
    assert name in {words[0] for command in commands(README) if (words := arguments(command))}


def test_every_command_line_can_be_typed(capsys):
    told = commands(README)
    assert len(told) >= len(subparsers())
    assert {command: fault for command in told if (fault := fault_of(command, capsys))} == {}


def test_every_option_in_the_text_exists():
    code = " ".join(re.findall(r"`([^`\n]+)`", prose(README)))
    named = set(re.findall(r"(?<!\S)--?[a-z-]+", code))
    assert named, "the README names no option at all"
    assert named - options() == set()


def test_every_file_it_points_to_exists():
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", README) if not t.startswith(("http", "#", "mailto:"))]
    assert [target for target in targets if not (ROOT / target.split("#")[0]).exists()] == []


# ---- the reading of it: each is shown what it must find

TREE = """
```
autoseg/
  cli.py        the command line: a/b.py
  data/         batches
    store.py    cases
  model.py      the end
tests/          not of the package
  test_cli.py   of tests
```
"""
DRAWN = """
```text
autoseg/
├── cli.py        the command line: a/b.py
├── data/         batches
│   └── store.py  cases
└── model.py      the end
```
"""


COMMANDS = r"""
Type `autoseg status`, not `autosegment x`.
```
autoseg plan D  # it's a comment
.venv/bin/autoseg env | head
make demo
autoseg train \
    -f 0
```
```
$ autoseg status && autoseg env
autoseg 0.1.0, Python 3.11
```
"""


@pytest.mark.parametrize("text", [TREE, DRAWN])
def test_trees_are_read(text):
    assert tree(text, "autoseg/") == {
        "autoseg/": "",
        "autoseg/cli.py": "the command line: a/b.py",
        "autoseg/data/": "batches",
        "autoseg/data/store.py": "cases",
        "autoseg/model.py": "the end",
    }
    assert tree("autoseg/\n  cli.py  outside of a code block", "autoseg/") == {}


def test_commands_are_read():
    assert [arguments(command) for command in commands(COMMANDS)] == [
        ["plan", "D"],
        ["env"],
        ["train", "-f", "0"],
        ["status"],
        ["status"],
    ]


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("autoseg train -f 0..4 --time-budget 10m", ""),
        ("autoseg --help", ""),
        ("autoseg train --time-budget soon", "soon"),
        ("autoseg tain", "tain"),
        ("autoseg predict -i a", "--out"),
        ("autoseg status --fast", "--fast"),
    ],
)
def test_faults_of_commands_are_found(command, fault, capsys):
    found = fault_of(command, capsys)
    assert fault in found
    assert bool(found) == bool(fault)
