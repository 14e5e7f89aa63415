"""Probabilities written row by row, against those of the dense arrays."""

import itertools
import json
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.errors import StorageError, UsageError
from autoseg.imaging.formats.readers import read_geometry
from autoseg.imaging.geometry import orientation_of, undo_reorient
from autoseg.imaging.labels import LabelSet
from autoseg.inference import probabilities as module
from autoseg.inference.on_image import OnImage
from autoseg.inference.probabilities import INDEX, ProbabilityIndex, ProbabilityWriter
from autoseg.records import load
from files import affine_along, nifti
from rows import feed

LABELS = LabelSet({"liver": 2, "tumour/necrotic": 5})
REGIONS = LabelSet({"oedema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2))
WHOLE = (9, 7, 8)  # in the plan's axis order
BOX = ((1, 8), (2, 7), (0, 6))
IN_BOX = (7, 5, 6)


def placed(folder: Path, axes="RAS", axis_order=(0, 1, 2)) -> tuple[OnImage, Path]:
    """An image whose array, in the plan's axis order, has the shape WHOLE; and where its box lies."""
    spacing = (3.0, 1.0, 2.0)
    geometry = read_geometry(nifti(folder / "first.nii", np.zeros((2, 2, 2), np.int16), affine_along(axes, spacing)))
    turn = orientation_of(geometry)
    stored = undo_reorient(undo_reorient(np.zeros(WHOLE, np.int16), axis_order, (0, 0, 0)), *turn)
    like = nifti(folder / "image.nii", np.ascontiguousarray(stored), affine_along(axes, spacing))
    return OnImage(read_geometry(like), turn, axis_order, BOX), like


def logits(heads: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((heads, *IN_BOX), generator=torch.Generator().manual_seed(seed)) * 4


def written(folder: Path, place: OnImage) -> dict[str, np.ndarray]:
    """Label -> its map of the whole image in the plan's axis order, as nibabel reads it."""
    index = load(ProbabilityIndex, folder / INDEX)
    whole = OnImage(place.geometry, place.orientation, place.axis_order, tuple((0, n) for n in WHOLE))
    return {head.name: whole.inside(np.asarray(nib.load(folder / head.file).dataobj).T) for head in index.heads}


@pytest.mark.parametrize("axis_order", list(itertools.permutations((0, 1, 2))))
@pytest.mark.parametrize("axes", ["LPS", "RAS", "SLP", "AIR"])
def test_each_label_has_a_map_on_the_image(tmp_path, axes, axis_order):
    place, like = placed(tmp_path, axes, axis_order)
    writer = ProbabilityWriter(tmp_path / "out" / "a", "a", LABELS, place, like)
    feed([writer], [logits(3)])
    assert writer.finish() == tmp_path / "out" / "a"
    expected = np.zeros((3, *WHOLE), np.float32)
    expected[0] = 1  # beyond the box it is background, as decided
    expected[:, 1:8, 2:7, 0:6] = logits(3).softmax(dim=0)
    for found, wanted in zip(written(tmp_path / "out" / "a", place).values(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2**-16 + 1e-7)
    for path in (tmp_path / "out" / "a").glob("*.nii"):
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(like).affine)


def test_the_index_names_files_that_any_system_can_hold(tmp_path):
    place, like = placed(tmp_path)
    writer = ProbabilityWriter(tmp_path / "a", "a", LABELS, place, like)
    feed([writer], [logits(3)])
    writer.finish()
    index = load(ProbabilityIndex, tmp_path / "a" / INDEX)
    assert [(h.file, h.name, h.values) for h in index.heads] == [
        ("0_background.nii", "background", (0,)),
        ("1_liver.nii", "liver", (2,)),
        ("2_tumour_necrotic.nii", "tumour/necrotic", (5,)),
    ]
    assert index.kind == "softmax"
    assert json.loads((tmp_path / "a" / INDEX).read_text())["case"] == "a"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "first.nii", "image.nii"]  # nothing is left


def test_regions_have_a_map_each_and_are_absent_beyond_the_box(tmp_path):
    place, like = placed(tmp_path)
    writer = ProbabilityWriter(tmp_path / "a", "a", REGIONS, place, like)
    feed([writer], [logits(2)])
    writer.finish()
    found = written(tmp_path / "a", place)
    assert list(found) == ["whole", "core"]
    expected = np.zeros((2, *WHOLE), np.float32)
    expected[:, 1:8, 2:7, 0:6] = logits(2).sigmoid()
    np.testing.assert_allclose(np.stack(list(found.values())), expected, atol=2**-16 + 1e-7)
    index = load(ProbabilityIndex, tmp_path / "a" / INDEX)
    assert index.kind == "sigmoid"
    assert [head.values for head in index.heads] == [(1, 2), (2,)]


def test_folds_of_a_model_are_averaged_as_logits_and_models_as_probabilities(tmp_path):
    place, like = placed(tmp_path)
    parts = [logits(3, seed) for seed in range(3)]
    writer = ProbabilityWriter(tmp_path / "a", "a", LABELS, place, like, model_of=(0, 0, 1))
    feed([writer], parts)
    writer.finish()
    expected = (((parts[0] + parts[1]) / 2).softmax(dim=0) + parts[2].softmax(dim=0)) / 2
    found = np.stack(list(written(tmp_path / "a", place).values()))
    np.testing.assert_allclose(found[:, 1:8, 2:7, 0:6], expected, atol=2**-16 + 1e-6)


def test_what_no_voxel_has_takes_no_space(tmp_path):
    """A file of 64 MiB of which one row is not 0."""
    like = nifti(tmp_path / "image.nii", np.zeros((128, 512, 512), np.int8))
    place = OnImage(read_geometry(like), ((0, 1, 2), (0, 0, 0)), (0, 1, 2), ((0, 128), (0, 512), (0, 512)))
    writer = ProbabilityWriter(tmp_path / "a", "a", REGIONS, place, like)
    rows = torch.full((2, 1, 512, 512), -30.0)
    writer.take(slice(0, 1), [rows])
    rows[:, 0, 5, 5] = 3.0
    writer.take(slice(1, 2), [rows])
    writer.finish()
    stat = (tmp_path / "a" / "0_whole.nii").stat()
    assert stat.st_size > 2**26
    assert stat.st_blocks * 512 < 2**22


def test_an_earlier_prediction_is_replaced_and_nothing_else(tmp_path):
    place, like = placed(tmp_path)
    for seed in range(2):
        writer = ProbabilityWriter(tmp_path / "a", "a", LABELS, place, like)
        feed([writer], [logits(3, seed)])
        writer.finish()
    found = written(tmp_path / "a", place)["liver"][1:8, 2:7, 0:6]
    np.testing.assert_allclose(found, logits(3, 1).softmax(dim=0)[1], atol=2**-16 + 1e-7)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("of a user")
    with pytest.raises(UsageError, match=r"b exists and has no probabilities\.json"):
        ProbabilityWriter(tmp_path / "b", "b", LABELS, place, like)
    assert (tmp_path / "b" / "thesis.txt").exists()


def test_a_case_that_fails_leaves_nothing(tmp_path):
    place, like = placed(tmp_path)
    writer = ProbabilityWriter(tmp_path / "out" / "a", "a", LABELS, place, like)
    writer.take(slice(0, 3), [logits(3)[:, :3]])
    writer.abandon()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_cannot_hold_them_is_refused_first(tmp_path, monkeypatch):
    place, like = placed(tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(StorageError, match="3 maps of this case may take"):
        ProbabilityWriter(tmp_path / "a", "a", LABELS, place, like)
