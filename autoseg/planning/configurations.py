"""Section 3 of the planning rules: patch, network and batch of one configuration.

A `Sizing` limits the cost of a plan: in elements, as in nnU-Net v2 and for the time of a CPU, or in bytes of a GPU's
memory.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoseg.errors import UsageError
from autoseg.messages import typed_duration
from autoseg.planning import sparsity, topology
from autoseg.planning.budget import GPU, HEADROOM, limited_batch
from autoseg.planning.cost import Step, cost_of
from autoseg.planning.pace import ENOUGH_STEPS, steps_in
from autoseg.planning.plan import Configuration, Cost, NetworkSpec
from autoseg.planning.request import Request, text
from autoseg.planning.space import Space
from autoseg.planning.topology import Fit, Topology

GIGA = 1e9
USUAL_BYTES, USUAL_BYTES_PER_ELEMENT = 1.7e9, 6.0  # of a step: where a search starts


@dataclass(frozen=True)
class View:
    """The dataset as one configuration sees it: the last `dims` axes of a space."""

    name: str
    dims: int
    space: Space
    channels: int  # seen by its network
    cases: int

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(map(float, self.space.spacing[-self.dims :]))

    @property
    def median_shape(self) -> tuple[float, ...]:
        return tuple(map(float, self.space.median_shape[-self.dims :]))

    @property
    def voxels(self) -> float:
        """Approximate number of voxels of all images together."""
        return math.prod(self.space.median_shape.tolist()) * self.cases


@dataclass(frozen=True)
class Sizing:
    """Cost of patches and batches in elements."""

    asked: Request
    view: View

    def spec(self, chosen: Topology) -> NetworkSpec:
        """The network for a topology."""
        budget, layout = self.asked.budget, self.asked.layout
        return NetworkSpec(
            name=self.asked.network,
            features=topology.feature_counts(chosen.stages, budget.base_features, budget.max_features[self.view.dims]),
            strides=chosen.strides,
            kernel_sizes=chosen.kernel_sizes,
            blocks=layout.encoder_blocks(chosen.stages),
            decoder_blocks=(layout.decoder_blocks,) * (chosen.stages - 1),
        )

    def elements(self, chosen: Topology) -> int:
        """Feature maps of one sample's forward pass."""
        spec, layout = self.spec(chosen), self.asked.layout
        return topology.feature_map_elements(
            chosen, spec.features, self.asked.table_entries, spec.blocks, spec.decoder_blocks, layout.residual
        )

    @property
    def limit(self) -> float:
        """Maximum cost of a patch."""
        return self.asked.budget.patch_elements[self.view.dims]

    def cost(self, chosen: Topology) -> float:
        """Cost of a patch."""
        return self.elements(chosen)

    def fit(self, patches: Iterator[Topology]) -> Fit:
        """The largest patch that is affordable."""
        return topology.fit_patch(patches, self.cost, self.limit)

    def batch(self, chosen: Topology) -> tuple[int, str]:
        """Samples per step, and the reason."""
        budget, dims = self.asked.budget, self.view.dims
        affordable = round(budget.elements[dims] / self.elements(chosen))
        batch, held = limited_batch(budget, dims, affordable, math.prod(chosen.patch_size), self.view.voxels)
        return batch, f"{budget.elements[dims]:.3g} elements per step allow {affordable}{held}"

    def patch_reason(self, fit: Fit) -> str:
        return f"{fit.cost:.4g} elements per sample, at most {self.limit:.4g}"


@dataclass(frozen=True)
class ByteSizing(Sizing):
    """Cost of patches and batches in bytes of the device's memory."""

    checkpointing: bool = False

    @property
    def limit(self) -> float:
        """Maximum bytes of a step."""
        assert self.asked.budget.gigabytes is not None
        return self.asked.budget.gigabytes * GIGA * HEADROOM

    def bytes_of(self, chosen: Topology, batch: int) -> int:
        step = Step(self.spec(chosen), self.view.channels, chosen.patch_size, batch, self.checkpointing)
        return self.asked.memory.train(step).device_bytes

    @property
    def least_batch(self) -> int:
        return self.asked.batch_size or self.asked.budget.min_batch

    def cost(self, chosen: Topology) -> float:
        return self.bytes_of(chosen, self.least_batch)

    def fit(self, patches: Iterator[Topology]) -> Fit:
        def guess(chosen: Topology) -> float:
            return USUAL_BYTES + USUAL_BYTES_PER_ELEMENT * self.elements(chosen) * self.least_batch

        return topology.search_patch(patches, self.cost, guess, self.limit)

    def batch(self, chosen: Topology) -> tuple[int, str]:
        budget = self.asked.budget
        affordable = self._affordable(chosen)
        held_at, held = limited_batch(
            budget, self.view.dims, affordable, math.prod(chosen.patch_size), self.view.voxels
        )
        return held_at, f"{self.limit / GIGA:.3g} GB allow {affordable}{held}"

    def _affordable(self, chosen: Topology) -> int:
        """The largest batch that fits."""
        fits, high = self.asked.budget.min_batch, 2 * self.asked.budget.min_batch
        while self.bytes_of(chosen, high) <= self.limit:
            fits, high = high, 2 * high
        return fits - 1 + bisect_left(range(fits, high), True, key=lambda b: self.bytes_of(chosen, b) > self.limit)

    def patch_reason(self, fit: Fit) -> str:
        used, limit = fit.cost / GIGA, self.limit / GIGA
        return f"a step of {self.least_batch} samples takes {used:.3g} GB, at most {limit:.3g}"


