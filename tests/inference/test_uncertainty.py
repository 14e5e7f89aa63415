"""Entropy and disagreement, by values worked out by hand."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.imaging.formats.readers import read_geometry
from autoseg.imaging.labels import LabelSet
from autoseg.inference.on_image import OnImage
from autoseg.inference.uncertainty import CaseUncertainty, UncertaintyWriter, entropy_and_disagreement
from autoseg.records import load
from files import nifti
from rows import feed

FOUR = LabelSet({"a": 1, "b": 2, "c": 3})
REGIONS = LabelSet({"oedema": 1, "core": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2))
SURE = 60.0


def voxel(*probabilities: float) -> torch.Tensor:
    """Softmax logits (K, 1) of one voxel."""
    return torch.tensor(probabilities).clamp_min(1e-30).log()[:, None]


def both(*members: torch.Tensor, regions=False, weights=None) -> tuple[float, float]:
    found = entropy_and_disagreement(members, weights or [1 / len(members)] * len(members), regions)
    return float(found[0]), float(found[1])


def test_certain_members_that_agree():
    assert both(voxel(1, 0, 0, 0), voxel(1, 0, 0, 0)) == pytest.approx((0, 0), abs=1e-6)


def test_two_certain_members_of_different_classes_disagree_fully():
    """The mean is 1/2 and 1/2: an entropy of log 2 of log 4, all of which is disagreement: log 2 of log 2."""
    assert both(voxel(1, 0, 0, 0), voxel(0, 1, 0, 0)) == pytest.approx((0.5, 1), abs=1e-6)


def test_members_that_hesitate_alike_do_not_disagree():
    even = voxel(0.25, 0.25, 0.25, 0.25)
    assert both(even, even) == pytest.approx((1, 0), abs=1e-6)


def test_mutual_information_by_hand():
    """(0.9, 0.1) and (0.5, 0.5), of two classes: H(0.7) - (H(0.9) + H(0.5)) / 2, over log 2."""

    def h(p):
        return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

    assert both(voxel(0.9, 0.1), voxel(0.5, 0.5)) == pytest.approx((h(0.7), h(0.7) - (h(0.9) + h(0.5)) / 2), abs=1e-6)


def test_a_member_alone_disagrees_with_nobody():
    assert both(voxel(0.5, 0.5)) == pytest.approx((1, 0), abs=1e-6)


def test_members_count_by_their_weights():
    """Three to one for a class, all certain: H(1/4) / log 2, and all of it over the entropy of the weights."""
    share = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    found = both(voxel(1, 0), voxel(0, 1), weights=[0.75, 0.25])
    assert found == pytest.approx((share / math.log(2), 1), abs=1e-6)


def test_the_most_uncertain_region_counts():
    certain, torn = torch.tensor([[SURE], [-SURE]]), torch.tensor([[SURE], [SURE]])
    assert both(certain, torn, regions=True) == pytest.approx((1, 1), abs=1e-6)  # of the second region
    even = torch.zeros((2, 1))
    assert both(even, even, regions=True) == pytest.approx((1, 0), abs=1e-6)


def test_maps_and_their_means_over_what_was_found(tmp_path):
    """Two members, certain; they differ in one of the two voxels of label b, and on background."""
    image = np.zeros((4, 5, 6), np.int16)
    like = nifti(tmp_path / "image.nii.gz", image)
    geometry = read_geometry(like)
    place = OnImage(geometry, ((0, 1, 2), (1, 0, 0)), (2, 0, 1), ((1, 6), (0, 4), (0, 5)))
    assert place.inside(image).shape == (5, 4, 5)
    parts = [torch.full((4, 5, 4, 5), -SURE) for _ in range(2)]
    for part in parts:
        part[0] = SURE
    decided = np.zeros_like(image, dtype=np.uint8)
    inside = place.inside(decided)
    for where, first, second in (((1, 2, 3), 2, 2), ((1, 2, 4), 2, 1), ((0, 0, 0), 0, 3)):
        for part, label in zip(parts, (first, second), strict=True):
            part[(slice(None), *where)] = -SURE
            part[(label, *where)] = SURE
        inside[where] = first
    writer = UncertaintyWriter(tmp_path / "u", "a", FOUR, place, like, (0.5, 0.5))
    feed([writer], parts, step=2)
    summary = writer.finish(decided)
    assert load(CaseUncertainty, tmp_path / "u" / "uncertainty.json") == summary
    assert summary.members == 2
    assert list(summary.labels) == ["b"]
    assert (summary.labels["b"].entropy, summary.labels["b"].disagreement) == pytest.approx((0.25, 0.5), abs=1e-4)
    assert summary.foreground == summary.labels["b"]
    found = nib.load(tmp_path / "u" / "disagreement.nii")
    np.testing.assert_array_equal(found.affine, nib.load(like).affine)
    values = np.asarray(found.dataobj).T
    assert values.sum() == pytest.approx(2, abs=1e-4)
    assert place.inside(values)[1, 2, 4] == place.inside(values)[0, 0, 0] == 1


def test_nothing_found_has_no_means(tmp_path):
    like = nifti(tmp_path / "image.nii", np.zeros((2, 3, 4), np.int16))
    place = OnImage(read_geometry(like), ((0, 1, 2), (0, 0, 0)), (0, 1, 2), ((0, 2), (0, 3), (0, 4)))
    writer = UncertaintyWriter(tmp_path / "u", "a", FOUR, place, like, (1.0,))
    feed([writer], [torch.zeros((4, 2, 3, 4))])
    summary = writer.finish(np.zeros((2, 3, 4), np.uint8))
    assert summary.foreground is None
    assert summary.labels == {}
    assert np.asarray(nib.load(tmp_path / "u" / "entropy.nii").dataobj).min() == 1
