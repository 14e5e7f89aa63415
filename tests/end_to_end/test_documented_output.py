"""What docs/commands.md shows of commands is what they print: line by line, whatever the numbers and names.

The output there is of other data (hippocampus) and took hours; here every command runs on a tiny dataset. Numbers,
durations and names of labels are put in the same words, and lines that the page broke are joined again.
"""

import contextlib
import io
import re
import shutil

import pytest

from commands import SHORT, outcome, run
from pages import COMMANDS, blocks, section
from phantom import tiny_dataset

LABELS = re.compile(r"\b(anterior|posterior|organ_1|organ_2)\b")
NUMBER = re.compile(r"(?<![\w/])[+-]?\d[\w.:%+]*( s\b)?")  # "0.893", "4m40s", "18 s", "3d_fullres", "2.13.0+cpu"
# What a machine is best at, and what it does where a time budget is short for it
MEASURED = re.compile(r"(forward and backward:|per step with N worker\(s\):|validation/?\S* in N(?=,)).*")
SHORT_OF_TIME = re.compile(r"full validation would take about .*")
VERDICT = re.compile(r"\b(good|fair|poor)$", re.MULTILINE)
FINDINGS = re.compile(
    r"note:|verdict:|proven:|WARNING:|fold N (does not overfit|overfits|failed|N? ?not known)"
)  # of the data
DEVICES = re.compile(r"^(no CUDA device|cuda:.*)$", re.MULTILINE)


def shape(text: str) -> list[str]:
    """The lines of an output without what differs between datasets and machines."""
    text = re.sub(r"\n {8,}(?=\S)", " ", text)
    text = LABELS.sub("LABEL", re.sub(r"\b(Hippocampus|Tiny)\b", "NAME", DEVICES.sub("DEVICE", text)))
    text = re.sub(r"-{10,}", "---", NUMBER.sub("N", text))
    text = VERDICT.sub("VERDICT", text)
    text = SHORT_OF_TIME.sub("validation takes about N of the N", text)
    text = re.sub(r"[ \t]+", " ", MEASURED.sub(lambda found: found[1] + " ..." * (found[1][-1] == ":"), text))
    return [line.strip() for line in text.splitlines() if line.strip() and not FINDINGS.match(line.strip())]


def each_once(lines: list[str]) -> list[str]:
    """Without repetitions and without `...`, which stands for some."""
    return [line for line in dict.fromkeys(lines) if line != "..."]


def shown(command: str) -> str:
    """What the page shows of a command that begins like this; of several, the one with the fewest options."""
    found = [block for block in blocks(section(COMMANDS, command.split()[0])) if f"$ autoseg {command}" in block]
    _, _, output = min(found, key=lambda block: len(block.splitlines()[0])).partition("\n")
    return output


@pytest.fixture(scope="module")
def printed(tmp_path_factory, in_this_process) -> dict[str, str]:
    """What each command prints, by how the page types it."""
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("plan", tiny_dataset(folder / "data", cases=10))
        shutil.copytree(folder / "data" / "imagesTr", folder / "images")
        found = {"train": captured("train", "-f", "0", "--time-budget", "15s", "--set", "training.workers=0")}
        run("train", "-f", "1..4", "--steps", 40, *SHORT)
        for typed, command in {
            "evaluate": ("evaluate",),
            "predict": ("predict", "-i", "images", "-o", "segmentations"),
            "evaluate --predictions": ("evaluate", "--predictions", "segmentations", "--references", "data/labelsTr"),
            "status": ("status",),
        }.items():
            found[typed] = captured(*command)
    return found


def captured(*command: str) -> str:
    """What a command prints that succeeds."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run(*command)
    return output.getvalue()


@pytest.mark.slow
def test_train_prints_what_the_docs_show(printed):
    """In their order, perhaps with others between them."""
    lines = iter(each_once(shape(printed["train"])))
    for line in each_once(shape(shown("train"))):
        assert line in lines, f"not printed, or not in this place: {line}"


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["evaluate", "evaluate --predictions", "predict", "status"])
def test_a_command_prints_what_the_docs_show(printed, typed):
    assert shape(printed[typed]) == shape(shown(typed))


def test_env_prints_what_the_docs_show(capsys):
    code, text = outcome(capsys, "env")
    assert (code, shape(text)) == (0, shape(shown("env")))


def test_another_output_is_noticed():
    """The comparison itself: a word, a column and a line that are missing, and numbers that do not matter."""
    text = shown("evaluate --predictions")
    assert shape(text) == shape(text.replace("0.8722", "0.1").replace("anterior ", "organ_1  "))
    for other in (text.replace("nsd", "msd"), text.replace("  cases\n", "\n"), text.replace("mean  ", "\n")):
        assert shape(other) != shape(text)
