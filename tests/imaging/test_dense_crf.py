"""Mean field with truncated kernels beside the sum over all pairs, in closed forms, and whatever the blocks are."""

import itertools
import math

import numpy as np
import pytest

from autoseg.imaging.dense_crf import DenseCrf, _offsets, mean_field, refine

SPACING = (2.0, 1.0, 0.5)


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def by_pairs(scores, image, spacing, crf, radius):
    """Q (K, Z, Y, X) float64 by loops over voxels and pairs, all of them refined."""
    classes, *shape = scores.shape
    voxels = list(itertools.product(*map(range, shape)))
    beliefs = {v: softmax(scores[(slice(None), *v)].astype(float)) for v in voxels}
    for _ in range(crf.iterations):
        new = {}
        for v in voxels:
            sums, totals = np.zeros((2, classes)), np.zeros(2)
            for w in voxels:
                if v == w or any(abs(a - b) > r for a, b, r in zip(v, w, radius, strict=True)):
                    continue
                far = sum(((a - b) * s) ** 2 for a, b, s in zip(v, w, spacing, strict=True))
                unlike = sum((channel[v] - channel[w]) ** 2 for channel in image.astype(float))
                near = math.exp(-far / (2 * crf.reach**2))
                for number, weight in enumerate((near, near * math.exp(-unlike / (2 * crf.contrast**2)))):
                    sums[number] += weight * beliefs[w]
                    totals[number] += weight
            pull = crf.smoothness * sums[0] / totals[0] + crf.appearance * sums[1] / totals[1]
            new[v] = softmax(scores[(slice(None), *v)] + pull)
        beliefs = new
    found = np.zeros(scores.shape)
    for v, shares in beliefs.items():
        found[(slice(None), *v)] = shares
    return found


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 6, 7)])
def test_mean_field_is_the_sum_over_all_pairs(shape):
    rng = np.random.default_rng(0)
    scores, image = rng.normal(size=(3, *shape)).astype(np.float32), rng.normal(size=(2, *shape)).astype(np.float32)
    crf = DenseCrf(1.0, 0.7, 1.3, 0.8, iterations=3)
    radius = tuple(min(r, n - 1) for r, n in zip(crf.radius(SPACING), shape, strict=True))
    assert radius == ((1, 2, 4) if shape[0] > 1 else (0, 2, 4))
    active = np.ones(shape, bool)
    found = mean_field(scores, image / crf.contrast, active, _offsets(radius, SPACING, crf.reach), crf)
    np.testing.assert_allclose(found, by_pairs(scores, image, SPACING, crf, radius), atol=1e-5)


def test_weights_are_the_same_without_a_cache(monkeypatch):
    rng = np.random.default_rng(1)
    scores, image = rng.normal(size=(2, 3, 8, 8)).astype(np.float32), rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    crf, active = DenseCrf(1.0, 1.0, 1.0), rng.random((3, 8, 8)) > 0.4
    offsets = _offsets((1, 2, 2), (1.0, 1.0, 1.0), 1.0)
    kept = mean_field(scores, image, active, offsets, crf)
    monkeypatch.setattr("autoseg.imaging.dense_crf.CACHED", 0)
    np.testing.assert_array_equal(mean_field(scores, image, active, offsets, crf), kept)


def noisy(shape=(6, 24, 26), seed=0):
    """A bright box on a dark ground, and scores that are right on average."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    truth[:, 6:17, 8:20] = 1
    image = (100.0 * truth + rng.normal(0, 5, shape))[None].astype(np.float32)
    margin = np.where(truth, 1.0, -1.0) + rng.normal(0, 1.5, shape)
    scores = np.stack([np.zeros(shape), margin]).astype(np.float16)
    return truth, image, scores, scores.argmax(axis=0).astype(np.uint8)


@pytest.mark.thorough
@pytest.mark.parametrize("block", [5, 9, 16])
def test_blocks_do_not_show(block):
    _, image, scores, labels = noisy()
    crf = DenseCrf(1.0, 1.0, 2.0, iterations=2)
    whole, parts = labels.copy(), labels.copy()
    refine(whole, scores, image, (1.0, 1.0, 1.0), crf)
    refine(parts, scores, image, (1.0, 1.0, 1.0), crf, block=block)
    assert (whole != labels).any()
    np.testing.assert_array_equal(parts, whole)


def test_noise_gives_way_to_what_looks_alike():
    truth, image, scores, labels = noisy()
    refined = labels.copy()
    refine(refined, scores, image, (1.0, 1.0, 1.0), DenseCrf(1.0, 0.0, 6.0, 0.5))
    assert (refined != truth).mean() < 0.02 < 0.2 < (labels != truth).mean()


def test_weights_of_zero_change_nothing():
    _, image, scores, labels = noisy()
    refined = labels.copy()
    refine(refined, scores, image, (1.0, 1.0, 1.0), DenseCrf(1.0, 0.0, 0.0))
    np.testing.assert_array_equal(refined, labels)


def test_what_is_far_from_a_boundary_stays():
    labels = np.zeros((1, 1, 40), np.uint8)
    labels[..., 20:] = 1
    scores = np.zeros((2, 1, 1, 40), np.float32)
    scores[0, ..., 20:] = 1.0  # contradicts the labels
    refine(labels, scores, np.zeros((1, 1, 1, 40), np.float32), (1.0, 1.0, 1.0), DenseCrf(1.0, 1.0, 0.0))
    assert np.flatnonzero(np.diff(labels[0, 0].astype(int))).tolist() == [21]  # two voxels beyond the boundary


def test_a_reach_below_a_voxel_changes_nothing():
    _, image, scores, labels = noisy()
    refined = labels.copy()
    refine(refined, scores, image, (5.0, 5.0, 5.0), DenseCrf(2.0, 50.0, 0.0))
    np.testing.assert_array_equal(refined, labels)


def test_in_words():
    assert str(DenseCrf(2.0, 1, 0)) == "CRF of 2 mm, smoothness 1"
    assert str(DenseCrf(0.75, 0, 5, 0.25)) == "CRF of 0.75 mm, smoothness 0, appearance 5 at contrast 0.25"
