"""Images that are nearly the same: a copy with noise, resampled, flipped, shifted a little, or with other intensities.

    thumbnail     an image as a small grid of means, whatever its size and its intensities
    alike         thumbnails -> pairs that are more alike than two different images of this dataset ever are
    describe_likeness   what one pair means, in words

Identical files are found by their digest (`duplicates.py`, beside this module: both look at what every image file
holds, while `check` has it in memory). Nearly identical ones need a measure and a limit:

    measure  The partial correlation of two thumbnails given the mean of all, as it lies in either image: what they have
             in common beyond the anatomy that every image of the dataset shows. The largest over flips (of flat images,
             quarter turns, too) and shifts; found on a coarse grid for all pairs, refined on the fine one for each
             image's best candidates.
    limit    From the dataset itself. How alike does an image get to others that are not its copy? The second nearest
             neighbour says so even for images that have a copy. After Fisher's transform (artanh), the limit is the
             median of the second-nearest similarities plus 4 standard deviations (robust, by the median deviation), and
             at least 0.75.

Fewer than 10 images have no such distribution, and no mean that is not made of the pair itself: there the plain
correlation must reach 0.98.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.geometry import Geometry, orientation_of, reorient

FINE, COARSE, REACH = (24, 24, 24), (8, 8, 8), 4  # cells of the grids of a volume; fine cells a copy may be shifted by
FINE_FLAT, COARSE_FLAT, REACH_FLAT = (1, 48, 48), (1, 12, 12), 6
CANDIDATES = 3  # images by coarse similarity that each image is compared with on the fine grid
ROWS = 256  # images compared with all others at once
MANY = 1000  # more images are compared over fewer shifts
SMALL_SET, SMALL_SET_LIMIT = 10, 0.98
LOWEST_LIMIT, DEVIATIONS = 0.75, 4.0
PROMISING = 0.5  # similarity from which all neighbouring shifts are tried
SAME_MEAN = 1e-2  # two means that differ by less are one
SAMPLE = 100_000  # voxels that say which intensities are outliers


NEIGHBOURS = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
ALONG_AXES = [s for s in NEIGHBOURS if sum(map(abs, s)) == 1]


@dataclass(frozen=True)
class Pair:
    """Two images that are nearly the same, by name."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class Likeness:
    """What a comparison of all images found."""

    pairs: tuple[Pair, ...]  # the most alike first
    limit: float  # similarity from which a pair is among them; the larger one where there are volumes and flat images


def thumbnail(channel: np.ndarray, geometry: Geometry | None = None) -> np.ndarray:
    """Reduce one channel (Z, Y, X) to a small grid of means of cells, float16, with mean 0 and norm 1.

    Args:
        channel: any numbers; what is not finite counts as 0. Intensities beyond the 0.5th and 99.5th percentile are
            brought to them.
        geometry: of its file; with it, axes are brought to one order and direction. None: they are as they should be.

    Returns:
        (24, 24, 24), or (1, 48, 48) where an axis has a single voxel; zeros for a constant image.
    """
    if geometry is not None:
        channel = reorient(channel, *orientation_of(geometry))
    if 1 in channel.shape:
        axis = channel.shape.index(1)
        channel = np.moveaxis(channel, axis, 0)
    grid = FINE_FLAT if channel.shape[0] == 1 else FINE
    flat = channel.reshape(-1)
    sample = flat[:: -(-flat.size // SAMPLE)]
    sample = sample[np.isfinite(sample)].astype(np.float32)
    low, high = np.percentile(sample, (0.5, 99.5)) if sample.size else (0.0, 0.0)
    if low == high and sample.size:
        low, high = sample.min(), sample.max()  # a mask, or a few bright voxels on nothing
    cells = np.zeros(grid[:1] + channel.shape[1:], dtype=np.float32)
    weights = [_cells(size, count) for size, count in zip(channel.shape, grid, strict=True)]
    for index, plane in enumerate(channel):  # no copy of the image is made
        clipped = np.clip(np.nan_to_num(plane.astype(np.float32)), low, high)
        for cell in np.flatnonzero(weights[0][:, index]):
            cells[cell] += weights[0][cell, index] * clipped
    for axis in (1, 2):
        cells = np.moveaxis(np.tensordot(weights[axis], cells, (1, axis)), 0, axis)
    return _unit(cells.reshape(1, -1))[0].reshape(grid).astype(np.float16)


def alike(thumbnails: Mapping[str, np.ndarray], patients: Mapping[str, str]) -> Likeness:
    """Find pairs of different patients whose images are nearly the same.

    Args:
        thumbnails: name -> what `thumbnail` made of it; volumes and flat images are compared among themselves.
        patients: name -> patient. Images of one patient may be alike, and say nothing about those of others.
    """
    found: list[Pair] = []
    limits = [0.0]
    for grid in dict.fromkeys(thumbnail.shape for thumbnail in thumbnails.values()):
        names = [name for name, one in thumbnails.items() if one.shape == grid and np.any(one)]
        if len({patients[name] for name in names}) < 2:
            continue
        comparison = _Comparison(np.stack([thumbnails[name] for name in names]), [patients[name] for name in names])
        nearest = comparison.nearest()
        limit = limit_of([s for similar in nearest for s in sorted(similar.values())[-2:-1]], len(names))
        limits.append(limit)
        pairs = {(min(i, j), max(i, j)): s for i, similar in enumerate(nearest) for j, s in similar.items()}
        found += [Pair(names[i], names[j], s) for (i, j), s in pairs.items() if s >= limit]
    return Likeness(tuple(sorted(found, key=lambda pair: -pair.similarity)), max(limits))


def limit_of(second_nearest: list[float], images: int) -> float:
    """Similarity that two different images of a dataset do not reach.

    Args:
        second_nearest: similarity of each image to its second nearest neighbour.
        images: how many there are.
    """
    if images < SMALL_SET or not second_nearest:
        return SMALL_SET_LIMIT
    z = np.arctanh(np.clip(second_nearest, -1 + 1e-7, 1 - 1e-7))
    centre = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - centre))
    return float(max(LOWEST_LIMIT, np.tanh(centre + DEVIATIONS * spread)))


