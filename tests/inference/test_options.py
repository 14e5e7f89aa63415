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


def test_speeds_flip_fewer_axes_and_overlap_tiles_less():
    steps, mirrored = [[getattr(speed, name) for speed in SPEEDS.values()] for name in ("step", "mirrored")]
    assert list(SPEEDS) == ["accurate", "balanced", "fast"]
    assert steps == sorted(steps)
    assert mirrored == sorted(mirrored, reverse=True)
    assert mirrored[0] == 1
    assert options_at("accurate", (0, 1, 2)) == InferenceOptions()


def test_balanced_keeps_half_of_the_planned_axes_the_last_ones():
    """Of three axes one, of two one, of one none: fewer passes than planned, always."""
    for planned, kept in (((0, 1, 2), (2,)), ((2, 1), (2,)), ((1, 0), (1,)), ((2,), ()), ((), ())):
        options = options_at("balanced", planned)
        assert (options.mirroring, options.mirror_axes) == (bool(kept), kept)
    assert options_at("fast", (0, 1, 2)).mirroring is False
