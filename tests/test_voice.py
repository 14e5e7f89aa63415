"""The project speaks plain technical English: phrases that read as translated, and what to write instead.

`python tests/test_voice.py FOLDER_OR_FILE ...` lists what the rules find there.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "benchmarks/README.md")
REWRITTEN: tuple[str, ...] = (  # folders of the package whose texts follow the rules
    "autoseg/datasets",
    "autoseg/imaging",
    "autoseg/planning",
    "autoseg/preprocessing",
    "autoseg/evaluation",
    "autoseg/inference",
    "autoseg/api",
    "autoseg/augmentation",
    "autoseg/commands",
    "autoseg/dataloading",
    "autoseg/demo",
    "autoseg/launch",
    "autoseg/models",
    "autoseg/nn",
    "autoseg/report",
    "autoseg/serve",
    "autoseg/training",
)


@dataclass(frozen=True)
class Rule:
    """One phrase to avoid."""

    pattern: str  # a space is a space or a line end; upper and lower case alike
    better: str
    caught: str
    passed: str


RULES = (
    Rule(r"\bgo(?:es|ing)? on\b", "resume, continue", "the same command goes on", "the fold continues, going once"),
    Rule(r"\banew\b", "again, from scratch", "train these folds anew", "a new fold"),
    Rule(r"\btold\b", "given, reported, passed", "what `plan` can be told", "a toll"),
    Rule(r"\btells? (?:of|when|what|how|which|where|that)\b", "report, show", "what tells of folds", "tells us"),
    Rule(r"\b(?:is|are|was|were|be) said\b", "is printed, reported, defined", "what counts is said here", "it said"),
    Rule(r"\bendings\b|\b(?:file|its|this|one|known|the|an) ending\b", "file extension", "its ending says .nii.gz",
         "ending a training"),
    Rule(r"\bkept back\b|\bkeeps? back\b", "reserve", "time kept back for the validation", "kept"),
    Rule(r"\bstands? still\b", "stagnate, stay constant", "where the Dice stands still", "still stands"),
    Rule(r"\bby way of\b", "through, with", "torchrun's ranks, by way of DDP", "by the way"),
    Rule(r"\bcalled otherwise\b", "named differently", "images called otherwise", "otherwise called"),
    Rule(r"\bbeside (?:the steps|other|another)\b", "in the background, next to", "written beside\nthe steps",
         "the file beside this one"),
    Rule(
        r"(?<!\bthere )\b(?:is|are|was|were|be) no (?!(?:longer|more|less|better|worse|slower|faster|larger)\b)",
        "is not a, are not", "2x is no duration, nor\nis no number", "there is no GPU; it is no longer there",
    ),
    Rule(r"\bwill do\b", "is enough, works", "a CPU will do for small images", "what will document it"),
    Rule(r"\bdear(?:er|est)?\b", "expensive", "a cost that is dear to tell", "the deadline"),
    Rule(r"\bsee to\b", "check, fix", "see to the disk's space", "see `tests`"),
    Rule(r"\bmend(?:s|ed|ing)?\b", "fix, repair", "everything is mended", "we recommend it"),
    Rule(r"\bbit by bit\b", "bit for bit", "the same weights, bit by bit", "equal bit for bit"),
    Rule(r"\bvery (?:step|same|moment)\b", "exact step, same", "goes on with the very step", "very small"),
    Rule(r"\bwho they are\b", "what they are", "parameters stay who they are", "who they were"),
    Rule(r"\bnothing of (?:it|this|that|what)\b", "none of", "nothing of it changes", "nothing changes"),
    Rule(r"\bknows? no\b", "does not know, is independent of", "it knows no files", "it knows nodes"),
    Rule(r"\bstands? (?:in(?! for\b)|on|beside|below|above|under|here|there)\b", "is in", "the value stands in a file",
         "stand-alone; stands for; stands in for"),
    Rule(r"\blies? (?:above|below|on top)\b", "is above, must be greater than", "does not lie above 0", "files lie in"),
    Rule(r"\b(?:of|with) so (?:many|much|few)\b", "that many", "a GPU of so many GB", "in so many words"),
    Rule(r"\bof (?:today|before|above|then)\b", "current, previous", "older than those of today", "as before; today"),
    Rule(r"\b(?:is|are|was|were) asked\b(?! (?:for|to)\b)", "is called", "torch is asked, which", "was asked for"),
    Rule(r"\b(?:is|are|was|were) through\b", "has ended, is complete", "where a schedule is through", "goes through"),
    Rule(r"\btakes? (?:its|their|the) place\b", "replaces", "another takes its place", "it takes a place"),
    Rule(r"\btakes? (?:it|them) in\b|\btake in\b", "include, use", "--unfinished takes it in", "it takes in all 5 s"),
    Rule(r"\btaken up again\b", "restored", "the last good state is taken up again", "taken again"),
    Rule(r"\blaid out to be read\b", "as a table", "decisions, laid out to be read", "laid out as a table"),
    Rule(r"\bpass(?:es|ed|ing)? over\b", "skip", "hidden files are passed over", "averaged over"),
    Rule(r"\bwithout (?:a|any) word\b", "silently", "replaced without a word", "without a keyword"),
    Rule(r"\bsay(?:s|ing)? (?:the same|of)\b", "print, state", "-c and --network say the same again", "say so"),
    Rule(r"\bwhere nothing (?:else )?is said\b", "by default", "where nothing else is said", "nothing is saved"),
    Rule(r"\bof (?:its|their|the user's|a user's) own accord\b", "automatically", "it stops of its own accord",
         "options of its own"),
    Rule(r"\bnamed at once\b", "reported immediately", "is named at once, with what to try", "several named at a time"),
    Rule(r"\bkept aside\b", "renamed, kept", "(the old fold is kept aside)", "set aside memory"),
    Rule(r"\b(?:learnt|learned) (?:of|from nothing)\b", "skipped", "nothing is learnt of A and B", "learnt from A"),
    Rule(r"\boptimi[sz]er remembers\b", "optimiser state", "what the optimiser remembers", "optimiser state"),
    Rule(r"\b(?:begin|began|begun) with what fits\b", "initialise from", "begin with what fits", "begin with 0"),
    Rule(r"\bis (?:said|shown) (?:at|in) once\b|\bsaid once\b", "reported once", "a full disk: that is said once",
         "said twice"),
    Rule(r"\bas (?:it was|they were)(?=[,.;:)]|$)", "unchanged, the same", "the command as it was, of which",
         "as it was planned"),
    Rule(r"\bhas (?:the|a) word\b|\bworth a word\b", "is worth a warning", "images that are worth a word", "a word"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A phrase where it was found."""

    line: int
    phrase: str
    better: str


