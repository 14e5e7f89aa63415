"""`plan --group`, `evaluate --group` and `evaluate --shifts` as a user types them."""

import json
from pathlib import Path

import pytest

from autoseg.commands.evaluate import ScoringOptions
from autoseg.commands.inputs import load_records
from autoseg.commands.parser import build_parser
from autoseg.commands.ways_to_evaluate import evaluate_as_asked
from autoseg.datasets.splits import Splits
from autoseg.evaluation.groups import GroupScores
from autoseg.evaluation.shifts import ShiftTable
from autoseg.evaluation.sureness import Sureness
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import SHORT, outcome, run
from phantom import tiny_dataset

CASES = [f"case_{i:02d}" for i in range(6)]
SITES = dict(zip(CASES, ("oslo", "bern", "oslo", "bern", "bern", "ulm"), strict=True))


def write_table(root, sites=SITES, patients=None) -> None:
    rows = [f"{case},{(patients or {}).get(case, case)},{sites.get(case, '')}" for case in CASES]
    (root / "patients.csv").write_text("\n".join(["case,patient,site", *rows]))


@pytest.fixture
def dataset(tmp_path):
    root = tiny_dataset(tmp_path / "data", cases=6)
    write_table(root)
    return root


@pytest.mark.thorough
def test_plan_leaves_one_group_out_and_does_so_again(dataset, tmp_path, capsys, in_this_process):
    workspace = Workspace(tmp_path / "ws")
    command = ("plan", dataset, "-w", workspace.root, "--no-preprocess", "--cpu-rate", "reference")
    code, said = outcome(capsys, *command, "--group", "Site")
    assert code == 0
    assert "each fold leaves one site out: fold 0: bern (3 cases), fold 1: oslo (2 cases), fold 2: ulm (1 case)" in said
    assert "3 leave one site out (6), each holds 1 to 3 cases out" in said
    held_out = [split.validation for split in load(Splits, workspace.splits).splits]
    assert held_out == [("case_01", "case_03", "case_04"), ("case_00", "case_02"), ("case_05",)]
    write_table(dataset, SITES | {"case_05": "aachen"})
    assert outcome(capsys, *command)[0] == 0
    assert [split.validation for split in load(Splits, workspace.splits).splits] == held_out
    records = load_records(workspace, None)
    assert records[0].columns["site"]["case_05"] == "aachen"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("column", "sites", "patients", "message"),
    [
        ("scanner", SITES, {}, "--group scanner: the table of patients has no such column, it has: site"),
        ("site", dict.fromkeys(CASES, "oslo"), {}, "--group site: only 'oslo' for these 6 cases, expected two groups"),
        (
            "site",
            SITES,
            {"case_01": "p", "case_05": "p"},
            "1 patient with cases in several groups, such as p in bern and ulm: p",
        ),
        ("site", {c: SITES[c] for c in CASES[:5]}, {}, "--group site: 1 case without a value: case_05"),
    ],
)
def test_columns_that_make_no_folds_are_refused(
    dataset, tmp_path, capsys, in_this_process, column, sites, patients, message
):
    write_table(dataset, sites, patients)
    code, said = outcome(capsys, "plan", dataset, "-w", tmp_path / "ws", "--no-preprocess", "--group", column)
    assert (code, message in said) == (2, True), said
    assert not (tmp_path / "ws" / "splits.json").exists()


@pytest.mark.thorough
def test_folds_that_are_given_are_not_replaced(dataset, tmp_path, capsys, in_this_process):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    code, said = outcome(capsys, "plan", dataset, "-w", tmp_path / "ws", "--no-preprocess", "--group", "site")
    assert (code, "the dataset brings its own folds along" in said) == (2, True), said


def test_options_that_do_not_fit_together_are_refused(tmp_path, capsys):
    for options, message in (
        (("--group", "site", "--shifts"), "--shifts and --group exclude each other"),
        (("--cases", "3"), "--cases limits the cases of --shifts"),
        (("--test", "--csv", "scores.csv"), "--csv does nothing with --test"),
        (("--speeds", "--tolerance", "2"), "--tolerance does nothing with --speeds"),
        (("--shifts", "--tubes", "all"), "--tubes does nothing with --shifts"),
        (("--calibration", "--csv", "a.csv"), "--csv does nothing with --calibration"),
        (("--calibration", "-m", "model.zip"), "--calibration needs the held-out cases of a workspace"),
    ):
        code, said = outcome(capsys, "evaluate", "-w", tmp_path, *options)
        assert (code, message in said) == (2, True), said


@pytest.mark.parametrize(
    ("way", "function"),
    [
        (("--group", "site"), "groups.compare_groups"),
        (("--choose", "components"), "choose.choose_decision"),
        (("--expected-dice",), "expected_dice.learn_expected_dice"),
    ],
)
def test_what_comes_after_the_scores_passes_their_options_on(tmp_path, monkeypatch, way, function):
    given = []
    monkeypatch.setattr(f"autoseg.commands.{function}", lambda w, c, options, **more: given.append(options))
    command = ["evaluate", "-w", str(tmp_path), "--tolerance", "2", "--csv", "a.csv", "--good", "0.9", "--no-report"]
    evaluate_as_asked(build_parser().parse_args([*command, "--workers", "0", *way]))
    assert given == [ScoringOptions(tolerance={"all": 2.0}, csv=Path("a.csv"), good=0.9, workers=0, report=False)]


@pytest.mark.slow
def test_groups_and_shifts_of_trained_folds(dataset, tmp_path, capsys):
    workspace = Workspace(tmp_path / "ws")
    run("plan", dataset, "-w", workspace.root, "--group", "site")
    run("train", "-w", workspace.root, "--steps", 12, *SHORT)
    code, said = outcome(capsys, "evaluate", "-w", workspace.root, "--group", "site", "--workers", 0)
    assert code == 0
    assert "mean over labels: the largest gap is" in said
    (path,) = workspace.root.glob("models/*/groups.json")
    (table,) = load(GroupScores, path).tables
    assert [(mean.group, mean.cases) for mean in table.labels["mean over labels"]] == [
        ("bern", 3), ("oslo", 2), ("ulm", 1)
    ]  # fmt: skip
    code, said = outcome(capsys, "evaluate", "-w", workspace.root, "--shifts", "--cases", 1)
    assert code == 0
    assert "segmenting 3 held-out cases 16 times each" in said
    (path,) = workspace.root.glob("models/*/shifts.json")
    shifts = load(ShiftTable, path)
    assert (len(shifts.cases), shifts.held_out, len(shifts.shifts)) == (3, 6, 15)
    code, said = outcome(capsys, "evaluate", "-w", workspace.root, "--calibration", "--json")
    assert code == 0, said
    (path,) = workspace.root.glob("models/*/calibration.json")
    found = load(Sureness, path)
    assert len(found.cases) == 6
    assert 0 < found.ece < 1
    run("report", "-w", workspace.root)
    assert f"expected calibration error {found.ece:.3f}" in workspace.report.read_text()
