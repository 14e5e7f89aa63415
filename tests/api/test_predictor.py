"""`autoseg.Predictor`: arrays get the labels that the command writes for files; what it says of itself and refuses."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import autoseg
from autoseg.datasets.inputs import FileNames
from autoseg.imaging.labels import LabelSet
from autoseg.records import save
from autoseg.workspace import Workspace
from bright import THRESHOLD, model_of, picture, plan_of
from commands import SHORT, run
from phantom import tiny_dataset

ONE = (1.0, 1.0, 1.0)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A workspace whose model segments what is bright."""
    plan = plan_of(file_names=FileNames("suffix", ("",)))
    save(Workspace(tmp_path / "workspace").plan, plan)
    opened = []

    def open_model(*given, **options):
        opened.append((given, options))
        return model_of(ONE, plan=plan)

    monkeypatch.setattr("autoseg.models.model.open_model", open_model)
    return tmp_path / "workspace"


def test_it_says_what_it_takes_and_what_it_gives(workspace, capsys):
    with autoseg.Predictor(workspace, device="cpu") as predictor:
        assert (predictor.channels, predictor.labels, predictor.heads) == (
            ("MR",),
            {"organ": 7},
            ("background", "organ"),
        )
        image = picture((8, 9, 10))
        labels, shares = predictor.predict(image, spacing=ONE, probabilities=True)
        np.testing.assert_array_equal(labels, predictor.predict(image, ONE))
        np.testing.assert_array_equal(labels, np.where(image > THRESHOLD, 7, 0))
        np.testing.assert_array_equal(shares[1] > 0.5, labels == 7)
    with pytest.raises(autoseg.AutosegError, match="was closed"):
        predictor.predict(image, ONE)
    assert capsys.readouterr().out == ""


def test_regions_are_its_heads(workspace, monkeypatch):
    labels = LabelSet({"oedema": 2, "core": 5}, {"whole": (2, 5), "core": (5,)}, (2, 5))
    plan = plan_of(labels)
    save(Workspace(workspace).plan, plan)
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: model_of(ONE, plan=plan))
    assert autoseg.Predictor(workspace, device="cpu").heads == ("whole", "core")


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda ws: autoseg.Predictor(ws, speeed="fast"), "no argument 'speeed'.*\n.*did you mean speed"),
        (lambda ws: autoseg.Predictor(ws, speed="slow"), "Predictor.*: speed: expected 'accurate', 'balanced'"),
        (lambda ws: autoseg.Predictor(ws, step=0.0), "step=0.0 leaves gaps"),
        (lambda ws: autoseg.Predictor(ws, folds="x"), "names no folds"),
        (lambda ws: autoseg.Predictor(ws, "2d", models=["2d-unet"]), "models cannot be combined with configuration"),
        (lambda ws: autoseg.Predictor(), "missing a required argument: 'path'"),
        (lambda ws: autoseg.Predictor(ws / "nowhere"), r"plan\.json does not exist"),
        (lambda ws: autoseg.Predictor(ws, device="gpu"), "device=\"gpu\": expected one of"),
        (lambda ws: autoseg.Predictor(ws, device="cpu").predict(), "Predictor.predict.*: missing .*'array'"),
        (lambda ws: autoseg.Predictor(ws, device="cpu").predict(picture((8, 9, 10)), ONE, "XYZ"), "three letters"),
        (lambda ws: autoseg.Predictor(ws, device="cpu").predict(picture((8, 9, 10)), (1, 1)), "spacing has 2 numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words(workspace, call, what):
    with pytest.raises(autoseg.AutosegError, match=what):
        call(workspace)


def labels_of(path: Path) -> np.ndarray:
    """The label map of a NIfTI file as (Z, Y, X)."""
    return np.asarray(nib.load(path).dataobj).T


def array_of(path: Path) -> tuple[np.ndarray, tuple[float, ...], str]:
    """The image of a NIfTI file as an array (Z, Y, X), its spacing and its orientation: as a user would find them."""
    image = nib.load(path)
    spacing = tuple(float(step) for step in image.header.get_zooms()[::-1])
    return np.asarray(image.dataobj).T, spacing, "".join(nib.aff2axcodes(image.affine))


@pytest.mark.slow
def test_arrays_get_the_labels_that_files_get(tmp_path, in_this_process):
    """Two folds of a tiny training, in several orientations; alone, at another speed, from several threads."""
    data = tiny_dataset(tmp_path / "data", cases=5, orientations=("LPS", "RAS", "SAL"))
    workspace = tmp_path / "ws"
    run("plan", data, "-w", workspace)
    run("train", "-f", "0,1", "--steps", 60, "-w", workspace, *SHORT)
    images = sorted((data / "imagesTr").iterdir())
    for speed in ("accurate", "fast"):
        out = tmp_path / speed
        run("predict", "-i", data / "imagesTr", "-o", out, "-w", workspace, "--speed", speed)
        written = [labels_of(out / path.name.replace("_0000", "")) for path in images]
        with autoseg.Predictor(workspace, speed=speed, say=None) as predictor, ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda path, use=predictor: use.predict(*array_of(path)), images))
        for labels, expected in zip(found, written, strict=True):
            np.testing.assert_array_equal(labels, expected)
        assert {int(value) for labels in written for value in np.unique(labels)} == {0, 1, 2}


@pytest.mark.slow
def test_the_41_test_images_get_the_labels_that_the_command_writes(data_dir, tmp_path, in_this_process):
    """A short training on ten cases; the command segments all test images at once, and three of them alone."""
    source, data = data_dir / "hippocampus", tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:10]:
            (data / folder / path.name).symlink_to(path)
    description = json.loads((source / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(description | {"numTraining": 10}))
    workspace, out = tmp_path / "ws", tmp_path / "out"
    run("plan", data, "-w", workspace)
    run("train", "-f", "0", "--steps", 100, "-w", workspace, *SHORT)
    images = sorted((source / "imagesTs").iterdir())
    assert len(images) == 41
    run("predict", "-i", source / "imagesTs", "-o", out, "-w", workspace)
    foreground = 0
    with autoseg.Predictor(workspace, say=None) as predictor:
        for path in images:
            labels = predictor.predict(*array_of(path))
            np.testing.assert_array_equal(labels, labels_of(out / path.name.replace("_0000", "")))
            foreground += int((labels > 0).sum())
    assert foreground > 0
    for path in images[:3]:
        run("predict", "-i", path, "-o", tmp_path / "alone", "-w", workspace)
        name = path.name.replace("_0000", "")
        assert (tmp_path / "alone" / name).read_bytes() == (out / name).read_bytes()
    shutil.rmtree(out)
