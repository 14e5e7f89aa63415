"""Training speed of a CPU, and the step size at which a fold still makes enough steps in its time.

A rate is floating-point operations per second of whole training steps, one for 2-D networks and one for 3-D ones, as
`autoseg.nn.rate` measures it. It is rounded to steps of a factor of ROUNDED_TO, so that the noise of a measurement does
not change a plan, and stored with each configuration's cost.

The limits of `budget.CPU` were found on REFERENCE, and are the upper bound: no measurement shows that larger steps
train better. A CPU on which a fold would not make ENOUGH_STEPS within them gets smaller steps, but never below
SMALLEST_STEP.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoseg.planning.budget import Budget
from autoseg.planning.plan import Plan

# Two cores with AVX-512 bf16 and AMX, in everyday use: a step takes 0.14 s for hippocampus in 3-D, 0.38 s for axon_sem
# (benchmarks/README.md, sections 8 and 15).
REFERENCE: dict[int, float] = {2: 185e9, 3: 245e9}
ROUNDED_TO = 1.5
# Of fifteen folds of hippocampus, thirteen had reached their plateau by then (benchmarks/README.md, section 1).
ENOUGH_STEPS = 6000
STEPS_SHARE = 0.9  # share of a fold's time for its steps; the rest is start-up, validation and checkpoints
DEFAULT_SECONDS = 3600.0  # of a fold, by default
STEP_OVERHEAD = 0.01  # seconds of a step, whatever its size: calls of its some 500 operations
# Operations per element of the CPU recipe's U-Nets; they range from 1430 to 1780 in 2-D, from 2230 to 4180 in 3-D.
FLOPS_PER_ELEMENT = {2: 1625.0, 3: 3100.0}
# Elements of two samples of 128 x 128 and 32 x 32 x 32 voxels: smaller patches are not halved down to 4 voxels three
# times, which is where nnU-Net's smallest plans end.
SMALLEST_STEP = {2: 5.2e6, 3: 7.2e6}


@dataclass(frozen=True)
class Pace:
    """A CPU's rate, and the time a fold has."""

    flops_per_second: Mapping[int, float]  # dimensions of a network -> rate, rounded
    seconds: float = DEFAULT_SECONDS  # wall time of a fold
    source: str = "the reference machine"

    @property
    def seconds_per_step(self) -> float:
        """Maximum time of a step such that a fold makes enough of them."""
        return STEPS_SHARE * self.seconds / ENOUGH_STEPS

    def step_seconds(self, dims: int, flops: float) -> float:
        """Predicted wall time of a training step with this many operations."""
        return STEP_OVERHEAD + flops / self.flops_per_second[dims]

    def limits(self, budget: Budget) -> Budget:
        """A CPU's budget, limited to steps of which a fold makes enough."""
        shares = {dims: self._elements(budget, dims) / budget.elements[dims] for dims in budget.elements}
        return replace(
            budget,
            elements={dims: count * shares[dims] for dims, count in budget.elements.items()},
            patch_elements={dims: count * shares[dims] for dims, count in budget.patch_elements.items()},
        )

    def _elements(self, budget: Budget, dims: int) -> float:
        affordable = self.seconds_per_step * self.flops_per_second[dims] / FLOPS_PER_ELEMENT[dims]
        return min(budget.elements[dims], max(SMALLEST_STEP[dims], float(f"{affordable:.3g}")))


def rounded(rate: float, dims: int) -> float:
    """A rate as used in plans: the nearest of REFERENCE times a power of ROUNDED_TO."""
    power = round(math.log(rate / REFERENCE[dims], ROUNDED_TO))
    return float(f"{REFERENCE[dims] * ROUNDED_TO**power:.3g}")


def pace(
    rates: Mapping[int, float] | None = None, seconds: float | None = None, source: str = "the reference machine"
) -> Pace:
    """The pace of a CPU with these measured rates; without any, of the reference machine."""
    known = REFERENCE if rates is None else {dims: rounded(rates[dims], dims) for dims in REFERENCE}
    return Pace(dict(known), seconds or DEFAULT_SECONDS, source)


def pace_of(plan: Plan) -> Pace | None:
    """The pace that a plan was made for; None where it has none: for a GPU."""
    known = {c.dims: c.cost.flops_per_second for c in plan.configurations.values() if c.cost}
    rates = {dims: rate for dims, rate in known.items() if rate}
    if plan.device != "cpu" or not rates:
        return None
    slowdown = min(rate / REFERENCE[dims] for dims, rate in rates.items())
    for dims, rate in REFERENCE.items():  # a plan of only slices has no rate for volumes, and needs none
        rates.setdefault(dims, rate * slowdown)
    return Pace(rates, plan.training.time_budget_seconds or DEFAULT_SECONDS, "the machine it was planned on")


def steps_in(seconds: float, seconds_per_step: float) -> int:
    """Steps that a fold of this many seconds makes, to two digits."""
    return int(float(f"{STEPS_SHARE * seconds / seconds_per_step:.2g}"))
