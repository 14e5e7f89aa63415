"""The table that `autoseg plan` ends with: its numbers are those of the plan, and it says what would change them."""

from dataclasses import replace

import pytest

from autoseg.planning.plan import Cost, Plan
from autoseg.planning.table import summary
from plans import plan
from synthetic_fingerprints import label_set, uniform

COST = Cost(
    parameters=31_200_000, train_bytes=7_250_000_000, predict_bytes=2_000_000_000, tile_batch=2, host_bytes=900_000_000,
    disk_bytes=12_300_000_000, flops=10**12, seconds_per_step=0.25,
)  # fmt: skip


def planned(shape=(200, 200, 200), **options) -> Plan:
    labels = label_set(3)
    found = uniform((1.0, 1.0, 1.0), shape, 20, labels)
    return replace(plan(found, labels, **options), dataset="d")


def rows(plan: Plan) -> dict[str, dict[str, str]]:
    """Configuration -> header -> cell, cut at the columns of the header."""
    header, *lines = summary(plan).split("\n* ")[0].splitlines()
    starts = [i for i in range(len(header)) if header[i] != " " and (i == 0 or header[i - 2 : i] == "  ")]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in [header, *lines]]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}


def test_figures_are_those_of_the_plan():
    plan = planned(vram_gb=8)
    full = replace(plan.configurations["3d_fullres"], cost=COST)
    plan = replace(plan, configurations=plan.configurations | {"3d_fullres": full})
    row = rows(plan)["3d_fullres*"]
    assert row["spacing, mm"] == "1 × 1 × 1"
    assert row["patch"] == " × ".join(map(str, full.patch_size))
    assert (row["batch"], row["stages"]) == (str(full.batch_size), str(len(full.network.strides)))
    assert row["parameters"] == "31.2 M"
    assert row["receptive field"] == " × ".join(map(str, full.receptive_field))
    assert (row["GPU memory: train"], row["predict"], row["host"]) == ("7.25 GB", "2 GB", "0.9 GB")
    assert row["steps/s"] == "4"
    assert row["hours"] == "17.4"  # 1000 epochs of 250 steps of a quarter of a second
    assert row["disk"] == "12.3 GB"
    assert rows(plan)["2d"]["disk"] == "as 3d_fullres"


def test_what_is_not_known_is_not_made_up():
    plan = planned()
    unknown = replace(plan.configurations["3d_fullres"], cost=None)
    row = rows(replace(plan, configurations={"3d_fullres": unknown}))["3d_fullres*"]
    assert [row[key] for key in ("parameters", "memory: train", "predict", "host", "steps/s", "hours", "disk")] == [
        "?"
    ] * 7
    assert rows(plan)["3d_fullres*"]["steps/s"] == "?"


def test_a_time_budget_is_the_time_it_takes():
    plan = planned()
    timed = replace(plan, training=replace(plan.training, epochs=None, time_budget_seconds=5400.0))
    assert rows(timed)["3d_fullres*"]["hours"] == "1.5"


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((64, 64, 64), {"vram_gb": 8}, "3d_fullres: no GPU would enlarge the patch: it covers whole images"),
        ((500, 500, 500), {"vram_gb": 8}, "allows the next larger patch"),
        ((500, 500, 500), {"vram_gb": 8}, "-c 3d_cascade"),
        ((64, 64, 64), {}, "--preset m, l, xl"),
        ((64, 64, 64), {}, "autoseg calibrate"),
    ],
)
def test_what_would_change_the_plan_is_said(shape, options, said):
    text = summary(planned(shape, **options))
    assert said in text.split("what would change it:")[1]


def test_the_memory_it_says_is_enough_is():
    """The plan for as much memory as the table asks for has the patch it promised."""
    plan = planned((500, 500, 500), vram_gb=8)
    change = next(d for d in plan.decisions if d.step.startswith("6.") and d.step.endswith("3d_fullres"))
    vram = float(change.value.removeprefix("--vram "))
    promised = change.reason.split(", ")[1].split(":")[0]
    larger = planned((500, 500, 500), vram_gb=vram + 0.05)
    assert " × ".join(map(str, larger.configurations["3d_fullres"].patch_size)) == promised


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("length", "seconds", "steps", "hours"),
    [
        ({"epochs": 72}, 0.25, "3600", "0.25"),  # 72 epochs of 50
        ({"epochs": None, "steps": 5000}, 0.36, "5000", "0.5"),
        ({"epochs": None, "steps": 5000}, None, "5000", "?"),
        ({"epochs": None, "time_budget_seconds": 3600.0}, 0.36, "about 9000", "1"),  # nine tenths of an hour
        ({"epochs": None, "time_budget_seconds": 3600.0}, None, "?", "1"),
    ],
)
def test_steps_and_hours_of_every_kind_of_length(length, seconds, steps, hours):
    plan = planned()
    full = replace(plan.configurations["3d_fullres"], cost=replace(COST, seconds_per_step=seconds))
    row = rows(replace(plan, configurations={"3d_fullres": full}, training=replace(plan.training, **length)))
    assert (row["3d_fullres*"]["steps"], row["3d_fullres*"]["hours"]) == (steps, hours)
