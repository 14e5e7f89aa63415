"""A model that is handed on segments as the workspace does, also where there is no workspace; and what is printed."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg import Predictor
from autoseg.cli import main
from autoseg.commands.predict import PredictOptions
from autoseg.errors import AutosegError, UsageError
from autoseg.imaging.formats.readers import read_labels
from autoseg.models.pretrained import open_source
from commands import outcome
from exported import contents_of, plan_for_tests, scored, workspace_of
from files import nifti
from phantom import tiny_case

CONFIGURATIONS = ("3d_fullres", "3d_lowres", "3d_cascade")
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A workspace with a cascade, two images, and three exported files."""
    root = tmp_path_factory.mktemp("handed on")
    plan = plan_for_tests().with_settings(["training.test_time_mirroring=false"])  # it takes eight times as long
    workspace = workspace_of(root / "workspace", plan, configurations=CONFIGURATIONS)
    scored(workspace)
    rng = np.random.default_rng(0)
    for name, shape in (("a", (9, 16, 20)), ("b", (8, 17, 16))):
        nifti(root / "images" / f"{name}.nii.gz", tiny_case(rng, shape)[0][0], AFFINE)
    for file, options in (
        ("full.zip", ()), ("cascade.zip", ("-c", "3d_cascade")), ("both.zip", ("-c", "3d_fullres", "3d_lowres"))
    ):  # fmt: skip
        assert main(["export", str(root / file), "-w", str(workspace.root), *options]) == 0
    return root


def segmented(folder: Path, out: Path, *options: object) -> dict[str, np.ndarray]:
    assert (
        main([str(word) for word in ("predict", "-i", folder / "images", "-o", out, "--device", "cpu", *options)]) == 0
    )
    return {path.name: read_labels(path).array for path in sorted(out.glob("*.nii.gz"))}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("file", "options", "models"),
    [
        ("full.zip", (), ("3d_fullres-unet",)),
        ("full.zip", ("-f", "1"), ("3d_fullres-unet",)),
        ("cascade.zip", (), ("3d_cascade-unet",)),
        ("both.zip", (), ("3d_fullres-unet", "3d_lowres-unet")),
        ("both.zip", ("-c", "3d_lowres"), ("3d_lowres-unet",)),
    ],
)
def test_labels_equal_those_of_the_workspace(folder, tmp_path, monkeypatch, file, options, models):
    folds = () if "-f" not in options else options
    there = segmented(folder, tmp_path / "there", "-w", folder / "workspace", "-m", *models, *folds)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # where there is no workspace
    here = segmented(folder, tmp_path / "here", "-m", folder / file, *options)
    assert list(here) == list(there) == ["a.nii.gz", "b.nii.gz"]
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])
        assert len(np.unique(here[name])) > 1, "a segmentation of one value proves nothing"


def test_a_predictor_opens_an_exported_model_as_the_command_does(folder, tmp_path, monkeypatch):
    labels = segmented(folder, tmp_path / "out", "-m", folder / "full.zip")
    image = nibabel.load(folder / "images" / "a.nii.gz")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for options in ({}, {"models": ["3d_fullres-unet"]}):
        with Predictor(folder / "full.zip", device="cpu", say=None, **options) as predictor:
            found = predictor.predict(np.asarray(image.dataobj).T, spacing=(2.0, 1.0, 1.0))
        np.testing.assert_array_equal(found, labels["a.nii.gz"])
    with pytest.raises(AutosegError, match="holds no model '2d-unet'"):
        Predictor(folder / "full.zip", models=["2d-unet"], device="cpu", say=None)


def test_finished_segmentations_of_an_exported_model_are_kept(folder, tmp_path, capsys):
    options = ("predict", "-i", folder / "images", "-o", tmp_path, "--device", "cpu", "-m")
    assert outcome(capsys, *options, folder / "full.zip")[0] == 0
    code, said = outcome(capsys, *options, folder / "full.zip", "--resume")
    assert (code, "2 of 2 segmentations" in said) == (0, True)
    code, said = outcome(capsys, *options, folder / "both.zip", "-c", "3d_lowres", "--resume")
    assert (code, "another model made it" in said) == (0, True)


def test_files_of_models_that_do_not_fit_together_are_refused(folder, tmp_path, capsys):
    other = replace(plan_for_tests(), channels=("CT",))
    workspace = workspace_of(tmp_path / "w", other)
    assert main(["export", str(tmp_path / "other.zip"), "-w", str(workspace.root)]) == 0
    options = ("-i", folder / "images", "-o", tmp_path / "o", "-m", folder / "full.zip", tmp_path / "other.zip")
    code, said = outcome(capsys, "predict", *options)
    assert (code, "they have different channels" in said) == (4, True)


def test_a_model_without_its_dataset_is_exported(folder, tmp_path, capsys):
    workspace = workspace_of(tmp_path / "w", plan_for_tests().with_settings(["training.test_time_mirroring=false"]))
    for record in (workspace.dataset, workspace.splits, workspace.fingerprint):
        record.unlink()
    code, said = outcome(capsys, "status", "-w", workspace.root, "--json")
    assert (code, "models without their dataset" in said) == (0, True)
    assert main(["export", str(tmp_path / "a.zip"), "-w", str(workspace.root)]) == 0
    assert "imported without the cases" in contents_of(tmp_path / "a.zip")["README.md"].decode()
    assert main(["info", str(tmp_path / "a.zip")]) == 0
    here = segmented(folder, tmp_path / "here", "-m", tmp_path / "a.zip")
    there = segmented(folder, tmp_path / "there", "-m", folder / "full.zip")
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_images_unlike_the_training_data_are_refused_by_the_same_rules(folder, tmp_path, capsys):
    other = nifti(tmp_path / "huge.nii.gz", np.ones((9, 20, 20), np.int16), np.diag([-9.0, -9.0, 18.0, 1.0]))
    code, said = outcome(capsys, "predict", "-i", other, "-o", tmp_path / "out", "-m", folder / "full.zip")
    assert code == 3
    assert "times larger than any" in said


