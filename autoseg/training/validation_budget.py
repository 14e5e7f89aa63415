"""What comes after the last step of a fold under a time budget: how long it takes, and what is done where that is long.

After training, the fold's validation cases are segmented, as `predict` does: over all mirrorings, in tiles half a tile
apart. Where that would take more than a third of the time, a cheaper way is chosen and said: fewer mirrorings, wider
steps, larger tiles. Where even the cheapest takes longer, training has its two thirds and the validation runs over,
which is announced with its length. No budget is refused for what comes after training.

Estimates rest on forward passes of one tile: the best of several when the fold begins, then what passes take while
training runs, looked at after every epoch. The clock reserves the time that follows from them, and the way
is chosen once more when the last step is done. It is recorded beside the predictions (`inference.json`), for whoever
scores them.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.splits import Split
from autoseg.messages import duration
from autoseg.models.build import tile_growth, tile_size
from autoseg.nn.sliding_window import tile_starts
from autoseg.planning.plan import Configuration, Plan
from autoseg.records import load, save
from autoseg.training.budget import Clock

STEP, WIDE_STEP = 0.5, 0.75  # of neighbouring tiles, as a share of the tile
WIDE_GROWTH = 2.0  # longest edges of the largest tiles, as a multiple of the patch's
RECENT = 5  # epochs whose middle is the estimate: one that another process held up spoils nothing
STEADY = 0.15  # an estimate may exceed its limit by this share before the way changes, and must stay below by as much
SLACK = 0.03  # of the budget, by which a validation may run over before a cheaper way is chosen for it
VALIDATION_MARGIN = 1.1  # wall time of segmenting cases over the bare forward passes
SECONDS_PER_CASE = 0.1  # reading, resampling and writing a case, where nobody measured it
CLOSING_SECONDS = 1.5  # after the last epoch: last checkpoint, last picture, and opening the trained fold
FILE = "inference.json"


@dataclass(frozen=True)
class Inference:
    """How the validation cases of a fold are segmented; JSON in the fold's folder."""

    mirror_axes: tuple[int, ...]  # (Z, Y, X) as the plan counts them, over whose flips it is averaged
    step: float = STEP  # distance of neighbouring tiles as a share of the tile
    tile: float = 1.0  # longest tile edges as a multiple of the patch's
    cheaper: bool = False  # than what `predict` does by default
    version: int = 1

    def __str__(self) -> str:
        mirrored = f"mirrored along {len(self.mirror_axes)} of the axes" if self.mirror_axes else "without mirroring"
        larger = f", of up to {self.tile:g} times the patch's edges" if self.tile > 1 else ""
        return f"{mirrored}, tiles {self.step:g} of a tile apart{larger}"


def ways(plan: Plan, device_type: str, dims: int) -> tuple[Inference, ...]:
    """How validation cases may be segmented, from what `predict` does to the cheapest.

    Mirroring goes first, along the first axes first: it gains least (benchmarks/README.md, section 1).
    """
    training = plan.training
    axes = tuple(sorted(axis for axis in training.mirror_axes if axis >= 3 - dims))
    full = Inference(axes if training.test_time_mirroring else (), STEP, tile_growth(device_type))
    fewer = [replace(full, mirror_axes=full.mirror_axes[n:], cheaper=True) for n in range(1, len(full.mirror_axes) + 1)]
    wide = replace(full, mirror_axes=(), step=WIDE_STEP, cheaper=True)
    return (full, *fewer, wide, replace(wide, tile=max(full.tile, WIDE_GROWTH)))


def patches(configuration: Configuration, shapes: Sequence[Sequence[int]], way: Inference) -> float:
    """How many forward passes of one patch it takes to segment images of these shapes (Z, Y, X)."""
    total = 0.0
    for shape in shapes:
        tile = tile_size(configuration, shape, growth=way.tile, step=way.step)
        share = 1.0 if len(tile) == 3 else float(shape[0])
        for size, edge, patch in zip(shape[-len(tile) :], tile, configuration.patch_size, strict=True):
            share *= len(tile_starts(size, edge, way.step)) * edge / patch
        total += share
    return total * 2 ** len([axis for axis in way.mirror_axes if axis >= 3 - configuration.dims])


