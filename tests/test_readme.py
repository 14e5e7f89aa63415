"""README and docs are true: the tree lists the files there are, commands can be typed, links lead somewhere."""

import argparse
import ast
import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import autoseg
from autoseg.cli import main
from autoseg.commands.parser import build_parser
from autoseg.planning.plan import Training
from commands import SHORT, run
from pages import PAGES, ROOT, blocks, prose, section
from phantom import tiny_dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import planted_faults

PACKAGE = ROOT / "autoseg"
README, COMMANDS, ARCHITECTURE = (PAGES[name] for name in ("README.md", "docs/commands.md", "docs/architecture.md"))
README_LINES = 150
EXAMPLE_LINES = 8
ANNOUNCED: set[str] = set()


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them: "What the commands say" is what-the-commands-say."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page: str, text: str) -> list[str]:
    """Links of a page, by its path, that lead to no file, or to no heading of another page."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


def named_paths(text: str) -> set[str]:
    """Files and folders of the project that stand in inline code."""
    code = " ".join(re.findall(r"`([^`\n]+)`", prose(text)))
    return set(re.findall(r"(?<![\w/.])(?:autoseg|tests|benchmarks|docs)/[\w./-]*\w", code))


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


def commands(text: str, *, shown: bool | None = None) -> list[str]:
    """Lines of code blocks, and inline code, that call autoseg. Where some lines have a prompt, others are output.

    Args:
        shown: of code blocks alone: those with their output (True) or without (False); None: of all text.
    """
    found = []
    for block in blocks(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if shown is None or shown == bool(prompted):
            lines = [re.sub(r"^torchrun .*?-m (?=autoseg\s)", "", line) for line in prompted or lines]
            found += [line for line in lines if re.match(r"(\S*/)?autoseg\s", line)]
    if shown is not None:
        return found
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


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a command, but for help."""
    return {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}


def options() -> set[str]:
    """Every option of every command."""
    return {"-h", "--help"}.union(*map(options_of, (build_parser(), *subparsers().values())))


# ---- the tree


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


# ---- every page


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_can_be_typed(page, capsys):
    assert {command: fault for command in commands(PAGES[page]) if (fault := fault_of(command, capsys))} == {}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_the_text_exists(page):
    code = [code for code in re.findall(r"`([^`\n]+)`", prose(PAGES[page])) if not code.startswith(("pip ", "python "))]
    named = set(re.findall(r"(?<!\S)--?[a-z-]+", " ".join(code)))
    assert named - options() - ANNOUNCED == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    assert set(dead_links(page, PAGES[page])) - ANNOUNCED == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_the_text_exists(page):
    assert {path for path in named_paths(PAGES[page]) if not (ROOT / path).exists()} - ANNOUNCED == set()


def test_nothing_installs_a_stranger():
    """The name `autoseg` on the package index is somebody else's."""
    found = {page: re.findall(r"pip install[^\n`]*\bautoseg\b(?!-med)", text) for page, text in PAGES.items()}
    assert {page: lines for page, lines in found.items() if lines} == {}
    assert 'name="autoseg-med"' in (ROOT / "setup.py").read_text()


# ---- README


def test_readme_is_short():
    assert len(README.splitlines()) <= README_LINES


def test_readme_lists_every_folder_of_the_package():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in PACKAGE.glob("*/__init__.py")}
    assert (named_paths(section(README, "Folders")) ^ folders) - ANNOUNCED == set()


def test_the_python_example_is_short_and_names_what_there_is():
    """`tests/api/` runs it."""
    (example,) = blocks(README, "python")
    assert len(example.splitlines()) <= EXAMPLE_LINES
    used = {node.attr for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Attribute)}
    assert {"plan_dataset", "train_folds", "cross_validate", "predict_images"} <= used & set(autoseg.PUBLIC)


def test_every_result_is_in_the_section_of_the_benchmarks_it_names():
    measured = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    _, *rows = re.findall(r"^\|(.+)\|(.+)\|(.+)\| (\S+) \|$", section(README, "Results"), re.MULTILINE)
    found = 0
    for _what, ours, theirs, number in rows:
        (there,) = re.findall(rf"^## {number}\. .*?(?=^## )", measured, re.MULTILINE | re.DOTALL)
        figures = re.findall(r"\d+\.\d+|\d{3,}", ours + theirs)
        assert [figure for figure in figures if not re.search(rf"(?<![\d.]){figure}(?!\d)", there)] == []
        found += len(figures)
    assert found > 15


@pytest.mark.slow
def test_the_five_commands_run_as_they_are_written(tmp_path, monkeypatch):
    """On a tiny dataset, with a training of seconds instead of ten minutes."""
    monkeypatch.chdir(tmp_path)
    dataset = tiny_dataset(tmp_path / "DATASET", cases=5)
    shutil.copytree(dataset / "imagesTr", tmp_path / "IMAGES")
    (block,) = blocks(section(README, "Five commands for your data"))
    typed = [arguments(line) for line in block.splitlines()]
    assert [words[0] for words in typed] == ["check", "plan", "train", "evaluate", "predict"]
    for words in typed:
        if words[0] == "train":
            at = words.index("--time-budget")
            words[at : at + 2] = ["--epochs", "1", *SHORT]
        run(*words)
    assert len(list((tmp_path / "SEGMENTATIONS").iterdir())) == 5


def test_the_citation_is_of_this_version():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", cited, re.MULTILINE) == [autoseg.__version__]


# ---- docs


