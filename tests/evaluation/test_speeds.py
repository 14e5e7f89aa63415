"""The table of speeds: what is measured of whom, intervals by hand, and the record."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.datasets.dataset import Case
from autoseg.evaluation.evaluate import ScoreJob, score_case
from autoseg.evaluation.speeds import (
    Estimate,
    MeasuredSpeed,
    SpeedTable,
    describe,
    expected,
    measure_speeds,
    ways_of,
)
from autoseg.evaluation.statistics import mean_dice_of
from autoseg.imaging.formats.readers import read_labels
from autoseg.inference.options import SPEEDS
from autoseg.records import load, save
from bright import ORGAN, THRESHOLD, Bright, model_of, picture, plan_of
from files import nifti

TABLE = SpeedTable(
    1, "3d_fullres", "unet", "cpu, 2 threads", {"0": "a" * 64}, 32,
    (
        MeasuredSpeed("accurate", 0.5, 8, Estimate(0.9, 0.88, 0.92), Estimate(0.0, 0.0, 0.0), 4.0),
        MeasuredSpeed(
            "fast", 0.75, 1, Estimate(0.898, 0.875, 0.921), Estimate(-0.002, -0.004, 0.0), 0.5, same=0.99987654
        ),
        MeasuredSpeed("none", 0.75, 1, None, None, 0.5),
        MeasuredSpeed("top-k 50%", 0.5, 8, Estimate(0.9, 0.88, 0.92), Estimate(0.0, 0.0, 0.0), 3.0, 0.5, 1.0),
        MeasuredSpeed("top-k 20%", 0.5, 8, Estimate(0.89, 0.87, 0.91), Estimate(-0.01, -0.02, 0.0), 1.0, 0.2),
    ),
)  # fmt: skip


def test_an_interval_is_students():
    """Of 1, 2, 3: mean 2, deviation 1, and t of two degrees of freedom is 4.302653: 2 +- 4.302653 / sqrt(3)."""
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert Estimate.of([0.7]) == Estimate(0.7, 0.7, 0.7)


class Shy(Bright):
    """Sees nothing in what begins with a bright voxel, and so agrees with itself less when it is flipped."""

    images = 0

    def forward(self, image):
        type(self).images += len(image)
        return super().forward(image)


@pytest.fixture
def held_out(tmp_path) -> dict[int, list[Case]]:
    """Two folds of two cases; the reference of case d is empty, and so is what its image shows."""
    cases = []
    for seed, name in enumerate("abcd"):
        image = picture((8, 9, 10), seed) if name != "d" else np.full((8, 9, 10), 50, np.int16)
        label = np.where(image > THRESHOLD, 7, 0).astype(np.uint8)
        if name == "b":
            label[:4] = 0  # half of what is found is not there
        files = [
            nifti(tmp_path / folder / f"{name}.nii", array, np.eye(4))
            for folder, array in (("in", image), ("labels", label))
        ]
        cases.append(Case(name, name, (str(files[0]),), str(files[1])))
    return {0: cases[:2], 1: cases[2:]}


def test_every_case_is_segmented_at_every_speed_by_its_own_fold(tmp_path, held_out):
    plan = plan_of(mirror_axes=(0, 2))
    models = {fold: model_of((1.0,) * 3, plan=plan, network=Shy(), patch=(8, 10, 12)) for fold in held_out}
    Shy.images = 0
    table = measure_speeds(models, held_out, tmp_path / "made")
    assert [(speed.name, speed.step, speed.flips) for speed in table.speeds] == [
        (name, speed.step, {"all": 4, "even": 2, "none": 1}[speed.flips]) for name, speed in SPEEDS.items()
    ]
    assert Shy.images == 4 * sum(speed.flips for speed in table.speeds)  # each image is one tile
    assert (table.cases, table.device.partition(",")[0], set(table.weights)) == (4, "cpu", {"0", "1"})
    for fold, cases in held_out.items():
        for name in SPEEDS:
            made = sorted(path.name for path in (tmp_path / "made" / name / f"fold_{fold}").iterdir())
            assert made == [f"{case.id}.nii" for case in cases]
    accurate = table.speeds[0]
    image, found = picture((8, 9, 10), 1), 0
    found = int((image > THRESHOLD).sum())
    half = int((image[4:] > THRESHOLD).sum())
    assert accurate.dice.mean == pytest.approx(np.mean([1, 2 * half / (found + half), 1]))  # d has no Dice
    assert {(speed.change.mean, speed.change.low) for speed in table.speeds} == {(0.0, 0.0)}
    assert all(speed.seconds_per_case > 0 for speed in table.speeds)
    save(tmp_path / "speeds.json", table)
    assert load(SpeedTable, tmp_path / "speeds.json") == table


def test_distances_are_not_measured_where_nobody_asks_for_them(tmp_path, held_out):
    case = held_out[0][0]
    label = Path(case.label)
    job = ScoreJob("a", label, label, ORGAN)
    assert "hd95" in score_case(job).scores["organ"]
    scores = score_case(ScoreJob("a", label, label, ORGAN, surfaces=False))
    assert "hd95" not in scores.scores["organ"]
    assert mean_dice_of(scores) == 1.0


def test_the_table_is_shown_and_a_speed_is_one_line():
    lines = describe(TABLE).splitlines()
    assert lines[0] == "3d_fullres, unet: 32 held-out cases, cpu, 2 threads"
    assert lines[2].split()[:3] == ["speed", "step", "passes"]
    assert lines[5].split() == [
        "fast", "0.75", "1", "0.8980", "0.8750", "to", "0.9210", "-0.0020", "(-0.0040", "to", "+0.0000)", "99.9876",
        "%", "0.5", "8.0x",
    ]  # fmt: skip
    assert expected(TABLE, "fast") == (
        "fast: Dice 0.8980 (0.8750 to 0.9210) on 32 held-out cases, -0.0020 against accurate; 0.5 s per case "
        "(cpu, 2 threads)"
    )
    assert expected(TABLE, "none") == expected(TABLE, "unheard") == ""
    assert lines[7].split()[-4:] == ["100", "%", "3", "1.3x"]


@pytest.mark.parametrize(
    ("share", "begins"),
    [
        (0.2, "top-k 20%: Dice 0.8900"), (0.9, "top-k 50%, the nearest share that was measured: Dice 0.9000"),
        (0.01, "top-k 20%, the nearest share that was measured: Dice 0.8900"),
    ],
)  # fmt: skip
def test_a_share_of_the_tiles_is_one_line(share, begins):
    assert expected(TABLE, "top-k", share).startswith(begins)
    assert expected(replace(TABLE, speeds=TABLE.speeds[:2]), "top-k", share) == ""


class First(Bright):
    """Looks at the image alone, and not at what the stage before found. Counts tiles."""

    tiles = 0

    def forward(self, image):
        type(self).tiles += len(image)
        return super().forward(image[:, :1])


class Blurred(Bright):
    """Finds what is bright on average over a few voxels."""

    def forward(self, image):
        return super().forward(torch.nn.functional.avg_pool3d(image, 5, 1, 2))


@pytest.mark.thorough
def test_shares_of_a_cascade_are_measured(tmp_path):
    """Of two bright cubes in a body, one is too small for the stage before: where it is not computed, it is lost."""
    image = np.random.default_rng(0).integers(40, 60, (24, 24, 24)).astype(np.int16)
    image[2:8, 2:8, 2:8] = image[18:20, 18:20, 18:20] = 150
    files = [
        nifti(tmp_path / name, array, np.eye(4))
        for name, array in (("in/a.nii", image), ("labels/a.nii", np.where(image > THRESHOLD, 7, 0).astype(np.uint8)))
    ]
    case = Case("a", "a", (str(files[0]),), str(files[1]))
    previous = model_of((1.0,) * 3, plan=plan_of(test_time_mirroring=False), network=Blurred())
    alone = model_of((1.0,) * 3, plan=previous.plan, network=First(), patch=(8, 8, 8))
    made = replace(alone.configuration, cascade_from="3d_fullres")
    plan = replace(alone.plan, configurations=alone.plan.configurations | {"3d_cascade": made})
    model = replace(alone, plan=plan, configuration_name="3d_cascade", previous=previous)
    ways = [*SPEEDS, "top-k 50%", "top-k 20%", "top-k 10%", "skip-empty"]
    assert [way.name for way in ways_of(model, [case])] == ways
    table = measure_speeds({0: model}, {0: [case]}, tmp_path / "made")
    assert [speed.name for speed in table.speeds] == ways
    found = {speed.name: speed for speed in table.speeds}
    assert [found[name].top_k for name in ways] == [None, None, None, 0.5, 0.2, 0.1, None]
    assert found["accurate"].dice.mean == 1
    for share in (0.5, 0.2, 0.1):
        (labels,) = (read_labels(tmp_path / "made" / f"top-k {100 * share:g}%" / "fold_0" / "a.nii").array,)
        assert labels[2:8, 2:8, 2:8].all() or share == 0.1
        assert not labels[18:20, 18:20, 18:20].any()
        speed = found[f"top-k {100 * share:g}%"]
        both = np.count_nonzero(labels)
        assert speed.dice.mean == pytest.approx(2 * both / (both + 6**3 + 2**3))
        assert speed.same == pytest.approx(1 - (6**3 + 2**3 - both) / 24**3)
        assert speed.change.mean == pytest.approx(speed.dice.mean - 1)
    assert found["skip-empty"].dice.mean == 1  # the tiles without body hold neither cube
    First.tiles = 0
    measure_speeds({0: model}, {0: [case]}, tmp_path / "again")
    tiles = First.tiles
    save(tmp_path / "speeds.json", table)
    assert load(SpeedTable, tmp_path / "speeds.json") == table
    assert tiles < 7 * 125, "every way computed every tile"


def test_ways_without_a_previous_stage_or_empty_tiles(held_out):
    model = model_of((1.0,) * 3, plan=plan_of(mirror_axes=(0, 2)), patch=(8, 10, 12))
    assert [way.name for way in ways_of(model, held_out[0])] == list(SPEEDS)
