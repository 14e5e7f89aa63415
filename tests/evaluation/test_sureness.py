"""Counts of held-out probabilities: by a model whose probabilities are known, and by sums over voxels in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.datasets.dataset import Case
from autoseg.evaluation.sureness import (
    MARGIN,
    ProbabilityCounter,
    Sureness,
    describe,
    measure_sureness,
    spread_labels,
)
from autoseg.imaging.labels import LabelSet
from autoseg.records import load, save
from bright import THRESHOLD, model_of, picture, plan_of
from files import nifti

SHAPE = (8, 9, 10)


def probability(image: np.ndarray) -> np.ndarray:
    """What `Bright` gives the organ."""
    return 1 / (1 + np.exp(-(image - THRESHOLD) / 20))


@pytest.fixture
def held_out(tmp_path) -> dict[int, list[Case]]:
    """Three images whose voxels are 0, 50 (8 % organ) or 150 (92 %); of one, half of the organ is not annotated so."""
    cases = []
    for seed, name in enumerate("abc"):
        image = picture(SHAPE, seed)
        label = np.where(image > THRESHOLD, 7, 0).astype(np.uint8)
        if name == "b":
            label[:4] = 0
        files = [
            nifti(tmp_path / folder / f"{name}.nii", array, np.eye(4))
            for folder, array in (("in", image), ("labels", label))
        ]
        cases.append(Case(name, f"patient of {name}", (str(files[0]),), str(files[1])))
    return {0: cases[:2], 3: cases[2:]}


def pooled(held_out) -> tuple[np.ndarray, np.ndarray]:
    """Probability and truth of all voxels that count, by numpy."""
    import nibabel as nib

    found = []
    for case in (case for cases in held_out.values() for case in cases):
        image, label = (np.asarray(nib.load(file).dataobj).T for file in (case.images[0], case.label))
        box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(image))
        image, truth = image[box].astype(float), label[box] == 7
        p = probability(image)
        counts = ndimage.binary_dilation(truth, iterations=MARGIN) | (p >= 0.05)
        found.append((p[counts], truth[counts]))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def test_counts_are_those_of_numpy(tmp_path, held_out):
    plan = plan_of(mirror_axes=(0, 2))
    models = {fold: model_of((1.0,) * 3, plan=plan, patch=(8, 10, 12)) for fold in held_out}
    found = measure_sureness(models, held_out, ["organ"])
    p, truth = pooled(held_out)
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == truth
    assert found.voxels == len(p)
    assert (found.cases, set(found.weights)) == (("a", "b", "c"), {"0", "3"})
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs(right[bins == i].sum() - confidence[bins == i].sum()) for i in np.unique(bins)]
    assert found.ece == pytest.approx(sum(gaps) / len(p), abs=1e-6)
    assert found.brier == pytest.approx(np.mean(2 * (p - truth) ** 2), abs=1e-6)
    assert sum(one.share for one in found.bins) == pytest.approx(1)
    assert sum(one.share * one.accuracy for one in found.bins) == pytest.approx(right.mean())
    organ = found.labels["organ"]
    wins = (p[truth][:, None] > p[~truth]).mean() + (np.isclose(p[truth][:, None], p[~truth])).mean() / 2
    assert organ.auc == pytest.approx(wins, abs=1e-3)
    save(tmp_path / "calibration.json", found)
    assert load(Sureness, tmp_path / "calibration.json") == found
    text = describe(found)
    assert f"3 held-out cases, {len(p)} voxels within 2 of the reference" in text
    assert f"{organ.auc:.4f}" in text


def test_lesions_are_found_in_the_whole_image(held_out):
    """Every organ voxel has 0.92 and the others at most 0.08: all references are found, at no false alarm but b's."""
    plan = plan_of()
    models = {fold: model_of((1.0,) * 3, plan=plan, patch=(8, 10, 12)) for fold in held_out}
    organ = measure_sureness(models, held_out, ["organ"]).labels["organ"]
    assert organ.lesions > 3
    assert organ.found["8"] == 1.0
    assert measure_sureness(models, held_out).labels["organ"].found == {}


