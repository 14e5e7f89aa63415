"""Options of sliding-window inference: distance and size of tiles, flips to average; and the three speeds.

SPEEDS       name -> how the networks are run, whatever the plan; literal, and measured (benchmarks/README.md)
options_at   what a speed is
"""

from dataclasses import dataclass
from typing import Literal

from autoseg.errors import UsageError

SpeedName = Literal["accurate", "balanced", "fast"]
MOST_GROWTH = 8.0  # longest edges of tiles as a multiple of the patch's


@dataclass(frozen=True)
class InferenceOptions:
    """How to run the networks over an image."""

    step: float = 0.5  # distance of neighbouring tiles as a share of the tile
    mirroring: bool | None = None  # average over flips; None: as planned
    tile_batch: int | None = None  # tiles per forward pass; None: 1 or 2 on a CPU, elsewhere as planned
    tile: float | None = None  # longest tile edges as a multiple of the patch's; None: TILE_GROWTH of the device
    mirror_axes: tuple[int, ...] | None = None  # the axes to use of those that the plan mirrors, (Z, Y, X); None: all
    even_flips: bool = False  # flip an even number of axes at a time: half of all flips, each axis in half of them
    top_k: float | None = None  # share of a cascade's tiles to compute, the most worthwhile ones; None: all

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise UsageError(f"--step {self.step} leaves gaps between tiles", remedy="give a number > 0 and <= 1")
        if self.tile is not None and not 1 <= self.tile <= MOST_GROWTH:
            raise UsageError(
                f"--tile {self.tile} is not a valid multiple of the training patch",
                remedy=f"give a number from 1 to {MOST_GROWTH:g}",
            )
        if self.top_k is not None and not 0 < self.top_k <= 1:
            raise UsageError(
                f"--top-k {self.top_k:g} is not a share of the tiles", remedy="give one above 0, up to 100%"
            )


@dataclass(frozen=True)
class Speed:
    """How the networks are run at one of the speeds."""

    step: float  # distance of neighbouring tiles as a share of the tile
    flips: Literal["all", "even", "none"]  # of the axes that the plan mirrors; even: an even number of them at a time


SPEEDS: dict[SpeedName, Speed] = {
    "accurate": Speed(step=0.5, flips="all"),
    "balanced": Speed(step=0.5, flips="even"),
    "fast": Speed(step=0.75, flips="none"),
}


def options_at(speed: SpeedName) -> InferenceOptions:
    """Options of a speed."""
    chosen = SPEEDS[speed]
    mirroring = False if chosen.flips == "none" else None
    return InferenceOptions(step=chosen.step, mirroring=mirroring, even_flips=chosen.flips == "even")
