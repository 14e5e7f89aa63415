"""What a model carries that was measured of it: agreements on held-out cases, speeds, expected Dice."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.cli import main
from autoseg.commands import agreements as module
from autoseg.commands.export import ExportOptions, export_model
from autoseg.commands.info import info
from autoseg.datasets.dataset import Dataset
from autoseg.evaluation.expected_dice import ExpectedDiceRecord, ScoredCase, calibrate
from autoseg.evaluation.held_out import described_options, weights_of
from autoseg.evaluation.speeds import Estimate, MeasuredSpeed, SpeedTable
from autoseg.inference.options import InferenceOptions
from autoseg.models.agreements import Agreement, Agreements
from autoseg.models.archive import open_archive
from autoseg.models.identity import weights_digest
from autoseg.models.opening import open_models
from autoseg.records import load, save
from autoseg.workspace import FULL, Workspace
from commands import outcome
from exported import IDS, contents_of, plan_for_tests, workspace_of
from files import nifti
from phantom import tiny_case

AFFINE = np.diag([-1.2, -1.2, 2.4, 1.0])  # another grid than that of the networks
DENSE, FILE = "streamed against dense", "archive against workspace"


def with_images(workspace: Workspace, folder: Path) -> Workspace:
    """The same, whose cases have images that can be read; the later, the larger."""
    rng, cases = np.random.default_rng(0), []
    dataset = load(Dataset, workspace.dataset)
    for number, case in enumerate(dataset.cases):
        path = nifti(folder / f"{case.id}.nii", tiny_case(rng, (7 + number, 14, 16))[0][0], AFFINE)
        cases.append(replace(case, images=(str(path),)))
    save(workspace.dataset, replace(dataset, cases=tuple(cases)))
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Two folds of 3d_fullres and of a cascade."""
    root = tmp_path_factory.mktemp("agreements")
    configurations = ("3d_fullres", "3d_lowres", "3d_cascade")
    return with_images(workspace_of(root / "w", configurations=configurations), root / "images")


def rows_of(path: Path, model: str = "3d_fullres-unet") -> tuple[Agreement, ...]:
    return open_archive(path).record(Agreements, f"models/{model}/agreements.json").rows


@pytest.mark.thorough
@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_cascade"])
def test_held_out_cases_are_compared(workspace, tmp_path, configuration):
    done = export_model(workspace, tmp_path / "a.zip", ExportOptions((configuration,)))
    name = f"{configuration}-unet"
    rows = rows_of(tmp_path / "a.zip", name)
    found = [(row.what, row.measure, row.value, row.limit) for row in rows]
    assert found == [
        (FILE, "largest difference of logits", 0, 0),
        (DENSE, "voxels with another label, ties aside", 0, 0),
        (DENSE, "ties (equal logits) with another label", 0, None),
        (FILE, "voxels with another label", 0, 0),
    ]  # fmt: skip
    on = f"fold 0 of {name}, 1 held-out case of {7 * 14 * 16} voxels, without flips"
    assert {row.on for row in rows[1:]} == {on}  # it holds one case out: IDS[0]
    (model,) = open_models(tmp_path / "a.zip", device=torch.device("cpu"))
    assert {row.weights for row in rows} == {weights_digest(model.networks[0])}
    assert set(rows) <= set(done.agreements)
    card = contents_of(tmp_path / "a.zip")["README.md"].decode()
    assert f"| {DENSE} | voxels with another label, ties aside | 0 | 0 | {on} |" in card
    assert str(rows[1]) in info(tmp_path / "a.zip").describe() or configuration == "3d_cascade"
    assert IDS[0] not in card + str(rows)


def test_a_file_that_computes_something_else_is_found(workspace, tmp_path, monkeypatch, said):
    from autoseg.models import opening

    real = opening.fold_weights

    def damaged(*arguments):
        plan, configuration, weights = real(*arguments)
        return plan, configuration, {key: tensor * 1.5 for key, tensor in weights.items()}

    monkeypatch.setattr(opening, "fold_weights", damaged)
    export_model(workspace, tmp_path / "a.zip")
    (row,) = (
        row for row in rows_of(tmp_path / "a.zip") if (row.what, row.measure) == (FILE, "voxels with another label")
    )
    assert row.value > 0
    assert not row.holds
    assert f"WARNING: {FILE}: voxels with another label {row.value:.0f}, at most 0 expected" in "\n".join(said)
    assert "(NOT KEPT)" in contents_of(tmp_path / "a.zip")["README.md"].decode()


