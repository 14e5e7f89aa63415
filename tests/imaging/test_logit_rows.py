"""Rows of labels and of logits, against the dense resampling; what is left out changes nothing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.imaging import logit_rows as module
from autoseg.imaging.logit_rows import Plane, Row, decide_row, decide_rows, resample_row
from autoseg.imaging.resample import resample_probabilities
from autoseg.imaging.taps import taps

QUICK = settings(max_examples=150, deadline=None)
ONE = (1.0, 1.0, 1.0)


def dense(logits: np.ndarray, shape) -> np.ndarray:
    return resample_probabilities(logits, ONE, ONE, shape, anisotropy_threshold=3.0)


def rows_of(logits: np.ndarray, shape, edge: int, use) -> list:
    """What `use(low, high, shares, plane)` makes of all rows of the new grid, those between two old rows together."""
    axis, lines, columns = (taps(a, b) for a, b in zip(logits.shape[1:], shape, strict=True))
    plane = Plane(lines, columns, edge)
    rows, found, start = [Row(np.ascontiguousarray(logits[:, z]), edge) for z in range(logits.shape[1])], [], 0
    while start < shape[0]:
        same = (axis.low == axis.low[start]) & (axis.high == axis.high[start])
        part = slice(start, int(np.flatnonzero(same)[-1]) + 1)
        found += use(rows[axis.low[start]], rows[axis.high[start]], axis.share[part], plane)
        start = part.stop
    return found


def labels_of(logits, shape, edge, regions, pool=None) -> np.ndarray:
    def use(low, high, shares, plane):
        out = np.full((len(shares), *plane.shape), 255, np.uint8)
        decide_rows(low, high, shares, plane, regions, out, pool)
        return list(out)

    return np.stack(rows_of(logits, shape, edge, use))


def ties(scores: np.ndarray, found: np.ndarray) -> int:
    """Voxels whose label is not the largest of the dense scores; each must be a tie within float32 rounding."""
    best = scores.max(axis=0)
    chosen = np.take_along_axis(scores, found[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, best, atol=2e-6 * np.abs(scores).max(initial=1))
    return int((found != scores.argmax(axis=0)).sum())


SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


@pytest.fixture(autouse=True)
def _always_left_out(monkeypatch):
    monkeypatch.setattr(module, "MANY", 1)


@st.composite
def organs(draw):
    """Logits with organs in them: one class far above the others in blobs, noise, and equal values here and there."""
    shape, classes = draw(SHAPES), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = rng.normal(size=(classes, *shape)) * draw(st.sampled_from([0.0, 0.01, 1.0]))
    blobs = ndimage.zoom(rng.integers(0, classes, (3, 3, 3)), [n / 3 for n in shape], order=0)
    blobs = np.resize(blobs, shape)
    logits += draw(st.sampled_from([0.0, 1.0, 20.0])) * (np.arange(classes)[:, None, None, None] == blobs)
    if draw(st.booleans()):
        logits = logits.round(1)
    return logits.astype(np.float32)


@pytest.mark.thorough
@QUICK
@given(organs(), SHAPES, st.sampled_from([1, 2, 3, 4, 16]))
def test_labels_equal_the_dense_ones(logits, shape, edge):
    """Whatever is left out, at any size of the blocks; coarser grids too."""
    scores = dense(logits, shape)
    found = labels_of(logits, shape, edge, None)
    assert found.shape == tuple(shape)
    ties(scores, found)


@pytest.mark.thorough
@QUICK
@given(organs(), SHAPES, st.sampled_from([1, 2, 4, 16]), st.integers(0, 99))
def test_regions_equal_the_dense_ones(logits, shape, edge, seed):
    logits = logits - np.float32(0.5)
    scores = dense(logits, shape)
    regions = np.random.default_rng(seed).permutation(len(logits)) + 1
    found = labels_of(logits, shape, edge, regions)
    expected = np.zeros(shape, np.uint8)
    for score, index in zip(scores, regions, strict=True):
        expected[score > 0] = index
    near = (np.abs(scores) < 1e-6).any(axis=0)
    np.testing.assert_array_equal(found[~near], expected[~near])


@QUICK
@given(organs(), SHAPES)
def test_logits_equal_the_dense_ones_and_torchs(logits, shape):
    def use(low, high, shares, plane):
        return [resample_row(low, high, share, plane) for share in shares]

    found = np.stack(rows_of(logits, shape, 4, use), axis=1)
    assert found.dtype == np.float32
    size = max(1.0, float(np.abs(logits).max()))
    np.testing.assert_allclose(found, dense(logits, shape), atol=1e-6 * size)
    torchs = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], shape, mode="trilinear")[0]
    np.testing.assert_allclose(found, torchs, atol=1e-5 * size)


def test_random_logits_have_no_ties():
    logits = np.random.default_rng(0).normal(size=(7, 9, 40, 37)).astype(np.float32)
    assert ties(dense(logits, (20, 90, 100)), labels_of(logits, (20, 90, 100), 16, None)) == 0


def test_threads_change_nothing(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(7, 3, 40, 37)).astype(np.float32)
    alone = labels_of(logits, (5, 90, 100), 4, None)
    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(labels_of(logits, (5, 90, 100), 4, None, pool), alone)


def test_equal_logits_give_the_lowest_class():
    logits = np.zeros((5, 2, 6, 6), np.float32)
    logits[0] = -1
    assert (labels_of(logits, (3, 11, 13), 2, None) == 1).all()


def test_a_class_that_is_second_everywhere_may_win_between():
    """0.9 beside 1 and 0 on both sides: halfway it is 0.9 against 0.5. A block is not decided by its corners."""
    logits = np.array([[1, 0], [0.9, 0.9], [0, 1]], np.float32).reshape(3, 1, 1, 2)
    assert labels_of(logits, (1, 1, 7), 16, None).ravel().tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_only_classes_that_can_win_are_computed(monkeypatch):
    """Two organs meet at a plane in a volume of 64: of 20 classes, 2 are computed, where their blocks meet."""
    logits = np.random.default_rng(0).normal(size=(20, 2, 64, 64)).clip(-3, 3).astype(np.float32)
    logits[3, :, :, :24] += 10
    logits[7, :, :, 24:] += 10
    computed, real = [], module._scores
    monkeypatch.setattr(module, "_scores", lambda *a: computed.append((a[4].inputs, a[5].tolist())) or real(*a))
    found = labels_of(logits, (4, 128, 128), 16, None)
    assert set(found[..., :48].ravel()) == {3}
    assert set(found[..., 48:].ravel()) == {7}
    assert {(columns.start, columns.stop, *classes) for columns, classes in computed} == {(16, 33, 3, 7)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13, 300])
def test_the_largest_by_rounds(count):
    scores = np.random.default_rng(count).integers(0, 5, (count, 6, 7)).astype(np.float32)
    expected = scores.argmax(axis=0)
    dtype = np.uint8 if count < 256 else np.uint16
    np.testing.assert_array_equal(decide_row(scores.copy(), None, np.dtype(dtype)), expected)


def test_regions_of_a_row_are_written_in_their_order():
    logits = np.array([[1, 1, -1, -1], [-1, 1, 1, 0]], np.float32)
    assert decide_row(logits, (2, 1), np.dtype(np.uint8)).tolist() == [2, 1, 1, 0]
