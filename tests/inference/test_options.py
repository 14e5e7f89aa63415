"""Which tiles can be asked for."""

import pytest

from autoseg.errors import UsageError
from autoseg.inference.options import SPEEDS, InferenceOptions, options_at


@pytest.mark.parametrize("tile", [0.5, 0.0, -1.0, 9.0, float("nan"), float("inf")])
def test_tiles_of_no_such_size_are_refused(tile):
    with pytest.raises(UsageError, match="--tile"):
        InferenceOptions(tile=tile)


@pytest.mark.parametrize("step", [0.0, -0.5, 1.01, float("nan")])
def test_steps_that_leave_gaps_are_refused(step):
    with pytest.raises(UsageError, match=r"--step .* leaves gaps"):
        InferenceOptions(step=step)


def test_what_is_within_bounds_is_taken():
    assert InferenceOptions(step=1.0, tile=8.0).tile == 8.0
    assert InferenceOptions(tile=1.0).step == 0.5


def test_speeds_flip_less_and_overlap_tiles_less():
    assert list(SPEEDS) == ["accurate", "balanced", "fast"]
    assert [speed.step for speed in SPEEDS.values()] == [0.5, 0.5, 0.75]
    assert options_at("accurate") == InferenceOptions()
    assert options_at("balanced") == InferenceOptions(even_flips=True)
    assert options_at("fast") == InferenceOptions(step=0.75, mirroring=False)