def test_how_many_cases(workspace, tmp_path, monkeypatch, said):
    model = open_models(workspace.root, configuration="3d_fullres", device=torch.device("cpu"))[0]
    assert [case.id for case in module.held_out_of(workspace, model, None).cases] == [IDS[0]]
    full = replace(model, folds=(FULL,), networks=model.networks[:1])
    assert [case.id for case in module.held_out_of(workspace, full, 3).cases] == list(IDS[:3])  # the smallest first
    assert "the model of all cases of 3d_fullres-unet, 3 cases" in module.held_out_of(workspace, full, 3).described(9)
    assert len(module.held_out_of(workspace, full, None).cases) == 2
    assert module.held_out_of(workspace, full, 0) is None
    assert said == []
    monkeypatch.setattr(module, "_forward_seconds", lambda _: 1e3)
    assert module.held_out_of(workspace, full, None) is None
    assert "takes too long, or more memory than there is; --compare N" in said[-1]
    assert len(module.held_out_of(workspace, full, 1).cases) == 1  # somebody asked for it
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    assert module.held_out_of(workspace, full, 1) is None


def test_nothing_to_compare_is_said(tmp_path, said):
    workspace = workspace_of(tmp_path / "w")
    model = open_models(workspace.root, device=torch.device("cpu"))[0]
    assert module.held_out_of(workspace, model, None) is None
    assert said[-1].startswith("note: the images that 3d_fullres-unet held out are not where they were")
    with_images(workspace, tmp_path / "images")
    (tmp_path / "images" / f"{IDS[0]}.nii").write_bytes(b"damaged")
    export_model(workspace, tmp_path / "a.zip", ExportOptions(folds=(0,)))
    assert any(line.startswith("note: nothing is compared on held-out cases: ") for line in said)
    assert [row.what for row in rows_of(tmp_path / "a.zip")] == [FILE]
    workspace.dataset.unlink()
    assert module.held_out_of(workspace, model, None) is None
    assert "came without cases" in said[-1]


def test_what_was_compared_with_other_weights_stays_behind(tmp_path):
    workspace = workspace_of(tmp_path / "w")
    old = Agreement("ONNX against torch", "fold 0", "largest difference of logits", 1e-5, 1e-3, "0" * 64)
    before = replace(old, what="of an older version", weights=None)
    save(workspace.model("3d_fullres", "unet") / "agreements.json", Agreements(1, (old, before)))
    export_model(workspace, tmp_path / "a.zip")
    assert [row.what for row in rows_of(tmp_path / "a.zip")] == ["of an older version", FILE]


@pytest.mark.thorough
def test_onnx_on_held_out_cases(workspace, tmp_path, said):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the onnx extra")
    assert main(["export", str(tmp_path / "a.zip"), "-w", str(workspace.root), "--onnx", str(tmp_path / "onnx")]) == 0
    found = {(row.what, row.measure): row for row in rows_of(tmp_path / "a.zip")}
    row = found["ONNX against torch", "voxels with another label, ties aside"]
    assert (row.value, row.limit) == (0, 0)
    assert "1 held-out case of" in row.on
    assert len(found) == 7


def test_of_many_rows_the_worst_are_shown():
    rows = [Agreement("a", f"fold {n}", "x", value, 1.0) for n, value in enumerate((0.5, 2.0, 0.1))]
    other = Agreement("a", "fold 0", "y", 7.0)
    assert Agreements(1, (*rows, other)).worst() == (rows[1], other)
    assert [row.holds for row in (*rows, other)] == [True, False, True, True]
    assert str(rows[1]) == "WARNING: a: x 2, at most 1 expected (fold 1)"
    assert str(rows[2]) == "a: x 0.1, at most 1 expected (fold 2)"


# ---- speeds and expected Dice


