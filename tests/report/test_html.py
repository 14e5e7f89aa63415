"""The page: every section, whatever is missing; every name escaped; nothing loaded from anywhere; small."""

import hashlib
import json
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoseg.commands.report import live_report, report_or_warn, reported, write_report
from autoseg.errors import StateError
from autoseg.evaluation.click_curves import ClickedCase, ClickTable
from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.expected_dice import ScoredCase, calibrate
from autoseg.evaluation.statistics import Flag
from autoseg.inference.agreement import SCORES
from autoseg.planning.plan import Plan
from autoseg.planning.prompted import with_prompts
from autoseg.records import load, save
from autoseg.report.checklists import claim, properties
from autoseg.report.gathered import gather
from autoseg.report.html import MOST_BYTES, SECTIONS, VIEWER, render
from autoseg.report.sections import data_section, training_section
from autoseg.report.verdict import headline, verdict
from autoseg.training.history import write_history
from autoseg.training.machines import Machine, Session
from autoseg.workspace import Workspace
from reported import MODEL, SCRIPT, add_fold, copied, history, planned, reported_workspace, row, score

ROOT = Path(__file__).parents[2]
VIEWER_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # of npm's @niivue/niivue 0.69.0
EMPTY = '<svg viewBox="0 0 1 1"><g></g></svg>'
VOID = {"meta", "link", "br", "input", "img", "hr", "image", "path", "use"}
LOADING = {"src", "href", "xlink:href", "data", "poster", "action", "srcset"}


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text outside of scripts, and whether its elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words += data

    def loads(self) -> set[str]:
        """Addresses that the page would load or lead to, but for those within it."""
        found = {value for _, one in self.elements for key, value in one.items() if key in LOADING and value}
        return {address for address in found if not address.startswith(("#", "data:"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory, in_this_process) -> Workspace:
    return reported_workspace(tmp_path_factory.mktemp("reported"))[1]


@pytest.fixture(scope="module")
def text(source) -> str:
    return render(gather(source, live=False)).text


@pytest.fixture
def quick(monkeypatch):
    """Charts are not drawn: an empty one stands for each."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **how: file.write(EMPTY))


@pytest.mark.thorough
def test_the_page_has_every_section_and_closes_every_element(text):
    page = Page(text)
    assert page.open == []
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len(set(ids)), "an identifier occurs twice"
    assert [one["id"] for tag, one in page.elements if tag == "section"] == [name for name, _ in SECTIONS]
    targets = {one["href"][1:] for tag, one in page.elements if tag == "a" and one["href"].startswith("#")}
    assert targets <= set(ids)


def test_the_verdict_comes_first(source, text):
    of = gather(source)
    mean, ends = headline(of, of.scores)
    shown = f"Mean Dice {mean:.2f} (95 % {ends[0]:.2f} to {ends[1]:.2f})"
    assert re.search(r"<h1>(.*?)</h1>", text)[1] == shown
    assert text.index(shown) < text.index('<section id="data">')


def test_the_headline_is_the_mean_over_labels_of_means_over_cases(source):
    of = gather(source)
    means = [summary["dice"].mean for summary in of.scores.summary.values()]
    assert headline(of, of.scores)[0] == pytest.approx(sum(means) / len(means))


def test_nothing_is_loaded_from_anywhere(text):
    page = Page(text)
    assert page.loads() == set()
    styles = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"@import|url\((?!#|data:)", styles)


def test_names_of_cases_are_escaped(text):
    """The case is called so in tables, pictures, buttons, commands and data of the viewer."""
    page = Page(text)
    scripts = [one for tag, one in page.elements if tag == "script"]
    own = [one for one in scripts if one.get("type") not in ("application/json", "text/plain")]
    assert len(own) == 1, "a script that is not ours"
    assert "<script>alert" not in text
    assert SCRIPT in page.words
    assert SCRIPT in {one.get("data-case") for tag, one in page.elements if tag in ("button", "script")}
    assert json.loads(re.search(r'<script type="application/json" id="label-names">(.*?)</script>', text)[1])


@pytest.mark.thorough
def test_labels_and_paths_are_escaped(source, tmp_path):
    """In tables, charts and data of the viewer; of a workspace with an unusual path."""
    workspace = copied(source, tmp_path / "a & <i>b</i>")
    odd = "</script><i>$x_1$&'"
    for path in (workspace.plan, workspace.dataset, workspace.fingerprint, workspace.crossval(*MODEL)):
        path.write_text(path.read_text().replace('"organ_1"', json.dumps(odd)))
    text = render(gather(workspace, live=False)).text
    page = Page(text)
    assert page.open == []
    assert not [tag for tag, one in page.elements if tag == "i" and "class" not in one]
    assert "a & <i>b</i>" in page.words
    assert odd in page.words
    assert json.loads(re.search(r'id="label-names">(.*?)</script>', text)[1]) == [odd, "organ_2"]


def test_the_page_is_small(text):
    assert len(text.encode()) < 4_500_000 < MOST_BYTES


@pytest.mark.thorough
def test_pictures_are_left_out_where_the_page_would_be_too_large(source, monkeypatch, quick):
    monkeypatch.setattr("autoseg.report.html.MOST_BYTES", 1_000_000)
    page = render(gather(source))
    assert page.cases > 0
    assert 'id="viewer-source"' not in page.text
    monkeypatch.setattr("autoseg.report.html.MOST_BYTES", 1_000)
    assert render(gather(source)).cases == 0


@pytest.mark.thorough
def test_a_planned_workspace_has_a_page_with_the_commands_that_are_due(tmp_path, in_this_process, quick):
    _, workspace = planned(tmp_path, named="plain")
    page = Page(render(gather(workspace)).text)
    assert "Planned, not trained" in page.words
    copied_commands = {one["data-copy"] for _, one in page.elements if "data-copy" in one}
    assert f"autoseg train -w {workspace.root}" in copied_commands
    assert f"autoseg train -f 0,1,2,3,4 -w {workspace.root}" in copied_commands
    add_fold(workspace, 0)
    score(workspace, (0,))
    page = Page(render(gather(workspace, live=False)).text)
    assert "1 fold of 5" in page.words
    copied_commands = {one["data-copy"] for _, one in page.elements if "data-copy" in one}
    assert f"autoseg train -f 1,2,3,4 -w {workspace.root}" in copied_commands


def test_a_workspace_without_a_plan_is_refused(tmp_path):
    with pytest.raises(StateError, match=r"plan\.json does not exist"):
        gather(Workspace(tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dataset.json", "fingerprint.json", "splits.json", "sources.json"])
@pytest.mark.parametrize("damaged", [True, False])
def test_a_record_may_be_missing_or_damaged(source, tmp_path, name, damaged, quick):
    workspace = copied(source, tmp_path / "copy")
    if damaged:
        (workspace.root / name).write_text("{")
    else:
        (workspace.root / name).unlink()
    page = Page(render(gather(workspace), pictures=False).text)
    assert page.open == []
    assert (f"{name} is not valid JSON" in page.words) == damaged


@pytest.mark.thorough
def test_a_damaged_segmentation_is_named_on_its_card(source, tmp_path, quick):
    workspace = copied(source, tmp_path / "copy")
    (file,) = workspace.root.glob(f"models/*/fold_*/validation/{SCRIPT}.nii.gz")
    file.write_bytes(b"broken")
    page = render(gather(workspace))
    assert page.cases == 6
    assert f"{file} is not" in Page(page.text).words or f"{file}" in Page(page.text).words


def test_records_of_other_commands_are_shown(source, tmp_path, quick):
    workspace = copied(source, tmp_path / "copy")
    (workspace.root / "leakage.json").write_text(json.dumps({"pairs": [{"a": "<x>", "b": "y", "similarity": 0.99}]}))
    page = Page(render(gather(workspace), pictures=False).text)
    assert "Leakage between folds" in page.words
    assert "pairs[0].similarity" in page.words
    assert "<x>" in page.words


@pytest.mark.thorough
def test_expected_dice_is_compared_with_what_was_reached(source, tmp_path, quick):
    """24 cases whose Dice is their agreement: the chart has a point for each."""
    workspace = copied(source, tmp_path / "copy")
    dice = [{"organ_1": i / 24} for i in range(24)]
    cases = [
        ScoredCase(f"c{i}", f"fold {i % 5}", str(i % 5), dict.fromkeys(SCORES, one), one) for i, one in enumerate(dice)
    ]
    save(workspace.expected_dice(*MODEL), calibrate(*MODEL, cases, options="none", weights={}))
    page = Page(render(gather(workspace), pictures=False).text)
    assert "Expected and reached Dice" in page.words
    assert "24 cases; mean distance from the line" in page.words
    workspace.expected_dice(*MODEL).write_text("{")
    assert "Expected and reached Dice" not in render(gather(workspace), pictures=False).text


def test_what_clicks_bring_is_a_table(source, tmp_path, quick):
    """Of the configuration that continues this one; 0.8 and 0.9 before, 0.9 and 0.95 after a click: +0.075."""
    workspace = copied(source, tmp_path / "copy")
    plan, name = with_prompts(load(Plan, workspace.plan), MODEL[0])
    save(workspace.plan, plan)
    cases = (ClickedCase("a", "p", (0.8, 0.9), (0.1,)), ClickedCase("b", "q", (0.9, 0.95), (0.1,)))
    path = workspace.clicks(name, MODEL[1])
    path.parent.mkdir(parents=True)
    save(path, ClickTable(1, name, MODEL[1], {}, 5, cases))
    words = Page(render(gather(workspace), pictures=False).text).words
    assert "Dice of 2 held-out cases after clicks of a simulated person" in words
    assert "0.9250" in words
    assert "+0.0750" in words
    path.write_text("{")
    assert "of a simulated person" not in render(gather(workspace), pictures=False).text


def test_what_needs_a_look_is_flagged(source, tmp_path, quick):
    """What evaluate found of fold 0; and one fold stagnates while it learns its patches by heart."""
    workspace = copied(source, tmp_path / "copy")
    scores = load(CrossValidation, workspace.crossval(*MODEL))
    save(workspace.crossval(*MODEL), replace(scores, flags=(Flag("fold 0 is behind: mean Dice 0.5", 0),)))
    rows = [row(i, 20, (0.5, 0.5), training=min(0.49, 0.03 * i)) for i in range(1, 21)]
    write_history(workspace.fold(*MODEL, 2), rows)
    of = gather(workspace, live=False)
    flags = " | ".join(verdict(of, training_section(of), data_section(of))["flags"])
    assert "fold 0 is behind: mean Dice 0.5" in flags
    assert "training, fold 2:" in flags
    assert "Overfitting: fold 2" in training_section(of).sentences[0]
    sound = gather(source, live=False)
    assert "No sign of overfitting" in training_section(sound).sentences[0]


@pytest.mark.thorough
def test_while_a_fold_trains_the_page_reloads_itself_and_says_as_of_when(source, tmp_path, quick):
    workspace = copied(source, tmp_path / "copy")
    add_fold(workspace, 3, rows=history()[:4])
    live_report(workspace, *MODEL)
    page = Page(workspace.report.read_text())
    assert [one for _, one in page.elements if one.get("http-equiv") == "refresh"]
    assert re.search(r"Training now, as of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page.words)
    page = Page(render(gather(workspace, live=False), pictures=False).text)
    assert not [one for _, one in page.elements if "http-equiv" in one]


def test_a_report_that_fails_is_a_warning(tmp_path, said):
    report_or_warn(Workspace(tmp_path))
    (line,) = said
    assert line.startswith(f"cannot write {tmp_path / 'report.html'}: StateError: ")
    assert f"autoseg report -w {tmp_path}" in line


def test_a_short_training_writes_no_report(source, tmp_path, monkeypatch, said, quick):
    workspace = copied(source, tmp_path / "copy")
    with reported(workspace, None, None, wanted=True):
        pass
    assert not workspace.report.exists()
    began = time.perf_counter()
    with reported(workspace, None, None, wanted=True):
        monkeypatch.setattr("autoseg.commands.report.time.perf_counter", lambda: began + 100)
    assert workspace.report.exists()
    assert said[-1] == f"report: {workspace.report}"


def test_the_command_writes_the_page(source, tmp_path, said, quick):
    made = write_report(source, out=tmp_path / "page.html")
    assert made.file.stat().st_size == pytest.approx(made.megabytes * 1e6, abs=1)
    assert made.cases == 6
    assert said[-1].startswith(f"report: {tmp_path / 'page.html'} (")
    with pytest.raises(StateError, match="no configuration '4d'"):
        write_report(source, "4d", out=tmp_path / "other.html")


def test_provenance_names_what_repeats_the_run(source, text):
    page = Page(text)
    assert "We used 6 images" in page.words
    assert "The mean Dice was" in page.words
    assert "autoseg evaluate -w" in page.words
    digests = re.findall(r"<code title=\"([0-9a-f]+)\">", text)
    assert hashlib.sha256(source.plan.read_bytes()).hexdigest() in digests


@pytest.mark.thorough
def test_versions_are_those_of_the_training(source):
    of, here = gather(source, live=False), Machine({"torch": "9.9"}, {"cores": "64"})
    assert "no training recorded its own" in render(of, here, pictures=False).text
    old, new = (Machine({"autoseg": "0.0.5", "torch": version}, {"device": "A <b>"}) for version in ("1.1", "1.2"))
    sessions = ((Session(0, old),), (Session(0, old), Session(40, new)))
    of = replace(of, folds=tuple(map(lambda fold, own: replace(fold, sessions=own), of.folds, sessions)))
    numbers = [fold.fold for fold in of.folds]
    page = render(of, here, pictures=False).text
    assert f"Of the training of fold {numbers[0]}, {numbers[1]}." in page
    assert f"Of the training of fold {numbers[1]} after step 40." in page
    assert "(PyTorch 1.1 and 1.2)" in page
    assert "PyTorch 9.9" not in page
    assert ">9.9<" not in page
    assert "A &lt;b&gt;" in page
    assert next(item for item in claim(of) if item.number == "23").filled.startswith("autoseg 0.0.5;")


def test_checklists_are_complete(source):
    of = gather(source)
    items = claim(of)
    assert [item.number for item in items] == [str(i) for i in range(1, 45)]
    assert all(item.filled or item.author for item in [*items, *properties(of)])
    assert {item.state for item in items} == {"filled", "partly", "open"}


def test_the_viewer_is_the_published_one_with_its_licence():
    folder = ROOT / "autoseg" / "report"
    assert hashlib.sha256((folder / VIEWER).read_bytes()).hexdigest() == VIEWER_SHA256
    assert "BSD 2-Clause" in (folder / "vendor" / "LICENSE.niivue").read_text()
    assert b"</script" not in (folder / VIEWER).read_bytes(), "it could not be inside a page"


@pytest.mark.slow
def test_a_wheel_holds_the_templates_the_pages_and_the_viewer(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"autoseg/report/{name}" for name in (VIEWER, "vendor/LICENSE.niivue", "templates/report.html.j2",
                                                    "templates/style.css", "templates/page.js")}  # fmt: skip
    wanted |= {f"autoseg/serve/page/{name}" for name in ("index.html", "page.css", "page.js", "view.js")}
    assert wanted <= names