def plan_configuration(
    asked: Request,
    space: Space,
    name: str,
    dims: int,
    *,
    cascade_from: str | None = None,
    start: Sequence[int] | None = None,
) -> Configuration:
    """Choose patch, network and batch of one configuration.

    Args:
        space: the dataset on the grid of this configuration.
        cascade_from: the configuration whose segmentation is a further input.
        start: start with this patch instead of the largest one.

    Raises:
        UsageError: not even the smallest patch fits the requested memory.
    """
    channels = len(asked.channels) + (asked.labels.num_labels if cascade_from else 0)
    view = View(name, dims, space, channels, len(asked.fingerprint.cases))
    sizing = ByteSizing(asked, view) if asked.by_memory else Sizing(asked, view)
    fit, sizing = _plan_patch(asked, view, sizing, start)
    chosen, network = fit.topology, _plan_network(asked, name, sizing, fit.topology)
    batch, reason = (asked.batch_size, "given") if asked.batch_size is not None else sizing.batch(chosen)
    asked.decide(f"3.5 batch ({name})", batch, reason)
    batch_dice = _plan_batch_dice(asked, view, chosen)
    field = topology.voxels_seen(asked.layout, chosen)
    asked.decide(
        f"3.7 receptive field ({name})",
        field,
        f"voxels seen by one output voxel, of a patch of {text(chosen.patch_size)}",
    )
    checkpointing = isinstance(sizing, ByteSizing) and sizing.checkpointing
    step = Step(network, channels, chosen.patch_size, batch, checkpointing)
    limit = (asked.budget.gigabytes or math.inf) * GIGA * HEADROOM
    cost = cost_of(
        asked.memory, step, device=asked.device, limit=limit, shape=space.median_shape.tolist(),
        shapes=_stored_shapes(space, dims).tolist(), channels=len(asked.channels), pace=asked.pace,
    )  # fmt: skip
    if isinstance(sizing, ByteSizing):
        _explain_memory(asked, sizing, fit, batch, start)
    _explain_pace(asked, name, cost)
    if asked.ours:
        _compare_with_nnunet(asked, view, chosen, batch)
    return Configuration(
        data=name,
        spacing=view.spacing,
        median_shape=view.median_shape,
        patch_size=chosen.patch_size,
        batch_size=batch,
        batch_dice=batch_dice,
        network=network,
        receptive_field=field,
        elements=sizing.elements(chosen),
        cascade_from=cascade_from,
        checkpointing=checkpointing,
        cost=cost,
    )


def _stored_shapes(space: Space, dims: int) -> np.ndarray:
    """Shapes of the preprocessed images (cases, 3): slices of a 2-D configuration stay as they are."""
    return space.shapes if dims == 3 else np.column_stack((space.case_shapes[:, 0], space.shapes[:, 1:]))


