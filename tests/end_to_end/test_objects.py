"""Objects that touch, from label files that number them to instance maps of new images and their scores."""

import json

import numpy as np
import pytest
import tifffile

import autoseg
from autoseg.evaluation.crossval import CrossValidation
from autoseg.imaging.formats.readers import read_labels
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import SHORT, outcome, run

pytestmark = pytest.mark.slow
SIZE = 96


def discs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of bright discs on dark ground and their numbers; many touch, none lies over another."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[:SIZE, :SIZE]
    labels = np.zeros((SIZE, SIZE), np.uint16)
    for _ in range(400):
        radius = random.uniform(5, 9)
        inside = (y - random.uniform(0, SIZE)) ** 2 + (x - random.uniform(0, SIZE)) ** 2 <= radius**2
        if not labels[inside].any():
            labels[inside] = labels.max() + 1
    shade = np.where(labels > 0, 150.0, 40.0)
    for number in range(1, int(labels.max()) + 1):
        shade[labels == number] += random.uniform(-30, 30)
    return np.clip(shade + random.normal(0, 8, shade.shape), 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for seed in range(10):
        image, labels = discs(seed)
        tifffile.imwrite(folder / "images" / f"d{seed}.tif", image)
        tifffile.imwrite(folder / "labels" / f"d{seed}.tif", labels)
    return folder


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("objects") / "w")
    run("plan", dataset, "-w", workspace.root, "--instances", "disc", "--set", "training.learning_rate=0.02")
    run("train", "-f", "0", "--steps", 240, "-w", workspace.root, *SHORT)
    return workspace


def test_objects_are_told_apart_and_scored(trained, capsys):
    code, said = outcome(capsys, "evaluate", "-w", trained.root, "--no-report")
    assert code == 0
    assert "AP 0.5" in said
    found = load(CrossValidation, trained.crossval("2d", "unet")).objects["disc"]
    assert found.images == 2
    assert found.average_precision["0.5"] > 0.5
    assert found.pq > 0.5


def test_predictions_are_instance_maps_which_any_command_scores(trained, dataset, tmp_path, capsys):
    images = sorted((dataset / "images").glob("d[0-3].tif"))
    run("predict", "-i", *images, "-o", tmp_path / "out", "-w", trained.root, "--coco", "--statistics")
    made = read_labels(tmp_path / "out" / "d0.tif").array
    assert sorted(np.unique(made)) == [*range(int(made.max()) + 1)]
    assert made.max() > 10
    outlines = json.loads((tmp_path / "out" / "annotations.json").read_text())
    table = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert (
        len(outlines["annotations"])
        == len(table) - 1
        == sum(int(read_labels(path).array.max()) for path in (tmp_path / "out").glob("*.tif"))
    )
    references = tmp_path / "references"
    references.mkdir()
    for image in images:
        (references / image.name).write_bytes((dataset / "labels" / image.name).read_bytes())
    capsys.readouterr()
    run(
        "evaluate", "--predictions", tmp_path / "out", "--references", references, "--instances", "disc",
        "-w", tmp_path, "--json",
    )  # fmt: skip
    answer = json.loads(capsys.readouterr().out)["result"]
    python = autoseg.evaluate_folders(tmp_path / "out", references, instances="disc", workers=0, say=None)
    assert python.objects["disc"].average_precision["0.5"] > 0.5
    assert answer["objects"]["disc"]["average_precision"] == python.objects["disc"].average_precision


def test_the_predictor_returns_an_instance_map(trained, dataset):
    image = tifffile.imread(dataset / "images" / "d1.tif")
    with autoseg.Predictor(trained.root) as predictor:
        labels = predictor.predict(image)
    assert labels.shape == image.shape
    assert labels.max() > 10
