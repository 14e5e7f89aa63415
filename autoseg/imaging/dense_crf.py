"""Boundaries of a label map refined by a dense conditional random field, in bounded memory.

Neighbours that look alike pull each other towards one label (Krähenbühl and Koltun 2011, arXiv 1210.5644): the energy
of a labelling is the sum of each voxel's own scores and of two Gaussian kernels over pairs with unlike labels (Potts),
one of the distance in mm, one of the distance and of the difference of intensities. It is lowered by mean field: the
probabilities Q of a voxel are, again and again, the softmax of its scores and of what its neighbours' Q say,

    Q_i = softmax(s_i + smoothness * sum_j k_ij Q_j / sum_j k_ij + appearance * sum_j l_ij Q_j / sum_j l_ij)
    k_ij = exp(-|p_i - p_j|^2 / 2 reach^2)          l_ij = k_ij exp(-|I_i - I_j|^2 / 2 contrast^2)

Kernels are cut off at twice their reach along each axis, and are normalised, so that the weights mean the same whatever
the voxel size. Only voxels so near to a boundary of the label map are refined: elsewhere neighbours say what the voxel
itself says. Blocks are refined one after the other, with as much around them as the iterations can reach, so that the
result does not depend on the blocks.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy import ndimage

from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Axes3, Box, Vector3
from autoseg.rules import above, at_least

CUT = 2.0  # times the reach, where kernels end
BLOCK = 96  # voxels along the edge of what is refined at once
CACHED = 2**26  # weights that are kept from one iteration to the next


@dataclass(frozen=True)
class DenseCrf:
    """How boundaries are refined."""

    reach: Annotated[float, above(0, 1e4)]  # mm, or voxels where images state no size: sigma of distances
    smoothness: Annotated[float, at_least(0, 1e3)]  # weight of the neighbours, whatever they look like
    appearance: Annotated[float, at_least(0, 1e3)]  # weight of those that look alike
    contrast: Annotated[float, above(0, 1e3)] = 1.0  # sigma of intensities, in standard deviations of the image
    iterations: Annotated[int, at_least(1, 100)] = 5

    def __str__(self) -> str:
        alike = f", appearance {self.appearance:g} at contrast {self.contrast:g}" if self.appearance else ""
        return f"CRF of {self.reach:.3g} mm, smoothness {self.smoothness:g}{alike}"

    def radius(self, spacing: Vector3) -> Axes3:
        """Voxels (Z, Y, X) that a kernel reaches in each direction."""
        z, y, x = (int(CUT * self.reach / step + 1e-6) for step in spacing)
        return z, y, x


def refine(
    labels: np.ndarray,
    scores: np.ndarray,
    image: np.ndarray,
    spacing: Vector3,
    crf: DenseCrf,
    *,
    block: int = BLOCK,
) -> None:
    """Refine the boundaries of a label map in place.

    Args:
        labels: (Z, Y, X) unsigned class indices, the largest scores.
        scores: (K, Z, Y, X) logits or log-probabilities of exclusive classes; may be mapped from a file.
        image: (C, Z, Y, X) intensities.
        spacing: mm, (Z, Y, X).
        block: voxels along the edge of what is refined at once.
    """
    radius = tuple(min(most, size - 1) for most, size in zip(crf.radius(spacing), labels.shape, strict=True))
    if not any(radius):
        return
    before = labels.copy()
    deviations = np.array([max(float(channel.std()), 1e-6) for channel in image], np.float32)
    halo = [crf.iterations * r + r for r in radius]
    for inner, outer in _blocks(labels.shape, halo, block):
        here = as_slices(outer)
        near = _near_boundary(before[here], radius)
        within = as_slices(tuple((i[0] - o[0], i[1] - o[0]) for i, o in zip(inner, outer, strict=True)))  # type: ignore[arg-type]
        if not near[within].any():
            continue
        own = np.ascontiguousarray(scores[(slice(None), *here)], dtype=np.float32)
        seen = image[(slice(None), *here)] / (crf.contrast * deviations[:, None, None, None])
        refined = mean_field(own, seen, near, _offsets(radius, spacing, crf.reach), crf)
        changed = near[within]
        labels[as_slices(inner)][changed] = refined.argmax(axis=0)[within][changed]


def mean_field(
    scores: np.ndarray,
    image: np.ndarray,
    active: np.ndarray,
    offsets: Sequence[tuple[Axes3, float]],
    crf: DenseCrf,
) -> np.ndarray:
    """Q (K, Z, Y, X) float32 after the iterations.

    Args:
        scores: (K, Z, Y, X) float32.
        image: (C, Z, Y, X) float32, in units of the contrast.
        active: (Z, Y, X) bool; the others keep the softmax of their scores.
        offsets: neighbours in voxels with their weight k; those beyond the arrays do not count.
    """
    classes, *shape = scores.shape
    pad = [max(abs(offset[axis]) for offset, _ in offsets) for axis in range(3)]
    around = [(0, 0), *((p, p) for p in pad)]
    beliefs = np.pad(_softmax(scores), around).reshape(classes, -1).T.copy()
    looks = np.pad(image, around).reshape(len(image), -1).T.copy()
    exists = np.pad(np.ones(shape, np.float32), around[1:]).reshape(-1)
    padded = [size + 2 * p for size, p in zip(shape, pad, strict=True)]
    at = np.flatnonzero(np.pad(active, around[1:]).reshape(-1))
    steps = [(int(np.ravel_multi_index(np.add(offset, pad), padded)) - int(np.ravel_multi_index(pad, padded)), weight)
             for offset, weight in offsets]  # fmt: skip
    own = scores.reshape(classes, -1)[:, active.reshape(-1)].T
    cached: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for _ in range(crf.iterations):
        smooth, alike = np.zeros_like(own), np.zeros_like(own)
        of_smooth, of_alike = np.full(len(at), 1e-12, np.float32), np.full(len(at), 1e-12, np.float32)
        for number, (step, weight) in enumerate(steps):
            other = at + step
            if (pair := cached.get(number)) is None:
                near = weight * exists[other]
                difference = looks[at] - looks[other]
                pair = near, near * np.exp(-0.5 * np.einsum("nc,nc->n", difference, difference))
                if len(at) * len(steps) * 2 <= CACHED:
                    cached[number] = pair
            said = beliefs[other]
            smooth += pair[0][:, None] * said
            of_smooth += pair[0]
            alike += pair[1][:, None] * said
            of_alike += pair[1]
        total = own + crf.smoothness * smooth / of_smooth[:, None] + crf.appearance * alike / of_alike[:, None]
        beliefs[at] = _softmax(total.T).T
    whole = beliefs.T.reshape(classes, *padded)
    return whole[(slice(None), *(slice(p, p + size) for p, size in zip(pad, shape, strict=True)))]


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Along the first axis, float32."""
    shifted = np.exp(scores - scores.max(axis=0, keepdims=True), dtype=np.float32)
    return shifted / shifted.sum(axis=0, keepdims=True)