def describe_likeness(similarity: float, limit: float) -> str:
    """How alike two images are, in words."""
    return (
        f"similarity {similarity:.2f} after flips, shifts and resampling, where different images of this dataset "
        f"stay below {limit:.2f}"
    )


class _Comparison:
    """Thumbnails (n, Z, Y, X) of one kind, and the patient of each."""

    def __init__(self, fine: np.ndarray, patients: list[str]) -> None:
        flat = fine.shape[1] == 1
        grid, self.reach = (COARSE_FLAT, REACH_FLAT) if flat else (COARSE, REACH)
        self.block = fine.shape[-1] // grid[-1]
        self.turns = [(turned, flips) for turned in (False, True)[: 1 + flat] for flips in _flips(flat)]
        self.patients = np.unique(patients, return_inverse=True)[1]
        self.mean: np.ndarray | None = None
        self.coarse_mean: np.ndarray | None = None
        n = len(fine)
        self.fine, self.coarse = fine, _coarser(fine, grid)
        if n >= SMALL_SET:
            self.fine = self._upright(fine, self.coarse.mean(axis=0))
            self.coarse = _coarser(self.fine, grid)
            self.mean = np.asarray(np.mean(self.fine, axis=0, dtype=np.float32))
            self.coarse_mean = np.asarray(self.coarse.mean(axis=0))
        steps = [(0,) if flat else (-1, 0, 1), (-1, 0, 1), (-1, 0, 1)]
        shifts = [(z, y, x) for z, y, x in itertools.product(*steps)]
        self.shifts = [s for s in shifts if n <= MANY or sum(map(abs, s)) <= 1]

    def _upright(self, fine: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The images, each turned as it is most like the mean, which is then that of all in one position."""
        direction = _unit(mean.reshape(1, -1))[0]
        fits = [_unit(_turned(self.coarse, *way).reshape(len(fine), -1)) @ direction for way in self.turns]
        return np.stack(
            [_turned(one, *self.turns[way]) for one, way in zip(fine, np.argmax(fits, axis=0), strict=True)]
        )

    def nearest(self) -> list[dict[int, float]]:
        """For each image its best candidates, by number -> similarity on the fine grid."""
        found: list[dict[int, float]] = []
        for start in range(0, len(self.fine), ROWS):
            rows = slice(start, min(start + ROWS, len(self.fine)))
            best, how = self._coarse(rows)
            best[self.patients[rows, None] == self.patients[None]] = -np.inf
            for i, similar, ways in zip(range(rows.start, rows.stop), best, how, strict=True):
                chosen = [int(j) for j in np.argsort(-similar)[:CANDIDATES] if similar[j] > -np.inf]
                known = {j: found[j][i] for j in chosen if j < i and i in found[j]}
                found.append({j: known[j] if j in known else self._refined(i, j, int(ways[j])) for j in chosen})
        return found

    def _coarse(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Similarity (rows, n) to all images on the coarse grid, and the number of the shift and turn it was found at.

        All pairs at once: of residuals from the mean, the partial correlation is a scalar product.
        """
        best = np.full((rows.stop - rows.start, len(self.coarse)), -np.inf, dtype=np.float32)
        how = np.zeros(best.shape, dtype=np.int16)
        for number, shift in enumerate(self.shifts):
            here, there = _overlap(self.coarse.shape[1:], shift)
            for turn, way in enumerate(self.turns):
                means = (
                    [] if self.coarse_mean is None else [self.coarse_mean[here], _turned(self.coarse_mean, *way)[there]]
                )
                directions = _directions(means)
                own = _residuals(self.coarse[(rows, *here)], directions)
                other = _residuals(_turned(self.coarse, *way)[(slice(None), *there)], directions)
                similar = own @ other.T
                better = similar > best
                best[better] = similar[better]
                how[better] = number * len(self.turns) + turn
        return best, how

    def _refined(self, i: int, j: int, how: int) -> float:
        """Similarity on the fine grid: uphill from the coarse shift, by single cells."""
        shift = self.shifts[how // len(self.turns)]
        way = self.turns[how % len(self.turns)]
        a, b = self.fine[i].astype(np.float32), _turned(self.fine[j].astype(np.float32), *way)
        means = None if self.mean is None else (self.mean, _turned(self.mean, *way))
        at = (shift[0] * self.block, shift[1] * self.block, shift[2] * self.block)
        seen: dict[tuple[int, int, int], float] = {}

        def similar(place: tuple[int, int, int]) -> float:
            if any(abs(step) > min(self.reach, size - 1) for step, size in zip(place, a.shape, strict=True)):
                return -1.0
            if place not in seen:
                seen[place] = _partial_correlation(a, b, means, place)
            return seen[place]

        for steps in (ALONG_AXES, NEIGHBOURS):  # along axes first: most pairs are unlike, and their best is not needed
            while steps is ALONG_AXES or similar(at) > PROMISING:
                moved = max([at, *((at[0] + z, at[1] + y, at[2] + x) for z, y, x in steps)], key=similar)
                if moved == at:
                    break
                at = moved
        return similar(at)


def _cells(size: int, count: int) -> np.ndarray:
    """Weights (count, size) that average `size` voxels into cells of equal length; parts of voxels count in part."""
    edges = np.linspace(0, size, count + 1)
    voxels = np.arange(size)
    inside = np.minimum(voxels + 1, edges[1:, None]) - np.maximum(voxels, edges[:-1, None])
    return (np.clip(inside, 0, None) * count / size).astype(np.float32)


def _coarser(fine: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Images (n, Z, Y, X) as means of blocks, float32 (n, *grid)."""
    z, y, x = (cells // count for cells, count in zip(fine.shape[1:], grid, strict=True))
    blocks = fine.astype(np.float32).reshape(len(fine), grid[0], z, grid[1], y, grid[2], x)
    return blocks.mean(axis=(2, 4, 6))


def _flips(flat: bool) -> list[tuple[int, ...]]:
    """Sets of axes, from the last, that an image may be flipped along."""
    axes = (-2, -1) if flat else (-3, -2, -1)
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def _turned(images: np.ndarray, turned: bool, flips: tuple[int, ...]) -> np.ndarray:
    return np.flip(images.swapaxes(-2, -1) if turned else images, flips)


def _overlap(shape: tuple[int, ...], shift: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Which cells of two grids lie on each other, where the second is moved by a shift."""
    pairs = list(zip(shape, shift, strict=True))
    return (
        tuple(slice(max(0, s), n + min(0, s)) for n, s in pairs),
        tuple(slice(max(0, -s), n + min(0, -s)) for n, s in pairs),
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, v) with mean 0 and norm 1; zeros where they are constant."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    scale = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 1e-6 * scale, centred / np.maximum(norms, 1e-30), 0)


def _directions(means: Sequence[np.ndarray]) -> np.ndarray:
    """Orthonormal rows that span what means have beside a constant; none for no means."""
    if not means:
        return np.zeros((0, 1), dtype=np.float32)
    first, second = _unit(np.stack([mean.ravel() for mean in means]))
    rest = second - (second @ first) * first
    return np.stack([first, rest / norm]) if (norm := np.linalg.norm(rest)) > SAME_MEAN else first[None]


def _residuals(images: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """What of images (n, ...) lies along none of the directions: rows (n, v) with norm 1."""
    rows = _unit(images.reshape(len(images), -1))
    return _unit(rows - (rows @ directions.T) @ directions) if len(directions) else rows


def _partial_correlation(
    a: np.ndarray, b: np.ndarray, means: tuple[np.ndarray, np.ndarray] | None, shift: Sequence[int]
) -> float:
    """Correlation of two grids where they overlap when the second is moved by a shift, given the mean of each.

    From the inverse P of the matrix of correlations: -P_ab / sqrt(P_aa P_bb); without means the plain correlation.
    """
    here, there = _overlap(a.shape, shift)
    parts = [a[here], b[there], *([] if means is None else [means[0][here], means[1][there]])]
    rows = np.stack([part.ravel() for part in parts])
    rows -= rows.mean(axis=1, keepdims=True)
    products = (rows @ rows.T).astype(np.float64)
    norms = np.sqrt(np.maximum(products.diagonal(), 1e-12))
    correlations = products / norms[:, None] / norms
    if means is None:
        return min(float(correlations[0, 1]), 1.0)
    inverse = np.linalg.inv(correlations + SAME_MEAN**2 * np.eye(4))  # the two means may be one
    return float(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
