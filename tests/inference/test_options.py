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
    steps, mirrors = [[getattr(speed, name) for speed in SPEEDS.values()] for name in ("step", "mirrors")]
    assert list(SPEEDS) == ["accurate", "balanced", "fast"]
    assert steps == sorted(steps)
    assert mirrors[0] is None
    assert mirrors[1:] == sorted(mirrors[1:], reverse=True)
    assert options_at("accurate", (0, 1, 2)) == InferenceOptions()


def test_a_speed_keeps_the_last_of_the_planned_axes():
    """A plan without mirroring, or one that mirrors other axes, gets none that it does not have."""
    assert options_at("balanced", (0, 1, 2)).mirror_axes == (2,)
    assert options_at("balanced", (1, 0)).mirror_axes == (1,)
    none = options_at("balanced", ())
    assert (none.mirroring, none.mirror_axes) == (False, ())
    assert options_at("fast", (0, 1, 2)).mirroring is False