def compiled(rule: Rule) -> re.Pattern[str]:
    return re.compile(rule.pattern.replace(" ", "[ \n]"), re.IGNORECASE | re.MULTILINE)


PATTERNS = [(compiled(rule), rule) for rule in RULES]


def flat(text: str) -> str:
    """A text without indentation, marks of comments and runs of spaces; lines keep their numbers."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]*\n[ \t]*(?:# ?)?[ \t]*", "\n", text))


def find(text: str, first_line: int = 1) -> list[Finding]:
    """What the rules find in a text, in order."""
    text = flat(text)
    found = [
        Finding(first_line + text.count("\n", 0, match.start()), " ".join(match[0].split()), rule.better)
        for pattern, rule in PATTERNS
        for match in pattern.finditer(text)
    ]
    return sorted(found, key=lambda finding: finding.line)


def prose_of_page(text: str) -> str:
    """A Markdown page with its code, which may be real output, blanked out; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "_", match[0])

    return re.sub(r"`[^`\n]*`", blank, re.sub(r"^```.*?^```", blank, text, flags=re.MULTILINE | re.DOTALL))


def texts_of_module(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string, docstrings among them, and of every block of comments."""
    comment, begins, ends = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            yield token.start[0], token.string
        elif token.type == tokenize.COMMENT:
            if token.start[0] == ends + 1 and comment:
                comment, ends = f"{comment}\n{token.string}", token.start[0]
            else:
                if comment:
                    yield begins, comment
                comment, begins, ends = token.string, token.start[0], token.start[0]
    if comment:
        yield begins, comment


def find_in(path: Path) -> list[Finding]:
    """What the rules find in a page, or in the texts of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return find(prose_of_page(text))
    found = [finding for line, part in texts_of_module(text) for finding in find(part, line)]
    return sorted(found, key=lambda finding: finding.line)


def files_of(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for page in PAGES for path in ROOT.glob(page)])
def test_pages_are_plain_english(page):
    assert find_in(ROOT / page) == []


def test_packages_are_plain_english():
    """Those rewritten so far, the files at the top, and the docstring of every package."""
    files = [file for folder in REWRITTEN for file in files_of(ROOT / folder)]
    files += sorted(ROOT.glob("autoseg/*.py"))
    assert {file.relative_to(ROOT).as_posix(): found for file in files if (found := find_in(file))} == {}
    packages = {file: next(texts_of_module(file.read_text()))[1] for file in ROOT.glob("autoseg/**/__init__.py")}
    assert {file: found for file, docstring in packages.items() if (found := find(docstring))} == {}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.better)
def test_a_rule_catches_its_phrase_and_lets_its_neighbour_pass(rule):
    pattern = compiled(rule)
    assert pattern.search(flat(rule.caught))
    assert not pattern.search(flat(rule.passed))


def test_phrases_are_found_where_they_are():
    module = (
        '"""Goes\n    on."""\nx = 1  # train\ny = 2\n# it\n# goes on,\n# and goes\n# on\nz = f"{x} anew"\ngoes_on = z\n'
    )
    page = "one\n```\ngoes on\n```\n`anew` and goes\non\n"
    found = [(finding.line, finding.phrase) for line, text in texts_of_module(module) for finding in find(text, line)]
    assert sorted(found) == [(1, "Goes on"), (6, "goes on"), (7, "goes on"), (9, "anew")]
    assert [(finding.line, finding.phrase) for finding in find(prose_of_page(page))] == [(5, "goes on")]


def main() -> None:
    total = 0
    for file in (file for place in sys.argv[1:] for file in files_of(Path(place))):
        found = find_in(file)
        total += len(found)
        for finding in found:
            print(f"{file}:{finding.line}: {finding.phrase} -> {finding.better}")
    print(f"{total} phrases")


if __name__ == "__main__":
    main()
