"""From a voxel spacing and a patch to the shape of a U-Net: pure numbers, no data, no torch.

    initial_patch        the largest patch worth trying: a cube (square) in millimetres, cut to the median shape
    trimmed              the same patch, rounded down to what its axes are divided by
    topology             strides and kernels for a patch, and the patch padded to what they divide
    feature_map_elements the proxy of memory and time: convolution outputs of one forward pass of one sample
    receptive_field      voxels of the image that one output voxel sees
    fit_patch            shrinks a patch until the proxy fits a limit

The rules are nnU-Net v2's. They are guarded where nnU-Net loops forever: axes of one voxel, limits nothing can meet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONVOLUTIONS_PER_STAGE = 2  # of the plain U-Net, encoder and decoder
ISOTROPIC_WITHIN = 2.0  # axes whose spacings differ by less than this factor are halved, and convolved, together
TRIM_KEEPS = 0.8  # of an edge: what must remain where it is rounded down
START_VOXELS = {3: 256**3, 2: 2048**2}  # volume of the patch that shrinking starts from
SMALLEST_PATCH_EDGE = 12  # in-plane, where the image is too small to be halved even once: 12 -> 6 along one axis alone

Spatial = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """How a U-Net goes down for one patch: one entry per stage, the last is the bottleneck."""

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
    elements: int  # the proxy for one sample
    fits: bool  # False: not even the smallest sensible patch meets the limit
    steps: int  # how many times the patch was shrunk


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
    """Round the edges of a patch down to multiples of what they are divided by, instead of padding them up.

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
    bottleneck's kernels are 3. Each patch edge is then rounded up to a multiple of what it is divided by.
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


def feature_map_elements(chosen: Topology, features: Sequence[int], num_classes: int) -> int:
    """Count the convolution outputs of one forward pass of one sample: nnU-Net v2's proxy of memory.

    Encoder and decoder stages hold CONVOLUTIONS_PER_STAGE convolutions each, the latter a transposed one besides; the
    head is counted at full resolution alone.
    """
    voxels = math.prod(chosen.patch_size)
    total = num_classes * voxels
    for stage, (stride, maps) in enumerate(zip(chosen.strides, features, strict=True)):
        voxels //= math.prod(stride)
        decoder = 0 if stage == chosen.stages - 1 else CONVOLUTIONS_PER_STAGE + 1
        total += (CONVOLUTIONS_PER_STAGE + decoder) * maps * voxels
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


def fit_patch(
    spacing: Sequence[float],
    patch: Sequence[float],
    *,
    median_shape: Sequence[float],
    needed: Sequence[float],
    limit: float,
    base_features: int,
    max_features: int,
    num_classes: int,
    min_edge: int = 4,
    compact: bool = False,
) -> Fit:
    """Shrink a patch until its feature-map elements fit `limit`.

    The axis that covers most of `median_shape` goes first (nnU-Net v2's rule), by the step that keeps it divisible.
    With `compact` it is the axis that is longest in mm: a small patch of an image of few thick slices stays a block
    of them, where nnU-Net's rule leaves a thin plane.
    Axes that would fall below `needed` voxels are spared while another can shrink; all zeros spares none.
    Ends always: no patch is visited twice, and no edge falls below `min_edge`.
    """

    def elements(chosen: Topology) -> int:
        return feature_map_elements(chosen, feature_counts(chosen.stages, base_features, max_features), num_classes)

    chosen = smallest_topology(spacing, patch, min_edge)
    visited = {chosen.patch_size}
    steps = 0
    while (count := elements(chosen)) > limit:
        whole = [1 / s for s in spacing] if compact else median_shape
        coverage = [edge / extent for edge, extent in zip(chosen.patch_size, whole, strict=True)]
        # the last of equals first, as a stable ascending sort ends
        axes = sorted(range(len(spacing)), key=lambda d: (coverage[d], d), reverse=True)
        smaller = {axis: _shrunk(spacing, chosen, axis, min_edge) for axis in axes}
        possible = [axis for axis in axes if (s := smaller[axis]) is not None and s.patch_size not in visited]
        sparing = [axis for axis in possible if _covers(smaller[axis], chosen, needed)]
        if not possible:
            return Fit(chosen, count, False, steps)
        shrunk = smaller[(sparing or possible)[0]]
        assert shrunk is not None
        chosen = shrunk
        visited.add(chosen.patch_size)
        steps += 1
    return Fit(chosen, count, True, steps)


def _covers(smaller: Topology | None, current: Topology, needed: Sequence[float]) -> bool:
    """Whether no axis falls below what is needed, or further below it."""
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
    # the smaller patch may be divided less often: shrink by what it is divided by, so that padding does not undo it
    step = topology(spacing, patch, min_edge).divisor[axis]
    patch[axis] = chosen.patch_size[axis] - step
    smaller = topology(spacing, patch, min_edge)
    return smaller if smaller.stages > 1 and smaller.patch_size != chosen.patch_size else None