def test_several_files_form_one_ensemble(folder, tmp_path):
    both = segmented(folder, tmp_path / "both", "-m", folder / "both.zip")
    shutil.copytree(folder / "workspace", tmp_path / "w")
    assert main(["export", str(tmp_path / "low.zip"), "-w", str(tmp_path / "w"), "-c", "3d_lowres"]) == 0
    parts = segmented(folder, tmp_path / "parts", "-m", folder / "full.zip", tmp_path / "low.zip")
    for name in both:
        np.testing.assert_array_equal(both[name], parts[name])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"models": ("a.zip", "3d_fullres-unet")}, "both exported files and models of the workspace"),
        ({"models": ("3d_fullres-unet",), "configuration": "2d"}, "-m cannot be combined with -c"),
    ],
)
def test_options_that_contradict_each_other(options, why):
    with pytest.raises(UsageError, match=why):
        PredictOptions(**options)
    PredictOptions(models=("a.zip",), configuration="2d")


def test_what_export_prints_is_what_is_there(folder, tmp_path, capsys):
    path = tmp_path / "model.zip"
    code, said = outcome(capsys, "export", path, "-w", folder / "workspace")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert code == 0
    assert f"{path}: 3d_fullres-unet (folds 0, 1), " in said
    assert f"sha256 {digest}" in said
    assert "archive against workspace: largest difference of logits 0, at most 0 expected" in said


def test_an_export_that_fails_leaves_the_file_that_was_there(folder, tmp_path, capsys):
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")
    code, said = outcome(capsys, "export", path, "-w", folder / "workspace", "-c", "2d")
    assert code == 4
    assert "is not trained" in said
    assert path.read_bytes() == b"old"
    for name in ("model", "model.onnx"):
        code, said = outcome(capsys, "export", tmp_path / name, "-w", folder / "workspace")
        assert (code, "is not the name of a ZIP file" in said) == (2, True)
    code, said = outcome(capsys, "export", "-w", folder / "workspace")
    assert (code, "nothing to write is named" in said) == (2, True)


def test_a_training_begins_with_an_exported_model(folder):
    source = open_source(folder / "full.zip")
    wanted = open_source(folder / "workspace/models/3d_fullres-unet/fold_0/last.pt")
    assert source.configuration_name == "3d_fullres"
    assert source.weights.keys() == wanted.weights.keys()
    assert all((source.weights[key] == wanted.weights[key]).all() for key in wanted.weights)
    assert source.described == "3d_fullres-unet, fold 0, 40 steps, exported"


def test_info_of_all_three(folder, capsys):
    code, said = outcome(capsys, "info", folder / "full.zip")
    lines = said.splitlines()
    assert code == 0
    assert len(lines) <= 25
    assert lines[0].startswith(f"{folder / 'full.zip'}: an exported model of test, ")
    assert "labels: label1=1, label2=2" in lines
    assert "  Dice of 5 held-out cases: label1 0.700, label2 0.600" in lines
    assert "  fold 0: 0 epochs, 40 steps on 4 cases" in lines
    code, said = outcome(capsys, "info", folder / "workspace")
    assert code == 0
    assert f"{folder / 'workspace'}: a workspace of test" in said
    assert "3d_cascade-unet, after 3d_lowres: folds 0, 1, voxels of" in said
    for path in ("workspace/models/3d_fullres-unet/fold_0/last.pt", "workspace/models/3d_fullres-unet/fold_0"):
        code, said = outcome(capsys, "info", folder / path)
        assert code == 0
        assert "last.pt: a checkpoint of test" in said
        assert "3d_fullres-unet: fold 0, " in said


def test_info_of_what_is_none_of_them(folder, tmp_path, capsys):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    for path, code in (("a.zip", 4), ("a.pt", 4), ("nothing", 2), (".", 2)):
        found, said = outcome(capsys, "info", tmp_path / path)
        assert (found, said.startswith("error: ")) == (code, True)


@pytest.mark.thorough
def test_info_has_no_more_than_25_lines(tmp_path, capsys):
    many = ("2d", *CONFIGURATIONS)
    workspace = workspace_of(tmp_path / "w", configurations=many, folds=(0, 1, 2, 3, 4, "full"))
    assert main(["export", str(tmp_path / "a.zip"), "-w", str(workspace.root), "-c", *many]) == 0
    capsys.readouterr()
    for path in ("a.zip", "w"):
        assert main(["info", str(tmp_path / path)]) == 0
        assert len(capsys.readouterr().out.splitlines()) <= 25
    assert main(["info", "--json", str(tmp_path / "a.zip")]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["kind"] == "exported model"
    assert [fold["fold"] for fold in result["models"]["2d-unet"]["folds"]] == [0, 1, 2, 3, 4]
