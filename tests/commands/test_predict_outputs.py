"""`predict` with everything that is written beside segmentations, by a model that segments what is bright."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.commands.predict import PartlySegmented, PredictOptions, predict_images
from autoseg.datasets.inputs import FileNames
from autoseg.errors import UsageError
from autoseg.evaluation.expected_dice import ScoredCase, calibrate
from autoseg.evaluation.held_out import described_options, weights_of
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.formats.seg_nrrd import named_segments
from autoseg.inference.options import InferenceOptions
from autoseg.inference.saliency_files import SaliencyIndex
from autoseg.inference.statistics import FolderStatistics
from autoseg.records import load, save
from autoseg.workspace import Workspace
from bright import Lopsided, model_of, picture, plan_of
from commands import run
from files import nifti
from small_networks import small_network

CPU = PredictOptions(device="cpu")
ONE = (1.0, 1.0, 1.0)


@pytest.fixture
def model():
    plan = plan_of(file_names=FileNames("suffix", ("",)))
    return replace(model_of(ONE, plan=plan), folds=(0, 1), networks=(Lopsided(0.1), Lopsided(0.05)))


@pytest.fixture
def workspace(tmp_path, monkeypatch, model) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    save(made.plan, model.plan)
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: model)
    return made


def batch(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        nifti(folder / name, picture((8, 9, 10), seed), np.diag([-1.0, -1.0, 1.0, 1.0]))
    return folder


def learnt(workspace, model, score="pairwise_dice") -> None:
    """A record by which every case is expected to reach 0.2 + 0.7 of its score."""
    other = {"pairwise_dice": "soft_dice", "soft_dice": "pairwise_dice"}[score]
    scores = np.linspace(0.5, 1, 40)
    cases = [
        ScoredCase(f"c{n}", f"fold {n % 5}", str(n % 5), {score: {"organ": s}, other: {}}, {"organ": 0.2 + 0.7 * s})
        for n, s in enumerate(scores.tolist())
    ]
    record = calibrate(
        "3d_fullres", "unet", cases, options=described_options(model, InferenceOptions()), weights=weights_of([model])
    )
    save(workspace.expected_dice("3d_fullres", "unet"), record)


def test_segmentations_are_the_same_whatever_is_written_beside_them(workspace, tmp_path, model):
    folder = batch(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    learnt(workspace, model)
    everything = replace(CPU, probabilities=True, uncertainty=True, statistics=True)
    plainly = predict_images(workspace, [folder], tmp_path / "plain", CPU)
    richly = predict_images(workspace, [folder], tmp_path / "rich", everything)
    assert [path.name for path in plainly] == [path.name for path in richly] == ["a.nii.gz", "b.nii.gz"]
    for one, other in zip(plainly, richly, strict=True):
        np.testing.assert_array_equal(read_labels(one).array, read_labels(other).array)
        assert one.read_bytes() == other.read_bytes()


def test_all_that_is_written(workspace, tmp_path, said, model):
    folder = batch(tmp_path / "in", "a.nii.gz", "b.nii.gz")
    table = tmp_path / "scans.csv"
    table.write_text("case,patient,date\nb,P,2023-01-01\na,P,2024-01-01\n")
    out = tmp_path / "out"
    options = replace(CPU, format="nii.gz", probabilities=True, uncertainty=True, patients=table)
    predict_images(workspace, [folder], out, options)
    note = "note: no expected Dice: it was not learnt for this model; do so: autoseg evaluate --expected-dice"
    assert any(line.startswith(note) for line in said)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name[0] != ".")
    of_case = ["probabilities/{}/0_background.nii", "probabilities/{}/1_organ.nii", "statistics/{}.json"]
    of_case += ["probabilities/{}/probabilities.json", "uncertainty/{}/disagreement.nii", "uncertainty/{}/entropy.nii"]
    of_case += ["uncertainty/{}/uncertainty.json", "{}.nii.gz"]
    wanted = [name.format(case) for name in of_case for case in "ab"]
    wanted += ["autoseg_predictions.json", "itksnap_labels.txt", "statistics.csv", "statistics.json"]
    assert found == sorted(wanted)
    together = load(FolderStatistics, out / "statistics.json")
    (series,) = together.series
    assert (series.patient, series.cases) == ("P", ("b", "a"))
    for case in together.cases:
        labels = read_labels(out / case.segmentation).array
        assert case.labels[0].voxels == np.count_nonzero(labels)
        assert 0 < case.disagreement < 1
        assert case.expected_dice is None
        share = np.asarray(nib.load(out / "probabilities" / case.case / "1_organ.nii").dataobj).T
        np.testing.assert_array_equal(labels > 0, share > 0.5)
    assert '"organ"' in (out / "itksnap_labels.txt").read_text()


@pytest.mark.parametrize("score", ["pairwise_dice", "soft_dice"])
def test_expected_dice_where_it_was_learnt(workspace, tmp_path, model, said, score):
    learnt(workspace, model, score)
    predict_images(workspace, [batch(tmp_path / "in", "a.nii")], tmp_path / "out", replace(CPU, uncertainty=True))
    (case,) = load(FolderStatistics, tmp_path / "out" / "statistics.json").cases
    expected = case.labels[0].expected_dice
    assert 0.2 < expected.low <= expected.dice <= expected.high <= 0.9 + 1e-6
    assert case.expected_dice == pytest.approx(expected) or case.expected_dice.dice == pytest.approx(expected.dice)
    with open(tmp_path / "out" / "statistics.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["expected_dice"]) == pytest.approx(expected.dice, rel=1e-5)
    assert f"expected Dice of a: {expected.dice:.2f} ({expected.low:.2f} to" in "\n".join(said)


def test_expected_dice_of_another_model_or_another_way_is_not_used(workspace, tmp_path, model, said):
    folder = batch(tmp_path / "in", "a.nii")
    other = replace(CPU, uncertainty=True, mirroring=False)
    learnt(workspace, model)
    predict_images(workspace, [folder], tmp_path / "out", other)
    assert "it was learnt with step 0.5, mirrored along 0, 1, 2, and this is step 0.5, not mirrored" in "\n".join(said)
    assert load(FolderStatistics, tmp_path / "out" / "statistics.json").cases[0].expected_dice is None


def test_a_format_for_slicer(workspace, tmp_path):
    folder = batch(tmp_path / "in", "a.nii")
    (path,) = predict_images(workspace, [folder], tmp_path / "out", replace(CPU, format="seg.nrrd"))
    assert path.name == "a.seg.nrrd"
    assert [(segment.name, segment.value) for segment in named_segments(path)] == [("organ", 7)]
    plain = predict_images(workspace, [folder], tmp_path / "plain", CPU)
    np.testing.assert_array_equal(read_labels(path).array, read_labels(plain[0]).array)
    again = predict_images(workspace, [folder], tmp_path / "out", replace(CPU, format="seg.nrrd", resume=True))
    assert again == [path]


def test_as_it_is_typed(workspace, tmp_path):
    folder, table, out = batch(tmp_path / "in", "a.nii"), tmp_path / "scans.csv", tmp_path / "out"
    table.write_text("case,patient\na,P\n")
    typed = ["predict", "-w", workspace.root, "-i", folder, "-o", out, "--device", "cpu", "--patients", table]
    run(*typed, "--format", "seg.nrrd", "--probabilities", "--uncertainty", "--statistics")
    assert load(FolderStatistics, out / "statistics.json").cases[0].patient == "P"
    assert {"a.seg.nrrd", "probabilities", "uncertainty"} < {path.name for path in out.iterdir()}


@pytest.fixture
def explained(model, monkeypatch):
    """A model with a layer to explain it by."""
    torch.manual_seed(0)
    network = small_network("unet", 3).eval()
    network.deep_supervision = False
    changed = replace(model, networks=(network,), folds=(0,))
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: changed)
    return changed


def test_where_the_networks_looked(workspace, tmp_path, explained, capsys):
    folder, out = batch(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    typed = ["predict", "-w", workspace.root, "-i", folder, "-o", out, "--device", "cpu", "--saliency", "organ"]
    run(*typed, "organ@3,4,5", "--saliency-stage", "1", "--saliency-method", "grad_cam", "--uncertainty")
    index = load(SaliencyIndex, out / "saliency" / "a" / "saliency.json")
    assert (index.stage, index.method) == ("1", "grad_cam")
    assert [(one.file, one.place) for one in index.maps] == [
        ("1_organ.nii", None), ("1_organ_at_3_4_5.nii", (3, 4, 5)),
    ]  # fmt: skip
    shown = np.asarray(nib.load(out / "saliency" / "b" / "1_organ.nii").dataobj)
    assert shown.max() == 1 or index.maps[0].note
    plain = predict_images(workspace, [folder], tmp_path / "plain", CPU)
    for path in plain:
        np.testing.assert_array_equal(read_labels(path).array, read_labels(out / path.name).array)
    capsys.readouterr()
    run(*typed, "--uncertainty", "--resume")
    assert "predicting 2 cases again: other files were written with it" in capsys.readouterr().out


def test_a_place_outside_of_one_image_is_reported_for_it(workspace, tmp_path, explained):
    folder = batch(tmp_path / "in", "a.nii")
    nifti(folder / "large.nii", picture((20, 9, 10)), np.diag([-1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(PartlySegmented) as partly:
        predict_images(workspace, [folder], tmp_path / "out", replace(CPU, saliency=("organ@15,4,4",)))
    assert [one.case for one in partly.value.failed] == ["a"]
    assert "outside the image, whose shape is (8, 9, 10)" in partly.value.failed[0].what
    assert (tmp_path / "out" / "saliency" / "large" / "1_organ_at_15_4_4.nii").exists()
    assert not (tmp_path / "out" / "a.nii").exists()


def test_a_label_that_is_not_there(workspace, tmp_path, explained):
    with pytest.raises(UsageError, match=r"(?s)--saliency liver: the model has no such label.*background, organ"):
        predict_images(
            workspace, [batch(tmp_path / "in", "a.nii")], tmp_path / "out", replace(CPU, saliency=("liver",))
        )


def test_options_that_cannot_be():
    with pytest.raises(UsageError, match="names no label and place"):
        replace(CPU, saliency=("organ@here",))
    with pytest.raises(UsageError, match="--saliency-stage says how a label is explained"):
        replace(CPU, saliency_stage="0")
    with pytest.raises(UsageError, match=r"--format 'jpg' cannot be written"):
        replace(CPU, format="jpg")
    with pytest.raises(UsageError, match="--patients orders the statistics"):
        replace(CPU, patients=Path("scans.csv"))


def test_an_image_unlike_the_training_data_is_reported(workspace, tmp_path, model, said, monkeypatch):
    from autoseg.planning.plan import IntensityRange, TrainingGrids

    ranges = (IntensityRange((-1000.0, -900.0), (0.0, 50.0), (300.0, 900.0), 1900.0),)
    seen = TrainingGrids(ONE, ONE, (8, 9, 10), (20, 24, 28), ranges)
    ct = replace(model, plan=replace(model.plan, grids=seen))
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: ct)
    predict_images(workspace, [batch(tmp_path / "in", "a.nii")], tmp_path / "out", CPU)
    shown = "\n".join(said)
    assert "warning: " in shown
    assert "its 0.5th percentile is 0, between -1000 and -900 in training" in shown
