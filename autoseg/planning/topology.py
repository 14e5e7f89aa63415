"""From a voxel spacing and a patch to the stages of a network: pure numbers, no data, no torch.

    initial_patch        the largest patch worth trying: a cube (square) in millimetres, cut to the median shape
    trimmed              the same patch, rounded down to multiples of its divisor
    topology             strides and kernels for a patch, and the patch padded to multiples of its divisor
    feature_map_elements the proxy of memory and time: convolution outputs of one forward pass of one sample
    receptive_field      voxels of the image that one output voxel of a convolutional U-Net sees
    voxels_seen          the same, of any network
    shrinking            ever smaller patches
    fit_patch            the first of them that costs no more than a limit
    search_patch         the same, with few evaluations

The rules are nnU-Net v2's, guarded where nnU-Net loops forever: axes of one voxel, limits that no patch meets.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoseg.nn.networks.layout import Layout

ISOTROPIC_WITHIN = 2.0  # axes whose spacings differ by less than this factor are halved, and convolved, together
TRIM_KEEPS = 0.8  # of an edge: the share that must remain when it is rounded down
START_VOXELS = {3: 256**3, 2: 2048**2}  # volume of the patch that shrinking starts from
GUESSES = 6  # evaluations by the guess before the search halves
SMALLEST_PATCH_EDGE = 12  # in-plane, where the image is too small to be halved even once: 12 -> 6 along one axis alone

Spatial = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net for one patch: one entry per stage, the last is the bottleneck."""

    patch_size: Spatial  # padded up to multiples of `divisor`
    strides: tuple[Spatial, ...]
    kernel_sizes: tuple[Spatial, ...]
    divisor: Spatial  # product of the strides, per axis

    @property
    def stages(self) -> int:
        return len(self.strides)

    @property
    def bottleneck(self) -> Spatial:
        """Extent of the coarsest feature map, voxels."""
        return tuple(edge // d for edge, d in zip(self.patch_size, self.divisor, strict=True))


@dataclass(frozen=True)
class Fit:
    """Result of `fit_patch`."""

    topology: Topology
    cost: float
    fits: bool  # False: not even the smallest sensible patch meets the limit
    steps: int  # how many times the patch was shrunk
    larger: Topology | None = None  # the patch one step larger, which costs too much; None if there was none
    larger_cost: float = 0.0


def initial_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """Patch to start shrinking from: equal edges in mm, START_VOXELS in all, no axis longer than the median shape.

    `spacing` in mm and `median_shape` in voxels have 2 or 3 entries. The result may hold halves, as medians do.
    """
    dims = len(spacing)
    # edge_d = c / spacing_d with prod(edge) = START_VOXELS; in logarithms, so that no product overflows
    log_edge = (math.log(START_VOXELS[dims]) + sum(math.log(s) for s in spacing)) / dims
    edges = [round(math.exp(log_edge - math.log(s))) for s in spacing]
    return tuple(max(1, min(edge, extent)) for edge, extent in zip(edges, median_shape, strict=True))


def trimmed(spacing: Sequence[float], patch: Sequence[float], min_edge: int = 4) -> tuple[float, ...]:
    """Round the edges of a patch down to multiples of their divisors, instead of padding them up.

    A patch about as large as the images is otherwise up to half padding. An axis that would lose more than
    1 - TRIM_KEEPS of its voxels is left to be padded. The halvings stay those of the untrimmed patch or fewer.
    """
    divisor = topology(spacing, patch, min_edge).divisor
    edges = (edge // d * d for edge, d in zip(patch, divisor, strict=True))
    return tuple(
        down if down >= max(TRIM_KEEPS * edge, min_edge) else edge for down, edge in zip(edges, patch, strict=True)
    )


def topology(spacing: Sequence[float], patch: Sequence[float], min_edge: int = 4) -> Topology:
    """Choose strides and kernels for a patch (voxels) at a spacing (mm): nnU-Net v2's rule.

    Axes are halved together while their current spacings lie within a factor of 2, so thick slices wait until the plane
    has caught up; no axis is halved below `min_edge`. A kernel edge is 1 along such a waiting axis and 3 otherwise; the
    bottleneck's kernels are 3. Each patch edge is then rounded up to a multiple of its divisor.
    """
    dims = len(spacing)
    current, edges = [float(s) for s in spacing], [float(e) for e in patch]
    strides: list[Spatial] = [(1,) * dims]
    kernels: list[Spatial] = []
    kernel = [1] * dims
    while True:
        candidates = [d for d in range(dims) if edges[d] >= 2 * min_edge]
        if candidates:
            finest = min(current[d] for d in candidates)
            candidates = [d for d in candidates if current[d] / finest < ISOTROPIC_WITHIN]
        if not candidates or (len(candidates) == 1 and edges[candidates[0]] < 3 * min_edge):
            break
        finest = min(current)
        kernel = [3 if k == 3 or s / finest < ISOTROPIC_WITHIN else 1 for k, s in zip(kernel, current, strict=True)]
        for d in candidates:
            current[d] *= 2
            edges[d] = math.ceil(edges[d] / 2)
        strides.append(tuple(2 if d in candidates else 1 for d in range(dims)))
        kernels.append(tuple(kernel))
    kernels.append((3,) * dims)
    divisor = tuple(math.prod(stride[d] for stride in strides) for d in range(dims))
    padded = tuple(math.ceil(e / d) * d for e, d in zip(patch, divisor, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels), divisor)


def smallest_topology(spacing: Sequence[float], patch: Sequence[float], min_edge: int = 4) -> Topology:
    """`topology`, growing the in-plane edges (the last two) where the patch is too small to be halved at all.

    A U-Net needs two stages, and instance normalisation more than one voxel at the bottleneck. Small images are padded.
    """
    chosen = topology(spacing, patch, min_edge)
    if chosen.stages > 1:
        return chosen
    least = max(SMALLEST_PATCH_EDGE, 3 * min_edge)
    return topology(spacing, (*patch[:-2], *(max(least, edge) for edge in patch[-2:])), min_edge)


def feature_counts(stages: int, base: int, maximum: int) -> tuple[int, ...]:
    """Feature maps per stage: doubled at each, up to `maximum`."""
    return tuple(min(maximum, base * 2**i) for i in range(stages))


def feature_map_elements(
    chosen: Topology,
    features: Sequence[int],
    num_classes: int,
    blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    residual: bool = False,
) -> int:
    """Count the convolution outputs of one forward pass of one sample: nnU-Net v2's proxy of memory.

    A decoder stage has a transposed convolution besides its `decoder_blocks` convolutions; the head is counted at full
    resolution alone. An encoder stage has `blocks` convolutions or, with `residual`, blocks of two and a projection
    where the width or the resolution changes, after a stem of one convolution.
    """
    voxels = math.prod(chosen.patch_size)
    total = num_classes * voxels + (features[0] * voxels if residual else 0)
    for stage, (stride, maps, count) in enumerate(zip(chosen.strides, features, blocks, strict=True)):
        voxels //= math.prod(stride)
        changes = stage > 0 and (math.prod(stride) > 1 or maps != features[stage - 1])
        encoder = 2 * count + changes if residual else count
        decoder = decoder_blocks[stage] + 1 if stage < chosen.stages - 1 else 0
        total += (encoder + decoder) * maps * voxels
    return total


def receptive_field(
    strides: Sequence[Spatial], kernel_sizes: Sequence[Spatial], blocks: Sequence[int], decoder_blocks: Sequence[int]
) -> Spatial:
    """Voxels of the image, per axis, that the luckiest output voxel sees through the bottleneck of a U-Net.

    A transposed convolution whose kernel is its stride maps each fine voxel to one coarse voxel, so what a fine voxel
    sees depends on its place in the grid by a few voxels; the largest extent is returned.
    """

    def along(axis: int) -> int:
        extent = 1
        for stage, convolutions in enumerate(decoder_blocks):  # from the output down to the bottleneck
            extent += convolutions * (kernel_sizes[stage][axis] - 1)
            extent = math.ceil((extent - 1) / strides[stage + 1][axis]) + 1
        for stage in reversed(range(len(strides))):  # from the bottleneck back up the encoder to the image
            kernel, stride = kernel_sizes[stage][axis], strides[stage][axis]
            extent += (blocks[stage] - 1) * (kernel - 1)
            extent = (extent - 1) * stride + kernel  # the stage's first convolution carries the stride
        return extent

    return tuple(along(axis) for axis in range(len(strides[0])))


def voxels_seen(layout: "Layout", chosen: Topology) -> Spatial:
    """Voxels of the image that one output voxel of a network sees: those its convolutions reach, or the patch."""
    if layout.sees == "patch":
        return chosen.patch_size
    blocks = layout.encoder_blocks(chosen.stages)
    if layout.residual:
        blocks = tuple(2 * count + (stage == 0) for stage, count in enumerate(blocks))
    return receptive_field(chosen.strides, chosen.kernel_sizes, blocks, (layout.decoder_blocks,) * (chosen.stages - 1))


def shrinking(
    spacing: Sequence[float],
    patch: Sequence[float],
    *,
    median_shape: Sequence[float],
    needed: Sequence[float],
    min_edge: int = 4,
    compact: bool = False,
) -> Iterator[Topology]:
    """Patches from the given one downwards, one step smaller each.

    The axis that covers most of `median_shape` goes first (nnU-Net v2's rule), by the step that keeps it divisible.
    With `compact` it is the axis that is longest in mm: a small patch of an image of few thick slices stays a block
    of them, where nnU-Net's rule leaves a thin plane.
    Axes that would fall below `needed` voxels are spared while another can shrink; all zeros spares none.
    It always ends: no patch is visited twice, and no edge falls below `min_edge`.
    """
    chosen = smallest_topology(spacing, patch, min_edge)
    visited: set[Spatial] = set()
    while True:
        yield chosen
        visited.add(chosen.patch_size)
        whole = [1 / s for s in spacing] if compact else median_shape
        coverage = [edge / extent for edge, extent in zip(chosen.patch_size, whole, strict=True)]
        # the last of equals first, as a stable ascending sort ends
        axes = sorted(range(len(spacing)), key=lambda d: (coverage[d], d), reverse=True)
        smaller = {axis: _shrunk(spacing, chosen, axis, min_edge) for axis in axes}
        possible = [axis for axis in axes if (s := smaller[axis]) is not None and s.patch_size not in visited]
        sparing = [axis for axis in possible if _covers(smaller[axis], chosen, needed)]
        if not possible:
            return
        shrunk = smaller[(sparing or possible)[0]]
        assert shrunk is not None
        chosen = shrunk


def fit_patch(patches: Iterable[Topology], cost: Callable[[Topology], float], limit: float) -> Fit:
    """Return the first of ever smaller patches whose cost does not exceed `limit`."""
    path: list[Topology] = []
    costs: list[float] = []
    for chosen in patches:
        path.append(chosen)
        costs.append(cost(chosen))
        if costs[-1] <= limit:
            break
    step = len(path) - 1
    return _fit(path, step, costs[step] <= limit, dict(enumerate(costs)))


def search_patch(
    patches: Iterable[Topology], cost: Callable[[Topology], float], guess: Callable[[Topology], float], limit: float
) -> Fit:
    """`fit_patch` for a cost that is expensive to compute and falls along the patches: few are tried.

    `guess` is about proportional to the cost, and cheap. Each evaluation corrects its scale; where that does not
    converge soon, the search halves. The returned patch was evaluated, and so was the one before it, which costs too
    much.
    """
    path = list(patches)
    guesses = [guess(chosen) for chosen in path]
    known: dict[int, float] = {}
    low, high, scale = 0, len(path), 1.0  # the first that fits is in [low, high]
    while low < high:
        here = next((i for i, value in enumerate(guesses) if value * scale <= limit), len(path) - 1)
        here = min(max(here, low), high - 1) if len(known) < GUESSES else (low + high) // 2
        known[here] = cost(path[here])
        scale = known[here] / guesses[here]
        if known[here] <= limit:
            high = here
        else:
            low = here + 1
    return _fit(path, min(low, len(path) - 1), low < len(path), known)


def _fit(path: Sequence[Topology], step: int, fits: bool, costs: Mapping[int, float]) -> Fit:
    if step == 0 or not fits:
        return Fit(path[step], costs[step], fits, step)
    return Fit(path[step], costs[step], True, step, path[step - 1], costs[step - 1])


def _covers(smaller: Topology | None, current: Topology, needed: Sequence[float]) -> bool:
    """Whether no axis falls below the need, or further below it."""
    assert smaller is not None
    return all(
        new >= min(old, need) for new, old, need in zip(smaller.patch_size, current.patch_size, needed, strict=True)
    )


def _shrunk(spacing: Sequence[float], chosen: Topology, axis: int, min_edge: int) -> Topology | None:
    """The topology one step smaller along an axis, or None where that axis cannot shrink."""
    patch = list(chosen.patch_size)
    patch[axis] -= chosen.divisor[axis]
    if patch[axis] < min_edge:
        return None
    # the smaller patch may be divided less often: shrink by its divisor, so that padding does not undo it
    step = topology(spacing, patch, min_edge).divisor[axis]
    patch[axis] = chosen.patch_size[axis] - step
    smaller = topology(spacing, patch, min_edge)
    return smaller if smaller.stages > 1 and smaller.patch_size != chosen.patch_size else None