class AfterTraining:
    """How long it takes from the last step to the end of a fold, and which way its validation cases are segmented.

    Args:
        ways: from what is wanted to the cheapest.
        forward_passes: of one patch, for all validation cases together, one number per way.
        forward_seconds: of one patch, as measured so far.
        watching_seconds: of what follows an epoch's last step: the fixed samples.
        beside_seconds: reading, resampling and writing all validation cases.

    `way` is the one that is due.
    """

    def __init__(
        self,
        ways: Sequence[Inference],
        forward_passes: Sequence[float],
        *,
        forward_seconds: float,
        watching_seconds: float,
        beside_seconds: float,
    ) -> None:
        self.ways, self.forward_passes = tuple(ways), tuple(forward_passes)
        self.forward_seconds, self.watching_seconds = forward_seconds, watching_seconds
        self.beside_seconds = beside_seconds
        self._seen: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._chosen = 0

    @property
    def way(self) -> Inference:
        return self.ways[self._chosen]

    def validation_seconds(self, number: int | None = None) -> float:
        """Wall time of segmenting the validation cases, in one of the ways or in that which is due."""
        passes = self.forward_passes[self._chosen if number is None else number]
        return VALIDATION_MARGIN * self.forward_seconds * passes + self.beside_seconds

    def seconds(self, number: int | None = None) -> float:
        """Wall time from the last step to the end of the fold."""
        return self.watching_seconds + CLOSING_SECONDS + self.validation_seconds(number)

    def begin(self, clock: Clock) -> str:
        """Choose by what the start measured, and keep the time back; returns what to say, or "" without a budget."""
        if clock.budget_seconds is None:
            return ""
        self._chosen = self._first_within(clock.most_reserved, self.seconds)
        clock.reserve(self.seconds())
        clock.watching_seconds = self.watching_seconds
        return self._announcement(clock) if any(self.forward_passes) else ""  # no case is held out

    def observe(self, forward: Sequence[float], watching_seconds: float) -> None:
        """Add what was measured after an epoch: seconds of single forward passes, and of watching the samples."""
        self._seen.append((statistics.median(forward), watching_seconds))
        passes, watching = zip(*self._seen, strict=True)
        self.forward_seconds, self.watching_seconds = statistics.median(passes), statistics.median(watching)

    def follow(self, clock: Clock) -> str:
        """Correct what the clock reserves, and the way if it has to change; returns what to say, or ""."""
        limit, before = clock.most_reserved, self._chosen
        best = self._first_within(limit, self.seconds)
        first = len(self._seen) == 1  # what the start measured was a guess
        if first or (best > before and self.seconds(before) > (1 + STEADY) * limit):
            self._chosen = best
        elif best < before:
            self._chosen = min(before, self._first_within((1 - STEADY) * limit, self.seconds))
        clock.reserve(self.seconds(), training=True)
        clock.watching_seconds = self.watching_seconds
        return self._announcement(clock) if self._chosen != before else ""

    def settle(self, clock: Clock) -> str:
        """Choose for good when the last step is done, by the time that is left; returns what to say, or ""."""
        if clock.budget_seconds is None:
            return ""
        before, left = self._chosen, clock.remaining()
        limit = left + SLACK * clock.budget_seconds - CLOSING_SECONDS
        self._chosen = self._first_within(limit, self.validation_seconds)
        if self._chosen == before:
            return ""
        seconds = duration(self.validation_seconds())
        return f"{duration(max(left, 0))} left: segmenting the validation cases {self.way}, in about {seconds}"

    def _first_within(self, limit: float, seconds_of: Callable[[int], float]) -> int:
        fitting = (number for number in range(len(self.ways)) if seconds_of(number) <= limit)
        return next(fitting, len(self.ways) - 1)

    def _announcement(self, clock: Clock) -> str:
        assert clock.budget_seconds is not None
        budget, seconds = duration(clock.budget_seconds), self.seconds()
        message = f"validation takes about {duration(seconds)} of the {budget}"
        if self._chosen:
            full = f"full validation would take about {duration(self.seconds(0))} of the {budget}"
            message = f"{full}: validating {self.way} instead, in about {duration(seconds)}"
        if seconds > (1 + STEADY) * clock.most_reserved:
            over = clock.budget_seconds - clock.reserve_seconds + seconds
            training = duration(clock.budget_seconds - clock.reserve_seconds)
            message += f"; training ends after {training}, validation overruns the budget, to about {duration(over)}"
        return message


def estimate(
    store: CaseStore,
    split: Split,
    plan: Plan,
    configuration: Configuration,
    *,
    device_type: str,
    watched: int,
    forward_seconds: float,
    beside_seconds: float | None,
) -> AfterTraining:
    """The estimate a fold begins with.

    Args:
        watched: samples that are looked at after an epoch.
        forward_seconds: of one patch.
        beside_seconds: of all that is done for the validation cases beside forward passes; None: not measured.
    """
    possible = ways(plan, device_type, configuration.dims)
    shapes = [store.info(case).shape for case in split.validation]
    passes = [sum(_passes(plan, configuration, shapes, way)) for way in possible]
    if beside_seconds is None:
        beside_seconds = SECONDS_PER_CASE * len(split.validation)
    return AfterTraining(
        possible, passes, forward_seconds=forward_seconds, watching_seconds=watched * forward_seconds,
        beside_seconds=beside_seconds,
    )  # fmt: skip


def _passes(
    plan: Plan, configuration: Configuration, shapes: Sequence[Sequence[int]], way: Inference
) -> Iterator[float]:
    """Forward passes of a configuration, and of those its cascade goes through before, at their own spacing.

    A pass of the previous stage counts as one of its own: their patches hold about as much.
    """
    yield patches(configuration, shapes, way)
    if configuration.cascade_from:
        before = plan.configurations[configuration.cascade_from]
        factors = [a / b for a, b in zip(configuration.spacing, before.spacing, strict=True)]
        coarser = [[max(1, round(s * f)) for s, f in zip(shape, factors, strict=True)] for shape in shapes]
        yield from _passes(plan, before, coarser, way)


def keep_inference(folder: Path, way: Inference) -> None:
    """Write down how a fold's validation cases are segmented, in the fold's folder."""
    save(folder / FILE, way)


def inference_of(folder: Path) -> Inference | None:
    """How a fold's validation cases were segmented; None where nothing was written down."""
    return load(Inference, folder / FILE) if (folder / FILE).exists() else None
