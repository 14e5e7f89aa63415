"""Labels and rows made of streamed blocks, against the whole volume resampled at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.imaging.resample import resample_probabilities
from autoseg.imaging.taps import taps
from autoseg.nn import label_rows
from autoseg.nn.label_rows import LabelRows, resampled_rows
from autoseg.nn.rolling_sums import Block
from autoseg.nn.sliding_window import Tiling, stream_logits

CPU = torch.device("cpu")
QUICK = settings(max_examples=80, deadline=None)
SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
ONE, THICK = (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)


def axes_of(shape, new_shape, separate=None):
    return tuple(taps(a, b, nearest=n == separate) for n, (a, b) in enumerate(zip(shape, new_shape, strict=True)))


def dense(logits, new_shape, separate=None):
    spacing = ONE if separate is None else tuple(5.0 if axis == separate else 1.0 for axis in range(3))
    return resample_probabilities(logits.numpy(), spacing, ONE, new_shape, anisotropy_threshold=3.0)


def blocks_of(logits, **options):
    """A network that returns its input, so that the image is the logits."""
    tiling = Tiling((4, 5, 6), 1.0)
    return stream_logits(logits, [lambda tiles: tiles], tiling, out_channels=len(logits), device=CPU, **options)


def require_ties(scores, found):
    chosen = np.take_along_axis(scores, found[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(chosen, scores.max(axis=0), atol=1e-5)


@pytest.mark.thorough
@QUICK
@given(SHAPES, SHAPES, st.sampled_from([None, 0, 1, 2]), st.integers(0, 99))
def test_labels_of_streamed_blocks(shape, new_shape, separate, seed):
    """Strips and layers of every size; the last line and row of one are the neighbours of the next one's first."""
    logits = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))
    labels = np.full(new_shape, 255, np.uint8)
    with LabelRows(axes_of(shape, new_shape, separate), None, labels) as rows:
        for block in blocks_of(logits):
            rows.take(block)
            block.logits.fill_(torch.nan)  # nothing of a block is looked at again
    require_ties(dense(logits, new_shape, separate if shape != new_shape else None), labels)


@QUICK
@given(SHAPES, SHAPES, st.integers(0, 99))
def test_regions_of_streamed_blocks(shape, new_shape, seed):
    logits = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    labels = np.full(new_shape, 255, np.uint8)
    with LabelRows(axes_of(shape, new_shape), (3, 1, 2), labels) as rows:
        for block in blocks_of(logits):
            rows.take(block)
    scores, expected = dense(logits, new_shape), np.zeros(new_shape, np.uint8)
    for score, index in zip(scores, (3, 1, 2), strict=True):
        expected[score > 0] = index
    sure = (np.abs(scores) > 1e-5).all(axis=0)
    np.testing.assert_array_equal(labels[sure], expected[sure])


@QUICK
@given(SHAPES, SHAPES, st.sampled_from([None, 0, 1, 2]))
def test_rows_of_streamed_blocks(shape, new_shape, separate):
    logits = torch.randn(3, *shape)
    rows = list(resampled_rows(blocks_of(logits, whole_rows=True), axes_of(shape, new_shape, separate)))
    found = torch.stack(rows, dim=1).numpy()
    np.testing.assert_allclose(found, dense(logits, new_shape, separate if shape != new_shape else None), atol=1e-5)


@pytest.mark.parametrize("heads", [2, 300])
def test_an_unchanged_grid_takes_the_largest_logit(heads):
    logits = torch.randn(heads, 5, 6, 7)
    labels = np.zeros((5, 6, 7), np.min_scalar_type(heads - 1))
    with LabelRows(axes_of((5, 6, 7), (5, 6, 7)), None, labels) as rows:
        for block in blocks_of(logits):
            rows.take(block)
    np.testing.assert_array_equal(labels, logits.argmax(dim=0))


@pytest.mark.parametrize("regions", [None, (3, 1, 2)])
@pytest.mark.parametrize("new_shape", [(9, 20, 13), (4, 11, 12), (3, 4, 5)])
def test_a_device_decides_the_same(regions, new_shape, monkeypatch):
    logits = torch.randn(3, 4, 11, 12)
    found = []
    for on_device in (False, True):
        if on_device:
            monkeypatch.setattr(label_rows, "_on_cpu", lambda tensor: False)
        labels = np.zeros(new_shape, np.uint8)
        with LabelRows(axes_of((4, 11, 12), new_shape), regions, labels) as rows:
            for block in blocks_of(logits):
                rows.take(block)
        streamed = list(resampled_rows(blocks_of(logits, whole_rows=True), axes_of((4, 11, 12), new_shape)))
        found.append((labels, torch.stack(streamed)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_little_is_kept_between_blocks():
    """One row of every strip with a line of the strip before, and one line of the last strip."""
    logits = torch.randn(2, 40, 20, 6)
    labels = np.zeros((80, 40, 12), np.uint8)
    with LabelRows(axes_of((40, 20, 6), labels.shape), None, labels) as rows:
        for start in range(0, 40, 4):
            for line in range(0, 20, 5):
                lines = slice(line, line + 5)
                block = logits[:, start : start + 4, lines]
                rows.take(Block(slice(start, start + 4), lines, block, torch.ones_like(block[0])))
                kept = [row.logits.size for row in rows._last.values()]
                assert sum(kept) <= 2 * (20 + 3) * 6
    require_ties(dense(logits, labels.shape), labels)