def counter_of(labels: LabelSet, target, logits) -> ProbabilityCounter:
    counter = ProbabilityCounter(labels, np.asarray(target, np.int16), [])
    half = len(target) // 2
    for rows in (slice(0, half), slice(half, len(target))):
        counter.take(rows, [torch.tensor(logits, dtype=torch.float32)[:, rows]])
    return counter


def test_ignored_voxels_do_not_count():
    labels = LabelSet({"a": 1}, ignore=9)
    target = np.zeros((2, 3, 4), int)
    target[0, 0, 0], target[0, 0, 1] = 1, 2  # 2 is the index of the ignored ones
    counter = counter_of(labels, target, np.stack([np.zeros((2, 3, 4)), np.full((2, 3, 4), 3.0)]))
    assert counter.chosen.voxels.sum() == 23
    assert counter.chosen.correct.sum() == 1
    assert counter.rankings["a"].positives.sum() == 1


def test_regions_count_each_by_itself():
    """Logit 0 is a half and logit 4 is 0.982: of the voxels of `whole` two of four are right, of `core` all."""
    labels = LabelSet({"a": 1, "b": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
    target = np.array([1, 2, 0, 0]).reshape(4, 1, 1)
    whole, core = np.full(4, 4.0), np.array([-4.0, 4.0, -4.0, -4.0])
    counter = counter_of(labels, target, np.stack([whole, core]).reshape(2, 4, 1, 1))
    assert counter.chosen.voxels.sum() == 0
    assert counter.each["whole"].voxels.sum() == 4
    assert counter.each["whole"].correct.sum() == 2
    assert counter.each["whole"].ece == pytest.approx(1 / (1 + np.exp(-4)) - 0.5, abs=1e-6)
    assert counter.each["core"].ece == pytest.approx(1 / (1 + np.exp(4)), abs=1e-6)
    assert counter.rankings["core"].auc == 1.0


def test_far_from_every_object_only_what_is_unsure_counts():
    labels = LabelSet({"a": 1})
    target = np.zeros((2, 9, 9), int)
    target[0, 4, 4] = 1
    logits = np.stack([np.zeros((2, 9, 9)), np.full((2, 9, 9), -9.0)])
    near = ndimage.binary_dilation(target > 0, iterations=MARGIN).sum()
    assert counter_of(labels, target, logits).chosen.voxels.sum() == near
    logits[1, 1, 0, 0] = -2.0  # 12 %
    assert counter_of(labels, target, logits).chosen.voxels.sum() == near + 1


def test_labels_that_are_spread():
    cases = [{"lesion": 5, "organ": 1}, {"lesion": 1, "organ": 1}, {"organ": 2}, {"organ": 1}, {"organ": 1}]
    assert spread_labels(cases) == ["lesion"]
    assert spread_labels([*cases[:4]]) == ["lesion", "organ"]
    assert spread_labels([]) == []


def test_a_label_that_is_nowhere_has_no_figures(held_out):
    two = LabelSet({"organ": 7, "lesion": 8})
    network = torch.nn.Module()
    network.forward = lambda image: [torch.cat([torch.zeros_like(image), image - THRESHOLD, image * 0 - 99], dim=1)]
    model = model_of((1.0,) * 3, plan=plan_of(two), network=network, patch=(8, 10, 12))
    found = measure_sureness({0: model}, {0: held_out[0]}, ["lesion"])
    lesion = found.labels["lesion"]
    assert (lesion.auc, lesion.lesions, lesion.found, lesion.froc) == (None, 0, {}, None)
    assert lesion.ece == pytest.approx(0, abs=1e-6)
    assert "lesion" in describe(replace(found, bins=()))
