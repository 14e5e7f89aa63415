"""Commands that messages suggest: complete, quoted, and tried as they stand."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from autoseg.cli import main
from autoseg.commands.arguments import duration as typed
from autoseg.commands.parser import build_parser
from autoseg.messages import (
    ANY_DATASET,
    DEFAULT_WORKSPACE,
    LESS_MEMORY,
    aligned,
    complete,
    counted,
    duration,
    ruled,
    some,
    suggest,
    typed_duration,
)
from commands import SHORT, outcome, run
from phantom import tiny_dataset

PACKAGE = Path(__file__).parents[1] / "autoseg"
COMMANDS = ("demo", "check", "plan", "train", "evaluate", "predict", "status", "calibrate", "env")
SPACED = Path("/my data/Jürg's")


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (suggest("train", workspace=DEFAULT_WORKSPACE), "autoseg train"),
        (suggest("train", workspace=Path("w")), "autoseg train -w w"),
        (suggest("train"), "autoseg train -w WORKSPACE"),
        (suggest("env", workspace=None), "autoseg env"),
        (suggest("train", "-f", 3, workspace=Path("a b"), configuration="2d", network="fcn"),
         "autoseg train -f 3 -c 2d --network fcn -w 'a b'"),
        (suggest("plan", SPACED, workspace=Path("-w")), """autoseg plan '/my data/Jürg'"'"'s' -w ./-w"""),
    ],
)  # fmt: skip
def test_a_suggestion_is_quoted_and_names_the_workspace(found, command):
    assert found == command


def test_what_the_raiser_did_not_know_is_put_in(tmp_path):
    planned = tmp_path / "a b"
    planned.mkdir()
    (planned / "dataset.json").write_text('{"root": "/my data"}', encoding="utf-8")
    text = f"plan it: {suggest('plan', ANY_DATASET)}, or see {suggest('check', ANY_DATASET, workspace=None)}"
    assert (
        complete(text, planned) == f"plan it: autoseg plan '/my data' -w '{planned}', or see autoseg check '/my data'"
    )
    assert complete(text, DEFAULT_WORKSPACE) == "plan it: autoseg plan DATASET, or see autoseg check DATASET"
    assert complete(text, None) == text
    for damaged in ("", "[]", "{", '{"root": 3}', "[" * 100000):
        (planned / "dataset.json").write_text(damaged)
        assert "autoseg plan DATASET -w" in complete(text, planned)
    assert complete(LESS_MEMORY, Path("w")).endswith("autoseg plan DATASET --vram 8 -w w")


# Nobody writes a command by hand


def handwritten(source: str) -> list[str]:
    """String literals, docstrings aside, that hold `autoseg <command>`."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    pattern = re.compile(rf"\bautoseg (?:{'|'.join(COMMANDS)})\b")
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and pattern.search(node.value)
    ]


EXCEPTIONS = {
    "planning/planner.py": ["autoseg calibrate"],  # the value of a decision, stored in plan.json: it takes no workspace
    "launch/slurm.py": ["autoseg evaluate"],
    "planning/table.py": ["?: unknown until this machine is measured (autoseg calibrate)"],
}


def test_every_suggestion_is_made_by_the_module():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        left = [text for text in handwritten(path.read_text(encoding="utf-8")) if text not in EXCEPTIONS.get(name, [])]
        if left:
            found[name] = left
    assert found == {}


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ('x = "run autoseg train -f 0"', 1),
        ('x = f"run autoseg plan {d}"', 1),
        ('"""autoseg train"""', 0),
        ('def f():\n    "autoseg train"', 0),
        ('def f():\n    return "`autoseg check` says"', 1),
        ('x = "autoseg trained it"', 0),
        ('x = suggest("train")', 0),
    ],
)
def test_commands_written_by_hand_are_caught(source, caught):
    assert len(handwritten(source)) == caught


# What is suggested is tried


def suggested(text: str) -> list[list[str]]:
    """Arguments of every command in a message, up to what cannot belong to it."""
    found = []
    for line in text.splitlines():
        for match in re.finditer(rf"autoseg (?:{'|'.join(COMMANDS)})\b", line):
            lexer = shlex.shlex(line[match.start() :], posix=True)
            lexer.whitespace_split = True
            lexer.commenters = ""
            words = []
            for word in lexer:
                words.append(word.rstrip(",;:)"))
                if word != words[-1]:  # the sentence goes on
                    break
            found.append(words[1:])
    return found


def test_commands_are_found_in_messages():
    text = "  -> plan it: autoseg plan 'a b' -w w, or autoseg env\nnext: autoseg status"
    assert suggested(text) == [["plan", "a b", "-w", "w"], ["env"], ["status"]]


def only(said: str) -> list[str]:
    """The one command that a message suggests; it parses."""
    commands = suggested(said)
    assert len({tuple(c) for c in commands}) == 1, said
    build_parser().parse_args(commands[0])
    return commands[0]