TABLE = SpeedTable(
    1, "3d_fullres", "unet", "cpu, 2 threads", {}, 5,
    (
        MeasuredSpeed("accurate", 0.5, 8, Estimate(0.9, 0.88, 0.92), Estimate(0.0, 0.0, 0.0), 4.0),
        MeasuredSpeed("fast", 0.75, 1, Estimate(0.898, 0.875, 0.921), Estimate(-0.002, -0.004, 0.0), 0.5),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder with an exported model that carries speeds and expected Dice, its workspace and an image."""
    root = tmp_path_factory.mktemp("measured")
    plan = plan_for_tests().with_settings(["training.test_time_mirroring=false"])
    workspace = workspace_of(root / "w", plan)
    (model,) = open_models(workspace.root, device=torch.device("cpu"))
    cases = [
        ScoredCase(
            IDS[n % 5] if n < 5 else f"c{n}", f"fold {n % 5}", str(n % 5),
            {"pairwise_dice": {"label1": s}, "soft_dice": {"label1": s}}, {"label1": 0.2 + 0.7 * s},
        )
        for n, s in enumerate(np.linspace(0.5, 1, 40).tolist())
    ]  # fmt: skip
    options, weights = described_options(model, InferenceOptions()), weights_of([model])
    save(
        workspace.expected_dice("3d_fullres", "unet"),
        calibrate("3d_fullres", "unet", cases, options=options, weights=weights),
    )
    digests = {str(fold): weights_digest(one) for fold, one in zip(model.folds, model.networks, strict=True)}
    save(workspace.speeds("3d_fullres", "unet"), replace(TABLE, weights=digests))
    nifti(
        root / "images" / "a.nii.gz", tiny_case(np.random.default_rng(0), (9, 16, 20))[0][0], np.diag([-1.0, -1, 2, 1])
    )
    export_model(workspace, root / "model.zip")
    return root


def test_records_go_through_a_file(measured):
    here = open_archive(measured / "model.zip")
    there = Workspace(measured / "w")
    folder = "models/3d_fullres-unet"
    assert here.record(SpeedTable, f"{folder}/speeds.json") == load(SpeedTable, there.speeds("3d_fullres", "unet"))
    record = here.record(ExpectedDiceRecord, f"{folder}/expected_dice.json")
    known = load(ExpectedDiceRecord, there.expected_dice("3d_fullres", "unet"))
    assert replace(record, cases=()) == replace(known, cases=())
    assert {case.case for case in record.cases} & set(IDS) == set()  # under the names they have in the file
    assert [case.scores for case in record.cases] == [case.scores for case in known.cases]


@pytest.mark.thorough
def test_a_file_predicts_with_what_it_carries(measured, tmp_path, monkeypatch, capsys):
    expected = []
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out, model in (("here", ("-m", measured / "model.zip")), ("there", ("-w", measured / "w"))):
        options = ("-i", measured / "images", "-o", tmp_path / out, "--device", "cpu", "--uncertainty")
        code, said = outcome(capsys, "predict", *options, *model)
        assert code == 0
        assert "no expected Dice" not in said
        assert "expected Dice of a: 0." in said
        with open(tmp_path / out / "statistics.csv", newline="") as file:
            expected.append([row["expected_dice"] for row in csv.DictReader(file)])
        code, said = outcome(capsys, "predict", *options[:6], "--speed", "fast", *model)
        assert "fast: Dice 0.8980 (0.8750 to 0.9210) on 5 held-out cases" in said
    assert expected[0] == expected[1]
    assert any(expected[0])


@pytest.mark.parametrize("path", ["model.zip", "w"])
def test_info_shows_what_was_measured(measured, capsys, path):
    code, said = outcome(capsys, "info", measured / path)
    lines = said.splitlines()
    assert code == 0
    assert (
        "  Dice and time per case: accurate 0.9000 in 4 s, fast 0.8980 in 0.5 s (5 held-out cases, cpu, 2 threads)"
        in lines
    )
    (line,) = (line for line in lines if line.startswith("  expected Dice: label1 "))
    assert "in the interval" in line
    assert main(["info", "--json", str(measured / path)]) == 0
    model = json.loads(capsys.readouterr().out)["result"]["models"]["3d_fullres-unet"]
    assert model["speeds"]["speeds"][1]["seconds_per_case"] == 0.5
    assert set(model["expected_dice"]) == {"label1", "mean"}