def _offsets(radius: Sequence[int], spacing: Vector3, reach: float) -> list[tuple[Axes3, float]]:
    """The neighbours of a voxel, with the kernel of their distance."""
    found = []
    for offset in itertools.product(*(range(-r, r + 1) for r in radius)):
        if any(offset):
            squared = sum((n * step) ** 2 for n, step in zip(offset, spacing, strict=True))
            found.append(((offset[0], offset[1], offset[2]), math.exp(-squared / (2 * reach**2))))
    return found


def _near_boundary(labels: np.ndarray, radius: Sequence[int]) -> np.ndarray:
    """Voxels within whose reach there is another label, bool."""
    size = [2 * r + 1 for r in radius]
    return ndimage.maximum_filter(labels, size) != ndimage.minimum_filter(labels, size)


def _blocks(shape: Sequence[int], halo: Sequence[int], edge: int) -> Iterator[tuple[Box, Box]]:
    """Blocks of an image, each with what lies around it."""
    for start in itertools.product(*(range(0, size, edge) for size in shape)):
        inner = tuple((s, min(s + edge, size)) for s, size in zip(start, shape, strict=True))
        outer = tuple((max(0, a - h), min(b + h, size)) for (a, b), h, size in zip(inner, halo, shape, strict=True))
        yield inner, outer  # type: ignore[misc]