@pytest.mark.slow
def test_each_suggestion_leads_on(tmp_path, capsys, monkeypatch):
    """A user who types what each message says comes from a dataset to segmentations and scores."""
    root = tmp_path / "Jürgs Köpfe"
    data, workspace = root / "data set", root / "my workspace"
    root.mkdir()
    tiny_dataset(data, cases=5)

    # nothing planned: the dataset is the one thing that nobody can know
    for command in (["train"], ["evaluate"], ["predict", "-i", data / "imagesTr", "-o", root / "out"], ["status"]):
        _, said = outcome(capsys, *command, "-w", workspace)
        assert only(said) == ["plan", "DATASET", "-w", str(workspace)]
    command = [str(data) if word == "DATASET" else word for word in only(said)]
    assert outcome(capsys, *command)[0] == 0

    # a folder of the default name is not named
    monkeypatch.chdir(workspace.parent)
    (root / "autoseg_workspace").symlink_to(workspace)
    assert only(outcome(capsys, "evaluate")[1]) == ["train", "-c", "3d_fullres", "--network", "unet"]

    # nothing trained
    code, said = outcome(capsys, "evaluate", "-w", workspace)
    assert code == 4
    train = only(said)
    assert train == ["train", "-c", "3d_fullres", "--network", "unet", "-w", str(workspace)]
    code, said = outcome(capsys, "predict", "-i", data / "imagesTr", "-o", root / "out", "-w", workspace)
    assert only(said) == train
    code, said = outcome(capsys, "predict", "-m", "a-b", "-i", data / "imagesTr", "-o", root / "out", "-w", workspace)
    assert only(said) == ["train", "-w", str(workspace)]
    _, said = outcome(capsys, "status", "-w", workspace)
    status = only(said)
    assert status == ["train", "-f", "0,1,2,3,4", "-w", str(workspace)]

    assert outcome(capsys, *status, *SHORT, "--steps", "2")[0] == 0
    command = only(outcome(capsys, "status", "-w", workspace)[1])
    assert command == ["evaluate", "-w", str(workspace)]

    # a prediction is missing
    lost = next(workspace.glob("models/*/fold_2/validation/*.nii.gz"))
    lost.unlink()
    code, said = outcome(capsys, *command)
    assert code == 0
    assert "skipping fold 2" in said
    again = only(said)
    assert again[:3] == ["train", "-f", "2"]
    assert outcome(capsys, *again)[0] == 0  # with the options it was begun with
    assert lost.exists()
    assert outcome(capsys, *command)[0] == 0

    command = only(outcome(capsys, "status", "-w", workspace)[1])
    command = [
        {"IMAGES": str(data / "imagesTr"), "SEGMENTATIONS": str(root / "out")}.get(word, word) for word in command
    ]
    assert outcome(capsys, *command)[0] == 0
    assert len(list((root / "out").glob("*.nii.gz"))) == 5

    # the dataset has gone: what was planned tells how, and whoever moved it knows where to
    data.rename(root / "elsewhere")
    code, said = outcome(capsys, "train", "-c", "2d", "-w", workspace)
    assert code == 4
    command = [str(root / "elsewhere") if word == "NEWPLACE" else word for word in only(said)]
    assert command[:2] == ["plan", str(root / "elsewhere")]
    assert outcome(capsys, *command)[0] == 0


@pytest.mark.slow
def test_the_demo_shows_commands_that_parse(tmp_path, capsys, monkeypatch):
    def ends(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoseg.commands.plan.plan_dataset", ends)
    main(["demo", "-o", str(tmp_path / "with blank")])
    shown = [line.partition("$ ")[2] for line in capsys.readouterr().out.splitlines() if "] $ " in line]
    assert [shlex.split(line)[1] for line in shown] == ["demo", "plan"]
    for line in shown:
        build_parser().parse_args(shlex.split(line)[1:])


def test_a_workspace_with_a_blank_is_quoted_in_status(tmp_path, capsys):
    run("status", "-w", tmp_path / "a b")
    assert f"-w '{tmp_path / 'a b'}'" in capsys.readouterr().out


# ---- numbers, names, durations, columns


def test_some_of_many_names():
    assert some([]) == ""
    assert some("abcde") == "a, b, c, d, e"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some((n for n in range(4)), 3) == "0, 1, 2 and 1 more"


def test_numbers_of_things():
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1m00s"), (60, "1m00s"), (193.2, "3m13s"), (3599.6, "1h00m"),
        (3600, "1h00m"), (10783, "2h59m"),
    ],
)  # fmt: skip
def test_durations_are_shown(seconds, text):
    assert duration(seconds) == text


def test_durations_are_written_as_options_take_them():
    assert [typed_duration(s) for s in (90, 600, 3600, 5400, 7200.4)] == ["90s", "10m", "1h", "1h30m", "2h"]
    for seconds in (0.5, 90, 119, 120, 5400, 7200, 360000):
        assert typed(typed_duration(seconds)) == seconds


def test_columns_begin_below_each_other():
    assert aligned([("a", "what", ""), ("long", "b", "c")]) == ["a     what", "long  b     c"]
    assert aligned([]) == []
    with pytest.raises(ValueError, match="zip"):
        aligned([("a", "b"), ("c",)])


def test_columns_of_numbers_end_below_each_other():
    rows = [("a", "bb", "c"), ("long", "1", "")]
    assert aligned(rows, right=[1]) == ["a     bb  c", "long   1"]
    assert aligned(rows, right=[1], least=(6, 4)) == ["a         bb  c", "long       1"]


def test_a_table_with_a_line_below_its_header():
    assert ruled([["a", "bb", "c"], ["long", "1", "222"]]) == "a     bb    c\n-------------\nlong   1  222"
