"""Two voxels and a share for each voxel of a new axis, against the operators of `resample` and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.imaging.resample import resample_probabilities
from autoseg.imaging.taps import taps

SIZES = st.integers(1, 60)


def test_linear_taps_by_hand():
    # centres of 4 cells over 2 lie at -0.25, 0.25, 0.75, 1.25; the outer two are clamped to the edge
    four = taps(2, 4)
    assert four.low.tolist() == [0, 0, 0, 1]
    assert four.high.tolist() == [0, 1, 1, 1]
    assert four.share.tolist() == [0, 0.25, 0.75, 0]
    np.testing.assert_array_equal(four.matrix(), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_nearest_taps_by_hand():
    two = taps(5, 2, nearest=True)  # centres of 2 cells over 5 lie in the cells 1 (1.25) and 3 (3.75)
    assert two.low.tolist() == two.high.tolist() == [1, 3]
    assert not two.share.any()


@given(SIZES, SIZES, st.booleans())
def test_a_ramp_equals_the_dense_resampling(size, new_size, nearest):
    ramp = np.arange(size, dtype=np.float32) ** 2
    axis = taps(size, new_size, nearest=nearest)
    spacing = (5.0, 1.0, 1.0) if nearest else (1.0, 1.0, 1.0)
    expected = resample_probabilities(
        ramp.reshape(1, size, 1, 1), spacing, (1.0, 1.0, 1.0), (new_size, 1, 1), anisotropy_threshold=3.0
    ).ravel()
    np.testing.assert_allclose((1 - axis.share) * ramp[axis.low] + axis.share * ramp[axis.high], expected, rtol=1e-6)
    np.testing.assert_allclose(axis.matrix() @ ramp, expected, rtol=1e-6)
    assert axis.is_identity == (size == new_size)


@given(SIZES, SIZES, st.integers(1, 20), st.booleans())
def test_every_output_can_be_made_once(size, new_size, step, nearest):
    """Going over the inputs a few at a time, each output comes once and in order, and never before its inputs."""
    axis = taps(size, new_size, nearest=nearest)
    made = []
    for start in range(0, size, step):
        outputs = axis.outputs(slice(start, min(start + step, size)))
        made += range(outputs.start, outputs.stop)
        assert (axis.high[outputs] < start + step).all()
        assert (axis.low[outputs] >= start - 1).all()
    assert made == [*range(new_size)]


def test_a_part_is_the_same_of_fewer_voxels():
    axis = taps(7, 19)
    values = np.random.default_rng(0).normal(size=7).astype(np.float32)
    part = axis.part(axis.outputs(slice(3, 6)), 2, 4)
    expected = (axis.matrix() @ values)[axis.outputs(slice(3, 6))]
    np.testing.assert_allclose(part.matrix() @ values[2:6], expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_one_voxel_is_everywhere_the_same(size):
    assert taps(1, size).low.tolist() == [0] * size
    assert taps(1, size).high.tolist() == [0] * size
