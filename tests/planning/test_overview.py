"""What `autoseg plan` says: at most 25 lines, nothing that matters left out, and all of it with --explain."""

import re
from dataclasses import replace

import pytest

from autoseg.planning.overview import LINES, WIDTH, changes_of, key_decisions, length, overview, short
from autoseg.planning.pace import pace
from autoseg.planning.plan import Cost, Plan
from autoseg.planning.table import glance
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import run
from plans import ONE, plan
from synthetic_fingerprints import label_set, uniform
from tiny import nnunet, text

LABELS = label_set(4)
FLAT = uniform(ONE, (1, 881, 1216), 10, LABELS)
SMALL = uniform(ONE, (36, 50, 35), 160, LABELS)
LARGE = uniform((2.0, 0.9766, 0.9766), (400, 512, 512), 12, LABELS, channels=("FLAIR", "T1", "T1Gd", "T2"))
COST = Cost(
    parameters=1_400_000, train_bytes=1_800_000_000, predict_bytes=10**9, tile_batch=1, host_bytes=10**9,
    disk_bytes=10**9, flops=10**10, seconds_per_step=0.3,
)  # fmt: skip
NOTE = "a sentence of a good many words that says what a person should know of this data set, "


def said(made: Plan, notes=(), regions=()) -> list[str]:
    understood = [
        "data: 12 cases",
        "channels: a",
        "labels: " + ", ".join(f"label_{i}={i}" for i in range(90)),
        *regions,
    ]
    return overview(made, understood, notes, "5 by patient", ["all decisions: plan.json"]).splitlines()


def timed(made: Plan, seconds: float | None = 0.3, **training) -> Plan:
    configurations = {
        n: replace(c, cost=replace(COST, seconds_per_step=seconds)) for n, c in made.configurations.items()
    }
    return replace(made, configurations=configurations, training=replace(made.training, **training))


@pytest.mark.thorough
@pytest.mark.parametrize("found", [FLAT, SMALL, LARGE], ids=["slices", "small volumes", "large volumes"])
@pytest.mark.parametrize("options", [{}, {"vram_gb": 8}, {"rules": "nnunet"}, {"pace": pace()}], ids=str)
@pytest.mark.parametrize("notes", [(), ("short",) * 3, (NOTE * 4,) * 5], ids=["none", "short", "long"])
def test_it_fits_into_25_lines_with_what_follows(found, options, notes):
    lines = said(plan(found, LABELS, **options), notes, regions=["regions: all=1+2+3"])
    assert len(lines) + 2 <= LINES == 25
    assert max(map(len, lines)) <= WIDTH
    kinds = ["spacing", "normalisation", "patch", "network", "mirroring", "length", "folds", "to change it", "all"]
    assert [kind for kind in kinds if not any(line.startswith(kind) for line in lines)] == []
    assert any(line.startswith("note: ") for line in lines) == bool(notes)


def test_notes_that_find_no_room_are_counted():
    lines = said(plan(LARGE, LABELS, vram_gb=8), [NOTE] * 6)
    shown = sum(line == f"note: {NOTE.strip()}" for line in lines)
    (left,) = [line for line in lines if "more (--explain shows all)" in line]
    assert int(re.findall(r"\d+", left)[0]) + shown == 6


def test_what_concerns_the_recommended_configuration_comes_first():
    changes = changes_of(plan(LARGE, LABELS, vram_gb=8))
    order = ["2d" in one or "3d_lowres" in one for one in changes]
    assert len(changes) >= 3
    assert order[0] is False


def test_the_recommended_configuration_is_what_is_described():
    made = plan(SMALL, LABELS)
    chosen = made.configurations["3d_fullres"]
    rows = {row.split()[0]: row for row in key_decisions(made, "5 by patient")}
    assert " × ".join(map(str, chosen.patch_size)) in rows["patch"]
    assert f"{len(chosen.network.strides)} stages" in rows["network"]
    assert "zscore of MR" in rows["normalisation"]
    assert "no two labels are a left-right pair" in rows["mirroring"]
    assert rows["folds"].endswith("5 by patient")


def test_the_length_by_hand():
    """3000 steps of 0.3 s are 15 minutes; nine tenths of an hour hold 10,800 of them, of two hours 21,600."""
    made = timed(plan(SMALL, LABELS))
    assert (
        length(made)
        == "60 epochs of 50 per fold: about 15m here; a fold of 1h (train --time-budget 1h) makes about 11000 steps"
    )
    assert length(timed(made, epochs=None, steps=6000)).startswith("6000 steps per fold: about 30m here")
    assert length(timed(made, epochs=None, time_budget_seconds=7200.0)) == "2h per fold: about 22000 steps"
    assert length(timed(made, None)) == "60 epochs of 50 per fold; the time is not known"
    assert length(timed(made, None, epochs=None, time_budget_seconds=7200.0)) == "2h per fold"


def test_what_is_unknown_is_marked_and_the_mark_explained():
    legend = "?: unknown until this machine is measured (autoseg calibrate)"
    assert glance(plan(SMALL, LABELS, vram_gb=8))[-1] == legend
    assert legend not in glance(timed(plan(SMALL, LABELS)))


def test_lines_are_cut_at_words():
    assert short("one two", 7) == "one two"
    assert short("one, two three", 9) == "one ..."


# ---- the command


@pytest.fixture
def dataset(tmp_path):
    root = nnunet(tmp_path / "data", ids=[f"case{i}" for i in range(10)], labels={"background": 0, "a": 1, "b": 2})
    return text(root / "patients.csv", "case,patient\n" + "\n".join(f"case{i},p{i}" for i in range(10))).parent


@pytest.mark.thorough
def test_plan_says_little_and_explains_everything_when_asked(dataset, tmp_path, capsys):
    workspace = Workspace(tmp_path / "work space")
    run("plan", dataset, "-w", workspace.root, "--workers", 0)
    brief = capsys.readouterr().out.splitlines()
    made = load(Plan, workspace.plan)
    assert len(brief) <= 25
    assert f"all {len(made.decisions)} decisions" in "\n".join(brief)
    assert brief[-1] == f"next: autoseg train -w '{workspace.root}'"
    run("plan", dataset, "-w", workspace.root, "--workers", 0, "--explain", "--no-preprocess")
    explained = capsys.readouterr().out
    assert load(Plan, workspace.plan) == made
    numbers = [line.split()[0] for line in explained.splitlines() if re.match(r"\d\.\d+ ", line)]
    assert numbers == [d.step.split()[0] for d in made.decisions]


def test_a_time_budget_is_the_length_and_sizes_the_steps(dataset, tmp_path, capsys):
    workspace = Workspace(tmp_path / "w")
    run("plan", dataset, "-w", workspace.root, "--workers", 0, "--no-preprocess", "--time-budget", "30m")
    assert load(Plan, workspace.plan).training.time_budget_seconds == 1800
    assert "30m per fold: about" in capsys.readouterr().out