@pytest.mark.parametrize("name", subparsers())
def test_a_command_is_documented_with_all_its_options(name):
    described = set()
    for row in re.findall(r"^\| (`.+?) \|", section(COMMANDS, name), re.MULTILINE):
        described |= set(re.findall(r"(?<!\S)--?[a-z-]+", " ".join(re.findall(r"`([^`]+)`", row))))
    assert (described ^ options_of(subparsers()[name])) - ANNOUNCED == set()
    assert name in {words[0] for command in commands(COMMANDS) if (words := arguments(command))} | {"demo"}


def test_commands_without_output_use_what_a_test_uses():
    """Every option of a command that a page shows without what it prints is passed by some test."""
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/**/*.py") if path.name != Path(__file__).name)
    unused = set()
    for text in PAGES.values():
        for command in commands(text, shown=False):
            words = arguments(command)
            for option in (word.partition("=")[0] for word in words[1:] if re.match("--?[a-z]", word)):
                if not re.search(rf"""["' ]{option}["'= ]""", tests):
                    unused.add(f"{words[0]} {option}")
    assert unused == set()


def test_check_prints_what_the_docs_show(tmp_path, capsys, in_this_process):
    """Paste what this test finds into docs/commands.md where a message was changed."""
    planted_faults.plant(tmp_path / "data")
    assert main(["check", str(tmp_path / "data")]) == 3
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    (shown,) = blocks(section(COMMANDS, "check"))
    assert shown == f"$ autoseg check data\n{printed}"


@pytest.mark.slow
def test_plan_prints_what_the_docs_show(data_dir, tmp_path, capsys, monkeypatch):
    """On a machine without a GPU that was never calibrated. Where lines are left out, the others are compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("autoseg.commands.plan.gpu_memory_gb", lambda: None)
    (tmp_path / "hippocampus").symlink_to(data_dir / "hippocampus")
    shown = [block for block in blocks(section(COMMANDS, "plan")) if "plan hippocampus" in block]
    assert len(shown) == 2
    for block in shown:
        command, _, output = block.partition("\n")
        parts = re.split(r"^\.\.\.\n", output, flags=re.MULTILINE)
        run(*arguments(command.removeprefix("$ ")))
        printed = capsys.readouterr().out
        assert [part for part in parts if part not in printed] == []


def test_the_plugin_example_adds_a_loss(monkeypatch):
    import torch

    from autoseg.nn.losses import LOSSES

    monkeypatch.setitem(LOSSES, "gentle_dice_ce", None)  # so that it is gone after the test
    (example,) = blocks(PAGES["docs/extending.md"], "python")
    exec(example, {})
    logits, target = torch.tensor([[[0.0, 1.0], [2.0, 0.5]]]), torch.tensor([[0, 1]])  # two classes, two voxels
    given = {"regions": (), "ignore_index": None, "batch_dice": False}
    gentle = LOSSES["gentle_dice_ce"](class_weights=(1.0, 9.0), **given)(logits, target)
    assert gentle == LOSSES["dice_ce"](class_weights=None, **given)(logits, target)
    assert gentle != LOSSES["dice_ce"](class_weights=(1.0, 9.0), **given)(logits, target)


def test_every_training_setting_is_explained():
    explained = set(re.findall(r"`(\w+)`", section(PAGES["docs/training.md"], "The recipe")))
    assert {field.name for field in dataclasses.fields(Training)} - explained == set()


def test_every_planning_rule_is_explained():
    """The steps of plans that tests keep, by their numbers; section 6 is advice, numbered as it comes."""
    plans = [json.loads(path.read_text()) for path in ROOT.glob("tests/golden/*.plan.json")]
    rules = {decision["step"].partition(" (")[0] for plan in plans for decision in plan["decisions"]}
    explained = set(re.findall(r"^\| (\d\.\d+ [^|]+?) \|", PAGES["docs/planning.md"], re.MULTILINE))
    assert len(rules) > 20
    assert {rule for rule in rules if not rule.startswith("6.")} - explained == set()


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


TYPED = r"""
Type `autoseg status`, not `autosegment x`.
```
autoseg plan D  # it's a comment
.venv/bin/autoseg env | head
make demo
autoseg train \
    -f 0
torchrun --nproc-per-node 2 -m autoseg train -f 1
```
```
$ autoseg status && autoseg env
autoseg 0.1.0, Python 3.11
```
"""
LINKED = """
# A page: its Title
[a](README.md) [b](README.md#limits) [c](#a-page-its-title) [d](https://example.org/x)
[e](missing.md) [f](README.md#nowhere) [g](docs/) `tests/nowhere.py` and autoseg/nowhere.py, `~/.cache/autoseg/x.json`
```
see `tests/in_a_block.py`
```
## Below
the end
"""


def test_links_and_paths_are_read():
    assert dead_links("CITATION.cff", LINKED) == ["#a-page-its-title", "missing.md", "README.md#nowhere"]
    assert anchors(LINKED) == {"a-page-its-title", "below"}
    assert named_paths(LINKED) == {"tests/nowhere.py"}
    assert section(LINKED, "Below") == "the end\n"


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
    assert [arguments(command) for command in commands(TYPED)] == [
        ["plan", "D"],
        ["env"],
        ["train", "-f", "0"],
        ["train", "-f", "1"],
        ["status"],
        ["status"],
    ]
    assert commands(TYPED, shown=True) == ["autoseg status && autoseg env"]
    assert [arguments(command)[0] for command in commands(TYPED, shown=False)] == ["plan", "env", "train", "train"]


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