def _plan_patch(asked: Request, view: View, sizing: Sizing, start: Sequence[int] | None) -> tuple[Fit, Sizing]:
    """Rules 3.1 to 3.3: the largest affordable patch, shaped to cover what it should."""
    first, reason, given = _first_patch(asked, view, start)
    asked.decide(f"3.1 first patch ({view.name})", first, reason)

    def patches(needed: Sequence[float]) -> Iterator[Topology]:
        return topology.shrinking(
            view.spacing, first, median_shape=view.median_shape, needed=needed, min_edge=asked.budget.min_edge,
            compact=asked.ours and asked.budget.compact_patch,
        )  # fmt: skip

    nothing = [0.0] * view.dims
    if given:
        chosen = next(patches(nothing))
        fit = Fit(chosen, 0.0, True, 0)
        asked.decide(f"3.3 patch ({view.name})", chosen.patch_size, "given, rounded up to the divisor of the network")
        return fit, sizing
    fit = sizing.fit(patches(nothing))
    remark = ""
    if asked.ours:
        needed = np.minimum(sparsity.wanted_extent(view.space.table)[-view.dims :] / view.spacing, view.median_shape)
        fit, sizing, remark = _cover(asked, view, sizing, fit, patches, needed.tolist())
    if isinstance(sizing, ByteSizing) and not fit.fits and not sizing.checkpointing:
        sizing = replace(sizing, checkpointing=True)
        fit, remark = sizing.fit(patches(nothing)), ", with activation checkpointing"
    reason = f"{fit.steps} shrinking steps{remark}; {sizing.patch_reason(fit)}"
    if not fit.fits:
        if asked.by_memory:
            raise _too_little_memory(asked, view, fit)
        reason += "; it cannot shrink further: this exceeds the budget"
    asked.decide(f"3.3 patch ({view.name})", fit.topology.patch_size, reason)
    return fit, sizing


def _first_patch(asked: Request, view: View, start: Sequence[int] | None) -> tuple[Sequence[float], str, bool]:
    """Rule 3.1: value, reason, and whether it was given and must be kept."""
    if asked.patch_size is not None and len(asked.patch_size) == view.dims:
        return asked.patch_size, "given", True
    if start is not None:
        return start, "the patch of the configuration it continues", False
    first: Sequence[float] = topology.initial_patch(view.spacing, view.median_shape)
    reason = f"equal edges in mm, {topology.START_VOXELS[view.dims]:.3g} voxels, no larger than the median shape"
    if asked.ours and asked.budget.trim_patch:
        first = topology.trimmed(view.spacing, first, asked.budget.min_edge)
        reason += ", rounded down because padding costs time"
    return first, reason, False


def _cover(
    asked: Request, view: View, sizing: Sizing, fit: Fit, patches, needed: Sequence[float]
) -> tuple[Fit, Sizing, str]:
    """Rule 3.2: try to find a patch that covers the need (voxels): first by its shape, then by keeping less in memory.

    A need that cannot be met has no effect: a patch elongated along one axis in vain is worse than a compact one.
    """
    step = f"3.2 patch wanted ({view.name})"
    what = (
        f"{sparsity.CONTEXT:g} times the {sparsity.TYPICAL_QUANTILE:.0%} quantile of the extents of each label's "
        "components, no larger than the median shape"
    )
    if not any(needed):
        asked.decide(step, "nothing", "no components were measured")
        return fit, sizing, ""
    wanted = f"at least {text([round(edge) for edge in needed])}"
    if fit.fits and _covered(fit.topology, needed):
        asked.decide(step, wanted, f"{what}: covered")
        return fit, sizing, ""
    for means, saving in _savings(sizing):
        covering = [chosen for chosen in patches(needed) if _covered(chosen, needed)]
        if covering and saving.cost(covering[-1]) <= saving.limit:
            asked.decide(step, wanted, f"{what}: covered {means}")
            return saving.fit(iter(covering)), saving, f", covering the extent of 3.2 {means}"
    asked.decide(step, wanted, f"{what}: not covered")
    return fit, sizing, ""


def _savings(sizing: Sizing) -> Iterator[tuple[str, Sizing]]:
    """Ways to afford a patch that covers more, the cheapest first."""
    yield "by shrinking the other axes", sizing
    if isinstance(sizing, ByteSizing):
        yield "by activation checkpointing, which takes a third more time", replace(sizing, checkpointing=True)


def _covered(chosen: Topology, needed: Sequence[float]) -> bool:
    # half a voxel of tolerance: extents in mm are rounded
    return all(edge + 0.5 >= need for edge, need in zip(chosen.patch_size, needed, strict=True))


def _plan_network(asked: Request, name: str, sizing: Sizing, chosen: Topology) -> NetworkSpec:
    """The network of the chosen stages."""
    network = sizing.spec(chosen)
    asked.decide(
        f"3.4 network ({name})",
        f"{network.name}, {chosen.stages} stages, {network.features[0]} to {network.features[-1]} features",
        f"pools {text(network.num_pools)}; bottleneck {text(chosen.bottleneck)}; axes are halved together while "
        f"their spacings are within a factor of {topology.ISOTROPIC_WITHIN:g}, down to {asked.budget.min_edge} voxels",
    )
    return network


def _plan_batch_dice(asked: Request, view: View, chosen: Topology) -> bool:
    """Rule 3.6."""
    batch_dice, reason = view.dims == 2, "nnU-Net v2's rule: over the batch in 2-D, per sample in 3-D"
    if asked.ours:
        filled = sparsity.filled_share(view.space.table, chosen.patch_size, view.spacing)
        sparse, why = sparsity.batch_dice(asked.fingerprint, filled)
        batch_dice, reason = batch_dice or sparse, (why if sparse else f"{reason}; {why}")
    asked.decide(f"3.6 batch Dice ({view.name})", "over the batch" if batch_dice else "per sample", reason)
    return batch_dice


def _explain_memory(asked: Request, sizing: ByteSizing, fit: Fit, batch: int, start: Sequence[int] | None) -> None:
    """Rule 3.8: the predicted memory, and that no larger plan fits."""
    name = sizing.view.name
    used, more = (sizing.bytes_of(fit.topology, count) / GIGA for count in (batch, batch + 1))
    held = "" if more * GIGA > sizing.limit else ", which would fit but is limited by 3.5"
    if fit.larger is None and start is not None:
        larger = "the patch is that of the configuration it continues"
    elif fit.larger is None:
        larger = "a larger patch would be larger than the images"
        asked.change(name, "no GPU", f"would enlarge the patch: it covers whole images, and takes {used:.3g} GB")
    else:
        size, needs = text(fit.larger.patch_size), fit.larger_cost / GIGA
        larger = f"patch {size} {needs:.3g} GB"
        asked.change(name, f"--vram {needs / HEADROOM:.1f}", f"allows the next larger patch, {size}: {needs:.3g} GB")
    asked.decide(
        f"3.8 memory ({name})",
        f"{used:.3g} of {asked.budget.gigabytes:g} GB",
        f"at most {HEADROOM:.0%}, predicted from a traced step; {asked.memory.source}; "
        f"batch {batch + 1} would take {more:.3g} GB{held}; {larger}",
    )


def _explain_pace(asked: Request, name: str, cost: Cost) -> None:
    """Rule 3.12: how many steps a fold makes in its time."""
    pace, seconds = asked.pace, cost.seconds_per_step
    if pace is None or seconds is None:
        return
    asked.decide(
        f"3.12 steps ({name})",
        f"about {steps_in(pace.seconds, seconds)} in {typed_duration(pace.seconds)}",
        f"{seconds:.3g} s per step, predicted from {cost.flops / GIGA:.3g} G operations; {ENOUGH_STEPS} are enough",
    )


def _compare_with_nnunet(asked: Request, view: View, chosen: Topology, batch: int) -> None:
    """Rule 3.9: what nnU-Net v2 would have planned, and why this differs."""
    budget = asked.budget if asked.device == "gpu" else GPU
    theirs = Sizing(replace(asked, rules="nnunet", budget=budget, network=budget.network), view)
    first = topology.initial_patch(view.spacing, view.median_shape)
    fit = theirs.fit(topology.shrinking(view.spacing, first, median_shape=view.median_shape, needed=[0.0] * view.dims))
    other, _ = theirs.batch(fit.topology)
    value = f"patch {text(fit.topology.patch_size)}, batch {other}, {fit.topology.stages} stages"
    if (fit.topology.patch_size, other) == (chosen.patch_size, batch):
        reason = "nnU-Net v2's rules give the same plan"
    elif asked.device == "cpu":
        reason = f"nnU-Net v2's rules for {budget.gigabytes:g} GB; a CPU has little time, and many small steps win"
    else:
        step = Step(theirs.spec(fit.topology), view.channels, fit.topology.patch_size, other)
        used = asked.memory.train(step).device_bytes / GIGA
        reason = f"nnU-Net v2's rules count elements, not bytes: traced, its plan takes {used:.3g} GB"
        if budget.network != asked.network:
            reason += f", with {budget.network}"
    asked.decide(f"3.9 nnU-Net ({view.name})", value, reason)


def _too_little_memory(asked: Request, view: View, fit: Fit) -> UsageError:
    return UsageError(
        f"{view.name}: {asked.budget.gigabytes:g} GB of GPU memory are not enough for {asked.network}: its smallest "
        f"patch, {text(fit.topology.patch_size)}, takes {fit.cost / GIGA:.3g} GB",
        remedy=f"plan for more (--vram {math.ceil(fit.cost / GIGA / HEADROOM)}), or for the CPU (--preset s)",
    )
